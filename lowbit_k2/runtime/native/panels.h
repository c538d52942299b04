// What all instruction sets have in common: activations to integers, panels to tiles, sums to results. Included by each
// kernels_*.cpp, which gives an `Isa` with the inner products. In an unnamed namespace, so that every unit has its own
// copy, compiled for its own instructions.
#pragma once

#include "vectors.h"

namespace lbk {
namespace {

constexpr int kFloatChunk = 4;  // blocks of inputs in a tile of floats: 16 KiB
constexpr int kPiece = kChunk * kBlock;  // activations that are prepared at a time

constexpr int kPartBytes = kVectorBytes > 32 ? 32 : kVectorBytes, kPart = kPartBytes / 4;
typedef float Floats __attribute__((vector_size(kPartBytes)));
typedef uint32_t Words __attribute__((vector_size(kPartBytes)));
typedef int32_t Ints __attribute__((vector_size(kPartBytes)));

inline void load(const float *from, Floats *to) { memcpy(to, from, sizeof *to); }

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace lbk

#include "lookup.h"

namespace lbk {
namespace {

// f(Number<R>, row) over groups of R rows, and of fewer at the end: R / 2 and so on, since each size is compiled by itself.
template <int R, class F>
inline void each_group(int64_t row, int64_t rows, const F &f) {
  for (; row + R <= rows; row += R) f(Number<R>{}, row);
  if constexpr (R > 1) {
    if (row < rows) each_group<(R > 3 ? R / 2 : R - 1)>(row, rows, f);
  }
}

inline const float *steps_of(const lbk_matrix &w, int64_t panel, int64_t block) {
  if (w.granularity == LBK_TENSOR) return w.steps;
  return w.steps + kLanes * (w.granularity == LBK_CHANNEL ? panel : panel * w.blocks + block);
}

// Of weights as they are multiplied by integers.
inline int product_bits(const lbk_matrix &w) { return w.entries ? 8 : w.bits; }

// A product with the bytes of a table's integers; without entries, with the weights themselves.
struct Pass {
  const uint8_t *entries;
  float factor;  // of the results
  bool first, last;
};

// f(pass) over those that so many panels need.
template <class F>
inline void each_pass(const lbk_matrix &w, int64_t panel, int64_t panels, const F &f) {
  int passes = 1;
  for (int64_t i = panel; w.entries && i < panel + panels; ++i) passes += passes == 1 && w.high[i];
  for (int i = 0; i < passes; ++i)
    f(Pass{w.entries ? w.entries + 256 * i : nullptr, i ? 256 * w.unit : w.unit, i == 0, i + 1 == passes});
}

// ---- activations

// max|x|, or infinity where x holds a number that is not finite.
inline float largest(const float *x, int64_t count) {
  uint32_t top = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    top = bits > top ? bits : top;
  }
  if (top > 0x7f800000) top = 0x7f800000;
  float result;
  memcpy(&result, &top, 4);
  return result;
}

// To the nearest integer, ties to even, of |x| < 2^22: where the mantissa ends.
inline float nearest(float x) { return (x + 12582912.f) - 12582912.f; }

// Step of a row on a grid of -top .. top. Inputs that the model itself quantizes have the model's least step.
inline float step_of(const lbk_matrix &w, float max, int top) {
  const float step = max / top, low = w.input_bits ? 1e-30f : 1.17549435e-38f;
  return step > low ? step : low;
}

inline int top_of(const lbk_matrix &w, int mode) {
  const int top = mode == LBK_A8 ? 127 : mode == LBK_A16 ? kMaxTop16 : 1 << 22;
  return w.input_bits ? least(top, (1 << (w.input_bits - 1)) - 1) : top;
}

// Numbers over a step, which are integers of 16 bits then, as a division gives them.
inline void divide(const float *x, int64_t count, float step, int16_t *codes) {
  int64_t i = 0;
#if defined(__FMA__)
  const __m256 steps = _mm256_set1_ps(step), inverses = _mm256_set1_ps(1 / step);
  const auto quotients = [&](const float *from) LBK_INLINE {  // estimated, and corrected by what is left
    const __m256 value = _mm256_loadu_ps(from), estimate = _mm256_mul_ps(value, inverses);
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_fnmadd_ps(estimate, steps, value), inverses, estimate));
  };
  for (; i + 16 <= count; i += 16) {
    const __m256i mixed = _mm256_packs_epi32(quotients(x + i), quotients(x + i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(codes + i), _mm256_permute4x64_epi64(mixed, 0xd8));
  }
#endif
  for (; i < count; ++i) codes[i] = static_cast<int16_t>(static_cast<int32_t>(nearest(x[i] / step)));
}

// Blocks of inputs that are multiplied before steps come in, and share a sum of integers.
inline int64_t summed_blocks(const lbk_matrix &w) { return w.granularity == LBK_BLOCK64 ? 1 : kChunk; }

template <class Isa>
void prepare_integers(const Call &c, int64_t row, bool wide) {
  const lbk_matrix &w = *c.w;
  const float *x = c.x + row * c.x_stride;
  const float max = largest(x, w.cols), step = step_of(w, max, top_of(w, c.mode));
  const bool finite = max <= 3.40282347e38f;
  c.x_steps[row] = finite ? step : __builtin_nanf("");
  uint8_t *out = c.prepared + row * c.row_bytes;
  int32_t *sums = c.sums + row * w.blocks;
  const int64_t summed = summed_blocks(w);
  int16_t codes[kPiece];
  for (int64_t begin = 0; begin < w.cols; begin += kPiece) {
    const int64_t count = least(kPiece, w.cols - begin), blocks = (count + kBlock - 1) / kBlock;
    memset(codes, 0, sizeof codes);
    if (finite) divide(x + begin, count, step, codes);
    for (int64_t b = 0; b < blocks; ++b) {
      int32_t sum = 0;
      for (int i = 0; i < kBlock; ++i) sum += codes[b * kBlock + i];
      if (b % summed == 0) *sums++ = 0;
      sums[-1] += sum;
    }
    out = wide ? Isa::arrange_wide(codes, blocks * kBlock, out) : Isa::arrange_narrow(codes, blocks * kBlock, out);
  }
}

// Values of the four numbers that two bits can be, or the two of one bit.
inline void small_values(const lbk_matrix &w, float *values) {
  for (int u = 0; u < 1 << w.bits; ++u)
    values[u] = w.table_size ? (u < w.table_size ? w.table[u] : 0.f)
                             : static_cast<float>(w.mult * u - w.base - w.zero_point);
}

// For every two bits of a line what they contribute: of one input at 2 bits, of two inputs at 1 bit. The 16 tables of
// a line follow each other as a lane's pairs of bits do: byte c, pair p is number 4 c + p.
inline float *sum_tables(const lbk_matrix &w, const float *values, const float *x, int64_t blocks, float *out) {
  const int per_line = 32 / w.bits;
  for (int64_t line = 0; line < blocks * 2 * w.bits; ++line, x += per_line)
    for (int c = 0; c < 4; ++c)
      for (int p = 0; p < 4; ++p, out += 4)
        for (int u = 0; u < 4; ++u)
          out[u] = w.bits == 2 ? values[u] * x[4 * p + c]
                               : values[u & 1] * x[8 * p + c] + values[u >> 1] * x[8 * p + 4 + c];
  return out;
}

__attribute__((noinline)) void prepare_floats(const Call &c, int64_t row, bool tables) {
  const lbk_matrix &w = *c.w;
  const float *x = c.x + row * c.x_stride;
  const float step = w.input_bits ? step_of(w, largest(x, w.cols), top_of(w, c.mode)) : 0.f;
  float *out = reinterpret_cast<float *>(c.prepared + row * c.row_bytes);
  float values[4] = {}, piece[kPiece];
  if (tables) small_values(w, values);
  for (int64_t begin = 0; begin < w.cols; begin += kPiece) {
    const int64_t count = least(kPiece, w.cols - begin), blocks = (count + kBlock - 1) / kBlock;
    memset(piece, 0, sizeof piece);
    for (int64_t i = 0; i < count; ++i) piece[i] = step ? nearest(x[begin + i] / step) * step : x[begin + i];
    if (tables) {
      out = sum_tables(w, values, piece, blocks, out);
    } else {
      memcpy(out + begin, piece, count * sizeof(float));
    }
  }
}

// ---- results

// f(activation) with that of the call, as a function of several vectors.
template <class F>
LBK_INLINE inline void with_activation(int activation, const F &f) {
  if (activation == LBK_SWISH) return f([](const auto &x) LBK_INLINE { return swish(x); });
  if (activation == kAsItIs) return f([](const auto &x) LBK_INLINE { return x; });
  f([](auto x) LBK_INLINE {
    for (Vector &value : x.of) value = larger(Vector{}, value);
    return x;
  });
}

// f(place, number of values there) over a panel's outputs.
template <class F>
LBK_INLINE inline void each_output(int64_t lanes, const F &f) {
  if (lanes >= kLanes) times<kVectors>([&](auto v) LBK_INLINE { f(v * kWidth, kWidth); });
  else each_vector(lanes, f);
}

constexpr int kTogether = kVectorBytes > 32 ? 4 : 2;  // rows that are activated together

// y = value(row, place), on top of what it holds or of the bias, activated: rows of a panel's results. `row` of value counts
// from the first one here; without `first`, y holds results of other inputs.
template <class F>
LBK_INLINE inline void put(const Call &call, int64_t row, int64_t rows, int64_t panel, bool first, int activation,
                           const F &value) {
  const int64_t lanes = call.w->rows - panel * kLanes, stride = call.y_stride;
  float *y = call.y + row * stride + panel * kLanes;
  const bool add = !first || call.add;
  const float *under = add ? y : call.bias ? call.bias + panel * kLanes : nullptr;
  const int64_t under_stride = add ? stride : 0;
  with_activation(activation, [&](const auto &activate) LBK_INLINE {
    each_group<kTogether>(0, rows, [&](auto group, int64_t r) LBK_INLINE {
      constexpr int N = decltype(group)::value;
      each_output(lanes, [&](int64_t i, int count) LBK_INLINE {
        Several<N> values;
        times<N>([&](auto k) LBK_INLINE {
          values.of[k] = value(r + k, i);
          if (under) values.of[k] += read(under + (r + k) * under_stride + i, count);
        });
        values = activate(values);
        times<N>([&](auto k) LBK_INLINE { write(values.of[k], y + (r + k) * stride + i, count); });
      });
    });
  });
}

// y = or += values (rows, stride) times steps (16,), or times those of rows, of a panel: results of this chunk of inputs on
// top of those before; behind the last, activated.
__attribute__((noinline)) void store(const Call &c, int64_t row, int64_t rows, int64_t panel, bool first, bool last,
                                     const float *values, int64_t stride, const float *steps) {
  const float *x_steps = c.x_steps + row;
  put(c, row, rows, panel, first, last ? c.activation : kAsItIs, [=](int64_t r, int64_t i) LBK_INLINE {
    return read(values + r * stride + i) * (steps ? read(steps + i) : Vector{} + x_steps[r]);
  });
}

// ---- integers

// (mult u - base - zero_point) . x of some inputs, from sums of stored numbers times integers and the sum of these; steps are
// not in it yet. Sums may have left int32 on the way, where only their difference fits: hence uint32.
struct Differences {
  uint32_t mult, base;
  float zero_point;

