// The entry of multiplications: checks, slices of rows that fit a cache, and who does what.
#include <algorithm>
#include <cstdlib>

#include "internal.h"

namespace lbk {
namespace {

constexpr int64_t kRowTask = 8;
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

// Rows at a time: prepared, or as they are, they stay in the cache while the panels go by.
int64_t slice_rows(const Kernels &k, const lbk_matrix &w, int mode, int64_t m) {
  const size_t bytes = k.row_bytes(w, mode, m);
  const int64_t row = bytes ? bytes : w.cols * sizeof(float);
  const int64_t rows = std::clamp<int64_t>(k.slice_bytes / row / 12 * 12, 12, kMostRows);
  const int64_t slices = (m + rows - 1) / rows;
  return (m + slices - 1) / slices;
}

}  // namespace
}  // namespace lbk

using namespace lbk;

extern "C" int lbk_matmul(const lbk_matrix *matrix, const float *x, int64_t m, int64_t x_stride, const float *bias,
                          float *y, int64_t y_stride, int32_t add, int32_t mode, int32_t threads) {
  if (!matrix) return fail("no matrix");
  const lbk_matrix &w = *matrix;
  if (mode < LBK_EXACT || mode > LBK_A8) return fail("unknown mode %d", mode);
  if (m < 0 || x_stride < 1 || y_stride < w.rows || threads < 1) return fail("sizes that cannot be");
  if (!m) return 0;
  const Kernels &k = kernels();
  if (needs_floats(w) && !k.rounds_floats) mode = LBK_EXACT;
  const double work = static_cast<double>(m) * w.rows * w.cols;
  threads = static_cast<int32_t>(std::min<double>(threads, 1 + work / kThreadWork));

  const int64_t slice = slice_rows(k, w, mode, m);
  const size_t row_bytes = k.row_bytes(w, mode, slice);
  const int sums = k.sums(w, mode);
  const size_t rows_bytes = row_bytes ? (slice + kMaxGroup) * row_bytes : 0;  // the last group may be a part of one
  const size_t sums_bytes = aligned(slice * w.blocks * sums * sizeof(int32_t));
  const size_t steps_bytes = sums ? aligned(slice * sizeof(float)) : 0;
  const size_t total = rows_bytes + sums_bytes + steps_bytes;
  uint8_t *scratch = total ? static_cast<uint8_t *>(std::aligned_alloc(64, aligned(total))) : nullptr;
  if (total && !scratch) return fail("out of memory");

  const int64_t panel_task = std::max<int64_t>(1, w.panels / (4 * threads));
  for (int64_t row = 0; row < m; row += slice) {
    const int64_t rows = std::min(slice, m - row);
    Phase phase{&k, {}, 0, 0};
    phase.call = {&w, mode, rows, slice, x + row * x_stride, x_stride, bias, y + row * y_stride, y_stride, scratch,
                  row_bytes, reinterpret_cast<float *>(scratch + rows_bytes + sums_bytes),
                  reinterpret_cast<int32_t *>(scratch + rows_bytes), add != 0};
    if (row_bytes) run(phase, rows, kRowTask, threads, prepare);
    run(phase, w.panels, panel_task, threads, multiply);
  }
  std::free(scratch);
  return 0;
}
