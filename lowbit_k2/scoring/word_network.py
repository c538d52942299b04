"""Alignment of reference and hypothesis as NIST's sclite does it: word networks, optional words, fragments.

Both sides are networks: sequences of words, some of them with alternatives (`{ she is / she has }`). The alignment is
the path of least cost through both, with sclite's costs: 4 for a substitution, 3 for an insertion or deletion, 2 for
leaving out an optional word `(uh)`, which counts as correct, and next to nothing for leaving out `@`, the word that
stands for none and is not counted. A fragment `wor-` or `-ord` fits every word that begins or ends so.

kaldialign's `sclite_mode` has the same costs for plain words, but knows no networks, and among alignments of equal cost
it may pick another one; here ties fall as in sclite (substitution, then insertion, then deletion; earlier alternatives
first), so that the counts are sclite's. Source: the costs and the order of ties in sclite 2.10 of NIST's SCTK, with
which tests compare segment by segment.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lowbit_k2.errors import UserError

# In thousandths, so that sums are exact.
SUBSTITUTION, GAP, OPTIONAL_GAP, NULL_GAP, NULL_PAIR = 4000, 3000, 2000, 1, 1000
NULL = "@"
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True)
class Word:
    """A word of a network.

    Attributes:
      text: in lower case, without the parentheses of an optional word.
      is_optional: leaving it out is no error.
      is_fragment: it fits words of which it is the beginning or the end.
    """

    text: str
    is_optional: bool = False
    is_fragment: bool = False

    @property
    def gap(self) -> int:
        """Cost of leaving it out."""
        if self.text == NULL:
            return NULL_GAP
        return OPTIONAL_GAP if self.is_optional else GAP


def make_word(text: str) -> Word:
    """Read the marks of a word: parentheses, hyphens at an end, and a star at the end, which is dropped."""
    text = text.translate(LOWER)
    if len(text) > 1 and text.endswith("*"):
        text = text[:-1]
    is_fragment = text.startswith("-") or text.endswith("-")
    if len(text) > 1 and text[0] + text[-1] == "()":
        return Word(text[1:-1], is_optional=True, is_fragment=text[-2] == "-")
    return Word(text, is_fragment=is_fragment)


def fits(a: Word, b: Word) -> bool:
    """Whether the words count as the same."""
    if a.is_fragment or b.is_fragment:
        for part, whole in ((a.text, b.text), (b.text, a.text)):
            if len(part) > 1 and part.startswith("-"):
                return whole.endswith(part[1:])
            if len(part) > 1 and part.endswith("-"):
                return whole.startswith(part[:-1])
    return a.text == b.text


@dataclass
class Network:
    """Words with their possible predecessors; word 0 is the start, and `last` holds the words a path may end with."""

    words: list[Word] = field(default_factory=lambda: [Word("")])
    before: list[list[int]] = field(default_factory=lambda: [[]])
    last: list[int] = field(default_factory=lambda: [0])

    def add(self, text: str) -> None:
        """Append a word to all paths."""
        self.words.append(make_word(text))
        self.before.append(self.last)
        self.last = [len(self.words) - 1]

    def add_alternatives(self, alternatives: Iterable[Iterable[str]]) -> None:
        """Let all paths go on in several ways, each a sequence of words or, in the words' place, of nested ones."""
        start, ends = self.last, []
        for alternative in alternatives:
            self.last = start
            for text in alternative:
                self.extend(text)
            ends += self.last
        self.last = ends or start

    def extend(self, token: str) -> None:
        """Append a token of a reference: a word, or alternatives in braces."""
        if token.startswith("{"):
            self.add_alternatives(map(tokens, split_alternatives(token[1:-1])))
        else:
            self.add(token)


def tokens(text: str) -> Iterator[str]:
    """Words and whole `{ a / b }` groups of a filtered reference.

    Raises:
      UserError: braces that do not pair.
    """
    start, depth, inside = 0, 0, text + " "
    for i, sign in enumerate(inside):
        depth += (sign == "{") - (sign == "}")
        if depth == 0 and (sign.isspace() or sign == "}"):
            if token := inside[start : i + 1].strip():
                yield token
            start = i + 1
    if depth != 0:
        raise UserError(f"braces that do not pair: {text[:80]!r}")


