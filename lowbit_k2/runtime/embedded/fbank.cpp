#include "fbank.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "json.h"
#include "refusal.h"

namespace lbk {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr float kPreemphasis = 0.97f;
constexpr float kSmallestDeviation = 0.1f;

float mel(float frequency) { return 1127.0f * std::log(1.0f + frequency / 700.0f); }

void normalize(Frames *features, bool deviation) {
  for (int64_t c = 0; c < features->cols; ++c) {
    float *column = features->row(0) + c;
    const auto each = [&](auto body) {
      for (int64_t t = 0; t < features->rows; ++t) body(column[t * features->cols]);
    };
    double sum = 0, squares = 0;
    each([&](float x) { sum += x; });
    const float mean = static_cast<float>(sum / features->rows);
    each([&](float &x) { x -= mean; });
    if (!deviation) continue;
    each([&](float x) { squares += x * x; });
    const float divisor = std::max(static_cast<float>(std::sqrt(squares / features->rows)), kSmallestDeviation);
    each([&](float &x) { x /= divisor; });
  }
}

}  // namespace

FeatureSettings FeatureSettings::read(std::string_view text) {
  FeatureSettings s;
  Json json(text, "its settings of features");
  const auto within = [](double value, double low, double high, const std::string &key) {
    if (!(value >= low && value <= high)) refuse("features with %s %g", key.c_str(), value);
    return value;
  };
  json.object([&](const std::string &key) {
    if (key == "num_mel_bins") s.num_mel_bins = within(json.integer(), 1, 512, key);
    else if (key == "sampling_rate") s.sampling_rate = within(json.integer(), 1, 384000, key);
    else if (key == "frame_length") s.frame_length = within(json.number(), 0.001, 1, key);
    else if (key == "frame_shift") s.frame_shift = within(json.number(), 0.001, 1, key);
    else if (key == "low_freq") s.low_freq = within(json.number(), 0, 1e12, key);
    else if (key == "high_freq") s.high_freq = within(json.number(), -1e12, 1e12, key);
    else if (key == "extractor") json.string();
    else if (key == "type") {
      if (json.string() != "fbank") refuse("features of another type than fbank");
    } else if (key == "normalize") {
      const std::string name = json.string();
      if (name != "none" && name != "utterance" && name != "utterance-std") refuse("unknown normalisation of features");
      s.normalize = name == "none" ? kNone : name == "utterance" ? kUtterance : kUtteranceStd;
    } else refuse("features with an unknown setting %s", quoted(key).c_str());
  });
  const double half = s.sampling_rate / 2.0, highest = s.high_freq > 0 ? s.high_freq : half + s.high_freq;
  if (!(s.low_freq < highest && highest <= half)) refuse("no mel bins fit between %g and %g Hz", s.low_freq, highest);
  if (std::min(s.frame_shift, s.frame_length) * s.sampling_rate < 2) refuse("features of frames with less than 2 samples");
  return s;
}

int64_t FeatureSettings::num_frames(int64_t num_samples) const {
  const int64_t shift = static_cast<int64_t>(frame_shift * sampling_rate);
  return num_samples / shift + (num_samples % shift + shift / 2) / shift;
}

// float32 where kaldi-native-fbank has it: a frame's length and the weights of quiet bins depend on that.
Fbank::Fbank(const FeatureSettings &settings) : settings_(settings) {
  const float rate = static_cast<float>(settings.sampling_rate);
  const auto samples = [rate](double seconds) {
    return static_cast<int64_t>(rate * 0.001f * static_cast<float>(1000 * seconds));
  };
  shift_ = std::max<int64_t>(samples(settings.frame_shift), 1);
  length_ = std::max<int64_t>(samples(settings.frame_length), 2);
  for (padded_ = 2; padded_ < length_;) padded_ *= 2;
  for (int64_t i = 0; i < length_; ++i)
    window_.push_back(static_cast<float>(std::pow(0.5 - 0.5 * std::cos(2 * kPi * i / (length_ - 1)), 0.85)));
  for (int64_t k = 0; k < padded_ / 2; ++k) turns_.push_back(std::polar(1.0, -2 * kPi * k / padded_));

  const float half = 0.5f * rate, high = static_cast<float>(settings.high_freq), low = static_cast<float>(settings.low_freq);
  const float lowest = mel(low), width = (mel(high > 0 ? high : half + high) - lowest) / (settings.num_mel_bins + 1);
  for (int64_t bin = 0; bin < settings.num_mel_bins; ++bin) {
    const float left = lowest + bin * width, centre = lowest + (bin + 1) * width, right = lowest + (bin + 2) * width;
    Filter filter{0, {}};
    for (int64_t i = 0; i < padded_ / 2; ++i) {
      const float at = mel(rate / padded_ * i);
      if (at <= left || at >= right) continue;
      if (filter.weights.empty()) filter.first = static_cast<int>(i);
      filter.weights.push_back(at <= centre ? (at - left) / (centre - left) : (right - at) / (right - centre));
    }
    filters_.push_back(filter);
  }
}

