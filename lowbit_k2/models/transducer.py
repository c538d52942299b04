"""Transducer: an encoder, a prediction network (prediction.py) and a joiner (arXiv 1211.3711, 2109.07513).

What training needs beside these, two projections for k2's simple loss and an optional CTC head, takes no part in
transducer search; the projections are left out of packed files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit_k2.core.models import TransducerConfig
from lowbit_k2.models.encoder import make_encoder
from lowbit_k2.models.prediction import make_decoder


class Joiner(nn.Module):
    """logits = output(tanh(encoder_proj(encoder) + decoder_proj(decoder)))."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder: Tensor, decoder: Tensor, project: bool = True) -> Tensor:
        """(..., D_e) and (..., D_d), or with project=False both (..., D_j), broadcast -> (..., V) logits."""
        if project:
            encoder, decoder = self.encoder_proj(encoder), self.decoder_proj(decoder)
        return self.output(torch.tanh(encoder + decoder))


class SimpleProjections(nn.Module):
    """Logits whose sum is k2's simple joiner; they serve to find the prune ranges, in training only."""

    def __init__(self, encoder_dim: int, decoder_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.am = nn.Linear(encoder_dim, vocab_size)
        self.lm = nn.Linear(decoder_dim, vocab_size)


class Transducer(nn.Module):
    """Encoder, prediction network and joiner; token 0 is the blank."""

    training_only = ("simple",)  # modules that packed files leave out

    def __init__(self, config: TransducerConfig, for_training: bool = True) -> None:
        """With for_training=False the parts that `training_only` names are None."""
        super().__init__()
        self.config = config
        encoder_dim, vocab_size = config.d_model, config.vocab_size
        self.encoder = make_encoder(config.encoder)
        self.decoder = make_decoder(config)
        self.joiner = Joiner(encoder_dim, config.decoder_dim, config.joiner_dim, vocab_size)
        self.simple = SimpleProjections(encoder_dim, config.decoder_dim, vocab_size) if for_training else None
        self.ctc_head = nn.Linear(encoder_dim, vocab_size) if config.ctc_head else None

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """(N, T', C) -> (N, T', V), float32, of a model with `ctc_head`."""
        assert self.ctc_head is not None, "this transducer has no CTC head"
        return self.ctc_head(encoder_out).float().log_softmax(dim=-1)

    def network_output(self, inputs: Tensor, input_lens: Tensor) -> dict[str, Tensor]:
        """What searches read: `lens` (N,), `encoder_out` (N, T', C) and, with a CTC head, `log_probs` (N, T', V)."""
        encoder_out, lens = self.encoder(inputs, input_lens)
        output = {"lens": lens, "encoder_out": encoder_out}
        return output if self.ctc_head is None else {**output, "log_probs": self.ctc_log_probs(encoder_out)}
