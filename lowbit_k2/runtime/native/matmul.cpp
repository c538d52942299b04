// The entry of multiplications: checks, slices of rows that fit a cache, and who does what.
#include <algorithm>
#include <cstdlib>

#include "internal.h"

namespace lbk {
namespace {

constexpr int64_t kRowTask = 8;
constexpr int64_t kHiddenBytes = 768 << 10;  // of a feed-forward module's inner numbers, which stay in the cache
constexpr double kThreadWork = 1 << 20;  // products that are worth a thread

struct Phase {
  const Kernels *kernels;
  Call call;
  int64_t size, grain;
};

void prepare(void *context, int64_t index) {
  const Phase &p = *static_cast<Phase *>(context);
  p.kernels->prepare(p.call, index * p.grain, std::min(p.size, (index + 1) * p.grain));
}

void multiply(void *context, int64_t index) {
  const Phase &p = *static_cast<Phase *>(context);
  p.kernels->multiply(p.call, index * p.grain, std::min(p.size, (index + 1) * p.grain));
}

void run(Phase phase, int64_t size, int64_t grain, int threads, void (*task)(void *, int64_t)) {
  phase.size = size;
  phase.grain = grain;
  parallel((size + grain - 1) / grain, threads, task, &phase);
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Products of many rows with one matrix, a slice of them at a time: prepared, or as they are, they stay in the cache while
// the panels go by.
struct Product {
  const Kernels &k;
  const lbk_matrix &w;
  int mode, threads;
  int64_t slice = 0;
  size_t row_bytes = 0, rows_bytes = 0, sums_bytes = 0, steps_bytes = 0;

  Product(const lbk_matrix &matrix, int64_t m, int asked_mode, int most_threads)
      : k(kernels()), w(matrix), mode(w.bits > 8 && !k.rounds_floats ? LBK_EXACT : asked_mode) {
    const double work = static_cast<double>(m) * w.rows * w.cols;
    threads = static_cast<int>(std::min<double>(most_threads, 1 + work / kThreadWork));
    const size_t bytes = k.row_bytes(w, mode, m);
    const int64_t row = bytes ? bytes : w.cols * sizeof(float);
    take(m, std::clamp<int64_t>(k.slice_bytes / row / 12 * 12, 12, kMostRows));
  }

  // Slices of at most so many of the m rows, all of about the same size.
  void take(int64_t m, int64_t most) {
    const int64_t slices = (m + most - 1) / most;
    slice = (m + slices - 1) / slices;
    const int sums = k.sums(w, mode);
    row_bytes = k.row_bytes(w, mode, slice);
    rows_bytes = row_bytes ? (slice + kMaxGroup) * row_bytes : 0;  // the last group may be a part of one
    sums_bytes = aligned(slice * w.blocks * sums * sizeof(int32_t));
    steps_bytes = sums ? aligned(slice * sizeof(float)) : 0;
  }

  size_t scratch_bytes() const { return rows_bytes + sums_bytes + steps_bytes; }

  void multiply_slice(const float *x, int64_t rows, int64_t x_stride, const float *bias, float *y, int64_t y_stride,
                      bool add, int activation, uint8_t *scratch) const {
    Phase phase{&k, {}, 0, 0};
    phase.call = {&w, mode, rows, slice, x, x_stride, bias, y, y_stride, scratch, row_bytes,
                  reinterpret_cast<float *>(scratch + rows_bytes + sums_bytes),
                  reinterpret_cast<int32_t *>(scratch + rows_bytes), add, activation};
    if (row_bytes) run(phase, rows, kRowTask, threads, prepare);
    run(phase, w.panels, std::max<int64_t>(1, w.panels / (4 * threads)), threads, multiply);
  }
};

bool allocate(size_t bytes, uint8_t **scratch) {
  *scratch = bytes ? static_cast<uint8_t *>(std::aligned_alloc(64, aligned(bytes))) : nullptr;
  return *scratch || !bytes;
}

}  // namespace
}  // namespace lbk

using namespace lbk;

extern "C" {

int lbk_matmul(const lbk_matrix *matrix, const float *x, int64_t m, int64_t x_stride, const float *bias, float *y,
               int64_t y_stride, int32_t add, int32_t mode, int32_t threads) {
  if (!matrix) return fail("no matrix");
  if (mode < LBK_EXACT || mode > LBK_A8) return fail("unknown mode %d", mode);
  if (m < 0 || x_stride < 1 || y_stride < matrix->rows || threads < 1) return fail("sizes that cannot be");
  if (!m) return 0;
  const Product product(*matrix, m, mode, threads);
  uint8_t *scratch;
  if (!allocate(product.scratch_bytes(), &scratch)) return fail("out of memory");
  for (int64_t row = 0; row < m; row += product.slice)
    product.multiply_slice(x + row * x_stride, std::min(product.slice, m - row), x_stride, bias, y + row * y_stride,
                           y_stride, add != 0, kAsItIs, scratch);
  std::free(scratch);
  return 0;
}

int lbk_feed_forward(const lbk_matrix *first, const float *first_bias, int32_t activation, const lbk_matrix *second,
                     const float *second_bias, const float *x, int64_t m, float *y, int32_t add, int32_t mode,
                     int32_t threads) {
  if (!first || !second) return fail("no matrix");
  if (mode < LBK_EXACT || mode > LBK_A8) return fail("unknown mode %d", mode);
  if (activation != LBK_RELU && activation != LBK_SWISH) return fail("unknown activation %d", activation);
  if (m < 0 || first->rows != second->cols || threads < 1) return fail("sizes that cannot be");
  if (!m) return 0;
  Product up(*first, m, mode, threads), down(*second, m, mode, threads);
  const int64_t width = first->rows;
  const int64_t most = std::max<int64_t>(kRowTask, kHiddenBytes / (width * static_cast<int64_t>(sizeof(float))));
  const int64_t slice = std::min(most, std::min(up.slice, down.slice));
  up.take(m, slice);
  down.take(m, slice);
  const size_t hidden_bytes = aligned(slice * width * sizeof(float));
  uint8_t *scratch;
  if (!allocate(hidden_bytes + std::max(up.scratch_bytes(), down.scratch_bytes()), &scratch)) return fail("out of memory");
  float *hidden = reinterpret_cast<float *>(scratch);
  for (int64_t row = 0; row < m; row += up.slice) {
    const int64_t rows = std::min(up.slice, m - row);
    up.multiply_slice(x + row * first->cols, rows, first->cols, first_bias, hidden, width, false, activation,
                      scratch + hidden_bytes);
    down.multiply_slice(hidden, rows, width, second_bias, y + row * second->rows, second->rows, add != 0, kAsItIs,
                        scratch + hidden_bytes);
  }
  std::free(scratch);
  return 0;
}
}
