"""icefall's recogs-*.txt: references and hypotheses of a test set, two lines an utterance.

an406-fcaw-b:	ref=['GO']
an406-fcaw-b:	hyp=['GO', 'HOME']
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.scoring.wer import Result
from lowbit_k2.textfile import read_lines

LINE = re.compile(r"(?P<id>\S+):\t(?P<kind>ref|hyp)=(?P<words>\[.*\])")
REMEDY = "give the recogs-*.txt that decode.py wrote for this test set"


def write_recogs(path: str | Path, results: Iterable[Result]) -> None:
    """Write references and hypotheses, sorted by utterance."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for utterance, ref, hyp in sorted(results, key=lambda result: result[0]):
            out.write(f"{utterance}:\tref={list(ref)}\n{utterance}:\thyp={list(hyp)}\n")


def read_recogs(path: str | Path) -> list[Result]:
    """The results, in the order of the file.

    Raises:
      UserError: missing file, a line of another format, an utterance without reference or hypothesis or with two, or
        no utterances.
    """
    path = Path(path)
    found: dict[str, dict[str, list[str]]] = {}
    for number, line in enumerate(read_lines(path, REMEDY), 1):
        match = LINE.fullmatch(line)
        words = None if match is None else _literal(match["words"])
        if words is None:
            raise UserError(f"{path} line {number}: expected `id:<tab>ref=[...]` or `id:<tab>hyp=[...]` of decode.py")
        own = found.setdefault(match["id"], {})
        if match["kind"] in own:
            raise UserError(f"{path} line {number}: {match['id']} has a second {match['kind']}: decode again")
        own[match["kind"]] = words
    if not found:
        raise UserError(f"{path} holds no hypotheses: decode again")
    for utterance, own in found.items():
        missing = {"ref", "hyp"} - set(own)
        if missing:
            raise UserError(f"{path}: {utterance} has no {missing.pop()}: {REMEDY}")
    return [(utterance, own["ref"], own["hyp"]) for utterance, own in found.items()]


def read_hypotheses(path: str | Path) -> dict[str, list[str]]:
    """Hypotheses by utterance; raises as `read_recogs` does."""
    return {utterance: list(hyp) for utterance, _, hyp in read_recogs(path)}


def _literal(text: str) -> list[str] | None:
    try:
        words = ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return words if all(isinstance(word, str) for word in words) else None
