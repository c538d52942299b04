"""Language models beside a recogniser: settings, and what searches get of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import torch

from lowbit_k2.asr.language_model import TrainedLm, load_language_model
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.text import is_special
from lowbit_k2.data.tokenizer import WORD_START
from lowbit_k2.decode.hypothesis import Scales
from lowbit_k2.decode.method import METHODS, Method
from lowbit_k2.decode.neural_lm import NeuralTokenLm, sentence_log_probs
from lowbit_k2.decode.rescoring import SentenceScorer
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedFileError


def rescorings(lm_scales: Sequence[float], ngram_scales: Sequence[float]) -> dict[str, Scales]:
    """All pairs of scales, by what results are called with them."""
    pairs = (Scales(*pair) for pair in product(lm_scales, ngram_scales))
    return {f"rescore_{s.lm_scale:g}_ngram_{s.ngram_scale:g}": s for s in pairs}


def check_lists(method: str) -> None:
    """A method must find several hypotheses.

    Raises:
      ConfigError: it finds one.
    """
    if not METHODS[method].gives_lists:
        several = ", ".join(name for name, kind in METHODS.items() if kind.gives_lists)
        raise ConfigError("rescore_lm", f"needs lists of hypotheses, {method} finds one: choose of {several}")


def load_lm_file(path: Path, field: str, precision: str, device: str | torch.device) -> TrainedLm:
    """The language model of a flag.

    Raises:
      UserError: it is no file, or no language model; the line names the flag.
    """
    if not path.is_file():
        raise ConfigError(field, f"{path} is no file: give a packed file of export.py or a checkpoint")
    try:
        return load_language_model(path, precision, device)
    except ConfigError:
        raise
    except (UserError, PackedFileError) as error:
        raise ConfigError(field, str(error)) from None


def sentence_scorer(lm: TrainedLm) -> SentenceScorer:
    """Words in, log P of each sentence out."""

    def score(texts: Sequence[str]) -> list[float]:
        units = [lm.tokenizer.encode(text) for text in texts]
        return sentence_log_probs(lm.model, units, lm.boundary, device=lm.device)

    return score


def token_scorer(lm: TrainedLm, pieces: Sequence[str], path: Path) -> NeuralTokenLm:
    """For shallow fusion.

    Raises:
      ConfigError: the language model has other units.
    """
    try:
        return NeuralTokenLm(lm.model, lm.boundary, pieces, lm.tokenizer.pieces(), lm.device)
    except UserError as error:
        raise ConfigError("token_lm", f"{path}: {error}") from None


def check_spelling(lm: TrainedLm, method: Method, path: Path) -> None:
    """The language model must know some of the words that a search may find, or of the letters that it spells with.

    Raises:
      ConfigError: it knows none: other letter cases, or another language.
    """
    words = [word for word in getattr(method, "words", {}).values() if not word.startswith(("<", "#"))]
    if words:
        knows = any(lm.unknown not in lm.tokenizer.encode(word) for word in words)
    else:
        knows = not letters(lm.tokenizer.pieces()).isdisjoint(letters(method.setup.units.pieces()))
    if not knows:
        raise ConfigError(
            "rescore_lm", f"{path} knows nothing of what {method.name} spells: are letter cases and languages equal?"
        )


def letters(pieces: Iterable[str]) -> set[str]:
    """The characters of units."""
    return {letter for piece in pieces if not is_special(piece) for letter in piece} - {WORD_START}
