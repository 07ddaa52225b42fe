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
#define OCTAVO_ABI 21
#define OCTAVO_EXPORT __attribute__((visibility("default")))

/* ---- instruction sets: isa.c ---- */

enum { OCTAVO_PORTABLE, OCTAVO_AVX2, OCTAVO_AVX512_VNNI, OCTAVO_AMX };

OCTAVO_EXPORT int octavo_abi(void);
/* What compile.py made of all sources when it compiled them: library.py does the same. */
OCTAVO_EXPORT const char *octavo_sources(void);
/* Of vectors: never OCTAVO_AMX, whose tiles are used beside OCTAVO_AVX512_VNNI where octavo_amx. */
OCTAVO_EXPORT int octavo_isa(void);
OCTAVO_EXPORT int octavo_amx(void);
/* Use nothing beyond a set from now on; returns what is used, OCTAVO_AMX too. */
OCTAVO_EXPORT int octavo_limit_isa(int most);

/* ---- threads: threads.c ---- */

/* A thread more is woken for so many products between two meetings of all. */
enum { OCTAVO_WORK_OF_A_THREAD = 1 << 18 };

/* A part of the work: one of so many chunks. */
typedef void (*octavo_task)(void *context, int chunk, int chunks);

/* What may be done at once; the next stage begins when all chunks of this one are done. */
typedef struct {
    octavo_task task;
    void *context;
    int chunks;
} octavo_stage;

/* Into how many chunks to cut so many parts: more than threads, so that nobody waits long for one
 * that came late. */
int octavo_chunks(int64_t parts, int threads);
/* Go through stages on up to so many threads, this one among them; on how many they run nobody can
 * tell, so tasks may not wait for each other. */
void octavo_run_stages(const octavo_stage *stages, int count, int threads);
/* Call a task on up to so many threads, this one among them, all at once, and wait for all. */
void octavo_in_threads(octavo_task task, void *context, int threads);

/* ---- what calls return, where it is not 0 ---- */

enum { OCTAVO_NO_MEMORY = 1, OCTAVO_NOT_FINITE = 2 };

/* ---- products of rows with int8 weights: reading.c, product.c, tile_products.c ---- */

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

/* ---- what all steps of a program have: program.c ---- */

/* What a step reads and writes, first in the struct of each kind, so that a program fills them in
 * whatever the kind is. What a kind does not use is NULL. */
typedef struct {
    const void *x, *other;
    void *y, *scratch;
} octavo_operands;

/* So many rows of digits stay in a core's cache while all weights of a chunk go by. */
static inline int64_t octavo_panel(int64_t columns) {
    enum { BYTES = 1 << 18, LEAST = 24 };
    int64_t rows = BYTES / (2 * columns) / LEAST * LEAST;
    return rows < LEAST ? LEAST : rows;
}

/* ---- convolutions and linear layers on uint8: convolution.c, depthwise.c, epilogue.h ---- */

/* Values stand in channels-last order; a matrix [rows, channels] has height and width 1. */
typedef struct {
    int64_t batch, height, width, channels;
} octavo_shape;

enum {
    OCTAVO_NO_ACTIVATION,
    OCTAVO_CLIP, /* relu, relu6, hardtanh: between two floats */
    OCTAVO_HARDSWISH,
    OCTAVO_HARDSIGMOID,
    OCTAVO_SILU,
    OCTAVO_SIGMOID,
    OCTAVO_GELU,
    OCTAVO_GELU_TANH,
    OCTAVO_TANH,
    OCTAVO_RELU,
    OCTAVO_ACTIVATIONS /* how many there are */
};

/* In place. NaN stays NaN, but where values are cut: behind OCTAVO_CLIP it is the low end, behind
 * OCTAVO_HARDSIGMOID 0. */
void octavo_activate(int32_t activation, float low, float high, float *v, int64_t count);

/* What becomes of a layer's sums of int32: sum * scale + bias, + addend, activation, rounding half
 * to even by out_scale, out_zero_point, cut to out_low..out_high. */
