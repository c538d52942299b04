// What an encoder does beside its matrices: norms, activations, attention, depthwise convolution. Like panels.h, compiled
// anew for every set of instructions; vectors are the compiler's, of a register.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "panels.h"

namespace lbk {
namespace {

#if defined(__AVX512F__)
constexpr int kProductRows = 12, kProductPanels = 2;  // 24 sums in 32 registers
#elif defined(__AVX__)
constexpr int kProductRows = 6, kProductPanels = 1;  // 12 in 16
#elif defined(__aarch64__)
constexpr int kProductRows = 6, kProductPanels = 1;  // 24 in 32
#else
constexpr int kProductRows = 3, kProductPanels = 1;  // 12 in 16
#endif
constexpr int kFramesAtOnce = 8;  // of the depthwise convolution

// Of RowCall: kAddNorm has a sum, to which factor x is added first.
inline void layer_norm(const RowCall &c, const float *x, float *sum, float *y) {
  Vector sums = {};
  each_vector(c.cols, [&](int64_t i, int count) LBK_INLINE {
    Vector v = read(x + i, count);
    if (sum) {
      v = c.factor * v + read(sum + i, count);
      write(v, sum + i, count);
    }
    sums += v;
  });
  if (sum) x = sum;
  const float mean = total(sums) / c.cols;
  Vector squares = {};
  each_vector(c.cols, [&](int64_t i, int count) LBK_INLINE {
    const Vector d = first(read(x + i, count) - mean, count);
    squares += d * d;
  });
  const float inverse = 1 / sqrtf(total(squares) / c.cols + c.epsilon);
  each_vector(c.cols, [&](int64_t i, int count) LBK_INLINE {
    const Vector d = (read(x + i, count) - mean) * inverse;
    write(d * read(c.scale + i, count) + read(c.shift + i, count), y + i, count);
  });
}

inline void swish(const float *x, int64_t cols, float *y) {
  each_vector(cols, [&](int64_t i, int count) LBK_INLINE {
    const Vector v = read(x + i, count);
    write(v * sigmoid(v), y + i, count);
  });
}

inline void glu(const float *x, int64_t cols, float *y) {
  each_vector(cols, [&](int64_t i, int count) LBK_INLINE {
    write(read(x + i, count) * sigmoid(read(x + cols + i, count)), y + i, count);
  });
}

inline float maximum(const float *x, int64_t cols) {
  Vector tops = Vector{} + x[0];
  each_vector(cols, [&](int64_t i, int count) LBK_INLINE {
    Vector v = read(x + i, count);
    for (int k = count; k < kWidth; ++k) v[k] = x[0];
    tops = larger(v, tops);
  });
  return maximum(tops);
}

// y = e^(x - top), and its sum.
inline float exponentials(const float *x, int64_t cols, float top, float *y) {
  Vector sums = {};
  each_vector(cols, [&](int64_t i, int count) LBK_INLINE {
    const Vector e = first(exponential(read(x + i, count) - top), count);
    sums += e;
    if (y) write(e, y + i, count);
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
      case kLayerNorm: layer_norm(c, x, nullptr, y); break;
      case kAddNorm: layer_norm(c, x, c.sum + row * c.cols, y); break;
      case kSwish: swish(x, c.cols, y); break;
      case kGlu: glu(x, c.cols, y); break;
      case kSoftmax: softmax(x, c.cols, y); break;
      case kLogSoftmax: log_softmax(x, c.cols, y); break;
    }
  }
}

// ---- LSTMs

// gates (4, cells): i, f, g, o. c (cells,) becomes f c + i tanh(g); out (cells,): o tanh(c).
inline void cell(const float *gates, int64_t cells, float *c, float *out) {
  each_vector(cells, [&](int64_t i, int count) LBK_INLINE {
    const auto gate = [&](int which) LBK_INLINE { return read(gates + which * cells + i, count); };
    const Vector kept = sigmoid(gate(1)) * read(c + i, count);
    const Vector now = kept + sigmoid(gate(0)) * hyperbolic_tangent(gate(2));
    write(now, c + i, count);
    write(sigmoid(gate(3)) * hyperbolic_tangent(now), out + i, count);
  });
}

// ---- convolutions

// R frames from t on, taps first .. last-1, of which all have their frame.
template <int R>
inline void depthwise_rows(const Depthwise &c, int64_t t, int64_t first, int64_t last) {
  const int64_t shift = t - c.taps / 2;
  each_vector(c.channels, [&](int64_t i, int count) LBK_INLINE {
    const auto sum_up = [&](int of) LBK_INLINE {  // written out for whole vectors, whose loads then are plain
      Vector sums[R];
      times<R>([&](auto r) LBK_INLINE { sums[r] = read(c.bias + i, of); });
      const float *x = c.x + (shift + first) * c.channels + i, *weight = c.weight + first * c.channels + i;
      for (int64_t j = first; j < last; ++j, x += c.channels, weight += c.channels) {
        const Vector w = read(weight, of);
        times<R>([&](auto r) LBK_INLINE { sums[r] += w * read(x + r * c.channels, of); });
      }
      times<R>([&](auto r) LBK_INLINE {
        if (c.swish) sums[r] *= sigmoid(sums[r]);
        write(sums[r], c.y + (t + r) * c.channels + i, of);
      });
    };
    if (count == kWidth) sum_up(kWidth);
    else sum_up(count);
  });
}

inline void depthwise(const Depthwise &c, int64_t begin, int64_t end) {
  const int64_t half = c.taps / 2, inside = c.frames - (c.taps - 1 - half);  // frames half .. inside-1 have all taps
  for (int64_t t = begin; t < end;) {
    if (t >= half && t + kFramesAtOnce <= least(inside, end)) {
      depthwise_rows<kFramesAtOnce>(c, t, 0, c.taps);
      t += kFramesAtOnce;
      continue;
    }
    depthwise_rows<1>(c, t, t < half ? half - t : 0, least(c.taps, c.frames - t + half));
    ++t;
  }
}

// One band of one output: 3 x 3 inputs times a filter for each channel.
inline void convolve(const Convolution &c, int64_t begin, int64_t end) {
  const int64_t bands = (c.bands - 1) / 2;
  for (int64_t t = begin; t < end; ++t) {
    float *y = c.y + t * c.y_stride;
    for (int64_t f = 0; f < bands; ++f, y += c.channels) {
      float x[9];
      for (int i = 0; i < 3; ++i) memcpy(x + 3 * i, c.x + t * c.x_stride + i * c.bands + 2 * f, 3 * sizeof(float));
      each_vector(c.channels, [&](int64_t i, int count) LBK_INLINE {
        Vector sum = read(c.bias + i, count);
        for (int j = 0; j < 9; ++j) sum += x[j] * read(c.weight + j * c.channels + i, count);
        write(larger(Vector{}, sum), y + i, count);
      });
    }
  }
}

// ---- attention

inline int64_t panels_of(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

#if defined(__AVX512F__)
// 16 rows of 16 floats, x_stride apart, to columns behind each other.
inline void transpose(const float *x, int64_t x_stride, float *y) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(x + i * x_stride);
  for (int i = 0; i < 16; i += 2) {  // each step merges pairs of rows, then pairs of those
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {
      const __m512d low = _mm512_castps_pd(b[i + k]), high = _mm512_castps_pd(b[i + k + 2]);
      a[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int i = 0; i < 16; i += 8)
    for (int k = 0; k < 4; ++k) {
      b[i + k] = _mm512_shuffle_f32x4(a[i + k], a[i + k + 4], 0x88);
      b[i + k + 4] = _mm512_shuffle_f32x4(a[i + k], a[i + k + 4], 0xdd);
    }
  for (int k = 0; k < 8; ++k) {
    _mm512_storeu_ps(y + k * 16, _mm512_shuffle_f32x4(b[k], b[k + 8], 0x88));
    _mm512_storeu_ps(y + (k + 8) * 16, _mm512_shuffle_f32x4(b[k], b[k + 8], 0xdd));
  }
}
#endif

// Columns of one head of x (rows, width) as outputs of panels: (panels, depth, 16), zeros behind `size`.
inline void pack_rows(const float *x, int64_t rows, int64_t width, int64_t size, int64_t depth, float *panels) {
  for (int64_t panel = 0; panel < panels_of(rows); ++panel) {
    const float *from = x + panel * kLanes * width;
    float *to = panels + panel * depth * kLanes;
    int64_t k = 0;
#if defined(__AVX512F__)
    if ((panel + 1) * kLanes <= rows)
      for (; k + kLanes <= size; k += kLanes) transpose(from + k, width, to + k * kLanes);
#endif
    for (int64_t lane = 0; lane < kLanes; ++lane)
      for (int64_t i = k; i < size; ++i)
        to[i * kLanes + lane] = panel * kLanes + lane < rows ? from[lane * width + i] : 0.f;
    memset(to + size * kLanes, 0, (depth - size) * kLanes * sizeof(float));
  }
}

// The same with rows as inputs: (panels of size, depth, 16), zeros behind `rows`.
inline void pack_columns(const float *x, int64_t rows, int64_t width, int64_t size, int64_t depth, float *panels) {
  for (int64_t panel = 0; panel < panels_of(size); ++panel, panels += depth * kLanes) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t k = panel * kLanes + lane;
        panels[row * kLanes + lane] = k < size ? x[row * width + k] : 0.f;
      }
    memset(panels + rows * kLanes, 0, (depth - rows) * kLanes * sizeof(float));
  }
}

inline void pack_head(const Attention &a, int64_t head) {
  const int64_t width = a.heads * a.size, first = head * a.size, distances = 2 * a.frames - 1;
  const int64_t panel = a.depth * kLanes, value_panel = a.value_depth * kLanes;
  pack_rows(a.key + first, a.frames, width, a.size, a.depth, a.keys + head * panels_of(a.frames) * panel);
  pack_rows(a.position + first, distances, width, a.size, a.depth, a.positions + head * panels_of(distances) * panel);
  pack_columns(a.value + first, a.frames, width, a.size, a.value_depth, a.values + head * panels_of(a.size) * value_panel);
}

// Products of R rows x (R, count) with P panels of (count, 16), in registers throughout.
template <int R, int P>
LBK_INLINE inline void product(const float *panels, int64_t panel_stride, int64_t count, const float *x,
                               int64_t x_stride, float *y, int64_t y_stride, int last_lanes) {
  constexpr int kVectors = P * kLanes / kWidth, kOfPanel = kLanes / kWidth;
  Vector sums[R][kVectors];
  times<R>([&](auto r) LBK_INLINE { times<kVectors>([&](auto v) LBK_INLINE { sums[r][v] = Vector{}; }); });
  for (int64_t k = 0; k < count; ++k) {
    Vector w[kVectors];
    times<kVectors>([&](auto v) LBK_INLINE {
      w[v] = read(panels + v / kOfPanel * panel_stride + k * kLanes + v % kOfPanel * kWidth);
    });
    times<R>([&](auto r) LBK_INLINE {
      const float value = x[r * x_stride + k];
      times<kVectors>([&](auto v) LBK_INLINE { sums[r][v] += w[v] * value; });
    });
  }
  times<R>([&](auto r) LBK_INLINE { times<kVectors>([&](auto v) LBK_INLINE {
    const int64_t place = v * kWidth, lanes = (P - 1) * kLanes + last_lanes - place;
    if (lanes > 0) write(sums[r][v], y + r * y_stride + place, lanes < kWidth ? static_cast<int>(lanes) : kWidth);
  }); });
}

// The same with all panels; only `lanes` values of a row are written.
template <int R>
__attribute__((noinline)) void multiply_panels(const float *panels, int64_t count, int64_t lanes, const float *x,
                                               int64_t x_stride, float *y, int64_t y_stride) {
  const int64_t panel = count * kLanes;
  for (; lanes > (kProductPanels - 1) * kLanes; lanes -= kProductPanels * kLanes) {
    const int last = static_cast<int>(least(kLanes, lanes - (kProductPanels - 1) * kLanes));
    product<R, kProductPanels>(panels, panel, count, x, x_stride, y, y_stride, last);
    panels += kProductPanels * panel;
    y += kProductPanels * kLanes;
  }
  if constexpr (kProductPanels > 1) {
    if (lanes > 0) product<R, 1>(panels, panel, count, x, x_stride, y, y_stride, static_cast<int>(lanes));
  }
}

// Products of rows x (rows, inputs) with a matrix of floats in panels, by the kernels of matrices.
inline void multiply_by_kernels(const Attention &a, float *panels, int64_t outputs, int64_t inputs, int64_t depth,
                                const float *x, int64_t x_stride, int64_t rows, uint8_t *prepared, float *y,
                                int64_t y_stride) {
  lbk_matrix w = {};
  w.rows = outputs, w.cols = inputs, w.panels = panels_of(outputs), w.blocks = depth / kBlock;
  w.bits = 32, w.mult = 1, w.granularity = LBK_TENSOR;
  w.lines = reinterpret_cast<uint8_t *>(panels), w.steps = const_cast<float *>(kOnes.of);
  const size_t row_bytes = a.kernels->row_bytes(w, a.mode, rows);
  const Call call{&w, a.mode, rows, rows, x, x_stride, nullptr, y, y_stride, prepared, row_bytes, nullptr, nullptr, false,
                  kAsItIs};
  if (row_bytes) a.kernels->prepare(call, 0, rows);
  a.kernels->multiply(call, 0, w.panels);
}

// Where the queries of a task find their memory: with both biases, and what they score by content and by position.
struct Scores {
  int64_t row, long_row;  // floats from one query to the next
  float *with_u, *with_v, *by_content, *by_position;
  uint8_t *prepared;

