// What the kernels of 64-bit ARM have in common. All products are of bytes: activations of 16 bits are two planes of
// signed bytes, high and low, each as a row of its own ("stream"); the sums of the high one count 256 times. Each
// kernels_*.cpp gives a `Step` with the instructions that multiply.
#pragma once

#include <arm_neon.h>

#include "panels.h"

namespace lbk {
namespace {

// Where the streams of a product begin, and bytes from one block of a stream to its next.
template <int N>
struct Streams {
  const int8_t *of[N];
  int64_t block_bytes;
};

// Step STEP (four inputs) of lines of BITS bits: its outputs 4 q .. 4 q + 3.
template <int BITS, int STEP>
LBK_INLINE inline uint8x16_t weights_of(const uint8_t *lines, int q) {
  constexpr int kSteps = 8 / BITS;
  const uint8x16_t line = vld1q_u8(lines + STEP / kSteps * 64 + 16 * q);
  if constexpr (BITS == 8) return line;
  else return (line >> STEP % kSteps * BITS) & vdupq_n_u8((1 << BITS) - 1);
}

inline uint8x16_t flipped(uint8x16_t weights) { return veorq_u8(weights, vdupq_n_u8(128)); }

// Four inputs of all 16 outputs after another. FLIP: less 128, as signed bytes.
template <int BITS, bool FLIP>
inline void unpack_steps(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
  for (int64_t line = 0; line < blocks * 2 * BITS; ++line, lines += 64)
    times<8 / BITS>([&](auto step) LBK_INLINE {
      for (int q = 0; q < 4; ++q, tile += 16) {
        const uint8x16_t weights = weights_of<BITS, decltype(step)::value>(lines, q);
        vst1q_u8(tile, FLIP ? flipped(weights) : weights);
      }
    });
}

inline int32_t sum_of(const int8_t *stream, int64_t blocks, int64_t block_bytes) {
  int32x4_t sums = vdupq_n_s32(0);
  for (int64_t block = 0; block < blocks; ++block)
    for (int i = 0; i < kBlock; i += 16)
      sums = vpadalq_s16(sums, vpaddlq_s8(vld1q_s8(stream + block * block_bytes + i)));
  return vaddvq_s32(sums);
}

// Step: kRows; kDirectRows; kSigned: it multiplies signed bytes alone, so that weights of 8 bits lose 128 before;
// unpack<BITS, FLIP>; products<BITS, TILED, N>: sums[stream][q] of outputs 4 q .. 4 q + 3, of weights as they lie in
// the tile, or less 128 at 8 bits where kSigned.
template <class Step>
struct Neon {
  static constexpr int kRows = Step::kRows, kDirectRows = Step::kDirectRows;
  static constexpr int kFloatRows = 6, kFloatPanels = 1, kTableRows = 0;
  static constexpr int kNarrowBytes = 1;
  static constexpr bool kWideAt8 = false;
  static constexpr int kNarrowTile = kLanes * kBlock, kWideTile = kNarrowTile;

  static uint8_t *arrange_narrow(const int16_t *codes, int64_t count, uint8_t *out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(codes[i]);
    return out + count;
  }

  // Of each block 64 high bytes, then 64 low ones.
  static uint8_t *arrange_wide(const int16_t *codes, int64_t count, uint8_t *out) {
    for (int64_t block = 0; block < count; block += kBlock, out += 2 * kBlock)
      for (int i = 0; i < kBlock; ++i) {
        const int8_t low = static_cast<int8_t>(codes[block + i]);
        out[i] = static_cast<uint8_t>((codes[block + i] - low) >> 8);
        out[kBlock + i] = static_cast<uint8_t>(low);
      }
    return out;
  }

  template <int BITS, bool WIDE>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    Step::template unpack<BITS, BITS == 8 && Step::kSigned>(lines, blocks, tile);
  }

  template <int BITS, bool WIDE, bool TILED, int R>
  static void dot(const uint8_t *weights, int64_t blocks, const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    if constexpr (!TILED && R > kDirectRows) {
      return;  // such groups are tiled
    } else if constexpr (WIDE && 2 * R > kRows) {
      constexpr int kFirst = kRows / 2;
      dot<BITS, WIDE, TILED, kFirst>(weights, blocks, x, stride, acc);
      dot<BITS, WIDE, TILED, R - kFirst>(weights, blocks, x + kFirst * stride, stride, acc + kFirst);
    } else {
      constexpr int N = WIDE ? 2 * R : R;
      Streams<N> streams;
      streams.block_bytes = WIDE ? 2 * kBlock : kBlock;
      for (int i = 0; i < N; ++i)
        streams.of[i] = reinterpret_cast<const int8_t *>(WIDE ? x + i / 2 * stride + i % 2 * kBlock : x + i * stride);
      int32x4_t sums[N][4];
      Step::template products<BITS, TILED, N>(weights, blocks, streams, sums);
      for (int i = 0; BITS == 8 && Step::kSigned && i < N; ++i) {
        const int32x4_t lost = vdupq_n_s32(128 * sum_of(streams.of[i], blocks, streams.block_bytes));
        for (int q = 0; q < 4; ++q) sums[i][q] = vaddq_s32(sums[i][q], lost);
      }
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < 4; ++q)
          vst1q_s32(acc[r] + 4 * q,
                    WIDE ? vaddq_s32(vshlq_n_s32(sums[2 * r][q], 8), sums[2 * r + 1][q]) : sums[r][q]);
    }
  }
};

// Steps of instructions that add four products of bytes to each lane: Add::lane<STEP>(sum, weights, activations).
// Sums of N streams live in 4 N registers.
template <class Add>
struct LaneSteps {
  template <int BITS, int N>
  __attribute__((noinline)) static void products(const uint8_t *weights, int64_t blocks, const Streams<N> &streams,
                                                 int32x4_t (&out)[N][4]) {
    constexpr int kUnits = BITS == 1 ? 2 : 1;  // of four steps, that lie in whole lines
    int32x4_t sums[N][4];
    times<4 * N>([&](auto i) LBK_INLINE { sums[i / 4][i % 4] = vdupq_n_s32(0); });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t place = block * streams.block_bytes, end = place + kBlock; place < end; place += 16 * kUnits) {
        times<kUnits>([&](auto unit) LBK_INLINE {
          int8x16_t x[N];
          times<N>([&](auto i) LBK_INLINE { x[i] = vld1q_s8(streams.of[i] + place + 16 * unit); });
          times<16>([&](auto turn) LBK_INLINE {
            constexpr int kStep = decltype(turn)::value / 4, q = decltype(turn)::value % 4;
            const uint8x16_t w = weights_of<BITS, 4 * decltype(unit)::value + kStep>(weights, q);
            times<N>([&](auto i) LBK_INLINE { sums[i][q] = Add::template lane<kStep>(sums[i][q], w, x[i]); });
          });
        });
        weights += 32 * BITS * kUnits;
      }
    times<4 * N>([&](auto i) LBK_INLINE { out[i / 4][i % 4] = sums[i / 4][i % 4]; });
  }
};

// Matrices of floats, and exact products, are not multiplied by bytes.
template <class Isa>
void multiply_but_floats(const Call &c, int64_t begin, int64_t end) {
  if (c.mode == LBK_EXACT) return kNeon.multiply(c, begin, end);
  multiply_rounded<Isa>(c, begin, end);
}

}  // namespace
}  // namespace lbk
