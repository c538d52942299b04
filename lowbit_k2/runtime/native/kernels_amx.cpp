// AMX: tiles of 16 rows of 64 bytes. A tile of weights is a block of a panel, its fields unpacked to 16 rows of 64 bytes;
// a tile of activations is 64 bytes of up to 16 plane rows, as they lie. Few rows are AVX-512's.
#include "internal.h"

#if defined(__AMX_INT8__)

#include "planes512.h"

namespace lbk {
namespace {

constexpr int kTileRows = 16, kTileBytes = kTileRows * kBlock;
constexpr int64_t kTileBlocks = 8;  // of a panel that are unpacked at a time
constexpr int64_t kMostGroups = kMostRows * 4 / kTileRows + 1;
constexpr int64_t kLeastRows = 3;   // plane rows that are worth a tile

struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t group) {
    for (int tile = 0; tile < 8; ++tile) row_bytes[tile] = kBlock, rows[tile] = tile < 6 ? group : kTileRows;
  }
};

// A field of each byte by one instruction: output bit i is the parity of the input and byte 7 - i.
template <int BITS>
constexpr int64_t field_matrix(int j) {
  uint64_t matrix = 0;
  for (int i = 0; i < BITS; ++i) matrix |= uint64_t{1} << (i + j * BITS) << 8 * (7 - i);
  return static_cast<int64_t>(matrix);
}

template <int BITS>
LBK_INLINE inline void unpack_block(const uint8_t *lines, uint8_t *tile) {
  times<2 * BITS>([&](auto line) LBK_INLINE {
    const __m512i words = _mm512_load_si512(lines + 64 * line);
    times<8 / BITS>([&](auto j) LBK_INLINE {
      const __m512i matrix = _mm512_set1_epi64(field_matrix<BITS>(j));
      _mm512_store_si512(tile + 64 * (line * (8 / BITS) + j), _mm512_gf2p8affine_epi64_epi8(words, matrix, 0));
    });
  });
}

#define LBK_BARRIER() __asm__ volatile("" ::: "memory")  // gcc 12 does not know that loads of tiles read memory

// Products of 1 or 2 groups of plane rows with 1 or 2 panels over `blocks`, added to acc[group][panel] unless they are first.
template <int G, int N>
LBK_INLINE inline void multiply_tiles(const uint8_t *const (&x)[2], int64_t x_step, const uint8_t *const (&w)[2],
                                      int64_t blocks, bool first, int32_t (*acc)[2][kTileRows][kLanes]) {
  LBK_BARRIER();
  if (first) {
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (G > 1) _tile_zero(2);
    if (G > 1 && N > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, acc[0][0], 64);
    if (N > 1) _tile_loadd(1, acc[0][1], 64);
    if (G > 1) _tile_loadd(2, acc[1][0], 64);
    if (G > 1 && N > 1) _tile_loadd(3, acc[1][1], 64);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    _tile_loadd(6, w[0] + b * kTileBytes, 64);
    _tile_loadd(4, x[0] + b * x_step, 64);
    _tile_dpbsud(0, 4, 6);
    if (N > 1) {
      _tile_loadd(7, w[1] + b * kTileBytes, 64);
      _tile_dpbsud(1, 4, 7);
    }
    if (G > 1) {
      _tile_loadd(5, x[1] + b * x_step, 64);
      _tile_dpbsud(2, 5, 6);
    }
    if (G > 1 && N > 1) _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, acc[0][0], 64);
  if (N > 1) _tile_stored(1, acc[0][1], 64);
  if (G > 1) _tile_stored(2, acc[1][0], 64);
  if (G > 1 && N > 1) _tile_stored(3, acc[1][1], 64);
}

template <int BITS>
void unpack_tiles(const uint8_t *lines, int64_t blocks, uint8_t *tiles) {
  for (int64_t b = 0; b < blocks; ++b) unpack_block<BITS>(lines + b * 128 * BITS, tiles + b * kTileBytes);
}

using Unpack = void (*)(const uint8_t *lines, int64_t blocks, uint8_t *tiles);

struct Amx : Planes512 {
  static const Kernels &floats() { return kAmxFloats; }

  // Groups of as many rows, as few as possible.
  static Group group_of(int64_t rows, int64_t row, int planes) {
    const int64_t groups = (rows + kTileRows - 1) / kTileRows;
    const int64_t size = ((rows + groups - 1) / groups + planes - 1) / planes * planes;
    return {row / size * size, size};
  }

