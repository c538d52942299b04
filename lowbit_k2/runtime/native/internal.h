// What the translation units share. No inline functions and no standard containers in here: each unit is compiled for
// other instructions, and the linker keeps one copy of an inline function, which then may not run on this CPU.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "lowbit_k2.h"

namespace lbk {

// Weights lie in panels of 16 outputs; a panel in blocks of 64 inputs; a block in 2 * bits lines of 64 bytes. A line
// is 16 lanes (outputs) of 32 bits. Bits j * bits .. of byte c of a lane are input 4 j + c of the line's 32 / bits, so
// that `(line >> j * bits) & mask` holds 4 neighbouring inputs of each output, one a byte. Floats lie as rows of 16
// outputs, one row after the other; a block of them takes as many bytes a bit.
constexpr int kLanes = 16;
constexpr int kBlock = 64;
// Blocks whose products are summed in int32 before they become floats: 8 * 64 * 127 * 32639 < 2^31.
constexpr int kChunk = 8;
constexpr int kMaxTop16 = 32639;  // 127 * 256 + 127, so that an activation is two signed bytes

}  // namespace lbk

// Stored numbers are u = 0, 1, ..; a weight is (mult * u - base - zero_point) * step, or table[u] * step.
// Tables have integers, too: table[u] is entries[u] - 128 + 256 * (entries[256 + u] - 128) units, but for half a unit. They are
// multiplied in two passes, as weights of 8 bits, the second only where a panel needs it. Codes of 3 and of 5 to 8 bits are
// stored as panels of their low 2 or 4 bits, and behind those of a block one panel of each other bit.
struct lbk_matrix {
  int64_t rows, cols, panels, blocks;  // blocks: of a panel
  int bits;                            // of a stored number: 1, 2, 4 or 8, with a table 1 to 8; 16 and 32: floats
  int mult, base, zero_point;
  int granularity;
  int input_bits;
  int table_size;
  size_t bytes;
  uint8_t *lines;  // panels * blocks * 128 * bits, aligned to 64 bytes
  float *steps;    // (groups, 16): one group for all, for each panel, or for each block of each panel
  float *table;    // table_size
  float unit;
  bool on_grid;      // its integers are the table, but for float32's rounding
  uint8_t *entries;  // (2, 256); null without a table
  uint8_t *high;     // (panels,): whether there are integers beyond 8 bits
};

namespace lbk {

constexpr int kAsItIs = -1;

// One multiplication of a slice of rows, and what was prepared for it.
struct Call {
  const lbk_matrix *w;
  int mode;
  int64_t rows;
  int64_t full_rows;     // of a full slice, by which kernels choose; the last slice may have fewer
  const float *x;
  int64_t x_stride;
  const float *bias;
  float *y;
  int64_t y_stride;
  uint8_t *prepared;     // rows of row_bytes: activations as the kernels want them; null where row_bytes is 0
  size_t row_bytes;
  float *x_steps;        // (rows,), where rows become integers
  int32_t *sums;         // (rows, sums, blocks) sums of integers, of a block or of as many as share one
  bool add;              // to what y holds, instead of the bias
  int activation;        // of the results, LBK_RELU or LBK_SWISH, or kAsItIs
};

// What is done to each row by itself.
enum RowKind { kLayerNorm, kAddNorm, kSwish, kGlu, kSoftmax, kLogSoftmax };

struct RowCall {
  RowKind kind;
  const float *x;  // (rows, cols); kGlu: (rows, 2 cols)
  float *y;        // (rows, cols)
  int64_t cols;
  const float *scale, *shift;  // (cols,), norms
  float epsilon;
  float *sum, factor;  // kAddNorm: sum (rows, cols) += factor x, and y is the norm of that
};

// y (frames, channels) = sum over taps of weight (taps, channels) times x, frames beyond the ends being zero, + bias.
struct Depthwise {
  const float *x, *weight, *bias;
  float *y;
  int64_t frames, channels, taps;
  bool swish;  // y sigmoid(y) instead of y
};

// 3 x 3 with stride 2 over one channel, and ReLU: of inputs (3, bands), x_stride behind those of the output before, each
// output frame has ((bands - 1) / 2, channels). weight (3, 3, channels).
struct Convolution {
  const float *x, *weight, *bias;
  float *y;
  int64_t x_stride, y_stride, bands, channels;
};

// Self-attention with relative positions over one utterance. Keys, values and positions lie in panels as weights do.
struct Attention {
  const float *query, *key, *value;  // (frames, heads * size)
  const float *position;             // (2 frames - 1, heads * size)
  const float *bias_u, *bias_v;      // (heads * size,)
  float *out;                        // (frames, heads * size)
  int64_t frames, heads, size;
  float *keys, *positions, *values;  // panels of all heads
  int64_t depth, value_depth;        // inputs of a panel, with zeros behind `size` and `frames`
  const struct Kernels *kernels;     // that multiply the panels as matrices of floats; null: the layers' own loops do
  int mode;                          // of these
  int *failed;                       // set where memory ran out
};

constexpr size_t kSmallSlice = 192 << 10, kLargeSlice = 640 << 10;  // beside tiles in a cache of 512 KiB, of 1 MiB
constexpr int64_t kMostRows = 192;  // of a slice
constexpr int kMaxGroup = 32;  // rows that kernels multiply at a time

constexpr int kQueries = 24, kMatrixQueries = 64;  // of an attention task

// How a set of instructions multiplies. All null where the compiler does not know the instructions.
struct Kernels {
  // For each block of a row of activations: how many sums of integers are kept. 0: rows do not become integers.
  int (*sums)(const lbk_matrix &w, int mode);
  // Bytes that a prepared row of activations takes, a multiple of 64; 0: rows are read as they are.
  size_t (*row_bytes)(const lbk_matrix &w, int mode, int64_t rows);
  void (*prepare)(const Call &call, int64_t begin, int64_t end);   // rows
  void (*multiply)(const Call &call, int64_t begin, int64_t end);  // panels
  size_t slice_bytes;  // of prepared rows, which stay in the cache while the panels go by
  bool rounds_floats;  // whether matrices of floats come with the mode that is asked for, not as LBK_EXACT
};

// How it does what is not a matrix's.
struct Layers {
  void (*rows)(const RowCall &call, int64_t begin, int64_t end);
  void (*cell)(const float *gates, int64_t cells, float *c, float *out);  // of an LSTM, before a projection
  void (*depthwise)(const Depthwise &call, int64_t begin, int64_t end);   // frames
  void (*convolve)(const Convolution &call, int64_t begin, int64_t end);  // output frames
  void (*pack_head)(const Attention &call, int64_t head);
  void (*attend)(const Attention &call, int64_t head, int64_t begin, int64_t end);  // queries
};

extern const Kernels kPortable;
extern const Layers kLayersPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvxVnni, kAvx512Vnni, kAmx;
extern const Kernels kAvx512Floats, kAmxFloats;  // exact products alone
extern const Layers kLayersAvx2, kLayersAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon, kNeonDot, kI8mm;
#endif

// In use.
const Kernels &kernels();
const Layers &layers();


// Run task(context, 0 .. tasks-1) on up to `threads` threads, of which the caller is one; returns when all are done.
void parallel(int64_t tasks, int threads, void (*task)(void *context, int64_t index), void *context);

int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));  // sets lbk_error(), returns -1

}  // namespace lbk
