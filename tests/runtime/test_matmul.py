"""Products of packed weights: every path, mode, encoding and granularity, against numpy's integers and float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.core.grids import GRANULARITIES
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedFileError, PackedTensor
from lowbit_k2.quant.inputs import quantize_input
from lowbit_k2.quant.soft_assignment import mu_law_table
from lowbit_k2.runtime import PackedMatrix, matmul
from lowbit_k2.runtime.matrix import feed_forward
from lowbit_k2.runtime.native import MODES
from lowbit_k2.runtime.reference import TOPS, reference_matmul, rounded_table
from tests.runtime.tensors import CODES, LINEAR, product, random_rows, random_tensor, relative_error

# (M, N, K): one of each; nothing a multiple of anything; whole blocks; several chunks and slices of rows.
SHAPES = ((1, 1, 1), (1, 17, 65), (3, 16, 64), (5, 33, 1000), (13, 7, 130), (9, 40, 515), (230, 21, 70))
ROUNDING = 2e-6  # of float32 results that differ in the order of their sums alone, as a part of the largest


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("encoding", CODES)
def test_against_numpy(isa: str, encoding: str, granularity: str) -> None:
    zero_points = (0, 5) if encoding in LINEAR else (0,)
    for m, n, k in SHAPES:
        for zero_point in zero_points:
            tensor = random_tensor(encoding, n, k, granularity, zero_point=zero_point)
            matrix, x, bias = PackedMatrix(tensor), random_rows(m, k), random_rows(1, n)[0]
            for mode in MODES:
                found = matrix.matmul(x, mode, bias)
                expected = reference_matmul(tensor, x, mode, bias)
                size = np.abs(expected - bias).max(axis=1).max(), np.abs(bias).max()
                assert np.abs(found - expected).max() <= ROUNDING * max(size), (mode, m, n, k, zero_point)


@pytest.mark.parametrize("encoding", CODES)
def test_exact_is_as_exact_as_float32(isa: str, encoding: str) -> None:
    """At most 2.5 times the error of numpy's own product, whose BLAS sums in parts, and 1e-5 of the largest value."""
    tensor, x = random_tensor(encoding, 70, 900, "channel"), random_rows(12, 900)
    expected = product(tensor, x)
    own = x @ tensor.dequantize().T
    scale = np.abs(expected).max(axis=1, keepdims=True)
    error, limit = ((np.abs(y - expected) / scale) for y in (matmul(tensor, x, "exact"), own))
    assert np.sqrt((error**2).mean()) <= 2.5 * np.sqrt((limit**2).mean())
    assert error.max() <= 1e-5


@pytest.mark.parametrize("mode", TOPS)
@pytest.mark.parametrize("encoding", LINEAR)
def test_integers_are_off_by_half_a_step(isa: str, encoding: str, mode: str) -> None:
    """Against float64: every activation is wrong by half a step at most, and a16 by 1e-4 of the largest result."""
    tensor, x = random_tensor(encoding, 40, 300, "block64"), random_rows(7, 300)
    expected = product(tensor, x)
    step = np.abs(x).max(axis=1, keepdims=True) / TOPS[mode]  # (M, 1)
    bound = step / 2 * np.abs(tensor.dequantize()).sum(axis=1) * 1.001
    error = np.abs(matmul(tensor, x, mode) - expected)
    assert (error <= bound + ROUNDING * np.abs(expected).max(axis=1, keepdims=True)).all()
    assert mode == "a8" or relative_error(expected + error, expected) < 1e-4


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_tables_on_a_grid_lose_nothing(isa: str, bits: int) -> None:
    """Of the General Quantizer, whose largest entry is 128 steps: only activations are rounded."""
    rng = np.random.default_rng(bits)
    table = mu_law_table(torch.tensor(8.0), bits).float().numpy() * np.float32(0.37)
    codes = rng.integers(0, 2**bits, (37, 300)).astype(np.uint8)
    codes[16:32] = np.minimum(codes[16:32], 2**bits - 2)  # outputs without the largest entry need no second pass
    step = rng.uniform(0.5, 2, 37).astype(np.float32)
    tensor, x = PackedTensor.from_codes("w", "", f"index{bits}", codes, step, "channel", table), random_rows(7, 300)
    expected, weights = product(tensor, x), np.abs(tensor.dequantize())
    assert relative_error(matmul(tensor, x, "exact"), expected) < 1e-6
    for mode, top in TOPS.items():
        bound = np.abs(x).max(axis=1, keepdims=True) / top / 2 * weights.sum(axis=1) * 1.001  # (M, N)
        error = np.abs(matmul(tensor, x, mode) - expected)
        assert (error <= bound + ROUNDING * np.abs(expected).max(axis=1, keepdims=True)).all()
    assert (rounded_table(table) == table).all()


