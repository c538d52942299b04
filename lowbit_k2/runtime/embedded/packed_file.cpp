#include "packed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "inflate.h"
#include "json.h"
#include "refusal.h"
#include "sha256.h"

namespace lbk {
namespace {

constexpr std::string_view kStart = "{\"__metadata__\":{\"sha256\":\"";  // the digits follow
constexpr size_t kDigits = 8 + kStart.size(), kRest = kDigits + 64;
constexpr size_t kMostHeader = 4096, kMostInflated = size_t{1} << 26, kMostTensors = 100000;
constexpr int64_t kMostWeights = int64_t{1} << 40;  // of a tensor: products of sizes stay far within 64 bits
constexpr int64_t kMostOfCoded = 8;  // bytes that a coded byte can stand for

enum { kFloat32, kFloat16, kCodes, kIndex, kTokens };
constexpr struct {
  const char *name, *dtype;
  int size;  // of a number
} kSections[5] = {{"float32", "F32", 4}, {"float16", "F16", 2}, {"codes", "U8", 1}, {"index", "U8", 1}, {"tokens", "U8", 1}};

uint64_t little_endian(const uint8_t *bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

// {"dtype":..,"shape":[..],"data_offsets":[..]} of a section: the place behind its end.
int64_t section_end(Json &json, const char *dtype, int size, int64_t begin) {
  int64_t count = -1, offsets[2] = {-1, -1};
  bool right = false;
  json.object([&](const std::string &key) {
    int given = 0;
    if (key == "dtype") right = json.string() == dtype;
    else if (key == "shape") json.array([&] { count = given++ ? -1 : json.integer(); });
    else if (key == "data_offsets") json.array([&] { given < 2 ? offsets[given++] = json.integer() : (json.fail(), 0); });
    else json.fail();
  });
  if (!right || count < 0 || count > kMostWeights || offsets[0] != begin || offsets[1] != begin + count * size) json.fail();
  return offsets[1];
}

int granularity_named(const std::string &name) {
  if (name == "tensor") return LBK_TENSOR;
  if (name == "channel") return LBK_CHANNEL;
  if (name == "block64") return LBK_BLOCK64;
  refuse("unknown granularity %s of its steps", quoted(name).c_str());
}

int small(int64_t number, int64_t low, int64_t high, const char *what) {
  if (number < low || number > high) refuse("%lld is no %s", static_cast<long long>(number), what);
  return static_cast<int>(number);
}

void read_shape(Json &json, Tensor *tensor) {
  int64_t weights = 1;
  json.array([&] {
    const int64_t side = json.integer();
    if (side < 1 || side > kMostWeights / weights || tensor->shape.size() == 8) refuse("it has no possible shape");
    weights *= side;
    tensor->shape.push_back(side);
  });
  tensor->rows = tensor->shape.size() > 1 ? tensor->shape[0] : 1;
  tensor->cols = weights / tensor->rows;
}

}  // namespace

PackedFile::PackedFile(const char *path) {
  map(path);
  try {
    check_header();
    check_sum();
    read_index();
    for (int i = kFloat32; i <= kCodes; ++i)
      if (sections_[i].next != sections_[i].end) refuse("section %s holds bytes that belong to no tensor", kSections[i].name);
    const Section &section = sections_[kTokens];
    tokens = inflate(section.next, section.end - section.next, kMostInflated);
  } catch (...) {
    munmap(const_cast<uint8_t *>(bytes_), size_);
    throw;
  }
}

PackedFile::~PackedFile() { munmap(const_cast<uint8_t *>(bytes_), size_); }

void PackedFile::map(const char *path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) refuse("%s", std::strerror(errno));
  struct stat status;
  const bool regular = !fstat(file, &status) && S_ISREG(status.st_mode);
  void *mapped = MAP_FAILED;
  if (regular && status.st_size > 0) mapped = mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapped == MAP_FAILED) refuse(!regular ? "it is not a file" : !status.st_size ? "it is empty" : "it cannot be mapped");
  bytes_ = static_cast<const uint8_t *>(mapped);
  size_ = status.st_size;
}

void PackedFile::check_header() {
  const uint64_t length = size_ < kRest ? 0 : little_endian(bytes_);
  const bool ours = length && !std::memcmp(bytes_ + 8, kStart.data(), kStart.size());
  if (!ours) refuse("it is no packed model of lowbit_k2, or truncated");
  if (length > kMostHeader || length % 8 || length > size_ - 8) refuse("its header is truncated or damaged");
  Json json({reinterpret_cast<const char *>(bytes_) + 8, length}, "its header");
  std::string format, version;
  int64_t end = 0;
  int next = -1;
  json.object([&](const std::string &key) {
    if (next < 0 && key == "__metadata__") {
      json.object([&](const std::string &name) {
        std::string value = json.string();
        if (name == "format") format = value;
        if (name == "version") version = value;
      });
      if (format != "lowbit_k2 packed") refuse("it is no packed model of lowbit_k2");
      if (version != "2" && version != "3")
        refuse("it has format version %s, this library reads 2 and 3: export it again", quoted(version).c_str());
    } else if (next < 0 || next > kTokens || key != kSections[next].name) {
      json.fail();
    } else {
      const int64_t begin = end;
      end = section_end(json, kSections[next].dtype, kSections[next].size, begin);
      if (end > static_cast<int64_t>(size_ - 8 - length)) refuse("it is truncated: copy it again");
      sections_[next] = {bytes_ + 8 + length + begin, bytes_ + 8 + length + end};
    }
    ++next;
  });
  json.end();
  if (next != 5) refuse("it does not hold all its sections");
  if (sections_[kTokens].end != bytes_ + size_) refuse("bytes lie behind its end: copy it again");
  version_ = version[0] - '0';
}

