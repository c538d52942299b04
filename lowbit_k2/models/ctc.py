"""An encoder with a CTC head."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit_k2.core.models import CtcConfig
from lowbit_k2.models.encoder import make_encoder


class CtcModel(nn.Module):
    """The encoder and one linear layer over the vocabulary; token 0 is the blank."""

    def __init__(self, config: CtcConfig, for_training: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.encoder)
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log posteriors of the tokens.

        Args:
          inputs: (N, T, F), padded with anything; T >= config.min_frames.
          input_lens: (N,), int64.

        Returns:
          log_probs (N, T', V) in float32, natural logarithm, and their lengths (N,).
        """
        encoder_out, lens = self.encoder(inputs, input_lens)
        logits = self.ctc_head(encoder_out)  # (N, T', V)
        return logits.float().log_softmax(dim=-1), lens

    def network_output(self, inputs: Tensor, input_lens: Tensor) -> dict[str, Tensor]:
        """What searches read: `lens` (N,) and `log_probs` (N, T', V)."""
        log_probs, lens = self(inputs, input_lens)
        return {"lens": lens, "log_probs": log_probs}
