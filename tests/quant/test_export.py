"""Codes and steps reproduce the weights in use bit for bit; the plain state_dict computes the same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.quant import (
    Allocation,
    QuantConfig,
    TensorScheme,
    export_tensors,
    plain_state_dict,
    quantize_model,
    rederive_scales,
    use_precision,
)
from lowbit_k2.quant.switching import find_quantizers, latent_weights
from lowbit_k2.quant.walker import plain_parameters


def quantized(model, config: QuantConfig):
    """Quantize, and move weights and alphas off their starting points."""
    quantize_model(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 + 0.2 * torch.rand(p.shape, generator=generator))
    return model.eval()


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.int32)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block64"])
@pytest.mark.parametrize("scale", ["2std-clipped", "lsq", "running-absmax"])
def test_codes_times_step_is_the_weight_in_use(scale: str, granularity: str, make_model) -> None:
    schemes = {role: TensorScheme((b,), scale, granularity) for role, b in (("convolution", 4), ("output", 8))}
    config = QuantConfig.preset("all-low", (2, 1), scale=scale, granularity=granularity, schemes=schemes)
    model = quantized(make_model(), config)
    for assignment in (2, 1, Allocation.by_layer("encoder.layers", [1, 2, 1]), {"encoder.layers.0": 32}):
        with use_precision(model, assignment):
            exported = {t.name: t for t in export_tensors(model)}
            assert list(exported) == [p.name for p in plain_parameters(model)]
            for parameter in plain_parameters(model):
                in_use = getattr(*parameter.owners[0])
                tensor = exported[parameter.name]
                assert torch.equal(bits_of(tensor.dequantize()), bits_of(in_use)), parameter.name
                assert tensor.bits == (parameter.quantizer.active_bits if parameter.quantizer else 32)


def test_codes_times_step_in_numpy(make_model) -> None:
    """What a reader without torch does: int8 codes to float32, times the float32 step of the tensor."""
    model = quantized(make_model(), QuantConfig.preset("lossless16"))
    weights = plain_state_dict(model)
    for tensor in export_tensors(model):
        if tensor.codes is None:
            assert tensor.values.dtype == torch.float16 and tensor.step is None
            ours = tensor.values.numpy().astype(np.float32)
        else:
            assert tensor.codes.dtype == torch.int8 and tensor.step.dtype == torch.float32
            codes, step = tensor.codes.numpy().astype(np.float32), tensor.step.numpy()
            ours = codes * (step.reshape(-1, *(1,) * (codes.ndim - 1)) if step.ndim else step)
        assert ours.tobytes() == weights[tensor.name].numpy().tobytes(), tensor.name


def test_step_shapes(make_model) -> None:
    shapes = {}
    for granularity in ("tensor", "channel", "block64"):
        config = QuantConfig.preset("paper", granularity=granularity)
        model = quantized(make_model(), config)
        tensor = next(t for t in export_tensors(model) if t.name == "encoder.layers.0.ff1.w2.weight")  # (20, 70)
        shapes[granularity] = tuple(tensor.step.shape)
    assert shapes == {"tensor": (), "channel": (20,), "block64": (20, 2)}


@pytest.mark.parametrize("preset", ["float", "paper", "lossless16", "all-low"])
def test_plain_state_dict_is_the_unquantized_architecture(preset: str, make_model, features) -> None:
    config = QuantConfig.preset(preset)
    model = quantized(make_model(), config)
    for bits in (*config.switched_precisions, 32):
        with use_precision(model, bits), torch.no_grad():
            plain = make_model(7).eval()
            plain.load_state_dict(plain_state_dict(model))  # strict
            # the same numbers in other memory: with two threads torch 2.13 may round the last bit otherwise
            torch.testing.assert_close(plain(features), model(features), rtol=1e-6, atol=1e-6)


def test_reading_a_training_model_moves_nothing(make_model) -> None:
    model = quantized(make_model(), QuantConfig.preset("lossless16")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain_state_dict(model)
    export_tensors(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(quantizer.training for quantizer in find_quantizers(model))


def test_rederive_scales(make_model) -> None:
    """running-absmax follows the averaged latents; what was set at the start stays."""
    config = QuantConfig.preset("lossless16", scale="lsq", schemes={"output": TensorScheme((2,), "absmean")})
    model = make_model()
    quantize_model(model, config)
    before = {q.name: q.statistic.clone() for q in find_quantizers(model) if q.statistic is not None}
    with torch.no_grad():
        for latent in latent_weights(model).values():
            latent.mul_(0.25)
    rederive_scales(model)
    for quantizer, latent in latent_weights(model).items():
        if quantizer.scheme.scale == "running-absmax":
            assert torch.equal(quantizer.statistic, latent.detach().abs().flatten(1).amax(1))
        elif quantizer.statistic is not None:
            assert torch.equal(quantizer.statistic, before[quantizer.name])


def test_unquantized_model_exports_float(make_model) -> None:
    tensors = export_tensors(make_model())
    assert {t.bits for t in tensors} == {32} and all(t.values.dtype == torch.float32 for t in tensors)
    assert "encoder_linear" in {t.role for t in tensors}


def refuse(model, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        export_tensors(model)
    assert "\n" not in str(caught.value)


def test_refusals(make_model) -> None:
    model = quantized(make_model(), QuantConfig.preset("lossless16"))
    quantizer = find_quantizers(model)[0]
    bits = str(quantizer.active_bits)
    for bad in (0.0, -0.5, float("nan")):
        with torch.no_grad():
            quantizer.alphas[bits].fill_(bad)
        refuse(model, f"{quantizer.name}: its alpha at {bits} bits is .*, not positive")
    torch.nn.init.ones_(quantizer.alphas[bits])
    with torch.no_grad():
        model.ctc_head.parametrizations.bias.original[0] = 1e6
    refuse(model, "ctc_head.bias has numbers beyond the range of fp16")
    with torch.no_grad():
        model.ctc_head.parametrizations.bias.original[0] = float("inf")
    refuse(model, "ctc_head.bias holds numbers that are not finite")
    refuse(quantized(make_model().double(), QuantConfig.preset("paper")), "float32")
