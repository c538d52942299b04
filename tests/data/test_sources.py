"""Manifests run nothing, damaged audio is named, features that were moved are found."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig, load_features, make_extractor
from lowbit_k2.data.kaldi_dir import read_kaldi_dir
from lowbit_k2.data.manifests import load_cuts, read_cuts
from lowbit_k2.data.sources import check_audio_file, check_sources, recording_of
from lowbit_k2.errors import UserError
from lowbit_k2.recipe import compute_fbank, write_shar

from .conftest import RATE, ToyCorpus, lhotse, soundfile, write_wav

SPHERE = "NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {n}\nsample_rate -i 8000\n"
SPHERE += "sample_n_bytes -i 1\nsample_coding -s4 ulaw\nend_head\n"


def fbank(source: Path, output: Path, *flags: str) -> lhotse.CutSet:
    kind = "--kaldi-dir" if source.is_dir() else "--cuts"
    names = ["--corpus", "toy", "--splits", "test", kind, str(source), "--output-dir", str(output)]
    compute_fbank.run(compute_fbank.get_parser().parse_args([*names, *flags]))
    return load_cuts(output, "toy", "test")


def command_cut(folder: Path, kind: str) -> tuple[lhotse.cut.Cut, Path]:
    """A cut that leaves a mark when it is read."""
    wav, mark = write_wav(folder / "a.wav", 1.0, seed=1), folder / "was-run"
    recording = lhotse.Recording.from_file(wav)
    cut = lhotse.MonoCut("evil", 0, 1.0, 0, recording=recording)
    cut.supervisions = [lhotse.SupervisionSegment("evil", "a", 0, 1.0, text="X")]
    if kind == "features":
        features = lhotse.Features("fbank", 100, 80, 0.01, RATE, 0, 1.0, "numpy_files", f"pipe:touch {mark};#", "a.npy")
        return dataclasses.replace(cut, features=dataclasses.replace(features, recording_id="a", channels=0)), mark
    if kind == "url":
        source = lhotse.AudioSource("url", [0], "http://localhost:1/a.wav")
    else:
        source = lhotse.AudioSource("command", [0], f"touch {mark}; cat {wav}")
    recording = dataclasses.replace(recording, sources=[source])
    return dataclasses.replace(cut, recording=recording), mark


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["command", "features", "url"])
def test_manifests_run_no_commands(kind: str, tmp_path: Path) -> None:
    """By all ways of reading: compute_fbank, training and decoding, shards, alone and mixed into another cut."""
    cut, mark = command_cut(tmp_path, kind)
    good = dataclasses.replace(lhotse.Recording.from_file(tmp_path / "a.wav").to_cut(), id="good")
    stored = kind == "features"
    field, extractor = ("features", None) if stored else ("recording", make_extractor(FeatureConfig()))
    mixed = good.mix(cut, snr=10).with_id("mix") if not stored else cut
    manifest = tmp_path / "fbank/toy_cuts_test.jsonl.gz"
    manifest.parent.mkdir()
    lhotse.CutSet.from_cuts([cut]).to_file(manifest)
    ways: list[Callable[[], object]] = [
        lambda: load_features(cut, FeatureConfig(), extractor),
        lambda: load_features(mixed, FeatureConfig(), extractor),
        lambda: AsrDataModule(DataConfig(manifest.parent, on_the_fly_feats=not stored)).load(cut),
        lambda: write_shar.write_shar(manifest.parent, tmp_path / "shar", "toy", ["test"], field),
    ]
    if not stored:
        ways += [lambda: fbank(manifest, tmp_path / "out")]
    for way in ways:
        with pytest.raises(UserError, match=r"cut (evil|mix) has .* not (run|read): .*allow_commands"):
            way()
    assert not mark.exists()


def test_commands_that_are_allowed_are_run(tmp_path: Path) -> None:
    cut, mark = command_cut(tmp_path, "command")
    lhotse.CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    [found] = fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out", "--allow-commands", "true")
    assert mark.exists() and found.num_frames == 100
    (tmp_path / "wav.scp").write_text(f"u1 cat {tmp_path}/a.wav |\n")
    (tmp_path / "text").write_text("u1 YES\n")
    [cut] = read_kaldi_dir(tmp_path, allow_commands=True)
    assert cut.duration == 1.0 and cut.load_audio().shape == (1, RATE)
    (tmp_path / "wav.scp").write_text("u1 echo no audio |\n")
    with pytest.raises(UserError, match="the command of u1 wrote no audio"):
        read_kaldi_dir(tmp_path, allow_commands=True)


def test_what_is_plain_passes(toy_corpus: ToyCorpus) -> None:
    for kind in ("recording", "features"):
        for cut in toy_corpus.cuts:
            check_sources(cut, kind)


# --- files of audio ---------------------------------------------------------------------------------------------


def patched(path: Path, size: int | None, cut_to: int | None = None) -> Path:
    """A WAV file with another size in its data chunk, or with its end lost."""
    data = bytearray(path.read_bytes())
    if size is not None:
        place = data.index(b"data") + 4
        data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data[:cut_to])
    return path


@pytest.mark.attack
@pytest.mark.parametrize(
    ("size", "cut_to", "message"),
    [
        (0, None, r"holds no samples by its header: was it written to a pipe"),
        (None, 20_000, r"is cut short, 19956 of 32000 bytes of samples are there: copy it again"),
        (40_000, None, r"is cut short, 32000 of 40000 bytes"),
        (None, 10, "cannot be read as audio"),
        (None, 0, "cannot be read as audio"),
    ],
)
def test_damaged_wav_files(tmp_path: Path, size: int | None, cut_to: int | None, message: str) -> None:
    path = patched(write_wav(tmp_path / "a.wav", 1.0, seed=1), size, cut_to)
    with pytest.raises(UserError, match=f"{path} {message}"):
        recording_of(path, "a")


def test_damage_behind_a_manifest_is_found_before_work_begins(tmp_path: Path) -> None:
    recordings = [lhotse.Recording.from_file(write_wav(tmp_path / f"{n}.wav", 1.0, seed=1)) for n in "ab"]
    lhotse.CutSet.from_cuts([r.to_cut() for r in recordings]).to_file(tmp_path / "cuts.jsonl.gz")
    patched(tmp_path / "b.wav", None, 20_000)
    with pytest.raises(UserError, match=r"b.wav is cut short"):
        fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out")


def test_a_wav_file_of_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = patched(write_wav(tmp_path / "a.wav", 1.0, seed=1), 0xFFFFFFFF)
    check_audio_file(path)
    assert recording_of(path, "a").num_samples == RATE


def test_sphere_in_a_kaldi_directory(tmp_path: Path) -> None:
    head = SPHERE.format(n=8000).encode()
    codes = bytes(np.random.default_rng(1).integers(0, 256, 8000, dtype=np.uint8))
    (tmp_path / "a.sph").write_bytes(head + b" " * (1024 - len(head)) + codes)
    shutil.copy(tmp_path / "a.sph", tmp_path / "no-suffix")
    (tmp_path / "wav.scp").write_text(f"u1 {tmp_path}/a.sph\nu2 {tmp_path}/no-suffix\n")
    (tmp_path / "text").write_text("u1 YES\nu2 NO\n")
    one, two = read_kaldi_dir(tmp_path)
    assert one.sampling_rate == two.sampling_rate == 8000 and one.duration == 1.0
    assert np.array_equal(one.load_audio(), two.load_audio()) and one.load_audio().any()


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, on_the_fly: bool) -> None:
    samples = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype("float32")
    samples[500] = np.nan
    soundfile.write(tmp_path / "bad.wav", samples, RATE, subtype="FLOAT")
    write_wav(tmp_path / "good.wav", 1.0, seed=1)
    cuts = [lhotse.Recording.from_file(tmp_path / f"{name}.wav").to_cut() for name in ("good", "bad")]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    message = r"the audio of cut bad\S* cannot be read .*samples that are not finite numbers.* from .*bad.wav"
    with pytest.raises(UserError, match=message):
        if on_the_fly:
            load_features(cuts[1], FeatureConfig(), make_extractor(FeatureConfig()))
        else:
            fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out")


def test_a_mixed_cut_is_taken(tmp_path: Path) -> None:
    one, noise = (lhotse.Recording.from_file(write_wav(tmp_path / f"{n}.wav", 1.0, seed=n)).to_cut() for n in (1, 2))
    one.supervisions = [lhotse.SupervisionSegment("one", one.recording_id, 0, 1.0, text="YES")]
    mixed = one.mix(noise, snr=10).with_id("mix")
    lhotse.CutSet.from_cuts([mixed]).to_file(tmp_path / "cuts.jsonl.gz")
    [found] = fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out")
    config = FeatureConfig(normalize="none")
    fresh = load_features(mixed, config, make_extractor(config))
    assert float((load_features(found, config) - fresh).abs().max()) < 0.1  # lilcom rounds
    assert found.supervisions[0].text == "YES"


def test_cuts_without_transcript_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuts = [lhotse.Recording.from_file(write_wav(tmp_path / f"{n}.wav", 1.0, seed=n)).to_cut() for n in range(3)]
    cuts[1].supervisions = [lhotse.SupervisionSegment("one", cuts[1].recording_id, 0, 1.0, text="YES")]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    [found] = fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out")
    assert found.id == "one"
    assert f"2 of 3 cuts without a transcript are left out, first {cuts[0].id}" in caplog.text


# --- moved folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_moved_folder(tmp_path: Path, jobs: str, lazy: bool) -> None:
    cuts = [lhotse.Recording.from_file(write_wav(tmp_path / f"{n}.wav", 1.0, seed=n)).to_cut() for n in range(3)]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    before = [cut.load_features() for cut in fbank(tmp_path / "cuts.jsonl.gz", tmp_path / "out", "--num-jobs", jobs)]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    found = read_cuts(tmp_path / "elsewhere/toy_cuts_test.jsonl.gz", lazy=lazy)
    assert found.is_lazy is lazy
    for cut, features in zip(found, before, strict=True):
        assert np.array_equal(cut.load_features(), features)
    for path in (tmp_path / "elsewhere").glob("feats_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    first = next(iter(read_cuts(tmp_path / "elsewhere/toy_cuts_test.jsonl.gz")))
    with pytest.raises(UserError, match="features of cut .* has the folder been moved.*compute_fbank again"):
        load_features(first, FeatureConfig())
