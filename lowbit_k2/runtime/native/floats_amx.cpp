// Matrices of floats, and those with a table, by AMX's products of bfloat16: weights and activations are split in parts of
// 8 bits of mantissa each, the first being the number rounded, the next what is left of it, and so on. Three parts and the
// six products of the largest are as exact as float32's own; of floats, `a16` takes two and three, `a8` one.
#include "internal.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <immintrin.h>

#include "panels.h"

namespace lbk {
namespace {

constexpr int kRowsOfTile = 16, kTile = 1024;  // bytes: 16 rows of activations, or of pairs of inputs, of 64 bytes
constexpr int kInputs = 32;                    // of a tile
constexpr int kRows = 2 * kRowsOfTile;         // that are multiplied together, with 2 panels
constexpr int64_t kFewestRows = 8;             // below, weights are split for too little

int parts_of(const lbk_matrix &w, int mode) { return mode == LBK_EXACT || w.table_size ? 3 : mode == LBK_A16 ? 2 : 1; }

int64_t tiles_of(const lbk_matrix &w) { return (w.cols + kInputs - 1) / kInputs; }

bool by_tiles(const lbk_matrix &w, int64_t rows) { return rows >= kFewestRows && !w.input_bits; }

size_t row_bytes(const lbk_matrix &w, int mode, int64_t rows) {
  if (!by_tiles(w, rows)) return kAvx512Floats.row_bytes(w, mode, rows);
  return tiles_of(w) * parts_of(w, mode) * 64;
}

__m512 as_floats(__m512i bits) { return _mm512_castsi512_ps(bits); }

// 32 numbers to P parts, 64 bytes each, `stride` apart.
template <int P>
LBK_INLINE inline void split(__m512 low, __m512 high, uint8_t *out, int64_t stride) {
  times<P>([&](auto p) LBK_INLINE {
    const __m512i part = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(out + p * stride, part);
    if (p + 1 < P) {
      low = _mm512_sub_ps(low, as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(part)), 16)));
      high = _mm512_sub_ps(high, as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(part, 1)), 16)));
    }
  });
}

// Rows lie in groups of 16, of which every 32 inputs have a tile for each part.
template <int P>
void prepare_rows(const Call &c, int64_t begin, int64_t end) {
  const int64_t cols = c.w->cols;
  for (int64_t row = begin; row < end; ++row) {
    const float *x = c.x + row * c.x_stride;
    uint8_t *out = c.prepared + row / kRowsOfTile * kRowsOfTile * c.row_bytes + row % kRowsOfTile * 64;
    int64_t k = 0;
    for (; k + kInputs <= cols; k += kInputs, out += P * kTile)
      split<P>(_mm512_loadu_ps(x + k), _mm512_loadu_ps(x + k + 16), out, kTile);
    if (k < cols) {
      const uint32_t mask = (1u << (cols - k)) - 1;
      split<P>(_mm512_maskz_loadu_ps(mask & 0xffff, x + k), _mm512_maskz_loadu_ps(mask >> 16, x + k + 16), out, kTile);
    }
  }
}

// Inputs of a panel, rows of 16 floats, to tiles: pairs of inputs, a part behind the other.
template <int P>
void split_panel(const float *weights, int64_t tiles, uint8_t *out) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(order), upper = _mm512_set1_epi32(0xffff0000);
  for (int64_t tile = 0; tile < tiles; ++tile, out += P * kTile)
    for (int pair = 0; pair < kRowsOfTile; ++pair, weights += 2 * kLanes) {
      __m512 even = _mm512_loadu_ps(weights), odd = _mm512_loadu_ps(weights + kLanes);
      times<P>([&](auto p) LBK_INLINE {
        const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
        const __m512i part = _mm512_permutexvar_epi16(pairs, rounded);
        _mm512_store_si512(out + p * kTile + pair * 64, part);
        if (p + 1 < P) {
          even = _mm512_sub_ps(even, as_floats(_mm512_slli_epi32(part, 16)));
          odd = _mm512_sub_ps(odd, as_floats(_mm512_and_si512(part, upper)));
        }
      });
    }
}

// A panel's blocks as floats; where they are not floats in memory, in `tile`.
const float *floats_of(const lbk_matrix &w, int64_t panel, int64_t block, int64_t blocks, float *tile) {
  const uint8_t *lines = w.lines + (panel * w.blocks + block) * 128 * w.bits;
  if (w.bits == 32) return reinterpret_cast<const float *>(lines);
  if (w.bits == 16) unpack_halves(lines, blocks * kBlock * kLanes, tile);
  else unpack_table(w, lines, blocks, tile);
  if (w.granularity == LBK_BLOCK64) scale_tile(w, panel, block, blocks, tile);
  return tile;
}

struct Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration() {
    for (int i = 0; i < 8; ++i) row_bytes[i] = 64, rows[i] = kRowsOfTile;
  }
};

// What is left of one part of activations (tiles 4 and 5) times one of weights (6 and 7), on top of tiles 0 to 3.
LBK_INLINE inline void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

