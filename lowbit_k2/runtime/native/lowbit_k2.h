/* The packed runtime: matrices of 1 to 8 bits a weight times float32 activations, on CPUs. C ABI, usable from C.

   Weights are read from the bytes of a packed file (docs/packed-format.md), laid out anew once, and stay packed: a
   matrix takes 1, 2, 4 or 8 bits a weight, with a table 1 to 8, and its steps, never floats. Functions that return int return 0, or -1 with
   a line in lbk_error(). Every function may be called from several threads at once; what a function only reads may be
   shared between them. Activations and results are row-major float32. */
#ifndef LOWBIT_K2_H
#define LOWBIT_K2_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

#define LBK_ABI 3 /* changes whenever a signature below does */

/* How activations are multiplied. */
enum {
  LBK_EXACT = 0, /* as they are, in float32 */
  LBK_A16 = 1,   /* integers of 16 bits, one step for each row: max|x| / 32639 */
  LBK_A8 = 2     /* integers of 8 bits, one step for each row: max|x| / 127 */
};

enum { LBK_RELU = 0, LBK_SWISH = 1 };

/* Which weights share a step. */
enum { LBK_TENSOR = 0, LBK_CHANNEL = 1, LBK_BLOCK64 = 2 };

/* A tensor as it lies in a packed file; see docs/packed-format.md, section 4. Read during lbk_matrix_new only. */
typedef struct {
  const char *encoding; /* "binary", "ternary", "int3" to "int8", "index1" to "index8", "float16", "float32" */
  int64_t rows;         /* outputs */
  int64_t cols;         /* inputs */
  const uint8_t *data;  /* rows times the bytes of a row */
  int32_t granularity;
  const float *steps;   /* 1; rows; or rows * ceil(cols / 64) of them; NULL with floats */
  const float *table;   /* what indices stand for, in units of the step; NULL with other encodings */
  int32_t table_size;
  int32_t zero_point;   /* weight = (code - zero_point) * step; 0 with indices */
  int32_t input_bits;   /* 0; or 2 to 16: rows of activations are rounded to so many bits first */
} lbk_tensor;

typedef struct lbk_matrix lbk_matrix;

int lbk_abi(void);

/* What went wrong in this thread's last call that failed. */
const char *lbk_error(void);

/* Sets lbk_error(), for what is built upon this library; returns -1. */
int lbk_fail(const char *line);

/* Choose the instructions: "portable", "avx2", "avxvnni", "avx512vnni", "amx", on 64-bit ARM "neon", "neondot", "i8mm";
   NULL: what the environment variable LOWBIT_K2_ISA names, or the best that this CPU has. Fails, and changes nothing, if
   the name is unknown or the CPU lacks it. Without this call the first multiplication chooses as for NULL, and the best
   one if that fails. */
int lbk_use_isa(const char *name);

/* The instructions in use. */
const char *lbk_isa(void);

/* NULL if the CPU, and this library, have the instructions of this name, else why not. */
const char *lbk_isa_missing(const char *name);

/* A matrix for multiplication, or NULL: unknown encoding, sizes that are absurd, bytes that no writer makes, codes
   beyond the table, a step that is not positive and finite. */
lbk_matrix *lbk_matrix_new(const lbk_tensor *tensor);
void lbk_matrix_free(lbk_matrix *matrix);

/* Bytes of memory that a matrix takes. */
size_t lbk_matrix_bytes(const lbk_matrix *matrix);

/* y (m, rows) = x (m, cols) times the matrix's transpose, plus bias (rows,) unless that is NULL.
   x_stride, y_stride: floats from one row to the next. x and y must not overlap.
   threads: how many work at most, the caller included; little work is done by fewer.
   In LBK_A16 and LBK_A8 tables are rounded to 16 bits, unless they lie on a grid of at most 128 steps to the largest
   entry. Matrices of floats are multiplied as LBK_EXACT in every mode; but with AMX, floats on both sides are rounded to
   16 bits of mantissa in LBK_A16, to 8 in LBK_A8. In the integer modes a row of x that holds NaN or infinity
   gives a row of NaN. */
int lbk_matmul(const lbk_matrix *matrix, const float *x, int64_t m, int64_t x_stride, const float *bias, float *y,
               int64_t y_stride, int32_t add, int32_t mode, int32_t threads);

/* y (m, second's rows) = second times activation(first times x + first_bias) + second_bias, as lbk_matmul twice, but the
   inner numbers of some rows at a time stay in the cache. x (m, first's cols). With add, y may be x. */
int lbk_feed_forward(const lbk_matrix *first, const float *first_bias, int32_t activation, const lbk_matrix *second,
                     const float *second_bias, const float *x, int64_t m, float *y, int32_t add, int32_t mode,
                     int32_t threads);

/* The other parts of an encoder. Rows are contiguous; y may be x where nothing else is said. */

/* (x - mean) / sqrt(variance + epsilon) * scale + shift over each row. */
int lbk_layer_norm(const float *x, int64_t rows, int64_t cols, const float *scale, const float *shift, float epsilon,
                   float *y, int32_t threads);
