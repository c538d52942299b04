"""Weights of others become a checkpoint that teaches and gives hidden states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.representations import Representation
from lowbit_k2.models.hubert_weights import load_hubert
from tests.egs.scripts import call, refused
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


def of_another_shape(folder: Path) -> Path:
    return write_folder(folder, hugging_face(others_state(BASE)), intermediate_size=64)


def without_config(folder: Path) -> Path:
    write_folder(folder, hugging_face(others_state(BASE)))
    (folder / "config.json").unlink()
    return folder


def without_weights(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_another_shape, "theirs/model.safetensors holds encoder.layers.0.ff.w1.weight of shape (48, 32), its"),
        (without_config, "theirs/model.safetensors: no config.json lies beside it: name the size of the model (base"),
        (without_weights, "theirs holds no weights: it needs one of model.safetensors, pytorch_model.bin"),
    ],
)
def test_what_is_no_such_model_is_one_line(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "theirs")
    line = refused(tmp_path, IMPORT, "--weights", folder, "--output", tmp_path / "exp/pretrained.pt")
    assert line.startswith(f"error: {tmp_path}/") and words in line


def test_a_size_that_is_not_that_of_the_weights(tmp_path: Path) -> None:
    """Without a config.json the size is named; a wrong one is told by the first tensor."""
    folder = without_config(tmp_path / "theirs")
    own = ["--weights", folder, "--output", tmp_path / "pretrained.pt", "--model", "tiny"]
    assert "name the right size" in refused(tmp_path, IMPORT, *own)
