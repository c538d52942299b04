#pragma once

#include <cstdint>
#include <memory>

namespace lbk {

// Rows of numbers, one behind the other; not set at first.
struct Frames {
  int64_t rows = 0, cols = 0;
  std::unique_ptr<float[]> data;

  Frames() = default;
  Frames(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), data(new float[rows_ * cols_]) {}

  float *row(int64_t i) { return data.get() + i * cols; }
  const float *row(int64_t i) const { return data.get() + i * cols; }
  int64_t size() const { return rows * cols; }
};

}  // namespace lbk