Frames Fbank::operator()(const float *samples, int64_t count, int64_t begin, int64_t end) const {
  Frames features(end - begin, settings_.num_mel_bins);
  std::vector<std::complex<double>> spectrum(padded_ / 2 + 1);
  for (int64_t i = begin; i < end; ++i) frame(samples, count, i, &spectrum, features.row(i - begin));
  if (settings_.normalize != FeatureSettings::kNone && end > begin)
    normalize(&features, settings_.normalize == FeatureSettings::kUtteranceStd);
  return features;
}

void Fbank::frame(const float *samples, int64_t count, int64_t index, std::vector<std::complex<double>> *spectrum,
                  float *bins) const {
  const int64_t start = shift_ * index + shift_ / 2 - length_ / 2;
  std::vector<float> wave(padded_, 0.f);
  double sum = 0;
  for (int64_t i = 0; i < length_; ++i) {
    int64_t at = start + i;
    while (at < 0 || at >= count) at = at < 0 ? -at - 1 : 2 * count - 1 - at;
    sum += wave[i] = samples[at];
  }
  const float mean = static_cast<float>(sum / length_);
  for (int64_t i = 0; i < length_; ++i) wave[i] -= mean;
  for (int64_t i = length_ - 1; i >= 0; --i) wave[i] = (wave[i] - kPreemphasis * wave[std::max<int64_t>(i - 1, 0)]) * window_[i];

  // Two neighbours as one complex number: half the transform, and the other half by symmetry.
  const int64_t half = padded_ / 2;
  auto &z = *spectrum;
  z.resize(half);
  for (int64_t k = 0; k < half; ++k) z[k] = {wave[2 * k], wave[2 * k + 1]};
  transform(&z);
  for (int64_t k = 0; k < half; ++k) {
    const std::complex<double> here = z[k], there = std::conj(z[(half - k) % half]);
    const std::complex<double> odd = std::complex<double>(0, -0.5) * (here - there) * turns_[k];
    wave[k] = static_cast<float>(std::norm(0.5 * (here + there) + odd));
  }
  for (const Filter &filter : filters_) {
    float energy = 0;
    for (size_t i = 0; i < filter.weights.size(); ++i) energy += filter.weights[i] * wave[filter.first + i];
    *bins++ = std::log(std::max(energy, std::numeric_limits<float>::epsilon()));
  }
}

// The discrete Fourier transform of a power of two, in place.
void Fbank::transform(std::vector<std::complex<double>> *values) const {
  auto &z = *values;
  const size_t n = z.size();
  for (size_t i = 1, j = 0; i < n; ++i) {
    size_t bit = n / 2;
    for (; j & bit; bit /= 2) j ^= bit;
    j ^= bit;
    if (i < j) std::swap(z[i], z[j]);
  }
  for (size_t width = 1; width < n; width *= 2)
    for (size_t begin = 0; begin < n; begin += 2 * width)
      for (size_t k = 0; k < width; ++k) {
        const std::complex<double> turn = turns_[k * (n / width)], x = z[begin + k + width];
        const std::complex<double> turned(x.real() * turn.real() - x.imag() * turn.imag(),
                                          x.real() * turn.imag() + x.imag() * turn.real());  // * also looks for NaN
        z[begin + k + width] = z[begin + k] - turned;
        z[begin + k] += turned;
      }
}

}  // namespace lbk
