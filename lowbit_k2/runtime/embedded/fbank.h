// Log-Mel filter banks as runtime/features.py has them of kaldi-native-fbank: a frame per shift with mirrored ends, no
// dither, offset removed, pre-emphasis 0.97, Povey's window, logarithms of at least float32's epsilon.
#pragma once

#include <complex>
#include <string_view>
#include <vector>

#include "frames.h"

namespace lbk {

struct FeatureSettings {
  int64_t num_mel_bins = 80, sampling_rate = 16000;
  double frame_length = 0.025, frame_shift = 0.01;  // seconds
  double low_freq = 20, high_freq = -400;           // Hz; high_freq <= 0 counts from half the sampling rate
  enum { kNone, kUtterance, kUtteranceStd } normalize = kUtterance;

  // A packed file's; refuses what no features can be computed with.
  static FeatureSettings read(std::string_view json);

  int64_t num_frames(int64_t num_samples) const;
};

class Fbank {
 public:
  explicit Fbank(const FeatureSettings &settings);

  // Frames begin .. end-1 of samples in -1 .. 1, normalised by themselves.
  Frames operator()(const float *samples, int64_t count, int64_t begin, int64_t end) const;

 private:
  struct Filter {
    int first;  // bin of the spectrum
    std::vector<float> weights;
  };

  void frame(const float *samples, int64_t count, int64_t index, std::vector<std::complex<double>> *spectrum,
             float *bins) const;
  void transform(std::vector<std::complex<double>> *values) const;

  FeatureSettings settings_;
  int64_t shift_, length_, padded_;  // samples
  std::vector<float> window_;
  std::vector<std::complex<double>> turns_;  // exp(-2 pi i k / padded), k < padded / 2
  std::vector<Filter> filters_;
};

}  // namespace lbk
