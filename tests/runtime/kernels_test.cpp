// Every path of the library that this CPU has: encodings, modes, strides and threads on odd shapes, and the layers,
// against sums in double, with arrays that end where they must; damaged tensors; callers side by side. Run as it is,
// under AddressSanitizer and UBSan, and for other CPUs under their emulator. Prints what it did; any error ends it.
// Arguments: instructions that have to be there.
#include <algorithm>
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

constexpr int64_t kLong = 512;  // inputs, above which the first rows have the extremes, for sums that overflow

int below(int n) { return static_cast<int>(draw() % n); }

struct Sample {
  std::string encoding;
  int64_t rows, cols;
  std::vector<uint8_t> data;
  std::vector<float> steps, table;
  std::vector<double> weights;  // (rows, cols)
  lbk_tensor tensor;
};

// A short name lies within its sample, which has been moved since its tensor was described.
lbk_matrix *matrix_of(const Sample &s) {
  lbk_tensor tensor = s.tensor;
  tensor.encoding = s.encoding.c_str();
  return lbk_matrix_new(&tensor);
}

// Of a number that 16 bits hold: n / 8 with |n| < 256.
uint16_t half_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return value == 0 ? 0 : (bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023);
}

Sample make_floats(const std::string &encoding, int64_t rows, int64_t cols) {
  Sample s{encoding, rows, cols, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float value = (below(511) - 255) / 8.f;
    const uint16_t half = half_of(value);
    const uint8_t *from = encoding == "float16" ? reinterpret_cast<const uint8_t *>(&half)
                                                : reinterpret_cast<const uint8_t *>(&value);
    s.data.insert(s.data.end(), from, from + (encoding == "float16" ? 2 : 4));
    s.weights.push_back(value);
  }
  s.tensor = {s.encoding.c_str(), rows, cols, s.data.data(), LBK_TENSOR, nullptr, nullptr, 0, 0, 0};
  return s;
}

size_t bytes_of_row(int bits, int64_t cols) { return bits ? (cols * bits + 7) / 8 : (cols + 4) / 5; }