  explicit Differences(const lbk_matrix &w) : mult(w.mult), base(w.base), zero_point(w.zero_point) {}

  LBK_INLINE Vector of(const int32_t *acc, int32_t sum) const {
    Naturals words;
    memcpy(&words, acc, sizeof words);
    words = words * mult - base * static_cast<uint32_t>(sum);
    return __builtin_convertvector(reinterpret_cast<const Integers &>(words), Vector) - zero_point * static_cast<float>(sum);
  }
};

// out = or += the same times steps, of the span of blocks that begins at `block`.
__attribute__((noinline)) void add_scaled(const Call &c, int64_t row, int64_t rows, int64_t panel, int64_t block,
                                          const int32_t (*acc)[kLanes], float factor, bool add, float (*out)[kLanes]) {
  const lbk_matrix &w = *c.w;
  const Differences differences(w);
  const float *steps = steps_of(w, panel, block);
  const int32_t *sums = c.sums + row * w.blocks + block / summed_blocks(w);
  for (int64_t r = 0; r < rows; ++r, sums += w.blocks)
    times<kVectors>([&](auto v) LBK_INLINE {
      constexpr int i = v * kWidth;
      const Vector value = differences.of(acc[r] + i, *sums) * (read(steps + i) * factor);
      write(add ? value + read(out[r] + i) : value, out[r] + i);
    });
}

// The same and `store` at once, of results that are made of one span and one pass.
__attribute__((noinline)) void finish(const Call &c, int64_t row, int64_t rows, int64_t panel,
                                      const int32_t (*acc)[kLanes], float factor) {
  const lbk_matrix &w = *c.w;
  const Differences differences(w);
  const float *steps = steps_of(w, panel, 0), *x_steps = c.x_steps + row;
  const int32_t *sums = c.sums + row * w.blocks;
  const int64_t blocks = w.blocks;
  put(c, row, rows, panel, true, c.activation, [=](int64_t r, int64_t i) LBK_INLINE {
    return differences.of(acc[r] + i, sums[r * blocks]) * (read(steps + i) * factor) * x_steps[r];
  });
}

template <class Isa, int BITS, bool WIDE>
void multiply_integers(const Call &c, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  constexpr int kLineBytes = 128 * BITS;  // of a block
  constexpr int kTileBytes = WIDE ? Isa::kWideTile : Isa::kNarrowTile;
  constexpr int kXBytes = kBlock * (WIDE ? 2 : Isa::kNarrowBytes);
  alignas(64) uint8_t tile[kChunk * kTileBytes], found[BITS == 8 ? kChunk * kLineBytes : 1];
  const bool tiled = c.full_rows > Isa::kDirectRows;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t block = 0; block < w.blocks; block += kChunk) each_pass(w, panel, 1, [&](const Pass &pass) {
      const int64_t blocks = least(kChunk, w.blocks - block), span = least(summed_blocks(w), blocks);
      const bool whole = span == w.blocks && pass.first && pass.last;
      const uint8_t *lines = w.lines + (panel * w.blocks + block) * 128 * w.bits;
      if (BITS == 8 && pass.entries) {
        look_up(w.bits, lines, blocks, pass.entries, found);
        lines = found;
      }
      if (tiled) Isa::template unpack<BITS, WIDE>(lines, blocks, tile);
      each_group<Isa::kRows>(0, c.rows, [&](auto group, int64_t row) {
        constexpr int R = decltype(group)::value;
        alignas(64) float out[R][kLanes];
        for (int64_t b = 0; b < blocks; b += span) {
          alignas(64) int32_t acc[R][kLanes];
          const uint8_t *x = c.prepared + row * c.row_bytes + (block + b) * kXBytes;
          if (tiled)
            Isa::template dot<BITS, WIDE, true, R>(tile + b * kTileBytes, span, x, c.row_bytes, acc);
          else if constexpr (Isa::kDirectRows > 0)
            Isa::template dot<BITS, WIDE, false, R>(lines + b * kLineBytes, span, x, c.row_bytes, acc);
          if (whole) finish(c, row, R, panel, acc, pass.factor);
          else add_scaled(c, row, R, panel, block + b, acc, pass.factor, b > 0, out);
        }
        if (whole) return;
        store(c, row, R, panel, block == 0 && pass.first, block + kChunk >= w.blocks && pass.last, out[0], kLanes, nullptr);
      });
    });
}

// ---- floats

struct Codes {
  uint8_t themselves[256] = {};

