// Entries of the parts of an encoder that are no matrices: checks, and who does what.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace lbk {
namespace {

constexpr int64_t kNumbersTask = 1 << 14;  // of a task of rows

template <class Body>
void run(int64_t tasks, int threads, Body body) {
  parallel(tasks, threads, [](void *context, int64_t index) { (*static_cast<Body *>(context))(index); }, &body);
}

// Ranges of about as many numbers as are worth a thread's while.
template <class Body>
void run_rows(int64_t rows, int64_t cols, int threads, Body body) {
  const int64_t grain = std::max<int64_t>(1, kNumbersTask / cols);
  run((rows + grain - 1) / grain, threads, [&](int64_t i) { body(i * grain, std::min(rows, (i + 1) * grain)); });
}

int run_call(const RowCall &call, int64_t rows, int threads) {
  if (rows < 0 || call.cols < 1 || threads < 1) return fail("sizes that cannot be");
  const Layers &k = layers();
  run_rows(rows, call.cols, threads, [&](int64_t begin, int64_t end) { k.rows(call, begin, end); });
  return 0;
}

int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

}  // namespace
}  // namespace lbk

using namespace lbk;

extern "C" {

int lbk_layer_norm(const float *x, int64_t rows, int64_t cols, const float *scale, const float *shift, float epsilon,
                   float *y, int32_t threads) {
  return run_call({kLayerNorm, x, y, cols, scale, shift, epsilon, nullptr, 0}, rows, threads);
}

int lbk_add_norm(float *sum, const float *x, float factor, int64_t rows, int64_t cols, const float *scale,
                 const float *shift, float epsilon, float *y, int32_t threads) {
  return run_call({kAddNorm, x, y, cols, scale, shift, epsilon, sum, factor}, rows, threads);
}

int lbk_swish(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads) {
  return run_call({kSwish, x, y, cols, nullptr, nullptr, 0, nullptr, 0}, rows, threads);
}

int lbk_glu(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads) {
  return run_call({kGlu, x, y, cols, nullptr, nullptr, 0, nullptr, 0}, rows, threads);
}

int lbk_softmax(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads) {
  return run_call({kSoftmax, x, y, cols, nullptr, nullptr, 0, nullptr, 0}, rows, threads);
}

int lbk_log_softmax(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads) {
  return run_call({kLogSoftmax, x, y, cols, nullptr, nullptr, 0, nullptr, 0}, rows, threads);
}

int lbk_depthwise(const float *x, int64_t frames, int64_t channels, const float *weight, int64_t taps,
                  const float *bias, int32_t swish, float *y, int32_t threads) {
  if (frames < 0 || channels < 1 || taps < 1 || threads < 1) return fail("sizes that cannot be");
  const Layers &k = layers();
  const Depthwise call{x, weight, bias, y, frames, channels, taps, swish != 0};
  run_rows(frames, channels * taps / 4 + 1, threads, [&](int64_t begin, int64_t end) { k.depthwise(call, begin, end); });
  return 0;
}

int lbk_convolve(const float *x, int64_t x_stride, int64_t frames, int64_t bands, const float *weight, const float *bias,
                 int64_t channels, float *y, int64_t y_stride, int32_t threads) {
  const int64_t width = (bands - 1) / 2 * channels;
  if (frames < 0 || bands < 3 || channels < 1 || x_stride < 1 || y_stride < width || threads < 1)
    return fail("sizes that cannot be");
  const Layers &k = layers();
  const Convolution call{x, weight, bias, y, x_stride, y_stride, bands, channels};
  run_rows(frames, width, threads, [&](int64_t begin, int64_t end) { k.convolve(call, begin, end); });
  return 0;
}

int lbk_patches(const float *x, int64_t frames, int64_t bands, int64_t channels, int64_t begin, int64_t end,
                int32_t by_channel, float *y) {
  if (channels < 1 || bands < 3 || begin < 0 || begin > end || 2 * end + 1 > frames) return fail("sizes that cannot be");
  const int64_t width = 3 * channels;  // three bands side by side
  for (int64_t t = begin; t < end; ++t)
    for (int64_t f = 0; f < (bands - 1) / 2; ++f, y += 3 * width)
      for (int64_t i = 0; i < 3; ++i) {
        const float *from = x + ((2 * t + i) * bands + 2 * f) * channels;
        if (!by_channel) std::memcpy(y + i * width, from, width * sizeof(float));
        for (int64_t j = 0; by_channel && j < 3; ++j)
          for (int64_t c = 0; c < channels; ++c) y[9 * c + 3 * i + j] = from[j * channels + c];
      }
  return 0;
}

int lbk_attention(const float *query, const float *key, const float *value, const float *position, const float *u,
                  const float *v, int64_t frames, int64_t heads, int64_t size, float *out, int32_t mode, int32_t threads) {
  if (frames < 0 || heads < 1 || size < 1 || threads < 1) return fail("sizes that cannot be");
  if (mode < LBK_EXACT || mode > LBK_A8) return fail("unknown mode %d", mode);
  if (!frames) return 0;
  const Kernels *by_kernels = kernels().rounds_floats && mode != LBK_EXACT ? &kernels() : nullptr;
  const int64_t unit = by_kernels ? kBlock : 1, queries = by_kernels ? kMatrixQueries : kQueries;
  const int64_t depth = padded(size, unit), value_depth = padded(frames, unit);
  const size_t keys = heads * padded(frames, kLanes) * depth, positions = heads * padded(2 * frames - 1, kLanes) * depth;
  const size_t values = heads * padded(size, kLanes) * value_depth;
  float *panels = static_cast<float *>(std::aligned_alloc(64, padded((keys + positions + values) * sizeof(float), 64)));
  if (!panels) return fail("out of memory");
  int failed = 0;
  const Attention a{query,  key,   value, position, u,           v,          out,  frames, heads, size, panels,
                    panels + keys, panels + keys + positions, depth, value_depth, by_kernels, mode, &failed};
  const Layers &k = layers();
  run(heads, threads, [&](int64_t head) { k.pack_head(a, head); });
  const int64_t parts = (frames + queries - 1) / queries;
  run(heads * parts, threads, [&](int64_t i) {
    const int64_t begin = i % parts * queries;
    k.attend(a, i / parts, begin, std::min(frames, begin + queries));
  });
  std::free(panels);
  return failed ? fail("out of memory") : 0;
}
}
