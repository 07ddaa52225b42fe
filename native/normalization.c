/* Layer norm, RMS norm and softmax of rows, with what stands around them: integers that are read, an
 * addition, and the rounding of the result. */
#include <stdlib.h>

#include "activations.h"
#include "octavo.h"
#include "rounding.h"

/* ---- a row, written once and compiled for each instruction set ---- */

INLINE void read_values(const octavo_normalization *c, int64_t row, float *values) {
    int64_t count = c->columns, start = row * count;
    if (c->x_scale != 0.0f) {
        const uint8_t *q = (const uint8_t *)c->x + start;
        int32_t zero_point = c->x_zero_point;
        float scale = c->x_scale;
        for (int64_t i = 0; i < count; i++) values[i] = (float)(q[i] - zero_point) * scale;
        return;
    }
    const float *x = (const float *)c->x + start;
    if (c->addend) {
        const float *addend = c->addend + start;
        for (int64_t i = 0; i < count; i++) values[i] = x[i] + addend[i];
    } else {
        memcpy(values, x, (size_t)count * 4);
    }
}

/* So many sums grow side by side, so that none waits for the one before. */
enum { SUMS = 4 * LANES };

INLINE float total(float *sums) {
    for (int half = SUMS / 2; half >= LANES; half /= 2)
        for (int j = 0; j < half; j++) sums[j] += sums[j + half];
    float all = 0;
    for (int j = 0; j < LANES; j++) all += sums[j];
    return all;
}

INLINE float sum_of(const float *values, int64_t count) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += values[i + j];
    for (int64_t j = 0; j < count - i; j++) sums[j] += values[i + j];
    return total(sums);
}

INLINE float sum_of_squares(const float *values, int64_t count, float mean) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += (values[i + j] - mean) * (values[i + j] - mean);
    for (int64_t j = 0; j < count - i; j++) sums[j] += (values[i + j] - mean) * (values[i + j] - mean);
    return total(sums);
}

INLINE void normalize_values(const octavo_normalization *c, float *values) {
    int64_t count = c->columns;
    const float *weight = c->weight, *bias = c->bias;
    float size = (float)count;
    float mean = c->kind == OCTAVO_LAYER_NORM ? sum_of(values, count) / size : 0.0f;
    float factor = 1.0f / sqrtf(sum_of_squares(values, count, mean) / size + c->eps);
    for (int64_t i = 0; i < count; i++) values[i] = (values[i] - mean) * factor;
    if (weight)
        for (int64_t i = 0; i < count; i++) values[i] *= weight[i];
    if (bias)
        for (int64_t i = 0; i < count; i++) values[i] += bias[i];
}

INLINE void softmax_values(float *values, int64_t count) {
    float largest = largest_of(values, count); /* where it is NaN, so is all of the row */
    for (int64_t i = 0; i < count; i++) values[i] = exponential(values[i] - largest, 0.0f);
    float sum = sum_of(values, count); /* the largest counts 1, where one is more than -infinity */
    float factor = sum < 0.5f ? NAN : 1.0f / sum;
    for (int64_t i = 0; i < count; i++) values[i] *= factor;
}

INLINE void normalize_row(const octavo_normalization *c, int64_t row, float *values) {
    int64_t count = c->columns, start = row * count;
    read_values(c, row, values);
    if (c->kind == OCTAVO_SOFTMAX)
        softmax_values(values, count);
    else
        normalize_values(c, values);
    if (c->out) memcpy(c->out + start, values, (size_t)count * 4);
    if (c->rounded)
        round_floats(values, count, c->scale, c->zero_point, c->low, c->high, c->rounded + start);
}

typedef void (*Normalize)(const octavo_normalization *, int64_t, float *);

#define NORMALIZE(SET, TARGET)                                                                    \
    TARGET static void normalize_##SET(const octavo_normalization *c, int64_t row, float *values) { \
        normalize_row(c, row, values);                                                            \
    }

NORMALIZE(portable, )
#if defined(__x86_64__)
NORMALIZE(avx2, AVX2)
NORMALIZE(avx512, VNNI)
#endif

static Normalize normalize_of_this_cpu(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return normalize_avx512;
    case OCTAVO_AVX2: return normalize_avx2;
#endif
    default: return normalize_portable;
    }
}

/* ---- all rows ---- */

enum { WORK = 16 /* of a value, in products */ };

static int64_t width_of(const octavo_normalization *call) {
    return (call->columns + LANES - 1) / LANES * LANES;
}

void octavo_normalize_rows(const octavo_normalization *call, int chunk, int chunks) {
    Normalize normalize = normalize_of_this_cpu();
    int64_t count = call->count;
    float *values = call->scratch + chunk * width_of(call);
    for (int64_t row = count * chunk / chunks; row < count * (chunk + 1) / chunks; row++)
        normalize(call, row, values);
}

static void work(void *context, int chunk, int chunks) {
    octavo_normalize_rows(context, chunk, chunks);
}

int octavo_normalize(const octavo_normalization *given, int threads) {
    octavo_normalization call = *given;
    int64_t useful = call.count * call.columns * WORK / OCTAVO_WORK_OF_A_THREAD + 1;
    threads = useful < threads ? (int)useful : threads;
    int chunks = octavo_chunks(call.count, threads);
    char *memory = malloc((size_t)(chunks * width_of(&call)) * 4 + 64);
    if (!memory) return 1;
    call.scratch = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    octavo_run_stages(&(octavo_stage){work, &call, chunks}, 1, threads);
    free(memory);
    return 0;
}
