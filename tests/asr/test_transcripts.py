"""Where transcripts go, and their formats: text, JSON, subtitles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lowbit_k2 import progress
from lowbit_k2.asr import transcripts
from lowbit_k2.asr.subtitles import LINE, MAX_LETTERS, MAX_SECONDS, as_srt, as_vtt, subtitles
from lowbit_k2.asr.transcripts import OutputConfig, PlainText, find_audio, print_transcripts
from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.runtime import Token, Transcript, Word

SHORT = Transcript((Token(3, "▁YES", 0.4),), (Word("YES", 0.4, 0.44),), 0.9)


def spoken(words: list[tuple[float, str]], seconds: float) -> Transcript:
    """Words that take 0.2 s each, from their starts."""
    return Transcript((), tuple(Word(text, start, start + 0.2) for start, text in words), seconds)


def evenly(count: int, gaps: dict[int, float] | None = None) -> Transcript:
    """Words every 0.3 s, with longer gaps before some of them."""
    words, time = [], 1.0
    for number in range(count):
        time += 0.3 + (gaps or {}).get(number, 0.0)
        words.append((time, f"WORD{number}"))
    return spoken(words, time + 2.0)


def test_subtitles_are_cut_at_gaps() -> None:
    found = [cue.text.split() for cue in subtitles(evenly(30, {5: 0.9, 13: 0.3, 20: 0.5}))]
    firsts = [int(words[0][4:]) for words in found]
    assert firsts[:2] == [0, 5] and {13, 20} <= set(firsts), "pauses of a second always part, lesser ones where needed"
    assert [word for words in found for word in words] == [f"WORD{n}" for n in range(30)]


@pytest.mark.parametrize("transcript", [evenly(300), evenly(1), spoken([(0.1, "X" * 200), (0.4, "Y")], 0.7)])
def test_subtitles_can_be_read(transcript: Transcript) -> None:
    cues = list(subtitles(transcript))
    for cue in cues:
        lines = cue.text.split("\n")
        assert len(lines) <= 2 and cue.start < cue.end <= transcript.seconds
        if len(cue.text.split()) > 1:
            assert len(cue.text) <= MAX_LETTERS and max(map(len, lines)) <= LINE + 10
            assert cue.end - cue.start <= MAX_SECONDS
    assert all(a.end <= b.start for a, b in zip(cues, cues[1:], strict=False))


def test_formats_of_subtitles() -> None:
    transcript = spoken([(0.5, "A<B"), (3599.9996, "C&D\x1b")], 3700.0)
    assert as_srt(transcript) == (
        "1\n00:00:00,500 --> 00:00:01,500\nA<B\n\n2\n01:00:00,000 --> 01:00:01,000\nC&D\\x1b\n"
    )
    assert as_vtt(transcript) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\nA&lt;B\n\n01:00:00.000 --> 01:00:01.000\nC&amp;D\\x1b\n"
    )
    assert as_srt(Transcript((), (), 1.0)) == "" and as_vtt(Transcript((), (), 1.0)) == "WEBVTT\n"


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    """Recordings by name; nobody opens them here."""
    folder = tmp_path / "talks"
    for name in ("b.wav", "a.FLAC", "deep/er/c.ogg", "deep/._c.ogg", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_folders_are_searched(tree: Path, tmp_path: Path) -> None:
    single = Path("elsewhere/x.wav")
    found = find_audio([single, tree, Path("-")])
    names = ["a.FLAC", "b.wav", "deep/er/c.ogg"]
    assert list(found.items()) == [
        (single, Path("x.wav")),
        *((tree / name, Path(name)) for name in names),
        (Path("-"), Path("stdin")),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no audio files: none ends in \.wav, \.flac, "):
        find_audio([tmp_path / "empty"])


@pytest.mark.parametrize("kind, suffix", [("text", ".txt"), ("json", ".json"), ("srt", ".srt"), ("vtt", ".vtt")])
def test_a_folder_gets_a_file_for_each(kind: str, suffix: str, tree: Path, tmp_path: Path) -> None:
    print_transcripts(find_audio([tree]), lambda file: SHORT, OutputConfig(output_format=kind, output=tmp_path / "out"))
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == [f"{name}{suffix}" for name in ("a", "b", "deep/er/c")]
    text = (tmp_path / "out" / f"b{suffix}").read_text()
    expected = {"text": "YES\n", "srt": as_srt(SHORT), "vtt": as_vtt(SHORT)}
    if kind == "json":
        assert json.loads(text) == {
            "file": str(tree / "b.wav"),
            "text": "YES",
            "duration": 0.9,
            "words": [{"text": "YES", "start": 0.4, "end": 0.44}],
            "tokens": [{"id": 3, "text": "▁YES", "start": 0.4}],
        }
    else:
        assert text == expected[kind]


def test_lines_go_to_stdout_or_to_a_file(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = find_audio([tree])
    for kind in ("text", "json"):
        print_transcripts(files, lambda file: SHORT, OutputConfig(output_format=kind))
        print_transcripts(files, lambda file: SHORT, OutputConfig(output_format=kind, output=tmp_path / "all.txt"))
        printed = capsys.readouterr().out
        assert printed == (tmp_path / "all.txt").read_text() and printed.count("\n") == 3
    assert [json.loads(line)["file"] for line in printed.splitlines()] == list(map(str, files))
    print_transcripts(find_audio([tree / "b.wav"]), lambda file: SHORT, OutputConfig(output_format="srt"))
    assert capsys.readouterr().out == as_srt(SHORT)


@pytest.mark.parametrize(
    "kind, output, reason",
    [
        ("srt", None, "output must be a folder: 3 recordings have 3 files of subtitles"),
        ("vtt", "all.vtt", "output must be a folder"),
        ("text", "talks/b.wav", "b.wav would be written over a recording"),
    ],
)
def test_outputs_that_do_not_suit(kind: str, output: str | None, reason: str, tree: Path, tmp_path: Path) -> None:
    config = OutputConfig(output_format=kind, output=output and tmp_path / output)
    with pytest.raises(ConfigError, match=reason):
        print_transcripts(find_audio([tree]), lambda file: SHORT, config)
    twins = {Path("a/x.wav"): Path("x.wav"), Path("b/x.wav"): Path("x.wav")}
    with pytest.raises(ConfigError, match="output has one place .*x.json for a/x.wav and b/x.wav"):
        print_transcripts(twins, lambda file: SHORT, OutputConfig(output_format="json", output=tmp_path / "out"))


def test_searches_without_times(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = find_audio([tree / "b.wav"])
    print_transcripts(files, lambda file: PlainText(["YES"], 0.9))
    assert capsys.readouterr().out == f"{tree / 'b.wav'}\tYES\n"
    with pytest.raises(ConfigError, match="output_format json needs times, which this search tells not"):
        print_transcripts(files, lambda file: PlainText(["YES"], 0.9), OutputConfig(output_format="json"))


def test_json_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = spoken([(0.1, "ÉÄ\u202e\U000e0001")], 1.0)
    print_transcripts({Path("ä\x1b.wav"): Path("a")}, lambda file: odd, OutputConfig(output_format="json"))
    printed = capsys.readouterr().out
    assert printed[:-1].isprintable() and json.loads(printed)["text"] == odd.text


def test_a_progress_bar_only_on_a_terminal(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    files, config = find_audio([tree]), OutputConfig(output=tmp_path / "all.txt")
    print_transcripts(files, lambda file: SHORT, config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(transcripts.sys.stderr, "isatty", lambda: True)
    print_transcripts(files, lambda file: SHORT, config)
    assert re.search(r"100%.*3/3", capsys.readouterr().err)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)  # the packed runtime alone has no tqdm
    print_transcripts(files, lambda file: SHORT, config)
    assert capsys.readouterr().err == ""
