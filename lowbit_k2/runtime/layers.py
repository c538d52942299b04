"""What an encoder does beside its matrices, over one utterance: by the library, or in numpy where there is none.

All arrays are float32; results are new arrays unless `out` names one.
"""

from __future__ import annotations

import numpy as np

from lowbit_k2.runtime.native import MODES, check, library, pointer


def _contiguous(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(array, dtype=np.float32) for array in arrays]


def layer_norm(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, epsilon: float = 1e-5, threads: int = 1
) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift over the last dimension of x (T, C); scale, shift (C,)."""
    loaded = library()
    x, scale, shift = _contiguous(x, scale, shift)
    if loaded is None:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(epsilon)) * scale + shift
    y = np.empty_like(x)
    rows, cols = x.shape
    failed = loaded.lbk_layer_norm(pointer(x), rows, cols, pointer(scale), pointer(shift), epsilon, pointer(y), threads)
    check(loaded, failed)
    return y


def add_norm(
    total: np.ndarray,
    x: np.ndarray,
    factor: float,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float = 1e-5,
    threads: int = 1,
) -> np.ndarray:
    """`layer_norm` of total += factor * x; total (T, C), contiguous float32, is changed."""
    loaded = library()
    if loaded is None:
        total += np.float32(factor) * x
        return layer_norm(total, scale, shift, epsilon)
    x, scale, shift = _contiguous(x, scale, shift)
    y = np.empty_like(total)
    sums, norm = (pointer(total), pointer(x), factor, *total.shape), (pointer(scale), pointer(shift), epsilon)
    check(loaded, loaded.lbk_add_norm(*sums, *norm, pointer(y), threads))
    return y


def sigmoid(x: np.ndarray) -> np.ndarray:
    """By numpy."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def swish(x: np.ndarray, threads: int = 1, out: np.ndarray | None = None) -> np.ndarray:
    """x sigmoid(x) of x (T, C); `out` may be x."""
    loaded = library()
    (x,) = _contiguous(x)
    y = np.empty_like(x) if out is None else out
    if loaded is None:
        return np.multiply(x, sigmoid(x), out=y)
    check(loaded, loaded.lbk_swish(pointer(x), *x.shape, pointer(y), threads))
    return y


def glu(x: np.ndarray, threads: int = 1) -> np.ndarray:
    """The first half of the channels times the sigmoid of the second: (T, 2 C) -> (T, C)."""
    loaded = library()
    (x,) = _contiguous(x)
    rows, cols = len(x), x.shape[1] // 2
    if loaded is None:
        return x[:, :cols] * sigmoid(x[:, cols:])
    y = np.empty((rows, cols), np.float32)
    check(loaded, loaded.lbk_glu(pointer(x), rows, cols, pointer(y), threads))
    return y


def softmax(x: np.ndarray, threads: int = 1) -> np.ndarray:
    """Over the last dimension of x (T, C)."""
    loaded = library()
    (x,) = _contiguous(x)
    if loaded is None:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    y = np.empty_like(x)
    check(loaded, loaded.lbk_softmax(pointer(x), *x.shape, pointer(y), threads))
    return y


def log_softmax(x: np.ndarray, threads: int = 1) -> np.ndarray:
    """Natural logarithm of the softmax over the last dimension of x (T, C)."""
    loaded = library()
    (x,) = _contiguous(x)
    if loaded is None:
        centred = x - x.max(axis=-1, keepdims=True)
        return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))
    y = np.empty_like(x)
    check(loaded, loaded.lbk_log_softmax(pointer(x), *x.shape, pointer(y), threads))
    return y


