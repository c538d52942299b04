// Tokens of a packed file and what they spell, as runtime/units.py has them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lbk {

class Units {
 public:
  // kind: "sentencepiece" or "lexicon". count: of the network's classes, which there have to be as many tokens of.
  Units(const std::string &kind, std::string_view bytes, int64_t count);

  // Words, or phones where the model has those, with one blank between.
  std::string text(const std::vector<int32_t> &ids) const;

 private:
  void read_pieces(std::string_view bytes, size_t most);
  void read_symbols(std::string_view bytes, size_t most);
  void add(std::string piece, size_t most);

  std::vector<std::string> pieces_;  // empty where one spells nothing
};

}  // namespace lbk