def test_tables_off_every_grid_are_rounded_to_16_bits(isa: str) -> None:
    """Where activations lie on their grid, that is all the error."""
    tensor = random_tensor("index6", 20, 200, seed=3)
    x = np.random.default_rng(1).integers(-127, 128, (5, 200)).astype(np.float32)
    x[:, 0] = 127
    expected, size = product(tensor, x), np.abs(tensor.table).max() / TOPS["a16"] / 2 * tensor.step
    error = np.abs(matmul(tensor, x, "a8") - expected)
    limit = size * np.abs(x).sum(axis=1, keepdims=True) + ROUNDING * np.abs(expected).max()
    assert (error <= limit).all() and error.max() > 0.02 * limit.max()
    assert np.abs(rounded_table(tensor.table) - tensor.table).max() * tensor.step <= 1.001 * size


@pytest.mark.parametrize("encoding", LINEAR)
def test_the_largest_sums_fit(isa: str, encoding: str) -> None:
    """All weights and activations at the ends of their grids, with the farthest zero points."""
    lowest, highest = (-1, 1) if encoding in ("binary", "ternary") else (-(2 ** (int(encoding[3:]) - 1)),) * 2
    for code, zero_point in ((lowest, 255), (highest, -128), (lowest, 0)):
        codes = np.full((19, 5000), code, np.int8)
        tensor = PackedTensor.from_codes("w", "", encoding, codes, np.float32(1), zero_point=zero_point)
        x = np.full((2, 5000), -3.0, np.float32)
        x[1, ::2] = 3.0
        expected = product(tensor, x)
        for mode in MODES:
            found = matmul(tensor, x, mode)
            np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)
            assert np.abs(found[1] - expected[1]).max() <= 1e-5 * np.abs(expected[0]).max()


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_nothing_and_rows_that_are_not_finite(isa: str, mode: str) -> None:
    tensor, bias = random_tensor("ternary", 20, 100), random_rows(1, 20)[0]
    x = random_rows(6, 100)
    x[1] = 0
    x[2, 5], x[3, 7] = np.nan, np.inf
    found = matmul(tensor, x, mode, bias)
    assert (found[1] == bias).all()
    assert not np.isfinite(found[2:4]).any() or mode == "exact"
    assert not np.isfinite(found[3]).all()
    assert np.isfinite(found[[0, 4, 5]]).all()
    assert relative_error(matmul(tensor, x[[0, 4]], mode, bias), found[[0, 4]]) < ROUNDING


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_that_are_far_from_one(isa: str, mode: str, size: float) -> None:
    tensor, x = random_tensor("int4", 20, 100), random_rows(1, 100)
    found = matmul(tensor, x * np.float32(size), mode).astype(np.float64)
    assert relative_error(found / size, matmul(tensor, x, mode)) < 1e-5
    steps = replace(tensor, step=tensor.step * np.float32(size))
    assert relative_error(matmul(steps, x, mode).astype(np.float64) / size, matmul(tensor, x, mode)) < 1e-5


