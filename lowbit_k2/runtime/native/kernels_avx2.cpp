// AVX2 and FMA. 8-bit activations times weights of 1, 2 and 4 bits by vpmaddubsw, whose sums of 16 bits hold for a
// known number of steps; 16-bit activations, and all at 8 bits, by vpmaddwd.
#include <immintrin.h>

#include "panels.h"

namespace lbk {
namespace {

inline __m256i load256(const uint8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }

inline void store256(void *to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i *>(to), value); }

// A sum that has to exist now. Otherwise gcc 12 gathers the additions of a long piece of code at its end, and keeps all
// products on the stack until then.
#define LBK_SETTLE(sum) __asm__("" : "+x"(sum))

template <int R>
LBK_INLINE inline void clear(__m256i (&sums)[R][2]) {
  times<R>([&](auto r) LBK_INLINE { sums[r][0] = sums[r][1] = _mm256_setzero_si256(); });
}

// Four bytes in every lane.
inline __m256i spread(const uint8_t *from) {
  int32_t value;
  memcpy(&value, from, 4);
  return _mm256_set1_epi32(value);
}

struct Avx2 {
  static constexpr int kRows = 4, kFloatRows = 6, kFloatPanels = 1, kTableRows = 4, kDirectRows = 4;
  static constexpr int kNarrowBytes = 1;
  static constexpr bool kWideAt8 = true;
  static constexpr int kNarrowTile = kLanes * kBlock, kWideTile = 2 * kNarrowTile;

  static uint8_t *arrange_narrow(const int16_t *codes, int64_t count, uint8_t *out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(codes[i]);
    return out + count;
  }

