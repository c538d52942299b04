// AVX2 and FMA. 8-bit activations times weights of 1, 2 and 4 bits by vpmaddubsw, whose sums of 16 bits hold for a
// known number of steps; 16-bit activations, and all at 8 bits, by vpmaddwd.
#include <immintrin.h>

#include "panels.h"

namespace lbk {
namespace {

inline __m256i load256(const uint8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }

inline void store256(void *to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i *>(to), value); }

// Four bytes in every lane.
inline __m256i spread(const uint8_t *from) {
  int32_t value;
  memcpy(&value, from, 4);
  return _mm256_set1_epi32(value);
}

struct Avx2 {
  static constexpr int kRows = 4, kFloatRows = 6, kTableRows = 4, kDirectRows = 4;
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

  // A step is four inputs of 16 outputs.
  template <int BITS, bool WIDE, bool TILED, int R>
  static void dot(const uint8_t *weights, int64_t blocks, const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    if constexpr (WIDE) dot_wide<BITS, TILED, R>(weights, blocks * 2 * BITS, x, stride, acc);
    else dot_narrow<BITS, TILED, R>(weights, blocks * 2 * BITS, x, stride, acc);
  }

  template <int BITS, bool TILED, int R>
  static void dot_narrow(const uint8_t *weights, int64_t lines, const uint8_t *x, size_t stride,
                         int32_t (*acc)[kLanes]) {
    constexpr int kSteps = 8 / BITS;
    // Lines whose sums fit int16: 128 steps of 2 * 127 * 1, 64 of 2 * 127 * 2 (codes 0 to 2), 8 of 2 * 127 * 15.
    constexpr int64_t kLinesAtOnce = BITS == 4 ? 4 : 16;
    __m256i sums[R][2] = {};
    for (int64_t begin = 0; begin < lines; begin += kLinesAtOnce) {
      __m256i part[R][2] = {};
      for (int64_t line = begin; line < least(begin + kLinesAtOnce, lines); ++line) {
        __m256i words[2];
        if constexpr (!TILED) words[0] = load256(weights), words[1] = load256(weights + 32), weights += 64;
#pragma GCC unroll 8
        for (int j = 0; j < kSteps; ++j) {
          __m256i w[2];
          for (int half = 0; half < 2; ++half)
            w[half] = TILED ? load256(weights + 64 * j + 32 * half) : bytes<BITS>(words[half], j);
          for (int r = 0; r < R; ++r) {
            const __m256i codes = spread(x + r * stride + 4 * j);
            for (int half = 0; half < 2; ++half)
              part[r][half] = _mm256_add_epi16(part[r][half], _mm256_maddubs_epi16(w[half], codes));
          }
        }
        if constexpr (TILED) weights += 64 * kSteps;
        x += 4 * kSteps;
      }
      for (int r = 0; r < R; ++r)
        for (int half = 0; half < 2; ++half)
          sums[r][half] =
              _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(part[r][half], _mm256_set1_epi16(1)));
    }
    memcpy(acc, sums, sizeof sums);
  }

  template <int BITS, bool TILED, int R>
  static void dot_wide(const uint8_t *weights, int64_t lines, const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    constexpr int kSteps = 8 / BITS;
    __m256i sums[R][2] = {};
    for (int64_t line = 0; line < lines; ++line) {
      __m256i words[2];
      if constexpr (!TILED) words[0] = load256(weights), words[1] = load256(weights + 32), weights += 64;
#pragma GCC unroll 8
      for (int j = 0; j < kSteps; ++j)
        for (int odd = 0; odd < 2; ++odd) {
          __m256i w[2];
          for (int half = 0; half < 2; ++half)
            w[half] =
                TILED ? load256(weights + 128 * j + 64 * half + 32 * odd) : shorts<BITS>(words[half], j, odd);
          for (int r = 0; r < R; ++r) {
            const __m256i codes = spread(x + r * stride + 8 * j + 4 * odd);
            for (int half = 0; half < 2; ++half)
              sums[r][half] = _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(w[half], codes));
          }
        }
      if constexpr (TILED) weights += 128 * kSteps;
      x += 8 * kSteps;
    }
    memcpy(acc, sums, sizeof sums);
  }

  // vpermilps takes two bits of each lane, whatever lies above them, as a place in a table of four.
  template <int R>
  static void dot_tables(const uint8_t *line, int64_t lines, const uint8_t *tables, size_t stride,
                         float (*out)[kLanes]) {
    constexpr int kChains = R <= 2 ? 2 : 1;  // additions take three cycles
    __m256 sums[kChains][R][2] = {};
    for (int64_t i = 0; i < lines; ++i, line += 64, tables += 256) {
      const __m256i words[2] = {load256(line), load256(line + 32)};
#pragma GCC unroll 16
      for (int pair = 0; pair < 16; ++pair)
        for (int half = 0; half < 2; ++half) {
          const __m256i places = _mm256_srli_epi32(words[half], 2 * pair);
          for (int r = 0; r < R; ++r) {
            const __m256 table = _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(tables + r * stride + 16 * pair));
            __m256 &sum = sums[pair % kChains][r][half];
            sum = _mm256_add_ps(sum, _mm256_permutevar_ps(table, places));
          }
        }
    }
    for (int r = 0; r < R; ++r)
      for (int half = 0; half < 2; ++half) {
        __m256 sum = sums[0][r][half];
        if constexpr (kChains == 2) sum = _mm256_add_ps(sum, sums[1][r][half]);
        _mm256_storeu_ps(out[r] + 8 * half, sum);
      }
  }
};

}  // namespace

const Kernels kAvx2 = {"avx2", row_bytes<Avx2>, prepare<Avx2>, multiply<Avx2>};

}  // namespace lbk
