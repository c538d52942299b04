// AMX: not there yet.
#include "internal.h"
#if defined(__AVX512VNNI__)
#include "planes512.h"
namespace lbk {
namespace {
struct Amx : Planes512 {
  static constexpr int kFloatRows = 8, kTableRows = 0;
  static const Kernels &floats() { return kAmxFloats; }
  static Group group_of(int64_t rows, int64_t row) { return greedy_group<Planes512>(rows, row); }
  template <int BITS, int P>
  static void multiply(const Call &c, int64_t begin, int64_t end) {
    static const Dots<Amx, BITS> dots;
    multiply_planes<Amx, P>(c, dots.of, begin, end);
  }
};
}  // namespace
const Kernels kAmx = {planes<Amx>, plane_row_bytes<Amx>, prepare_by_planes<Amx>, multiply_by_planes<Amx>, kLargeSlice, true};
}  // namespace lbk
#endif
