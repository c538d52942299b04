"""A toy recognizer: three tokens, four words (two homophones, one beginning of another), a bigram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path

import torch
from torch import Tensor

import lowbit_k2.decode.methods  # noqa: F401  registers them
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.decode.method import METHODS, Method, Setup
from lowbit_k2.graphs.ngram import BackoffModel, estimate, write_arpa
from lowbit_k2.recipe.compile_hlg import compile_lang
from lowbit_k2.recipe.prepare_lang import prepare_lang

LEXICON = "A x\nAT x y\nEH x\nTO y x\nTO(2) y\n"
ENTRIES = {"A": [("x",)], "AT": [("x", "y")], "EH": [("x",)], "TO": [("y", "x"), ("y",)]}
TOKENS = {"x": 1, "y": 2}
TEXT = ["A TO EH", "AT A", "TO TO", "EH AT", "A TO A", "A A"]
NUM_CLASSES = 3


class ToyUnits:
    """Tokens that spell words, or phones that do not, by their ids."""

    def __init__(self, vocab_size: int = NUM_CLASSES, spells_words: bool = True) -> None:
        self.vocab_size, self.spells_words = vocab_size, spells_words

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def pieces(self) -> list[str]:
        return ["<blk>", *TOKENS, *map(str, range(len(TOKENS) + 1, self.vocab_size))][: self.vocab_size]


def make_method(name: str, spells_words: bool = False, vocab_size: int = NUM_CLASSES, **setup) -> Method:
    """A method for the toy's units."""
    return METHODS[name](Setup(ToyUnits(vocab_size, spells_words), **setup))


def words_of(nbest: list[Nbest]) -> list[list[str]]:
    """Words of the best hypotheses."""
    return [list(hypotheses[0].words) if hypotheses else [] for hypotheses in nbest]


def labels_of(nbest: list[Nbest]) -> list[list[int] | None]:
    """Labels of the best hypotheses; None without any path."""
    return [list(hypotheses[0].labels) if hypotheses else None for hypotheses in nbest]


def make_lang(path: Path) -> BackoffModel:
    """Write the lang directory with LG.pt and HLG.pt; return the bigram."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "dict.txt").write_text(LEXICON)
    prepare_lang(path, path / "dict.txt", None, None)
    model = estimate([line.split() for line in TEXT], 2, list(ENTRIES))
    write_arpa(model, path / "lm.arpa")
    compile_lang(path, path / "lm.arpa", None)
    return model


def random_log_probs(seed: int, num: int, frames: int, classes: int = NUM_CLASSES) -> Tensor:
    """(N, T, V) log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, frames, classes, generator=generator).mul(2).log_softmax(-1)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token != 0)


def all_alignments(log_probs: Tensor) -> dict[tuple[int, ...], list[float]]:
    """For each token sequence the scores of its alignments, by trying all V^T paths of (T, V)."""
    frames, classes = log_probs.shape
    scores = log_probs.double().tolist()
    found: dict[tuple[int, ...], list[float]] = {}
    for path in product(range(classes), repeat=frames):
        found.setdefault(collapse(path), []).append(sum(scores[t][k] for t, k in enumerate(path)))
    return found


def best_alignments(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """For each token sequence the score of its best alignment."""
    return {tokens: max(scores) for tokens, scores in all_alignments(log_probs).items()}


def graph_score(words: Sequence[str], model: BackoffModel) -> float:
    """Score of a sentence's best path through G, where the back-off arc is open also to n-grams that are listed."""

    def best(history: tuple[str, ...], left: tuple[str, ...]) -> float:
        if not left:
            return 0.0
        scores = []
        if (*history, left[0]) in model.probabilities[len(history)]:
            longer = (*history, left[0])
            while longer and (len(longer) == model.order or longer not in model.probabilities[len(longer) - 1]):
                longer = longer[1:]
            scores.append(math.log(model.probabilities[len(history)][(*history, left[0])]) + best(longer, left[1:]))
        if history:
            scores.append(math.log(model.backoffs.get(history, 1.0)) + best(history[1:], left))
        return max(scores)

    return best(("<s>",) if model.order > 1 else (), (*words, "</s>"))


def best_words(log_probs: Tensor, model: BackoffModel, lm_scale: float) -> tuple[float, list[str]]:
    """Best word sequence and its score, by trying all of them."""
    alignments, frames = best_alignments(log_probs), len(log_probs)
    found = (-math.inf, [])
    for number in range(frames + 1):
        for words in product(ENTRIES, repeat=number):
            lm = graph_score(words, model)
            for pronunciation in product(*(ENTRIES[w] for w in words)):
                tokens = tuple(TOKENS[t] for p in pronunciation for t in p)
                if tokens in alignments:
                    found = max(found, (alignments[tokens] + lm_scale * lm, list(words)))
    return found
