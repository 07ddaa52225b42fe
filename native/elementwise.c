/* What stands between layers, value by value: rounding, sums, products, tables and moves. */
#include <string.h>

#include "octavo.h"
#include "stored.h"

/* ---- floats to integers ---- */

enum { AT_ONCE = 256, FEW_CHANNELS = 4 };

INLINE void quantize_row(
    const float *restrict x, int64_t step, uint8_t *restrict y, int64_t count,
    const octavo_integers *out) {
    const octavo_integers own = *out;
    if (step == 1)
        for (int64_t i = 0; i < count; i++) y[i] = stored(x[i], &own);
    else
        for (int64_t i = 0; i < count; i++) y[i] = stored(x[i * step], &own);
}

/* A row of pixels whose channels lie apart, as an image's planes do. */
INLINE void quantize_planes(
    const float *x, int64_t pixel, int64_t channel, uint8_t *y, int64_t pixels, int64_t channels,
    const octavo_integers *out) {
    uint8_t planes[FEW_CHANNELS][AT_ONCE];
    for (int64_t first = 0; first < pixels; first += AT_ONCE) {
        int64_t count = pixels - first < AT_ONCE ? pixels - first : AT_ONCE;
        for (int64_t begin = 0; begin < channels; begin += FEW_CHANNELS) {
            int64_t few = channels - begin < FEW_CHANNELS ? channels - begin : FEW_CHANNELS;
            for (int64_t c = 0; c < few; c++)
                quantize_row(
                    x + first * pixel + (begin + c) * channel, pixel, planes[c], count, out);
            uint8_t *to = y + first * channels + begin;
            if (few == 3 && channels == 3)
                for (int64_t i = 0; i < count; i++) {
                    to[3 * i] = planes[0][i];
                    to[3 * i + 1] = planes[1][i];
                    to[3 * i + 2] = planes[2][i];
                }
            else
                for (int64_t i = 0; i < count; i++)
                    for (int64_t c = 0; c < few; c++) to[i * channels + c] = planes[c][i];
        }
    }
}

INLINE void quantize_share(const octavo_quantize *step, int chunk, int chunks) {
    const octavo_shape *shape = &step->shape;
    const int64_t *strides = step->x_strides, row = shape->width * shape->channels;
    SHARE(first, last, shape->batch * shape->height);
    for (int64_t r = first; r < last; r++) {
        const float *x =
            (const float *)step->at.x + r / shape->height * strides[0] + r % shape->height * strides[1];
        uint8_t *y = (uint8_t *)step->at.y + r * row;
        if (strides[3] == 1 && strides[2] == shape->channels)
            quantize_row(x, 1, y, row, &step->out);
        else if (strides[3] == 1)
            for (int64_t w = 0; w < shape->width; w++)
                quantize_row(
                    x + w * strides[2], 1, y + w * shape->channels, shape->channels, &step->out);
        else
            quantize_planes(
                x, strides[2], strides[3], y, shape->width, shape->channels, &step->out);
    }
}

/* ---- integers to floats ---- */

INLINE void dequantize_share(const octavo_dequantize *step, int chunk, int chunks) {
    const octavo_integers in = step->in;
    const uint8_t *x = step->at.x;
    float *y = step->at.y;
    SHARE(first, last, step->count);
    for (int64_t i = first; i < last; i++) y[i] = meant(x[i], &in);
}

/* ---- a table ---- */

INLINE void look_up_share(const octavo_look_up *step, int chunk, int chunks) {
    const uint8_t *x = step->at.x;
    uint8_t *y = step->at.y;
    SHARE(first, last, step->count);
    for (int64_t i = first; i < last; i++) y[i] = step->table[x[i]];
}

/* ---- sums and products of two ---- */

#define OF_TWO(expression)                                             \
    for (int64_t i = 0; i < count; i++) {                              \
        float a = meant(x[x_step * i], &one), b = meant(other[o_step * i], &two); \
        y[i] = stored(expression, &out);                               \
    }

