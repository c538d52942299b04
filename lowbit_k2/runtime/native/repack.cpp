// From the bytes of a packed file to panels, with every byte checked.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "internal.h"

namespace lbk {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 24;  // of a matrix; one of our largest layers has 2^17

// How an encoding's numbers are stored in panels.
struct Encoding {
  const char *name;
  int file_bits;  // of a weight in the file; 0: ternary, five a byte
  int bits;       // in panels
  int mult, base;
  bool is_index;

  bool is_float() const { return bits > 8; }
};

bool parse(const char *name, Encoding *found) {
  if (!name) return false;
  if (!std::strcmp(name, "binary")) return *found = {name, 1, 1, 2, 1, false}, true;
  if (!std::strcmp(name, "ternary")) return *found = {name, 0, 2, 1, 1, false}, true;
  if (!std::strcmp(name, "float16")) return *found = {name, 16, 16, 1, 0, false}, true;
  if (!std::strcmp(name, "float32")) return *found = {name, 32, 32, 1, 0, false}, true;
  const bool is_index = !std::strncmp(name, "index", 5);
  const char *digits = is_index ? name + 5 : !std::strncmp(name, "int", 3) ? name + 3 : "";
  if (digits[0] < (is_index ? '1' : '3') || digits[0] > '8' || digits[1]) return false;
  const int n = digits[0] - '0';
  *found = {name, n, is_index || n <= 2 ? n : n <= 4 ? 4 : 8, 1, is_index ? 0 : 1 << (n - 1), is_index};
  return true;
}

size_t row_bytes(const Encoding &e, int64_t cols) {
  return e.file_bits ? (static_cast<size_t>(cols) * e.file_bits + 7) / 8 : (static_cast<size_t>(cols) + 4) / 5;
}

// One row of the file to stored numbers 0, 1, ..; -1 where no writer makes such bytes.
int unpack_row(const Encoding &e, const uint8_t *row, int64_t cols, int table_size, uint8_t *numbers) {
  const int64_t bytes = row_bytes(e, cols);
  if (!e.file_bits) {
    for (int64_t i = 0; i < bytes; ++i) {
      int rest = row[i];
      if (rest > 242) return fail("byte %d in ternary weights: five of them give 0 to 242", rest);
      for (int64_t k = 5 * i; k < 5 * i + 5; ++k, rest /= 3) {
        if (k < cols) numbers[k] = rest % 3;
        else if (rest % 3) return fail("padding behind a row of %s weights is not zero", e.name);
      }
    }
    return 0;
  }
  const int n = e.file_bits, sign = e.is_index || n == 1 ? 0 : 1 << (n - 1);
  const uint32_t mask = (1u << n) - 1;
  for (int64_t k = 0; k < cols; ++k) {
    const int64_t bit = k * n, byte = bit / 8;
    const uint32_t word = row[byte] | (byte + 1 < bytes ? row[byte + 1] << 8 : 0);
    numbers[k] = static_cast<uint8_t>((word >> bit % 8 & mask) ^ sign);  // two's complement to code + 2^(n-1)
    if (e.is_index && numbers[k] >= table_size)
      return fail("code %d lies outside its table of %d entries", numbers[k], table_size);
  }
  const int used = cols * n % 8;
  if (used && row[bytes - 1] >> used) return fail("padding behind a row of %s weights is not zero", e.name);
  return 0;
}

// One row of floats into its lane; -1 where one is not finite.
int fill_floats(const Encoding &e, const uint8_t *row, int64_t cols, uint8_t *panel, int lane) {
  const int bytes = e.bits / 8;
  for (int64_t k = 0; k < cols; ++k) {
    const uint8_t *number = row + k * bytes;
    const int top = number[bytes - 1] << 8 | number[bytes - 2], exponent = bytes == 2 ? 0x7c00 : 0x7f80;
    if ((top & exponent) == exponent) return fail("its numbers must be finite");
    std::memcpy(panel + (k * kLanes + lane) * bytes, number, bytes);
  }
  return 0;
}

// One number of one output into its lane of a block, which is zero so far.
void put(int number, int bits, int place, uint8_t *block, int lane) {
  const int per_line = 32 / bits, line = place / per_line, in_line = place % per_line;
  block[line * 64 + lane * 4 + in_line % 4] |= number << in_line / 4 * bits;
}

// The numbers of one output; `low` bits of each as one panel, every other bit as one behind it.
void fill_lane(const uint8_t *numbers, int64_t cols, int bits, int low, uint8_t *panel, int lane) {
  for (int64_t k = 0; k < cols; ++k) {
    const int place = k % kBlock;
    uint8_t *block = panel + k / kBlock * 128 * bits;
    put(numbers[k] & ((1 << low) - 1), low, place, block, lane);
    for (int bit = low; bit < bits; ++bit) put(numbers[k] >> bit & 1, 1, place, block + 128 * bit, lane);
  }
}

int low_bits(int bits) { return bits >= 4 ? 4 : bits >= 2 ? 2 : 1; }

int check(const lbk_tensor &t, const Encoding &e) {
  if (t.rows < 1 || t.cols < 1 || t.rows > kMaxSide || t.cols > kMaxSide)
    return fail("a matrix of %lld x %lld cannot be multiplied", static_cast<long long>(t.rows),
                static_cast<long long>(t.cols));
  if (!t.data || (!t.steps && !e.is_float())) return fail("no data or no steps");
  if (t.granularity < LBK_TENSOR || t.granularity > LBK_BLOCK64) return fail("unknown granularity %d", t.granularity);
  if (t.input_bits && (t.input_bits < 2 || t.input_bits > 16)) return fail("inputs of %d bits", t.input_bits);
  if (e.is_float() && (t.granularity || t.zero_point)) return fail("floats have no steps and no zero point");
  if (t.zero_point < -128 || t.zero_point > 255) return fail("%d is no zero point", t.zero_point);
  if (e.is_index != (t.table != nullptr)) return fail("a table belongs to an index encoding, and only there");
  if (e.is_index && (t.zero_point || t.table_size < 1 || t.table_size > 1 << e.file_bits))
    return fail("a table of %d entries, zero point %d", t.table_size, t.zero_point);
  for (int i = 0; e.is_index && i < t.table_size; ++i)
    if (!std::isfinite(t.table[i])) return fail("a table must hold finite numbers");
  return 0;
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// What a table is as integers: unit and multiples of it.
struct Integers {
  double unit = 1;
  int of[256] = {};
  bool on_grid = true;  // with no loss but float32's rounding
};

// On the coarsest grid of at most 128 steps to the largest entry, if there is one: that of the General Quantizer is 1/128 of
// it. A product of two numbers of float32 is off by 2^-24 of itself, so is the largest entry. Else 16 bits.
Integers integers_of(const float *table, int count) {
  Integers found;
  double largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(double{table[i]}));
  if (largest == 0) return found;
  const auto lies_on = [&](double unit) {
    for (int i = 0; i < count; ++i)
      if (std::fabs(table[i] - std::nearbyint(table[i] / unit) * unit) > 1.5 * 0x1p-23 * std::fabs(table[i])) return false;
    return true;
  };
  int steps = 1;
  while (steps <= 128 && !lies_on(largest / steps)) ++steps;
  found.on_grid = steps <= 128;
  found.unit = largest / (found.on_grid ? steps : kMaxTop16);
  if (found.unit < FLT_MIN) found.unit = FLT_MIN, found.on_grid = false;
  for (int i = 0; i < count; ++i) found.of[i] = static_cast<int>(std::nearbyint(table[i] / found.unit));
  return found;
}

// Of integers the low bytes, and what is left of them: high ones.
void fill_entries(const Integers &integers, int count, uint8_t *entries) {
  for (int i = 0; i < count; ++i) {
    const int high = (integers.of[i] + 128 + 65536) / 256 - 256;
    entries[i] = static_cast<uint8_t>(integers.of[i] - 256 * high + 128);
    entries[256 + i] = static_cast<uint8_t>(high + 128);
  }
}

int fill_steps(const lbk_tensor &t, const Encoding &e, float unit, lbk_matrix *w) {
  if (e.is_float()) {
    for (int i = 0; i < kLanes; ++i) w->steps[i] = 1;
    return 0;
  }
  const int64_t of_row = t.granularity == LBK_BLOCK64 ? w->blocks : 1;
  const int64_t count = t.granularity == LBK_TENSOR ? 1 : t.rows * of_row;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(t.steps[i]) || !(t.steps[i] > 0)) return fail("every step must be a positive number");
    const int64_t row = i / of_row, block = i % of_row;
    w->steps[(row / kLanes * of_row + block) * kLanes + row % kLanes] = t.steps[i] * unit;
  }
  for (int i = 1; i < kLanes && t.granularity == LBK_TENSOR; ++i) w->steps[i] = w->steps[0];
  return 0;
}

