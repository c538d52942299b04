from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data.kaldi_dir import read_kaldi_dir
from lowbit_k2.errors import UserError

from .conftest import soundfile, write_wav


@pytest.fixture
def kaldi_dir(tmp_path: Path) -> Path:
    """Two recordings, three utterances."""
    first, second = (write_wav(tmp_path / f"rec {i}.wav", 2.0, seed=i, channels=i) for i in (1, 2))
    files = {
        "wav.scp": f"rec1 {first}\nrec2 {second}\nunused {tmp_path}/absent.wav\n",
        "text": "utt-b HELLO  WORLD\nutt-a ONE\nutt-c\n",
        "segments": "utt-a rec1 0.50 1.25\nutt-b rec2 0.0 2.04\nutt-c rec1 1.25 -1\n",
        "utt2spk": "utt-a anna\nutt-b bob\nutt-c anna\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def replace_line(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_segments(kaldi_dir: Path) -> None:
    cuts = {cut.id: cut for cut in read_kaldi_dir(kaldi_dir)}
    assert list(cuts) == ["utt-a", "utt-b", "utt-c"]
    found = [(c.start, c.duration, c.supervisions[0].text, c.supervisions[0].speaker) for c in cuts.values()]
    assert found == [
        (0.5, 0.75, "ONE", "anna"),
        (0.0, 2.0, "HELLO WORLD", "bob"),  # 0.04 s too long: clipped
        (1.25, 0.75, "", "anna"),
    ]
    samples, _ = soundfile.read(kaldi_dir / "rec 2.wav", dtype="float32")
    assert np.array_equal(cuts["utt-b"].load_audio()[0], samples[:, 0]), "the first channel"
    samples, _ = soundfile.read(kaldi_dir / "rec 1.wav", dtype="float32")
    assert np.array_equal(cuts["utt-a"].load_audio()[0], samples[8000:20000])


def test_without_segments_and_speakers(kaldi_dir: Path) -> None:
    (kaldi_dir / "segments").unlink()
    (kaldi_dir / "utt2spk").unlink()
    (kaldi_dir / "text").write_text("rec1 A B\nrec2 C\n")
    cuts = list(read_kaldi_dir(kaldi_dir))
    assert [(cut.id, cut.duration, cut.supervisions[0].text) for cut in cuts] == [
        ("rec1", 2.0, "A B"),
        ("rec2", 2.0, "C"),
    ]
    assert cuts[0].supervisions[0].speaker is None


def test_paths_are_taken_from_the_current_folder(kaldi_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kaldi_dir / "wav.scp").write_text("rec1 rec 1.wav\nrec2 rec 2.wav\n")
    monkeypatch.chdir(kaldi_dir)
    cut = next(iter(read_kaldi_dir("")))
    monkeypatch.chdir("/")
    assert cut.load_audio().shape == (1, 12000)


def test_commands_are_refused_and_not_run(kaldi_dir: Path) -> None:
    marker = kaldi_dir / "was-run"
    replace_line(kaldi_dir / "wav.scp", "unused", f"evil touch {marker} |\nunused")
    with pytest.raises(UserError, match="evil is a shell command, which is not run"):
        read_kaldi_dir(kaldi_dir)
    assert not marker.exists()


def test_odd_segments(kaldi_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A channel of its own, beginnings and ends a little outside; what lies outside is left out and counted."""
    texts, lines = [], []
    for i in range(40):
        texts.append(f"utt-{i:02} ONE\n")
        lines.append(f"utt-{i:02} rec2 0.5 1.5 {'AB01'[i % 4]}\n")
    lines[38], lines[39] = "utt-38 rec1 -0.05 2.09 1\n", "utt-39 rec1 1.0 9.0\n"
    (kaldi_dir / "text").write_text("".join(texts))
    (kaldi_dir / "segments").write_text("".join(lines))
    (kaldi_dir / "utt2spk").unlink()
    cuts = {cut.id: cut for cut in read_kaldi_dir(kaldi_dir)}
    assert len(cuts) == 39
    assert [cuts[f"utt-{i:02}"].channel for i in range(4)] == [0, 1, 0, 1]
    samples, _ = soundfile.read(kaldi_dir / "rec 2.wav", dtype="float32")
    assert np.array_equal(cuts["utt-01"].load_audio()[0], samples[8000:24000, 1])
    assert (cuts["utt-38"].start, cuts["utt-38"].duration, cuts["utt-38"].channel) == (0.0, 2.0, 0)
    assert "1 of 40 utterances left out, first utterance utt-39 covers 1.0 to 9.0 s" in caplog.text
    for i in (5, 6):
        lines[i] = f"utt-{i:02} rec2 0.5 1.5 7\n"
    (kaldi_dir / "segments").write_text("".join(lines))
    with pytest.raises(UserError, match=r"segments: 3 of 40 do not fit, first utterance utt-05 is on channel 7"):
        read_kaldi_dir(kaldi_dir)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("wav.scp", "rec1 ", "recX ", "no line for recording rec1"),
        ("wav.scp", "rec 1.wav", "rec 9.wav", "does not exist"),
        ("wav.scp", "rec 1.wav", "text", "cannot be read as audio"),
        ("wav.scp", "rec 1.wav", "feats.ark:17", "archives"),
        ("text", "utt-a ONE", "utt-d ONE", "no line for utterance utt-d"),
        ("text", "utt-a ONE", "utt-b ONE", "line 2: utt-b occurs twice"),
        ("segments", "utt-a rec1 0.50 1.25", "utt-a rec1 0.50", "line 1: expected 3 fields behind utt-a, found 2"),
        ("segments", "0.50 1.25", "0.50 later", "times '0.50' and 'later'"),
        ("segments", "0.50 1.25", "0.50 1.25 C", "expected seconds, and perhaps a channel"),
        ("segments", "0.50 1.25", "0.50 1.25 0 0", "expected seconds, and perhaps a channel"),
        ("segments", "0.50 1.25", "nan 1.25", "utterance utt-a covers nan to 1.25 s"),
        ("segments", "0.50 1.25", "0.50 inf", "utterance utt-a covers 0.5 to inf s"),
        ("segments", "0.50 1.25", "1.50 1.25", "utterance utt-a covers 1.5 to 1.25 s"),
        ("segments", "0.0 2.04", "0.0 3.0", "has 2.0 s"),
        ("segments", "utt-b rec2", "utt-a rec2", "utt-a occurs twice"),
    ],
)
def test_what_does_not_fit(kaldi_dir: Path, name: str, old: str, new: str, message: str) -> None:
    replace_line(kaldi_dir / name, old, new)
    with pytest.raises(UserError, match=message) as caught:
        read_kaldi_dir(kaldi_dir)
    assert "\n" not in str(caught.value)


def test_missing_files(kaldi_dir: Path) -> None:
    for name in ("wav.scp", "text"):
        (kaldi_dir / name).rename(kaldi_dir / "away")
        with pytest.raises(UserError, match=f"{name} does not exist"):
            read_kaldi_dir(kaldi_dir)
        (kaldi_dir / name).write_text("\n")
        with pytest.raises(UserError, match=f"{name} is empty"):
            read_kaldi_dir(kaldi_dir)
        (kaldi_dir / "away").rename(kaldi_dir / name)
    (kaldi_dir / "wav.scp").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-16"):
        read_kaldi_dir(kaldi_dir)
    with pytest.raises(UserError, match="no folder"):
        read_kaldi_dir(kaldi_dir / "absent")
