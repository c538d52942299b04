"""What pre-training has besides: settings, shapes, and that nothing of it is in a packed file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.core.hubert import HubertConfig, MaskedHubertConfig
from lowbit_k2.core.models import check_shapes, model_config_from_dict
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.models import make_model
from lowbit_k2.models.hubert import Hubert
from tests.models.hubert_samples import BASE, LENS, waveforms

CONFIG = MaskedHubertConfig(**vars(BASE), vocab_size=7, code_dim=5)


def test_settings_and_shapes() -> None:
    assert model_config_from_dict(CONFIG.to_dict()) == CONFIG and CONFIG.backbone == BASE
    for for_training in (True, False):
        model = make_model(CONFIG, for_training)
        check_shapes(CONFIG, {name: tuple(t.shape) for name, t in model.state_dict().items()}, for_training)
    assert CONFIG.vocabulary_tensors() == {"head.codewords.weight"} and BASE.vocabulary_tensors() == set()
    preset = MaskedHubertConfig.preset("tiny", vocab_size=50)
    assert preset.vocab_size == 50 and preset.backbone == HubertConfig.preset("tiny")
    assert BASE.compared_on == (320, 3, 32, 4)
    with pytest.raises(UserError, match="vocab_size must be at most 32767"):
        MaskedHubertConfig(vocab_size=40000)


@torch.no_grad()
def test_it_is_a_hubert_and_its_packed_file_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()
    plain = Hubert(BASE).eval()
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("head.")})
    expected = model(waveforms(), LENS).out
    assert torch.equal(plain(waveforms(), LENS).out, expected)
    save_packed(model, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", make_model(CONFIG, for_training=False))
    assert torch.equal(loaded(waveforms(), LENS).out, expected) and loaded.head is None
