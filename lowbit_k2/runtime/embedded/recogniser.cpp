// The C interface of the recogniser: what units throw ends here.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "fbank.h"
#include "lowbit_k2.h"
#include "network.h"
#include "refusal.h"
#include "search.h"
#include "units.h"

struct lbk_recogniser {
  lbk_recogniser(const lbk::PackedFile &file, lbk::Arithmetic how)
      : features(lbk::FeatureSettings::read(file.features)), fbank(features), network(file, how),
        units(file.tokens_kind, file.tokens, network.settings.vocab_size) {
    if (features.num_mel_bins != network.settings.num_features)
      lbk::refuse("it has features of %lld bins, but a network for %lld", static_cast<long long>(features.num_mel_bins),
                  static_cast<long long>(network.settings.num_features));
  }

  lbk::FeatureSettings features;
  lbk::Fbank fbank;
  lbk::Network network;
  lbk::Units units;
};

namespace lbk {
namespace {

// What a body gives, or null and lbk_error().
template <class Body>
auto guarded(Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    lbk_fail("out of memory");
  } catch (const std::exception &error) {
    lbk_fail(error.what());
  }
  return nullptr;
}

template <class T>
T *allocated(size_t count) {
  T *memory = static_cast<T *>(std::malloc((count ? count : 1) * sizeof(T)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

float *given(const Frames &frames, int64_t shape[2]) {
  float *numbers = allocated<float>(frames.size());
  std::copy_n(frames.data.get(), frames.size(), numbers);
  shape[0] = frames.rows, shape[1] = frames.cols;
  return numbers;
}

void check_samples(const lbk_recogniser &r, const float *samples, int64_t count) {
  if (count < 0 || count > int64_t{1} << 40) refuse("%lld samples cannot be", static_cast<long long>(count));
  if (count < r.features.frame_length * r.features.sampling_rate || !r.features.num_frames(count))
    refuse("the audio is too short: %lld samples are less than one frame", static_cast<long long>(count));
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(samples[i])) refuse("the audio holds samples that are not finite numbers");
}

}  // namespace
}  // namespace lbk

using namespace lbk;

extern "C" {

lbk_recogniser *lbk_recogniser_open(const char *path, int32_t mode, int32_t threads) {
  return guarded([&]() -> lbk_recogniser * {
    if (mode < LBK_EXACT || mode > LBK_A8) refuse("unknown mode %d", mode);
    if (threads < 1) refuse("%d threads: give a number from 1", threads);
    try {
      return new lbk_recogniser(PackedFile(path), {mode, threads});
    } catch (const Refusal &refusal) {
      refuse("%.200s: %s", path, refusal.what());
    }
  });
}

void lbk_recogniser_close(lbk_recogniser *recogniser) { delete recogniser; }

int32_t lbk_recogniser_sampling_rate(const lbk_recogniser *recogniser) {
  return static_cast<int32_t>(recogniser->features.sampling_rate);
}

char *lbk_recogniser_transcribe(const lbk_recogniser *recogniser, const float *samples, int64_t count) {
  return guarded([&] {
    const lbk_recogniser &r = *recogniser;
    check_samples(r, samples, count);
    const std::string text = r.units.text(recognised(r.network, r.fbank, r.features, samples, count));
    char *copy = allocated<char>(text.size() + 1);
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
  });
}

float *lbk_recogniser_features(const lbk_recogniser *recogniser, const float *samples, int64_t count, int64_t shape[2]) {
  return guarded([&] {
    const lbk_recogniser &r = *recogniser;
    check_samples(r, samples, count);
    return given(r.fbank(samples, count, 0, r.features.num_frames(count)), shape);
  });
}

float *lbk_recogniser_run(const lbk_recogniser *recogniser, const float *features, int64_t frames, int64_t shape[2]) {
  return guarded([&] {
    const lbk_recogniser &r = *recogniser;
    if (frames < kLeastFrames || frames > int64_t{1} << 24)
      refuse("%lld frames: an utterance has at least %d", static_cast<long long>(frames), int{kLeastFrames});
    Frames input(frames, r.features.num_mel_bins);
    std::copy_n(features, input.size(), input.data.get());
    return given(r.network(input), shape);
  });
}

void lbk_free(void *memory) { std::free(memory); }
}
