"""LSTM language model, of the layers that LSTM encoders have (lstm.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.core.lm import LstmLmConfig
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.models.lstm import HiddenState, LstmLayer


class LstmLm(LanguageModel):
    """Embedding, layers of LSTM with LayerNorm, and the output.

    It remembers h and c of each layer: (layers, 2, C).
    """

    def __init__(self, config: LstmLmConfig, for_training: bool = True) -> None:
        super().__init__(config)
        sizes = LstmConfig(d_model=config.d_model, num_layers=config.num_layers)
        self.layers = nn.ModuleList(LstmLayer(sizes, config.d_model) for _ in range(config.num_layers))

    def hidden(self, tokens: Tensor) -> Tensor:
        return self._through(tokens, [None] * len(self.layers))[0]

    def first_state(self) -> Tensor:
        return self.embedding.weight.new_zeros(len(self.layers), 2, self.config.d_model)

    def advance(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        before = torch.stack(list(states), dim=2)  # (layers, 2, M, C)
        x, after = self._through(tokens[:, None], [(h[None], c[None]) for h, c in before])
        return x[:, 0], list(torch.stack([torch.cat(own) for own in after]).unbind(2))

    def _through(self, tokens: Tensor, states: Sequence[HiddenState]) -> tuple[Tensor, list[HiddenState]]:
        """(N, T) -> (N, T, C), and the state of each layer behind the last unit."""
        x = dropout(self.embed(tokens), self.config.dropout, self.training)  # (N, T, C)
        after: list[HiddenState] = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, state)
            x = dropout(x, self.config.dropout, self.training)
            after.append(state)
        return x, after