  constexpr Codes() {
    for (int i = 0; i < 256; ++i) themselves[i] = static_cast<uint8_t>(i);
  }
};

// Inputs of `blocks` blocks as rows of 16 floats; without a table and steps of blocks.
template <int BITS>
void unpack_floats(const lbk_matrix &w, const uint8_t *lines, int64_t blocks, float *tile) {
  constexpr uint32_t kMask = (1u << BITS) - 1;
  const float mult = w.mult, offset = w.base + w.zero_point;
  for (int64_t line = 0; line < blocks * 2 * BITS; ++line, lines += 64)
    for (int part = 0; part < kLanes; part += kPart) {
      Words words;
      memcpy(&words, lines + 4 * part, sizeof words);
#pragma GCC unroll 32
      for (int place = 0; place < 32 / BITS; ++place) {
        const Words numbers = words >> (8 * (place % 4) + place / 4 * BITS) & kMask;
        const Floats values = __builtin_convertvector(reinterpret_cast<const Ints &>(numbers), Floats) * mult - offset;
        memcpy(tile + (line * (32 / BITS) + place) * kLanes + part, &values, sizeof values);
      }
    }
}

// The same by a table.
inline void unpack_table(const lbk_matrix &w, const uint8_t *lines, int64_t blocks, float *tile) {
  static constexpr Codes codes;
  alignas(64) uint8_t numbers[kFloatChunk * kBlock * kLanes];
  look_up(w.bits, lines, blocks, codes.themselves, numbers);
  for (const uint8_t *line = numbers; line < numbers + blocks * kBlock * kLanes; line += 64)
    for (int c = 0; c < 4; ++c, tile += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) tile[lane] = w.table[line[4 * lane + c]];
}

// Halves to floats: exponent and mantissa moved up, and 2^112 for the exponents' other zero. Right for what is finite.
inline void unpack_halves(const uint8_t *lines, int64_t count, float *tile) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    memcpy(&half, lines + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13, sign = static_cast<uint32_t>(half & 0x8000) << 16;
    float value;
    memcpy(&value, &bits, 4);
    value *= 5.192296858534828e33f;
    uint32_t whole;
    memcpy(&whole, &value, 4);
    whole |= sign;
    memcpy(tile + i, &whole, 4);
  }
}

