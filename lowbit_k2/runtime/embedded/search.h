// From samples to token ids: greedy search, and long audio in chunks whose output is cut at pauses (core/chunks.py).
#pragma once

#include <cstdint>
#include <vector>

#include "fbank.h"
#include "network.h"

namespace lbk {

std::vector<int32_t> greedy_search(const Network &network, const Frames &output);

// Token ids of a recording of any length, whose features take memory for a chunk of it.
std::vector<int32_t> recognised(const Network &network, const Fbank &fbank, const FeatureSettings &features,
                                const float *samples, int64_t count);

}  // namespace lbk
