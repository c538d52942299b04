"""Recurrent modules that quantizers reach, against torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.quant import (
    GRU,
    LSTM,
    RNN,
    QuantConfig,
    TensorScheme,
    plain_state_dict,
    quantize_model,
    replace_rnns,
    use_precision,
)
from lowbit_k2.quant.switching import find_quantizers, latent_weights

PAIRS = [(LSTM, nn.LSTM), (GRU, nn.GRU), (RNN, nn.RNN)]
SIZES = [
    {},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bias": False},
]
CASES = [(pair, sizes) for pair in PAIRS for sizes in SIZES]
CASES += [(PAIRS[0], {"proj_size": 3, "num_layers": 2, "bidirectional": two}) for two in (False, True)]
N, T, INPUT, HIDDEN = 3, 7, 5, 6
RUNNING = QuantConfig("running", {"linear": TensorScheme((4, 2), "running-absmax", "channel")})


def flat(found: Any) -> list[Tensor]:
    """The tensors of a result, packed or not, with its states."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, PackedSequence):
        return [found.data]
    return [tensor for part in found for tensor in flat(part)]


def results(module: nn.RNNBase, inputs: Any, hx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a module puts out, and gradients of its parameters of a sum over all of it."""
    module.zero_grad()
    out = flat(module(inputs, hx))
    sum((tensor * torch.linspace(-1, 2, tensor.numel()).view_as(tensor)).sum() for tensor in out).backward()
    return out, [parameter.grad for parameter in module.parameters()]


def state_for(module: nn.RNNBase) -> Any:
    directions = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(directions, N, module.proj_size or HIDDEN)
    return (h, torch.randn(directions, N, HIDDEN)) if isinstance(module, nn.LSTM) else h


@pytest.mark.parametrize(("pair", "sizes"), CASES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_values_and_gradients_are_torchs(pair: tuple, sizes: dict, packed: bool, with_state: bool) -> None:
    ours, torchs = (cls(INPUT, HIDDEN, **sizes) for cls in pair)
    ours.load_state_dict(torchs.state_dict())
    inputs: Any = torch.randn((N, T, INPUT) if torchs.batch_first else (T, N, INPUT))
    if packed:
        inputs = pack_padded_sequence(inputs, torch.tensor([4, 7, 2]), torchs.batch_first, enforce_sorted=False)
    hx = state_for(torchs) if with_state else None
    for found, expected in zip(results(ours, inputs, hx), results(torchs, inputs, hx), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert list(ours.state_dict()) == list(torchs.state_dict())


@pytest.mark.parametrize(("pair", "sizes"), CASES)
def test_quantized_values_and_straight_through_gradients(pair: tuple, sizes: dict) -> None:
    """torch's module with the quantized weights; the gradient of a latent weight is that of the weight in use."""
    torch.manual_seed(1)
    ours, torchs = (cls(INPUT, HIDDEN, **sizes) for cls in pair)
    quantize_model(ours, QuantConfig.preset("lossless16", precisions=(2, 1)), strict=True)
    inputs = torch.randn(T, N, INPUT)
    for bits in (1, 2):
        with use_precision(ours, bits):
            torchs.load_state_dict(plain_state_dict(ours))
            found, _ = results(ours, inputs, None)
            grads = {name: getattr(ours.parametrizations, name).original.grad for name in torchs.state_dict()}
        expected, _ = results(torchs, inputs, None)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "bitwise"
        for name, parameter in torchs.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-6)
            codes = torch.unique(parameter.detach().abs())
            assert len(codes) == (1 if bits == 1 else 2) or name.startswith("bias")


def test_a_weight_is_read_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    module = LSTM(INPUT, HIDDEN, num_layers=2)
    quantize_model(module, RUNNING)
    reads: list[str] = []
    quantizer = type(find_quantizers(module)[0])
    forward = quantizer.forward
    monkeypatch.setattr(quantizer, "forward", lambda self, w: reads.append(self.name) or forward(self, w))
    module(torch.randn(T, N, INPUT))
    assert sorted(reads) == sorted(q.name for q in find_quantizers(module))
    module, x = LSTM(INPUT, HIDDEN, bidirectional=True), torch.randn(T, N, INPUT)
    quantize_model(module, RUNNING)
    reads.clear()
    module.each_way(x, x)
    assert sorted(reads) == sorted(q.name for q in find_quantizers(module))


def test_moving_and_copying_leave_running_statistics_alone() -> None:
    module = LSTM(INPUT, HIDDEN)
    quantize_model(module, RUNNING)
    statistics = [quantizer.statistic.clone() for quantizer in find_quantizers(module)]
    for latent in latent_weights(module).values():
        latent.data.mul_(3.0)
    module.double().float().to("cpu")
    copied = copy.deepcopy(module)
    for twin in (module, copied):
        now = [quantizer.statistic for quantizer in find_quantizers(twin)]
        assert all(torch.equal(a, b) for a, b in zip(statistics, now, strict=True))
    inputs = torch.randn(T, N, INPUT)
    assert torch.equal(module(inputs)[0], copied(inputs)[0])
    copy.deepcopy(module)  # a pass leaves nothing with a graph behind


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(INPUT, HIDDEN, batch_first=True, proj_size=2), nn.GRU(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0])


