"""SUPERB's downstream network for speech recognition: a weighted sum of hidden states, a projection, BiLSTM layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit_k2.core.states import StatesConfig
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.lstm import both_ways
from lowbit_k2.quant.rnn import LSTM


class StatesEncoder(nn.Module):
    """Hidden states side by side to encoder frames, one for each."""

    def __init__(self, config: StatesConfig) -> None:
        super().__init__()
        self.config = config
        self.state_weights = nn.Parameter(torch.zeros(config.num_states))  # of a softmax
        self.projection = nn.Linear(config.state_dim, config.projection_dim)
        self.layers = nn.ModuleList(
            LSTM(inputs, config.d_model // 2, batch_first=True, bidirectional=True)
            for inputs in (config.projection_dim, *[config.d_model] * (config.num_layers - 1))
        )

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (N, T, S C), input_lens (N,) -> (encoder_out (N, T, d_model), input_lens)."""
        n, t, _ = inputs.shape
        states = inputs.view(n, t, self.config.num_states, self.config.state_dim)  # (N, T, S, C)
        x = torch.einsum("ntsc,s->ntc", states, self.state_weights.softmax(dim=0))
        x = self.projection(x)
        for lstm in self.layers:
            x = dropout(both_ways(lstm, x, input_lens), self.config.dropout, self.training)
        return x, input_lens
