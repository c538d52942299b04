"""Codes in MatMulNBits: read back bit by bit, and multiplied by onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit_k2.core.grids import GRANULARITIES, group_shape, max_code
from lowbit_k2.export.onnx.nbits import BLOCK_SIZES, block_size, carry_codes, operands
from lowbit_k2.packed import PackedTensor

ENCODING = {1: "binary", 2: "ternary", **{bits: f"int{bits}" for bits in range(3, 9)}}
SHAPE = (7, 83)  # multiples of nothing


def tensor_of(bits: int, granularity: str = "tensor", shape: tuple[int, int] = SHAPE) -> PackedTensor:
    rng = np.random.default_rng(bits)
    top = max_code(bits)
    codes = rng.integers(-top, top + 1, shape)
    if bits == 1:
        codes = np.where(codes > 0, 1, -1)
    step = rng.uniform(0.01, 0.02, group_shape(shape, granularity)).astype(np.float32)
    return PackedTensor.from_codes("w", "linear", ENCODING[bits], codes.astype(np.int8), step, granularity)


def read_back(attributes: dict[str, int], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The weights (N, K) as the operator's definition has them, weight by weight."""
    n, k, bits, size = (attributes[name] for name in ("N", "K", "bits", "block_size"))
    blocks = -(-k // size)
    assert arrays["codes"].shape == (n, blocks, size * bits // 8) and arrays["codes"].dtype == np.uint8
    assert arrays["scales"].shape == (n * blocks,) and arrays["scales"].dtype == np.float32
    weights = np.empty((n, k), dtype=np.float32)
    for row in range(n):
        for column in range(k):
            block, place = divmod(column, size)
            byte = int(arrays["codes"][row, block, place * bits // 8])
            code = (byte >> (place * bits % 8)) & (2**bits - 1)
            weights[row, column] = np.float32(code - 2 ** (bits - 1)) * arrays["scales"][row * blocks + block]
    return weights


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", ENCODING)
@pytest.mark.parametrize("least", [2, 4])
def test_every_weight_is_the_quantized_model_s_own(bits: int, granularity: str, least: int) -> None:
    tensor = tensor_of(bits, granularity)
    attributes, arrays = operands(tensor, least)
    assert attributes["bits"] == next(width for width in (2, 4, 8) if width >= max(bits, least))
    assert np.array_equal(read_back(attributes, arrays), tensor.dequantize())


def test_one_bit_lies_around_the_zero_point() -> None:
    _, arrays = operands(tensor_of(1, shape=(1, 16)), 2)
    fields = {int(byte) >> shift & 3 for byte in arrays["codes"].flatten() for shift in (0, 2, 4, 6)}
    assert fields == {1, 3}


def test_blocks_take_the_fewest_bytes() -> None:
    for cols in (1, 16, 17, 83, 144, 256, 300, 2048):
        sizes = {size: -(-cols // size) * (size // 4 + 4) for size in BLOCK_SIZES}
        assert sizes[block_size(cols, 2)] == min(sizes.values())
    assert block_size(2048, 2) == 256 and block_size(16, 4) == 16


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_onnxruntime_multiplies_by_these_codes(bits: int) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-onnx.txt")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tensor, other = tensor_of(bits, "channel"), np.ones((83, 2), dtype=np.float32)
    weights = {"a": tensor.dequantize().T.copy(), "b": other}
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [f"y{name}"]) for name in weights],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 83])],
        [helper.make_tensor_value_info("ya", kind, ["N", 7]), helper.make_tensor_value_info("yb", kind, ["N", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert carry_codes(model, [tensor], least_bits=4) == 1
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits", "MatMul"]  # the other is not ours
    assert {initializer.name for initializer in model.graph.initializer} == {"w.codes", "w.scales", "b"}
    x = np.random.default_rng(0).standard_normal((3, 83)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found, plain = session.run(None, {"x": x})
    np.testing.assert_allclose(found, x.astype(np.float64) @ weights["a"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(plain, x @ other, rtol=0, atol=1e-5)