Sample make(const std::string &encoding, int64_t rows, int64_t cols, int granularity, int zero_point) {
  if (encoding[0] == 'f') return make_floats(encoding, rows, cols);
  const bool index = encoding[0] == 'i' && encoding[2] == 'd';
  const int bits = encoding == "binary" ? 1 : encoding == "ternary" ? 0 : encoding.back() - '0';
  const int numbers = bits ? 1 << bits : 3, lowest = encoding == "binary" || !bits ? -1 : -(1 << (bits - 1));
  Sample s{encoding, rows, cols, {}, {}, {}, {}, {}};
  const int64_t blocks = (cols + 63) / 64, stride = bytes_of_row(bits, cols);
  s.data.resize(rows * stride);
  s.steps.resize(granularity == LBK_TENSOR ? 1 : granularity == LBK_CHANNEL ? rows : rows * blocks);
  for (float &step : s.steps) step = 0.25f * (1 + below(8));
  if (index) s.table.resize(numbers);
  const float odd = granularity == LBK_CHANNEL ? 1.f / 3 : 0;  // off every grid
  for (float &entry : s.table) entry = 0.125f * (below(33) - 16) + odd * below(1000) / 1000;
  if (index) s.table[1] = 0.03125f, s.table.back() = 4, s.table.front() = odd - 4;  // 128 steps: more than a signed byte
  s.weights.resize(rows * cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols; ++k) {
      const int u = cols > kLong && r < 2 ? (r ? 0 : numbers - 1) : below(numbers);
      const int code = encoding == "binary" ? 2 * u - 1 : lowest + u;
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

bool far(double found, double expected, double allowed) { return !(std::fabs(found - expected) <= allowed); }

std::vector<float> numbers(int64_t count, double size = 15) {
  std::vector<float> values(count);
  for (float &v : values) v = static_cast<float>(size * (below(2001) - 1000) / 1000);
  return values;
}

// Rows of which the first are all 127 or all 32639 in integers; then 32384, whose low byte is the least, -128.
std::vector<float> inputs(int64_t rows, int64_t cols) {
  std::vector<float> x = numbers(rows * cols);
  for (int64_t i = 0; cols > kLong && i < 4 * cols; ++i)
    x[i] = (i / cols % 2 ? -15.f : 15.f) * (i / cols < 2 || i % cols == 0 ? 1 : 32384.f / 32639.f);
  return x;
}

// Of the first rows of x (M, cols): the product, and what the weights' sizes allow of errors.
struct Expected {
  std::vector<double> sum, size, weight;  // with the bias; of absolute values; of weights alone
};

Expected multiply(const Sample &s, const std::vector<float> &x, int64_t m, const std::vector<float> &bias) {
  Expected e;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t r = 0; r < s.rows; ++r) {
      double sum = bias[r], size = std::fabs(bias[r]), weight = 0;
      for (int64_t k = 0; k < s.cols; ++k) {
        const double w = s.weights[r * s.cols + k], product = w * x[i * s.cols + k];
        sum += product;
        size += std::fabs(product);
        weight += std::fabs(w);
      }
      e.sum.push_back(sum), e.size.push_back(size), e.weight.push_back(weight);
    }
  return e;
}

// Rows lie x_gap and y_gap numbers apart, and what is between those of y stays as it is.
void check(const Sample &s, const lbk_matrix *matrix, const std::vector<float> &x, const std::vector<float> &bias,
           const Expected &e, int64_t m, int mode, int threads, int64_t x_gap, int64_t y_gap) {
  const int64_t x_stride = s.cols + x_gap, y_stride = s.rows + y_gap;
  std::vector<float> from(m ? (m - 1) * x_stride + s.cols : 0), y(m ? (m - 1) * y_stride + s.rows : 0, 7.f);
  for (int64_t i = 0; i < m; ++i) std::copy_n(&x[i * s.cols], s.cols, &from[i * x_stride]);
  if (lbk_matmul(matrix, from.data(), m, x_stride, bias.data(), y.data(), y_stride, 0, mode, threads)) die("lbk_matmul");
  const bool floats = s.encoding[0] == 'f', rounds = mode != LBK_EXACT && !floats;
  double of_table = 0;  // half a step at 16 bits, and the largest step
  for (float entry : s.table) of_table = std::max<double>(of_table, std::fabs(entry) / 32639 / 2);
  of_table *= rounds && !s.table.empty() ? *std::max_element(s.steps.begin(), s.steps.end()) : 0;
  const double relative = !floats || mode == LBK_EXACT ? 2e-5 : mode == LBK_A16 ? 1e-4 : 1e-2;  // of bfloat16
  for (int64_t i = 0; i < m; ++i) {
    double largest = 0, sum = 0;
    for (int64_t k = 0; k < s.cols; ++k) {
      largest = std::max<double>(largest, std::fabs(x[i * s.cols + k]));
      sum += std::fabs(x[i * s.cols + k]);
    }
    const double half_step = rounds ? largest / (mode == LBK_A8 ? 127 : 32639) / 2 : 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t n = i * s.rows + r;
      const double allowed = 1.01 * (e.weight[n] * half_step + sum * of_table) + relative * e.size[n];
      if (far(y[i * y_stride + r], e.sum[n], allowed)) die("a product is wrong");
    }
    for (int64_t r = s.rows; r < y_stride && i + 1 < m; ++r)
      if (y[i * y_stride + r] != 7.f) die("a result lies outside its row");
  }
}

