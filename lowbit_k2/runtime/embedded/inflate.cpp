#include "inflate.h"

#include <algorithm>
#include <vector>

#include "refusal.h"

namespace lbk {
namespace {

constexpr int kLongest = 15;  // bits of a code
constexpr int kEnd = 256;     // the symbol that ends a block

class Bits {
 public:
  Bits(const uint8_t *bytes, size_t count) : next_(bytes), end_(bytes + count) {}

  // The next bits, zeros behind the end.
  uint32_t look(int count) {
    for (; have_ < count && next_ < end_; have_ += 8) held_ |= uint64_t{*next_++} << have_;
    return static_cast<uint32_t>(held_ & ((uint64_t{1} << count) - 1));
  }

  void skip(int count) {
    if (count > have_) refuse("a zlib stream is cut short");
    held_ >>= count;
    have_ -= count;
  }

  uint32_t take(int count) {
    const uint32_t bits = look(count);
    skip(count);
    return bits;
  }

  void to_byte() { skip(have_ % 8); }
  bool at_end() const { return !have_ && next_ == end_; }

 private:
  const uint8_t *next_, *end_;
  uint64_t held_ = 0;
  int have_ = 0;  // bits held
};

// A canonical Huffman code as a table over all that can come next.
class Code {
 public:
  // lengths: of the code of each symbol, 0: it has none. A code with room left is taken if it is a single bit's.
  explicit Code(const std::vector<uint8_t> &lengths) {
    int count[kLongest + 1] = {}, next[kLongest + 2] = {};
    for (const uint8_t length : lengths) ++count[length];
    count[0] = 0;
    for (int length = 1; length <= kLongest; ++length) {
      if (count[length]) bits_ = length;
      next[length + 1] = (next[length] + count[length]) << 1;
      if (next[length] + count[length] > 1 << length) refuse("a zlib stream has impossible codes");
    }
    if (bits_ > 1 && next[bits_ + 1] != 2 << bits_) refuse("a zlib stream has codes with gaps");
    table_.assign(size_t{1} << bits_, 0);
    for (size_t symbol = 0; symbol < lengths.size(); ++symbol)
      if (const int length = lengths[symbol])
        for (uint32_t at = reversed(next[length]++, length); at < table_.size(); at += 1u << length)
          table_[at] = static_cast<uint16_t>(symbol << 4 | length);
  }

  int read(Bits &bits) const {
    const uint16_t entry = table_[bits.look(bits_)];
    if (!entry) refuse("a zlib stream has a code that stands for nothing");
    bits.skip(entry & 15);
    return entry >> 4;
  }

 private:
  static uint32_t reversed(uint32_t code, int length) {
    uint32_t result = 0;
    for (; length; --length, code >>= 1) result = result << 1 | (code & 1);
    return result;
  }

  int bits_ = 0;                 // of the longest code
  std::vector<uint16_t> table_;  // symbol << 4 | length of its code; 0: none
};

class Inflater {
 public:
  Inflater(const uint8_t *bytes, size_t count, size_t most) : in_(bytes, count), most_(most) {}

  std::string run() {
    const uint32_t method = in_.take(8), flags = in_.take(8);
    if ((method << 8 | flags) % 31 || (method & 15) != 8 || method >> 4 > 7 || flags & 32) refuse("no zlib stream");
    for (bool last = false; !last;) {
      last = in_.take(1);
      switch (in_.take(2)) {
        case 0: stored(); break;
        case 1: fixed(); break;
        case 2: dynamic(); break;
        default: refuse("a zlib stream has a block of no known type");
      }
    }
    in_.to_byte();
    uint32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum = sum << 8 | in_.take(8);
    if (sum != adler()) refuse("a zlib stream has a wrong checksum");
    if (!in_.at_end()) refuse("bytes lie behind a zlib stream");
    return std::move(out_);
  }

 private:
  void room(size_t count) const {
    if (count > most_ - out_.size()) refuse("a zlib stream gives more than %zu bytes", most_);
  }

