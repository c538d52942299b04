"""LSTM, GRU and RNN whose weights quantizers reach: torch's own modules, which look their weights up at every pass.

torch's recurrent modules keep a list of their weights from the day they were made, so that a parametrization of
`weight_hh_l0` changes nothing. The classes here read each attribute at the start of a pass and hand what they have read
to the same fused kernel. All else is torch's: names of parameters, arguments, packed sequences, initial states,
results. A state_dict, or a packed file, goes from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class QuantizableRNN:
    """Mixin before a recurrent module of torch.

    torch reads its list of weights, `_flat_weights`, several times in a pass; here it is made once, and forgotten
    behind the pass, for it holds tensors with a graph.
    """

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        held = self.__dict__.get("_weights_of_pass")
        # None: not made yet, while torch's constructor runs
        return [getattr(self, name, None) for name in self._flat_weights_names] if held is None else held

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        """torch renews its list here and there; nothing is to be kept."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's module of the same name; in float32 under autocast to a type that the CPU has no kernel for."""
        weights = self._pass_weights()
        self.__dict__["_weights_of_pass"] = weights
        try:
            if not has_float32_alone(weights[0]):
                return super().forward(input, hx)
            with torch.autocast("cpu", enabled=False):
                states = tuple(state.float() for state in hx) if isinstance(hx, tuple) else hx
                return super().forward(input.float(), states.float() if isinstance(states, Tensor) else states)
        finally:
            del self.__dict__["_weights_of_pass"]

    def _pass_weights(self) -> list[Tensor]:
        """Those of one pass.

        Without gradients torch 2 rounds otherwise where a weight could be trained: a quantized model and its packed
        file, which computes with parameters, are to give the same numbers.
        """
        weights = self._flat_weights
        return weights if torch.is_grad_enabled() else [weight.detach() for weight in weights]

    def flatten_parameters(self) -> None:
        """Latent weights side by side in memory help nobody: cuDNN is given the quantized ones, and copies them."""
        if not parametrize.is_parametrized(self):
            super().flatten_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> nn.Module:
        """Move or convert, without looking weights up: that could move a running statistic."""
        nn.Module._apply(self, fn, *args, **options)
        self.flatten_parameters()
        return self

    def _init_flat_weights(self) -> None:
        """Of torch 2: its list and weak references to what is in it."""
        self._flat_weight_refs: list[Any] = []

    def _update_flat_weights(self) -> None:
        """Of torch 2: renews the list where a weight has changed, at each pass."""


class LSTM(QuantizableRNN, nn.LSTM):
    """`nn.LSTM`, to be quantized."""

    def each_way(self, forth: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """What the two directions of a bidirectional LSTM of one layer make of an input each, both from zero states.

        Args:
          forth: (N, T, C), where batches come first.
          back: (N, T, C), already in the order in which the way back reads it, which is that of its output, too.

        Returns:
          Two times (N, T, C'), in float32 under autocast to a type that the CPU has no kernel for.
        """
        assert self.bidirectional and self.num_layers == 1, "one layer in both directions"
        weights = self._pass_weights()
        half = len(weights) // 2
        ways = ((forth, weights[:half]), (back, weights[half:]))
        if has_float32_alone(weights[0]):
            with torch.autocast("cpu", enabled=False):
                return tuple(self._one_way(x.float(), own) for x, own in ways)
        return tuple(self._one_way(x, own) for x, own in ways)

    def _one_way(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        batch = x.size(0 if self.batch_first else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        state = tuple(x.new_zeros(1, batch, size) for size in sizes)
        return torch.lstm(x, state, weights, self.bias, 1, 0.0, self.training, False, self.batch_first)[0]


class GRU(QuantizableRNN, nn.GRU):
    """`nn.GRU`, to be quantized."""


class RNN(QuantizableRNN, nn.RNN):
    """`nn.RNN`, to be quantized."""


QUANTIZABLE: dict[type[nn.RNNBase], type[nn.RNNBase]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}


def replace_rnns(model: nn.Module) -> list[str]:
    """Turn every `nn.LSTM`, `nn.GRU` and `nn.RNN` of a model, or the model itself, into the one of this module.

    In place, and the modules stay the same objects with the same Parameters, so that hooks, tied weights and an
    optimizer made before go on. Their results do not change. A class of your own that is derived from one of them is
    left alone: derive it from the one of this module.

    Returns:
      The names of the modules that were replaced, "" for the model itself.
    """
    found = {name: module for name, module in model.named_modules() if type(module) in QUANTIZABLE}
    for module in found.values():
        module.__dict__.pop("_flat_weights", None)
        module.__class__ = QUANTIZABLE[type(module)]
    return list(found)


def has_float32_alone(weight: Tensor) -> bool:
    """Whether autocast wants a type for this weight's kernel that its device has none for."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and needs_float32()


def needs_float32() -> bool:
    """Whether autocast is on for the CPU whose oneDNN knows no bfloat16: torch 2 then finds no kernel, and stops."""
    if not hasattr(torch, "get_autocast_dtype"):  # before torch 2.4
        return torch.is_autocast_cpu_enabled()
    return torch.is_autocast_enabled("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def reads_past_quantization(module: nn.Module) -> bool:
    """Whether a parametrization of its weights would change nothing of what the module computes."""
    return isinstance(module, nn.RNNBase) and not isinstance(module, QuantizableRNN)