inline void scale_tile(const lbk_matrix &w, int64_t panel, int64_t block, int64_t blocks, float *tile) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float *steps = steps_of(w, panel, block + b);
    for (int k = 0; k < kBlock; ++k, tile += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) tile[lane] *= steps[lane];
  }
}

// Products of R rows with P panels. Sums of few rows go in several chains, since an addition waits for the one before.
template <int R, int P>
__attribute__((noinline)) void dot_floats(const float *tile, int64_t panel_stride, int64_t count, const float *x,
                                          int64_t stride, float (*out)[P * kLanes]) {
  constexpr int N = P * kVectors, kWanted = 8 / (R * N), kChains = kWanted > 2 ? 4 : kWanted == 2 || R == 3 ? 2 : 1;
  Vector acc[kChains][R][N];
  times<kChains>([&](auto chain) LBK_INLINE { times<R>([&](auto r) LBK_INLINE {
    times<N>([&](auto v) LBK_INLINE { acc[chain][r][v] = Vector{}; });
  }); });
  const auto add = [&](int64_t k, auto chain) LBK_INLINE {
    Vector w[N];
    times<N>([&](auto v) LBK_INLINE {
      memcpy(&w[v], tile + v / kVectors * panel_stride + kLanes * k + v % kVectors * kWidth, sizeof w[v]);
    });
    times<R>([&](auto r) LBK_INLINE {
      const float value = x[r * stride + k];
      times<N>([&](auto v) LBK_INLINE { acc[chain][r][v] += w[v] * value; });
    });
  };
  int64_t k = 0;
  for (; k + kChains <= count; k += kChains) times<kChains>([&](auto chain) LBK_INLINE { add(k + chain, chain); });
  for (; k < count; ++k) add(k, Number<0>{});
  times<R>([&](auto r) LBK_INLINE { times<N>([&](auto v) LBK_INLINE {
    times<kChains - 1>([&](auto chain) LBK_INLINE { acc[0][r][v] += acc[chain + 1][r][v]; });
    memcpy(out[r] + v * kWidth, &acc[0][r][v], sizeof acc[0][r][v]);
  }); });
}

