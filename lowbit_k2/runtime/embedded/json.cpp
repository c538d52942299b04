#include "json.h"

#include <algorithm>
#include <cmath>

#include "refusal.h"

namespace lbk {
namespace {

void append_utf8(std::string *text, uint32_t c) {
  const int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr uint8_t kFirst[4] = {0, 0xc0, 0xe0, 0xf0};
  *text += static_cast<char>(kFirst[more] | c >> 6 * more);
  for (int i = more - 1; i >= 0; --i) *text += static_cast<char>(0x80 | (c >> 6 * i & 63));
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const uint8_t first = text[i++];
    if (first < 0x80) continue;
    const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    if (first < 0xc2 || first > 0xf4 || text.size() - i < static_cast<size_t>(more)) return false;
    uint32_t c = first & (0x3f >> more);
    for (int k = 0; k < more; ++k, ++i) {
      const uint8_t next = text[i];
      if (next >> 6 != 2) return false;
      c = c << 6 | (next & 63);
    }
    constexpr uint32_t kLeast[4] = {0, 0x80, 0x800, 0x10000};
    if (c < kLeast[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return false;
  }
  return true;
}

Json::Json(std::string_view text, const char *what) : text_(text), what_(what) {
  if (!is_utf8(text)) fail();
}

void Json::fail() const { refuse("%s is damaged, at byte %zu of its text", what_, at_); }

void Json::blank() {
  while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
}

void Json::expect(char c) {
  blank();
  if (at_ == text_.size() || text_[at_] != c) fail();
  ++at_;
}

void Json::enter(char bracket) {
  if (++depth_ > kDeepest) fail();
  expect(bracket);
}

// Whether a member or an item comes, or the end, which is passed by.
bool Json::more(char bracket, bool first) {
  blank();
  if (at_ < text_.size() && text_[at_] == bracket) return ++at_, false;
  if (!first) expect(',');
  return true;
}

bool Json::skip(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) return false;
  at_ += word.size();
  return true;
}

char Json::kind() {
  blank();
  if (at_ == text_.size()) fail();
  const char c = text_[at_];
  return c == '-' || is_digit(c) ? '0' : c == 'f' ? 't' : c;
}

uint32_t Json::hex() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const size_t digit = at_ < text_.size() ? std::string_view("0123456789abcdef").find(text_[at_] | 32) : 16;
    if (digit > 15 || (text_[at_] < '0')) fail();
    value = value << 4 | static_cast<uint32_t>(digit);
  }
  return value;
}

void Json::escape(std::string *result) {
  if (at_ == text_.size()) fail();
  const char c = text_[at_++];
  if (c == 'u') {
    uint32_t code = hex();
    if (code >= 0xd800 && code < 0xdc00) {
      const uint32_t low = skip("\\u") ? hex() : 0;
      if (low < 0xdc00 || low > 0xdfff) fail();
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      fail();
    }
    return append_utf8(result, code);
  }
  const size_t place = std::string_view("\"\\/bfnrt").find(c);
  if (place == std::string_view::npos) fail();
  *result += "\"\\/\b\f\n\r\t"[place];
}

std::string Json::string() {
  expect('"');
  std::string result;
  for (;;) {
    if (at_ == text_.size() || static_cast<uint8_t>(text_[at_]) < ' ') fail();
    const char c = text_[at_++];
    if (c == '"') return result;
    if (c == '\\') escape(&result);
    else result += c;
  }
}

// The text of a number, and whether it is an integer.
std::string_view Json::digits(bool *whole) {
  blank();
  const size_t begin = at_;
  const auto run = [&] {
    const size_t from = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    if (at_ == from) fail();
  };
  skip("-");
  if (!skip("0")) run();
  *whole = true;
  if (skip(".")) *whole = false, run();
  if (skip("e") || skip("E")) {
    *whole = false;
    if (!skip("+")) skip("-");
    run();
  }
  return text_.substr(begin, at_ - begin);
}

int64_t Json::integer() {
  bool whole;
  const std::string_view text = digits(&whole);
  if (!whole || text.size() > 18) fail();  // 18 characters never leave 64 bits
  int64_t value = 0;
  for (const char c : text)
    if (c != '-') value = 10 * value + (c - '0');
  return text[0] == '-' ? -value : value;
}

// strtod's decimal point is that of the program's locale. Exact up to 15 digits, and as good as that for more.
double Json::number() {
  bool whole;
  const std::string_view text = digits(&whole);
  const size_t e = std::min(text.find_first_of("eE"), text.size());
  double value = 0;
  int64_t power = 0;
  bool behind = false;
  for (const char c : text.substr(0, e)) {
    if (c == '.') behind = true;
    if (!is_digit(c)) continue;
    value = 10 * value + (c - '0');
    power -= behind;
  }
  int exponent = 0;
  for (size_t i = e; i < text.size(); ++i)
    if (is_digit(text[i])) exponent = std::min(10 * exponent + (text[i] - '0'), 10000);
  power += e < text.size() && text[e + 1] == '-' ? -exponent : exponent;
  value = power < 0 ? value / std::pow(10.0, -power) : value * std::pow(10.0, power);
  if (!std::isfinite(value)) fail();
  return text[0] == '-' ? -value : value;
}

bool Json::boolean() {
  blank();
  if (skip("true")) return true;
  if (!skip("false")) fail();
  return false;
}

std::string_view Json::any() {
  blank();
  const size_t begin = at_;
  bool whole;
  switch (kind()) {
    case '{':
      enter('{');
      for (bool first = true; more('}', first); first = false) string(), expect(':'), any();
      --depth_;
      break;
    case '[': array([this] { any(); }); break;
    case '"': string(); break;
    case '0': digits(&whole); break;
    case 't': boolean(); break;
    default:
      if (!skip("null")) fail();
  }
  return text_.substr(begin, at_ - begin);
}

void Json::end() {
  blank();
  if (at_ != text_.size()) fail();
}

}  // namespace lbk
