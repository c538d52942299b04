from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data import extraction as module
from lowbit_k2.data.features import FeatureConfig, load_features, make_extractor, read_feature_config
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.recipe import compute_fbank

lhotse = pytest.importorskip("lhotse")
soundfile = pytest.importorskip("soundfile")

RATE = 16000
RAW = FeatureConfig(normalize="none")


def run(*flags: str | Path) -> None:
    compute_fbank.run(compute_fbank.get_parser().parse_args(list(map(str, flags))))


def make_corpus(folder: Path, count: int = 4, rate: int = RATE) -> Path:
    """Manifests of split `train`; every recording holds two utterances of 0.5 s."""
    rng = np.random.default_rng(0)
    recordings, supervisions = [], []
    for i in range(count):
        path = folder / f"rec{i}.wav"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(round(1.2 * rate)), rate)
        recordings.append(lhotse.Recording.from_file(path))
        for k in range(2):
            name = f"utt{i}{'ab'[k]}"
            supervisions.append(lhotse.SupervisionSegment(name, f"rec{i}", 0.6 * k, 0.5, text=f"Word-{i}, {k}!"))
    lhotse.RecordingSet.from_recordings(recordings).to_file(folder / "toy_recordings_train.jsonl.gz")
    lhotse.SupervisionSet.from_segments(supervisions).to_file(folder / "toy_supervisions_train.jsonl.gz")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "manifests")


def flags(corpus: Path, output: Path) -> tuple[str | Path, ...]:
    return ("--corpus", "toy", "--splits", "train", "--manifest-dir", corpus, "--output-dir", output)


def test_three_speeds(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "fbank"
    run(*flags(corpus, output), "--perturb-speed", "true")
    cuts = {cut.id: cut for cut in read_cuts(output / "toy_cuts_train.jsonl.gz")}
    assert len(cuts) == 3 * 8
    assert list(cuts) != sorted(cuts), "training cuts are shuffled"
    for speed, suffix in ((1.0, ""), (0.9, "_sp0.9"), (1.1, "_sp1.1")):
        cut = cuts["utt0b" + suffix]
        assert cut.duration == pytest.approx(0.5 / speed, abs=1e-3)
        assert cut.supervisions[0].text == "Word-0, 1!"
        stored, fresh = load_features(cut, RAW), load_features(cut, RAW, make_extractor(RAW))
        assert stored.shape == fresh.shape == (cut.num_frames, 80)
        assert float((stored - fresh).abs().max()) < 0.1  # lilcom rounds
    assert read_feature_config(output) == FeatureConfig()


def test_speed_moves_the_pitch(tmp_path: Path) -> None:
    """At 1.1 a tone of 1000 Hz has 1100 Hz, in both lanes: no torchaudio is needed."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE), RATE)
    samples = lhotse.Recording.from_file(path).perturb_speed(1.1).load_audio()[0]
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * RATE / len(samples) == pytest.approx(1100, abs=2)
    assert len(samples) == pytest.approx(RATE / 1.1, abs=1)


def test_the_second_run_does_nothing(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "fbank"
    run(*flags(corpus, output))
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    run(*flags(corpus, output))
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    with pytest.raises(UserError, match="other feature settings"):
        run(*flags(corpus, output), "--num-mel-bins", "40")


def test_a_changed_source_is_not_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither another text nor other flags; a transcript that is asked for later is written."""
    caplog.set_level("INFO")
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    (tmp_path / "wav.scp").write_text(f"u1 {tmp_path}/a.wav\n")
    (tmp_path / "text").write_text("u1 Yes\n")
    output, transcript = tmp_path / "fbank", tmp_path / "transcript.txt"
    names = ("--corpus", "toy", "--splits", "test", "--kaldi-dir", tmp_path, "--output-dir", output)
    run(*names)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    run(*names, "--transcript", transcript)
    assert transcript.read_text() == "Yes\n" and "is there already: skipped" in caplog.text
    for more in (["--normalize-text", "upper"], ["--window", "0.5"]):
        with pytest.raises(UserError, match=f"made from something else .*{more[0][2:6]}.* remove it to make it again"):
            run(*names, *more)
    (tmp_path / "text").write_text("u1 No\n")
    with pytest.raises(UserError, match=r"toy_cuts_test.jsonl.gz was made from something else \(text "):
        run(*names)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    (output / "toy_cuts_test.jsonl.gz").unlink()
    run(*names)
    assert [cut.supervisions[0].text for cut in read_cuts(output / "toy_cuts_test.jsonl.gz")] == ["No"]


def test_gzipped_manifests_are_compared_by_what_they_hold(corpus: Path, tmp_path: Path) -> None:
    run(*flags(corpus, tmp_path / "fbank"))
    path = corpus / "toy_supervisions_train.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
    run(*flags(corpus, tmp_path / "fbank"))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"Word-0", b"Wort-0")))
    with pytest.raises(UserError, match="made from something else"):
        run(*flags(corpus, tmp_path / "fbank"))


