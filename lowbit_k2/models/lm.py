"""What language models have alike: embedding, output, and the two ways through a sentence.

`forward` reads whole sentences, side by side; `step` goes on by one unit from what it remembers of those before, and
gives the same. What is behind the last unit of a row changes nothing before it, so that padding needs no mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.lm import LanguageModelConfig


class TiedOutput(nn.Module):
    """Logits by the matrix of the embedding, and a bias of its own."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (..., C), embedding (V, C) -> (..., V)."""
        return F.linear(x, embedding, self.bias)


class LanguageModel(nn.Module):
    """Units in, logits of the next one out. A subclass has `hidden`, `first_state` and `advance`."""

    def __init__(self, config: LanguageModelConfig, for_training: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        tied = config.tie_embeddings
        self.output = TiedOutput(config.vocab_size) if tied else nn.Linear(config.d_model, config.vocab_size)

    # --- of each kind -----------------------------------------------------------------------------------------

    def hidden(self, tokens: Tensor) -> Tensor:
        """(N, T) -> what the next units are told from, (N, T, C)."""
        raise NotImplementedError

    def first_state(self) -> Tensor:
        """What is remembered of nothing, of one sentence."""
        raise NotImplementedError

    def advance(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(M,) -> (M, C), and what is remembered of each of the M sentences now."""
        raise NotImplementedError

    # --- of all -----------------------------------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """(..., ) -> (..., C) of about unit variance (arXiv 1706.03762, section 3.4)."""
        return self.embedding(tokens) * math.sqrt(self.config.d_model)

    def logits_of(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) in float32."""
        own = (self.embedding.weight,) if isinstance(self.output, TiedOutput) else ()
        return self.output(hidden, *own).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the unit behind each one: (N, T) int64 -> (N, T, V) float32; T >= 1."""
        return self.logits_of(self.hidden(tokens))

    def target_log_probs(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Natural logarithm of the probability of `targets` (N, T), each behind the unit of `tokens` (N, T)."""
        logits = self(tokens)
        return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(dim=-1)  # (N, T)

    def network_output(self, tokens: Tensor, lens: Tensor) -> dict[str, Tensor]:
        """`lens` (N,) and `log_probs` (N, T, V)."""
        return {"lens": lens, "log_probs": self(tokens).log_softmax(dim=-1)}

    def step(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next unit of M sentences.

        Args:
          tokens: (M,).
          states: M of `first_state`, or of what this function has returned; the sentences may differ in length.

        Returns:
          Log-probabilities of the unit behind it, (M, V) in float32, and the M states there.
        """
        assert len(tokens) == len(states) > 0, (len(tokens), len(states))
        hidden, states = self.advance(tokens, states)
        return self.logits_of(hidden).log_softmax(dim=-1), states
