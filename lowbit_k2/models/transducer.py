"""Transducer: the Conformer encoder, a stateless prediction network and a joiner (arXiv 1211.3711, 2109.07513).

The prediction network sees the last `context_size` tokens only (arXiv 2003.07705 calls it stateless): an embedding and
a convolution. What training needs beside these, two projections for k2's simple loss and an optional CTC head, takes
no part in transducer search; the projections are left out of packed files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.conformer import ConformerConfig, ConformerEncoder

BLANK = 0


@dataclass(frozen=True)
class TransducerConfig:
    """Everything needed to rebuild the model; stored in checkpoints and packed files."""

    encoder: ConformerConfig = field(default_factory=ConformerConfig)  # its vocab_size is the transducer's
    decoder_dim: int = 512
    joiner_dim: int = 512
    context_size: int = 2  # tokens that the prediction network sees
    ctc_head: bool = False  # a CTC head on the encoder beside the joiner

    def __post_init__(self) -> None:
        for name in ("decoder_dim", "joiner_dim", "context_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model config: {name} must be positive, got {getattr(self, name)}")
        if self.decoder_dim % 4:
            raise UserError(f"model config: decoder_dim {self.decoder_dim} must be a multiple of 4")

    @property
    def vocab_size(self) -> int:
        return self.encoder.vocab_size

    @property
    def num_layers(self) -> int:
        return self.encoder.num_layers

    @property
    def d_model(self) -> int:
        return self.encoder.d_model

    @classmethod
    def preset(cls, name: str, ctc_head: bool = False, **overrides: Any) -> TransducerConfig:
        """A named size of the encoder with prediction network and joiner to suit it; single fields replaced.

        Args:
          name: of the encoder's preset, see `lowbit_k2.models.conformer.PRESETS`.
          overrides: fields of this class or of ConformerConfig.
        """
        own = {key: overrides.pop(key) for key in ("decoder_dim", "joiner_dim", "context_size") if key in overrides}
        encoder = ConformerConfig.preset(name, **overrides)
        sizes = {"decoder_dim": DIMS.get(name, 512), "joiner_dim": DIMS.get(name, 512)}
        return replace(cls(encoder=encoder, ctc_head=ctc_head, **sizes), **own)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "transducer", **asdict(self), "encoder": self.encoder.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransducerConfig:
        """Rebuild from `to_dict`'s output, its `kind` left out; raises UserError on unknown or missing fields."""
        try:
            return cls(**{**values, "encoder": ConformerConfig.from_dict(values["encoder"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"this is no configuration of our transducer: {error}") from None


DIMS = {"demo": 96, "tiny": 144, "small": 256}  # decoder and joiner; 512 beside the larger encoders


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


class ConformerTransducer(nn.Module):
    """Encoder, prediction network and joiner; token 0 is the blank."""

    training_only = ("simple",)  # modules that packed files leave out

    def __init__(self, config: TransducerConfig, for_training: bool = True) -> None:
        """With for_training=False the parts that `training_only` names are None."""
        super().__init__()
        self.config = config
        encoder_dim, vocab_size = config.encoder.d_model, config.vocab_size
        self.encoder = ConformerEncoder(config.encoder)
        self.decoder = StatelessDecoder(vocab_size, config.decoder_dim, config.context_size)
        self.joiner = Joiner(encoder_dim, config.decoder_dim, config.joiner_dim, vocab_size)
        self.simple = SimpleProjections(encoder_dim, config.decoder_dim, vocab_size) if for_training else None
        self.ctc_head = nn.Linear(encoder_dim, vocab_size) if config.ctc_head else None

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """(N, T', C) -> (N, T', V), float32, of a model with `ctc_head`."""
        assert self.ctc_head is not None, "this transducer has no CTC head"
        return self.ctc_head(encoder_out).float().log_softmax(dim=-1)
