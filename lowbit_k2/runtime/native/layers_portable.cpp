// Plain C++, for any CPU.
#include "layers.h"

namespace lbk {

const Layers kLayersPortable = {each_row, depthwise, convolve, pack_head, attend};

}  // namespace lbk
