#include "settings.h"

#include <string>

#include "json.h"
#include "refusal.h"

namespace lbk {
namespace {

void unsupported(const std::string &what) {
  refuse("the library runs Conformers with a CTC head or a stateless decoder, not %s", what.c_str());
}

int64_t whole(Json &json, int64_t low, int64_t high, const std::string &key) {
  const int64_t value = json.integer();
  if (value < low || value > high) refuse("%s %lld cannot be", key.c_str(), static_cast<long long>(value));
  return value;
}

void want(Json &json, const char *value, const char *what) {
  const std::string found = json.string();
  if (found != value) unsupported(what + quoted(found));
}

// Before other settings are read, which belong to the kind. inner: where the encoder's settings are.
std::string kind_of(std::string_view text, std::string kind, std::string_view *inner) {
  Json json(text, "its settings of the model");
  json.object([&](const std::string &key) {
    if (key == "kind") kind = json.string();
    else if (key == "encoder" && json.kind() == '{') *inner = json.any();
    else json.any();
  });
  return kind;
}

// Whether a key of the Conformer's settings was taken.
bool read_conformer(Json &json, const std::string &key, ModelSettings *s) {
  if (key == "kind") json.string();
  else if (key == "num_features") s->num_features = whole(json, 7, 4096, key);
  else if (key == "d_model") s->d_model = whole(json, 1, 16384, key);
  else if (key == "num_layers") s->num_layers = whole(json, 1, 1000, key);
  else if (key == "num_heads") s->num_heads = whole(json, 1, 1024, key);
  else if (key == "conv_kernel") s->conv_kernel = whole(json, 1, 4095, key);
  else if (key == "subsampling_channels") s->subsampling_channels = whole(json, 1, 4096, key);
  else if (key == "dropout" || key == "ffn_dropout" || key == "attention_dropout") json.number();
  else if (key == "conv_norm") {
    s->batch_norm = json.string() == "batch";
  } else if (key == "ffn_dim") {
    s->ffn_dims.clear();
    const auto one = [&] {
      if (s->ffn_dims.size() == 1000) json.fail();
      s->ffn_dims.push_back(whole(json, 1, 131072, key));
    };
    json.kind() == '[' ? json.array(one) : one();
  } else return false;
  return true;
}

void read_model(Json &json, const std::string &key, ModelSettings *s) {
  if (key == "encoder") {
    json.object([&](const std::string &inner) {
      if (inner == "vocab_size") s->vocab_size = whole(json, 2, 1048576, inner);  // of version 0.1 and before
      else if (!read_conformer(json, inner, s)) refuse("its encoder has an unknown setting %s", quoted(inner).c_str());
    });
  } else if (key == "vocab_size") s->vocab_size = whole(json, 2, 1048576, key);
  else if (key == "topology") want(json, "ctc", "a topology ");
  else if (key == "xent_head") json.boolean();
  else if (key == "decoder_dim") s->decoder_dim = whole(json, 1, 16384, key);
  else if (key == "joiner_dim") s->joiner_dim = whole(json, 1, 16384, key);
  else if (key == "context_size") s->context_size = whole(json, 1, 64, key);
  else if (key == "ctc_head") s->ctc_head = json.boolean();
  else if (key == "decoder_kind") want(json, "stateless", "a decoder ");
  else if (key == "decoder_layers") json.integer();
  else if (!read_conformer(json, key, s)) refuse("its model has an unknown setting %s", quoted(key).c_str());
}

}  // namespace

ModelSettings ModelSettings::read(std::string_view text) {
  ModelSettings s;
  std::string_view encoder = "{}", none;
  const std::string kind = kind_of(text, "ctc", &encoder), of_encoder = kind_of(encoder, "conformer", &none);
  s.is_transducer = kind == "transducer";
  if (!s.is_transducer && kind != "ctc") unsupported("a model " + quoted(kind));
  if (of_encoder != "conformer") unsupported("an encoder " + quoted(of_encoder));
  Json json(text, "its settings of the model");
  json.object([&](const std::string &key) { read_model(json, key, &s); });
  if (s.d_model % (2 * s.num_heads) || s.conv_kernel % 2 == 0 || (s.is_transducer && s.decoder_dim % 4))
    refuse("the sizes of its model cannot be");
  if (s.ffn_dims.size() == 1) s.ffn_dims.assign(s.num_layers, s.ffn_dims[0]);
  if (static_cast<int64_t>(s.ffn_dims.size()) != s.num_layers) refuse("it has not as many ffn_dim as layers");
  return s;
}

}  // namespace lbk
