"""LHUC: nothing changes at r = 0, gradients against finite differences, speakers of a batch apart from each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.encoders import ConformerConfig, EncoderConfig, LstmConfig, TdnnfConfig
from lowbit_k2.core.models import CtcConfig, TransducerConfig
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.models import make_model
from lowbit_k2.models.lhuc import SpeakerVectors, frozen_weights, hidden_layers, scaled_units
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

CONFORMER = ConformerConfig(
    num_features=20, d_model=16, num_layers=2, ffn_dim=12, conv_kernel=3, subsampling_channels=4
)
TDNNF = TdnnfConfig(num_features=20, d_model=8, num_layers=3, hidden_dim=12, bottlenecks=(4,), strides=(1, 0, 3))
LSTM = LstmConfig(num_features=20, d_model=8, num_layers=2, stack_frames=2)
every = pytest.mark.parametrize("config", [CONFORMER, TDNNF, LSTM], ids=lambda config: config.kind)


def make(config: EncoderConfig) -> nn.Module:
    """A random CTC model in eval mode, its running statistics as after some training."""
    torch.manual_seed(0)
    model = make_model(CtcConfig(config, vocab_size=6))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def batch(lens: tuple[int, ...] = (40, 31, 24), dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(lens), max(lens), 20, generator=generator, dtype=dtype), torch.tensor(lens)


def random_vectors(model: nn.Module, size: int, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    return [torch.randn(size, width, generator=generator, dtype=dtype) for _, width in hidden_layers(model)]


def test_hidden_layers() -> None:
    assert [width for _, width in hidden_layers(make(CONFORMER))] == [12] * 4  # two modules in each of two blocks
    assert [width for _, width in hidden_layers(make(TDNNF))] == [12] * 5  # the first layer, three, the prefinal one
    assert [width for _, width in hidden_layers(make(LSTM))] == [8] * 2
    assert hidden_layers(nn.Linear(2, 2)) == []


@every
@pytest.mark.parametrize("bits", [32, 2, 1])
@pytest.mark.parametrize("input_bits", [0, 8])
def test_zero_changes_nothing(config: EncoderConfig, bits: int, input_bits: int) -> None:
    model = make(config)
    quant = QuantConfig.preset("all-low", precisions=(2, 1))
    quant = replace(quant, schemes={role: replace(s, input_bits=input_bits) for role, s in quant.schemes.items()})
    quantize_model(model, quant)
    vectors = SpeakerVectors(model, {"a": 0, "b": 1, "c": 0})
    with torch.no_grad(), use_precision(model, bits):
        expected, lens = model(*batch())
        with vectors.adapted(["a", "b", "c"]):
            found, found_lens = model(*batch())
        assert torch.equal(found, expected) and torch.equal(found_lens, lens)
        with scaled_units(model, random_vectors(model, 3)):
            assert not torch.allclose(model(*batch())[0], expected)
        assert torch.equal(model(*batch())[0], expected)  # the hooks are gone


@every
def test_a_transducers_encoder_is_scaled(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    model = make_model(TransducerConfig(config, 6, decoder_dim=8, joiner_dim=8, ctc_head=True)).eval()
    with torch.no_grad():
        plain = model.network_output(*batch())
        with scaled_units(model, random_vectors(model, 3)):
            scaled = model.network_output(*batch())
    assert all(not torch.allclose(plain[name], scaled[name]) for name in ("encoder_out", "log_probs"))


@every
def test_the_gradient_against_finite_differences(config: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)  # in float32 the differences would be noise
    model = make(config).double()
    inputs, lens = batch(dtype=torch.float64)
    chosen = [r.requires_grad_() for r in random_vectors(model, 3)]

    def loss() -> Tensor:
        with scaled_units(model, chosen):
            log_probs, out_lens = model(inputs, lens)
        targets = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3])
        by_time = log_probs.transpose(0, 1)
        return nn.functional.ctc_loss(by_time, targets, out_lens, torch.tensor([4, 2, 2]), reduction="sum")

    grads = torch.autograd.grad(loss(), chosen)
    step, generator = 1e-6, torch.Generator().manual_seed(3)
    for r, grad in zip(chosen, grads, strict=True):
        direction = torch.randn(r.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                r += sign * step * direction
                values.append(loss().item())
                r -= sign * step * direction
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((grad * direction).sum()), rel=1e-5)


@every
def test_speakers_of_a_batch_are_as_they_are_alone(config: EncoderConfig) -> None:
    model = make(config)
    (inputs, lens), targets = batch(), [[1, 2], [3, 4, 5], [1]]
    chosen = [r.requires_grad_() for r in random_vectors(model, 3)]
    with scaled_units(model, chosen):
        log_probs, out_lens = model(inputs, lens)
    grads = torch.autograd.grad(ctc_loss(log_probs, out_lens, targets), chosen)
    for n in range(3):
        own = [r[n : n + 1].detach().requires_grad_() for r in chosen]
        with scaled_units(model, own):
            alone, own_lens = model(inputs[n : n + 1, : lens[n]], lens[n : n + 1])
        torch.testing.assert_close(log_probs[n : n + 1, : own_lens[0]], alone, rtol=1e-4, atol=1e-5)
        for grad, own_grad in zip(
            grads, torch.autograd.grad(ctc_loss(alone, own_lens, targets[n : n + 1]), own), strict=True
        ):
            torch.testing.assert_close(grad[n : n + 1], own_grad, rtol=1e-3, atol=1e-4)


@every
def test_nothing_of_it_is_stored(config: EncoderConfig) -> None:
    model = make(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with scaled_units(model, random_vectors(model, 1)), frozen_weights(model):
        assert model.state_dict().keys() == before.keys()
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_was_frozen_stays_frozen() -> None:
    model = make(TDNNF)
    model.ctc_head.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen_weights(model):
        raise KeyError
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["ctc_head.bias"]


def test_vectors_descend_by_speaker() -> None:
    model = make(TDNNF)
    vectors = SpeakerVectors(model, {"a": 0, "b": 1, "c": 0})
    vectors.descend(["b", "c"], [torch.tensor([[1.0], [2.0]]).expand(2, 12)] * 5)
    assert [r[:, 0].tolist() for r in vectors.of(["a", "b", "c"])] == [[-2.0, -1.0, -2.0]] * 5
    with pytest.raises(AssertionError, match="two utterances of a speaker"):
        vectors.descend(["a", "c"], [torch.zeros(2, 12)] * 5)


def test_vectors_of_another_number_of_utterances() -> None:
    model = make(TDNNF)
    with torch.no_grad(), scaled_units(model, random_vectors(model, 1)), pytest.raises(AssertionError):
        model(*batch())
