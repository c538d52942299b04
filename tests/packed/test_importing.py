"""Low-bit weights of others: what comes back bit by bit, what stays float, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.cli import run
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedFileError, import_tensors, read_packed

RNG = np.random.default_rng(0)
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I32": "<i4", "I64": "<i8", "U8": "u1"}


def bf16(values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Cut off to the upper half of float32."""
    upper = np.ascontiguousarray(values, dtype="<f4").view("<u4") >> 16
    return "BF16", values.shape, upper.astype("<u2").tobytes()


def write(path: Path, **tensors: np.ndarray | tuple[str, tuple[int, ...], bytes]) -> Path:
    """A safetensors file by its description, not by its library, which has no bfloat16 in numpy."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            dtype = next(key for key, kind in NUMPY.items() if np.dtype(kind) == value.dtype)
            value = dtype, value.shape, value.tobytes()
        dtype, shape, content = value
        places = [len(data), len(data) + len(content)]
        header[name.replace("__", ".")] = {"dtype": dtype, "shape": list(shape), "data_offsets": places}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def ternary(*shape: int, codes: tuple[int, ...] = (-1, 0, 1)) -> np.ndarray:
    return RNG.choice(codes, shape).astype(np.int8)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 3, shape).astype(np.float32)


SCALES = {
    "tensor": ((), "tensor", lambda s: s),
    "one": ((1,), "tensor", lambda s: s),
    "row": ((10,), "channel", lambda s: s[:, None]),
    "row, kept": ((10, 1), "channel", lambda s: s),
    "64 columns": ((10, 3), "block64", lambda s: np.repeat(s, 64, 1)),
}


@pytest.mark.parametrize("codes", [(-1, 1), (-1, 0, 1), (-8, 0, 7), (-128, 127)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_codes_with_scales(codes: tuple[int, ...], scale: str, kind: str, tmp_path: Path) -> None:
    shape, granularity, spread = SCALES[scale]
    weights, scales = ternary(10, 192, codes=codes), np.asarray(RNG.normal(size=shape), np.float32)  # of both signs
    if codes[0] == -128:
        scales = np.asarray(np.abs(scales))
    if shape and codes == (-1, 0, 1):
        scales.flat[-1] = 0
    if kind == "F16":
        scales = np.asarray(scales, np.float16)
    stored = bf16(scales) if kind == "BF16" else scales
    if kind == "BF16":
        scales = (np.ascontiguousarray(scales).view("<u4") >> 16 << 16).view("<f4").reshape(scales.shape)
    for name in ("up__weight_scale", "up__scale", "up__weight__scales"):
        [found] = import_tensors(write(tmp_path / "a", up__weight=weights, **{name: stored}))
        assert found.tensor.name == "up.weight" and found.tensor.granularity == granularity and not found.reason
        expected = weights.astype(np.float32) * spread(scales.astype(np.float32))
        assert (found.tensor.dequantize() == expected).all()
    names = {(-1, 1): "binary", (-1, 0, 1): "ternary", (-8, 0, 7): "int4", (-128, 127): "int8"}
    signs = "int5" if codes == (-8, 0, 7) and (scales < 0).any() else names[codes]  # -8 turned round is 8
    assert found.tensor.encoding == signs and found.source == f"I8 * {kind}"


def test_groups_of_more_columns(tmp_path: Path) -> None:
    weights, scales = ternary(6, 384), positive(6, 3)
    [found] = import_tensors(write(tmp_path / "a", w=weights, w_scale=scales))
    assert found.tensor.granularity == "block64" and found.tensor.step.shape == (6, 6)
    assert (found.tensor.dequantize() == weights * np.repeat(scales, 128, axis=1)).all()


@pytest.mark.parametrize("codes", [(-1, 1), (-1, 0, 1)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block64"])
@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_values(codes: tuple[int, ...], granularity: str, kind: str, tmp_path: Path) -> None:
    """Bit by bit but for the sign of a zero, the last block of a row shorter."""
    steps = {
        "tensor": positive(1, 1),
        "channel": positive(12, 1),
        "block64": np.repeat(positive(12, 4), 64, 1)[:, :200],
    }
    weights = ternary(12, 200, codes=codes) * steps[granularity]
    weights[0] *= -1.0  # -0.0 among them
    if kind == "BF16":
        weights = (weights.view("<u4") >> 16 << 16).view("<f4")
    elif kind != "F32":
        weights = weights.astype(np.float16).astype(NUMPY[kind])
    [found] = import_tensors(write(tmp_path / "a", w=bf16(weights) if kind == "BF16" else weights))
    assert found.tensor.encoding == ("binary" if 0 not in codes else "ternary")
    assert found.tensor.granularity == granularity and found.source == kind
    expected = np.where(weights == 0, 0, weights).astype("<f4")
    assert (found.tensor.dequantize().view("<u4") == expected.view("<u4")).all()


def test_few_values_become_a_table_and_all_else_stays_float(tmp_path: Path) -> None:
    tensors = {
        "four": RNG.choice(positive(4), (20, 30)),
        "conv": ternary(8, 4, 3, 3) * positive(8, 1, 1, 1),
        "zeros": np.zeros((4, 70), np.float32),
        "many": RNG.normal(size=(20, 30)).astype(np.float32),
        "half": RNG.normal(size=(20, 30)).astype(np.float16),
        "depthwise": positive(9, 1),  # rows of one value: a step each would take more than the floats
        "norm": np.ones(30, np.float32),
        "number": np.array(2.5, np.float32),
    }
    found = {imported.tensor.name: imported for imported in import_tensors(write(tmp_path / "a", **tensors))}
    assert {name: imported.tensor.encoding for name, imported in found.items()} == {
        "four": "index2",
        "conv": "ternary",
        "zeros": "ternary",
        "many": "float32",
        "half": "float16",
        "depthwise": "float32",
        "norm": "float16",
        "number": "float16",
    }
    for name, value in tensors.items():
        assert (found[name].tensor.dequantize() == value.astype(np.float32)).all(), name
    assert found["many"].reason == "over 16 values, not -s, 0, s" and found["norm"].reason == "no matrix"


def test_floats_that_are_codes(tmp_path: Path) -> None:
    """Trainers keep codes in bfloat16, too; a scale beside other floats is a tensor like any other."""
    codes, scale, floats = ternary(5, 40), positive(1), RNG.normal(size=(5, 40)).astype(np.float32)
    path = write(tmp_path / "a", a__weight=bf16(codes), a__weight_scale=scale, b__weight=floats, b__scale=scale)
    found = import_tensors(path)
    assert [imported.tensor.name for imported in found] == ["a.weight", "b.weight", "b.scale"]
    assert (found[0].tensor.dequantize() == codes * scale).all() and found[1].tensor.encoding == "float32"


REFUSED = {
    "integers without scales beside them": {"w": ternary(3, 4)},
    "type U8": {"w": np.ones((3, 4), np.uint8), "w_scale": positive(1)},
    "a scale for 32 columns": {"w": ternary(3, 128), "w_scale": positive(3, 4)},
    r"scales of shape \(4,\) do not fit": {"w": ternary(3, 4), "w_scale": positive(4)},
    "codes from -300 to 300": {"w": np.full((2, 2), 300, np.int32) * [[1], [-1]], "w_scale": positive(1)},
    "w_scale and w.scale could both be": {"w": ternary(3, 4), "w_scale": positive(1), "w__scale": positive(1)},
    "float32 would round": {"w": RNG.normal(size=(3, 4))},
    "must be finite": {"w": np.full((3, 4), np.inf, np.float32)},
    "w is empty": {"w": np.zeros((0, 4), np.float32)},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason: str, tmp_path: Path) -> None:
    tensors = {name: v.astype(np.int32) if v.dtype == np.int64 else v for name, v in REFUSED[reason].items()}
    path = write(tmp_path / "a", good=positive(2), **tensors)
    with pytest.raises(PackedFileError, match=f"tensor w.*{reason}" if "w is" not in reason else reason):
        import_tensors(path)
    assert [imported.tensor.name for imported in import_tensors(path, ["w*"])] == ["good"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, scales = ternary(64, 640), positive(64)
    source = write(tmp_path / "a.safetensors", up__weight=weights, up__weight_scale=scales, up__bias=positive(64))
    run(["import", str(source), "--output", str(tmp_path / "b.safetensors")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["up.weight", "64", "x", "640", "I8", "*", "F32", "ternary", "row", "1.65", "8,448"]
    assert lines[2].endswith("no matrix") and "smaller" in lines[3]
    tensors = {tensor.name: tensor for tensor in read_packed(tmp_path / "b.safetensors").tensors}
    assert set(tensors) == {"up.weight", "up.bias"}
    assert (tensors["up.weight"].dequantize() == weights * scales[:, None]).all()
    run(["inspect", str(tmp_path / "b.safetensors")])
    with pytest.raises(UserError, match="is the source"):
        run(["import", str(source), "--output", str(source)])
    (tmp_path / "c").write_bytes(b"no tensors")
    for name in ("c", "missing"):
        with pytest.raises(PackedFileError, match=f"{name} cannot be read as safetensors"):
            run(["import", str(tmp_path / name), "--output", str(tmp_path / "d")])
    assert not (tmp_path / "d").exists()