struct Ones {
  float of[kLanes] = {};

  constexpr Ones() {
    for (int i = 0; i < kLanes; ++i) of[i] = 1;
  }
};

alignas(64) constexpr Ones kOnes;

// BITS: 0 with a table.
template <class Isa, int BITS>
void multiply_floats(const Call &c, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  constexpr int P = Isa::kFloatPanels;
  constexpr int64_t kAtOnce = kFloatChunk, kTile = kAtOnce * kBlock * kLanes;  // 16 KiB beside the rows
  alignas(64) float tile[P * kTile];
  const float *x = c.row_bytes ? reinterpret_cast<const float *>(c.prepared) : c.x;
  const int64_t stride = c.row_bytes ? static_cast<int64_t>(c.row_bytes / sizeof(float)) : c.x_stride;
  for (int64_t panel = begin; panel < end; panel += P)
    for (int64_t block = 0; block < w.blocks; block += kAtOnce) {
      const int64_t blocks = least(kAtOnce, w.blocks - block), panels = least(P, end - panel);
      const int64_t first = block * kBlock, count = least(blocks * kBlock, w.cols - first);
      const uint8_t *lines = w.lines + (panel * w.blocks + block) * 128 * w.bits;
      const float *weights = BITS == 32 ? reinterpret_cast<const float *>(lines) : tile;
      for (int64_t p = 0; p < panels; ++p, lines += w.blocks * 128 * w.bits) {
        if constexpr (BITS == 16) unpack_halves(lines, blocks * kBlock * kLanes, tile + p * kTile);
        else if constexpr (BITS == 0) unpack_table(w, lines, blocks, tile + p * kTile);
        else if constexpr (BITS < 16) unpack_floats<BITS>(w, lines, blocks, tile + p * kTile);
        if (w.granularity == LBK_BLOCK64) scale_tile(w, panel + p, block, blocks, tile + p * kTile);
      }
      // A panel that is left alone goes with itself.
      const int64_t panel_stride = panels < P ? 0 : BITS == 32 ? w.blocks * kBlock * kLanes : kTile;
      each_group<Isa::kFloatRows>(0, c.rows, [&](auto group, int64_t row) {
        constexpr int R = decltype(group)::value;
        alignas(64) float out[R][P * kLanes];
        dot_floats<R, P>(weights, panel_stride, count, x + row * stride + first, stride, out);
        for (int64_t p = 0; p < panels; ++p) {
          const float *steps = w.granularity == LBK_BLOCK64 ? kOnes.of : steps_of(w, panel + p, block);
          store(c, row, R, panel + p, block == 0, block + kAtOnce >= w.blocks, out[0] + p * kLanes, P * kLanes, steps);
        }
      });
    }
}

