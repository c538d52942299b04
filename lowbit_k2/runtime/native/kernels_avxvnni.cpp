// AVX-VNNI: products of bytes as in AVX-512, in registers of 32 bytes. Exact products are AVX2's.
#include "internal.h"

#if defined(__AVXVNNI__)

#include <immintrin.h>

#include "planes.h"

namespace lbk {
namespace {

struct AvxVnni {
  static constexpr bool kExact = false;
  static constexpr int kSums = 12, kGroups = 5;
  static constexpr int kGroup[kGroups] = {1, 2, 3, 4, 6};

  static const Kernels &floats() { return kAvx2; }

  static Group group_of(int64_t rows, int64_t row, int) { return greedy_group<AvxVnni>(rows, row); }

  template <int BITS, int P>
  static void multiply(const Call &c, int64_t begin, int64_t end) {
    static const Dots<AvxVnni, BITS> dots;
    multiply_planes<AvxVnni, P>(c, dots.of, begin, end);
  }

  template <int P>
  LBK_INLINE static void quantize(const float *x, float step, float inverse, uint8_t *out, Sums<P> &sums) {
    const __m256 steps = _mm256_set1_ps(step), inverses = _mm256_set1_ps(inverse);
    times<2>([&](auto half) LBK_INLINE {
      __m256i codes[4];
      times<4>([&](auto i) LBK_INLINE {
        const __m256 value = _mm256_loadu_ps(x + 32 * half + 8 * i), estimate = _mm256_mul_ps(value, inverses);
        const __m256 rest = _mm256_fnmadd_ps(estimate, steps, value);
        codes[i] = _mm256_cvtps_epi32(_mm256_fmadd_ps(rest, inverses, estimate));
      });
      times<P>([&](auto p) LBK_INLINE {
        __m256i bytes[4];
        times<4>([&](auto i) LBK_INLINE {
          sums.of[p] += reinterpret_cast<const Naturals &>(codes[i]);
          bytes[i] = codes[i];
          codes[i] = _mm256_srai_epi32(_mm256_add_epi32(codes[i], _mm256_set1_epi32(128)), 8);
          if (P > 1) bytes[i] = _mm256_sub_epi32(bytes[i], _mm256_slli_epi32(codes[i], 8));
        });
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(bytes[0], bytes[1]),
                                                 _mm256_packs_epi32(bytes[2], bytes[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_store_si256(reinterpret_cast<__m256i *>(out + p * kBlock + 32 * half),
                           _mm256_permutevar8x32_epi32(mixed, order));
      });
    });
  }

  static Integers spread(const uint8_t *bytes) {
    int32_t value;
    memcpy(&value, bytes, 4);
    return Integers{} + value;
  }

  // By hand: around its intrinsic gcc 12 moves sums to the stack and back.
  LBK_INLINE static void add(Integers &sum, const Integers &weights, const Integers &bytes) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(bytes));
  }
};

}  // namespace

const Kernels kAvxVnni = {planes<AvxVnni>, plane_row_bytes<AvxVnni>, prepare_by_planes<AvxVnni>,
                          multiply_by_planes<AvxVnni>, kLargeSlice, false};

}  // namespace lbk

#else

namespace lbk {

const Kernels kAvxVnni = {};

}  // namespace lbk

#endif