/* sum (rows, cols) += factor x, and y: the norm of that. y may be sum or x. */
int lbk_add_norm(float *sum, const float *x, float factor, int64_t rows, int64_t cols, const float *scale,
                 const float *shift, float epsilon, float *y, int32_t threads);
int lbk_swish(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads); /* x sigmoid(x) */
/* y (rows, cols): the first half of each row of x (rows, 2 cols) times the sigmoid of the second; y is not x. */
int lbk_glu(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads);
int lbk_softmax(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads);
int lbk_log_softmax(const float *x, int64_t rows, int64_t cols, float *y, int32_t threads);

/* y[t][c] = bias[c] + sum over j < taps of weight[j][c] * x[t + j - taps / 2][c], zero beyond the ends. y is not x.
   swish: y sigmoid(y) instead of y. */
int lbk_depthwise(const float *x, int64_t frames, int64_t channels, const float *weight, int64_t taps,
                  const float *bias, int32_t swish, float *y, int32_t threads);

/* A convolution of 3 x 3 with stride 2 over one channel, then ReLU. Of three rows of `bands` inputs from x + t * x_stride
   on, y + t * y_stride gets (bands - 1) / 2 rows of channels. weight (3, 3, channels). */
int lbk_convolve(const float *x, int64_t x_stride, int64_t frames, int64_t bands, const float *weight, const float *bias,
                 int64_t channels, float *y, int64_t y_stride, int32_t threads);

/* Patches of 3 x 3, at every second frame and band, of x (frames, bands, channels): rows of 9 * channels for outputs
   begin .. end-1, each (bands - 1) / 2 rows. by_channel: a row is (channel, 3, 3), else (3, 3, channel). */
int lbk_patches(const float *x, int64_t frames, int64_t bands, int64_t channels, int64_t begin, int64_t end,
                int32_t by_channel, float *y);

/* Self-attention of one utterance with relative positions (arXiv 1901.02860, section 3.3), all (frames, heads * size):
   out_i = sum_j softmax_j(((query_i + u) . key_j + (query_i + v) . position_{frames-1-i+j}) / sqrt(size)) value_j
   in each head; position (2 frames - 1, heads * size). With AMX its products are rounded as those of matrices of floats
   by lbk_matmul in this mode; else `mode` changes nothing. */
int lbk_attention(const float *query, const float *key, const float *value, const float *position, const float *u,
                  const float *v, int64_t frames, int64_t heads, int64_t size, float *out, int32_t mode, int32_t threads);

/* The recurrent part of an LSTM layer over some streams side by side, gates in the order i, f, g, o:
   h_t = o tanh(c_t), projected unless projection is NULL.
   hidden (4 cells, width); projection (width, cells), without it width is cells.
   gates (frames, streams, 4 cells): what the inputs and the biases add to the gates; they are overwritten.
   h (streams, width), c (streams, cells): the state before, then that behind. out (frames, streams, width). */
int lbk_lstm(const lbk_matrix *hidden, const lbk_matrix *projection, float *gates, int64_t frames,
             int64_t streams, float *h, float *c, float *out, int32_t mode, int32_t threads);

/* A whole recogniser: samples in, text out (docs/embedding.md). It is made of the functions above, and of nothing else,
   and lies in a library of its own, upon this one; the library that Python loads has none of it.
   Conformers with a CTC head, and transducers with a stateless decoder; greedy search; audio of more than 30 seconds in
   overlapping chunks. One may be used by several threads at once. Functions that return a pointer return NULL with a
   line in lbk_error(), or memory that lbk_free has to free. */
typedef struct lbk_recogniser lbk_recogniser;

/* The model of a packed file, which is not needed any more afterwards, or NULL: a file that is missing, damaged, or of
   a kind that the library does not run. mode: LBK_EXACT, LBK_A16, LBK_A8. threads: that work on one call. */
lbk_recogniser *lbk_recogniser_open(const char *path, int32_t mode, int32_t threads);
void lbk_recogniser_close(lbk_recogniser *recogniser); /* NULL is fine */

/* Hz: of the samples that it takes. */
int32_t lbk_recogniser_sampling_rate(const lbk_recogniser *recogniser);

/* Words of a recording of any length, with blanks between, or phones where the model has those: UTF-8 that ends in a
   zero byte, "" where nothing was heard. samples (count,) in -1 .. 1. NULL: too short for a frame, or not finite. */
char *lbk_recogniser_transcribe(const lbk_recogniser *recogniser, const float *samples, int64_t count);

/* The two halves of that, for a search of your own. Log-Mel features of samples, shape[0] x shape[1], normalised as the
   model wants them; and what the network makes of features (frames, shape[1] of before), of 7 frames at least: log
   posteriors of the classes at a quarter of the frames, of a transducer what its encoder puts out. */
float *lbk_recogniser_features(const lbk_recogniser *recogniser, const float *samples, int64_t count, int64_t shape[2]);
float *lbk_recogniser_run(const lbk_recogniser *recogniser, const float *features, int64_t frames, int64_t shape[2]);

void lbk_free(void *memory);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
