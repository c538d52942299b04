// Vectors of a register, of the compiler's, and the functions that activations are made of. Like panels.h, compiled anew for
// every set of instructions.
#pragma once

#include <string.h>

#include <utility>

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

template <int N>
struct Number {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

template <class F, int... I>
LBK_INLINE inline void times_of(const F &f, std::integer_sequence<int, I...>) {
  (f(Number<I>{}), ...);
}

// f(0), .. f(N-1), written out: arrays of sums that are indexed by these numbers live in registers. With loops, which
// gcc 12 unrolls too late for that, they live on the stack, and the products take twice the time.
template <int N, class F>
LBK_INLINE inline void times(const F &f) {
  times_of(f, std::make_integer_sequence<int, N>{});
}

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

// a > b ? a : b and a < b ? a : b, as instructions have them, which the compiler does not find: b where one is NaN.
LBK_INLINE inline Vector larger(const Vector &a, const Vector &b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

LBK_INLINE inline Vector smaller(const Vector &a, const Vector &b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Vectors that go through a function together, step by step: each step waits for the one before, and so many others have
// their turn meanwhile.
template <int N>
struct Several {
  Vector of[N];
};

// e^x to float32's precision: 2^n e^r with |r| <= ln 2 / 2, where e^r is its Taylor polynomial of degree 7, whose rest
// is below 6e-9. Below -87.3, where float32 ends, e^-87.3; above 88, e^88.
template <int N>
LBK_INLINE inline Several<N> exponential(Several<N> x) {
  Several<N> n, sum;
  times<N>([&](auto i) LBK_INLINE {
    Vector &r = x.of[i];
    r = smaller(Vector{} + 88.f, larger(Vector{} - 87.3f, r));
    n.of[i] = (r * 1.44269504f + 12582912.f) - 12582912.f;  // nearest integer
    r = (r - n.of[i] * 0.693359375f) + n.of[i] * 2.12194440e-4f;  // ln 2 in two parts; products with the first are exact
    sum.of[i] = r * (1 / 5040.f) + 1 / 720.f;
  });
  const auto add = [&](float next) LBK_INLINE {
    times<N>([&](auto i) LBK_INLINE { sum.of[i] = sum.of[i] * x.of[i] + next; });
  };
  add(1 / 120.f), add(1 / 24.f), add(1 / 6.f), add(0.5f), add(1.f), add(1.f);
  times<N>([&](auto i) LBK_INLINE {
#if defined(__AVX512F__)
    sum.of[i] = _mm512_scalef_ps(sum.of[i], n.of[i]);
#else
    const Integers power = (__builtin_convertvector(n.of[i], Integers) + 127) << 23;
    sum.of[i] *= reinterpret_cast<const Vector &>(power);
#endif
  });
  return sum;
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

template <int N>
LBK_INLINE inline Several<N> sigmoid(Several<N> x) {
  times<N>([&](auto i) LBK_INLINE { x.of[i] = -x.of[i]; });
  x = exponential(x);
  times<N>([&](auto i) LBK_INLINE { x.of[i] = reciprocal(1.f + x.of[i]); });
  return x;
}

template <int N>
LBK_INLINE inline Several<N> swish(const Several<N> &x) {
  Several<N> y = sigmoid(x);
  times<N>([&](auto i) LBK_INLINE { y.of[i] *= x.of[i]; });
  return y;
}

LBK_INLINE inline Vector exponential(const Vector &x) { return exponential(Several<1>{{x}}).of[0]; }

LBK_INLINE inline Vector sigmoid(const Vector &x) { return sigmoid(Several<1>{{x}}).of[0]; }

LBK_INLINE inline Vector hyperbolic_tangent(const Vector &x) { return 2.f * sigmoid(2.f * x) - 1.f; }

}  // namespace
}  // namespace lbk
