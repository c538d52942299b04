// Opens each file that is named, and transcribes with those that open: damaged files, under AddressSanitizer and UBSan.
// The recogniser's units are a part of this program; what they call of the library is tested by kernels_test.cpp.
#include <cstdio>

#include "fbank.cpp"
#include "inflate.cpp"
#include "json.cpp"
#include "network.cpp"
#include "packed_file.cpp"
#include "recogniser.cpp"
#include "refusal.cpp"
#include "search.cpp"
#include "settings.cpp"
#include "sha256.cpp"
#include "tensors.cpp"
#include "units.cpp"

int main(int argc, char **argv) {
  int opened = 0, refused = 0;
  std::vector<float> samples(1600);
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = std::sin(0.01f * i * i) / 8;
  for (int i = 1; i < argc; ++i) {
    lbk_recogniser *recogniser = lbk_recogniser_open(argv[i], i % 3, 1);
    if (!recogniser) {
      const char *const line = lbk_error();
      ++refused;
      for (const char *c = line; *c; ++c)
        if (*c < ' ' || *c > '~') return std::printf("%s: an error that is no line of text\n", argv[i]), 1;
      if (!std::strstr(line, argv[i])) return std::printf("%s: not named by: %s\n", argv[i], line), 1;
      continue;
    }
    ++opened;
    lbk_free(lbk_recogniser_transcribe(recogniser, samples.data(), samples.size()));
    lbk_recogniser_close(recogniser);
  }
  std::printf("%d opened, %d refused\n", opened, refused);
}
