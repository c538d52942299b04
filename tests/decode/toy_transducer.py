"""A transducer small enough to try every alignment: random prediction network and joiner, random encoder output."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from lowbit_k2.models import TransducerConfig
from lowbit_k2.models.transducer import Transducer

Tokens = tuple[int, ...]


def make_transducer(seed: int, vocab_size: int, context_size: int | None = 2) -> Transducer:
    """With context_size None, the prediction network is an LSTM of two layers."""
    torch.manual_seed(seed)
    network = {"context_size": context_size} if context_size else {"decoder_kind": "lstm", "decoder_layers": 2}
    config = TransducerConfig.preset("demo", vocab_size=vocab_size, d_model=16, decoder_dim=8, joiner_dim=8, **network)
    model = Transducer(config)
    for parameter in (*model.decoder.parameters(), *model.joiner.parameters()):
        torch.nn.init.normal_(parameter)
    return model.eval()


@torch.no_grad()
def next_scores(model: Transducer, frame: Tensor, tokens: Tokens, penalty: float = 0.0) -> list[float]:
    """Log-probabilities of the classes, from the definition."""
    logits = model.joiner(frame, model.decoder(torch.tensor([[0, *tokens]]))[0, -1]).double()
    logits[0] -= penalty
    return logits.log_softmax(-1).tolist()


def all_alignments(model: Transducer, frames: Tensor, penalty: float = 0.0) -> dict[Tokens, list[float]]:
    """Scores of every alignment of every token sequence, at most one token per frame."""
    known: dict[tuple[int, Tokens], list[float]] = {}
    found: dict[Tokens, list[float]] = {}
    for path in product(range(model.config.vocab_size), repeat=len(frames)):
        tokens, score = (), 0.0
        for t, token in enumerate(path):
            key = (t, tokens)
            if key not in known:
                known[key] = next_scores(model, frames[t], tokens, penalty)
            score += known[key][token]
            tokens += (token,) if token else ()
        found.setdefault(tokens, []).append(score)
    return found


def log_sum(scores: list[float]) -> float:
    return math.log(sum(map(math.exp, scores)))
