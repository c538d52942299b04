// The Conformer, its CTC head and the stateless transducer on packed weights: what runtime/conformer.py,
// subsampling.py, weights.py, transducer.py and encoder.py do, in the same order, so that results are the same.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "frames.h"
#include "lowbit_k2.h"
#include "packed_file.h"
#include "settings.h"

namespace lbk {

struct Arithmetic {
  int32_t mode, threads;
};

struct FreeMatrix {
  void operator()(lbk_matrix *matrix) const { lbk_matrix_free(matrix); }
};
using Matrix = std::unique_ptr<lbk_matrix, FreeMatrix>;

// The tensors of a file by name; each has to be asked for, and with its shape.
class Weights {
 public:
  Weights(std::map<std::string, Tensor> tensors, Arithmetic arithmetic) : how(arithmetic), tensors_(std::move(tensors)) {}

  Tensor take(const std::string &name, const std::vector<int64_t> &shape);
  Tensor checked(const std::string &name, const std::vector<int64_t> &shape);  // its numbers, too
  std::vector<float> floats(const std::string &name, const std::vector<int64_t> &shape);
  void finish() const;  // refuses what nobody took

  const Arithmetic how;

 private:
  std::map<std::string, Tensor> tensors_;
};

class Linear {
 public:
  Linear(Weights &weights, const std::string &name, int64_t outputs, int64_t inputs, bool bias = true);
  Linear(Weights &weights, const std::string &name, const Tensor &weight, bool bias = true);

  Frames operator()(const Frames &x) const;

  // x: rows that lie x_stride apart, or overlap. add: to what y holds, without the bias.
  void multiply(const float *x, int64_t rows, int64_t x_stride, float *y, bool add = false) const;

  int64_t outputs() const { return outputs_; }
  const lbk_matrix *matrix() const { return matrix_.get(); }
  const float *bias() const { return bias_.empty() ? nullptr : bias_.data(); }

 private:
  Matrix matrix_;
  std::vector<float> bias_;
  int64_t outputs_, inputs_;
  Arithmetic how_;
};

struct Norm {
  Norm(Weights &weights, const std::string &name, int64_t channels);
  Frames operator()(const Frames &x) const;
  Frames after(Frames *total, const Frames &x, float factor = 1) const;  // the norm of total += factor * x

  std::vector<float> scale, shift;
  Arithmetic how;
};

struct FeedForward {
  FeedForward(Weights &weights, const std::string &name, int64_t channels, int64_t hidden);
  Frames operator()(const Frames &x) const;

  Linear w1, w2;
  Arithmetic how;
};

struct SelfAttention {
  SelfAttention(Weights &weights, const std::string &name, int64_t channels, int64_t heads);
  Frames operator()(const Frames &x, const Frames &positions) const;

  Linear query, key, value, out, pos;
  std::vector<float> u, v;
  int64_t heads;
  Arithmetic how;
};

struct ConvolutionModule {
  ConvolutionModule(Weights &weights, const std::string &name, int64_t channels, int64_t taps, bool batch_norm);
  Frames operator()(const Frames &x) const;

  Linear pointwise1, pointwise2;
  std::vector<float> weight, bias;  // (taps, channels), (channels,)
  int64_t taps;
  int input_bits;
  std::unique_ptr<Norm> norm;  // null: folded into weight and bias
  Arithmetic how;
};

struct Layer {
  Layer(Weights &weights, const std::string &name, const ModelSettings &settings, int64_t hidden);
  Frames operator()(Frames x, const Frames &positions) const;

  Norm norm_ff1, norm_attention, norm_conv, norm_ff2, norm_out;
  FeedForward ff1, ff2;
  SelfAttention attention;
  ConvolutionModule conv;
};

// 3 x 3, stride 2, no padding, then ReLU, of what lies in planes: even frames and odd ones apart, bands padded to an even
// number (2, .., padded, channels). Then the inputs of a row of the kernel lie at a constant distance from those of the next
// output. Puts out (frames, padded / 2, outputs), whose last band means nothing if there is one too many.
struct SecondConvolution {
  SecondConvolution(Weights &weights, const std::string &name, int64_t channels);
  void operator()(float *planes, int64_t plane, int64_t frames, int64_t bands, float *out) const;

  int64_t channels;  // of inputs and of outputs
  int input_bits;
  std::vector<Linear> rows;  // of the kernel; or the whole, where steps go by the order of the file
};

// Features (T, F) to frames (T', C) at a quarter of the rate, some at a time.
struct Subsampling {
  Subsampling(Weights &weights, const std::string &name, const ModelSettings &settings);
  Frames operator()(const Frames &features) const;

  int64_t channels, width;  // width: bands that the second convolution leaves
  std::vector<float> filters, bias;  // (9, channels), (channels,): the first convolution
  int input_bits;
  SecondConvolution second;
  bool by_channel;
  std::unique_ptr<Linear> out;
  Arithmetic how;
};

class Encoder {
 public:
  Encoder(Weights &weights, const ModelSettings &settings);

  Frames operator()(const Frames &features) const;  // (T, F) to (T', C)

 private:
  Subsampling subsampling_;
  std::vector<Layer> layers_;
  Norm norm_;
};

// The stateless prediction network and the joiner.
class Transducer {
 public:
  Transducer(Weights &weights, const ModelSettings &settings);

  Frames encoder_proj(const Frames &encoder_out) const { return encoder_proj_(encoder_out); }

  // The joiner's second input behind these tokens, the last of `context_size` of them: (1, D_j).
  Frames context(const std::vector<int32_t> &tokens) const;

  // Projected rows and a context to logits.
  Frames joined(const float *projected, int64_t rows, const Frames &context) const;

 private:
  Tensor embedding_;
  int64_t dim_, context_size_;
  int input_bits_ = 0;
  std::vector<float> filters_;  // (dim, 4, context_size); none with a single token
  Linear encoder_proj_, decoder_proj_, output_;
};

class Network {
 public:
  Network(const PackedFile &file, Arithmetic how);

  // Features (T, F) to log posteriors (T', V) of a CTC model, or encoder frames (T', C) of a transducer.
  Frames operator()(const Frames &features) const;

  // Log-probabilities that a frame of that output brings nothing.
  std::vector<float> blank_scores(const Frames &output) const;

  const ModelSettings settings;

  // Null in a CTC model.
  const Transducer *transducer() const { return transducer_.get(); }

 private:
  Frames log_probs(const Frames &encoder_out) const;
  Frames log_softmax(Frames x) const;

  Arithmetic how_;
  std::unique_ptr<Encoder> encoder_;
  std::unique_ptr<Transducer> transducer_;
  std::unique_ptr<Linear> head_;
};

}  // namespace lbk
