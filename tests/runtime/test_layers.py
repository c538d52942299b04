"""The parts of an encoder beside its matrices, against torch in float64, by the library and by numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.models.attention import RelativeSelfAttention
from lowbit_k2.runtime import layers
from lowbit_k2.runtime.native import ISAS, MODES, NUMPY, library
from tests.runtime.tensors import random_rows, relative_error

SHAPES = ((1, 1), (1, 8), (3, 13), (17, 144), (200, 257))


@pytest.fixture(params=[*ISAS, NUMPY])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every path of the library, and numpy."""
    if request.param == NUMPY:
        monkeypatch.setattr(layers, "library", lambda: None)
        yield NUMPY
        return
    loaded = library()
    missing = b"not built" if loaded is None else loaded.lbk_isa_missing(request.param.encode())
    if missing is not None:
        pytest.skip(f"{request.param}: {missing.decode()}")
    before = loaded.lbk_isa()
    loaded.lbk_use_isa(request.param.encode())
    yield request.param
    loaded.lbk_use_isa(before)


def double(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).double()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(path: str, shape: tuple[int, int], threads: int) -> None:
    x, scale, shift = random_rows(*shape), numbers(shape[1]), numbers(shape[1], seed=1)
    expected = F.layer_norm(double(x), shape[1:], double(scale), double(shift), 1e-5).numpy()
    assert relative_error(layers.layer_norm(x, scale, shift, threads=threads), expected) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_swish_and_glu(path: str, shape: tuple[int, int]) -> None:
    x = np.clip(random_rows(*shape), -200, 200)
    np.testing.assert_allclose(layers.swish(x, threads=2), F.silu(double(x)).numpy(), rtol=1e-6, atol=1e-30)
    same = x.copy()
    assert layers.swish(same, out=same) is same
    np.testing.assert_allclose(same, F.silu(double(x)).numpy(), rtol=1e-6, atol=1e-30)
    both = np.concatenate([x, random_rows(*shape, seed=3)], axis=1)
    np.testing.assert_allclose(layers.glu(both), F.glu(double(both)).numpy(), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(path: str, shape: tuple[int, int]) -> None:
    x = np.clip(random_rows(*shape), -500, 500)
    assert np.abs(layers.softmax(x) - double(x).softmax(-1).numpy()).max() < 1e-6
    expected = double(x).log_softmax(-1).numpy()
    np.testing.assert_allclose(layers.log_softmax(x, threads=2), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("taps", [1, 15, 31])
@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise(path: str, shape: tuple[int, int], taps: int) -> None:
    frames, channels = shape
    x, weight, bias = numbers(*shape), numbers(taps, channels), numbers(channels)
    filters = double(weight).T[:, None]  # (C, 1, taps)
    expected = F.conv1d(double(x).T[None], filters, double(bias), padding=taps // 2, groups=channels)[0].T
    found = layers.depthwise(x, weight, bias, threads=2)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_depthwise_with_swish(path: str) -> None:
    x, weight, bias = numbers(40, 21), numbers(5, 21), numbers(21)
    expected = F.silu(double(layers.depthwise(x, weight, bias))).numpy()
    np.testing.assert_allclose(layers.depthwise(x, weight, bias, then_swish=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm(path: str, shape: tuple[int, int]) -> None:
    total, x, scale, shift = numbers(*shape), numbers(*shape, seed=1), numbers(shape[1]), numbers(shape[1], seed=1)
    expected = double(total) + 0.5 * double(x)
    norm = F.layer_norm(expected, shape[1:], double(scale), double(shift), 1e-5).numpy()
    assert relative_error(layers.add_norm(total, x, 0.5, scale, shift, threads=2), norm) < 1e-5
    np.testing.assert_allclose(total, expected.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize(("frames", "bands", "step"), [(1, 3, 2), (5, 8, 2), (30, 21, 4)])
def test_convolve(path: str, frames: int, bands: int, step: int, channels: int) -> None:
    """Into a part of a larger array, of which the rest stays as it is."""
    x, weight, bias = numbers(step * (frames - 1) + 3, bands), numbers(9, channels), numbers(channels)
    filters = double(weight).T.reshape(channels, 1, 3, 3)
    expected = F.conv2d(double(x)[None, None], filters, double(bias), stride=(step, 2)).relu()[0].permute(1, 2, 0)
    larger = np.full((frames, expected.shape[1] + 1, channels), 7, np.float32)
    layers.convolve(x, weight, bias, step, larger[:, :-1], threads=2)
    np.testing.assert_allclose(larger[:, :-1], expected.numpy(), rtol=1e-5, atol=1e-5)
    assert (larger[:, -1] == 7).all()


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 1), (10, 7, 2), (23, 12, 5)])
def test_patches(path: str, shape: tuple[int, int, int], by_channel: bool) -> None:
    x, weight = numbers(*shape), numbers(4, shape[2], 3, 3)
    expected = F.conv2d(double(x).permute(2, 0, 1)[None], double(weight), stride=2)[0]  # (4, T', F')
    matrix = (weight if by_channel else weight.transpose(0, 2, 3, 1)).reshape(4, -1)
    frames, middle = expected.shape[1], expected.shape[1] // 2
    parts = [layers.patches(x, *ends, by_channel) @ matrix.T for ends in ((0, middle), (middle, frames))]
    found = np.concatenate(parts).reshape(frames, -1, 4)
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("frames", "heads", "size"), [(1, 1, 2), (2, 2, 6), (7, 3, 16), (50, 4, 36), (131, 2, 17), (200, 2, 64)]
)
def test_relative_attention(path: str, frames: int, heads: int, size: int, threads: int) -> None:
    """The module of the torch model, with the identity as its matrices. AMX alone rounds, by mode."""
    width = heads * size
    query, key, value = (numbers(frames, width, seed=i) for i in range(3))
    position, u, v = numbers(2 * frames - 1, width, seed=3), numbers(heads, size, seed=4), numbers(heads, size, seed=5)
    module = RelativeSelfAttention(width, heads, 0.0).double().eval()
    module.pos_bias_u.data, module.pos_bias_v.data = double(u), double(v)
    module.query.forward, module.key.forward, module.value.forward = (
        lambda x, a=a: double(a)[None] for a in (query, key, value)
    )
    module.pos.forward = module.out.forward = lambda x: x
    with torch.no_grad():
        expected = module(double(query)[None], double(position), torch.ones(1, frames, dtype=torch.bool))[0].numpy()
    rounded = {"a16": 5e-5, "a8": 0.03} if path == "amx" else {}
    for mode in MODES:
        found = layers.relative_attention(query, key, value, position, u, v, threads, mode)
        assert relative_error(found, expected) < rounded.get(mode, 5e-6), mode