def test_numbers_too_small_to_be_divided(isa: str) -> None:
    """The step of a row never becomes 0, nor its inverse infinite."""
    tensor = random_tensor("binary", 20, 100)
    x = np.full((1, 100), 1e-44, np.float32)
    for mode in MODES:
        assert np.abs(matmul(tensor, x, mode)).max() <= 1e-41


@pytest.mark.parametrize("mode", MODES)
def test_shapes_of_x(isa: str, mode: str) -> None:
    tensor = random_tensor("binary", 20, 100)
    x = random_rows(6, 100)
    flat = matmul(tensor, x, mode)
    assert matmul(tensor, x[:0], mode).shape == (0, 20)
    assert (matmul(tensor, x[0], mode) == matmul(tensor, x[:1], mode)[0]).all()
    assert (matmul(tensor, x.reshape(2, 3, 100), mode) == flat.reshape(2, 3, 20)).all()
    assert (matmul(tensor, np.asfortranarray(x).astype(np.float64), mode) == flat).all()
    frozen, out = x.copy(), np.empty((6, 20), np.float32)
    frozen.flags.writeable = False
    assert matmul(tensor, frozen, mode, out=out) is out and (out == flat).all()


def test_weights_of_convolutions_are_matrices(isa: str) -> None:
    flat = random_tensor("int4", 8, 45)
    tensor = PackedTensor.from_codes("w", "", "int4", flat.codes.reshape(8, 5, 3, 3), flat.step)
    x = random_rows(2, 45)
    assert (matmul(tensor, x) == matmul(flat, x)).all()


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_quantized_inputs_are_those_of_the_model(isa: str, bits: int) -> None:
    """Where the model rounds its inputs to `bits`, integers of so many bits are no further loss."""
    tensor, x = random_tensor("ternary", 30, 200, input_bits=bits), random_rows(5, 200)
    weight = torch.from_numpy(tensor.dequantize()).double()
    expected = F.linear(quantize_input(torch.from_numpy(x), bits).double(), weight).numpy()
    for mode, most in (("exact", 16), ("a16", 15), ("a8", 8)):
        if bits <= most:
            assert relative_error(matmul(tensor, x, mode), expected) < 1e-6, mode


@pytest.mark.parametrize("mode", MODES)
def test_threads_give_the_same_bits(isa: str, mode: str) -> None:
    tensor, x = random_tensor("ternary", 300, 700, "channel"), random_rows(50, 700)
    expected = matmul(tensor, x, mode)
    for threads in (2, 3, 7):
        assert (matmul(tensor, x, mode, threads=threads) == expected).all()


def test_calls_from_many_threads(isa: str) -> None:
    """Python threads that multiply at the same time, each with threads of its own."""
    tensors = [random_tensor(encoding, 200, 600) for encoding in ("binary", "int4", "index4")]
    x = random_rows(40, 600)
    cases = [(tensor, mode, threads) for tensor in tensors for mode in MODES for threads in (1, 3)]
    expected = [matmul(tensor, x, mode) for tensor, mode, _ in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(lambda case: matmul(case[0], x, case[1], threads=case[2]), cases))
            assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("encoding", "of_panel"),
    [
        *(("binary", 128), ("ternary", 256), ("int3", 512), ("int4", 512), ("int8", 1024)),
        *((f"index{n}", 128 * n) for n in range(1, 9)),
    ],
)
def test_weights_stay_packed(isa: str, encoding: str, of_panel: int) -> None:
    """Bytes of 16 x 64 weights; the float matrix would take 4096, a table takes up to 1.5 kB."""
    matrix = PackedMatrix(random_tensor(encoding, 320, 640))
    assert 0 < matrix.nbytes - 20 * 10 * of_panel < (2000 if encoding.startswith("index") else 400)


def damaged(tensor: PackedTensor, row: int, byte: int, value: int) -> PackedTensor:
    data = tensor.data.copy()
    data[row, byte] = value
    return replace(tensor, data=data)