INLINE void row_of_two(
    const octavo_binary *step, const uint8_t *restrict x, int64_t x_step,
    const uint8_t *restrict other, int64_t o_step, uint8_t *restrict y, int64_t count) {
    const octavo_integers one = step->x_integers, two = step->other_integers, out = step->out;
    if (step->operation == OCTAVO_ADD) {
        OF_TWO(a + b)
    } else {
        OF_TWO(a * b)
    }
}

INLINE void row_of_floats(
    const octavo_arithmetic *step, const float *x, int64_t x_step, const float *other,
    int64_t o_step, float *restrict y, int64_t count) {
#define OF_FLOATS(sign) \
    for (int64_t i = 0; i < count; i++) y[i] = x[x_step * i] sign other[o_step * i]
    switch (step->operation) {
    case OCTAVO_SUM: OF_FLOATS(+); break;
    case OCTAVO_DIFFERENCE: OF_FLOATS(-); break;
    case OCTAVO_PRODUCT: OF_FLOATS(*); break;
    default: OF_FLOATS(/);
    }
}

/* Whether values stand beside each other, in the order of the result. */
INLINE int is_dense(const octavo_shape *shape, const int64_t *strides) {
    int64_t row = shape->width * shape->channels;
    return (shape->channels == 1 || strides[3] == 1) &&
           (shape->width == 1 || strides[2] == shape->channels) &&
           (shape->height == 1 || strides[1] == row) &&
           (shape->batch == 1 || strides[0] == row * shape->height);
}

/* Rows of both operands, with the steps that are common as constants. */
#define SHARE_OF_TWO(row_of, type)                                                                 \
    const octavo_shape *shape = &step->shape;                                                      \
    const int64_t *one = step->x_strides, *two = step->other_strides;                              \
    const type *all_x = step->at.x, *all_other = step->at.other;                                   \
    type *all_y = step->at.y;                                                                      \
    if (is_dense(shape, one) && is_dense(shape, two)) {                                            \
        SHARE(from, to, shape->batch * shape->height * shape->width * shape->channels);            \
        row_of(step, all_x + from, 1, all_other + from, 1, all_y + from, to - from);               \
        return;                                                                                    \
    }                                                                                              \
    SHARE(first, last, shape->batch * shape->height * shape->width);                               \
    for (int64_t p = first; p < last; p++) {                                                       \
        int64_t w = p % shape->width, row = p / shape->width;                                      \
        int64_t h = row % shape->height, n = row / shape->height;                                  \
        const type *x = all_x + n * one[0] + h * one[1] + w * one[2];                              \
        const type *other = all_other + n * two[0] + h * two[1] + w * two[2];                      \
        type *y = all_y + p * shape->channels;                                                     \
        if (one[3] == 1 && two[3] == 1)                                                            \
            row_of(step, x, 1, other, 1, y, shape->channels);                                      \
        else if (one[3] == 1 && two[3] == 0)                                                       \
            row_of(step, x, 1, other, 0, y, shape->channels);                                      \
        else                                                                                       \
            row_of(step, x, one[3], other, two[3], y, shape->channels);                            \
    }

INLINE void binary_share(const octavo_binary *step, int chunk, int chunks) {
    SHARE_OF_TWO(row_of_two, uint8_t)
}

INLINE void arithmetic_share(const octavo_arithmetic *step, int chunk, int chunks) {
    SHARE_OF_TWO(row_of_floats, float)
}

/* ---- sums over an axis ---- */

enum { WIDE = 64 /* sums side by side */, ROWS_OF_A_PART = 64 /* so that small values count */ };

INLINE void add_up(const float *x, int64_t rows, int64_t stride, float *sums, const int64_t count) {
    for (int64_t i = 0; i < count; i++) sums[i] = 0;
    for (int64_t begin = 0; begin < rows; begin += ROWS_OF_A_PART) {
        float part[WIDE] = {0};
        int64_t end = begin + ROWS_OF_A_PART < rows ? begin + ROWS_OF_A_PART : rows;
        for (int64_t row = begin; row < end; row++)
            for (int64_t i = 0; i < count; i++) part[i] += x[row * stride + i];
        for (int64_t i = 0; i < count; i++) sums[i] += part[i];
    }
}