LBK_INLINE inline void load_rows(const uint8_t *rows, int64_t group_bytes) {
  _tile_loadd(4, rows, 64);
  _tile_loadd(5, rows + group_bytes, 64);
}

LBK_INLINE inline void load_weights(const uint8_t *weights, int64_t panel_bytes) {
  _tile_loadd(6, weights, 64);
  _tile_loadd(7, weights + panel_bytes, 64);
}

// 32 rows times 2 panels over so many tiles of inputs; the products of parts that matter, so that neighbours share a part.
template <int P>
void product(const uint8_t *rows, int64_t group_bytes, const uint8_t *weights, int64_t panel_bytes, int64_t tiles,
             float (*out)[2 * kLanes]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < tiles; ++i, rows += P * kTile, weights += P * kTile) {
    load_weights(weights, panel_bytes);
    for (int p = P - 1; p >= 0; --p) {
      load_rows(rows + p * kTile, group_bytes);
      multiply_tiles();
    }
    if (P > 1) {
      load_weights(weights + kTile, panel_bytes);
      multiply_tiles();
    }
    if (P > 2) {
      load_rows(rows + kTile, group_bytes);
      multiply_tiles();
      load_rows(rows, group_bytes);
      load_weights(weights + 2 * kTile, panel_bytes);
      multiply_tiles();
    }
  }
  constexpr int kStride = 2 * kLanes * sizeof(float);
  _tile_stored(0, out, kStride);
  _tile_stored(1, out[0] + kLanes, kStride);
  _tile_stored(2, out[kRowsOfTile], kStride);
  _tile_stored(3, out[kRowsOfTile] + kLanes, kStride);
}

// y = or += products (rows, 2 * 16) times steps, of one panel.
void add_up(const Call &c, int64_t row, int64_t rows, int64_t panel, bool first, bool last, const float *products) {
  const lbk_matrix &w = *c.w;
  const float *steps = w.granularity == LBK_BLOCK64 ? kOnes.of : steps_of(w, panel, 0);
  store(c, row, rows, panel, first, last, products, 2 * kLanes, steps);
}

template <int P>
void multiply_parts(const Call &c, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  constexpr int64_t kBlocks = P == 1 ? 2 * kFloatChunk : kFloatChunk;  // 32 or 48 KiB of weights at a time
  constexpr int64_t kOfBlock = kBlock / kInputs, kPanelBytes = kBlocks * kOfBlock * P * kTile;
  alignas(64) static thread_local uint8_t weights[2 * kPanelBytes];
  alignas(64) float tile[kFloatChunk * kBlock * kLanes], products[kRows][2 * kLanes];
  const int64_t group_bytes = kRowsOfTile * c.row_bytes;
  for (int64_t panel = begin; panel < end; panel += 2)
    for (int64_t block = 0; block < w.blocks; block += kBlocks) {
      const int64_t last = least(block + kBlocks, w.blocks), panels = least(2, end - panel);
      const int64_t tiles = least((last - block) * kOfBlock, tiles_of(w) - block * kOfBlock);
      for (int64_t i = 0; i < panels; ++i)
        for (int64_t b = block; b < last; b += kFloatChunk) {
          const int64_t blocks = least(kFloatChunk, last - b);
          split_panel<P>(floats_of(w, panel + i, b, blocks, tile), blocks * kOfBlock,
                         weights + i * kPanelBytes + (b - block) * kOfBlock * P * kTile);
        }
      for (int64_t row = 0; row < c.rows; row += kRows) {
        const uint8_t *rows = c.prepared + row * c.row_bytes + block * kOfBlock * P * kTile;
        product<P>(rows, group_bytes, weights, kPanelBytes, tiles, products);
        for (int64_t i = 0; i < panels; ++i)
          add_up(c, row, least(kRows, c.rows - row), panel + i, block == 0, last == w.blocks, products[0] + i * kLanes);
      }
    }
}

void prepare(const Call &c, int64_t begin, int64_t end) {
  if (!by_tiles(*c.w, c.full_rows)) return kAvx512Floats.prepare(c, begin, end);
  switch (parts_of(*c.w, c.mode)) {
    case 1: return prepare_rows<1>(c, begin, end);
    case 2: return prepare_rows<2>(c, begin, end);
    default: return prepare_rows<3>(c, begin, end);
  }
}

void multiply(const Call &c, int64_t begin, int64_t end) {
  if (!by_tiles(*c.w, c.full_rows)) return kAvx512Floats.multiply(c, begin, end);
  static const Configuration configuration;
  _tile_loadconfig(&configuration);
  switch (parts_of(*c.w, c.mode)) {
    case 1: multiply_parts<1>(c, begin, end); break;
    case 2: multiply_parts<2>(c, begin, end); break;
    default: multiply_parts<3>(c, begin, end);
  }
  _tile_release();
}

int no_sums_kept(const lbk_matrix &, int) { return 0; }

}  // namespace

const Kernels kAmxFloats = {no_sums_kept, row_bytes, prepare, multiply, kLargeSlice, true};

}  // namespace lbk

#else

namespace lbk {

const Kernels kAmxFloats = {};

}  // namespace lbk

#endif