// ---- the layers

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void check_rows(int64_t rows, int64_t cols) {
  const std::vector<float> x = numbers(rows * 2 * cols), scale = numbers(cols, 2), shift = numbers(cols, 2);
  std::vector<float> norm(rows * cols), swish(rows * cols), glu(rows * cols), soft(rows * cols), log_soft(rows * cols);
  std::vector<float> sum(rows * cols, 0.f), same(rows * cols);  // 0 + 1 x, and the norm of that
  const int threads = 1 + below(2);
  if (lbk_layer_norm(x.data(), rows, cols, scale.data(), shift.data(), 1e-5f, norm.data(), threads) ||
      lbk_add_norm(sum.data(), x.data(), 1, rows, cols, scale.data(), shift.data(), 1e-5f, same.data(), threads) ||
      lbk_swish(x.data(), rows, cols, swish.data(), threads) || lbk_glu(x.data(), rows, cols, glu.data(), threads) ||
      lbk_softmax(x.data(), rows, cols, soft.data(), threads) ||
      lbk_log_softmax(x.data(), rows, cols, log_soft.data(), threads))
    die("a layer");
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = &x[i * cols], *pair = &x[i * 2 * cols];
    double mean = 0, variance = 0, total = 0;
    for (int64_t c = 0; c < cols; ++c) mean += row[c] / static_cast<double>(cols), total += std::exp(row[c]);
    for (int64_t c = 0; c < cols; ++c) variance += (row[c] - mean) * (row[c] - mean) / cols;
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t n = i * cols + c;
      const double normal = (row[c] - mean) / std::sqrt(variance + 1e-5);
      if (far(norm[n], normal * scale[c] + shift[c], 2e-5 * (1 + std::fabs(normal)))) die("lbk_layer_norm is wrong");
      if (sum[n] != row[c] || far(same[n], norm[n], 1e-5 * (1 + std::fabs(normal)))) die("lbk_add_norm is wrong");
      if (far(swish[n], row[c] * sigmoid(row[c]), 1e-5)) die("lbk_swish is wrong");
      if (far(glu[n], pair[c] * sigmoid(pair[cols + c]), 1e-5)) die("lbk_glu is wrong");
      if (far(soft[n], std::exp(row[c]) / total, 1e-6)) die("lbk_softmax is wrong");
      if (far(log_soft[n], row[c] - std::log(total), 1e-5)) die("lbk_log_softmax is wrong");
    }
  }
}

void check_depthwise(int64_t frames, int64_t channels, int64_t taps) {
  const std::vector<float> x = numbers(frames * channels), bias = numbers(channels);
  const std::vector<float> weight = numbers(taps * channels, 1);
  std::vector<float> y(frames * channels);
  const bool swish = taps % 2;
  if (lbk_depthwise(x.data(), frames, channels, weight.data(), taps, bias.data(), swish, y.data(), 2))
    die("lbk_depthwise");
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = bias[c];
      for (int64_t j = 0; j < taps; ++j) {
        const int64_t from = t + j - taps / 2;
        if (from >= 0 && from < frames) sum += double{weight[j * channels + c]} * x[from * channels + c];
      }
      if (far(y[t * channels + c], swish ? sum * sigmoid(sum) : sum, 1e-4)) die("lbk_depthwise is wrong");
    }
}

void check_patches(int64_t frames, int64_t bands, int64_t channels) {
  const std::vector<float> x = numbers(frames * bands * channels);
  const int64_t begin = 1, end = (frames - 1) / 2, high = (bands - 1) / 2;
  for (int by_channel : {0, 1}) {
    std::vector<float> y((end - begin) * high * 9 * channels);
    if (lbk_patches(x.data(), frames, bands, channels, begin, end, by_channel, y.data())) die("lbk_patches");
    const float *found = y.data();
    for (int64_t t = begin; t < end; ++t)
      for (int64_t f = 0; f < high; ++f, found += 9 * channels)
        for (int64_t c = 0; c < channels; ++c)
          for (int i = 0; i < 9; ++i)
            if (found[by_channel ? 9 * c + i : i * channels + c] !=
                x[((2 * t + i / 3) * bands + 2 * f + i % 3) * channels + c])
              die("lbk_patches is wrong");
  }
}