def test_damage_is_refused(isa: str) -> None:
    ternary, binary = random_tensor("ternary", 4, 11), random_tensor("binary", 4, 11)
    index = PackedTensor.from_codes("w", "", "index4", np.zeros((3, 6), np.uint8), np.float32(1), table=[1.0] * 5)
    for tensor in (
        damaged(ternary, 2, 0, 243),
        damaged(ternary, 3, 2, 3),
        damaged(binary, 1, 1, 8),
        damaged(index, 0, 0, 5),
    ):
        with pytest.raises(PackedFileError) as by_library:
            PackedMatrix(tensor)
        with pytest.raises(PackedFileError) as by_numpy:
            tensor.codes  # noqa: B018
        assert str(by_library.value) == str(by_numpy.value)


@pytest.mark.parametrize("activation", ["relu", "swish"])
@pytest.mark.parametrize("mode", MODES)
def test_feed_forward_is_two_products(isa: str, mode: str, activation: str) -> None:
    """Over more rows than are kept in the cache, too; without rows; added to its own input."""
    biases = random_rows(2, 1100)
    for width, hidden, rows in ((70, 1100, 230), (33, 19, 1), (64, 128, 0)):
        first, second = random_tensor("binary", hidden, width, "channel"), random_tensor("int4", width, hidden)
        matrices, both = (PackedMatrix(first), PackedMatrix(second)), (biases[0, :hidden], biases[1, :width])
        x = random_rows(rows, width)
        inner = torch.from_numpy(matmul(first, x, mode, both[0]))
        inner = F.relu(inner) if activation == "relu" else F.silu(inner)
        expected = matmul(second, inner.numpy(), mode, both[1])
        found = feed_forward(*matrices, x, activation, both, mode, threads=2)
        # inner numbers that differ by rounding become integers that differ by one here and there
        assert relative_error(found, expected) < {"exact": 1e-5, "a16": 1e-4, "a8": 1e-2}[mode]
        assert found.shape == x.shape
        added = x.copy()
        feed_forward(*matrices, added, activation, (both[0], None), mode, out=added, add=True)
        without_bias = feed_forward(*matrices, x, activation, (both[0], None), mode)
        assert np.abs(added - (x + without_bias)).max(initial=0) <= ROUNDING * np.abs(added).max(initial=0)
    with pytest.raises(UserError, match="activation 'tanh' is unknown: take one of relu, swish"):
        feed_forward(*matrices, x, "tanh")
    with pytest.raises(UserError, match="w takes 128 inputs, w gives 64"):
        feed_forward(matrices[1], matrices[1], random_rows(1, 128), "relu")


