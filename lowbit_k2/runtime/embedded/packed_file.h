// A packed file (docs/packed-format.md), versions 2 and 3, mapped into memory and checked.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "tensors.h"

namespace lbk {

class PackedFile {
 public:
  // Refuses what is missing, damaged, foreign or of another version.
  explicit PackedFile(const char *path);
  ~PackedFile();
  PackedFile(const PackedFile &) = delete;
  PackedFile &operator=(const PackedFile &) = delete;

  // Texts of JSON objects: settings of the model and of its features, and how the file was made.
  std::string_view model, features, extra;
  std::string tokens_kind, tokens;
  std::map<std::string, Tensor> tensors;  // by every name; they point into the file

 private:
  struct Section {
    const uint8_t *next, *end;
  };

  void map(const char *path);
  void check_header();
  void check_sum() const;
  void read_index();
  void read_tensor(class Json &json, std::map<std::string, std::string> *firsts);
  void read_codes(Tensor *tensor, const std::string &steps, int64_t coded);
  const uint8_t *take(int section, int64_t count, int64_t size);

  const uint8_t *bytes_ = nullptr;
  size_t size_ = 0;
  int version_ = 0;
  Section sections_[5];
  std::string index_;
};

}  // namespace lbk