typedef struct {
    const float *scales, *bias; /* [channels]; the input's scale times that of the weight's row */
    const void *addend;         /* of the result's shape, or NULL */
    float addend_scale;         /* of uint8; 0: they are float32 */
    int32_t addend_zero_point;
    int32_t activation;
    float low, high; /* of OCTAVO_CLIP */
    float out_scale; /* 0: the result is float32 */
    int32_t out_zero_point, out_low, out_high;
} octavo_epilogue;

/* y = epilogue(sum of (x - in_zero_point) * weight): x is uint8, y uint8 or float32, and scratch has
 * octavo_scratch_size bytes, which all chunks share. The taps of a window times the channels of a
 * group are at most 65536, so that sums fit into int32. No size is 0. */
typedef struct {
    octavo_operands at;
    octavo_shape in, out;
    int64_t groups, kernel_height, kernel_width, stride_y, stride_x, padding_top, padding_left;
    int64_t dilation_y, dilation_x;
    int32_t in_zero_point; /* what padding holds, too */
    int32_t narrow; /* whether the products of any two of a result's weights sum within int16 */
    const int8_t *weights; /* as octavo_pack_convolution leaves them */
    const int32_t *weight_sums; /* [out channels] */
    octavo_epilogue epilogue;
} octavo_convolution;

/* Bytes of packed weights, which depend on channels, groups, kernel and dilation alone, and on whether
 * octavo_amx, as their order does. */
OCTAVO_EXPORT int64_t octavo_packed_size(const octavo_convolution *step);
/* From int8 [out channels, kernel height, kernel width, in channels / groups]. */
OCTAVO_EXPORT void octavo_pack_convolution(
    const octavo_convolution *step, const int8_t *weights, int8_t *packed);
/* What was packed, as it was given. */
OCTAVO_EXPORT void octavo_unpack_convolution(
    const octavo_convolution *step, const int8_t *packed, int8_t *weights);
/* Into how many chunks to cut it for so many threads. */
OCTAVO_EXPORT int octavo_convolution_chunks(const octavo_convolution *step, int threads);
/* Bytes of scratch memory, with the instruction set that is in use; any alignment will do. */
OCTAVO_EXPORT int64_t octavo_scratch_size(const octavo_convolution *step, int chunks);
/* One chunk, which no other waits for. */
OCTAVO_EXPORT void octavo_convolve(const octavo_convolution *step, int chunk, int chunks);
/* All of octavo_convolution_chunks, on so many threads. */
OCTAVO_EXPORT void octavo_convolve_in_threads(const octavo_convolution *step, int threads);

/* ---- layers without weights: elementwise.c, pooling.c ---- */

/* What stored integers mean, and which of them are stored. */
typedef struct {
    float scale;
    int32_t zero_point, low, high;
} octavo_integers;

/* Of floats. Strides count values, in the order of a shape's sizes; a result without strides stands
 * in channels-last order. */
typedef struct {
    octavo_operands at;
    octavo_shape shape;
    int64_t x_strides[4];
    octavo_integers out;
} octavo_quantize;

/* To floats. */
typedef struct {
    octavo_operands at;
    int64_t count;
    octavo_integers in;
} octavo_dequantize;

/* y = table[x]: any function of one value. */
typedef struct {
    octavo_operands at;
    int64_t count;
    const uint8_t *table;
} octavo_look_up;

enum { OCTAVO_ADD, OCTAVO_MULTIPLY };

/* Of two operands; a stride of 0 repeats one. */
typedef struct {
    octavo_operands at;
    octavo_shape shape;
    int64_t x_strides[4], other_strides[4];
    int64_t operation;
    octavo_integers x_integers, other_integers, out;
} octavo_binary;

enum { OCTAVO_SUM, OCTAVO_DIFFERENCE, OCTAVO_PRODUCT, OCTAVO_QUOTIENT };

/* Of two operands in float32; a stride of 0 repeats one. */
typedef struct {
    octavo_operands at;
    octavo_shape shape;
    int64_t x_strides[4], other_strides[4];
    int64_t operation;
} octavo_arithmetic;