// By the tables of `sum_tables`: an addition for every two bits.
template <class Isa>
void multiply_tables(const Call &c, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  const int64_t of_block = 2 * w.bits, lines = w.blocks * of_block;
  for (int64_t panel = begin; panel < end; ++panel)
    each_group<Isa::kTableRows>(0, c.rows, [&](auto group, int64_t row) {
      constexpr int R = decltype(group)::value;
      const int64_t span = w.granularity == LBK_BLOCK64 ? 1 : kChunk;
      for (int64_t block = 0; block < w.blocks; block += span) {
        const int64_t blocks = least(span, w.blocks - block);
        float out[R][kLanes];
        Isa::template dot_tables<R>(w.lines + (panel * lines + block * of_block) * 64, blocks * of_block,
                                    c.prepared + row * c.row_bytes + block * of_block * 256, c.row_bytes, out);
        store(c, row, R, panel, block == 0, block + span >= w.blocks, out[0], kLanes, steps_of(w, panel, block));
      }
    });
}

// ---- the entries of a set of instructions

template <class Isa>
bool takes_tables(const lbk_matrix &w, int64_t rows) {
  return Isa::kTableRows > 0 && w.bits <= 2 && rows <= Isa::kTableRows;
}

template <class Isa>
bool is_wide(const lbk_matrix &w, int mode) {
  return mode == LBK_A16 || (product_bits(w) == 8 && Isa::kWideAt8);
}

