// Planes in registers of 64 bytes, for the units that have AVX-512 VNNI.
#pragma once

#include <immintrin.h>

#include "planes.h"

namespace lbk {
namespace {

typedef int32_t FourBytes __attribute__((may_alias));

struct Planes512 {
  static constexpr bool kExact = true;
  static constexpr int kSums = 24, kGroups = 7;
  static constexpr int kGroup[kGroups] = {1, 2, 4, 8, 12, 16, 24};  // plane rows multiplied together

  static const Kernels &floats() { return kAvx512Floats; }

  // 64 activations to planes of 64 bytes. The quotient is a division's: x / step is estimated, and corrected by what is left.
  template <int P>
  LBK_INLINE static void quantize(const float *x, float step, float inverse, uint8_t *out, Sums<P> &sums) {
    const __m512 steps = _mm512_set1_ps(step), inverses = _mm512_set1_ps(inverse);
    times<4>([&](auto i) LBK_INLINE {
      const __m512 value = _mm512_loadu_ps(x + 16 * i), estimate = _mm512_mul_ps(value, inverses);
      const __m512 rest = _mm512_fnmadd_ps(estimate, steps, value);
      __m512i code = _mm512_cvtps_epi32(_mm512_fmadd_ps(rest, inverses, estimate));
      times<P>([&](auto p) LBK_INLINE {
        sums.of[p] += reinterpret_cast<const Naturals &>(code);
        _mm_store_si128(reinterpret_cast<__m128i *>(out + p * kBlock + 16 * i), _mm512_cvtepi32_epi8(code));
        code = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
      });
    });
  }

  static const uint8_t *spread(const uint8_t *bytes) { return bytes; }

  // By hand: around its intrinsic gcc 12 moves every sum to the stack and back.
  LBK_INLINE static void add(Integers &sum, const Integers &weights, const uint8_t *bytes) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(weights), "m"(*reinterpret_cast<const FourBytes *>(bytes)));
  }
};

}  // namespace
}  // namespace lbk
