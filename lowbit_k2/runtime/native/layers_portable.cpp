// Plain C++, for any CPU.
#include "layers.h"

namespace lbk {

const Layers kLayersPortable = {each_row, cell, depthwise, convolve, pack_head, attend};

}  // namespace lbk
