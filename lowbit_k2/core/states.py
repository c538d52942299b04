"""What SUPERB (arXiv 2105.01051) puts on frozen hidden states to recognise speech, as settings without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lowbit_k2.core.config import ConfigError, option
from lowbit_k2.core.encoders import EncoderConfig, Shapes, affine_shapes, lstm_shapes, register_encoder


@register_encoder
@dataclass(frozen=True)
class StatesConfig(EncoderConfig):
    """A learned weighted sum of layers, a linear projection, and bidirectional LSTM layers.

    The input holds the states of `num_states` layers side by side, as `recipe/extract_states.py` writes them.
    """

    kind: ClassVar[str] = "states"
    build: ClassVar[str] = "lowbit_k2.models.states:StatesEncoder"

    num_features: int = option(9984, flag="", low=1, high=1048576)
    num_states: int = option(13, "layers whose hidden states lie side by side in the input", low=1, high=1000)
    projection_dim: int = option(
        1024, "width that the weighted sum of hidden states is projected to", low=1, high=16384
    )
    d_model: int = option(2048, "width of the output, of both directions together", low=2, high=16384)
    num_layers: int = option(2, "LSTM layers", low=1, high=1000)
    dropout: float = option(0.2, "behind each LSTM layer", low=0, high=0.9)

    def check(self) -> None:
        if self.num_features % self.num_states:
            raise ConfigError("num_states", f"{self.num_states} does not divide the {self.num_features} features")
        if self.d_model % 2:
            raise ConfigError("d_model", f"{self.d_model} must be even, for two directions")

    @property
    def state_dim(self) -> int:
        """Width of a hidden state."""
        return self.num_features // self.num_states

    def output_lens(self, lens: Any) -> Any:
        return lens

    def shapes(self) -> Shapes:
        yield "state_weights", (self.num_states,)
        yield from affine_shapes("projection", (self.projection_dim, self.state_dim))
        for i in range(self.num_layers):
            inputs = self.d_model if i else self.projection_dim
            for name, shape in lstm_shapes(inputs, self.d_model // 2, bidirectional=True):
                yield f"layers.{i}.{name}", shape


StatesConfig.presets = {
    # 42.8 M on a base model: SUPERB's own
    "superb": StatesConfig(),
    # about 0.3 M on a tiny one: AN4 on two CPU cores
    "superb-tiny": StatesConfig(
        num_features=1152, num_states=6, projection_dim=128, d_model=256, num_layers=1, dropout=0.1
    ),
}