def depthwise(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int = 1, then_swish: bool = False
) -> np.ndarray:
    """Each channel with its own filter, zeros beyond the ends: x (T, C), weight (taps, C), bias (C,) -> (T, C)."""
    loaded = library()
    x, weight, bias = _contiguous(x, weight, bias)
    taps = len(weight)
    if loaded is None:
        padded = np.pad(x, ((taps // 2, taps - 1 - taps // 2), (0, 0)))
        y = sum((weight[j] * padded[j : j + len(x)] for j in range(taps)), start=bias)
        return y * sigmoid(y) if then_swish else y
    y = np.empty_like(x)
    filters = pointer(weight), taps, pointer(bias)
    check(loaded, loaded.lbk_depthwise(pointer(x), *x.shape, *filters, then_swish, pointer(y), threads))
    return y


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, step: int, out: np.ndarray, threads: int = 1) -> None:
    """ReLU of a convolution of 3 x 3 over one channel, at every second band and every `step`-th frame.

    Args:
      x: (T, F), contiguous float32.
      weight, bias: (9, C), (C,).
      out: (T', (F - 1) // 2, C), each frame of it contiguous: where the result goes.
    """
    loaded = library()
    frames, (_, bands), channels = len(out), x.shape, weight.shape[1]
    assert x.flags.c_contiguous and len(x) > step * (frames - 1) + 2
    if loaded is None:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))[: step * frames : step, ::2]  # (T', F', 3, 3)
        out[:] = np.maximum(windows.reshape(frames, -1, 9) @ weight + bias, 0)
        return
    strides = step * bands, out.strides[0] // out.itemsize
    arguments = (pointer(x), strides[0], frames, bands, pointer(weight), pointer(bias), channels, pointer(out))
    check(loaded, loaded.lbk_convolve(*arguments, strides[1], threads))


def patches(x: np.ndarray, begin: int, end: int, by_channel: bool) -> np.ndarray:
    """What a convolution of 3 x 3 with stride 2 and no padding multiplies, for its output frames begin .. end-1.

    Args:
      x: (T, F, C).
      by_channel: the inputs of an output are (C, 3, 3), as torch has them, else (3, 3, C).
    Returns:
      ((end - begin) * ((F - 1) // 2), 9 * C).
    """
    loaded = library()
    (x,) = _contiguous(x)
    frames, bands, channels = x.shape
    width = (bands - 1) // 2
    if loaded is None and end > begin:
        windows = np.lib.stride_tricks.sliding_window_view(x[2 * begin : 2 * end + 1], (3, 3), axis=(0, 1))
        windows = windows[::2, ::2]  # (T', F', C, 3, 3)
        if not by_channel:
            windows = np.moveaxis(windows, 2, 4)  # (T', F', 3, 3, C)
        return windows.reshape((end - begin) * width, 9 * channels)
    y = np.empty(((end - begin) * width, 9 * channels), np.float32)
    if end > begin:
        check(loaded, loaded.lbk_patches(pointer(x), frames, bands, channels, begin, end, by_channel, pointer(y)))
    return y


def relative_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    position: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    threads: int = 1,
    mode: str = "exact",
) -> np.ndarray:
    """Self-attention with relative positions, as models/attention.py has it, over one utterance.

    Args:
      query, key, value: (T, C).
      position: (2 T - 1, C), of the distances T-1 .. -(T-1).
      u, v: (H, C / H), the biases of content and of position.
      mode: as of matrices of floats, see `PackedMatrix.matmul`: with AMX products are rounded, else it changes nothing.
    Returns:
      (T, C), before the output matrix.
    """
    loaded = library()
    query, key, value, position, u, v = _contiguous(query, key, value, position, u, v)
    heads, size = u.shape
    if loaded is None:
        return _attention_by_numpy(query, key, value, position, u, v)
    out = np.empty_like(query)
    arrays = (query, key, value, position, u, v)
    failed = loaded.lbk_attention(*map(pointer, arrays), len(query), heads, size, pointer(out), MODES[mode], threads)
    check(loaded, failed)
    return out


def _attention_by_numpy(query, key, value, position, u, v) -> np.ndarray:
    frames, width = query.shape
    heads, size = u.shape
    q, k, x, p = (a.reshape(-1, heads, size).transpose(1, 0, 2) for a in (query, key, value, position))  # (H, T, D)
    scale = np.float32(size**-0.5)
    by_content = ((q + u[:, None]) * scale) @ k.transpose(0, 2, 1)  # (H, T, T)
    by_position = ((q + v[:, None]) * scale) @ p.transpose(0, 2, 1)  # (H, T, 2T-1)
    places = np.arange(frames - 1, -1, -1)[:, None] + np.arange(frames)  # (T, T): row i starts at T-1-i
    scores = by_content + np.take_along_axis(by_position, np.broadcast_to(places, by_content.shape), axis=2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ x).transpose(1, 0, 2).reshape(frames, width)  # (T, C)
