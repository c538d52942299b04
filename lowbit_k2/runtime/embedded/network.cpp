#include "network.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "json.h"
#include "refusal.h"

namespace lbk {
namespace {

constexpr float kEpsilon = 1e-5f;            // of norms
constexpr float kSmallestStep = 1e-30f;      // of inputs
// Frames that come out of the convolutions, of which the first puts out much more than it gets; of the matrix behind.
constexpr int64_t kFramesAtOnce = 16, kOutAtOnce = 128;
constexpr int64_t kGroup = 4;                // channels that a filter of the decoder's convolution sees and makes

std::string spelled(const std::vector<int64_t> &shape) {
  std::string text;
  for (const int64_t side : shape) text += (text.empty() ? "" : " x ") + std::to_string(side);
  return text.empty() ? "a number" : text;
}

// All numbers on one grid of so many bits, as the model rounds a convolution's input; 0: as they are.
void round_inputs(float *x, int64_t count, int bits) {
  if (!bits) return;
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float step = std::max(largest / static_cast<float>((1 << (bits - 1)) - 1), kSmallestStep);
  for (int64_t i = 0; i < count; ++i) x[i] = std::nearbyint(x[i] / step) * step;
}

void relu(float *x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = std::max(x[i], 0.f);
}

// Sinusoids for the distances frames-1 .. -(frames-1).
Frames relative_positions(int64_t frames, int64_t channels) {
  std::vector<float> rates;
  for (int64_t c = 0; c < channels; c += 2)
    rates.push_back(static_cast<float>(std::exp(double{static_cast<float>(c) * static_cast<float>(-std::log(10000.0) / channels)})));
  Frames positions(2 * frames - 1, channels);
  float *next = positions.data.get();
  for (int64_t distance = frames - 1; distance > -frames; --distance)
    for (const float rate : rates) {
      const double angle = static_cast<float>(distance) * rate;
      *next++ = static_cast<float>(std::sin(angle));
      *next++ = static_cast<float>(std::cos(angle));
    }
  return positions;
}

}  // namespace

// Looks at all numbers of the tensor.
Matrix new_matrix(const Tensor &tensor, const std::string &name) {
  const lbk_tensor described = tensor.described();
  Matrix matrix(lbk_matrix_new(&described));
  if (!matrix) refuse("tensor %s: %s", name.c_str(), lbk_error());
  return matrix;
}

// What weights.py's Linear multiplies.
Matrix multiplied(const Tensor &tensor, const std::string &name, const Arithmetic &how) {
  Matrix matrix = new_matrix(tensor, name);
  if (how.mode == LBK_A8 && tensor.encoding->is_float) matrix = new_matrix(tensor.rounded(), name);
  return matrix;
}

Tensor Weights::take(const std::string &name, const std::vector<int64_t> &shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) refuse("tensor %s is missing", name.c_str());
  const Tensor tensor = found->second;
  if (tensor.shape != shape)
    refuse("tensor %s is %s, not %s", name.c_str(), spelled(tensor.shape).c_str(), spelled(shape).c_str());
  tensors_.erase(found);
  return tensor;
}

Tensor Weights::checked(const std::string &name, const std::vector<int64_t> &shape) {
  const Tensor tensor = take(name, shape);
  new_matrix(tensor, name);
  return tensor;
}

std::vector<float> Weights::floats(const std::string &name, const std::vector<int64_t> &shape) {
  const Tensor tensor = checked(name, shape);
  std::vector<float> weights(tensor.rows * tensor.cols);
  tensor.dequantize(0, tensor.rows, weights.data());
  return weights;
}

void Weights::finish() const {
  if (!tensors_.empty()) refuse("tensor %s does not belong to its model", quoted(tensors_.begin()->first).c_str());
}

Linear::Linear(Weights &weights, const std::string &name, int64_t outputs, int64_t inputs, bool bias)
    : Linear(weights, name, weights.take(name + ".weight", {outputs, inputs}), bias) {}

