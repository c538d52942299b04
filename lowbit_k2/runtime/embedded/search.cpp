#include "search.h"

#include <algorithm>
#include <cmath>

namespace lbk {
namespace {

constexpr double kChunkSeconds = 30, kOverlapSeconds = 4;
constexpr int64_t kStep = 4;  // input frames of an output frame
constexpr int64_t kLeast = kLeastFrames + kStep;  // fewer shared ones would leave a gap in the output

// Input frames [start, stop) are run through the network; of what comes out [first, last) is kept.
struct Chunk {
  int64_t start, stop, first, last;
};

std::vector<Chunk> chunks(const ModelSettings &settings, int64_t total, int64_t size, int64_t overlap) {
  overlap = std::max(overlap, kLeast);
  size = std::max(size, 2 * kLeast);
  if (total <= size) return {{0, total, 0, settings.output_frames(total)}};
  const int64_t count = (total - overlap + size - overlap - 1) / (size - overlap);
  const auto start = [&](int64_t i) { return i * (total - size) / (count - 1) / kStep * kStep; };
  std::vector<Chunk> result;
  int64_t begin = 0;  // output frame of the whole from which on nothing is kept yet
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = start(i), to = i + 1 < count ? from + size : total, offset = from / kStep;
    int64_t end = offset + settings.output_frames(to - from);
    if (i + 1 < count) end = (start(i + 1) / kStep + end) / 2;
    result.push_back({from, to, begin - offset, end - offset});
    begin = end;
  }
  return result;
}

Frames part(const Frames &frames, int64_t first, int64_t last) {
  Frames result(last - first, frames.cols);
  std::copy_n(frames.row(first), result.size(), result.data.get());
  return result;
}

Frames joined(const Frames &a, const Frames &b) {
  Frames result(a.rows + b.rows, b.cols);
  std::copy_n(a.data.get(), a.size(), result.data.get());
  std::copy_n(b.data.get(), b.size(), result.row(a.rows));
  return result;
}

// Where to cut: in the middle of the longest pause of the second half, or where the blank is likeliest.
int64_t pause(const std::vector<float> &scores) {
  const double quiet = std::log(0.5);
  const int64_t size = static_cast<int64_t>(scores.size()), half = size / 2;
  int64_t longest = 0, place = 0, start = half;
  for (int64_t i = half; i <= size; ++i) {
    if (i < size && scores[i] > quiet) continue;
    if (i - start > longest) longest = i - start, place = start;
    start = i + 1;
  }
  if (!longest) return std::max_element(scores.begin() + half, scores.end()) - scores.begin();
  return place + longest / 2;
}

int32_t best(const float *scores, int64_t count) {
  return static_cast<int32_t>(std::max_element(scores, scores + count) - scores);
}

}  // namespace

std::vector<int32_t> greedy_search(const Network &network, const Frames &output) {
  std::vector<int32_t> labels;
  const Transducer *transducer = network.transducer();
  if (!transducer) {
    int32_t before = -1;
    for (int64_t t = 0; t < output.rows; ++t) {
      const int32_t token = best(output.row(t), output.cols);
      if (token && token != before) labels.push_back(token);
      before = token;
    }
    return labels;
  }
  const Frames projected = transducer->encoder_proj(output);
  Frames context = transducer->context(labels);
  for (int64_t t = 0; t < projected.rows; ++t) {
    const Frames logits = transducer->joined(projected.row(t), 1, context);
    if (const int32_t token = best(logits.data.get(), logits.cols)) {
      labels.push_back(token);
      context = transducer->context(labels);
    }
  }
  return labels;
}

std::vector<int32_t> recognised(const Network &network, const Fbank &fbank, const FeatureSettings &features,
                                const float *samples, int64_t count) {
  const ModelSettings &settings = network.settings;
  const int64_t total = features.num_frames(count);
  const auto frames = [&](double seconds) { return static_cast<int64_t>(std::nearbyint(seconds / features.frame_shift)); };
  const int64_t size = frames(kChunkSeconds);
  const int64_t longest = std::max<int64_t>(2, settings.output_frames(size));
  const bool whole = total <= size;

  std::vector<int32_t> labels;
  const auto search = [&](const Frames &output) {
    const std::vector<int32_t> found = greedy_search(network, output);
    labels.insert(labels.end(), found.begin(), found.end());
  };
  Frames waiting;
  for (const Chunk &chunk : chunks(settings, total, whole ? total : size, frames(kOverlapSeconds))) {
    if (chunk.stop - chunk.start < kLeastFrames) continue;
    const Frames output = part(network(fbank(samples, count, chunk.start, chunk.stop)), chunk.first, chunk.last);
    waiting = joined(waiting, output);
    while (!whole && waiting.rows > longest) {
      const int64_t place = pause(network.blank_scores(part(waiting, 0, longest)));
      search(part(waiting, 0, place));
      waiting = part(waiting, place, waiting.rows);
    }
  }
  if (waiting.rows) search(waiting);
  return labels;
}

}  // namespace lbk
