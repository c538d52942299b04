"""A plain folder of noises as the noise that training mixes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from lowbit_k2.data.manifests import load_noise
from tests.egs.scripts import call


def test_a_folder_becomes_training_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, rate, channels in (("rain/a.wav", 44100, 2), ("street/a.wav", 8000, 1)):
        path = tmp_path / "noises" / name
        path.parent.mkdir(parents=True)
        soundfile.write(path, rng.normal(0, 0.1, (12 * rate, channels)), rate)
    (tmp_path / "noises/README.txt").write_text("not a noise")
    where = ["--manifest-dir", tmp_path / "manifests"]
    call("lowbit_k2.recipe.prepare_noise", "--noise-dir", tmp_path / "noises", *where).good()
    flags = ["--corpus", "musan", "--splits", "noise", "--window", 10, "--output-dir", tmp_path / "fbank"]
    call("lowbit_k2.recipe.compute_fbank", *flags, *where).good()
    cuts = list(load_noise(tmp_path / "fbank"))
    assert sorted(cut.recording_id for cut in cuts) == ["rain/a.wav"] * 2 + ["street/a.wav"] * 2
    assert sorted(round(cut.duration) for cut in cuts) == [2, 2, 10, 10]
    assert all(cut.load_features().shape == (round(100 * cut.duration), 80) for cut in cuts)


def test_what_it_refuses(tmp_path: Path) -> None:
    flags = ["lowbit_k2.recipe.prepare_noise", "--manifest-dir", tmp_path, "--noise-dir"]
    assert f"{tmp_path} holds no audio" in call(*flags, tmp_path).error()
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    assert "broken.wav" in call(*flags, tmp_path).error()
