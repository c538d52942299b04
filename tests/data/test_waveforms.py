"""Batches of samples: what the files hold, padded, with the labels of their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2.core.hubert import SAMPLING_RATE
from lowbit_k2.data.datamodule import DataConfig
from lowbit_k2.data.frame_labels import FrameLabels
from lowbit_k2.data.preparation import speech_cuts
from lowbit_k2.data.waveforms import WaveformModule
from lowbit_k2.errors import UserError
from tests.recipe.waves import make_waves

CONFIG = DataConfig(max_duration=2.0, num_buckets=2, spec_augment=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_waves(tmp_path_factory.mktemp("waves")).parent


def test_batches_hold_the_files(folder: Path) -> None:
    cuts = speech_cuts(folder / "manifests", "mine", ["train", "dev"], SAMPLING_RATE)
    assert len(cuts) == 15
    labels = FrameLabels({cut.id: np.full(i + 1, i, np.int16) for i, cut in enumerate(cuts)}, 20)
    module = WaveformModule(CONFIG, labels)
    seen = {}
    for batch in module.train_batches(cuts, epoch=1):
        assert batch.inputs.dim() == 2 and batch.inputs.size(1) == int(batch.input_lens.max())
        assert torch.equal(batch.targets, labels.of(batch.ids))
        for name, row, length in zip(batch.ids, batch.inputs, batch.input_lens.tolist(), strict=True):
            seen[name] = row[:length]
            assert not row[length:].any()
    for name, row in seen.items():
        expected, rate = soundfile.read(folder / "wav" / f"{name}.wav", dtype="float32")
        assert rate == SAMPLING_RATE and np.array_equal(row.numpy(), expected)
    assert set(seen) == set(cuts.ids)
    later = [batch.ids for batch in module.train_batches(cuts, epoch=1, skip=2)]
    assert later == [batch.ids for batch in module.train_batches(cuts, epoch=1)][2:]


def test_mean_0_and_variance_1(folder: Path) -> None:
    cuts = speech_cuts(folder / "manifests", "mine", ["dev"], SAMPLING_RATE)
    [plain] = WaveformModule(CONFIG).valid_batches(cuts)
    [normal] = WaveformModule(CONFIG, normalize=True).valid_batches(cuts)
    for row, own, length in zip(plain.inputs, normal.inputs, plain.input_lens.tolist(), strict=True):
        row = row[:length].double()
        torch.testing.assert_close(
            own[:length].double(), (row - row.mean()) / row.std(unbiased=False), atol=1e-4, rtol=0
        )
        assert not own[length:].any()


def test_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine_recordings_gone.jsonl.gz does not exist"):
        speech_cuts(folder / "manifests", "mine", ["gone"], SAMPLING_RATE)
    with pytest.raises(UserError, match="stand for several cuts"):
        speech_cuts(folder / "manifests", "mine", ["dev", "dev"], SAMPLING_RATE)
    moved = make_waves(tmp_path, train=1, dev=1)
    (tmp_path / "wav/train-00.wav").unlink()
    cuts = speech_cuts(moved, "mine", ["train"], SAMPLING_RATE)
    with pytest.raises(UserError, match="audio of cut train-00.* cannot be read: no .*train-00.wav"):
        list(WaveformModule(CONFIG).valid_batches(cuts))