INLINE void total_share(const octavo_total *step, int chunk, int chunks) {
    int64_t blocks = (step->inner + WIDE - 1) / WIDE;
    SHARE(first, last, step->outer * blocks);
    for (int64_t at = first; at < last; at++) {
        int64_t outer = at / blocks, begin = at % blocks * WIDE;
        int64_t count = step->inner - begin < WIDE ? step->inner - begin : WIDE;
        const float *x = (const float *)step->at.x + outer * step->count * step->inner + begin;
        float *y = (float *)step->at.y + outer * step->inner + begin, sums[WIDE];
        if (count == WIDE)
            add_up(x, step->count, step->inner, sums, WIDE);
        else
            add_up(x, step->count, step->inner, sums, count);
        for (int64_t i = 0; i < count; i++) y[i] = sums[i] / step->divisor;
    }
}

/* ---- rows of a table ---- */

INLINE void gather_share(const octavo_gather *step, int chunk, int chunks) {
    const int64_t *rows = step->at.x, width = step->width;
    SHARE(first, last, step->count);
    for (int64_t at = first; at < last; at++) {
        int64_t row = rows[at];
        const int8_t *q = step->table + row * width;
        float scale = step->scales[row], *y = (float *)step->at.y + at * width;
        int32_t zero_point = step->zero_points[row];
        for (int64_t i = 0; i < width; i++) y[i] = (float)(q[i] - zero_point) * scale;
    }
}

/* ---- moves ---- */

/* A row along the last axis. */
INLINE void move_row(
    const octavo_move *step, const uint8_t *x, uint8_t *y, const int64_t bytes) {
    int64_t count = step->sizes[OCTAVO_MOST_AXES - 1];
    int64_t from = step->x_strides[OCTAVO_MOST_AXES - 1], to = step->y_strides[OCTAVO_MOST_AXES - 1];
    if (from == 1 && to == 1)
        memcpy(y, x, (size_t)(count * bytes));
    else
        for (int64_t i = 0; i < count; i++)
            memcpy(y + i * to * bytes, x + i * from * bytes, (size_t)bytes);
}

INLINE void move_rows(
    const octavo_move *step, int64_t first, int64_t last, const int64_t bytes) {
    enum { OUTER = OCTAVO_MOST_AXES - 1 };
    int64_t at[OUTER], from = 0, to = 0, rest = first;
    for (int axis = OUTER - 1; axis >= 0; axis--) {
        at[axis] = rest % step->sizes[axis];
        rest /= step->sizes[axis];
        from += at[axis] * step->x_strides[axis];
        to += at[axis] * step->y_strides[axis];
    }
    for (int64_t row = first; row < last; row++) {
        move_row(
            step, (const uint8_t *)step->at.x + from * bytes, (uint8_t *)step->at.y + to * bytes,
            bytes);
        /* The next row, without a division. */
        for (int axis = OUTER - 1; axis >= 0; axis--) {
            from += step->x_strides[axis];
            to += step->y_strides[axis];
            if (++at[axis] < step->sizes[axis]) break;
            from -= at[axis] * step->x_strides[axis];
            to -= at[axis] * step->y_strides[axis];
            at[axis] = 0;
        }
    }
}

void octavo_move_values(const octavo_move *step, int chunk, int chunks) {
    int64_t rows = 1;
    for (int axis = 0; axis < OCTAVO_MOST_AXES - 1; axis++) rows *= step->sizes[axis];
    SHARE(first, last, rows);
    if (step->bytes == 1)
        move_rows(step, first, last, 1);
    else if (step->bytes == 4)
        move_rows(step, first, last, 4);
    else
        move_rows(step, first, last, step->bytes);
}

/* ---- for each instruction set ---- */

FOR_EACH_SET(octavo_quantize_values, octavo_quantize, quantize_share)
FOR_EACH_SET(octavo_dequantize_values, octavo_dequantize, dequantize_share)
FOR_EACH_SET(octavo_look_up_values, octavo_look_up, look_up_share)
FOR_EACH_SET(octavo_combine, octavo_binary, binary_share)
FOR_EACH_SET(octavo_calculate, octavo_arithmetic, arithmetic_share)
FOR_EACH_SET(octavo_add_up, octavo_total, total_share)
FOR_EACH_SET(octavo_gather_rows, octavo_gather, gather_share)
