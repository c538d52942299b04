"""Pronunciation lexicons and symbol tables as text, and the lexicon as a transducer from tokens to words.

Pure Python but for `lexicon_fsa`, so that tokenizers and lang directories work where k2 does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import numbered_lines, read_lines

if TYPE_CHECKING:
    import k2

EPSILON = "<eps>"
BLANK = "<blk>"
WORD_DISAMBIG = "#0"  # the word-side symbol that keeps back-off arcs of G apart
Entry = tuple[str, tuple[str, ...]]  # one pronunciation: the word and its tokens
Arc = tuple[int, int, int, int, float]  # from state, to state, input label, output label, score

COMMENT = ";;;"
TOKEN = re.compile(r"[^#\x00-\x1f\x7f][^\x00-\x1f\x7f]*")  # what begins with # tells homophones apart in graphs
NUMBER = re.compile(r"0?\.[0-9]+|1\.0*")  # a plain 1 may be a token: of a tone, say
_VARIANT = re.compile(r"(?<=.)\(\d+\)$")  # CMU's mark of a second pronunciation: READ(2)


def read_symbols(path: str | Path) -> dict[str, int]:
    """Read a symbol table (`symbol id` per line, as Kaldi's words.txt).

    Raises:
      UserError: missing file, malformed line, or a symbol or id given twice.
    """
    table: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise UserError(f"{path} line {number}: expected 'symbol id', found {line!r}")
        if fields[0] in table:
            raise UserError(f"{path} line {number}: symbol {fields[0]} occurs twice")
        table[fields[0]] = int(fields[1])
    if len(set(table.values())) != len(table):
        raise UserError(f"{path} gives one id to two symbols: make it again with prepare_lang")
    return table


def write_symbols(path: str | Path, table: Mapping[str, int]) -> None:
    """Write a symbol table in the order of its ids, atomically."""
    rows = sorted(table.items(), key=lambda item: item[1])
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{s} {i}\n" for s, i in rows), encoding="utf-8")


def read_lexicon(path: str | Path) -> list[Entry]:
    """Read `WORD token token ...` lines; CMU's variant marks are removed (`READ(2)` is `READ`), repeats dropped.

    Comments are passed over: lines that begin with `;;;`, and a field `#` with all behind it, as CMUdict has them.

    Raises:
      UserError: missing file, a word without pronunciation, columns that are no tokens, or no entry at all.
    """
    entries: dict[Entry, None] = {}
    for number, line in numbered_lines(path):
        fields = [] if line.startswith(COMMENT) else line.split()
        if "#" in fields:
            fields = fields[: fields.index("#")]
        if not fields:
            continue
        word, *tokens = fields
        if not tokens:
            raise UserError(f"{path} line {number}: word {word} has no pronunciation")
        odd = next((token for token in tokens if token in (EPSILON, BLANK) or not TOKEN.fullmatch(token)), None)
        if odd is not None:
            raise UserError(f"{path} line {number}: {odd!r} can be no token of {word}: expected WORD token token ...")
        if NUMBER.fullmatch(tokens[0]):
            raise UserError(
                f"{path} line {number}: {tokens[0]} behind {word} looks like a probability (Kaldi's lexiconp.txt): "
                "give the lexicon without them"
            )
        entries[(_VARIANT.sub("", word), tuple(tokens))] = None
    if not entries:
        raise UserError(f"{path} holds no pronunciation")
    return list(entries)


def write_lexicon(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write `WORD token token ...` lines, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{w} {' '.join(p)}\n" for w, p in entries), encoding="utf-8")


def add_disambig(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """Append `#1, #2, ...` to pronunciations that are shared or are the beginning of another one.

    Without them the composition of lexicon and grammar could not be determinized.

    Returns:
      The entries in the same order, and the largest number used (0: none).
    """
    times = Counter(pronunciation for _, pronunciation in entries)
    beginnings = {p[:length] for p in times for length in range(1, len(p))}
    used: Counter[tuple[str, ...]] = Counter()
    marked: list[Entry] = []
    for word, pronunciation in entries:
        if times[pronunciation] > 1 or pronunciation in beginnings:
            used[pronunciation] += 1
            marked.append((word, (*pronunciation, f"#{used[pronunciation]}")))
        else:
            marked.append((word, pronunciation))
    return marked, max(used.values(), default=0)


def lexicon_arcs(
    entries: Sequence[Entry], tokens: Mapping[str, int], words: Mapping[str, int], disambig_loop: bool
) -> tuple[list[Arc], int]:
    """Arcs of the closure of the lexicon: a chain per pronunciation from state 0 back to it.

    The word is on the first arc of its chain. With `disambig_loop`, state 0 has a loop `#0:#0`, which lets the
    grammar's back-off symbol pass.

    Returns:
      The arcs without those into the final state, sorted by source state, and the number of the final state.
    """
    arcs: list[Arc] = []
    next_state = 1
    for word, pronunciation in entries:
        state, label = 0, words[word]
        for position, token in enumerate(pronunciation):
            last = position == len(pronunciation) - 1
            arcs.append((state, 0 if last else next_state, tokens[token], label, 0.0))
            state, label = next_state, 0
            next_state += 0 if last else 1
    if disambig_loop:
        arcs.append((0, 0, tokens[WORD_DISAMBIG], words[WORD_DISAMBIG], 0.0))
    return sorted(arcs, key=lambda arc: arc[0]), next_state


def lexicon_fsa(
    entries: Sequence[Entry], tokens: Mapping[str, int], words: Mapping[str, int], disambig_loop: bool = False
) -> k2.Fsa:
    """The lexicon as a k2 transducer, labels tokens and `aux_labels` words, arcs sorted by label."""
    from lowbit_k2.k2_compat import require_k2

    k2 = require_k2()
    arcs, final = lexicon_arcs(entries, tokens, words, disambig_loop)
    arcs = sorted([*arcs, (0, final, -1, -1, 0.0)], key=lambda arc: arc[0])
    text = "\n".join(f"{a} {b} {label} {aux} {score}" for a, b, label, aux, score in arcs)
    return k2.arc_sort(k2.Fsa.from_str(f"{text}\n{final}", acceptor=False))
