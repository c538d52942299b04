// Tensors as they lie in a packed file (docs/packed-format.md, section 4).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lowbit_k2.h"

namespace lbk {

struct Encoding {
  const char *name;
  int bits;  // of a weight; 0: ternary, five weights a byte
  bool is_index, is_float;

  int64_t row_bytes(int64_t cols) const { return bits ? (cols * bits + 7) / 8 : (cols + 4) / 5; }
};

// Null where there is no encoding of the name.
const Encoding *encoding_named(const std::string &name);

// The encoding of the rows of a coded tensor: each byte holds whole codes.
const Encoding &carrier(const Encoding &encoding);

struct Tensor {
  const Encoding *encoding;
  std::vector<int64_t> shape;
  int64_t rows, cols;   // as a matrix; a vector is one row
  const uint8_t *data;  // rows, each encoding->row_bytes(cols)
  int granularity = LBK_TENSOR;
  const float *steps = nullptr, *table = nullptr;
  int table_size = 0, zero_point = 0, input_bits = 0;
  std::shared_ptr<std::vector<uint8_t>> own;  // where data is not of the file

  lbk_tensor described() const;  // for lbk_matrix_new, which checks all numbers

  // Rows begin .. end-1 as (end - begin, cols) float32 weights.
  void dequantize(int64_t begin, int64_t end, float *weights) const;

  // The same weights, without the file.
  Tensor kept() const;

  // Floats on a grid of 8 bits for each row; any other, as it is. Not before its numbers were checked.
  Tensor rounded() const;

  // (rows, cols = channels * places) to (rows, (end - begin) * channels), in the same encoding: those places of all.
  Tensor places_first(int64_t places, int64_t begin, int64_t end) const;
};

// A coded tensor's rows, from those of `carrier(encoding)` in bytes whose number is right.
std::vector<uint8_t> narrowed(const std::string &bytes, const Encoding &encoding, int64_t rows, int64_t cols);

}  // namespace lbk
