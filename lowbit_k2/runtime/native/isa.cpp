// Which instructions this CPU and its system offer, and which are in use.
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "internal.h"

namespace lbk {
namespace {

thread_local char last_error[512] = "";

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, amx = false;
};

// State of registers that the system saves: 0x6 for AVX, 0xe6 for AVX-512, 0x60000 for tiles.
bool saves(uint64_t wanted) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((static_cast<uint64_t>(high) << 32 | low) & wanted) == wanted;
}

// Tiles are large: Linux gives them to those that ask, unless a rule forbids it.
bool tiles_granted() {
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features found;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1;
  if (!osxsave || !fma || !saves(0x6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2 = b >> 5 & 1;
  const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
  found.avx512_vnni = found.avx2 && avx512 && (c >> 11 & 1) && saves(0xe6);
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1), gfni = c >> 8 & 1;  // AMX-BF16, -TILE, -INT8
  const bool leaf1 = a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d), bf16 = leaf1 && (a >> 5 & 1);
  found.avx_vnni = found.avx2 && leaf1 && (a >> 4 & 1);
  found.amx = found.avx512_vnni && tiles && gfni && bf16 && saves(0x60000) && tiles_granted();
  return found;
}

#elif defined(__aarch64__)
struct Features {
  bool dot = false, i8mm = false;
};

#if defined(__APPLE__)
bool has(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return !sysctlbyname(name, &value, &size, nullptr, 0) && value;
}
#endif

Features detect() {
  Features found;
#if defined(__linux__)
  found.dot = getauxval(AT_HWCAP) >> 20 & 1;                 // HWCAP_ASIMDDP
  found.i8mm = found.dot && getauxval(AT_HWCAP2) >> 13 & 1;  // HWCAP2_I8MM
#elif defined(__APPLE__)
  found.dot = has("hw.optional.arm.FEAT_DotProd");
  found.i8mm = found.dot && has("hw.optional.arm.FEAT_I8MM");
#endif
  return found;
}
#endif

#if defined(__x86_64__) || defined(__aarch64__)
const Features &features() {
  static const Features found = detect();
  return found;
}
#endif

// The best first.
struct Choice {
  const char *name;
  const Kernels *kernels;
  const Layers *layers;
  bool (*offered)();

  const char *missing() const {
    if (!offered()) return "this CPU lacks it";
    return kernels->multiply ? nullptr : "the compiler that built this library lacks it";
  }
};

const Choice kChoices[] = {
#if defined(__x86_64__)
    {"amx", &kAmx, &kLayersAvx512, [] { return features().amx; }},
    {"avx512vnni", &kAvx512Vnni, &kLayersAvx512, [] { return features().avx512_vnni; }},
    {"avxvnni", &kAvxVnni, &kLayersAvx2, [] { return features().avx_vnni; }},
    {"avx2", &kAvx2, &kLayersAvx2, [] { return features().avx2; }},
#elif defined(__aarch64__)
    {"i8mm", &kI8mm, &kLayersPortable, [] { return features().i8mm; }},
    {"neondot", &kNeonDot, &kLayersPortable, [] { return features().dot; }},
    {"neon", &kNeon, &kLayersPortable, [] { return true; }},
#endif
    {"portable", &kPortable, &kLayersPortable, [] { return true; }},
};

const Choice *find(const char *name) {
  for (const Choice &choice : kChoices)
    if (!std::strcmp(choice.name, name)) return &choice;
  return nullptr;
}

const Choice *best() {
  const Choice *choice = kChoices;
  while (choice->missing()) ++choice;  // portable comes last
  return choice;
}

std::atomic<const Choice *> in_use{nullptr};

const Choice &chosen() {
  if (!in_use && lbk_use_isa(nullptr)) in_use = best();
  return *in_use;
}

}  // namespace

int fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(last_error, sizeof last_error, format, values);
  va_end(values);
  return -1;
}

const Kernels &kernels() { return *chosen().kernels; }

const Layers &layers() { return *chosen().layers; }

}  // namespace lbk

using namespace lbk;

extern "C" {

int lbk_abi(void) { return LBK_ABI; }

const char *lbk_error(void) { return last_error; }

int lbk_fail(const char *line) { return fail("%s", line); }

const char *lbk_isa_missing(const char *name) {
  const Choice *choice = find(name);
  if (!choice) return "unknown";
  return choice->missing();
}

int lbk_use_isa(const char *name) {
  if (!name) name = std::getenv("LOWBIT_K2_ISA");
  if (!name || !*name) {
    in_use = best();
    return 0;
  }
  if (const char *why = lbk_isa_missing(name)) return fail("instructions %.40s: %s", name, why);
  in_use = find(name);
  return 0;
}

const char *lbk_isa(void) { return chosen().name; }
}
