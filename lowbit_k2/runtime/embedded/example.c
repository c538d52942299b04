/* Words of a WAV file: transcribe MODEL.safetensors SPEECH.wav (16-bit PCM, at the model's rate; its first channel). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lowbit_k2.h"

static uint32_t number(const unsigned char *bytes, int count) { /* little-endian */
  uint32_t value = 0;
  while (count--) value = value << 8 | bytes[count];
  return value;
}

/* Samples in -1 .. 1 for free(), or NULL where it is no such file. */
static float *read_wav(FILE *file, int32_t *rate, int64_t *count) {
  unsigned char head[16] = {0}, frame[64];
  uint32_t channels = 0, size;
  float *samples = NULL, *more;
  int64_t room = 0;
  if (!file || fread(head, 1, 12, file) != 12 || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4)) return NULL;
  while (fread(head, 1, 8, file) == 8) {
    size = number(head + 4, 4);
    if (!memcmp(head, "fmt ", 4)) {
      if (size < 16 || fread(head, 1, 16, file) != 16 || number(head, 2) != 1 || number(head + 14, 2) != 16) return NULL;
      channels = number(head + 2, 2);
      *rate = (int32_t)number(head + 4, 4);
      size -= 16;
    } else if (!memcmp(head, "data", 4) && channels && channels <= sizeof frame / 2) {
      for (*count = 0; *count < size / (2 * channels) && fread(frame, 2, channels, file) == channels; ++*count) {
        if (*count == room) {
          if (!(more = realloc(samples, (size_t)(room = 2 * room + 16000) * sizeof *more))) return free(samples), NULL;
          samples = more;
        }
        samples[*count] = (int16_t)number(frame, 2) / 32768.f;
      }
      return samples;
    }
    for (size += size % 2; size; --size)
      if (getc(file) == EOF) return NULL;
  }
  return NULL;
}

int main(int argc, char **argv) {
  lbk_recogniser *recogniser = argc == 3 ? lbk_recogniser_open(argv[1], LBK_A16, 1) : NULL;
  FILE *file = recogniser ? fopen(argv[2], "rb") : NULL;
  int32_t rate = 0, wanted = recogniser ? lbk_recogniser_sampling_rate(recogniser) : 0;
  int64_t count = 0;
  float *samples = read_wav(file, &rate, &count);
  char *text = NULL;
  if (argc != 3) fprintf(stderr, "usage: %s MODEL.safetensors SPEECH.wav\n", argv[0]);
  else if (!recogniser) fprintf(stderr, "error: %s\n", lbk_error());
  else if (!samples) fprintf(stderr, "error: %s is no WAV file of 16-bit PCM\n", argv[2]);
  else if (rate != wanted) fprintf(stderr, "error: %s has %d Hz, the model wants %d\n", argv[2], rate, wanted);
  else if (!(text = lbk_recogniser_transcribe(recogniser, samples, count))) fprintf(stderr, "error: %s\n", lbk_error());
  else puts(text);
  lbk_free(text);
  free(samples);
  if (file) fclose(file);
  lbk_recogniser_close(recogniser);
  return text ? EXIT_SUCCESS : EXIT_FAILURE;
}