Linear::Linear(Weights &weights, const std::string &name, const Tensor &weight, bool bias)
    : matrix_(multiplied(weight, name + ".weight", weights.how)), outputs_(weight.rows), inputs_(weight.cols), how_(weights.how) {
  if (bias) bias_ = weights.floats(name + ".bias", {outputs_});
}

void Linear::multiply(const float *x, int64_t rows, int64_t x_stride, float *y, bool add) const {
  const float *bias_or_none = add ? nullptr : bias();
  check(lbk_matmul(matrix(), x, rows, x_stride, bias_or_none, y, outputs_, add, how_.mode, how_.threads));
}

Frames Linear::operator()(const Frames &x) const {
  Frames y(x.rows, outputs_);
  multiply(x.data.get(), x.rows, inputs_, y.data.get());
  return y;
}

Norm::Norm(Weights &weights, const std::string &name, int64_t channels)
    : scale(weights.floats(name + ".weight", {channels})), shift(weights.floats(name + ".bias", {channels})),
      how(weights.how) {}

Frames Norm::operator()(const Frames &x) const {
  Frames y(x.rows, x.cols);
  check(lbk_layer_norm(x.data.get(), x.rows, x.cols, scale.data(), shift.data(), kEpsilon, y.data.get(), how.threads));
  return y;
}

Frames Norm::after(Frames *total, const Frames &x, float factor) const {
  Frames y(x.rows, x.cols);
  check(lbk_add_norm(total->data.get(), x.data.get(), factor, x.rows, x.cols, scale.data(), shift.data(), kEpsilon,
                     y.data.get(), how.threads));
  return y;
}

FeedForward::FeedForward(Weights &weights, const std::string &name, int64_t channels, int64_t hidden)
    : w1(weights, name + ".w1", hidden, channels), w2(weights, name + ".w2", channels, hidden), how(weights.how) {}

Frames FeedForward::operator()(const Frames &x) const {
  Frames y(x.rows, x.cols);
  check(lbk_feed_forward(w1.matrix(), w1.bias(), LBK_SWISH, w2.matrix(), w2.bias(), x.data.get(), x.rows, y.data.get(), 0,
                         how.mode, how.threads));
  return y;
}

SelfAttention::SelfAttention(Weights &weights, const std::string &name, int64_t channels, int64_t heads)
    : query(weights, name + ".query", channels, channels), key(weights, name + ".key", channels, channels),
      value(weights, name + ".value", channels, channels), out(weights, name + ".out", channels, channels),
      pos(weights, name + ".pos", channels, channels, false),
      u(weights.floats(name + ".pos_bias_u", {heads, channels / heads})),
      v(weights.floats(name + ".pos_bias_v", {heads, channels / heads})), heads(heads), how(weights.how) {}

Frames SelfAttention::operator()(const Frames &x, const Frames &positions) const {
  const Frames q = query(x), k = key(x), values = value(x), p = pos(positions);
  Frames y(x.rows, x.cols);
  check(lbk_attention(q.data.get(), k.data.get(), values.data.get(), p.data.get(), u.data(), v.data(), x.rows, heads,
                      x.cols / heads, y.data.get(), how.mode, how.threads));
  return out(y);
}

ConvolutionModule::ConvolutionModule(Weights &weights, const std::string &name, int64_t channels, int64_t taps, bool batch_norm)
    : pointwise1(weights, name + ".pointwise1", 2 * channels, channels),
      pointwise2(weights, name + ".pointwise2", channels, channels), weight(taps * channels),
      bias(weights.floats(name + ".depthwise.bias", {channels})), taps(taps), how(weights.how) {
  const Tensor filters = weights.checked(name + ".depthwise.weight", {channels, 1, taps});
  input_bits = filters.input_bits;
  std::vector<float> rows(weight.size());  // (channels, taps)
  filters.dequantize(0, channels, rows.data());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < taps; ++j) weight[j * channels + c] = rows[c * taps + j];
  if (!batch_norm) {
    norm = std::make_unique<Norm>(weights, name + ".norm", channels);
    return;
  }
  const auto part = [&](const char *which) { return weights.floats(name + ".norm." + which, {channels}); };
  const std::vector<float> scale = part("weight"), shift = part("bias"), mean = part("running_mean"), var = part("running_var");
  for (int64_t c = 0; c < channels; ++c) {
    if (var[c] < 0) refuse("%s.norm.running_var is negative: export it again", name.c_str());
    const float factor = scale[c] / std::sqrt(var[c] + kEpsilon);
    for (int64_t j = 0; j < taps; ++j) weight[j * channels + c] *= factor;
    bias[c] = (bias[c] - mean[c]) * factor + shift[c];
  }
}

