// AVX-512 VNNI: not there yet.
#include "internal.h"

namespace lbk {

const Kernels kAvx512Vnni = {};

}  // namespace lbk
