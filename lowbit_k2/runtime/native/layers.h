// What an encoder does beside its matrices: norms, activations, attention, depthwise convolution. Like panels.h, compiled
// anew for every set of instructions; vectors of 8 floats are the compiler's, which splits them where registers are
// shorter.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "panels.h"

namespace lbk {
namespace {

constexpr int kWidth = 8;

// f(vector, number of values in it) over a row; what lies behind the row's end is zero.
template <class F>
LBK_INLINE inline void each_vector(const float *x, int64_t count, const F &f) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Floats v;
    load(x + i, &v);
    f(v, i, kWidth);
  }
  if (i < count) {
    Floats v = {};
    memcpy(&v, x + i, (count - i) * sizeof(float));
    f(v, i, static_cast<int>(count - i));
  }
}

LBK_INLINE inline void save(const Floats &v, float *y, int count) {
  if (count == kWidth) memcpy(y, &v, sizeof v);
  else memcpy(y, &v, count * sizeof(float));
}

LBK_INLINE inline float total(const Floats &v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

// e^x to float32's precision: 2^n e^r with |r| <= ln 2 / 2, where e^r is its Taylor polynomial of degree 7, whose rest
// is below 6e-9. Below -87.3, where float32 ends, e^-87.3; above 88, e^88.
LBK_INLINE inline void exponential(Floats &x) {
  const Floats low = Floats{} - 87.3f, high = Floats{} + 88.f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Floats n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // nearest integer
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; products with the first are exact
  Floats sum = r * (1 / 5040.f) + 1 / 720.f;
  sum = sum * r + 1 / 120.f;
  sum = sum * r + 1 / 24.f;
  sum = sum * r + 1 / 6.f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.f;
  sum = sum * r + 1.f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  memcpy(&x, &power, sizeof x);
  x *= sum;
}

LBK_INLINE inline void sigmoid(Floats &x) {
  x = -x;
  exponential(x);
  x = 1.f / (1.f + x);
}

inline void layer_norm(const RowCall &c, const float *x, float *y) {
  Floats sums = {};
  each_vector(x, c.cols, [&](const Floats &v, int64_t, int) LBK_INLINE { sums += v; });
  const float mean = total(sums) / c.cols;
  Floats squares = {};
  each_vector(x, c.cols, [&](const Floats &v, int64_t, int count) LBK_INLINE {
    Floats d = v - mean;
    for (int i = count; i < kWidth; ++i) d[i] = 0;
    squares += d * d;
  });
  const float inverse = 1 / sqrtf(total(squares) / c.cols + c.epsilon);
  each_vector(x, c.cols, [&](const Floats &v, int64_t i, int count) LBK_INLINE {
    Floats scale = {}, shift = {};
    memcpy(&scale, c.scale + i, count * sizeof(float));
    memcpy(&shift, c.shift + i, count * sizeof(float));
    save((v - mean) * inverse * scale + shift, y + i, count);
  });
}

inline void swish(const float *x, int64_t cols, float *y) {
  each_vector(x, cols, [&](const Floats &v, int64_t i, int count) LBK_INLINE {
    Floats gate = v;
    sigmoid(gate);
    save(v * gate, y + i, count);
  });
}

inline void glu(const float *x, int64_t cols, float *y) {
  each_vector(x + cols, cols, [&](const Floats &v, int64_t i, int count) LBK_INLINE {
    Floats gate = v, value = {};
    sigmoid(gate);
    memcpy(&value, x + i, count * sizeof(float));
    save(value * gate, y + i, count);
  });
}

inline float maximum(const float *x, int64_t cols) {
  float top = x[0];
  for (int64_t i = 1; i < cols; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// y = e^(x - top), and its sum.
inline float exponentials(const float *x, int64_t cols, float top, float *y) {
  Floats sums = {};
  each_vector(x, cols, [&](const Floats &v, int64_t i, int count) LBK_INLINE {
    Floats e = v - top;
    exponential(e);
    for (int k = count; k < kWidth; ++k) e[k] = 0;
    sums += e;
    if (y) save(e, y + i, count);
  });
  return total(sums);
}

inline void softmax(const float *x, int64_t cols, float *y) {
  const float inverse = 1 / exponentials(x, cols, maximum(x, cols), y);
  for (int64_t i = 0; i < cols; ++i) y[i] *= inverse;
}

inline void log_softmax(const float *x, int64_t cols, float *y) {
  const float top = maximum(x, cols), rest = logf(exponentials(x, cols, top, nullptr));
  for (int64_t i = 0; i < cols; ++i) y[i] = x[i] - top - rest;
}

inline void each_row(const RowCall &c, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float *x = c.x + row * c.cols * (c.kind == kGlu ? 2 : 1);
    float *y = c.y + row * c.cols;
    switch (c.kind) {
      case kLayerNorm: layer_norm(c, x, y); break;
      case kSwish: swish(x, c.cols, y); break;
      case kGlu: glu(x, c.cols, y); break;
      case kSoftmax: softmax(x, c.cols, y); break;
      case kLogSoftmax: log_softmax(x, c.cols, y); break;
    }
  }
}

inline void depthwise(const Depthwise &c, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t shift = t - c.taps / 2;  // of tap 0
    const int64_t first = shift < 0 ? -shift : 0, last = least(c.taps, c.frames - shift);
    each_vector(c.bias, c.channels, [&](const Floats &bias, int64_t i, int count) LBK_INLINE {
      Floats sum = bias, v = {}, w = {};
      for (int64_t j = first; j < last; ++j) {
        const float *x = c.x + (shift + j) * c.channels + i, *weight = c.weight + j * c.channels + i;
        if (count == kWidth) {
          load(x, &v);
          load(weight, &w);
        } else {
          memcpy(&v, x, count * sizeof(float));
          memcpy(&w, weight, count * sizeof(float));
        }
        sum += v * w;
      }
      save(sum, c.y + t * c.channels + i, count);
    });
  }
}

// ---- attention

inline int64_t panels_of(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

// Columns of one head of x (rows, width) as outputs of panels: (panels, size, 16).
inline void pack_rows(const float *x, int64_t rows, int64_t width, int64_t size, float *panels) {
  for (int64_t panel = 0; panel < panels_of(rows); ++panel)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      for (int64_t k = 0; k < size; ++k) {
        const int64_t row = panel * kLanes + lane;
        panels[(panel * size + k) * kLanes + lane] = row < rows ? x[row * width + k] : 0.f;
      }
}

// The same with rows as inputs: (panels of size, rows, 16).
inline void pack_columns(const float *x, int64_t rows, int64_t width, int64_t size, float *panels) {
  for (int64_t panel = 0; panel < panels_of(size); ++panel)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t k = panel * kLanes + lane;
        panels[(panel * rows + row) * kLanes + lane] = k < size ? x[row * width + k] : 0.f;
      }
}

inline void pack_head(const Attention &a, int64_t head) {
  const int64_t width = a.heads * a.size, first = head * a.size, distances = 2 * a.frames - 1;
  pack_rows(a.key + first, a.frames, width, a.size, a.keys + head * panels_of(a.frames) * kLanes * a.size);
  pack_rows(a.position + first, distances, width, a.size, a.positions + head * panels_of(distances) * kLanes * a.size);
  pack_columns(a.value + first, a.frames, width, a.size, a.values + head * panels_of(a.size) * kLanes * a.frames);
}

// Products of R rows x (R, size) with panels begin .. end-1, into rows of `stride`.
template <int R>
inline void multiply_panels(const float *panels, int64_t begin, int64_t end, int64_t size, const float *x,
                            int64_t x_stride, float *y, int64_t stride) {
  for (int64_t panel = begin; panel < end; ++panel) {
    float out[R][kLanes];
    dot_floats<R>(panels + panel * size * kLanes, size, x, x_stride, out);
    for (int r = 0; r < R; ++r) memcpy(y + r * stride + (panel - begin) * kLanes, out[r], sizeof out[r]);
  }
}

// scratch: rows of queries with both biases, of scores by content, of scores by position.
template <int R>
void attend_rows(const Attention &a, int64_t head, int64_t first, float *scratch) {
  const int64_t width = a.heads * a.size, frames = a.frames, distances = 2 * frames - 1;
  const int64_t row = panels_of(frames) * kLanes, long_row = (panels_of(frames) + 3) * kLanes;
  float *with_u = scratch, *with_v = with_u + R * a.size, *scores = with_v + R * a.size, *shifted = scores + R * row;
  const float scale = 1 / sqrtf(static_cast<float>(a.size));
  for (int r = 0; r < R; ++r)
    for (int64_t k = 0; k < a.size; ++k) {
      const float q = a.query[(first + r) * width + head * a.size + k];
      with_u[r * a.size + k] = (q + a.bias_u[head * a.size + k]) * scale;
      with_v[r * a.size + k] = (q + a.bias_v[head * a.size + k]) * scale;
    }
  multiply_panels<R>(a.keys + head * row * a.size, 0, panels_of(frames), a.size, with_u, a.size, scores, row);
  // Query i meets positions frames-1-i .. 2 frames-2-i: those of all R from `from` on.
  const int64_t from = (frames - first - R) / kLanes, to = panels_of(distances - first);
  multiply_panels<R>(a.positions + head * panels_of(distances) * kLanes * a.size, from, to, a.size, with_v, a.size,
                     shifted, long_row);
  for (int r = 0; r < R; ++r) {
    float *score = scores + r * row;
    const float *by_position = shifted + r * long_row + (frames - 1 - first - r) - from * kLanes;
    for (int64_t j = 0; j < frames; ++j) score[j] += by_position[j];
    softmax(score, frames, score);
  }
  for (int64_t panel = 0; panel < panels_of(a.size); ++panel) {
    float out[R][kLanes];
    const float *values = a.values + (head * panels_of(a.size) + panel) * frames * kLanes;
    dot_floats<R>(values, frames, scores, row, out);
    for (int r = 0; r < R; ++r)
      memcpy(a.out + (first + r) * width + head * a.size + panel * kLanes, out[r],
             least(kLanes, a.size - panel * kLanes) * sizeof(float));
  }
}

template <class Isa>
void attend(const Attention &a, int64_t head, int64_t begin, int64_t end) {
  const size_t floats = Isa::kFloatRows * (2 * a.size + (2 * panels_of(a.frames) + 3) * kLanes);
  float *scratch = static_cast<float *>(malloc(floats * sizeof(float)));
  if (!scratch) {
    __atomic_store_n(a.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  each_group<Isa::kFloatRows>(begin, end, [&](auto group, int64_t row) {
    attend_rows<decltype(group)::value>(a, head, row, scratch);
  });
  free(scratch);
}

}  // namespace
}  // namespace lbk