void check_convolve(int64_t frames, int64_t bands, int64_t channels) {
  const int64_t high = (bands - 1) / 2;
  const std::vector<float> x = numbers((2 * frames + 1) * bands), weight = numbers(9 * channels, 1);
  const std::vector<float> bias = numbers(channels);
  std::vector<float> y(frames * high * channels);
  if (lbk_convolve(x.data(), 2 * bands, frames, bands, weight.data(), bias.data(), channels, y.data(), high * channels, 2))
    die("lbk_convolve");
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t f = 0; f < high; ++f)
      for (int64_t c = 0; c < channels; ++c) {
        double sum = bias[c];
        for (int i = 0; i < 9; ++i)
          sum += double{weight[i * channels + c]} * x[(2 * t + i / 3) * bands + 2 * f + i % 3];
        if (far(y[(t * high + f) * channels + c], std::max(sum, 0.), 1e-4)) die("lbk_convolve is wrong");
      }
}

void check_attention(int64_t frames, int64_t heads, int64_t size, int mode, double tolerance) {
  const int64_t width = heads * size;
  const std::vector<float> q = numbers(frames * width, 1), k = numbers(frames * width, 1);
  const std::vector<float> v = numbers(frames * width, 1), positions = numbers((2 * frames - 1) * width, 1);
  const std::vector<float> bias_u = numbers(width, 1), bias_v = numbers(width, 1);
  std::vector<float> out(frames * width);
  if (lbk_attention(q.data(), k.data(), v.data(), positions.data(), bias_u.data(), bias_v.data(), frames, heads, size,
                    out.data(), mode, 2))
    die("lbk_attention");
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < frames; ++i) {
      std::vector<double> weights, mixed(size);
      double total = 0;
      for (int64_t j = 0; j < frames; ++j) {
        double score = 0;
        for (int64_t c = h * size; c < (h + 1) * size; ++c)
          score += (double{q[i * width + c]} + bias_u[c]) * k[j * width + c] +
                   (double{q[i * width + c]} + bias_v[c]) * positions[(frames - 1 - i + j) * width + c];
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(size))));
        total += weights.back();
      }
      for (int64_t j = 0; j < frames; ++j)
        for (int64_t c = 0; c < size; ++c) mixed[c] += weights[j] / total * v[j * width + h * size + c];
      for (int64_t c = 0; c < size; ++c)
        if (far(out[i * width + h * size + c], mixed[c], tolerance)) die("lbk_attention is wrong");
    }
}

// Gates that saturate and ones that do not, with and without a projection.
void check_lstm(int64_t frames, int64_t streams, int64_t cells, int64_t width) {
  const auto matrix = [](int64_t rows, int64_t cols) {
    Sample s = make("int4", rows, cols, LBK_TENSOR, 0);
    for (double &weight : s.weights) weight *= 0.03125 / s.steps[0];
    s.steps[0] = 0.03125f;
    return s;
  };
  const Sample hidden = matrix(4 * cells, width), projection = matrix(width, cells);
  lbk_matrix *packed[2] = {matrix_of(hidden), cells == width ? nullptr : matrix_of(projection)};
  std::vector<float> gates = numbers(frames * streams * 4 * cells), h = numbers(streams * width, 1);
  std::vector<float> c = numbers(streams * cells, 3), out(frames * streams * width);
  const std::vector<float> of_inputs = gates;
  std::vector<double> state(h.begin(), h.end()), cell(c.begin(), c.end());
  if (lbk_lstm(packed[0], packed[1], gates.data(), frames, streams, h.data(), c.data(), out.data(), LBK_EXACT, 2))
    die("lbk_lstm");
  for (int64_t row = 0; row < frames * streams; ++row) {
    double *from = &state[row % streams * width], *kept = &cell[row % streams * cells];
    std::vector<double> sums(&of_inputs[row * 4 * cells], &of_inputs[row * 4 * cells] + 4 * cells), inner(cells);
    for (int64_t i = 0; i < 4 * cells; ++i)
      for (int64_t k = 0; k < width; ++k) sums[i] += hidden.weights[i * width + k] * from[k];
    for (int64_t i = 0; i < cells; ++i) {
      kept[i] = sigmoid(sums[cells + i]) * kept[i] + sigmoid(sums[i]) * std::tanh(sums[2 * cells + i]);
      inner[i] = sigmoid(sums[3 * cells + i]) * std::tanh(kept[i]);
    }
    for (int64_t i = 0; i < width; ++i) {
      from[i] = packed[1] ? 0 : inner[i];
      for (int64_t k = 0; packed[1] && k < cells; ++k) from[i] += projection.weights[i * cells + k] * inner[k];
      if (far(out[row * width + i], from[i], 1e-5)) die("lbk_lstm is wrong");
    }
  }
  for (size_t i = 0; i < c.size(); ++i)
    if (far(c[i], cell[i], 1e-5)) die("a state of lbk_lstm is wrong");
  for (size_t i = 0; i < h.size(); ++i)
    if (far(h[i], state[i], 1e-5)) die("a state of lbk_lstm is wrong");
  for (lbk_matrix *matrix : packed) lbk_matrix_free(matrix);
}

