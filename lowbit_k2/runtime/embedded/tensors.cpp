#include "tensors.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <utility>

#include "refusal.h"

namespace lbk {
namespace {

constexpr Encoding kEncodings[] = {
    {"binary", 1, false, false}, {"ternary", 0, false, false}, {"int3", 3, false, false},   {"int4", 4, false, false},
    {"int5", 5, false, false},   {"int6", 6, false, false},    {"int7", 7, false, false},   {"int8", 8, false, false},
    {"index1", 1, true, false},  {"index2", 2, true, false},   {"index3", 3, true, false},  {"index4", 4, true, false},
    {"index5", 5, true, false},  {"index6", 6, true, false},   {"index7", 7, true, false},  {"index8", 8, true, false},
    {"float16", 16, false, true}, {"float32", 32, false, true}};

constexpr int kPowers[] = {1, 3, 9, 27, 81};

// The bits, or the digit, of weight k of a row.
int stored(const Encoding &e, const uint8_t *row, int64_t k) {
  if (!e.bits) return row[k / 5] / kPowers[k % 5] % 3;
  const int64_t bit = k * e.bits, byte = bit / 8;
  const int word = row[byte] | ((bit + e.bits - 1) / 8 > byte ? row[byte + 1] << 8 : 0);
  return word >> bit % 8 & ((1 << e.bits) - 1);
}

// The same the other way round, in a row of zeros.
void store(const Encoding &e, uint8_t *row, int64_t k, int number) {
  if (!e.bits) {
    row[k / 5] = static_cast<uint8_t>(row[k / 5] + number * kPowers[k % 5]);
    return;
  }
  const int64_t bit = k * e.bits, byte = bit / 8;
  const int word = number << bit % 8;
  row[byte] |= static_cast<uint8_t>(word);
  if (word >> 8) row[byte + 1] |= static_cast<uint8_t>(word >> 8);
}

int code(const Encoding &e, int number) {
  if (e.is_index) return number;
  if (e.bits == 1) return 2 * number - 1;
  if (!e.bits) return number - 1;
  const int sign = 1 << (e.bits - 1);
  return (number ^ sign) - sign;
}

float half_to_float(const uint8_t *bytes) {
  const int half = bytes[0] | bytes[1] << 8, exponent = half >> 10 & 31, fraction = half & 1023;
  const float size = exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                              : std::ldexp(static_cast<float>(fraction), -24);
  return half >> 15 ? -size : size;  // infinite ones were refused
}

}  // namespace

const Encoding *encoding_named(const std::string &name) {
  for (const Encoding &e : kEncodings)
    if (name == e.name) return &e;
  return nullptr;
}

const Encoding &carrier(const Encoding &encoding) {
  if (!encoding.bits || 8 % encoding.bits == 0) return encoding;
  return *encoding_named(encoding.is_index ? "index8" : "int8");
}

std::vector<uint8_t> narrowed(const std::string &bytes, const Encoding &encoding, int64_t rows, int64_t cols) {
  const Encoding &whole = carrier(encoding);
  const uint8_t *from = reinterpret_cast<const uint8_t *>(bytes.data());
  if (&whole == &encoding) return {from, from + bytes.size()};
  const int64_t stride = encoding.row_bytes(cols);
  std::vector<uint8_t> result(rows * stride, 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols; ++k) {
      const int value = code(whole, *from++), number = value & ((1 << encoding.bits) - 1);
      if (code(encoding, number) != value) refuse("code %d does not fit the encoding %s", value, encoding.name);
      store(encoding, &result[r * stride], k, number);
    }
  return result;
}

lbk_tensor Tensor::described() const {
  return {encoding->name, rows, cols, data, granularity, steps, table, table_size, zero_point, input_bits};
}

void Tensor::dequantize(int64_t begin, int64_t end, float *weights) const {
  const int64_t stride = encoding->row_bytes(cols), blocks = (cols + 63) / 64;
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t *row = data + r * stride;
    const float *of_row = granularity == LBK_BLOCK64 ? steps + r * blocks : granularity == LBK_CHANNEL ? steps + r : steps;
    for (int64_t k = 0; k < cols; ++k, ++weights) {
      if (encoding->bits == 32) {
        std::memcpy(weights, row + 4 * k, 4);
      } else if (encoding->bits == 16) {
        *weights = half_to_float(row + 2 * k);
      } else {
        const int c = code(*encoding, stored(*encoding, row, k));
        *weights = (table ? table[c] : static_cast<float>(c - zero_point)) * of_row[granularity == LBK_BLOCK64 ? k / 64 : 0];
      }
    }
  }
}

Tensor Tensor::kept() const {
  const int64_t blocks = (cols + 63) / 64, bytes = rows * encoding->row_bytes(cols);
  const int64_t count = !steps ? 0 : granularity == LBK_TENSOR ? 1 : granularity == LBK_CHANNEL ? rows : rows * blocks;
  Tensor result = *this;
  result.own = std::make_shared<std::vector<uint8_t>>((count + table_size) * sizeof(float) + bytes);
  uint8_t *next = result.own->data();
  const auto put = [&next](const void *from, size_t size) {
    if (size) std::memcpy(next, from, size);
    return std::exchange(next, next + size);
  };
  result.steps = count ? reinterpret_cast<float *>(put(steps, count * sizeof(float))) : nullptr;
  result.table = table ? reinterpret_cast<float *>(put(table, table_size * sizeof(float))) : nullptr;
  result.data = put(data, bytes);
  return result;
}

Tensor Tensor::rounded() const {
  if (!encoding->is_float) return *this;
  Tensor result = *this;
  result.encoding = encoding_named("int8");
  result.granularity = LBK_CHANNEL;
  result.own = std::make_shared<std::vector<uint8_t>>(rows * (sizeof(float) + cols));
  float *next = reinterpret_cast<float *>(result.own->data());
  uint8_t *codes = result.own->data() + rows * sizeof(float);
  result.steps = next, result.data = codes;
  std::vector<float> weights(cols);
  for (int64_t r = 0; r < rows; ++r) {
    dequantize(r, r + 1, weights.data());
    float largest = 0;
    for (const float weight : weights) largest = std::max(largest, std::fabs(weight));
    const float step = *next++ = std::max(largest / 127, FLT_MIN);
    for (const float weight : weights) *codes++ = static_cast<uint8_t>(static_cast<int>(std::nearbyint(weight / step)));
  }
  return result;
}

Tensor Tensor::places_first(int64_t places, int64_t begin, int64_t end) const {
  const Encoding &e = *encoding;
  const int64_t channels = cols / places, from_stride = e.row_bytes(cols), size = e.bits / 8;
  Tensor result = *this;
  result.cols = (end - begin) * channels;
  const int64_t stride = e.row_bytes(result.cols);
  result.own = std::make_shared<std::vector<uint8_t>>(rows * stride, uint8_t{0});
  result.data = result.own->data();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t p = begin; p < end; ++p) {
        const uint8_t *from = data + r * from_stride;
        uint8_t *to = result.own->data() + r * stride;
        const int64_t here = c * places + p, there = (p - begin) * channels + c;
        if (e.is_float) std::memcpy(to + there * size, from + here * size, size);
        else store(e, to, there, stored(e, from, here));
      }
  return result;
}

}  // namespace lbk
