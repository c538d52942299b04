// Vectors of a register, of the compiler's, and the functions that activations are made of. Like panels.h, compiled anew for
// every set of instructions.
#pragma once

#include <string.h>

#include "internal.h"
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace lbk {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // wider ones than a register would live on the stack
#endif
constexpr int kWidth = kVectorBytes / 4, kVectors = kLanes / kWidth;  // numbers of a vector; vectors of a panel's 16
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Naturals __attribute__((vector_size(kVectorBytes)));

#define LBK_INLINE __attribute__((always_inline))


LBK_INLINE inline Vector read(const float *x) {
  Vector v;
  memcpy(&v, x, sizeof v);
  return v;
}

// What lies behind `count` values is zero.
LBK_INLINE inline Vector read(const float *x, int count) {
  if (count == kWidth) return read(x);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps((1u << count) - 1, x);
#else
  Vector v = {};
  memcpy(&v, x, count * sizeof(float));
  return v;
#endif
}

LBK_INLINE inline void write(const Vector &v, float *y, int count = kWidth) {
  if (count == kWidth) {
    memcpy(y, &v, sizeof v);
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(y, (1u << count) - 1, v);
#else
  memcpy(y, &v, count * sizeof(float));
#endif
}

// f(place, number of values there) over a row.
template <class F>
LBK_INLINE inline void each_vector(int64_t count, const F &f) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) f(i, kWidth);
  if (i < count) f(i, static_cast<int>(count - i));
}

// Zero from `count` on.
LBK_INLINE inline Vector first(Vector v, int count) {
  for (int i = count; i < kWidth; ++i) v[i] = 0;
  return v;
}

LBK_INLINE inline float total(const Vector &v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float sum = 0;
  for (int i = 0; i < kWidth / 4; ++i) sum += (v[4 * i] + v[4 * i + 1]) + (v[4 * i + 2] + v[4 * i + 3]);
  return sum;
#endif
}

LBK_INLINE inline float maximum(const Vector &v) {
  float top = v[0];
  for (int i = 1; i < kWidth; ++i) top = v[i] > top ? v[i] : top;
  return top;
}

// e^x to float32's precision: 2^n e^r with |r| <= ln 2 / 2, where e^r is its Taylor polynomial of degree 7, whose rest
// is below 6e-9. Below -87.3, where float32 ends, e^-87.3; above 88, e^88.
LBK_INLINE inline Vector exponential(Vector x) {
  const Vector low = Vector{} - 87.3f, high = Vector{} + 88.f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vector n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // nearest integer
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; products with the first are exact
  Vector sum = r * (1 / 5040.f) + 1 / 720.f;
  sum = sum * r + 1 / 120.f;
  sum = sum * r + 1 / 24.f;
  sum = sum * r + 1 / 6.f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.f;
  sum = sum * r + 1.f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector factor;
  memcpy(&factor, &power, sizeof factor);
  return sum * factor;
}

// 1 / x of x from 1 to 2^127, to a unit in the last place.
LBK_INLINE inline Vector reciprocal(const Vector &x) {
#if defined(__AVX512F__)
  const Vector guess = _mm512_rcp14_ps(x);  // a division takes twice the time of this with a step of Newton's
  return guess + guess * (1.f - x * guess);
#else
  return 1.f / x;
#endif
}

LBK_INLINE inline Vector sigmoid(const Vector &x) { return reciprocal(1.f + exponential(-x)); }

LBK_INLINE inline Vector hyperbolic_tangent(const Vector &x) { return 2.f * sigmoid(2.f * x) - 1.f; }

LBK_INLINE inline Vector swish(const Vector &x) { return x * sigmoid(x); }

}  // namespace
}  // namespace lbk
