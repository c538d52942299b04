#include "units.h"

#include "json.h"
#include "refusal.h"

namespace lbk {
namespace {

constexpr std::string_view kBlank = "<blk>", kWordStart = "\xe2\x96\x81";
// White space in UTF-8 beside ASCII's: Python's split() knows these, and a word's start.
constexpr std::string_view kSpaces[] = {
    kWordStart,     "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82",
    "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89",
    "\xe2\x80\x8a", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

// Bytes of the white space that a text begins with; 0: none.
size_t space(std::string_view text) {
  const uint8_t c = text[0];
  if (c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31)) return 1;
  if (c < 0x80) return 0;
  for (const std::string_view wide : kSpaces)
    if (text.substr(0, wide.size()) == wide) return wide.size();
  return 0;
}

// `<blk>`, `<unk>` and their like
bool is_special(std::string_view piece) { return piece.size() > 2 && piece.front() == '<' && piece.back() == '>'; }

[[noreturn]] void no_pieces() { refuse("its tokens are no sentencepiece model"); }

// A message of protocol buffers, field by field.
class Message {
 public:
  explicit Message(std::string_view bytes) : rest_(bytes) {}

  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = key >> 3;
    bytes = {};
    is_bytes = (key & 7) == 2;
    if ((key & 7) == 0) return varint(), true;
    const uint64_t size = is_bytes ? varint() : (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : rest_.size() + 1;
    if (size > rest_.size()) no_pieces();
    bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return true;
  }

  uint64_t field;
  bool is_bytes;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (rest_.empty()) no_pieces();
      const uint8_t byte = rest_[0];
      rest_.remove_prefix(1);
      if (shift < 64) value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
    no_pieces();
  }

  std::string_view rest_;
};

}  // namespace

Units::Units(const std::string &kind, std::string_view bytes, int64_t count) {
  if (kind == "sentencepiece") read_pieces(bytes, count);
  else if (kind == "lexicon") read_symbols(bytes, count);
  else refuse("its kind of tokens, %s, is unknown", quoted(kind).c_str());
  if (pieces_.empty() || pieces_[0] != kBlank) refuse("its first token is not %s: export it again", kBlank.data());
  if (static_cast<int64_t>(pieces_.size()) != count)
    refuse("it has %zu tokens, but %lld classes", pieces_.size(), static_cast<long long>(count));
  for (std::string &piece : pieces_)
    if (kind == "lexicon" ? &piece == &pieces_[0] : is_special(piece)) piece.clear();
    else if (kind == "lexicon") piece += ' ';
}

// ModelProto of sentencepiece_model.proto: field 1, repeated, is a piece with its text in field 1.
void Units::read_pieces(std::string_view bytes, size_t most) {
  for (Message model(bytes); model.next();) {
    if (model.field != 1) continue;
    if (!model.is_bytes) no_pieces();
    bool found = false;
    std::string_view text;
    for (Message piece(model.bytes); piece.next();)
      if (piece.field == 1) found = piece.is_bytes, text = piece.bytes;
    if (!found || !is_utf8(text)) no_pieces();
    add(std::string(text), most);
  }
}

void Units::read_symbols(std::string_view bytes, size_t most) {
  Json json(bytes, "its lexicon of tokens");
  json.object([&](const std::string &key) {
    if (key == "tokens") json.array([&] { add(json.string(), most); });
    else json.any();
  });
  json.end();
}

void Units::add(std::string piece, size_t most) {
  if (pieces_.size() == most) refuse("it has more tokens than classes");
  for (const uint8_t c : piece)
    if (c < ' ' || c == 127) refuse("a token holds control characters");  // it would reach terminals
  pieces_.push_back(std::move(piece));
}

std::string Units::text(const std::vector<int32_t> &ids) const {
  std::string joined, words;
  for (const int32_t id : ids) joined += pieces_[id];
  bool between = false;
  for (std::string_view rest = joined; !rest.empty();) {
    if (const size_t size = space(rest)) {
      between = !words.empty();
      rest.remove_prefix(size);
      continue;
    }
    if (between) words += ' ';
    between = false;
    words += rest[0];
    rest.remove_prefix(1);
  }
  return words;
}

}  // namespace lbk
