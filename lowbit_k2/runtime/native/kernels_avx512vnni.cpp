// AVX-512 with VNNI.
#include "internal.h"

#if defined(__AVX512VNNI__)

#include "planes512.h"

namespace lbk {
namespace {

struct Avx512 : Planes512 {
  static constexpr int kFloatRows = 12, kFloatPanels = 2, kTableRows = 0;

  static Group group_of(int64_t rows, int64_t row, int) { return greedy_group<Planes512>(rows, row); }

  template <int BITS, int P>
  static void multiply(const Call &c, int64_t begin, int64_t end) {
    static const Dots<Avx512, BITS> dots;
    multiply_planes<Avx512, P>(c, dots.of, begin, end);
  }
};

}  // namespace

const Kernels kAvx512Floats = {no_sums, float_row_bytes<Avx512>, prepare_float_rows<Avx512>, multiply_exact<Avx512>,
                               kLargeSlice, false};
const Kernels kAvx512Vnni = {planes<Avx512>, plane_row_bytes<Avx512>, prepare_by_planes<Avx512>,
                             multiply_by_planes<Avx512>, kLargeSlice, false};

}  // namespace lbk

#else

namespace lbk {

const Kernels kAvx512Vnni = {};

}  // namespace lbk

#endif