Frames ConvolutionModule::operator()(const Frames &x) const {
  const Frames both = pointwise1(x);
  Frames gated(x.rows, x.cols), y(x.rows, x.cols);
  check(lbk_glu(both.data.get(), x.rows, x.cols, gated.data.get(), how.threads));
  round_inputs(gated.data.get(), gated.size(), input_bits);
  check(lbk_depthwise(gated.data.get(), x.rows, x.cols, weight.data(), taps, bias.data(), !norm, y.data.get(), how.threads));
  if (norm) {
    y = (*norm)(y);
    check(lbk_swish(y.data.get(), y.rows, y.cols, y.data.get(), how.threads));
  }
  return pointwise2(y);
}

Layer::Layer(Weights &weights, const std::string &name, const ModelSettings &settings, int64_t hidden)
    : norm_ff1(weights, name + ".norm_ff1", settings.d_model),
      norm_attention(weights, name + ".norm_attention", settings.d_model),
      norm_conv(weights, name + ".norm_conv", settings.d_model), norm_ff2(weights, name + ".norm_ff2", settings.d_model),
      norm_out(weights, name + ".norm_out", settings.d_model), ff1(weights, name + ".ff1", settings.d_model, hidden),
      ff2(weights, name + ".ff2", settings.d_model, hidden),
      attention(weights, name + ".attention", settings.d_model, settings.num_heads),
      conv(weights, name + ".conv", settings.d_model, settings.conv_kernel, settings.batch_norm) {}

Frames Layer::operator()(Frames x, const Frames &positions) const {
  Frames y = norm_attention.after(&x, ff1(norm_ff1(x)), 0.5f);
  y = norm_conv.after(&x, attention(y, positions));
  y = norm_ff2.after(&x, conv(y));
  return norm_out.after(&x, ff2(y), 0.5f);
}

SecondConvolution::SecondConvolution(Weights &weights, const std::string &name, int64_t channels) : channels(channels) {
  Tensor weight = weights.checked(name + ".weight", {channels, channels, 3, 3});
  input_bits = std::exchange(weight.input_bits, 0);
  if (weight.granularity == LBK_BLOCK64 && weight.cols > 64) {
    rows.emplace_back(weights, name, weight);
    return;
  }
  for (int64_t row = 0; row < 3; ++row)
    rows.emplace_back(weights, name, weight.places_first(9, 3 * row, 3 * row + 3), row == 0);
}

// plane: numbers from the even frames to the odd ones.
void SecondConvolution::operator()(float *planes, int64_t plane, int64_t frames, int64_t bands, float *out) const {
  const int64_t padded = bands + bands % 2, width = ModelSettings::halved(bands), frame = padded * channels;
  round_inputs(planes, 2 * plane, input_bits);
  if (rows.size() == 3) {
    const float *starts[3] = {planes, planes + plane, planes + frame};
    for (int row = 0; row < 3; ++row) rows[row].multiply(starts[row], frames * padded / 2, 2 * channels, out, row > 0);
    relu(out, frames * padded / 2 * channels);
    return;
  }
  Frames x(2 * frames + 2, bands * channels), patches(frames * width, 9 * channels), y(frames * width, channels);
  for (int64_t t = 0; t < x.rows; ++t) std::copy_n(planes + t % 2 * plane + t / 2 * frame, x.cols, x.row(t));
  check(lbk_patches(x.data.get(), x.rows, bands, channels, 0, frames, 1, patches.data.get()));
  rows[0].multiply(patches.data.get(), patches.rows, patches.cols, y.data.get());
  relu(y.data.get(), y.size());
  for (int64_t t = 0; t < frames; ++t) std::copy_n(y.row(t * width), width * channels, out + t * (frame / 2));
}

