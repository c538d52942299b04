"""Prediction networks: tokens so far to a vector for the position behind them.

A search goes through one token by token: `initial_state`, then `step`, whose states are tensors (M, ...) of which rows
can be taken and put. A stateless network (arXiv 2003.07705) sees the last `context_size` tokens only: an embedding and
a convolution. An LSTM sees them all, its `context_size` is None.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.models import LSTM as LSTM_KIND
from lowbit_k2.core.models import TransducerConfig
from lowbit_k2.quant.rnn import LSTM

BLANK = 0


def make_decoder(config: TransducerConfig) -> nn.Module:
    """The prediction network of a transducer."""
    if config.decoder_kind == LSTM_KIND:
        return LstmDecoder(config.vocab_size, config.decoder_dim, config.decoder_layers)
    return StatelessDecoder(config.vocab_size, config.decoder_dim, config.context_size)


class StatelessDecoder(nn.Module):
    """Prediction network: embedding, convolution over the last tokens, ReLU."""

    def __init__(self, vocab_size: int, dim: int, context_size: int) -> None:
        super().__init__()
        self.context_size = context_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.conv = nn.Conv1d(dim, dim, context_size, groups=dim // 4, bias=False) if context_size > 1 else None

    def forward(self, tokens: Tensor, pad: bool = True) -> Tensor:
        """Vectors for the position after each token.

        Args:
          tokens: (N, U), int64.
          pad: put context_size - 1 blanks before them, so that the result has U positions; without, U must be at
            least context_size, and the result has U - context_size + 1.

        Returns:
          (N, U or U - context_size + 1, decoder_dim).
        """
        if pad:
            tokens = F.pad(tokens, (self.context_size - 1, 0), value=BLANK)
        x = self.embedding(tokens)  # (N, U', D)
        if self.conv is not None:
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)  # (N, U, D)
        return F.relu(x)

    def initial_state(self, n: int, device: str | torch.device) -> Tensor:
        """Before the blank that starts every sequence: (N, context_size) blanks."""
        return torch.full((n, self.context_size), BLANK, dtype=torch.int64, device=device)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of M sequences, (M,) -> vectors for the position behind it, (M, D), and the states there."""
        state = torch.cat([state[:, 1:], tokens[:, None]], dim=1)  # (M, context_size)
        return self(state, pad=False)[:, 0], state


class LstmDecoder(nn.Module):
    """Prediction network: embedding, LSTM over all tokens."""

    context_size = None  # no number of tokens is enough to know the state

    def __init__(self, vocab_size: int, dim: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.lstm = LSTM(dim, dim, num_layers, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors for the position after each token: (N, U) int64, the first of them the blank -> (N, U, D)."""
        return self.lstm(self.embedding(tokens))[0]

    def initial_state(self, n: int, device: str | torch.device) -> Tensor:
        """Before the blank that starts every sequence: h and c, zeros (N, 2, layers, D)."""
        return torch.zeros(n, 2, self.lstm.num_layers, self.lstm.hidden_size, device=device)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of M sequences, (M,) -> vectors for the position behind it, (M, D), and the states there."""
        h, c = (part.transpose(0, 1).contiguous() for part in state.unbind(1))  # (layers, M, D) each
        out, after = self.lstm(self.embedding(tokens)[:, None], (h, c))  # (M, 1, D)
        return out[:, 0], torch.stack(after).permute(2, 0, 1, 3)  # (M, 2, layers, D)