  // Inputs 0, 2, 1, 3 of every four: a line masked to 16-bit fields holds 0 and 2, the same line shifted 1 and 3.
  static uint8_t *arrange_wide(const int16_t *codes, int64_t count, uint8_t *out) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7,
                                           8, 9, 12, 13, 10, 11, 14, 15);
    for (int64_t i = 0; i < count; i += 16, out += 32)
      store256(out, _mm256_shuffle_epi8(load256(reinterpret_cast<const uint8_t *>(codes + i)), order));
    return out;
  }

  // Field j of a half line as bytes.
  template <int BITS>
  static __m256i bytes(__m256i line, int j) {
    return _mm256_and_si256(_mm256_srli_epi32(line, j * BITS), _mm256_set1_epi8((1 << BITS) - 1));
  }

  // Its bytes 0 and 2, or 1 and 3, as numbers of 16 bits.
  template <int BITS>
  static __m256i shorts(__m256i line, int j, int odd) {
    if (BITS == 8 && odd) return _mm256_srli_epi16(line, 8);
    return _mm256_and_si256(_mm256_srli_epi32(line, j * BITS + 8 * odd), _mm256_set1_epi16((1 << BITS) - 1));
  }

  template <int BITS, bool WIDE>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    for (int64_t line = 0; line < blocks * 2 * BITS; ++line, lines += 64)
      for (int j = 0; j < 8 / BITS; ++j)
        for (int half = 0; half < 2; ++half) {
          const __m256i words = load256(lines + 32 * half);
          if constexpr (WIDE) {
            store256(tile, shorts<BITS>(words, j, 0));
            store256(tile + 32, shorts<BITS>(words, j, 1));
            tile += 64;
          } else {
            store256(tile, bytes<BITS>(words, j));
            tile += 32;
          }
        }
  }

  // A step is four inputs of 16 outputs. Sums of int16 hold for 128 steps of 2 * 127 * 1, for 64 of 2 * 127 * 2 (codes
  // 0 to 2), for 8 of 2 * 127 * 15. A tile is walked through two steps at a time, as lines of 4 bits are.
  template <int BITS, bool WIDE, bool TILED, int R>
  static void dot(const uint8_t *weights, int64_t blocks, const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    constexpr int kBits = TILED ? 4 : BITS;
    constexpr int64_t kSteps = BITS == 1 ? 128 : BITS == 2 ? 64 : 8;
    if constexpr (WIDE) dot_wide<kBits, TILED, R>(weights, blocks * 2 * kBits, x, stride, acc);
    else dot_narrow<kBits, TILED, R>(weights, blocks * 2 * kBits, kSteps * kBits / 8, x, stride, acc);
  }

  template <int BITS, bool TILED, int R>
  __attribute__((noinline)) static void dot_narrow(const uint8_t *weights, int64_t lines, int64_t at_once,
                                                   const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    constexpr int kSteps = 8 / BITS;
    __m256i sums[R][2];
    clear(sums);
    for (int64_t begin = 0; begin < lines; begin += at_once) {
      __m256i part[R][2];
      clear(part);
      for (int64_t line = begin; line < least(begin + at_once, lines); ++line) {
        __m256i words[2];
        if constexpr (!TILED) words[0] = load256(weights), words[1] = load256(weights + 32);
#pragma GCC unroll 8
        for (int j = 0; j < kSteps; ++j) {
          const __m256i low = TILED ? load256(weights + 64 * j) : bytes<BITS>(words[0], j);
          const __m256i high = TILED ? load256(weights + 64 * j + 32) : bytes<BITS>(words[1], j);
          times<R>([&](auto r) LBK_INLINE {
            const __m256i codes = spread(x + r * stride + 4 * j);
            part[r][0] = _mm256_add_epi16(part[r][0], _mm256_maddubs_epi16(low, codes));
            part[r][1] = _mm256_add_epi16(part[r][1], _mm256_maddubs_epi16(high, codes));
            LBK_SETTLE(part[r][0]);
            LBK_SETTLE(part[r][1]);
          });
        }
        weights += TILED ? 64 * kSteps : 64;
        x += 4 * kSteps;
      }
      const __m256i ones = _mm256_set1_epi16(1);
      times<R>([&](auto r) LBK_INLINE { times<2>([&](auto half) LBK_INLINE {
        sums[r][half] = _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(part[r][half], ones));
      }); });
    }
    write(sums, acc);
  }

  template <int BITS, bool TILED, int R>
  __attribute__((noinline)) static void dot_wide(const uint8_t *weights, int64_t lines, const uint8_t *x,
                                                 size_t stride, int32_t (*acc)[kLanes]) {
    constexpr int kSteps = 8 / BITS;
    __m256i sums[R][2];
    clear(sums);
    for (int64_t line = 0; line < lines; ++line) {
      __m256i words[2];
      if constexpr (!TILED) words[0] = load256(weights), words[1] = load256(weights + 32);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kSteps; ++i) {
        const int j = i / 2, odd = i % 2;
        const __m256i low = TILED ? load256(weights + 128 * j + 32 * odd) : shorts<BITS>(words[0], j, odd);
        const __m256i high = TILED ? load256(weights + 128 * j + 64 + 32 * odd) : shorts<BITS>(words[1], j, odd);
        times<R>([&](auto r) LBK_INLINE {
          const __m256i codes = spread(x + r * stride + 4 * i);
          sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(low, codes));
          sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(high, codes));
          LBK_SETTLE(sums[r][0]);
          LBK_SETTLE(sums[r][1]);
        });
      }
      weights += TILED ? 128 * kSteps : 64;
      x += 8 * kSteps;
    }
    write(sums, acc);
  }

  template <int R>
  LBK_INLINE static void write(const __m256i (&sums)[R][2], int32_t (*acc)[kLanes]) {
    times<R>([&](auto r) LBK_INLINE {
      store256(acc[r], sums[r][0]);
      store256(acc[r] + 8, sums[r][1]);
    });
  }

  // vpermilps takes two bits of each lane, whatever lies above them, as a place in a table of four.
  template <int R>
  __attribute__((noinline)) static void dot_tables(const uint8_t *line, int64_t lines, const uint8_t *tables,
                                                   size_t stride, float (*out)[kLanes]) {
    constexpr int kChains = R <= 2 ? 2 : 1;  // additions take three cycles
    __m256 sums[kChains][R][2];
    times<kChains>([&](auto chain) LBK_INLINE { times<R>([&](auto r) LBK_INLINE {
      sums[chain][r][0] = sums[chain][r][1] = _mm256_setzero_ps();
    }); });
    for (int64_t i = 0; i < lines; ++i, line += 64, tables += 256) {
      const __m256i words[2] = {load256(line), load256(line + 32)};
#pragma GCC unroll 16
      for (int pair = 0; pair < 16; pair += kChains) times<kChains>([&](auto chain) LBK_INLINE {
        const int shift = 2 * (pair + chain);
        const __m256i low = _mm256_srli_epi32(words[0], shift), high = _mm256_srli_epi32(words[1], shift);
        times<R>([&](auto r) LBK_INLINE {
          const auto *from = reinterpret_cast<const __m128 *>(tables + r * stride + 8 * shift);
          const __m256 table = _mm256_broadcast_ps(from);
          sums[chain][r][0] = _mm256_add_ps(sums[chain][r][0], _mm256_permutevar_ps(table, low));
          sums[chain][r][1] = _mm256_add_ps(sums[chain][r][1], _mm256_permutevar_ps(table, high));
          LBK_SETTLE(sums[chain][r][0]);
          LBK_SETTLE(sums[chain][r][1]);
        });
      });
    }
    times<R>([&](auto r) LBK_INLINE { times<2>([&](auto half) LBK_INLINE {
      if constexpr (kChains == 2) sums[0][r][half] = _mm256_add_ps(sums[0][r][half], sums[1][r][half]);
      _mm256_storeu_ps(out[r] + 8 * half, sums[0][r][half]);
    }); });
  }
};

}  // namespace

const Kernels kAvx2 = {one_sum, row_bytes<Avx2>, prepare<Avx2>, multiply<Avx2>, kSmallSlice, false};

}  // namespace lbk