def test_calls_that_cannot_be(native) -> None:
    tensor = random_tensor("binary", 4, 11)
    x = random_rows(2, 11)
    wrong = [
        (dict(x=x, mode="a4"), "mode 'a4' is unknown: take one of exact, a16, a8"),
        (dict(x=x[:, :10]), r"w takes floats of shape \(..., 11\), not float32 of shape \(2, 10\)"),
        (dict(x=x.astype(np.int64)), "not int64"),
        (dict(x=x.tolist()), "not list"),
        (dict(x=x, bias=np.zeros(3)), r"bias of shape \(4,\), not \(3,\)"),
        (dict(x=x, threads=0), "threads 0"),
        (dict(x=x, out=np.empty((2, 5), np.float32)), "out must be contiguous float32"),
    ]
    for arguments, text in wrong:
        with pytest.raises(UserError, match=text):
            matmul(tensor, **arguments)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensors_of_floats(isa: str, dtype: type) -> None:
    values = random_rows(21, 150).astype(dtype)
    values[3, :6] = np.array([6e-8, -6e-8, 1e-5, 0.0, -0.0, 6e4], dtype)  # of halves: the smallest, subnormal, largest
    tensor = PackedTensor.from_values("w", "", np.dtype(dtype).name, values)
    matrix, x = PackedMatrix(tensor), random_rows(9, 150)
    expected = x.astype(np.float64) @ values.astype(np.float64).T
    for mode in MODES:
        assert relative_error(matrix.matmul(x, mode), expected) < (1e-5 if isa != "amx" else FLOATS_BY_AMX[mode])
        one = np.zeros((1, 150), np.float32)
        for k in range(6):
            one[:] = 0
            one[0, k] = 1
            assert matrix.matmul(one, mode)[0, 3] == np.float32(values[3, k])
    assert matrix.nbytes <= 32 * 192 * values.itemsize + 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_tensors(dtype: torch.dtype) -> None:
    tensor, x = random_tensor("ternary", 6, 50, "channel"), torch.from_numpy(random_rows(4, 50)).to(dtype)
    bias = torch.linspace(-1, 1, 6, dtype=dtype)
    found = matmul(tensor, x.requires_grad_(), "exact", bias)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32 and not found.requires_grad
    expected = matmul(tensor, x.detach().float().numpy(), "exact", bias.float().numpy())
    assert np.array_equal(found.numpy(), expected)
    with pytest.raises(UserError, match=r"w takes floats of shape \(..., 50\), not float32 of shape \(4, 49\)"):
        matmul(tensor, x[:, 1:])


def test_the_layout_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(PackedMatrix):
        def __init__(self, tensor: PackedTensor) -> None:
            made.append(tensor.name)
            super().__init__(tensor)

    monkeypatch.setattr("lowbit_k2.runtime.matrix.PackedMatrix", Counted)
    first, second, x = random_tensor("binary", 3, 20), random_tensor("binary", 3, 20), random_rows(2, 20)
    for tensor in (first, second, first, second):
        matmul(tensor, x)
    assert made == ["w", "w"]


# Of both sides, which AMX takes in three parts of 8 bits of mantissa, in two, in one.
FLOATS_BY_AMX = {"exact": 1e-6, "a16": 3e-5, "a8": 1e-2}


@pytest.mark.parametrize("shape", [(1, 1, 8), (16, 32, 16), (37, 70, 33), (50, 600, 200)])
def test_floats_on_odd_shapes(isa: str, shape: tuple[int, int, int]) -> None:
    outputs, inputs, rows = shape
    values = np.random.default_rng(2).normal(size=(outputs, inputs)).astype(np.float32)
    tensor, x, bias = PackedTensor.from_values("w", "", "float32", values), random_rows(rows, inputs), values[:, 0]
    expected = x.astype(np.float64) @ values.astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T + np.abs(bias)
    for mode in MODES:
        found = matmul(tensor, x, mode, bias, threads=2)
        assert (np.abs(found - expected - bias) / size).max() < (1e-6 if isa != "amx" else FLOATS_BY_AMX[mode])


@pytest.mark.parametrize("encoding", ["binary", "int8", "float32"])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_overlapping_rows_and_sums(isa: str, encoding: str, rows: int) -> None:
    """As the subsampling has them: rows begin 20 numbers behind each other, and products are added up."""
    tensor = random_tensor("int8", 21, 70) if encoding == "float32" else random_tensor(encoding, 21, 70)
    if encoding == "float32":
        tensor = PackedTensor.from_values("w", "", encoding, tensor.dequantize())
    matrix, numbers = PackedMatrix(tensor), random_rows(1, 20 * rows + 60)[0]
    x = np.lib.stride_tricks.as_strided(numbers, (rows, 70), (80, 4), writeable=False)
    for mode in MODES:
        whole = matrix.matmul(x.copy(), mode)
        assert (matrix.matmul(x, mode) == whole).all()
        found = np.full((rows, 21), np.float32(3))
        assert matrix.matmul(x, mode, out=found, add=True) is found
        np.testing.assert_allclose(found, whole + 3, rtol=1e-5, atol=1e-5 * np.abs(whole).max())
