// Products for instructions that sum products of bytes (VNNI, tiles). An activation is an integer of 1, 2 or 4 signed
// bytes, each a row of its own, called a plane row: integers of 8 bits take one, of 16 two; in exact mode four hold 31 bits
// of what the row's largest number needs. Sums over a whole row fit int32, so that floats come in at its end only.
// Like panels.h, compiled anew for every set of instructions.
#pragma once

#include "panels.h"

namespace lbk {
namespace {

// Blocks whose products are summed in int32: 512 * 64 * 128 * 383 < 2^31, 383 being the farthest that a number of 8 bits is
// from a zero point.
constexpr int64_t kIntegerBlocks = 512;

constexpr int64_t kFoundBlocks = 32;  // of codes that are looked up at a time: 32 KiB

inline int64_t blocks_at_once(const lbk_matrix &w) { return w.entries ? kFoundBlocks : kIntegerBlocks; }

// Blocks that share a sum of activations, because they share steps.
inline int64_t span_of(const lbk_matrix &w) { return w.granularity == LBK_BLOCK64 ? 1 : blocks_at_once(w); }

// Plane rows lie in groups that are multiplied together: 64 bytes of each row of a group, then the next 64 of each. A group
// of `size` begins at plane row `first`.
struct Group {
  int64_t first, size;
};

inline uint8_t *place(const Call &c, const Group &group, int64_t row, int64_t block) {
  return c.prepared + (group.first * c.w->blocks + block * group.size + (row - group.first)) * kBlock;
}

// ---- activations

// The step of a row of activations, and NaN where the row is not finite.
inline float plane_step(const Call &c, float max) {
  if (max > 3.40282347e38f) return __builtin_nanf("");
  if (c.mode != LBK_EXACT || c.w->input_bits) return step_of(*c.w, max, top_of(*c.w, c.mode));
  uint32_t bits;
  memcpy(&bits, &max, 4);
  const uint32_t exponent = bits >> 23;
  bits = (exponent > 30 ? exponent - 29 : 1) << 23;  // a power of two: max / step < 2^30, and no division rounds
  float step;
  memcpy(&step, &bits, 4);
  return step;
}

// Sums of integers, and of what is left of them after lower planes are taken off, over which they may leave int32: the sums
// of planes, which are differences, do not.
template <int P>
struct Sums {
  Naturals of[P + 1] = {};

  int32_t total(int plane) const {
    uint32_t total = 0;
    for (int i = 0; i < kWidth; ++i) total += of[plane][i] - 256 * of[plane + 1][i];
    return static_cast<int32_t>(total);
  }
};

// Rows begin .. end-1 to integers and to planes.
template <class Isa, int P>
void prepare_planes(const Call &c, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  const int64_t span = span_of(w);
  for (int64_t row = begin; row < end; ++row) {
    const float *x = c.x + row * c.x_stride;
    const float step = plane_step(c, largest(x, w.cols)), inverse = step == step ? 1 / step : 0.f;
    c.x_steps[row] = step * (1 << 8 * (P - 1));  // of the highest plane
    const Group group = Isa::group_of(c.rows * P, row * P, P);
    uint8_t *out = place(c, group, row * P, 0);
    int32_t *sums = c.sums + row * P * w.blocks;
    alignas(64) float last[kBlock];
    for (int64_t block = 0, number = 0; block < w.blocks; block += span, ++number) {
      Sums<P> sum;
      for (int64_t b = block; b < least(block + span, w.blocks); ++b, out += group.size * kBlock) {
        const float *from = x + b * kBlock;
        if ((b + 1) * kBlock > w.cols) {
          memset(last, 0, sizeof last);
          memcpy(last, from, (w.cols - b * kBlock) * sizeof(float));
          from = last;
        }
        Isa::template quantize<P>(from, step == step ? step : 0.f, inverse, out, sum);
      }
      for (int p = 0; p < P; ++p) sums[p * w.blocks + number] = sum.total(p);
    }
  }
}

// ---- results

// (weights . x) of a row in units of the highest plane, from sums of stored numbers times bytes; steps are not in it yet.
struct Unscaled {
  uint32_t offset, mult;
  int64_t blocks;

  explicit Unscaled(const lbk_matrix &w) : offset(w.base + w.zero_point), mult(w.mult), blocks(w.blocks) {}

