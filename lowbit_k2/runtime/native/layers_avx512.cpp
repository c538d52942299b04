// AVX-512, of the first CPUs that had it (F, DQ, BW, VL).
#include "layers.h"

namespace lbk {

const Layers kLayersAvx512 = {each_row, cell, depthwise, convolve, pack_head, attend};

}  // namespace lbk
