"""From posteriors to lines of CTM: words without the mark of their beginning, what the units cannot spell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lowbit_k2.asr.alignment import align, pronunciations
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.train_bpe import train_sentencepiece

TOKENIZER = SentencePieceTokenizer(train_sentencepiece(["GO NO"], "char", 0))


def recognizer(log_probs: torch.Tensor | None) -> SimpleNamespace:
    """As much of one as alignment sees: an output frame is four frames of 10 ms."""
    batch = None if log_probs is None else log_probs[None]  # (1, T, V)
    output = NetworkOutput(torch.tensor([0 if log_probs is None else len(log_probs)]), log_probs=batch)
    config = SimpleNamespace(encoder=SimpleNamespace(frames_per_output=4), topology="ctc")
    return SimpleNamespace(
        loaded=SimpleNamespace(model_config=config, tokenizer=TOKENIZER),
        features=FeatureConfig(),
        is_long=lambda frames: False,
        run=lambda inputs, lens: output,
    )


def test_words_begin_with_their_first_letter() -> None:
    ids = {piece: i for i, piece in enumerate(TOKENIZER.pieces())}
    frames = ["▁", "", "G", "G", "O", "", "▁", "N", "O", ""]
    log_probs = torch.full((len(frames), TOKENIZER.vocab_size), -20.0)
    for t, piece in enumerate(frames):
        log_probs[t, ids[piece] if piece else 0] = -0.1
    lines = list(map(str, align(recognizer(log_probs), torch.zeros(40, 80), " GO  NO ", "a")))
    assert lines == ["a 1 0.08 0.12 GO 0.905", "a 1 0.28 0.08 NO 0.905"]
    tokens = [line.word for line in align(recognizer(log_probs), torch.zeros(40, 80), "GO NO", "a", "token")]
    assert tokens == ["▁", "G", "O", "▁", "N", "O"]


def test_what_cannot_be_aligned() -> None:
    with pytest.raises(UserError, match="the units cannot spell go of go: is the text in their case"):
        pronunciations(recognizer(None), "go")
    with pytest.raises(UserError, match="no CTC layer to align with"):
        align(recognizer(None), torch.zeros(40, 80), "GO", "a")
