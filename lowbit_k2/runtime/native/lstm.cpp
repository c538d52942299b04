// The recurrent part of an LSTM layer: a product with the packed matrix and the gates, frame by frame.
#include <cstdlib>
#include <cstring>

#include "internal.h"

using namespace lbk;

extern "C" int lbk_lstm(const lbk_matrix *hidden, const lbk_matrix *projection, float *gates, int64_t frames,
                        int64_t streams, float *h, float *c, float *out, int32_t mode, int32_t threads) {
  if (!hidden) return fail("no matrix");
  const int64_t cells = hidden->rows / 4, width = hidden->cols;
  const bool fits = projection ? projection->rows == width && projection->cols == cells : width == cells;
  if (hidden->rows % 4 || !fits || frames < 0 || streams < 0 || threads < 1) return fail("sizes that cannot be");
  if (!frames || !streams) return 0;
  float *inner = projection ? static_cast<float *>(std::malloc(streams * cells * sizeof(float))) : h;
  if (!inner) return fail("out of memory");
  const Layers &k = layers();
  int failed = 0;
  for (int64_t t = 0; t < frames && !failed; ++t, gates += streams * 4 * cells, out += streams * width) {
    failed = lbk_matmul(hidden, h, streams, width, nullptr, gates, 4 * cells, 1, mode, threads);
    for (int64_t n = 0; n < streams && !failed; ++n) k.cell(gates + n * 4 * cells, cells, c + n * cells, inner + n * cells);
    if (projection && !failed)
      failed = lbk_matmul(projection, inner, streams, cells, nullptr, h, width, 0, mode, threads);
    std::memcpy(out, h, streams * width * sizeof(float));
  }
  if (projection) std::free(inner);
  return failed;
}
