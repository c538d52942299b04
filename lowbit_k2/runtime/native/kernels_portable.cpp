// Plain C++, for any CPU: products of 16-bit integers, which compilers know how to sum up.
#include "panels.h"

namespace lbk {
namespace {

struct Portable {
  static constexpr int kRows = 1, kFloatRows = 2, kFloatPanels = 1, kTableRows = 0, kDirectRows = 0;
  static constexpr int kNarrowBytes = 2;     // of an activation of 8 bits
  static constexpr bool kWideAt8 = false;
  static constexpr int kNarrowTile = kLanes * kBlock * 2, kWideTile = kNarrowTile;  // bytes of a block, unpacked

  static uint8_t *arrange_wide(const int16_t *codes, int64_t count, uint8_t *out) {
    memcpy(out, codes, count * 2);
    return out + count * 2;
  }

  static uint8_t *arrange_narrow(const int16_t *codes, int64_t count, uint8_t *out) {
    return arrange_wide(codes, count, out);
  }

  // Tile: of each block 16 rows of 64 weights.
  template <int BITS, bool WIDE>
  static void unpack(const uint8_t *lines, int64_t blocks, uint8_t *tile) {
    constexpr int kPerLine = 32 / BITS;
    int16_t *out = reinterpret_cast<int16_t *>(tile);
    for (int64_t line = 0; line < blocks * 2 * BITS; ++line, lines += 64) {
      int16_t *begin = out + line / (2 * BITS) * kLanes * kBlock + line % (2 * BITS) * kPerLine;
      for (int lane = 0; lane < kLanes; ++lane)
        for (int j = 0; j < 8 / BITS; ++j)
          for (int c = 0; c < 4; ++c)
            begin[lane * kBlock + 4 * j + c] = lines[4 * lane + c] >> j * BITS & ((1 << BITS) - 1);
    }
  }

  template <int BITS, bool WIDE, bool TILED, int R>
  static void dot(const uint8_t *tile, int64_t blocks, const uint8_t *x, size_t stride, int32_t (*acc)[kLanes]) {
    for (int r = 0; r < R; ++r) {
      memset(acc[r], 0, sizeof acc[r]);
      for (int64_t block = 0; block < blocks; ++block) {
        const int16_t *weights = reinterpret_cast<const int16_t *>(tile + block * kNarrowTile);
        const int16_t *codes = reinterpret_cast<const int16_t *>(x + r * stride) + block * kBlock;
        for (int lane = 0; lane < kLanes; ++lane) {
          int32_t sum = 0;  // of 64 products below 2^23
          for (int k = 0; k < kBlock; ++k) sum += weights[lane * kBlock + k] * codes[k];
          acc[r][lane] = static_cast<int32_t>(static_cast<uint32_t>(acc[r][lane]) + static_cast<uint32_t>(sum));
        }
      }
    }
  }
};

}  // namespace

const Kernels kPortable = {one_sum, row_bytes<Portable>, prepare<Portable>, multiply<Portable>, kSmallSlice, false};

}  // namespace lbk