int fill(const lbk_tensor &t, const Encoding &e, lbk_matrix *w) {
  const size_t stride = row_bytes(e, t.cols), panel_bytes = static_cast<size_t>(w->blocks) * 128 * w->bits;
  uint8_t *numbers = static_cast<uint8_t *>(std::malloc(t.cols));
  if (!numbers) return fail("out of memory");
  int status = 0;
  for (int64_t row = 0; row < t.rows && !status; ++row) {
    uint8_t *panel = w->lines + row / kLanes * panel_bytes;
    if (e.is_float()) {
      status = fill_floats(e, t.data + row * stride, t.cols, panel, row % kLanes);
      continue;
    }
    status = unpack_row(e, t.data + row * stride, t.cols, t.table_size, numbers);
    if (status) continue;
    fill_lane(numbers, t.cols, w->bits, w->entries ? low_bits(w->bits) : w->bits, panel, row % kLanes);
    for (int64_t k = 0; w->entries && k < t.cols; ++k) w->high[row / kLanes] |= w->entries[256 + numbers[k]] != 128;
  }
  std::free(numbers);
  return status;
}

}  // namespace

}  // namespace lbk

using namespace lbk;

extern "C" {

lbk_matrix *lbk_matrix_new(const lbk_tensor *tensor) {
  const lbk_tensor &t = *tensor;
  Encoding e;
  if (!parse(t.encoding, &e)) return fail("unknown encoding %.40s", t.encoding ? t.encoding : "NULL"), nullptr;
  if (check(t, e)) return nullptr;
  lbk_matrix *w = new (std::nothrow) lbk_matrix{};
  if (!w) return fail("out of memory"), nullptr;
  const Integers integers = e.is_index ? integers_of(t.table, t.table_size) : Integers();
  const bool linear = e.is_index && e.bits == 1 && t.table_size == 2 && integers.on_grid;  // two integers always lie evenly
  const bool is_table = e.is_index && !linear;
  w->rows = t.rows, w->cols = t.cols;
  w->panels = (t.rows + kLanes - 1) / kLanes, w->blocks = (t.cols + kBlock - 1) / kBlock;
  w->bits = e.bits, w->zero_point = t.zero_point, w->granularity = t.granularity, w->input_bits = t.input_bits;
  w->mult = e.mult, w->base = e.base;
  if (linear) w->mult = integers.of[1] - integers.of[0], w->base = -integers.of[0];
  if (is_table) w->base = 128, w->table_size = t.table_size;
  const float unit = static_cast<float>(integers.unit);
  w->unit = is_table ? unit : 1, w->on_grid = integers.on_grid;
  const size_t lines = static_cast<size_t>(w->panels) * w->blocks * 128 * e.bits;
  const size_t groups = t.granularity == LBK_TENSOR ? 1 : t.granularity == LBK_CHANNEL ? w->panels
                                                                                       : w->panels * w->blocks;
  const size_t steps = aligned(groups * kLanes * sizeof(float)), table = aligned(w->table_size * sizeof(float));
  const size_t entries = is_table ? 512 : 0;
  w->bytes = lines + steps + table + entries + (is_table ? aligned(w->panels) : 0);
  w->lines = static_cast<uint8_t *>(std::aligned_alloc(64, w->bytes));
  if (!w->lines) return lbk_matrix_free(w), fail("out of memory"), nullptr;
  std::memset(w->lines, 0, w->bytes);
  w->steps = reinterpret_cast<float *>(w->lines + lines);
  if (is_table) {
    w->table = reinterpret_cast<float *>(w->lines + lines + steps);
    w->entries = w->lines + lines + steps + table;
    w->high = w->entries + entries;
    std::memcpy(w->table, t.table, w->table_size * sizeof(float));
    fill_entries(integers, t.table_size, w->entries);
  }
  if (fill_steps(t, e, linear ? unit : 1, w) || fill(t, e, w)) return lbk_matrix_free(w), nullptr;
  return w;
}

void lbk_matrix_free(lbk_matrix *matrix) {
  if (matrix) std::free(matrix->lines);
  delete matrix;
}

size_t lbk_matrix_bytes(const lbk_matrix *matrix) { return sizeof *matrix + matrix->bytes; }
}