  template <int P>
  LBK_INLINE Vector of(const int32_t (*acc)[kLanes], int64_t i, const int32_t *sums) const {
    Vector total = {};
    times<P>([&](auto p) LBK_INLINE {
      Naturals words;
      memcpy(&words, acc[p] + i, sizeof words);
      words = words * mult - offset * static_cast<uint32_t>(sums[p * blocks]);
      total = total * (1 / 256.f) + __builtin_convertvector(reinterpret_cast<const Integers &>(words), Vector);
    });
    return total;
  }
};

// out = or += (weights . x) * steps of the weights, of some blocks.
template <int P>
__attribute__((noinline)) void scale_planes(const Call &c, int64_t first, int64_t rows, int64_t panel, int64_t block,
                                            float factor, bool add, const int32_t (*acc)[kLanes],
                                            float (*out)[kLanes]) {
  const lbk_matrix &w = *c.w;
  const Unscaled unscaled(w);
  const float *steps = steps_of(w, panel, block);
  const int32_t *sums = c.sums + first * w.blocks + block / span_of(w);
  for (int64_t r = 0; r < rows; ++r, sums += P * w.blocks, acc += P)
    times<kVectors>([&](auto v) LBK_INLINE {
      constexpr int i = v * kWidth;
      const Vector total = unscaled.of<P>(acc, i, sums) * (read(steps + i) * factor);
      write(add ? total + read(out[r] + i) : total, out[r] + i);
    });
}

// The same and `store` at once, where nothing else is added to them.
template <int P>
__attribute__((noinline)) void finish_planes(const Call &c, int64_t first, int64_t rows, int64_t panel, float factor,
                                             const int32_t (*acc)[kLanes]) {
  const lbk_matrix &w = *c.w;
  const Unscaled unscaled(w);
  const int64_t row = first / P, stride = P * w.blocks;
  const float *steps = steps_of(w, panel, 0), *x_steps = c.x_steps + row;
  const int32_t *sums = c.sums + first * w.blocks;
  put(c, row, rows, panel, true, c.activation, [=](int64_t r, int64_t i) LBK_INLINE {
    return unscaled.of<P>(acc + r * P, i, sums + r * stride) * (read(steps + i) * factor) * x_steps[r];
  });
}

// Whether sums of blocks begin .. end-1 are all that a result is made of.
inline bool is_whole(const Call &c, const Pass &pass, int64_t begin, int64_t end) {
  return begin == 0 && end == c.w->blocks && pass.first && pass.last;
}

// ---- products

// Bits FROM .. of every byte, BITS of them, at TO.
template <int BITS, int FROM, int TO>
LBK_INLINE inline void take_field(const Integers &words, Integers *field) {
  if constexpr (BITS == 8) *field = words;
  else *field = words >> (FROM - TO) & static_cast<int32_t>(0x01010101u * (((1u << BITS) - 1) << TO));
}

constexpr int power_of_two_below(int n) { return n < 2 ? 1 : 2 * power_of_two_below(n / 2); }

// Sums of R plane rows over blocks. Fields of a line are not shifted into place but masked where they are, as far as there
// are registers: sums are kept apart by place and shifted in the end. Sums of few rows are spread over several lines, since
// one waits for the one before; and go over parts of a line's lanes, one after the other.
template <class Isa, int BITS, int R>
__attribute__((noinline)) void dot_planes(const uint8_t *weights, int64_t blocks, const uint8_t *x,
                                          int32_t (*acc)[kLanes]) {
  constexpr int kFields = 8 / BITS, kWide = R < 3 ? 1 : kVectors;  // vectors at a time
  constexpr int kMost = power_of_two_below(Isa::kSums / (R * kWide));
  constexpr int kPlaces = kMost < kFields ? kMost : kFields;
  constexpr int kFree = kMost / kPlaces, kWanted = 8 / kPlaces;
  constexpr int kLines = least(least(kFree, kWanted), 2 * BITS);
  for (int part = 0; part < kVectors; part += kWide) {
    Integers sums[R][kLines * kPlaces][kWide];
    times<R>([&](auto r) LBK_INLINE { times<kLines * kPlaces>([&](auto i) LBK_INLINE {
      times<kWide>([&](auto v) LBK_INLINE { sums[r][i][v] = Integers{}; });
    }); });
    const uint8_t *line = weights + part * kVectorBytes, *bytes = x;
    for (int64_t block = 0; block < blocks; ++block, bytes += (R - 1) * kBlock)
      for (int l = 0; l < 2 * BITS; l += kLines, line += 64 * kLines, bytes += kLines * 4 * kFields)
        times<kLines>([&](auto u) LBK_INLINE {
          Integers words[kWide];
          times<kWide>([&](auto v) LBK_INLINE { memcpy(&words[v], line + 64 * u + v * kVectorBytes, kVectorBytes); });
          times<kFields / kPlaces>([&](auto h) LBK_INLINE { times<kPlaces>([&](auto g) LBK_INLINE {
            constexpr int kField = h * kPlaces + g;
            Integers field[kWide];
            times<kWide>([&](auto v) LBK_INLINE {
              take_field<BITS, kField * BITS, g * BITS>(words[v], &field[v]);
            });
            times<R>([&](auto r) LBK_INLINE {
              const auto spread = Isa::spread(bytes + r * kBlock + 4 * (u * kFields + kField));
              times<kWide>([&](auto v) LBK_INLINE { Isa::add(sums[r][u * kPlaces + g][v], field[v], spread); });
            });
          }); });
        });
    times<R>([&](auto r) LBK_INLINE { times<kWide>([&](auto v) LBK_INLINE {
      Integers sum = {};
      times<kLines>([&](auto u) LBK_INLINE { times<kPlaces>([&](auto g) LBK_INLINE {
        sum += sums[r][u * kPlaces + g][v] >> (BITS < 8 ? g * BITS : 0);
      }); });
      memcpy(acc[r] + (part + v) * kWidth, &sum, sizeof sum);
    }); });
  }
}

using Dot = void (*)(const uint8_t *weights, int64_t blocks, const uint8_t *x, int32_t (*acc)[kLanes]);

// `dot_planes` for each size of a group.
template <class Isa, int BITS>
struct Dots {
  Dot of[Isa::kGroups];

