/* Rows of floats in a block of a decoder: norms, rotation, and attention to what a cache keeps. */
#include "activations.h"
#include "octavo.h"
#include "rounding.h"

/* ---- rows, written once and compiled for each instruction set ---- */

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Places __attribute__((vector_size(32)));
enum { WIDE = 8, TILE = 8 };

INLINE float sum_of_lanes(const Eight *lanes) {
    float sum = 0;
    for (int i = 0; i < WIDE; i++) sum += (*lanes)[i];
    return sum;
}

INLINE void normalized(const float *x, int64_t count, const octavo_norm *norm, float *y) {
    Eight sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * WIDE <= count; i += 4 * WIDE)
        for (int j = 0; j < 4; j++) {
            Eight values = *(const Eight *)(x + i + j * WIDE);
            sums[j] += values * values;
        }
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = sum_of_lanes(sums);
    for (; i < count; i++) sum += x[i] * x[i];
    float factor = 1.0f / sqrtf(sum / (float)count + norm->eps);
    for (i = 0; i < count; i++) y[i] = x[i] * factor * (norm->more + norm->weight[i]);
}

/* A head, in place: the first half of its channels with the second. */
INLINE void rotated(float *x, int64_t count, const float *cosine, const float *sine) {
    int64_t half = count / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

INLINE float product_of(const float *a, const float *b, int64_t count) {
    Eight sum = {0};
    for (int64_t i = 0; i < count; i += WIDE) sum += *(const Eight *)(a + i) * *(const Eight *)(b + i);
    return sum_of_lanes(&sum);
}

/* Lanes of two vectors by their numbers: GCC before 12 has one builtin, clang the other. */
#if defined(__clang__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, (Places){__VA_ARGS__})
#endif

/* The sums of the lanes of eight vectors, side by side. */
INLINE void sums_of_lanes(const Eight *v, Eight *sums) {
    Eight pairs[4], fours[2];
    for (int i = 0; i < 4; i++) {
        Eight a = v[2 * i], b = v[2 * i + 1];
        pairs[i] = LANES_OF(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + LANES_OF(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        Eight a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = LANES_OF(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + LANES_OF(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    *sums = LANES_OF(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
            LANES_OF(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

INLINE void find_scores(
    const float *query, const float *keys, int64_t sources, int64_t channels, float scale,
    float *scores) {
    int64_t source = 0;
    for (; source + WIDE <= sources; source += WIDE, keys += WIDE * channels) {
        Eight sums[WIDE], together;
        UNROLL
        for (int j = 0; j < WIDE; j++) sums[j] = (Eight){0};
        for (int64_t i = 0; i < channels; i += WIDE) {
            Eight q = *(const Eight *)(query + i);
            UNROLL
            for (int j = 0; j < WIDE; j++) sums[j] += q * *(const Eight *)(keys + j * channels + i);
        }
        sums_of_lanes(sums, &together);
        *(Eight *)(scores + source) = together * scale;
    }
    for (; source < sources; source++, keys += channels)
        scores[source] = product_of(query, keys, channels) * scale;
}

INLINE void hide(float *scores, int64_t count, const void *mask, int32_t kind) {
    const float *added = mask;
    const uint8_t *seen = mask;
    if (kind == OCTAVO_ADDED_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] += added[i];
    if (kind == OCTAVO_BOOLEAN_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] = seen[i] ? scores[i] : -INFINITY;
}

/* Returns the factor by which the exponentials in the place of scores become shares; 0 where all
 * sources are hidden. */
INLINE float to_shares(float *scores, int64_t count) {
    float largest = largest_of(scores, count), sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float share = exponential(scores[i + j] - largest, 0.0f);
            scores[i + j] = share;
            sums[j] += share;
        }
    for (int j = 0; j < LANES; j++) sum += sums[j];
    for (; i < count; i++) {
        scores[i] = exponential(scores[i] - largest, 0.0f);
        sum += scores[i];
    }
    return largest != largest ? largest : sum < 0.5f ? 0.0f : 1.0f / sum;
}

/* So many vectors of channels of the mean of values. */
INLINE void mix_tile(
    const float *shares, const float *values, int64_t sources, int64_t channels, float factor,
    float *out, const int tile) {
    Eight sums[TILE];
    UNROLL
    for (int j = 0; j < tile; j++) sums[j] = (Eight){0};
    for (int64_t source = 0; source < sources; source++, values += channels) {
        float share = shares[source];
        UNROLL
        for (int j = 0; j < tile; j++) sums[j] += share * *(const Eight *)(values + j * WIDE);
    }
    UNROLL
    for (int j = 0; j < tile; j++) *(Eight *)(out + j * WIDE) = sums[j] * factor;
}

INLINE void mix(
    const float *shares, const float *values, int64_t sources, int64_t channels, float factor,
    float *out) {
    int64_t i = 0;
    for (; i + TILE * WIDE <= channels; i += TILE * WIDE)
        mix_tile(shares, values + i, sources, channels, factor, out + i, TILE);
    for (; i < channels; i += WIDE)
        mix_tile(shares, values + i, sources, channels, factor, out + i, 1);
}

INLINE void attend_row(
    const float *query, const float *keys, const float *values, int64_t sources, int64_t channels,
    float scale, const void *mask, int32_t kind, float *scores, float *out) {
    find_scores(query, keys, sources, channels, scale, scores);
    hide(scores, sources, mask, kind);
    mix(scores, values, sources, channels, to_shares(scores, sources), out);
}

#define ROWS(SET, TARGET)                                                                        \
    TARGET static void normalized_##SET(                                                         \
        const float *x, int64_t count, const octavo_norm *norm, float *y) {                      \
        normalized(x, count, norm, y);                                                           \
    }                                                                                            \
    TARGET static void rotated_##SET(                                                            \
        float *x, int64_t count, const float *cosine, const float *sine) {                       \
        rotated(x, count, cosine, sine);                                                         \
    }                                                                                            \
    TARGET static void attend_##SET(                                                             \
        const float *query, const float *keys, const float *values, int64_t sources,             \
        int64_t channels, float scale, const void *mask, int32_t kind, float *scores,            \
        float *out) {                                                                            \
        attend_row(query, keys, values, sources, channels, scale, mask, kind, scores, out);      \
    }                                                                                            \
    static const octavo_float_rows rows_##SET = {normalized_##SET, rotated_##SET, attend_##SET};

ROWS(portable, )
#if defined(__x86_64__)
ROWS(avx2, AVX2)
ROWS(avx512, VNNI)
#endif

const octavo_float_rows *octavo_float_rows_of_this_cpu(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return &rows_avx512;
    case OCTAVO_AVX2: return &rows_avx2;
#endif
    default: return &rows_portable;
    }
}
