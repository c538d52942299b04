// The recurrent part of an LSTM layer: a product with the packed matrix and the gates, frame by frame.
#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace lbk {
namespace {

// e^x to 2 units in the last place; loops of it become SIMD.
inline float power_of_e(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // its last bits are the nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits += static_cast<int32_t>(n) * (1 << 23);
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + power_of_e(-x)); }
inline float hyperbolic_tangent(float x) { return 2.0f / (1.0f + power_of_e(-2.0f * x)) - 1.0f; }

// gates (4, cells): i, f, g, o. out (cells,): before a projection.
void cell(const float *__restrict gates, int64_t cells, float *__restrict c, float *__restrict out) {
  for (int64_t k = 0; k < cells; ++k) {
    const float i = sigmoid(gates[k]);
    const float f = sigmoid(gates[cells + k]);
    const float g = hyperbolic_tangent(gates[2 * cells + k]);
    c[k] = f * c[k] + i * g;
  }
  for (int64_t k = 0; k < cells; ++k)
    out[k] = sigmoid(gates[3 * cells + k]) * hyperbolic_tangent(c[k]);
}

}  // namespace
}  // namespace lbk

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
  int failed = 0;
  for (int64_t t = 0; t < frames && !failed; ++t, gates += streams * 4 * cells, out += streams * width) {
    failed = lbk_matmul(hidden, h, streams, width, nullptr, gates, 4 * cells, 1, mode, threads);
    for (int64_t n = 0; n < streams && !failed; ++n) cell(gates + n * 4 * cells, cells, c + n * cells, inner + n * cells);
    if (projection && !failed)
      failed = lbk_matmul(projection, inner, streams, cells, nullptr, h, width, 0, mode, threads);
    std::memcpy(out, h, streams * width * sizeof(float));
  }
  if (projection) std::free(inner);
  return failed;
}
