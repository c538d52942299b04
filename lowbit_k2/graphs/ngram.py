"""Back-off n-gram models: interpolated modified Kneser-Ney from counts, written as ARPA.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, equations (26)-(28):

    p(w | h) = max(c(h w) - D(c(h w)), 0) / sum_v c(h v) + gamma(h) * p(w | h')       h' = h without its first word
    gamma(h) = (D1 N1(h) + D2 N2(h) + D3 N3(h)) / sum_v c(h v)                        Nk(h): words seen k times after h
    Y = n1 / (n1 + 2 n2),  D1 = 1 - 2 Y n2/n1,  D2 = 2 - 3 Y n3/n2,  D3 = 3 - 4 Y n4/n3     (D3 for counts >= 3)

c is the plain count at the highest order and, below, the number of different words seen before the n-gram, but the
plain count where it begins with `<s>`, which nothing precedes. The unigrams are interpolated with the uniform
distribution over the vocabulary and `</s>`, so that words unseen in training get a probability.

N-grams with a count c below a cut-off can be left out, as SRILM does: their whole count then goes to gamma. Those that
are the beginning or the end of a longer one that stays are kept, so that every back-off is defined.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import read_lines

BOS, EOS = "<s>", "</s>"
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # of an order whose counts of counts leave the formula undefined
LOG10_ZERO = -99.0  # ARPA's "never": the probability of <s>

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class BackoffModel:
    """An ARPA model in memory.

    Attributes:
      probabilities: per order (index 0: unigrams) the interpolated probability of each n-gram.
      backoffs: gamma of each context, 1 where it is not listed.
      vocabulary: the words that can be predicted, `</s>` included, `<s>` not.
    """

    probabilities: tuple[dict[Ngram, float], ...]
    backoffs: dict[Ngram, float]
    vocabulary: tuple[str, ...]

    @property
    def order(self) -> int:
        return len(self.probabilities)

    def probability(self, context: Sequence[str], word: str) -> float:
        """p(word | context), backing off as a reader of the ARPA file does."""
        history = tuple(context)[max(0, len(context) - self.order + 1) :]
        weight = 1.0
        while True:
            ngram = (*history, word)
            if ngram in self.probabilities[len(history)]:
                return weight * self.probabilities[len(history)][ngram]
            if not history:
                raise KeyError(word)
            weight *= self.backoffs.get(history, 1.0)
            history = history[1:]


def count_ngrams(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Ngram]]:
    """Plain counts of orders 1..order over sentences padded with one `<s>` and one `</s>`."""
    counts: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        padded = (BOS, *sentence, EOS)
        for n, counter in enumerate(counts, start=1):
            counter.update(padded[i : i + n] for i in range(len(padded) - n + 1))
    return counts


def adjusted_counts(counts: Sequence[Counter[Ngram]]) -> list[dict[Ngram, int]]:
    """Kneser-Ney counts: below the highest order, the number of different words seen before an n-gram."""
    adjusted: list[dict[Ngram, int]] = []
    for lower, higher in zip(counts[:-1], counts[1:], strict=True):
        preceding = Counter(ngram[1:] for ngram in higher)
        adjusted.append({g: c if g[0] == BOS else preceding[g] for g, c in lower.items()})
    return [*adjusted, dict(counts[-1])]


def discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """D1, D2, D3 of one order; `FALLBACK_DISCOUNTS` where n1..n4 are not all positive or a D leaves (0, k]."""
    n = Counter(c for c in counts if 1 <= c <= 4)
    if any(n[k] == 0 for k in (1, 2, 3, 4)):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    values = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return values if all(0 < d <= k for k, d in enumerate(values, start=1)) else FALLBACK_DISCOUNTS


def estimate(
    sentences: Iterable[Sequence[str]],
    order: int,
    vocabulary: Sequence[str],
    unknown: str | None = None,
    min_counts: Sequence[int] = (),
) -> BackoffModel:
    """Estimate an interpolated modified Kneser-Ney model.

    Args:
      sentences: word sequences.
      order: 1 or more.
      vocabulary: all words that get a probability, seen or not.
      unknown: the symbol that stands for words outside the vocabulary and gets n-grams like a word; by default
        there is none, and n-grams with such words are left out.
      min_counts: by order, the least count of an n-gram that is kept; 1 where the list ends. That of words is 1.

    Raises:
      UserError: no sentence, no vocabulary, an order below 1, or impossible cut-offs.
    """
    if order < 1:
        raise ConfigError("order", f"must be at least 1, not {order}")
    if len(min_counts) > order or any(count < 1 for count in min_counts) or list(min_counts[:1]) > [1]:
        raise ConfigError("min_counts", f"takes up to {order} numbers from 1 on, the first of them 1")
    known = dict.fromkeys(w for w in vocabulary if w not in (BOS, EOS))
    if not known:
        raise UserError("the vocabulary is empty: give words.txt with at least one word")
    outside = unknown or "\0"  # a name that no text holds
    texts = [tuple(w if w in known else outside for w in sentence) for sentence in sentences]
    if not texts:
        raise UserError("the transcript holds no sentence")
    tables = adjusted_counts(count_ngrams(texts, order))
    if unknown:
        known[unknown] = None
    else:
        # Only now: a word outside the vocabulary still counts as something that precedes.
        tables = [{g: c for g, c in table.items() if outside not in g} for table in tables]
    return _interpolate(tables, _kept(tables, min_counts), (*known, EOS))


def _kept(tables: Sequence[dict[Ngram, int]], min_counts: Sequence[int]) -> list[set[Ngram] | None]:
    """By order the n-grams that stay; None where all do."""
    least = [*min_counts, *[1] * (len(tables) - len(min_counts))]
    kept: list[set[Ngram] | None] = [None] * len(tables)
    needed: set[Ngram] = set()
    for n in reversed(range(1, len(tables))):
        if max(least[: n + 1]) > 1:  # otherwise all of the shorter ones stay, too
            stay = needed | {ngram for ngram, count in tables[n].items() if count >= least[n]}
            needed = {part for ngram in stay for part in (ngram[:-1], ngram[1:])}
            kept[n] = stay
    return kept


def _interpolate(
    tables: Sequence[dict[Ngram, int]], kept: Sequence[set[Ngram] | None], vocabulary: tuple[str, ...]
) -> BackoffModel:
    """Discount each order and interpolate it with the one below."""
    tables[0].pop((BOS,), None)  # <s> is never predicted
    uniform = 1.0 / len(vocabulary)
    lower: dict[Ngram, float] = {(): uniform}
    probabilities: list[dict[Ngram, float]] = []
    backoffs: dict[Ngram, float] = {}
    for table, stay in zip(tables, kept, strict=True):
        discount = (0.0, *discounts(table.values()))
        total: defaultdict[Ngram, int] = defaultdict(int)
        mass: defaultdict[Ngram, float] = defaultdict(float)
        for ngram, count in table.items():
            total[ngram[:-1]] += count
            mass[ngram[:-1]] += discount[min(count, 3)] if stay is None or ngram in stay else count
        gamma = {context: mass[context] / total[context] for context in total}
        current = {
            ngram: (count - discount[min(count, 3)]) / total[ngram[:-1]] + gamma[ngram[:-1]] * lower[ngram[1:]]
            for ngram, count in table.items()
            if stay is None or ngram in stay
        }
        if not probabilities:
            unseen = gamma.get((), 1.0) * uniform
            current.update({(w,): unseen for w in vocabulary if (w,) not in current})
        backoffs.update(gamma)
        probabilities.append(current)
        lower = current
    backoffs.pop((), None)
    return BackoffModel(tuple(probabilities), backoffs, vocabulary)


def write_arpa(model: BackoffModel, path: str | Path) -> None:
    """Write the model in the ARPA format, n-grams sorted, atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        tables = [dict(table) for table in model.probabilities]
        tables[0][(BOS,)] = 0.0
        out.write("\\data\\\n")
        out.writelines(f"ngram {n}={len(table)}\n" for n, table in enumerate(tables, start=1))
        for n, table in enumerate(tables, start=1):
            out.write(f"\n\\{n}-grams:\n")
            for ngram in sorted(table):
                backoff = model.backoffs.get(ngram)
                fields = [_log10(table[ngram]), " ".join(ngram)] + ([_log10(backoff)] if backoff else [])
                out.write("\t".join(fields) + "\n")
        out.write("\n\\end\\\n")