def split_alternatives(text: str) -> list[str]:
    """The inside of braces at its slashes, those of inner braces left alone; empty alternatives do not count."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "{") - (sign == "}")
        if sign == "/" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part for part in map(str.strip, parts) if part]


def reference_network(text: str) -> Network:
    """The network of a filtered reference text.

    Raises:
      UserError: braces that do not pair.
    """
    network = Network()
    for token in tokens(text):
        network.extend(token)
    return network


def hypothesis_network(items: Iterable[Sequence[Sequence[str]]]) -> Network:
    """The network of hypothesis items, each with one or more alternatives; an empty alternative is no word."""
    network = Network()
    for alternatives in items:
        if len(alternatives) == 1:
            for text in alternatives[0]:
                network.add(text)
        else:
            network.add_alternatives(alternative or [NULL] for alternative in alternatives)
    return network


@dataclass(frozen=True)
class Counts:
    """What an alignment holds; optional words that were left out are among the correct ones."""

    corr: int = 0
    sub: int = 0
    ins: int = 0
    dels: int = 0


Back = list[list[tuple[int, int]]]


def align(ref: Network, hyp: Network) -> Counts:
    """Count the words of the best path through both networks."""
    cost, back = _fill(ref, hyp)
    ends = [(a, b) for a in ref.last for b in hyp.last]
    return _count(ref, hyp, back, min(ends, key=lambda end: cost[end[0]][end[1]]))


def _fill(ref: Network, hyp: Network) -> tuple[list[list[int]], Back]:
    """Least costs of paths that end with reference word a and hypothesis word b, and the pair before."""
    size = len(hyp.words)
    cost = [[0] * size for _ in ref.words]
    back = [[(0, 0)] * size for _ in ref.words]
    for b in range(1, size):
        before = min(hyp.before[b], key=cost[0].__getitem__)
        cost[0][b], back[0][b] = cost[0][before] + hyp.words[b].gap, (0, before)
    for a in range(1, len(ref.words)):
        _fill_row(a, ref, hyp, cost, back)
    return cost, back


def _fill_row(a: int, ref: Network, hyp: Network, cost: list[list[int]], back: Back) -> None:
    word, ref_before, row = ref.words[a], ref.before[a], cost[a]
    for b in range(len(row)):
        above = min(ref_before, key=lambda i: cost[i][b])  # noqa: B023
        deletion = cost[above][b] + word.gap
        if b == 0:
            row[b], back[a][b] = deletion, (above, b)
            continue
        other, hyp_before = hyp.words[b], hyp.before[b]
        left = min(hyp_before, key=row.__getitem__)
        insertion = row[left] + other.gap
        if len(ref_before) == len(hyp_before) == 1:
            corner = (ref_before[0], hyp_before[0])
        else:
            corner = min(((i, j) for i in ref_before for j in hyp_before), key=lambda pair: cost[pair[0]][pair[1]])
        pair = cost[corner[0]][corner[1]] + _pair_cost(word, other)
        if pair <= deletion and pair <= insertion:
            row[b], back[a][b] = pair, corner
        elif deletion < insertion:
            row[b], back[a][b] = deletion, (above, b)
        else:
            row[b], back[a][b] = insertion, (a, left)


def _pair_cost(a: Word, b: Word) -> int:
    if a.text == b.text == NULL:
        return NULL_PAIR
    return 0 if fits(a, b) else SUBSTITUTION


def _count(ref: Network, hyp: Network, back: Back, end: tuple[int, int]) -> Counts:
    corr = sub = ins = dels = 0
    a, b = end
    while a or b:
        before = back[a][b]
        word, other = ref.words[a], hyp.words[b]
        if before[0] == a or before[1] == b:  # one side goes on alone
            alone = other if before[0] == a else word
            if alone.text != NULL:
                corr += alone.is_optional
                ins += before[0] == a and not alone.is_optional
                dels += before[0] != a and not alone.is_optional
        elif not word.text == other.text == NULL:
            same = fits(word, other)
            corr, sub = corr + same, sub + (not same)
        a, b = before
    return Counts(corr, sub, ins, dels)
