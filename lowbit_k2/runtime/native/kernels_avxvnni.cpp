// AVX-VNNI: not there yet.
#include "internal.h"

namespace lbk {

const Kernels kAvxVnni = {};

}  // namespace lbk