/* Sums of floats [outer, count, inner] over the middle, divided. */
typedef struct {
    octavo_operands at;
    int64_t outer, count, inner;
    float divisor;
} octavo_total;

/* Rows of a table by their numbers, int64, as floats: (integer - zero point) * scale of its row. */
typedef struct {
    octavo_operands at;
    int64_t count, width;
    const int8_t *table;
    const float *scales;
    const int32_t *zero_points;
} octavo_gather;

enum { OCTAVO_MOST_AXES = 8 };

/* Values of so many bytes to other places. */
typedef struct {
    octavo_operands at;
    int64_t sizes[OCTAVO_MOST_AXES], x_strides[OCTAVO_MOST_AXES], y_strides[OCTAVO_MOST_AXES];
    int64_t bytes;
} octavo_move;

enum { OCTAVO_LARGEST, OCTAVO_MEAN, OCTAVO_MEAN_WITH_PADDING };

/* Over windows; the divisor of a mean is the number of values where it is 0. */
typedef struct {
    octavo_operands at;
    octavo_shape in, out;
    int64_t operation, kernel_height, kernel_width, stride_y, stride_x, padding_top, padding_left;
    int64_t dilation_y, dilation_x, divisor;
    octavo_integers in_integers, out_integers;
} octavo_pooling;

void octavo_quantize_values(const octavo_quantize *step, int chunk, int chunks);
void octavo_dequantize_values(const octavo_dequantize *step, int chunk, int chunks);
void octavo_look_up_values(const octavo_look_up *step, int chunk, int chunks);
void octavo_combine(const octavo_binary *step, int chunk, int chunks);
void octavo_calculate(const octavo_arithmetic *step, int chunk, int chunks);
void octavo_add_up(const octavo_total *step, int chunk, int chunks);
void octavo_gather_rows(const octavo_gather *step, int chunk, int chunks);
void octavo_move_values(const octavo_move *step, int chunk, int chunks);
void octavo_pool(const octavo_pooling *step, int chunk, int chunks);

/* ---- weights of eight bits: eight_bits.c ---- */

/* y[r][n] = x[r] . weights[n] + bias[n] of contiguous rows of `width` floats, which are rounded by a
 * reading that is not of integers. y has as many columns as the weights have rows. Where a row is not
 * finite its results are NaN, and OCTAVO_NOT_FINITE tells of it. */
OCTAVO_EXPORT int octavo_multiply_eight_bits(
    const octavo_matrix *matrix, const float *x, int64_t width, int64_t count, float *y,
    const octavo_reading *reading, int threads);

/* ---- layers of floats as steps of programs: dynamic.c ---- */

/* A linear layer that rounds each row of floats by its own range: first all rows, to memory of
 * count * (2 * columns + 8) bytes, then products for some of the weight's rows in each chunk. */
typedef struct {
    octavo_operands at; /* x [count][width], y [count][rows of the matrix], scratch: the memory */
    int64_t count, width;
    octavo_reading reading;
    octavo_matrix matrix;
} octavo_dynamic_linear;

/* Of floats. */
typedef struct {
    octavo_operands at;
    int64_t count, activation;
} octavo_activation;

void octavo_round_rows(const octavo_dynamic_linear *step, int chunk, int chunks);
void octavo_multiply_rows(const octavo_dynamic_linear *step, int chunk, int chunks);
void octavo_activate_values(const octavo_activation *step, int chunk, int chunks);

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

/* Rows of x, rounded: x = step * (256 * upper + lower); sums of each group's steps. */
typedef struct {
    int8_t *upper, *lower; /* [count][columns] */
    float *sums;           /* [count][groups] */
    float *steps;          /* [count]; NaN where a value is not finite */
} octavo_four_rows;

/* Round a row of floats to row `index` of `rows`. */
void octavo_read_row_of_four_bits(
    const octavo_four_bits *matrix, const float *x, int64_t index, octavo_four_rows *rows);
/* y[r][n] = rows[r] . weights[n] + bias[n], for the blocks of 16 of n from first to last. */
void octavo_product_of_four_bits(
    const octavo_four_bits *matrix, int64_t first, int64_t last, const octavo_four_rows *rows,
    int64_t count, float *y);

