"""Codes of few bits in onnxruntime's operator MatMulNBits, exactly as the packed file has them.

    y = x W^T,    W[n, k] = (q[n, k] - z) * scale[n, k // block_size],    q unsigned with 2, 4 or 8 bits, z = 2^(bits-1)

(com.microsoft.MatMulNBits of onnxruntime's ContribOperators.md.) A code c of ours is q = c + z and our step the scale,
repeated for every block; the product of the two is the same float32 as in the quantized model. 1 bit has no operator of
its own: -1 and 1 are 1 and 3 in 2 bits, 7 and 9 in 4. onnxruntime 1.23 knows 4 and 8 bits, 1.28 also 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.core.grids import BLOCK
from lowbit_k2.onnx_packages import require
from lowbit_k2.packed import PackedTensor, pack

DOMAIN = "com.microsoft"
WIDTHS = (2, 4, 8)
BLOCK_SIZES = (256, 128, 64, 32, 16)  # those that onnxruntime's kernels have
FLOAT_ACCUMULATION = 1  # accuracy_level: inputs stay float32; 4 would round them to 8 bits
STEP_BYTES = 4


def carry_codes(model: Any, tensors: Sequence[PackedTensor], least_bits: int) -> int:
    """Turn each MatMul whose matrix is one of `tensors` in codes into MatMulNBits, in place.

    Args:
      model: an `onnx.ModelProto` that computes with the floats of these tensors. A matrix is found by its values:
        exporters fold and rename what they transpose.
      least_bits: 2 or 4, the fewest bits that the runtime knows.

    Returns:
      How many there are.
    """
    onnx = require("onnx")
    of_values = {_key(tensor.dequantize().T): tensor for tensor in tensors if is_matrix_of_codes(tensor)}
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    made: dict[str, list[Any]] = {}  # by the matrix's old name: it may be used more than once
    count = 0
    for node in model.graph.node:
        old = initializers.get(node.input[1]) if node.op_type == "MatMul" else None
        tensor = None if old is None else of_values.get(_key(onnx.numpy_helper.to_array(old)))
        if tensor is None:
            continue
        attributes, arrays = operands(tensor, least_bits)
        if old.name not in made:
            made[old.name] = [onnx.numpy_helper.from_array(a, f"{tensor.name}.{part}") for part, a in arrays.items()]
        node.op_type, node.domain = "MatMulNBits", DOMAIN
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
        node.input[:] = [node.input[0], *(initializer.name for initializer in made[old.name])]
        count += 1
    _swap_initializers(model.graph, initializers, made)
    if count:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return count


def _key(matrix: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return matrix.shape, np.ascontiguousarray(matrix).tobytes()


def _swap_initializers(graph: Any, initializers: dict[str, Any], made: dict[str, list[Any]]) -> None:
    """Matrices that no node reads any more leave, their codes and scales come."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for name in made:
        if name not in used:
            graph.initializer.remove(initializers[name])
    graph.initializer.extend(new for parts in made.values() for new in parts)


def is_matrix_of_codes(tensor: PackedTensor) -> bool:
    """Whether MatMulNBits can hold it: a matrix whose codes are multiples of steps, not places in a table."""
    return not tensor.is_float and len(tensor.shape) == 2 and tensor.table is None and tensor.zero_point == 0


def width_of(tensor: PackedTensor, least_bits: int) -> int:
    """Bits of the container for a tensor's codes."""
    needed = max(least_bits, ENCODINGS[tensor.encoding].bits or 2)  # ternary is no stream of bits, and fits into 2
    return next(width for width in WIDTHS if width >= needed)


def operands(tensor: PackedTensor, least_bits: int) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Attributes of the node, and its arrays by what they are.

    Returns:
      K, N, bits, block_size, accuracy_level; "codes" uint8 (N, blocks, bytes of a block), "scales" float32 (N blocks,).
    """
    n, k = tensor.shape
    bits = width_of(tensor, least_bits)
    zero = 1 << (bits - 1)
    size = BLOCK if tensor.granularity == "block64" else block_size(k, bits)
    blocks = -(-k // size)
    codes = np.full((n, blocks * size), zero, dtype=np.uint8)  # what fills the last block is zero
    codes[:, :k] = tensor.codes.astype(np.int16) + zero
    data = pack(codes, f"index{bits}").reshape(n, blocks, size * bits // 8)
    steps = tensor.step.reshape(n, -1) if tensor.step.ndim else tensor.step  # (), (N, 1) or (N, blocks)
    scales = np.broadcast_to(steps, (n, blocks)).astype(np.float32).reshape(-1)
    attributes = {"K": k, "N": n, "bits": bits, "block_size": size, "accuracy_level": FLOAT_ACCUMULATION}
    return attributes, {"codes": data, "scales": scales}


def block_size(cols: int, bits: int) -> int:
    """The size of blocks in which a row with one step takes the fewest bytes."""
    return min(BLOCK_SIZES, key=lambda size: -(-cols // size) * (size * bits // 8 + STEP_BYTES))
