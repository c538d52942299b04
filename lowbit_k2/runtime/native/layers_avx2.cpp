// AVX2 and FMA.
#include "layers.h"

namespace lbk {

const Layers kLayersAvx2 = {each_row, cell, depthwise, convolve, pack_head, attend};

}  // namespace lbk
