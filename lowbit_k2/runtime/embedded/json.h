// A strict reader of JSON (RFC 8259) that walks over a text and keeps nothing of it: memory does not grow with what a
// file claims. A key that is read twice, nesting beyond kDeepest and anything behind the value are refused.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

namespace lbk {

bool is_utf8(std::string_view text);

class Json {
 public:
  // text: has to outlive this. what: it is, in errors.
  Json(std::string_view text, const char *what);

  // Calls member(key), which has to take the value by one of the functions below, for each; at most kMostKeys.
  template <class Member>
  void object(Member member) {
    std::set<std::string> seen;
    enter('{');
    for (bool first = true; more('}', first); first = false) {
      std::string key = string();
      expect(':');
      if (seen.size() == kMostKeys || !seen.insert(key).second) fail();
      member(key);
    }
    --depth_;
  }

  // Calls item(), which has to take one.
  template <class Item>
  void array(Item item) {
    enter('[');
    for (bool first = true; more(']', first); first = false) item();
    --depth_;
  }

  char kind();  // of the value that comes: '{' '[' '"' '0' 't' 'n'
  std::string string();
  int64_t integer();
  double number();
  bool boolean();
  std::string_view any();  // the text of a value of any kind

  void end();  // nothing may follow

  [[noreturn]] void fail() const;

 private:
  static constexpr int kDeepest = 64;
  static constexpr size_t kMostKeys = 1000;

  void blank();
  void enter(char bracket);
  bool more(char bracket, bool first);
  void expect(char c);
  bool skip(std::string_view word);
  std::string_view digits(bool *whole);
  void escape(std::string *result);
  uint32_t hex();

  std::string_view text_;
  const char *what_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace lbk