def test_a_users_model_keeps_its_parameters_and_its_optimizer() -> None:
    torch.manual_seed(2)
    model, inputs = Tagger(), torch.randn(N, T, INPUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own, before = dict(model.named_parameters()), model(inputs)
    assert replace_rnns(model) == ["first", "second"] and replace_rnns(model) == []
    assert (type(model.first), type(model.second)) == (LSTM, GRU)
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(model(inputs), before)
    model(inputs).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model(inputs), before)


def test_from_torchs_modules_to_a_packed_file_and_back_into_them(tmp_path) -> None:
    torch.manual_seed(3)
    model, inputs = Tagger(), torch.randn(N, T, INPUT)
    replace_rnns(model)
    rows = quantize_model(model, QuantConfig.preset("lossless16", precisions=(2, 1)), strict=True).rows
    assert {row.bits for row in rows if len(row.shape) > 1} == {(2, 1)}, "nothing stays float"
    model.eval()
    with use_precision(model, 1), torch.no_grad():
        save_packed(model, tmp_path / "tagger.lowbit")
        expected = model(inputs)
    plain = load_packed(tmp_path / "tagger.lowbit", Tagger())
    assert type(plain.first) is nn.LSTM
    with torch.no_grad():  # oneDNN has other kernels for weights that want gradients
        torch.testing.assert_close(plain(inputs), expected, rtol=1e-6, atol=1e-6)


def test_classes_of_ones_own_are_left_alone_and_the_refusal_names_the_remedy() -> None:
    class Mine(nn.LSTM):
        pass

    model = nn.ModuleDict({"mine": Mine(2, 2), "plain": nn.LSTM(2, 2)})
    assert replace_rnns(model) == ["plain"]
    with pytest.raises(UserError, match=r"mine.weight_ih_l0.*Mine reads its weights past.*call replace_rnns\(model\)"):
        quantize_model(model, QuantConfig.preset("lossless16"), strict=True)
    root = nn.GRU(2, 2)
    assert replace_rnns(root) == [""] and type(root) is GRU


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("packed", [False, True])
def test_in_bfloat16_and_under_autocast(pair: tuple, packed: bool) -> None:
    """Near float32 whatever kernels the CPU has; torch 2's LSTM stops under autocast where oneDNN has none."""
    ours, torchs = (cls(INPUT, HIDDEN, num_layers=2) for cls in pair)
    ours.load_state_dict(torchs.state_dict())
    inputs: Any = torch.randn(T, N, INPUT)
    if packed:
        inputs = pack_padded_sequence(inputs, torch.tensor([7, 5, 2]))
    halves = inputs.to(torch.bfloat16)
    expected = flat(torchs(inputs))[0]
    found = flat(copy.deepcopy(ours).bfloat16()(halves))[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    quantize_model(ours, QuantConfig.preset("paper", precisions=(2, 1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with use_precision(ours, 32):
            for given in (inputs, halves):  # as a linear layer before it puts out
                state = (torch.zeros(2, N, HIDDEN, dtype=torch.bfloat16),) * 2
                for hx in (None, state if isinstance(ours, nn.LSTM) else state[0]):
                    torch.testing.assert_close(flat(ours(given, hx))[0].float(), expected, rtol=0.05, atol=0.05)
        with use_precision(ours, 1):
            flat(ours(inputs))[0].float().sum().backward()
    assert all(latent.grad.isfinite().all() for latent in latent_weights(ours).values())


def test_what_one_asks_of_a_module_in_between_sees_the_weights_in_use() -> None:
    module = LSTM(INPUT, HIDDEN)
    quantize_model(module, QuantConfig.preset("paper", precisions=(2, 1)))
    with use_precision(module, 32):
        assert torch.equal(module.weight_hh_l0, module.parametrizations.weight_hh_l0.original)
    with use_precision(module, 1):
        assert len(module.all_weights[0][1].abs().unique()) == 1


@pytest.mark.parametrize("bidirectional", [False, True])
def test_weights_that_could_be_trained_give_the_same_numbers(bidirectional: bool) -> None:
    """Bitwise, without gradients: torch 2 by itself rounds otherwise."""
    torch.manual_seed(0)
    rnn = LSTM(60, 9, proj_size=6, bidirectional=bidirectional, batch_first=True)
    fixed, x = copy.deepcopy(rnn).requires_grad_(False), torch.randn(2, 17, 60)
    with torch.no_grad():
        assert torch.equal(rnn(x)[0], fixed(x)[0])
        if bidirectional:
            assert all(map(torch.equal, rnn.each_way(x, x), fixed.each_way(x, x)))