  Dots() { times<Isa::kGroups>([&](auto i) { of[i] = dot_planes<Isa, BITS, Isa::kGroup[i]>; }); }
};

// The smallest group that holds so many, or the largest.
template <class Isa>
inline int number_of(int64_t rows) {
  int i = 0;
  while (i < Isa::kGroups - 1 && Isa::kGroup[i] < rows) ++i;
  return i;
}

// Of the largest groups, and at the end the smallest that there is for what is left.
template <class Isa>
inline Group greedy_group(int64_t rows, int64_t row) {
  constexpr int kMost = Isa::kGroup[Isa::kGroups - 1];
  const int64_t first = row / kMost * kMost;
  return {first, Isa::kGroup[number_of<Isa>(rows - first)]};
}

template <class Isa, int P>
void multiply_planes(const Call &c, const Dot *dots, int64_t begin, int64_t end) {
  const lbk_matrix &w = *c.w;
  const int64_t span = span_of(w), rows = c.rows * P, at_once = blocks_at_once(w), block_bytes = 128 * product_bits(w);
  alignas(64) int32_t acc[kMaxGroup][kLanes];
  alignas(64) float out[kMaxGroup][kLanes];
  alignas(64) uint8_t found[kFoundBlocks * kBlock * kLanes];
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t chunk = 0; chunk < w.blocks; chunk += at_once) each_pass(w, panel, 1, [&](const Pass &pass) {
      const int64_t last = least(chunk + at_once, w.blocks);
      const bool whole = is_whole(c, pass, chunk, least(chunk + span, w.blocks));
      const uint8_t *weights = w.lines + (panel * w.blocks + chunk) * 128 * w.bits;
      if (pass.entries) {
        look_up(w.bits, weights, last - chunk, pass.entries, found);
        weights = found;
      }
      for (Group group{0, 0}; (group.first += group.size) < rows;) {
        group = Isa::group_of(rows, group.first, P);
        const Dot dot = dots[number_of<Isa>(group.size)];
        const int64_t count = least(group.size, rows - group.first) / P;
        for (int64_t block = chunk; block < last; block += span) {
          dot(weights + (block - chunk) * block_bytes, least(span, last - block), place(c, group, group.first, block), acc);
          if (whole) finish_planes<P>(c, group.first, count, panel, pass.factor, acc);
          else scale_planes<P>(c, group.first, count, panel, block, pass.factor, block > chunk, acc, out);
        }
        if (whole) continue;
        store(c, group.first / P, count, panel, chunk == 0 && pass.first, last == w.blocks && pass.last, out[0], kLanes,
              nullptr);
      }
    });
}

// ---- entries

template <class Isa>
int planes(const lbk_matrix &w, int mode) {
  if (w.bits > 8) return 0;
  if (mode == LBK_EXACT) return Isa::kExact && w.on_grid ? 4 : 0;
  return mode == LBK_A16 ? 2 : 1;
}

template <class Isa>
size_t plane_row_bytes(const lbk_matrix &w, int mode, int64_t rows) {
  const int count = planes<Isa>(w, mode);
  return count ? w.blocks * kBlock * count : Isa::floats().row_bytes(w, mode, rows);
}

template <class Isa>
void prepare_by_planes(const Call &c, int64_t begin, int64_t end) {
  switch (planes<Isa>(*c.w, c.mode)) {
    case 0: return Isa::floats().prepare(c, begin, end);
    case 1: return prepare_planes<Isa, 1>(c, begin, end);
    case 2: return prepare_planes<Isa, 2>(c, begin, end);
    default: if constexpr (Isa::kExact) return prepare_planes<Isa, 4>(c, begin, end);
  }
}

template <class Isa, int P>
void multiply_with(const Call &c, int64_t begin, int64_t end) {
  switch (product_bits(*c.w)) {
    case 1: return Isa::template multiply<1, P>(c, begin, end);
    case 2: return Isa::template multiply<2, P>(c, begin, end);
    case 4: return Isa::template multiply<4, P>(c, begin, end);
    default: return Isa::template multiply<8, P>(c, begin, end);
  }
}

template <class Isa>
void multiply_by_planes(const Call &c, int64_t begin, int64_t end) {
  switch (planes<Isa>(*c.w, c.mode)) {
    case 0: return Isa::floats().multiply(c, begin, end);
    case 1: return multiply_with<Isa, 1>(c, begin, end);
    case 2: return multiply_with<Isa, 2>(c, begin, end);
    default: if constexpr (Isa::kExact) return multiply_with<Isa, 4>(c, begin, end);
  }
}

}  // namespace
}  // namespace lbk