  void stored() {
    in_.to_byte();
    const uint32_t count = in_.take(16);
    if ((in_.take(16) ^ 0xffff) != count) refuse("a zlib stream has a block of two lengths");
    room(count);
    for (uint32_t i = 0; i < count; ++i) out_ += static_cast<char>(in_.take(8));
  }

  void fixed() {
    std::vector<uint8_t> lengths(288, 8);
    std::fill(lengths.begin() + 144, lengths.begin() + 256, uint8_t{9});
    std::fill(lengths.begin() + 256, lengths.begin() + 280, uint8_t{7});
    coded(Code(lengths), Code(std::vector<uint8_t>(32, 5)));
  }

  void dynamic() {
    const uint32_t literals = in_.take(5) + 257, distances = in_.take(5) + 1, counts = in_.take(4) + 4;
    if (literals > 286 || distances > 30) refuse("a zlib stream has too many codes");
    constexpr uint8_t kOrder[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    std::vector<uint8_t> lengths(19, 0);
    for (uint32_t i = 0; i < counts; ++i) lengths[kOrder[i]] = static_cast<uint8_t>(in_.take(3));
    const Code of_lengths(lengths);
    lengths.clear();
    while (lengths.size() < literals + distances) {
      const int symbol = of_lengths.read(in_);
      uint32_t times = 1;
      uint8_t length = static_cast<uint8_t>(symbol);
      if (symbol == 16) {
        if (lengths.empty()) refuse("a zlib stream repeats what is not there");
        length = lengths.back();
        times = 3 + in_.take(2);
      } else if (symbol > 16) {
        length = 0;
        times = symbol == 17 ? 3 + in_.take(3) : 11 + in_.take(7);
      }
      lengths.insert(lengths.end(), times, length);
    }
    if (lengths.size() > literals + distances) refuse("a zlib stream has too many codes");
    if (!lengths[kEnd]) refuse("a zlib stream has a block without an end");
    const auto middle = lengths.begin() + literals;
    coded(Code({lengths.begin(), middle}), Code({middle, lengths.end()}));
  }

  void coded(const Code &literals, const Code &distances) {
    for (int symbol; (symbol = literals.read(in_)) != kEnd;) {
      if (symbol < kEnd) {
        room(1);
        out_ += static_cast<char>(symbol);
        continue;
      }
      if (symbol > 285) refuse("a zlib stream has a length that there is not");
      const size_t count = length(symbol - 257), back = distance(distances.read(in_));
      if (back > out_.size()) refuse("a zlib stream reaches behind its start");
      room(count);
      for (size_t i = 0; i < count; ++i) out_ += out_[out_.size() - back];
    }
  }

  // Four codes for each number of further bits, after the first eight (four) that have none.
  size_t length(uint32_t place) {
    if (place == 28) return 258;
    if (place < 8) return 3 + place;
    const int more = static_cast<int>(place / 4 - 1);
    return 3 + ((4 + place % 4) << more) + in_.take(more);
  }

  size_t distance(uint32_t place) {
    if (place > 29) refuse("a zlib stream has a distance that there is not");
    if (place < 4) return 1 + place;
    const int more = static_cast<int>(place / 2 - 1);
    return 1 + (size_t{2 + place % 2} << more) + in_.take(more);
  }

  uint32_t adler() const {
    uint32_t low = 1, high = 0;
    for (size_t begin = 0; begin < out_.size(); begin += 5552) {  // no sum of so many leaves 32 bits
      const size_t end = std::min(out_.size(), begin + 5552);
      for (size_t i = begin; i < end; ++i) high += low += static_cast<uint8_t>(out_[i]);
      low %= 65521, high %= 65521;
    }
    return high << 16 | low;
  }

  Bits in_;
  const size_t most_;
  std::string out_;
};

}  // namespace

std::string inflate(const uint8_t *bytes, size_t count, size_t most) { return Inflater(bytes, count, most).run(); }

}  // namespace lbk
