// Opens each file that is named, and transcribes with those that open; for damaged files, under sanitizers.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "lowbit_k2.h"

int main(int argc, char **argv) {
  int opened = 0, refused = 0;
  std::vector<float> samples(1600);
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = std::sin(0.01f * i * i) / 8;
  for (int i = 1; i < argc; ++i) {
    lbk_recogniser *recogniser = lbk_recogniser_open(argv[i], i % 3, 1);
    if (!recogniser) {
      ++refused;
      for (const char *c = lbk_error(); *c; ++c)
        if (*c < ' ' || *c > '~') return std::printf("%s: an error that is no line of text\n", argv[i]), 1;
      if (!std::strstr(lbk_error(), argv[i])) return std::printf("%s: not named by: %s\n", argv[i], lbk_error()), 1;
      continue;
    }
    ++opened;
    lbk_free(lbk_recogniser_transcribe(recogniser, samples.data(), samples.size()));
    lbk_recogniser_close(recogniser);
  }
  std::printf("%d opened, %d refused\n", opened, refused);
}
