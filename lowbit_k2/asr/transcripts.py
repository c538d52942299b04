"""Transcripts of audio files as text, JSON or subtitles, on stdout or in files, by any engine; no torch here."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from lowbit_k2.asr.subtitles import as_srt, as_vtt
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.text import printable
from lowbit_k2.data.audio import AudioFile, AudioStream
from lowbit_k2.errors import ReportedError, UserError, is_one_line_error, is_out_of_memory, print_error
from lowbit_k2.fileio import atomic_write
from lowbit_k2.progress import bars_installed, progress_bar
from lowbit_k2.runtime import Transcript

STDIN = Path("-")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64")
TEXT, JSON, SRT, VTT = "text", "json", "srt", "vtt"
SUFFIXES = {TEXT: ".txt", JSON: ".json", SRT: ".srt", VTT: ".vtt"}


@dataclass(frozen=True)
class PlainText:
    """What was said, by a search that does not tell when."""

    words: Sequence[str]
    seconds: float

    @property
    def text(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class OutputConfig(Config):
    """Where transcripts go, and how.

    rtf: print seconds of audio and of work, and their ratio, on stderr, for each file.
    """

    output_format: str = option(
        TEXT,
        "text: FILE<tab>words; json: an object a line, with times of words and tokens; srt, vtt: subtitles",
        choices=tuple(SUFFIXES),
    )
    output: Path | None = option(
        None, "a file, or a folder (one that exists, or a name without suffix) for a file each; default: stdout"
    )
    rtf: bool = option(False, flag="")


def find_audio(paths: Sequence[Path]) -> dict[Path, Path]:
    """Audio files by name, and all in folders, those below included; "-" is stdin.

    Returns:
      {file: where it lies below the folder that was named, or its own name}, in the order given, of a folder sorted.
    Raises:
      UserError: a folder without any.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = Path("stdin") if path == STDIN else Path(path.name)
            continue
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in AUDIO_SUFFIXES]
        files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
        if not files:
            raise UserError(f"{path} holds no audio files: none ends in {', '.join(AUDIO_SUFFIXES)}")
        found |= {file: file.relative_to(path) for file in files}
    return found


def open_audio(path: Path, sampling_rate: int, raw_rate: int = 0) -> AudioFile:
    """A file, or stdin.

    Args:
      raw_rate: of stdin, see `AudioStream`.
    Raises:
      UserError: as `AudioFile`; stdin is a terminal.
    """
    if path != STDIN:
        return AudioFile(path, sampling_rate)
    if sys.stdin.isatty():
        raise UserError("- reads audio from stdin, which is a terminal: pipe a WAV, FLAC or OGG stream into it")
    return AudioStream(sys.stdin.buffer, sampling_rate, raw_rate)


def print_transcripts(
    files: Mapping[Path, Path],
    transcribe: Callable[[Path], Transcript | PlainText],
    config: OutputConfig | None = None,
) -> None:
    """Put out what is said in each audio file, one by one, so that a file never depends on its neighbours.

    Args:
      files: as `find_audio` gives them.
    Raises:
      ReportedError: at the end, where some could not be transcribed; each has had its line on stderr.
      ConfigError: an output that does not suit the files, or times that are not known.
    """
    config = config or OutputConfig()
    failed = 0
    with outputs(files, config) as write, watched(files, config) as (names, aside):
        for file in names:
            start = time.perf_counter()
            try:
                found = transcribe(file)
            except Exception as error:
                if not (is_one_line_error(error) or is_out_of_memory(error)):
                    raise
                failed += 1
                aside()
                print_error(str(error) if is_one_line_error(error) else f"{file} needs more memory than there is")
                continue
            if config.output_format != TEXT and isinstance(found, PlainText):
                raise ConfigError("output_format", f"{config.output_format} needs times, which this search tells not")
            write(file, found)
            if config.rtf:
                taken = time.perf_counter() - start
                line = f"{found.seconds:.2f} s of audio in {taken:.2f} s, RTF {taken / found.seconds:.4f}"
                print(f"{printable(str(file))}: {line}", file=sys.stderr, flush=True)
    if failed:
        raise ReportedError(f"{failed} of {len(files)} files could not be transcribed")


@contextlib.contextmanager
def watched(files: Mapping[Path, Path], config: OutputConfig) -> Iterator[tuple[Iterator[Path], Callable[[], None]]]:
    """The files, behind a progress bar where it would not stand among other lines on a terminal.

    Yields:
      The files, and what makes place for a line on stderr.
    """
    alone = config.output is not None or not sys.stdout.isatty()
    if len(files) < 2 or config.rtf or not (alone and sys.stderr.isatty() and bars_installed()):
        yield iter(files), lambda: None
        return
    with progress_bar(files, unit="file") as bar:
        yield iter(bar), bar.clear


@contextlib.contextmanager
def outputs(
    files: Mapping[Path, Path], config: OutputConfig
) -> Iterator[Callable[[Path, Transcript | PlainText], None]]:
    """What takes each transcript to its place.

    Raises:
      ConfigError: several subtitles for one place, two files for one name, or an output that would be over an input.
    """
    kind, output = config.output_format, config.output
    if output is not None and (output.is_dir() or not output.suffix):
        places = {file: output / place.with_suffix(SUFFIXES[kind]) for file, place in files.items()}
        _check_places(places)
        yield lambda file, found: _write_whole(places[file], formatted(file, found, kind, alone=True))
        return
    if kind in (SRT, VTT) and len(files) > 1:
        raise ConfigError("output", f"must be a folder: {len(files)} recordings have {len(files)} files of subtitles")
    if output is None:
        yield lambda file, found: _write_line(sys.stdout, formatted(file, found, kind))
        return
    _check_places(dict.fromkeys(files, output), shared=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as opened:  # line by line, so that hours of work are not lost
        yield lambda file, found: _write_line(opened, formatted(file, found, kind))


def _check_places(places: Mapping[Path, Path], shared: bool = False) -> None:
    inputs, taken = {file.resolve() for file in places}, {}
    for file, place in places.items():
        other = taken.setdefault(place, file)
        if other != file and not shared:
            raise ConfigError("output", f"has one place {place} for {other} and {file}: name the folder above both")
        if place.resolve() in inputs:
            raise ConfigError("output", f"{place} would be written over a recording: choose another")


def _write_line(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()


def _write_whole(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def formatted(file: Path, found: Transcript | PlainText, kind: str, alone: bool = False) -> str:
    """A transcript as it is written.

    Args:
      alone: in a file of its own, whose name says which recording it is of.
    """
    if kind == SRT:
        return as_srt(found)
    if kind == VTT:
        return as_vtt(found)
    if kind == JSON:
        return _as_json(file, found) + "\n"
    text = printable(found.text)
    return f"{text}\n" if alone else f"{printable(str(file))}\t{text}\n"


def _as_json(file: Path, found: Transcript) -> str:
    value = {"file": str(file), "text": found.text, "duration": found.seconds}
    value |= {name: [asdict(part) for part in getattr(found, name)] for name in ("words", "tokens")}
    value = _rounded(value)
    line = json.dumps(value, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(value)


def _rounded(value: object) -> object:
    """Times to a tenth of a millisecond."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
