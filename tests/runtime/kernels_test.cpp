// The library under AddressSanitizer and UBSan: every path, encoding and mode on odd shapes against sums in double, with
// arrays that end where they must; damaged tensors; threads. Prints what it did; any error ends it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "lowbit_k2.h"

namespace {

std::mt19937 draw(7);

int below(int n) { return static_cast<int>(draw() % n); }

struct Sample {
  std::string encoding;
  int64_t rows, cols;
  std::vector<uint8_t> data;
  std::vector<float> steps, table;
  std::vector<double> weights;  // (rows, cols)
  lbk_tensor tensor;
};

size_t bytes_of_row(int bits, int64_t cols) { return bits ? (cols * bits + 7) / 8 : (cols + 4) / 5; }

Sample make(const std::string &encoding, int64_t rows, int64_t cols, int granularity, int zero_point) {
  const bool index = encoding[0] == 'i' && encoding[2] == 'd';
  const int bits = encoding == "binary" ? 1 : encoding == "ternary" ? 0 : encoding.back() - '0';
  const int numbers = bits ? 1 << bits : 3, lowest = encoding == "binary" || !bits ? -1 : -(1 << (bits - 1));
  Sample s{encoding, rows, cols, {}, {}, {}, {}, {}};
  const int64_t blocks = (cols + 63) / 64, stride = bytes_of_row(bits, cols);
  s.data.resize(rows * stride);
  s.steps.resize(granularity == LBK_TENSOR ? 1 : granularity == LBK_CHANNEL ? rows : rows * blocks);
  for (float &step : s.steps) step = 0.25f * (1 + below(8));
  if (index) s.table.resize(numbers);
  for (float &entry : s.table) entry = 0.125f * (below(33) - 16);
  s.weights.resize(rows * cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols; ++k) {
      const int u = below(numbers), code = encoding == "binary" ? 2 * u - 1 : lowest + u;
      uint8_t *row = &s.data[r * stride];
      if (!bits) {
        row[k / 5] += u * std::vector<int>{1, 3, 9, 27, 81}[k % 5];
      } else {
        const int stored = index || bits == 1 ? u : code & (numbers - 1);
        for (int b = 0; b < bits; ++b) row[(k * bits + b) / 8] |= (stored >> b & 1) << (k * bits + b) % 8;
      }
      const float step = s.steps[granularity == LBK_TENSOR ? 0 : granularity == LBK_CHANNEL ? r : r * blocks + k / 64];
      s.weights[r * cols + k] = (index ? s.table[u] : code - zero_point) * double{step};
    }
  s.tensor = {s.encoding.c_str(), rows, cols, s.data.data(), granularity, s.steps.data(),
              index ? s.table.data() : nullptr, index ? numbers : 0, zero_point, 0};
  return s;
}

void die(const char *what) {
  std::printf("FAILED: %s (%s)\n", what, lbk_error());
  std::exit(1);
}

void check(const Sample &s, const lbk_matrix *matrix, int64_t m, int mode, int threads) {
  const std::vector<double> x = [&] {
    std::vector<double> values(m * s.cols);
    for (double &v : values) v = static_cast<float>(below(2001) - 1000) / 64;
    return values;
  }();
  const std::vector<float> rows(x.begin(), x.end());
  std::vector<float> bias(s.rows), y(m * s.rows);
  for (float &b : bias) b = below(9) - 4;
  if (lbk_matmul(matrix, rows.data(), m, s.cols, bias.data(), y.data(), s.rows, 0, mode, threads)) die("lbk_matmul");
  const double half_step = mode == LBK_EXACT || !s.table.empty() ? 0 : 1000. / 64 / (mode == LBK_A8 ? 127 : 32639) / 2;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t r = 0; r < s.rows; ++r) {
      double sum = bias[r], size = std::fabs(bias[r]), bound = 0;
      for (int64_t k = 0; k < s.cols; ++k) {
        const double w = s.weights[r * s.cols + k];
        sum += w * x[i * s.cols + k];
        size += std::fabs(w * x[i * s.cols + k]);
        bound += std::fabs(w) * half_step;
      }
      if (std::fabs(y[i * s.rows + r] - sum) > bound * 1.01 + 2e-5 * size) die("a product is wrong");
    }
}

void damage() {
  Sample s = make("ternary", 3, 11, LBK_TENSOR, 0);
  lbk_tensor wrong[8];
  for (lbk_tensor &t : wrong) t = s.tensor;
  const float step = -1, table[3] = {1, 2, 3};
  uint8_t bytes[9];
  std::memset(bytes, 250, sizeof bytes);
  wrong[0].encoding = "int9";
  wrong[1].rows = int64_t{1} << 40;
  wrong[2].cols = 0;
  wrong[3].data = bytes;
  wrong[4].steps = &step;
  wrong[5].table = table;
  wrong[6].zero_point = 999;
  wrong[7].granularity = 3;
  for (const lbk_tensor &t : wrong)
    if (lbk_matrix_new(&t)) die("a damaged tensor was taken");
}

}  // namespace

int main() {
  const char *const encodings[] = {"binary", "ternary", "int3", "int4", "int5", "int8", "index1", "index2", "index4", "index8"};
  const int64_t shapes[][2] = {{1, 1}, {17, 65}, {33, 130}, {16, 64}, {5, 600}};
  int paths = 0;
  long products = 0;
  damage();
  for (const char *isa : {"portable", "avx2", "avxvnni", "avx512vnni", "amx"}) {
    if (const char *why = lbk_isa_missing(isa)) {
      std::printf("%s not tested: %s\n", isa, why);
      continue;
    }
    if (lbk_use_isa(isa)) die("lbk_use_isa");
    ++paths;
    for (const char *encoding : encodings)
      for (const auto &shape : shapes)
        for (int granularity : {LBK_TENSOR, LBK_CHANNEL, LBK_BLOCK64}) {
          const Sample s = make(encoding, shape[0], shape[1], granularity, encoding[2] == 'd' ? 0 : 3);
          lbk_matrix *matrix = lbk_matrix_new(&s.tensor);
          if (!matrix) die("lbk_matrix_new");
          for (int64_t m : {0, 1, 2, 7, 14})
            for (int mode : {LBK_EXACT, LBK_A16, LBK_A8}) check(s, matrix, m, mode, 1 + below(3)), ++products;
          lbk_matrix_free(matrix);
        }
    const Sample s = make("binary", 300, 400, LBK_TENSOR, 0);
    lbk_matrix *matrix = lbk_matrix_new(&s.tensor);
    std::vector<std::thread> callers;
    for (int mode : {LBK_EXACT, LBK_A16, LBK_A8, LBK_A8})
      callers.emplace_back([&s, matrix, mode] {
        const std::vector<float> x(40 * 400, 1.f);
        std::vector<float> y(40 * 300);
        for (int i = 0; i < 3; ++i)
          if (lbk_matmul(matrix, x.data(), 40, 400, nullptr, y.data(), 300, 0, mode, 3)) die("from a thread");
        for (int64_t r = 0; r < 300; ++r) {
          double sum = 0;
          for (int64_t k = 0; k < 400; ++k) sum += s.weights[r * 400 + k];
          if (std::fabs(y[39 * 300 + r] - sum) > 1e-3) die("a product from a thread is wrong");
        }
      });
    for (std::thread &caller : callers) caller.join();
    lbk_matrix_free(matrix);
  }
  std::printf("%d paths, %ld products\n", paths, products);
}