/* y[r][n] = sum of x[r][k] (weights[n][k] - zero_point) scale, + bias[n], of contiguous rows. y has as
 * many columns as the weights have rows. Rows that are not finite: as above. */
OCTAVO_EXPORT int octavo_multiply_four_bits(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int threads);

enum { OCTAVO_MOST_FEW_ROWS = 16 /* of more, what is done to the weights once costs little */ };

/* The same with weights that become int8, for many rows (widened.c): of which 16 bits are kept, with
 * VNNI, or which are rounded to eight bits by their ranges. */
OCTAVO_EXPORT int octavo_multiply_four_bits_widened(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int is_rounded,
    int threads);

/* ---- tables: embedding.c ---- */

/* Integers [rows][columns] of eight bits, or of four, two to a byte, the first in the lower half.
 * Scales and zero points [rows][groups] are those of so many neighbours in a row, of an even number
 * with four bits. */
typedef struct {
    const uint8_t *values;
    const float *scales;
    const int32_t *zero_points; /* or NULL */
    int64_t rows, columns, groups;
    int32_t bits, is_signed;
} octavo_table;

enum { OCTAVO_SUM_OF_ROWS, OCTAVO_MEAN_OF_ROWS, OCTAVO_LARGEST_ROW };

/* Bag b has the indices from offsets[b] to the next offset, or to the end. The first offset is 0. */
typedef struct {
    const int64_t *offsets;
    int64_t offset_count, index_count;
    int64_t mode;
    int64_t padding;      /* an index that does not count; -1 for none */
    const float *factors; /* of each index, of a sum; or NULL */
} octavo_bags;

enum { OCTAVO_NO_SUCH_ROW = 1, OCTAVO_NO_SUCH_OFFSET };

/* y[i] = row indices[i], as floats; 0, or OCTAVO_NO_SUCH_ROW, and then nothing is written. */
OCTAVO_EXPORT int octavo_pick_rows(
    const octavo_table *table, const int64_t *indices, int64_t count, float *y, int threads);
/* y[b] of the first `count` bags; zeros where a bag is empty. */
OCTAVO_EXPORT int octavo_sum_bags(
    const octavo_table *table, const octavo_bags *bags, const int64_t *indices, int64_t count,
    float *y, int threads);

/* ---- attention: attention.c ---- */

/* [batch, heads, rows, channels] of uint8, or of float32 in attention of floats; strides count values,
 * channels stand side by side. */
typedef struct {
    const void *values;
    int64_t batch_stride, head_stride, row_stride;
    float scale;
    int32_t zero_point;
} octavo_heads;

enum { OCTAVO_NO_MASK, OCTAVO_BOOLEAN_MASK, OCTAVO_ADDED_MASK };

/* softmax(q k^T scale + mask) v, as octavo::attention has it: the exponentials are rounded to so
 * many levels. Sources are at most 65536 and levels 255, so that sums fit into int32. Of k and v
 * each head is read by heads / shared_heads of q. */
typedef struct {
    int64_t batch, heads, shared_heads, targets, sources, channels, value_channels;
    octavo_heads q, k, v;
    float scale;
    int32_t levels, causal, mask_kind;
    const void *mask; /* [batch, heads, targets, sources]: bool, or float32; sources side by side */
    int64_t mask_batch_stride, mask_head_stride, mask_row_stride;
    void *out; /* [batch, heads, targets, value_channels]: float32, or uint8 by a rounding */
    int64_t out_batch_stride, out_head_stride, out_row_stride;
    float out_scale; /* 0: the result is float32 */
    int32_t out_zero_point, out_low, out_high;
    int64_t workers; /* how many chunks are worked on at a time, at most */
    void *memory;    /* octavo_attention_memory bytes; any alignment will do */
} octavo_attention_call;