inline int no_sums(const lbk_matrix &, int) { return 0; }

inline int one_sum(const lbk_matrix &, int mode) { return mode != LBK_EXACT; }

template <class Isa>
size_t float_row_bytes(const lbk_matrix &w, int, int64_t rows) {
  if (takes_tables<Isa>(w, rows)) return w.blocks * 2 * w.bits * 256;
  return w.input_bits ? w.blocks * kBlock * sizeof(float) : 0;
}

template <class Isa>
size_t row_bytes(const lbk_matrix &w, int mode, int64_t rows) {
  if (mode == LBK_EXACT) return float_row_bytes<Isa>(w, mode, rows);
  return w.blocks * kBlock * (is_wide<Isa>(w, mode) ? 2 : Isa::kNarrowBytes);
}

template <class Isa>
void prepare_float_rows(const Call &c, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) prepare_floats(c, row, takes_tables<Isa>(*c.w, c.full_rows));
}

template <class Isa>
void prepare(const Call &c, int64_t begin, int64_t end) {
  if (c.mode == LBK_EXACT) return prepare_float_rows<Isa>(c, begin, end);
  for (int64_t row = begin; row < end; ++row) prepare_integers<Isa>(c, row, is_wide<Isa>(*c.w, c.mode));
}

template <class Isa, int BITS>
void multiply_float_bits(const Call &c, int64_t begin, int64_t end) {
  if constexpr (BITS <= 2 && Isa::kTableRows > 0) {
    if (takes_tables<Isa>(*c.w, c.full_rows)) return multiply_tables<Isa>(c, begin, end);
  }
  if (c.w->table_size) multiply_floats<Isa, 0>(c, begin, end);
  else multiply_floats<Isa, BITS>(c, begin, end);
}

template <class Isa>
void multiply_exact(const Call &c, int64_t begin, int64_t end) {
  switch (c.w->bits) {
    case 1: return multiply_float_bits<Isa, 1>(c, begin, end);
    case 2: return multiply_float_bits<Isa, 2>(c, begin, end);
    case 4: return multiply_float_bits<Isa, 4>(c, begin, end);
    case 16: return multiply_floats<Isa, 16>(c, begin, end);
    case 32: return multiply_floats<Isa, 32>(c, begin, end);
    default: return multiply_float_bits<Isa, 8>(c, begin, end);
  }
}

template <class Isa, int BITS>
void multiply_bits(const Call &c, int64_t begin, int64_t end) {
  if (is_wide<Isa>(*c.w, c.mode)) return multiply_integers<Isa, BITS, true>(c, begin, end);
  if constexpr (BITS < 8 || !Isa::kWideAt8) multiply_integers<Isa, BITS, false>(c, begin, end);
}

template <class Isa>
void multiply_rounded(const Call &c, int64_t begin, int64_t end) {
  switch (product_bits(*c.w)) {
    case 1: return multiply_bits<Isa, 1>(c, begin, end);
    case 2: return multiply_bits<Isa, 2>(c, begin, end);
    case 4: return multiply_bits<Isa, 4>(c, begin, end);
    default: return multiply_bits<Isa, 8>(c, begin, end);
  }
}

template <class Isa>
void multiply(const Call &c, int64_t begin, int64_t end) {
  if (c.mode == LBK_EXACT) return multiply_exact<Isa>(c, begin, end);
  multiply_rounded<Isa>(c, begin, end);
}

}  // namespace
}  // namespace lbk
