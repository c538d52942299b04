// 64-bit ARM with products of 8-bit matrices: usmmla multiplies eight inputs of two outputs and two rows, usdot is for
// rows that are few. Both take unsigned weights.
#if defined(__ARM_FEATURE_MATMUL_INT8)

#include "neon.h"

namespace lbk {
namespace {

struct Usdot {
  template <int LANE>
  LBK_INLINE static int32x4_t lane(int32x4_t sum, uint8x16_t weights, int8x16_t x) {
    return vusdotq_laneq_s32(sum, weights, x, LANE);
  }
};

struct I8mm {
  static constexpr int kRows = 6, kDirectRows = 2;
  static constexpr bool kSigned = false;

  // Eight inputs of outputs 0 and 1, of 2 and 3, ..
  template <int BITS, bool FLIP>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    uint8_t steps[8 * 16 * 8];
    for (int64_t block = 0; block < blocks; ++block, lines += 128 * BITS) {
      unpack_steps<BITS, false>(lines, 1, steps);
      for (int place = 0; place < 64 * 16; place += 128)
        for (int q = place; q < place + 64; q += 16, tile += 32) {
          const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(steps + q));
          const uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(steps + q + 64));
          vst1q_u8(tile, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
          vst1q_u8(tile + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
        }
    }
  }

  template <int BITS, bool TILED, int N>
  static void products(const uint8_t *weights, int64_t blocks, const Streams<N> &streams, int32x4_t (&sums)[N][4]) {
    if constexpr (TILED) matrices(weights, blocks, streams, sums);
    else LaneSteps<Usdot>::products<BITS>(weights, blocks, streams, sums);
  }

  // Streams go in pairs, the last alone with itself.
  template <int N>
  __attribute__((noinline)) static void matrices(const uint8_t *tile, int64_t blocks, const Streams<N> &streams,
                                                 int32x4_t (&out)[N][4]) {
    constexpr int kPairs = (N + 1) / 2;
    int32x4_t sums[kPairs][8];
    times<kPairs>([&](auto p) LBK_INLINE { times<8>([&](auto e) LBK_INLINE { sums[p][e] = vdupq_n_s32(0); }); });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t place = block * streams.block_bytes, end = place + kBlock; place < end; place += 8, tile += 128) {
        int8x16_t x[kPairs];
        times<kPairs>([&](auto p) LBK_INLINE {
          constexpr int kFirst = 2 * decltype(p)::value, kSecond = kFirst + 1 < N ? kFirst + 1 : kFirst;
          x[p] = vcombine_s8(vld1_s8(streams.of[kFirst] + place), vld1_s8(streams.of[kSecond] + place));
        });
        times<8>([&](auto e) LBK_INLINE {
          const uint8x16_t w = vld1q_u8(tile + 16 * e);
          times<kPairs>([&](auto p) LBK_INLINE { sums[p][e] = vusmmlaq_s32(sums[p][e], w, x[p]); });
        });
      }
    times<N>([&](auto i) LBK_INLINE { times<4>([&](auto q) LBK_INLINE {
      const int32x4_t a = sums[i / 2][2 * q], b = sums[i / 2][2 * q + 1];  // (output, stream): 00 01 10 11
      out[i][q] = i % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
    }); });
  }
};

}  // namespace

const Kernels kI8mm = {one_sum, row_bytes<Neon<I8mm>>, prepare<Neon<I8mm>>, multiply_but_floats<Neon<I8mm>>,
                       kSmallSlice, false};

}  // namespace lbk

#else

#include "internal.h"

namespace lbk {
const Kernels kI8mm = {};
}

#endif
