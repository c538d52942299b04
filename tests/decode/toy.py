"""A toy recognizer: three tokens, four words (two homophones, one beginning of another), a bigram."""

from __future__ import annotations

import math
from itertools import groupby, product
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.graphs.ngram import BackoffModel, estimate, write_arpa
from lowbit_k2.recipe.compile_hlg import compile_lang
from lowbit_k2.recipe.prepare_lang import prepare_lang

LEXICON = "A x\nAT x y\nEH x\nTO y x\nTO(2) y\n"
ENTRIES = {"A": [("x",)], "AT": [("x", "y")], "EH": [("x",)], "TO": [("y", "x"), ("y",)]}
TOKENS = {"x": 1, "y": 2}
TEXT = ["A TO EH", "AT A", "TO TO", "EH AT", "A TO A", "A A"]
NUM_CLASSES = 3


def make_lang(path: Path) -> BackoffModel:
    """Write the lang directory with HLG.pt; return the bigram."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "dict.txt").write_text(LEXICON)
    prepare_lang(path, path / "dict.txt", None, None)
    model = estimate([line.split() for line in TEXT], 2, list(ENTRIES))
    write_arpa(model, path / "lm.arpa")
    compile_lang(path, path / "lm.arpa", None, path / "HLG.pt")
    return model


def random_log_probs(seed: int, num: int, frames: int, classes: int = NUM_CLASSES) -> Tensor:
    """(N, T, V) log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, frames, classes, generator=generator).mul(2).log_softmax(-1)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token != 0)


def best_alignments(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """For each token sequence the score of its best alignment, by trying all V^T paths of (T, V)."""
    frames, classes = log_probs.shape
    scores = log_probs.double().tolist()
    best: dict[tuple[int, ...], float] = {}
    for path in product(range(classes), repeat=frames):
        score, tokens = sum(scores[t][k] for t, k in enumerate(path)), collapse(path)
        best[tokens] = max(score, best.get(tokens, -math.inf))
    return best


def best_words(log_probs: Tensor, model: BackoffModel, lm_scale: float) -> tuple[float, list[str]]:
    """Best word sequence and its score, by trying all of them."""
    alignments, frames = best_alignments(log_probs), len(log_probs)
    found = (-math.inf, [])
    for number in range(frames + 1):
        for words in product(ENTRIES, repeat=number):
            padded = ["<s>", *words, "</s>"]
            lm = sum(math.log(model.probability(padded[:i], padded[i])) for i in range(1, len(padded)))
            for pronunciation in product(*(ENTRIES[w] for w in words)):
                tokens = tuple(TOKENS[t] for p in pronunciation for t in p)
                if tokens in alignments:
                    found = max(found, (alignments[tokens] + lm_scale * lm, list(words)))
    return found