/* Bytes of memory of a call with so many workers. */
OCTAVO_EXPORT int64_t octavo_attention_memory(const octavo_attention_call *call);
/* Keys and values as products read them, before any chunk attends. */
void octavo_pack_heads(const octavo_attention_call *call, int chunk, int chunks);
void octavo_attend(const octavo_attention_call *call, int chunk, int chunks);
/* Both, with memory that is asked for; 0, or 1 where there is none. */
OCTAVO_EXPORT int octavo_attention(const octavo_attention_call *call, int threads);

/* ---- attention of floats, as steps of programs: float_attention.c ---- */

/* Of heads of float32, of as many channels of values as of keys, a multiple of 8; causal where there are
 * no more targets than sources. Nothing is rounded. `workers` are the chunks that attend. */
OCTAVO_EXPORT int64_t octavo_float_attention_memory(const octavo_attention_call *call);
void octavo_pack_float_heads(const octavo_attention_call *call, int chunk, int chunks);
void octavo_attend_to_floats(const octavo_attention_call *call, int chunk, int chunks);

/* ---- rows of floats or integers that are normalized: normalization.c ---- */

enum { OCTAVO_LAYER_NORM, OCTAVO_RMS_NORM, OCTAVO_SOFTMAX };

/* Contiguous rows [count, columns]; what is NULL is left out. */
typedef struct {
    int64_t count, columns;
    int32_t kind, x_zero_point;
    const void *x; /* float32, or uint8 */
    float x_scale; /* of uint8; 0: they are float32 */
    float eps;
    const float *addend; /* to x, which is float32 then */
    const float *weight, *bias; /* [columns], of norms */
    float *out;
    uint8_t *rounded; /* half to even by the scale and zero point, cut to low..high */
    float scale;
    int32_t zero_point, low, high;
    float *scratch; /* a row for each chunk */
} octavo_normalization;

void octavo_normalize_rows(const octavo_normalization *call, int chunk, int chunks);
/* With memory that is asked for; 0, or 1 where there is no memory. */
OCTAVO_EXPORT int octavo_normalize(const octavo_normalization *call, int threads);

/* ---- programs: program.c ---- */

enum {
    OCTAVO_CONVOLVE,
    OCTAVO_POOL,
    OCTAVO_QUANTIZE,
    OCTAVO_DEQUANTIZE,
    OCTAVO_LOOK_UP,
    OCTAVO_COMBINE,
    OCTAVO_MOVE,
    OCTAVO_CALCULATE,
    OCTAVO_NORMALIZE,
    OCTAVO_PACK_HEADS,
    OCTAVO_ATTEND,
    OCTAVO_ADD_UP,
    OCTAVO_GATHER,
    OCTAVO_ROUND_ROWS,
    OCTAVO_MULTIPLY_ROWS,
    OCTAVO_ACTIVATE,
    OCTAVO_PACK_FLOAT_HEADS,
    OCTAVO_ATTEND_TO_FLOATS
};

enum { OCTAVO_MOST_PLACES = 6 };

/* What a pointer of a step is when it is taken: bytes behind one of the addresses that a call is
 * given; and where it stands in the step's struct. Nothing where the base is below 0. */
typedef struct {
    int64_t base, offset, field;
} octavo_place;

typedef struct {
    int64_t kind, chunks;
    octavo_place places[OCTAVO_MOST_PLACES];
    union {
        octavo_convolution convolution;
        octavo_pooling pooling;
        octavo_quantize quantize;
        octavo_dequantize dequantize;
        octavo_look_up look_up;
        octavo_binary binary;
        octavo_move move;
        octavo_arithmetic arithmetic;
        octavo_normalization normalization;
        octavo_attention_call attention;
        octavo_total total;
        octavo_gather gather;
        octavo_dynamic_linear dynamic_linear;
        octavo_activation activation;
    } of;
} octavo_step;

/* All steps, one after the other, each in its chunks on up to so many threads; 0, or 1 where there
 * is no memory. */
OCTAVO_EXPORT int octavo_run(
    const octavo_step *steps, int64_t count, void *const *bases, int threads);

/* Steps for one part of a batch, and how many parts there are. Of each address of a call but the first a
 * part has what stands so many bytes, its pitch, behind that of the part before. The first is memory of
 * `arena` bytes for each thread. */