void check_layers() {
  for (int64_t cols : {1, 3, 4, 7, 16, 33}) check_rows(3, cols);
  for (int64_t taps : {1, 5, 8}) check_depthwise(6, 7 + taps, taps);
  check_patches(8, 7, 3);
  for (int64_t channels : {1, 5, 18}) check_convolve(3, 7 + channels, channels);
  for (int64_t frames : {1, 2, 16, 27})
    for (int64_t size : {1, 8, 19, 64}) {
      check_attention(frames, 2, size, LBK_EXACT, 1e-4);
      check_attention(frames, 2, size, LBK_A16, 2e-3);
      check_attention(frames, 2, size, LBK_A8, 0.1);
    }
  for (int64_t cells : {1, 3, 7, 16, 35})
    for (int64_t width : {cells, cells + 2}) check_lstm(3, 2, cells, width);
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

int main(int count, char **needed) {
  const char *const encodings[] = {"binary", "ternary", "int3",   "int4",   "int5",    "int8",
                                   "index1", "index2",  "index3", "index4", "index5",  "index6",
                                   "index7", "index8",  "float16", "float32"};
  const int64_t shapes[][2] = {{1, 1}, {17, 65}, {33, 130}, {16, 64}, {5, 600}};
  int paths = 0;
  long products = 0;
  for (int i = 1; i < count; ++i)
    if (lbk_isa_missing(needed[i])) {
      std::printf("FAILED: %s is missing: %s\n", needed[i], lbk_isa_missing(needed[i]));
      return 1;
    }
  damage();
  for (const char *isa : {"portable", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neondot", "i8mm"}) {
    if (const char *why = lbk_isa_missing(isa)) {
      std::printf("%s not tested: %s\n", isa, why);
      continue;
    }
    if (lbk_use_isa(isa) || std::strcmp(lbk_isa(), isa)) die("lbk_use_isa");
    std::printf("%s\n", isa);
    ++paths;
    check_layers();
    for (const char *encoding : encodings)
      for (const auto &shape : shapes)
        for (int granularity : {LBK_TENSOR, LBK_CHANNEL, LBK_BLOCK64}) {
          if (encoding[0] == 'f' && granularity) continue;
          const int zero_point = encoding[2] == 'd' ? 0 : std::vector<int>{3, 0, -2}[below(3)];
          const Sample s = make(encoding, shape[0], shape[1], granularity, zero_point);
          lbk_matrix *matrix = matrix_of(s);
          if (!matrix) die("lbk_matrix_new");
          const std::vector<float> x = inputs(14, s.cols), bias = numbers(s.rows, 4);
          const Expected expected = multiply(s, x, 14, bias);
          for (int64_t m : {0, 1, 2, 3, 7, 14})
            for (int mode : {LBK_EXACT, LBK_A16, LBK_A8}) {
              check(s, matrix, x, bias, expected, m, mode, 1 + below(3), below(2), below(3));
              ++products;
            }
          lbk_matrix_free(matrix);
        }
    const Sample s = make("binary", 300, 400, LBK_TENSOR, 0);
    lbk_matrix *matrix = matrix_of(s);
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