def test_parts_of_another_text_are_made_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, output = module.compute_split, tmp_path / "fbank"

    def interrupted(cuts: lhotse.CutSet, name: str, *more: object) -> lhotse.CutSet:
        if "2-of" in name:
            raise KeyboardInterrupt
        return computed(cuts, name, *more)

    monkeypatch.setattr(module, "compute_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*flags(corpus, output), "--num-splits", "2")
    monkeypatch.setattr(module, "compute_split", computed)
    run(*flags(corpus, output), "--num-splits", "2", "--normalize-text", "upper")
    texts = {cut.supervisions[0].text for cut in read_cuts(output / "toy_cuts_train.jsonl.gz")}
    assert all(text.startswith("WORD") for text in texts), texts


def test_several_jobs_give_the_same(corpus: Path, tmp_path: Path) -> None:
    run(*flags(corpus, tmp_path / "one"))
    run(*flags(corpus, tmp_path / "two"), "--num-jobs", "2")
    pairs = zip(*(read_cuts(tmp_path / name / "toy_cuts_train.jsonl.gz") for name in ("one", "two")), strict=True)
    for one, two in pairs:
        assert one.id == two.id and np.array_equal(one.load_features(), two.load_features())


def test_parts_are_kept_by_an_interrupted_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "fbank"
    run(*flags(corpus, whole))
    computed = module.compute_split
    left = 2

    def interrupted(*args: object):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return computed(*args)

    monkeypatch.setattr(module, "compute_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*flags(corpus, output), "--num-splits", "3")
    assert not (output / "toy_cuts_train.jsonl.gz").exists()
    assert sorted(path.name for path in (output / "toy_cuts_train.parts").iterdir()) == [
        "1-of-3.jsonl.gz",
        "2-of-3.jsonl.gz",
        "origin.json",
    ]
    left = 1
    with caplog.at_level("INFO"):
        run(*flags(corpus, output), "--num-splits", "3")
    assert left == 0 and caplog.text.count("is there already") == 2, "one part was left to compute"
    assert not (output / "toy_cuts_train.parts").exists()
    first, second = (read_cuts(folder / "toy_cuts_train.jsonl.gz") for folder in (whole, output))
    assert list(first.ids) == list(second.ids)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.load_features(), b.load_features())
    monkeypatch.undo()
    run(*flags(corpus, tmp_path / "many"), "--num-splits", "100")  # more than there are cuts
    assert list(read_cuts(tmp_path / "many/toy_cuts_train.jsonl.gz").ids) == list(first.ids)


def test_texts_are_normalised_and_written(corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "texts" / "train.txt"
    run(*flags(corpus, tmp_path / "fbank"), "--normalize-text", "upper", "--transcript", text, "--perturb-speed", "1")
    assert sorted(text.read_text().splitlines()) == sorted(f"WORD {i} {k}" for i in range(4) for k in range(2))
    cuts = read_cuts(tmp_path / "fbank" / "toy_cuts_train.jsonl.gz")
    assert {cut.supervisions[0].text for cut in cuts} == set(text.read_text().splitlines())


def test_kaldi_directories_and_cut_manifests(corpus: Path, tmp_path: Path) -> None:
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text(f"x1 {corpus}/rec1.wav\nx0 {corpus}/rec0.wav\n")
    (kaldi / "text").write_text("x0 A B\nx1 C\n")
    output = ("--output-dir", tmp_path / "fbank", "--corpus", "mine")
    run(*output, "--splits", "train", "--kaldi-dir", kaldi)
    own = read_cuts(tmp_path / "fbank" / "mine_cuts_train.jsonl.gz")
    assert {cut.id: cut.num_frames for cut in own} == {"x0": 120, "x1": 120}
    lhotse.CutSet.from_cuts(cut.drop_features() for cut in own).to_file(tmp_path / "any.jsonl.gz")
    run(*output, "--splits", "dev", "--cuts", tmp_path / "any.jsonl.gz")
    again = {cut.id: cut for cut in read_cuts(tmp_path / "fbank" / "mine_cuts_dev.jsonl.gz")}
    assert all(np.array_equal(cut.load_features(), again[cut.id].load_features()) for cut in own)


def test_other_sampling_rates(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "manifests", count=1, rate=8000)
    run(*flags(corpus, tmp_path / "fbank"))
    cuts = list(read_cuts(tmp_path / "fbank" / "toy_cuts_train.jsonl.gz"))
    assert [(cut.sampling_rate, cut.num_frames) for cut in cuts] == [(RATE, 50)] * 2


def test_narrow_band(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "manifests", count=2, rate=8000)
    run(*flags(corpus, tmp_path / "fbank"), "--sampling-rate", "8000", "--num-mel-bins", "64", "--high-freq", "-200")
    config = read_feature_config(tmp_path / "fbank")
    assert (config.sampling_rate, config.num_mel_bins, config.high_freq) == (8000, 64, -200)
    assert {cut.num_features for cut in read_cuts(cuts_path(tmp_path / "fbank", "toy", "train"))} == {64}


def test_segments_shorter_than_a_frame_are_left_out(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One slip of a transcriber, 0.004 s long, must not stop the corpus; what has a frame stays at all speeds."""
    supervisions = corpus / "toy_supervisions_train.jsonl.gz"
    tiny = [lhotse.SupervisionSegment(f"tiny{i}", "rec0", 1.1, 0.004 + 0.021 * i, text="um") for i in range(2)]
    kept = list(lhotse.load_manifest(supervisions))
    lhotse.SupervisionSet.from_segments([*kept, *tiny]).to_file(supervisions)
    run(*flags(corpus, tmp_path / "fbank"), "--perturb-speed", "true")
    ids = {cut.id for cut in read_cuts(tmp_path / "fbank/toy_cuts_train.jsonl.gz")}
    assert len(ids) == 3 * 9 and {"tiny1", "tiny1_sp1.1"} < ids
    assert "train: 1 cuts shorter than a frame are left out, first tiny0" in caplog.text


def test_a_failure_leaves_nothing_half_written(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "fbank"
    whole = (corpus / "rec3.wav").read_bytes()
    (corpus / "rec3.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match="features of toy_train cannot be computed") as caught:
        run(*flags(corpus, output))
    assert "rec3.wav" in str(caught.value) and "\n" not in str(caught.value)
    (corpus / "rec3.wav").unlink()
    with pytest.raises(UserError, match="rec3.wav .* has the corpus been moved"):
        run(*flags(corpus, output))
    assert not output.exists()
    (corpus / "rec3.wav").write_bytes(whole)
    run(*flags(corpus, output))
    assert len(read_cuts(output / "toy_cuts_train.jsonl.gz")) == 8


def test_ids_have_to_differ(corpus: Path, tmp_path: Path) -> None:
    cut = lhotse.Recording.from_file(corpus / "rec0.wav").to_cut()
    lhotse.CutSet.from_cuts([cut, cut.truncate(duration=0.5, preserve_id=True)]).to_file(tmp_path / "c.jsonl.gz")
    with pytest.raises(UserError, match="1 ids stand for several cuts, first rec0"):
        run("--corpus", "x", "--splits", "dev", "--cuts", tmp_path / "c.jsonl.gz", "--output-dir", tmp_path / "fbank")


def test_wrong_flags(corpus: Path, tmp_path: Path) -> None:
    def fails(match: str, *wrong: str | Path) -> None:
        with pytest.raises(UserError, match=match):
            run(*wrong)
        assert not (tmp_path / "fbank").exists()

    base = ("--corpus", "toy", "--output-dir", tmp_path / "fbank")
    fails("no split", *base, "--splits", " ", "--manifest-dir", corpus)
    fails("give one of", *base, "--splits", "train")
    fails("give one of", *base, "--splits", "train", "--manifest-dir", corpus, "--kaldi-dir", corpus)
    fails("one split", *base, "--splits", "train dev", "--kaldi-dir", corpus)
    fails("toy_recordings_dev.jsonl.gz does not exist", *base, "--splits", "dev", "--manifest-dir", corpus)
    fails("--num-mel-bins|num_mel_bins", *flags(corpus, tmp_path / "fbank"), "--num-mel-bins", "0")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "toy_recordings_train.jsonl.gz").write_text("no gzip")
    fails("cannot be read", *flags(damaged, tmp_path / "fbank"))


def test_as_a_command(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "-m", "lowbit_k2.recipe.compute_fbank", "--corpus", "x", "--splits", "train"]
    command += ["--manifest-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
