"""LSTM encoder: frames joined by the handful, then layers of LSTM with LayerNorm; it streams by construction.

With one direction, frame t of the output hangs on the input up to its own last frame alone, so that padding needs no
masking, and `stream` gives chunk by chunk what the whole utterance gives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.lhuc import HiddenLayer
from lowbit_k2.models.masking import MaskedBatchNorm, valid_frames
from lowbit_k2.quant.rnn import LSTM

HiddenState = tuple[Tensor, Tensor] | None  # h (1, N, C) and c (1, N, cells); None: zeros


class LstmState(NamedTuple):
    """What N streams have left behind them.

    Attributes:
      frames: (N, less than stack_frames, F), normalised, which wait for more.
      reduced: (N, 0 or 1, d_model), which waits for its neighbour behind the layer `reduce_after`.
      layers: of each layer.
    """

    frames: Tensor
    reduced: Tensor
    layers: tuple[HiddenState, ...]


def joined(x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """x (N, T, C) -> groups of `frames` as one, (N, T // frames, frames * C), and the frames left over at the end."""
    whole = x.size(1) // frames * frames
    return x[:, :whole].reshape(x.size(0), whole // frames, frames * x.size(2)), x[:, whole:]


class LstmLayer(nn.Module):
    """One layer of LSTM and a LayerNorm."""

    def __init__(self, config: LstmConfig, inputs: int) -> None:
        super().__init__()
        self.lstm = LSTM(
            inputs,
            config.cell_dim or config.direction_dim,
            batch_first=True,
            bidirectional=config.bidirectional,
            proj_size=config.direction_dim if config.cell_dim else 0,
        )
        self.norm = nn.LayerNorm(config.d_model) if config.layer_norm else nn.Identity()  # a module, for LHUC

    def forward(self, x: Tensor, state: HiddenState = None) -> tuple[Tensor, HiddenState]:
        """x (N, T, C), T at least 1 -> (N, T, d_model) in float32, also under autocast, and the state behind it."""
        x, state = self.lstm(x, state)
        return self.norm(x.float()), state

    def both_ways(self, x: Tensor, lens: Tensor) -> Tensor:
        """The same where the way back starts at each utterance's own end; lens (N,)."""
        return self.norm(both_ways(self.lstm, x, lens))


def both_ways(lstm: LSTM, x: Tensor, lens: Tensor) -> Tensor:
    """A bidirectional LSTM of one layer over (N, T, C), backwards from the end of each utterance; lens (N,).

    Two passes, the second over what each utterance is from behind. torch's one pass over packed sequences computes the
    same, but its gradients on a CPU take time by the square of T.

    Returns:
      (N, T, C') in float32, 0 on padding.
    """
    frames = torch.arange(x.size(1), device=x.device)  # (T,)
    lens = lens.to(x.device)[:, None]  # (N, 1)
    valid = frames < lens  # (N, T)
    from_behind = torch.where(valid, lens - 1 - frames, frames)[..., None]  # (N, T, 1), its own inverse

    def turned(x: Tensor) -> Tensor:
        return x.gather(1, from_behind.expand_as(x))

    forth, back = lstm.each_way(x, turned(x))
    return torch.cat([forth, turned(back)], dim=-1).float() * valid[..., None]


class LstmEncoder(nn.Module):
    """Features to encoder frames at 1 / `stack_frames` of the rate, or half of that."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.config = config
        # mean and variance of the features, as training sees them
        self.input_norm = MaskedBatchNorm(config.num_features, affine=False)
        self.layers = nn.ModuleList(LstmLayer(config, inputs) for inputs in config.layer_inputs)

    def hidden_layers(self) -> list[HiddenLayer]:
        """What LHUC scales: what each layer puts out."""
        return [(layer.norm, self.config.d_model) for layer in self.layers]

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (N, T, F), input_lens (N,) -> (encoder_out (N, T', d_model), encoder_out_lens (N,))."""
        config, num_frames = self.config, inputs.size(1)
        assert num_frames >= config.min_frames, f"needs at least {config.min_frames} frames, got {num_frames}"
        x = self.input_norm(inputs.float(), valid_frames(input_lens, num_frames))
        x, lens = joined(x, config.stack_frames)[0], input_lens // config.stack_frames  # (N, T', stack F)
        for i, layer in enumerate(self.layers):
            if 0 < i == config.reduce_after:
                x, lens = joined(x, 2)[0], lens // 2
            if i:
                x = dropout(x, config.dropout, self.training)
            x = layer.both_ways(x, lens) if config.bidirectional else layer(x)[0]
        return x, lens

    def stream(self, inputs: Tensor, state: LstmState | None = None) -> tuple[Tensor, LstmState]:
        """The next chunk of N streams.

        Args:
          inputs: (N, T, F), any T.
          state: what the chunk before has returned; None at the beginning.

        Returns:
          (N, T', d_model), the frames that have become complete, maybe none; and the state for the next chunk.

        Raises:
          UserError: the layers are bidirectional.
        """
        config = self.config
        if config.bidirectional:
            raise UserError("an LSTM in both directions cannot stream: train one with --bidirectional false")
        assert not self.training, "a stream is normalised by running statistics"
        n = inputs.size(0)
        x = inputs.float()
        if state is None:
            nothing = x.new_zeros(n, 0, config.d_model)
            state = LstmState(x[:, :0], nothing, (None,) * config.num_layers)
        x = self.input_norm(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        x, frames = joined(torch.cat([state.frames, x], dim=1), config.stack_frames)
        reduced, states = state.reduced, []
        for i, (layer, hidden) in enumerate(zip(self.layers, state.layers, strict=True)):
            if 0 < i == config.reduce_after:
                x, reduced = joined(torch.cat([reduced, x], dim=1), 2)
            if x.size(1):
                x, hidden = layer(x, hidden)
            else:
                x = x.new_zeros(n, 0, config.d_model)
            states.append(hidden)
        return x, LstmState(frames, reduced, tuple(states))
