// A model's settings as a packed file has them (core/models.py, core/encoders.py).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lbk {

constexpr int64_t kLeastFrames = 7;  // of the input, that give one of the output

struct ModelSettings {
  bool is_transducer = false;
  int64_t vocab_size = 500;
  // of the Conformer
  int64_t num_features = 80, d_model = 256, num_layers = 12, num_heads = 4, conv_kernel = 31, subsampling_channels = 256;
  std::vector<int64_t> ffn_dims{2048};  // of each layer
  bool batch_norm = true;               // in the convolution module; else LayerNorm
  // of a transducer
  int64_t decoder_dim = 512, joiner_dim = 512, context_size = 2;
  bool ctc_head = false;

  // Refuses what the library has no parts for.
  static ModelSettings read(std::string_view json);

  static int64_t halved(int64_t count) { return (count - 1) / 2; }  // by a convolution of width 3 and stride 2
  int64_t output_frames(int64_t frames) const { return frames < 3 ? 0 : halved(halved(frames)); }
};

}  // namespace lbk
