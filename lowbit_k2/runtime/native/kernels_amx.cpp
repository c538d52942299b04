// AMX: not there yet.
#include "internal.h"

namespace lbk {

const Kernels kAmx = {};

}  // namespace lbk
