/* Octavo's own kernels: plain C11 and pthreads, called by ctypes: octavo.numerics.native loads it.
 *
 * Each kernel is written once for every CPU and again with intrinsics for some; which one runs is
 * found at run time (isa.c). Callers check shapes and strides; nothing here reads a file.
 */
#ifndef OCTAVO_H
#define OCTAVO_H

#include <stddef.h>
#include <stdint.h>

/* Raised whenever a struct or a function below changes; library.py expects the same number. */
#define OCTAVO_ABI 3
#define OCTAVO_EXPORT __attribute__((visibility("default")))

/* ---- instruction sets: isa.c ---- */

enum { OCTAVO_PORTABLE, OCTAVO_AVX2, OCTAVO_AVX512_VNNI };

OCTAVO_EXPORT int octavo_abi(void);
OCTAVO_EXPORT int octavo_isa(void);
/* Use nothing beyond a set from now on; returns what is used. */
OCTAVO_EXPORT int octavo_limit_isa(int most);

/* ---- threads: threads.c ---- */

/* A thread more is woken for so many products between two meetings of all. */
enum { OCTAVO_WORK_OF_A_THREAD = 1 << 18 };

typedef void (*octavo_task)(void *context, int thread, int threads);

typedef struct {
    _Atomic unsigned arrived, phase;
} octavo_barrier;

/* Call a task on up to so many threads, this one among them, and wait for all. */
void octavo_in_threads(octavo_task task, void *context, int threads);
/* Wait until all threads of a task are here. */
void octavo_wait(octavo_barrier *barrier, int threads);

/* ---- products of rows with int8 weights: product.c ---- */

/* The weights [rows, columns] stand as [rows / 16][columns / 4][16][4]; rows are a multiple of 16,
 * columns of 4. Their sums are those of a row's integers. */
typedef struct {
    const int8_t *weights;
    const float *scales;
    const int32_t *sums;
    const float *bias;
    int64_t rows, columns;
} octavo_matrix;

/* How rows are read: integers as they are, floats rounded by the range of all or of each row, or
 * floats of which 16 bits are kept. */
enum { OCTAVO_INTEGERS, OCTAVO_TENSOR_RANGE, OCTAVO_ROW_RANGE, OCTAVO_FLOATS };

/* The integers low..high that floats are rounded to; those of uint8 that are stored begin at 0. */
typedef struct {
    int32_t how, low, high, symmetric;
    float scale;        /* of integers that come as they are */
    int32_t zero_point; /* likewise */
} octavo_reading;

/* Rows as a product reads them: with VNNI uint8, one digit or two, else int16. */
typedef struct {
    uint8_t *digits; /* [count][2 * columns] bytes */
    float *scales;
    int32_t *zero_points;
    int64_t columns;
    int two_digits;
} octavo_rows;

/* The range of so many values, as the scale and zero point of a reading. */
void octavo_find_range(octavo_reading *reading, const float *x, int64_t count);
/* Round row `index` of `rows`, from `width` values at `x`. */
void octavo_read_row(
    octavo_rows *rows, int64_t index, const void *x, int64_t width, const octavo_reading *reading);
/* y[r][n] = rows[r] . weights[n] + bias[n], for the blocks of 16 of n from first to last. */
void octavo_product(
    const octavo_matrix *matrix, int64_t first, int64_t last, const octavo_rows *rows,
    int64_t count, float *y);

/* ---- weights of eight bits: eight_bits.c ---- */

/* y[r][n] = x[r] . weights[n] + bias[n] of contiguous rows of `width` floats; 0, or 1 where there is
 * no memory. y has as many columns as the weights have rows. */
OCTAVO_EXPORT int octavo_multiply_eight_bits(
    const octavo_matrix *matrix, const float *x, int64_t width, int64_t count, float *y,
    int threads);

/* ---- weights of four bits: four_bits.c ---- */

/* The weights [rows, columns], 0..15, stand as [rows / 16][columns / 32][4][16][4]: a byte has
 * columns 8 i + k and 8 i + k + 4. Scales and zero points are those of groups of neighbours, which
 * stand as [rows / 16][groups][16]. Rows are a multiple of 16, the columns of a group of 32. */
typedef struct {
    const uint8_t *weights;
    const float *scales;
    const uint8_t *zero_points;
    const float *bias; /* or NULL */
    int64_t rows, columns, groups;
} octavo_four_bits;

/* y[r][n] = sum of x[r][k] (weights[n][k] - zero_point) scale, + bias[n], of contiguous rows; 0, or
 * 1 where there is no memory. y has as many columns as the weights have rows. */
OCTAVO_EXPORT int octavo_multiply_four_bits(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int threads);

/* ---- recurrent layers: recurrent.c ---- */

enum { OCTAVO_LSTM, OCTAVO_GRU, OCTAVO_RNN_TANH, OCTAVO_RNN_RELU };

/* One direction of one layer. Strides count values. The rows of both matrices stand as
 * [hidden / 16][gates][16], hidden rounded up. */
typedef struct {
    int32_t kind, reverse, threads, reserved;
    int64_t steps, batch, inputs, hidden;
    octavo_reading reading;
    octavo_matrix of_input, of_state;
    const void *x; /* float, or uint8 where it is read as integers */
    int64_t x_step, x_row;
    const float *h0, *c0; /* [batch, hidden] */
    float *out;
    int64_t out_step, out_row;
    float *hn, *cn;
} octavo_recurrent_call;

/* 0, or 1 where there is no memory. */
OCTAVO_EXPORT int octavo_recurrent(const octavo_recurrent_call *call);

#endif