typedef struct {
    const octavo_step *steps;
    int64_t count, parts, arena, base_count;
    const int64_t *pitches;
} octavo_slices;

/* Each part through all steps on one thread; 0, or 1 where there is no memory. */
OCTAVO_EXPORT int octavo_run_slices(const octavo_slices *slices, void *const *bases, int threads);

/* ---- blocks of decoders: decoder.c ---- */

/* A linear layer with weights of eight bits; of four where those are NULL. */
typedef struct {
    octavo_matrix eight;
    octavo_four_bits four;
} octavo_layer;

/* Each row, less its mean where it is centered, over the root of its mean square, times weight + more,
 * plus bias, which may be NULL. Weight NULL: there is no such norm. */
typedef struct {
    const float *weight, *bias;
    float eps, more;
    int32_t centered, reserved;
} octavo_norm;

/* Queries of one head that follow each other, and what they attend to: the first one to `seen` sources,
 * each other to `growth` more, none to more than the last `window` of them where that is not 0. */
typedef struct {
    const float *queries, *keys, *values; /* [count], [sources][channels] */
    const int8_t *key_rows, *value_rows;  /* in their place for `octavo_int8_tokens` */
    const void *packed; /* blocks of them all, for several queries; or NULL */
    int64_t count, query_stride, channels, seen, growth, window;
    float scale, softcap; /* 0: scores are not capped */
    float slope;          /* is added to scores, times the number of the source */
    int32_t mask_kind;
    const void *mask; /* of the first query */
    int64_t mask_stride; /* in bytes */
    float *scores; /* on a line of the cache, room for [queries][seen + count + 64] */
    float *out;
    int64_t out_stride;
} octavo_head_queries;

/* Rows of floats, as this CPU computes them: float_rows.c. `normalized` may be in place; `rotated` turns
 * so many channels of a head in place, the first half with the second. */
typedef struct {
    void (*normalized)(const float *x, int64_t count, const octavo_norm *norm, float *y);
    void (*rotated)(float *x, int64_t count, const float *cosine, const float *sine);
} octavo_float_rows;
const octavo_float_rows *octavo_float_rows_of_this_cpu(void);

/* Attention, likewise: attending.c. So many queries attend together to packed blocks of so many sources,
 * the last of which may have fewer; a block takes `packed_size` bytes, a multiple of 64. */
typedef struct {
    int64_t queries, sources;
    int64_t (*packed_size)(int64_t channels);
    void (*pack)(
        const float *keys, const float *values, int64_t count, int64_t channels, void *block);
    void (*attend)(const octavo_head_queries *queries);
} octavo_attending;
const octavo_attending *octavo_attending_of_this_cpu(int64_t most_channels);

/* Rows of int8 in a cache: int8_tokens.c. Behind the integers of each stand two floats. `attend` takes
 * queries one by one. */
enum { OCTAVO_RANGE_OF_ROW = 8 };
typedef struct {
    void (*round)(const float *x, int64_t channels, int8_t *row);
    void (*widen)(const int8_t *rows, int64_t count, int64_t channels, float *y);
    void (*attend)(const octavo_head_queries *queries);
} octavo_int8_tokens;
const octavo_int8_tokens *octavo_int8_tokens_of_this_cpu(void);

/* Where heads of queries, keys or values stand in the rows of a layer's results (0: the query's, 1, 2):
 * the first one at `start`, and each other `step` behind the one before. */
typedef struct {
    int64_t layer, start, step;
} octavo_head_places;

/* x + after(out(attention(norm(x)))), and of that y, or where it is parallel of x,
 * y + after(down(activation(gate(norm)) * up(norm))). Layers without rows are not there: key and value
 * where the query has all three, up where nothing is gated. A head of the keys is read by heads /
 * shared_heads of the queries; channels are a multiple of 8. */
typedef struct {
    octavo_layer query, key, value, out, gate, up, down;
    octavo_norm before_attention, of_queries, of_keys, after_attention, before_gate, after_down;
    octavo_head_places queries, keys, values;
    int64_t width, inner, heads, shared_heads, channels;
    int64_t turned;      /* channels of a head that are rotated */
    int64_t window;      /* 0: a token sees all before it */
    const float *slopes; /* [heads] of what is added to scores, or NULL */
    float scale, softcap;
    int32_t activation, rotation, is_parallel, reserved; /* rotation: which of those of a call */
} octavo_decoder;

