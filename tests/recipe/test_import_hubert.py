"""Weights of others become a checkpoint that teaches and gives hidden states."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.representations import Representation
from lowbit_k2.models.hubert_weights import load_hubert
from tests.egs.scripts import call
from tests.models.hubert_samples import BASE, LENS, waveforms
from tests.models.test_hubert_weights import hugging_face, others_state, write_folder

IMPORT = "lowbit_k2.recipe.import_hubert"


@torch.no_grad()
def test_hidden_states_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "theirs", hugging_face(others_state(BASE)))
    output = tmp_path / "exp/pretrained.pt"
    assert "3 layers of 32" in call(IMPORT, "--weights", folder, "--output", output).good().out
    found = Representation.load(CheckpointChoice(checkpoint=output))
    expected = load_hubert(folder)(waveforms(), LENS).hidden_states
    states = found.loaded.model(waveforms(), LENS).hidden_states
    assert all(torch.equal(one, two) for one, two in zip(states, expected, strict=True))
    assert found.allocation.bits and found.layers("all") == (0, 1, 2, 3)
    assert "exists already" in call(IMPORT, "--weights", folder, "--output", output).error()
    assert "does not exist" in call(IMPORT, "--weights", tmp_path / "gone", "--output", tmp_path / "new").error()
