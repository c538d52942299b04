"""What the recipe's preparation scripts share: files below a folder, names of calls, callers, counted problems."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lowbit_k2.errors import UserError
from lowbit_k2.textfile import numbered_lines

CALL = re.compile(r"sw0?(\d{4})", re.IGNORECASE)
TRANSCRIPT = re.compile(r"sw(\d{4})([ab])-ms98-a-trans\.text", re.IGNORECASE)
DICTIONARY = "sw-ms98-dict.text"
SIDES = ("A", "B")
OTHER_TASKS = re.compile(r"mandarin|arabic|(?<![a-z])bn(?![a-z])|bnews|broadcast", re.IGNORECASE)
# Tables of callers in Switchboard-1's documentation. Columns of the first: conversation, side, caller, ...; of the
# second: conversation, active, caller of side A, caller of side B, topic, ...
SIDE_TABLES = ("call_con_tab.csv", "call_con.tab")
CALL_TABLES = ("conv_tab.csv", "conv.tab")


class Problems:
    """Counts what is wrong with a corpus, by kind, and remembers the first example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str, times: int = 1) -> None:
        """`kind` completes a number: 'segments lie outside of the audio'."""
        self.counts[kind] += times
        self.examples.setdefault(kind, example)

    def report(self) -> None:
        """One line of each kind on stderr."""
        for kind, times in self.counts.items():
            print(f"warning: {times} {kind}, first {self.examples[kind]}", file=sys.stderr)


def check_folder(folder: Path, flag: str, what: str) -> Path:
    """The folder as a full path.

    Raises:
      UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give {flag} the folder of {what}")
    return folder.resolve()


def find_files(folder: Path, *suffixes: str) -> list[Path]:
    """Files whose names end in one of `suffixes`, whatever the case, sorted by path; links are followed.

    Raises:
      UserError: the folder cannot be listed.
    """
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        folders[:] = sorted(folders) if real not in seen else []  # a link to a folder above would have no end
        if real not in seen:
            found += [Path(root, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
        seen.add(real)
    return sorted(found)


def refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from None


def is_english_talk(path: Path, folder: Path) -> bool:
    """Whether a file below `folder` is not plainly of another task: rt02 and rt03 have broadcast news, Mandarin ..."""
    return not OTHER_TASKS.search(str(path.relative_to(folder)))


def find_audio(folder: Path, problems: Problems) -> dict[str, Path]:
    """Audio of English telephone speech by names without suffix, in small letters; of two the first.

    SPHERE or, converted from it with both channels, WAV.
    """
    found: dict[str, Path] = {}
    for path in filter(lambda path: is_english_talk(path, folder), find_files(folder, ".sph", ".wav")):
        name = path.stem.lower()
        if name in found:
            problems.add("audio files have the name of another one and are left out", f"{path} after {found[name]}")
        else:
            found[name] = path
    return found


def find_calls(folder: Path, problems: Problems) -> dict[str, Path]:
    """Switchboard-1's calls: sw02001 -> the file, whether it is called sw02001.sph or SW2001.SPH."""
    calls: dict[str, Path] = {}
    for name, path in find_audio(folder, problems).items():
        if found := CALL.fullmatch(name):
            calls.setdefault(f"sw0{found[1]}", path)
        else:
            problems.add("audio files are not named as Switchboard's are (sw02001.sph)", str(path))
    return calls


def find_transcripts(folder: Path, problems: Problems) -> dict[tuple[str, str], Path]:
    """(sw02001, A) -> its transcript."""
    found: dict[tuple[str, str], Path] = {}
    for path in find_files(folder, "-trans.text"):
        if (name := TRANSCRIPT.fullmatch(path.name)) is None:
            continue
        key = (f"sw0{name[1]}", name[2].upper())
        if key in found:
            problems.add("transcripts occur twice and are left out", f"{path} after {found[key]}")
        else:
            found[key] = path
    return found


def find_one(folders: list[Path], *names: str) -> Path | None:
    """The first file of one of these names (in their order) below the folders."""
    for name in names:
        for folder in folders:
            for path in find_files(folder, name):
                if path.name.lower() == name:
                    return path
    return None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with something in them, without the blanks around, numbered from 1."""
    yield from numbered_lines(path, "check the folder that was given", legacy=True)


def read_callers(folders: list[Path], problems: Problems) -> tuple[dict[tuple[str, str], str], Path | None]:
    """Who speaks: (sw02001, A) -> the caller's number, from the table of calls, and the table; {} without one."""
    path = find_one(folders, *SIDE_TABLES, *CALL_TABLES)
    if path is None:
        return {}, None
    callers: dict[tuple[str, str], str] = {}
    for number, line in read_lines(path):
        row = [cell.strip().strip('"') for cell in next(csv.reader([line], skipinitialspace=True))]
        if path.name.lower() in SIDE_TABLES:
            sides = {row[1].upper(): row[2]} if len(row) > 2 else {}
        else:
            sides = dict(zip(SIDES, row[2:4], strict=True)) if len(row) > 3 else {}
        if (
            re.fullmatch(r"\d{4}", row[0])
            and sides
            and set(sides) <= set(SIDES)
            and all(map(str.isdigit, sides.values()))
        ):
            callers.update({(f"sw0{row[0]}", side): caller for side, caller in sides.items()})
        elif number > 1:  # the first line may name the columns
            problems.add("lines of the table of callers are not understood", f"{path} line {number}: {line[:60]!r}")
    return callers, path
