// 64-bit ARM with the dot product (sdot).
#if defined(__ARM_FEATURE_DOTPROD)

#include "neon.h"

namespace lbk {
namespace {

struct Sdot {
  template <int LANE>
  LBK_INLINE static int32x4_t lane(int32x4_t sum, uint8x16_t weights, int8x16_t x) {
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(weights), x, LANE);
  }
};

// The same of weights of 8 bits as they lie in the file's panels.
struct FlippedSdot {
  template <int LANE>
  LBK_INLINE static int32x4_t lane(int32x4_t sum, uint8x16_t weights, int8x16_t x) {
    return Sdot::lane<LANE>(sum, flipped(weights), x);
  }
};

struct Dot {
  static constexpr int kRows = 4, kDirectRows = 2;
  static constexpr bool kSigned = true;

  template <int BITS, bool FLIP>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    unpack_steps<BITS, FLIP>(lines, blocks, tile);
  }

  template <int BITS, bool TILED, int N>
  static void products(const uint8_t *weights, int64_t blocks, const Streams<N> &streams, int32x4_t (&sums)[N][4]) {
    if constexpr (TILED) LaneSteps<Sdot>::products<8>(weights, blocks, streams, sums);
    else if constexpr (BITS == 8) LaneSteps<FlippedSdot>::products<8>(weights, blocks, streams, sums);
    else LaneSteps<Sdot>::products<BITS>(weights, blocks, streams, sums);
  }
};

}  // namespace

const Kernels kNeonDot = {one_sum, row_bytes<Neon<Dot>>, prepare<Neon<Dot>>, multiply_but_floats<Neon<Dot>>,
                          kSmallSlice, false};

}  // namespace lbk

#else

#include "internal.h"

namespace lbk {
const Kernels kNeonDot = {};
}

#endif
