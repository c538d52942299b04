// 64-bit ARM without the dot product: bytes are multiplied to 16 bits, whose sums hold for a known number of steps.
#include "neon.h"

namespace lbk {
namespace {

struct Long {
  static constexpr int kRows = 2, kDirectRows = 1;
  static constexpr bool kSigned = true;

  template <int BITS, bool FLIP>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    unpack_steps<BITS, FLIP>(lines, blocks, tile);
  }

  // A lane of 16 bits gains a product a step. -128 times 1, and times 2 (codes 0 to 2), goes 128 times, times 15 for a
  // block of 16 steps; (-128)^2 once.
  template <int BITS, bool TILED, int N>
  static void products(const uint8_t *weights, int64_t blocks, const Streams<N> &streams, int32x4_t (&out)[N][4]) {
    constexpr int kBits = TILED ? 8 : BITS;
    if constexpr (BITS == 8) sum_up<8, true, !TILED>(weights, blocks, 1, streams, out);
    else sum_up<kBits, false, false>(weights, blocks, BITS == 4 ? 1 : kChunk, streams, out);
  }

  // at_once: blocks whose sums 16 bits hold; EACH: not even those of two steps.
  template <int BITS, bool EACH, bool FLIP, int N>
  __attribute__((noinline)) static void sum_up(const uint8_t *weights, int64_t blocks, int64_t at_once,
                                               const Streams<N> &streams, int32x4_t (&out)[N][4]) {
    constexpr int kSteps = BITS == 1 ? 8 : 4;  // that lie in whole lines
    int32x4_t sums[8 * N];
    times<8 * N>([&](auto i) LBK_INLINE { sums[i] = vdupq_n_s32(0); });
    for (int64_t begin = 0; begin < blocks; begin += at_once) {
      const int64_t count = least(at_once, blocks - begin);
      int16x8_t part[8 * N];
      times<8 * N>([&](auto i) LBK_INLINE { part[i] = vdupq_n_s16(0); });
      for (int64_t block = begin; block < begin + count; ++block)
        for (int64_t place = block * streams.block_bytes, end = place + kBlock; place < end; place += 4 * kSteps) {
          times<4 * kSteps>([&](auto turn) LBK_INLINE {
            constexpr int kStep = decltype(turn)::value / 4, q = decltype(turn)::value % 4;
            const uint8x16_t stored = weights_of<BITS, kStep>(weights, q);
            const int8x16_t w = vreinterpretq_s8_u8(FLIP ? flipped(stored) : stored);
            times<N>([&](auto i) LBK_INLINE {
              int32_t four;
              memcpy(&four, streams.of[i] + place + 4 * kStep, 4);
              const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
              constexpr int kLow = 8 * decltype(i)::value + 2 * q, kHigh = kLow + 1;
              if constexpr (EACH) {
                sums[kLow] = vpadalq_s16(sums[kLow], vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                sums[kHigh] = vpadalq_s16(sums[kHigh], vmull_high_s8(w, x));
              } else {
                part[kLow] = vmlal_s8(part[kLow], vget_low_s8(w), vget_low_s8(x));
                part[kHigh] = vmlal_high_s8(part[kHigh], w, x);
              }
            });
          });
          weights += 8 * BITS * kSteps;
        }
      times<8 * N>([&](auto i) LBK_INLINE { sums[i] = vpadalq_s16(sums[i], part[i]); });
    }
    times<4 * N>([&](auto i) LBK_INLINE { out[i / 4][i % 4] = vpaddq_s32(sums[2 * i], sums[2 * i + 1]); });
  }
};

}  // namespace

const Kernels kNeon = {one_sum, row_bytes<Neon<Long>>, prepare<Neon<Long>>, multiply<Neon<Long>>, kSmallSlice, false};

}  // namespace lbk
