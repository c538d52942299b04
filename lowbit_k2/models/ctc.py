"""An encoder with a CTC head, or a head over the classes of another topology."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lowbit_k2.core.models import CtcConfig
from lowbit_k2.models.encoder import make_encoder


class Heads(NamedTuple):
    """Logits (N, T', V) in float32 and their lengths (N,); `xent` are those of the second head, where there is one."""

    logits: Tensor
    lens: Tensor
    xent: Tensor | None = None


class CtcModel(nn.Module):
    """The encoder and one linear layer over the classes; with the ctc topology these are the tokens, 0 the blank."""

    training_only = ("xent_head",)  # modules that packed files leave out

    def __init__(self, config: CtcConfig, for_training: bool = True) -> None:
        """With for_training=False the parts that `training_only` names are None."""
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.encoder)
        self.ctc_head = nn.Linear(config.d_model, config.num_classes)
        second = config.xent_head and for_training
        self.xent_head = nn.Linear(config.d_model, config.num_classes) if second else None

    def heads(self, inputs: Tensor, input_lens: Tensor) -> Heads:
        """What all heads say before it is normalised; arguments as `forward` has them."""
        encoder_out, lens = self.encoder(inputs, input_lens)
        xent = None if self.xent_head is None else self.xent_head(encoder_out).float()
        return Heads(self.ctc_head(encoder_out).float(), lens, xent)

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log posteriors of the classes.

        Args:
          inputs: (N, T, F), padded with anything; T >= config.min_frames.
          input_lens: (N,), int64.

        Returns:
          log_probs (N, T', V) in float32, natural logarithm, and their lengths (N,).
        """
        encoder_out, lens = self.encoder(inputs, input_lens)
        return self.ctc_head(encoder_out).float().log_softmax(dim=-1), lens

    def network_output(self, inputs: Tensor, input_lens: Tensor) -> dict[str, Tensor]:
        """What searches read: `lens` (N,) and `log_probs` (N, T', V)."""
        log_probs, lens = self(inputs, input_lens)
        return {"lens": lens, "log_probs": log_probs}