  // Of positions up to a panel more than queries meet, at either end.
  Scores(const Attention &a, int64_t queries)
      : row(panels_of(a.frames) * kLanes), long_row(panels_of(a.frames + queries + kLanes) * kLanes) {
    const int64_t sizes = queries * a.size, floats = 2 * sizes + queries * (row + long_row);
    const size_t before = (floats * sizeof(float) + 63) / 64 * 64;
    const int64_t most = a.depth > a.value_depth ? a.depth : a.value_depth;
    // of any kernel: two parts of 2 bytes an input, or 4 bytes
    const size_t rows = a.kernels ? (queries + kMaxGroup) * most * 4 : 0;
    with_u = static_cast<float *>(aligned_alloc(64, before + (rows + 63) / 64 * 64));
    with_v = with_u + sizes, by_content = with_v + sizes, by_position = by_content + queries * row;
    prepared = reinterpret_cast<uint8_t *>(with_u) + before;
  }
  ~Scores() { free(with_u); }
};

// score = e^(score + by_position - the largest of these), and 1 / their sum.
inline float weights_of(float *score, const float *by_position, int64_t frames) {
  Vector tops = Vector{} + (score[0] + by_position[0]);
  each_vector(frames, [&](int64_t j, int count) LBK_INLINE {
    Vector v = read(score + j, count) + read(by_position + j, count);
    write(v, score + j, count);
    for (int k = count; k < kWidth; ++k) v[k] = tops[0];
    tops = larger(v, tops);
  });
  return 1 / exponentials(score, frames, maximum(tops), score);
}

// R queries by the loops above; 0: so many by the kernels of matrices.
template <int R>
void attend_rows(const Attention &a, int64_t head, int64_t first_row, int64_t rows, const Scores &s) {
  const int64_t width = a.heads * a.size, frames = a.frames, distances = 2 * frames - 1;
  const float scale = 1 / sqrtf(static_cast<float>(a.size));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < a.size; ++k) {
      const float q = a.query[(first_row + r) * width + head * a.size + k];
      s.with_u[r * a.size + k] = (q + a.bias_u[head * a.size + k]) * scale;
      s.with_v[r * a.size + k] = (q + a.bias_v[head * a.size + k]) * scale;
    }
  const auto multiply = [&](float *panels, int64_t outputs, int64_t inputs, int64_t depth, const float *x,
                            int64_t x_stride, float *y, int64_t y_stride) LBK_INLINE {
    if constexpr (R > 0) multiply_panels<R>(panels, inputs, outputs, x, x_stride, y, y_stride);
    else multiply_by_kernels(a, panels, outputs, inputs, depth, x, x_stride, rows, s.prepared, y, y_stride);
  };
  float *keys = a.keys + head * panels_of(frames) * kLanes * a.depth;
  multiply(keys, frames, a.size, a.depth, s.with_u, a.size, s.by_content, s.row);
  // Query i meets positions frames-1-i .. 2 frames-2-i: those of all from panel `from` on.
  const int64_t from = (frames - first_row - rows) / kLanes, to = panels_of(distances - first_row);
  float *positions = a.positions + (head * panels_of(distances) + from) * kLanes * a.depth;
  multiply(positions, (to - from) * kLanes, a.size, a.depth, s.with_v, a.size, s.by_position, s.long_row);
  float *out = a.out + first_row * width + head * a.size;
  float inverse[R > 0 ? R : kMatrixQueries];
  for (int64_t r = 0; r < rows; ++r)
    inverse[r] = weights_of(s.by_content + r * s.row,
                            s.by_position + r * s.long_row + (frames - 1 - first_row - r) - from * kLanes, frames);
  float *values = a.values + head * panels_of(a.size) * kLanes * a.value_depth;
  multiply(values, a.size, frames, a.value_depth, s.by_content, s.row, out, width);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < a.size; ++k) out[r * width + k] *= inverse[r];
}

inline void attend(const Attention &a, int64_t head, int64_t begin, int64_t end) {
  const Scores scores(a, a.kernels ? end - begin : kProductRows);
  if (!scores.with_u) {
    __atomic_store_n(a.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  if (a.kernels) return attend_rows<0>(a, head, begin, end - begin, scores);
  each_group<kProductRows>(begin, end, [&](auto group, int64_t row) {
    constexpr int R = decltype(group)::value;
    attend_rows<R>(a, head, row, R, scores);
  });
}

}  // namespace
}  // namespace lbk