/* Keys and values of a block, float [batch, shared heads, .., channels] or rows of int8, and how many tokens
 * each text has there, [batch], behind which those of a call are put. Strides count values. */
typedef struct {
    void *keys, *values;
    int64_t batch_stride, head_stride, is_int8;
    const int64_t *past;
} octavo_cache;

enum { OCTAVO_ROTATIONS = 2 };

/* Cosines and sines [batch, tokens, turned]; a stride of 0 repeats one. */
typedef struct {
    const float *cosine, *sine;
    int64_t stride;
} octavo_rotation;

/* Blocks one after the other on contiguous rows [batch, tokens, width]. Each token sees those before it
 * in its text, and no more than a mask lets it see. */
typedef struct {
    int64_t batch, tokens, ahead; /* so many tokens of each text came since `past` was counted */
    const float *x;
    float *y;
    octavo_rotation rotations[OCTAVO_ROTATIONS];
    int32_t mask_kind, is_rounded; /* whether layers read eight bits of each value */
    const void *mask; /* [batch, heads, tokens, sources]: bool, or float32; the last one is the newest */
    int64_t mask_batch_stride, mask_head_stride, mask_row_stride, sources;
    const octavo_cache *caches; /* one for each block */
} octavo_decoder_call;

/* OCTAVO_NOT_FINITE: some row was not finite, and results are not what floats would give. */
OCTAVO_EXPORT int octavo_decode(
    const octavo_decoder *blocks, int64_t count, const octavo_decoder_call *call, int threads);

/* ---- recurrent layers: recurrent.c ---- */

enum { OCTAVO_LSTM, OCTAVO_GRU, OCTAVO_RNN_TANH, OCTAVO_RNN_RELU };

/* One direction of one layer. Strides count values. The rows of both matrices stand as
 * [hidden / 16][gates][16], hidden rounded up. With offsets [steps + 1] sequences are packed: the
 * rows of step t stand from offsets[t] on, there are at most `batch` and never more than of the step
 * before, and strides of steps mean nothing. No size is 0, and no step is without rows. */
typedef struct {
    int32_t kind, reverse, threads, reserved;
    const int64_t *offsets; /* or NULL */
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

/* ---- what observers keep of values: observing.c ---- */

/* The lowest and the highest of each row of `count` values; NaN where there is one. */
OCTAVO_EXPORT void octavo_extrema(
    const float *x, int64_t rows, int64_t count, float *low, float *high, int threads);

/* A histogram of each row, and values to take in. Bins are as wide as DyadicHistogram says. */
typedef struct {
    const float *x; /* [rows][count] */
    int64_t rows, count, bins;
    int64_t *counts;   /* [rows][bins] */
    int64_t *zeros;    /* [rows] */
    float *low, *high; /* [rows]; low above high where nothing was seen */
} octavo_histogram;

/* Count the values too; 0, or why it was not done, and then nothing has changed. */
OCTAVO_EXPORT int octavo_observe(const octavo_histogram *seen, int threads);

/* ---- weights rounded column by column: columns.c ---- */

enum { OCTAVO_MOST_COLUMNS = 64 }; /* in one call */

/* A weight in groups of rows, its columns in the order in which they are rounded. */
typedef struct {
    float *left;                       /* [columns][groups * rows]: what is to be rounded */
    float *integers, *errors;          /* of that shape, written */
    const float *scales, *zero_points; /* of that shape */
    const float *shares;  /* [columns][columns][groups]: of a column's error, what another takes back */
    int64_t columns, groups, rows;
    float lowest, highest; /* of the integers */
} octavo_columns;

/* Round the columns from `start` to before `stop`, each behind what those before it pass on. */
OCTAVO_EXPORT void octavo_round_columns(const octavo_columns *c, int64_t start, int64_t stop);

#endif