def arpa_fields(lines: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Line number, section and fields of each entry: section 0 has the counts, n the n-grams of order n."""
    section = -1
    for number, line in enumerate(lines, start=1):
        if line.startswith("\\"):
            name = line.strip()
            order = name[1 : -len("-grams:")] if name.endswith("-grams:") else ""
            section = 0 if name == "\\data\\" else int(order) if order.isdecimal() else -1
        elif section >= 0 and (fields := line.split()):
            yield number, section, fields


def read_arpa(path: str | Path) -> BackoffModel:
    """Read an ARPA file.

    Raises:
      UserError: it is missing or damaged; the line is named.
    """
    tables: list[dict[Ngram, float]] = []
    backoffs: dict[Ngram, float] = {}
    sizes: list[int] = []
    lines = read_lines(path)
    for number, order, fields in arpa_fields(lines):
        try:
            if order == 0:
                sizes.append(int("".join(fields).split("=")[1]))
                tables.append({})
                continue
            score, *ngram = fields
            if len(ngram) == order + 1:
                backoffs[tuple(ngram[:order])] = 10.0 ** float(ngram.pop())
            if len(ngram) != order:
                raise ValueError(fields)
            tables[order - 1][tuple(ngram)] = 10.0 ** float(score)
        except (ValueError, IndexError, OverflowError):
            raise UserError(
                f"{path} line {number}: {' '.join(fields)[:60]!r} is no line of an ARPA file: make it again"
            ) from None
    if "\\end\\" not in map(str.strip, lines) or [len(table) for table in tables] != sizes or not sizes:
        found = [len(table) for table in tables]
        raise UserError(f"{path} is no whole ARPA file: {found} n-grams, and {sizes} by its header; make it again")
    vocabulary = tuple(word for (word,) in tables[0] if word != BOS)
    return BackoffModel(tuple(tables), backoffs, vocabulary)


def _log10(value: float) -> str:
    return f"{math.log10(value) if value > 0 else LOG10_ZERO:.7f}"
