#include "refusal.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "lowbit_k2.h"

namespace lbk {

void refuse(const char *format, ...) {
  char line[400];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof line, format, values);
  va_end(values);
  throw Refusal(line);
}

std::string quoted(std::string_view text) {
  std::string line(text.substr(0, 80));
  std::replace_if(line.begin(), line.end(), [](unsigned char c) { return c < ' ' || c > '~'; }, '?');
  return line.size() < text.size() ? line + " ..." : line;
}

void check(int failed) {
  if (failed) throw Refusal(lbk_error());
}

}  // namespace lbk