  template <int BITS, int P>
  static void multiply(const Call &c, int64_t begin, int64_t end) {
    const TileConfig config(group_of(c.rows * P, 0, P).size);
    _tile_loadconfig(&config);
    const Unpack unpack = BITS < 8 ? unpack_tiles<BITS> : nullptr;
    for (int64_t panel = begin; panel < end; panel += 2) multiply_pair<P>(c, unpack, panel, panel + 1 < end ? 2 : 1);
    _tile_release();
  }

  template <int P>
  __attribute__((noinline)) static void multiply_pair(const Call &c, Unpack unpack, int64_t panel, int panels) {
    const lbk_matrix &w = *c.w;
    const int64_t rows = c.rows * P, size = group_of(rows, 0, P).size, span = span_of(w);
    alignas(64) uint8_t tiles[2][kTileBlocks * kTileBytes];
    alignas(64) int32_t acc[kMostGroups][2][kTileRows][kLanes];
    alignas(64) float out[kMostGroups][2][kTileRows][kLanes];
    const int64_t at_once = blocks_at_once(w);
    for (int64_t chunk = 0; chunk < w.blocks; chunk += at_once) each_pass(w, panel, panels, [&](const Pass &pass) {
      const int64_t last = least(chunk + at_once, w.blocks);
      for (int64_t block = chunk, end; block < last; block = end) {
        const int64_t span_begin = block / span * span, span_end = least(span_begin + span, last);
        end = least(block + kTileBlocks, span_end);
        const uint8_t *lines[2];
        for (int n = 0; n < panels; ++n) {
          lines[n] = w.lines + ((panel + n) * w.blocks + block) * 128 * w.bits;
          if (pass.entries) look_up(w.bits, lines[n], end - block, pass.entries, tiles[n]), lines[n] = tiles[n];
          else if (unpack) unpack(lines[n], end - block, tiles[n]), lines[n] = tiles[n];
        }
        for (int64_t first = 0, g = 0; first < rows; first += 2 * size, g += 2) {
          const int groups = first + size < rows ? 2 : 1;
          const uint8_t *x[2];
          for (int i = 0; i < groups; ++i) x[i] = place(c, {first + i * size, size}, first + i * size, block);
          multiply_some(groups, panels, x, size * kBlock, lines, end - block, block == span_begin, acc + g);
          if (end < span_end) continue;
          for (int i = 0; i < groups; ++i) {
            const int64_t row = first + i * size, count = least(size, rows - row) / P;
            for (int n = 0; n < panels; ++n) {
              if (is_whole(c, pass, span_begin, end)) {
                finish_planes<P>(c, row, count, panel + n, pass.factor, acc[g + i][n]);
                continue;
              }
              float(*to)[kLanes] = out[g + i][n];
              scale_planes<P>(c, row, count, panel + n, span_begin, pass.factor, span_begin > chunk, acc[g + i][n], to);
              if (end < last) continue;
              store(c, row / P, count, panel + n, chunk == 0 && pass.first, last == w.blocks && pass.last, to[0], kLanes,
                    nullptr);
            }
          }
        }
      }
    });
  }

  static void multiply_some(int groups, int panels, const uint8_t *const (&x)[2], int64_t x_step,
                            const uint8_t *const (&w)[2], int64_t blocks, bool first,
                            int32_t (*acc)[2][kTileRows][kLanes]) {
    if (groups == 2 && panels == 2) multiply_tiles<2, 2>(x, x_step, w, blocks, first, acc);
    else if (groups == 2) multiply_tiles<2, 1>(x, x_step, w, blocks, first, acc);
    else if (panels == 2) multiply_tiles<1, 2>(x, x_step, w, blocks, first, acc);
    else multiply_tiles<1, 1>(x, x_step, w, blocks, first, acc);
  }
};

bool takes_tiles(const Call &c) {
  const int count = planes<Amx>(*c.w, c.mode);
  return count == 0 || c.full_rows * count >= kLeastRows;
}

void prepare_tiles(const Call &c, int64_t begin, int64_t end) {
  takes_tiles(c) ? prepare_by_planes<Amx>(c, begin, end) : kAvx512Vnni.prepare(c, begin, end);
}

void multiply_by_tiles(const Call &c, int64_t begin, int64_t end) {
  takes_tiles(c) ? multiply_by_planes<Amx>(c, begin, end) : kAvx512Vnni.multiply(c, begin, end);
}

}  // namespace

const Kernels kAmx = {planes<Amx>, plane_row_bytes<Amx>, prepare_tiles, multiply_by_tiles, kLargeSlice, true};

}  // namespace lbk

#else

namespace lbk {

const Kernels kAmx = {};

}  // namespace lbk

#endif