Subsampling::Subsampling(Weights &weights, const std::string &name, const ModelSettings &s)
    : channels(s.subsampling_channels), width(s.output_frames(s.num_features)), filters(9 * channels),
      bias(weights.floats(name + ".conv1.bias", {channels})), second(weights, name + ".conv2", channels), how(weights.how) {
  const Tensor first = weights.checked(name + ".conv1.weight", {channels, 1, 3, 3});
  input_bits = first.input_bits;
  std::vector<float> rows(filters.size());  // (channels, 9)
  first.dequantize(0, channels, rows.data());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t k = 0; k < 9; ++k) filters[k * channels + c] = rows[9 * c + k];
  // What the second convolution puts out is read as it lies, channels last; steps of blocks go by the file's order.
  const Tensor weight = weights.checked(name + ".out.weight", {s.d_model, channels * width});
  by_channel = weight.granularity == LBK_BLOCK64;
  out = std::make_unique<Linear>(weights, name + ".out", by_channel ? weight : weight.places_first(width, 0, width));
}

Frames Subsampling::operator()(const Frames &features) const {
  const int64_t frames = ModelSettings::halved(ModelSettings::halved(features.rows));
  const int64_t bands = ModelSettings::halved(features.cols), padded = bands + bands % 2, frame = padded * channels;
  const bool whole = input_bits || second.input_bits;  // rounded on one grid over all frames
  Frames rounded(features.rows, features.cols);
  std::copy_n(features.data.get(), features.size(), rounded.data.get());
  round_inputs(rounded.data.get(), rounded.size(), input_bits);
  const int64_t step = whole ? frames : kFramesAtOnce, group = whole ? frames : std::min(kOutAtOnce, frames);
  const int64_t plane = (std::min(step, frames) + 1) * frame;
  std::vector<float> planes(2 * plane);
  Frames x(group, frame / 2), turned(by_channel ? group : 0, width * channels), y(frames, out->outputs());
  for (int64_t first = 0; first < frames; first += group) {
    const int64_t count = std::min(group, frames - first);
    for (int64_t done = 0; done < count; done += step) {
      const int64_t some = std::min(step, count - done);
      for (int64_t odd = 0; odd < 2; ++odd)
        check(lbk_convolve(rounded.row(4 * (first + done) + 2 * odd), 4 * features.cols, some + 1 - odd, features.cols,
                           filters.data(), bias.data(), channels, planes.data() + odd * plane, frame, how.threads));
      second(planes.data(), plane, some, bands, x.row(done));
    }
    for (int64_t t = 0; by_channel && t < count; ++t)
      for (int64_t f = 0; f < width; ++f)
        for (int64_t c = 0; c < channels; ++c) turned.row(t)[c * width + f] = x.row(t)[f * channels + c];
    const Frames &rows = by_channel ? turned : x;
    out->multiply(rows.data.get(), count, rows.cols, y.row(first));
  }
  return y;
}

Encoder::Encoder(Weights &weights, const ModelSettings &s)
    : subsampling_(weights, "encoder.subsampling", s), norm_(weights, "encoder.norm", s.d_model) {
  for (int64_t i = 0; i < s.num_layers; ++i)
    layers_.emplace_back(weights, "encoder.layers." + std::to_string(i), s, s.ffn_dims[i]);
}

Frames Encoder::operator()(const Frames &features) const {
  Frames x = subsampling_(features);
  const float factor = static_cast<float>(std::sqrt(static_cast<double>(x.cols)));
  for (int64_t i = 0; i < x.size(); ++i) x.data[i] *= factor;
  const Frames positions = relative_positions(x.rows, x.cols);
  for (const Layer &layer : layers_) x = layer(std::move(x), positions);
  return norm_(x);
}