void PackedFile::check_sum() const {
  Sha256 sum;
  sum.add(bytes_, kDigits);
  sum.add(reinterpret_cast<const uint8_t *>(std::string(64, '0').data()), 64);
  sum.add(bytes_ + kRest, size_ - kRest);
  if (std::memcmp(sum.hex().data(), bytes_ + kDigits, 64)) refuse("it is altered or damaged (its checksum is wrong)");
}

void PackedFile::read_index() {
  const Section &section = sections_[kIndex];
  index_ = inflate(section.next, section.end - section.next, kMostInflated);
  std::string_view described;
  Json json(index_, "its index");
  json.object([&](const std::string &key) {
    if (key == "tokens_kind") tokens_kind = json.string();
    else if (key == "tensors") described = json.any();
    else if (key == "model" || key == "features" || key == "extra")
      (key == "model" ? model : key == "features" ? features : extra) = json.kind() == '{' ? json.any() : (json.fail(), "");
    else json.any();
  });
  json.end();
  if (model.empty() || features.empty() || extra.empty() || described.empty()) refuse("its index is not complete");
  Json list(described, "its list of tensors");
  std::map<std::string, std::string> firsts;  // of every name
  list.array([&] { read_tensor(list, &firsts); });
}

// An entry of the index and its data.
void PackedFile::read_tensor(Json &json, std::map<std::string, std::string> *firsts) {
  Tensor tensor{};
  std::string name, encoding, steps, same_as;
  std::optional<int64_t> table, coded;
  bool has_codes = false, has_shape = false;
  json.object([&](const std::string &key) {
    if (key == "name") name = json.string();
    else if (key == "same_as") same_as = json.string();
    else if (key == "encoding") encoding = json.string();
    else if (key == "shape") has_shape = true, read_shape(json, &tensor);
    else if (key == "input_bits") tensor.input_bits = small(json.integer(), 0, 16, "number of bits of inputs");
    else if (key == "role") json.string();
    else if (key == "coded" && version_ < 3) json.any();
    else if (key == "steps" || key == "table" || key == "zero_point" || key == "coded") {
      has_codes = true;
      if (key == "steps") steps = json.string();
      if (key == "table") table = json.integer();
      if (key == "coded") coded = json.integer();
      if (key == "zero_point") tensor.zero_point = small(json.integer(), -128, 255, "zero point");
    } else json.any();
  });
  try {
    if (tensors.size() == kMostTensors) refuse("there are more than %zu", kMostTensors);
    if (!firsts->emplace(name, same_as.empty() ? name : same_as).second) refuse("it is there twice");
    if (!same_as.empty()) {
      const auto first = firsts->find(same_as);
      if (first == firsts->end() || first->second != same_as || same_as == name) refuse("the same as no tensor before it");
      if (has_codes || has_shape || !encoding.empty()) refuse("the same as another, and yet described anew");
      tensors[name] = tensors[same_as];
      return;
    }
    tensor.encoding = encoding_named(encoding);
    if (!tensor.encoding) refuse("unknown encoding %s", quoted(encoding).c_str());
    if (!has_shape) refuse("it has no shape");
    if (tensor.encoding->is_float) {
      if (has_codes) refuse("floats have no steps, no table and no zero point");
      const int size = tensor.encoding->bits / 8;
      tensor.data = take(size == 4 ? kFloat32 : kFloat16, tensor.rows * tensor.cols, size);
    } else {
      if (tensor.shape.empty()) refuse("codes need at least one dimension");
      if (tensor.shape.size() == 1) tensor.rows = tensor.cols, tensor.cols = 1;
      if (table) tensor.table_size = small(*table, 1, int64_t{1} << tensor.encoding->bits, "number of entries of its table");
      if (coded && *coded < 1) refuse("no number of coded bytes");
      read_codes(&tensor, steps, coded.value_or(0));
    }
    tensors[name] = tensor;
  } catch (const Refusal &refusal) {
    throw Refusal("tensor " + quoted(name) + ": " + refusal.what());
  }
}

// Steps, table and rows; `coded` 0: the rows lie there as they are.
void PackedFile::read_codes(Tensor *tensor, const std::string &steps, int64_t coded) {
  Tensor &t = *tensor;
  const Encoding &e = *t.encoding;
  t.granularity = granularity_named(steps);
  const int64_t count = t.granularity == LBK_TENSOR ? 1 : t.granularity == LBK_CHANNEL ? t.rows : t.rows * ((t.cols + 63) / 64);
  t.steps = reinterpret_cast<const float *>(take(kFloat32, count, sizeof(float)));
  if (t.table_size) t.table = reinterpret_cast<const float *>(take(kFloat32, t.table_size, sizeof(float)));
  if (!coded) {
    t.data = take(kCodes, t.rows, e.row_bytes(t.cols));
    return;
  }
  const uint8_t *stream = take(kCodes, coded, 1);
  const int64_t size = t.rows * carrier(e).row_bytes(t.cols);
  if (size > kMostOfCoded * coded) refuse("%lld coded bytes cannot stand for its rows", static_cast<long long>(coded));
  const std::string rows = inflate(stream, coded, size);
  if (static_cast<int64_t>(rows.size()) != size) refuse("its coded bytes do not give its rows");
  t.own = std::make_shared<std::vector<uint8_t>>(narrowed(rows, e, t.rows, t.cols));
  t.data = t.own->data();
}

// The next `count` numbers of a section.
const uint8_t *PackedFile::take(int section, int64_t count, int64_t size) {
  Section &s = sections_[section];
  if (count > (s.end - s.next) / size) refuse("it is larger than what is left of section %s", kSections[section].name);
  s.next += count * size;
  return s.next - count * size;
}

}  // namespace lbk
