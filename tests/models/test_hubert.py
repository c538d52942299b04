"""HuBERT: hidden states of the formulas in float64, padding that changes nothing, settings, sizes, roles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.core.models import check_shapes, model_config_from_dict
from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model
from lowbit_k2.models.hubert import Hubert
from lowbit_k2.quant import DEFAULT_RULES, QuantConfig, quantize_model
from tests.models.hubert_samples import BASE, BOTH, LARGE, LENS, random_model, waveforms


def written_out(model: Hubert, x: Tensor, state: dict[str, Tensor] | None = None) -> list[Tensor]:
    """The papers' network for one utterance (S,), in float64 with plain operations."""
    config = model.config
    p = state or {name: value.double() for name, value in model.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name: str, x: Tensor, dim: int) -> Tensor:
        """Mean 0 and variance 1 over `dim` of (T, C), then a factor and a bias per channel."""
        x = (x - x.mean(dim, keepdim=True)) / (x.var(dim, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    x = x.double()[:, None]  # (T, C)
    for i, (kernel, stride) in enumerate(zip(config.conv_kernels, config.conv_strides, strict=True)):
        windows = x.unfold(0, kernel, stride)  # (T', C, K)
        x = torch.einsum("tck,dck->td", windows, p[f"extractor.{i}.conv.weight"])
        if f"extractor.{i}.norm.weight" in p:
            x = norm(f"extractor.{i}.norm", x, 0 if config.conv_norm == "group" else 1)
        x = gelu(x)
    x = linear("projection.linear", norm("projection.norm", x, 1))
    kernel, groups, t = config.positions_kernel, config.positions_groups, len(x)
    padded = torch.cat([x.new_zeros(kernel // 2, x.size(1)), x, x.new_zeros(kernel // 2, x.size(1))])
    windows = padded.unfold(0, kernel, 1)[:t].reshape(t, groups, -1, kernel)  # (T, G, C / G, K)
    weight = p["positions.conv.weight"].reshape(groups, -1, *p["positions.conv.weight"].shape[1:])
    moved = torch.einsum("tgck,gdck->tgd", windows, weight).reshape(t, -1)
    x = x + gelu(moved + p["positions.conv.bias"])
    x = x if config.norm_first else norm("encoder.norm", x, 1)
    hidden = [x]
    for i in range(config.num_layers):
        at = f"encoder.layers.{i}"
        y = norm(f"{at}.norm_attention", x, 1) if config.norm_first else x
        heads = []
        for q, k, v in zip(
            *(linear(f"{at}.attention.{n}", y).chunk(config.num_heads, 1) for n in ("query", "key", "value")),
            strict=True,
        ):
            heads.append((q @ k.T / q.size(1) ** 0.5).softmax(1) @ v)
        x = x + linear(f"{at}.attention.out", torch.cat(heads, 1))
        x = x if config.norm_first else norm(f"{at}.norm_attention", x, 1)
        y = norm(f"{at}.norm_ff", x, 1) if config.norm_first else x
        x = x + linear(f"{at}.ff.w2", gelu(linear(f"{at}.ff.w1", y)))
        x = x if config.norm_first else norm(f"{at}.norm_ff", x, 1)
        hidden.append(x)
    return [*hidden, norm("encoder.norm", x, 1) if config.norm_first else x]


@BOTH
@torch.no_grad()
def test_hidden_states_are_those_of_the_formulas_and_padding_changes_nothing(config: HubertConfig) -> None:
    model, x = random_model(config), waveforms()
    found = model(x, LENS)
    assert len(found.hidden_states) == config.num_layers + 1
    for i, samples in enumerate(LENS):
        expected = written_out(model, x[i, :samples])
        frames = config.output_lens(int(samples))
        assert found.lens[i] == frames == len(expected[0])
        for state, right in zip((*found.hidden_states, found.out), expected, strict=True):
            torch.testing.assert_close(state[i, :frames].double(), right, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_pads_a_batch_may_be_anything() -> None:
    model, x = random_model(BASE), waveforms()
    noise = torch.where(torch.arange(x.size(1)) < LENS[:, None], x, torch.full_like(x, 7.0))
    for state, other in zip(model(x, LENS).hidden_states, model(noise, LENS).hidden_states, strict=True):
        frames = BASE.output_lens(int(LENS[1]))
        torch.testing.assert_close(state[1, :frames], other[1, :frames], rtol=1e-4, atol=1e-5)


@BOTH
def test_gradients_are_those_of_the_formulas(config: HubertConfig) -> None:
    """Several times, over memory that holds no numbers: torch 1.13's GELU can take some of that for its gradient."""
    model = random_model(config).double()
    x, seed = waveforms()[0, :2400], torch.randn(config.output_lens(2400), config.d_model, dtype=torch.float64)
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    (written_out(model, x, state)[-1] * seed).sum().backward()
    largest = max(p.grad.abs().max().item() for p in state.values() if p.grad is not None)
    model.float()
    for _ in range(5):
        model.zero_grad()
        lost = [torch.full((size,), float("nan")) for size in (256, 512, 4096, 65536)]
        del lost
        (model(x[None]).out[0] * seed.float()).sum().backward()
        for name, p in model.named_parameters():
            size = max(state[name].grad.abs().max().item(), 1e-2 * largest)  # that of key biases is 0
            torch.testing.assert_close(p.grad.double(), state[name].grad, rtol=1e-3, atol=1e-3 * size, msg=name)


def test_short_audio_is_one_line() -> None:
    with pytest.raises(UserError, match="audio of 399 samples .* at least 400"):
        Hubert(BASE)(torch.zeros(1, 399))
    with pytest.raises(UserError, match="audio of 10 samples"):
        Hubert(BASE)(torch.zeros(2, 800), torch.tensor([800, 10]))


@pytest.mark.parametrize("config", [BASE, LARGE, replace(LARGE, conv_bias=True), replace(BASE, projection_norm=False)])
def test_shapes_and_settings(config: HubertConfig) -> None:
    found = {name: tuple(value.shape) for name, value in make_model(config).state_dict().items()}
    assert dict(config.shapes()) == found
    check_shapes(config, found)
    assert model_config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_sizes_are_the_published_ones() -> None:
    def millions(name: str) -> float:
        config = HubertConfig.preset(name)
        return sum(torch.Size(shape).numel() for _, shape in config.shapes()) / 1e6

    # torchaudio counts the 128 lengths of weight norm as well: 94.370944
    assert millions("base") == 94.370816 and millions("large") == 315.433984
    assert 2 < millions("tiny") < 4 and abs(millions("base-fast") - 92.21) < 0.02
    assert HubertConfig.preset("base-fast").samples_per_frame == HubertConfig.preset("base").samples_per_frame == 320
    with pytest.raises(UserError, match="no size 'huge': choose one of base"):
        HubertConfig.preset("huge")


def test_roles_of_its_tensors() -> None:
    config = QuantConfig.preset("lossless16", precisions=(2, 1), rules=(*HubertConfig.rules, *DEFAULT_RULES))
    report = quantize_model(Hubert(BASE), config, strict=True)
    roles = {row.name: (row.role, row.bits) for row in report.rows}
    assert roles["encoder.layers.0.attention.query.weight"] == ("attention", (2, 1))
    assert roles["encoder.layers.0.ff.w1.weight"] == ("encoder_linear", (2, 1))
    for name in ("extractor.0.conv", "extractor.6.conv", "projection.linear", "positions.conv"):
        assert roles[f"{name}.weight"] == ("subsampling", (8,))
    assert roles["encoder.norm.weight"] == roles["extractor.0.norm.weight"] == ("norm", (16,))