Transducer::Transducer(Weights &weights, const ModelSettings &s)
    : embedding_(weights.checked("decoder.embedding.weight", {s.vocab_size, s.decoder_dim}).kept()), dim_(s.decoder_dim),
      context_size_(s.context_size), encoder_proj_(weights, "joiner.encoder_proj", s.joiner_dim, s.d_model),
      decoder_proj_(weights, "joiner.decoder_proj", s.joiner_dim, s.decoder_dim),
      output_(weights, "joiner.output", s.vocab_size, s.joiner_dim) {
  if (context_size_ == 1) return;
  const Tensor filters = weights.checked("decoder.conv.weight", {dim_, kGroup, context_size_});
  input_bits_ = filters.input_bits;
  filters_.resize(dim_ * kGroup * context_size_);
  filters.dequantize(0, dim_, filters_.data());
}

Frames Transducer::context(const std::vector<int32_t> &tokens) const {
  const int64_t size = context_size_, said = static_cast<int64_t>(tokens.size());
  std::vector<float> x(size * dim_);  // (context_size, dim): the last tokens, blanks before the first
  for (int64_t l = 0; l < size; ++l) {
    const int64_t place = said - size + l, token = place < 0 ? 0 : tokens[place];
    embedding_.dequantize(token, token + 1, &x[l * dim_]);
  }
  Frames y(1, dim_);
  if (filters_.empty()) {
    std::copy_n(x.data(), dim_, y.data.get());
  } else {
    round_inputs(x.data(), size * dim_, input_bits_);
    for (int64_t d = 0; d < dim_; ++d) {
      float sum = 0;
      for (int64_t i = 0; i < kGroup; ++i)
        for (int64_t l = 0; l < size; ++l)
          sum += x[l * dim_ + d / kGroup * kGroup + i] * filters_[(d * kGroup + i) * size + l];
      y.data[d] = sum;
    }
  }
  relu(y.data.get(), dim_);
  return decoder_proj_(y);
}

Frames Transducer::joined(const float *projected, int64_t rows, const Frames &context) const {
  Frames sum(rows, context.cols);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t d = 0; d < sum.cols; ++d) sum.row(t)[d] = std::tanh(projected[t * sum.cols + d] + context.data[d]);
  return output_(sum);
}

Network::Network(const PackedFile &file, Arithmetic how) : settings(ModelSettings::read(file.model)), how_(how) {
  Json extra(file.extra, "its index");
  extra.object([&](const std::string &key) {
    if (extra.any() != "false" && key == "reference")
      refuse("it holds the latent weights of a low-bit model, as a measure of size: take the packed file");
  });
  Weights weights(file.tensors, how);
  encoder_ = std::make_unique<Encoder>(weights, settings);
  if (settings.is_transducer) transducer_ = std::make_unique<Transducer>(weights, settings);
  if (!settings.is_transducer || settings.ctc_head)
    head_ = std::make_unique<Linear>(weights, "ctc_head", settings.vocab_size, settings.d_model);
  weights.finish();
}

Frames Network::operator()(const Frames &features) const {
  Frames x = (*encoder_)(features);
  return transducer_ ? std::move(x) : log_probs(x);
}

Frames Network::log_softmax(Frames x) const {
  check(lbk_log_softmax(x.data.get(), x.rows, x.cols, x.data.get(), how_.threads));
  return x;
}

Frames Network::log_probs(const Frames &encoder_out) const { return log_softmax((*head_)(encoder_out)); }

std::vector<float> Network::blank_scores(const Frames &output) const {
  Frames made;
  if (transducer_ && head_) {
    made = log_probs(output);
  } else if (transducer_) {
    const Frames projected = transducer_->encoder_proj(output);
    made = log_softmax(transducer_->joined(projected.data.get(), projected.rows, transducer_->context({})));
  }
  const Frames &scores = transducer_ ? made : output;
  std::vector<float> blanks(scores.rows);
  for (int64_t t = 0; t < scores.rows; ++t) blanks[t] = scores.row(t)[0];
  return blanks;
}

}  // namespace lbk
