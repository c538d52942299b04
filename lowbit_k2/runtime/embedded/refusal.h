// The one exception of the recogniser's units. It never leaves the library: recogniser.cpp makes lbk_error() of it.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace lbk {

struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What a file holds, fit for a line on a terminal: printable ASCII, and not much of it.
std::string quoted(std::string_view text);

// Throw what a function of lowbit_k2.h reported.
void check(int failed);

}  // namespace lbk
