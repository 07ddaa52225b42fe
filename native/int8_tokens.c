/* Keys and values of a cache in int8, of which each row, what one token has in one head, has a range of its
 * own: behind its integers stand the step between two of them and what the integer 0 means, as floats. */
#include "scores.h"

enum { LARGEST = 127, TILE = 8 };

/* Eight integers as floats: GCC 12 makes 9 instructions of what the CPU does in two. */
typedef void Read(const int8_t *x, Eight *y);

static inline void read_portable(const int8_t *x, Eight *y) {
    for (int i = 0; i < WIDE; i++) (*y)[i] = x[i];
}

#if defined(__x86_64__)
#define READ(SET, TARGET)                                                                        \
    TARGET static inline void read_##SET(const int8_t *x, Eight *y) {                            \
        *y = (Eight)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)x)));  \
    }
READ(avx2, AVX2)
READ(avx512, VNNI)
#endif

/* ---- rows, written once and compiled for each instruction set ---- */

typedef struct {
    float step, middle;
} Range;

INLINE Range range_of(const int8_t *row, int64_t channels) {
    Range range;
    memcpy(&range, row + channels, sizeof range);
    return range;
}

INLINE void round_row(const float *x, int64_t channels, int8_t *row) {
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < channels; i++) {
        int32_t bits = ordered(x[i]);
        least = bits < least ? bits : least;
        most = bits > most ? bits : most;
    }
    float low = from_order(least), width = from_order(most) - low;
    Range range = {width / (2 * LARGEST), low + width / 2};
    if (!(range.step > FLT_MIN)) range.step = FLT_MIN;
    for (int64_t i = 0; i < channels; i++)
        row[i] = (int8_t)rounded(clipped((x[i] - range.middle) / range.step, -LARGEST, LARGEST));
    memcpy(row + channels, &range, sizeof range);
}

INLINE void widen_rows(
    const int8_t *rows, int64_t count, int64_t channels, float *y, Read *const read) {
    for (; count > 0; count--, rows += channels + OCTAVO_RANGE_OF_ROW, y += channels) {
        Range range = range_of(rows, channels);
        for (int64_t i = 0; i < channels; i += WIDE) {
            Eight integers;
            read(rows + i, &integers);
            *(Eight *)(y + i) = range.middle + integers * range.step;
        }
    }
}

/* ---- one query ---- */

/* A key is middle + step * integers: so is its product with a query, of which the middle takes the sum.
 * There is room behind the last score. */
INLINE void find_scores(
    const float *query, const int8_t *keys, int64_t sources, int64_t channels, float scale,
    float *scores, Read *const read) {
    const int64_t pitch = channels + OCTAVO_RANGE_OF_ROW;
    Eight total = {0};
    for (int64_t i = 0; i < channels; i += WIDE) total += *(const Eight *)(query + i);
    float sum = sum_of_lanes(&total);
    for (int64_t source = 0; source < sources; source += WIDE, keys += WIDE * pitch) {
        const int8_t *own[WIDE]; /* those that are not there are the last one again */
        Eight sums[WIDE], products, steps, middles;
        for (int j = 0; j < WIDE; j++) {
            own[j] = keys + (source + j < sources ? j : sources - 1 - source) * pitch;
            Range range = range_of(own[j], channels);
            steps[j] = range.step, middles[j] = range.middle;
            sums[j] = (Eight){0};
        }
        for (int64_t i = 0; i < channels; i += WIDE) {
            Eight q = *(const Eight *)(query + i);
            UNROLL
            for (int j = 0; j < WIDE; j++) {
                Eight integers;
                read(own[j] + i, &integers);
                sums[j] += q * integers;
            }
        }
        sums_of_lanes(sums, &products);
        *(Eight *)(scores + source) = (products * steps + sum * middles) * scale;
    }
}

/* So many vectors of channels of the mean of values. */
INLINE void mix_tile(
    const float *shares, const int8_t *values, int64_t sources, int64_t channels, int64_t first,
    float factor, float *out, Read *const read, const int tile) {
    const int64_t pitch = channels + OCTAVO_RANGE_OF_ROW;
    Eight sums[TILE];
    float middle = 0;
    UNROLL
    for (int j = 0; j < tile; j++) sums[j] = (Eight){0};
    for (int64_t source = 0; source < sources; source++, values += pitch) {
        Range range = range_of(values, channels);
        float share = shares[source] * range.step;
        middle += shares[source] * range.middle;
        UNROLL
        for (int j = 0; j < tile; j++) {
            Eight integers;
            read(values + first + j * WIDE, &integers);
            sums[j] += share * integers;
        }
    }
    UNROLL
    for (int j = 0; j < tile; j++) *(Eight *)(out + first + j * WIDE) = (sums[j] + middle) * factor;
}

INLINE void attend_row(const octavo_head_queries *h, int64_t query, Read *const read) {
    const int64_t channels = h->channels, pitch = channels + OCTAVO_RANGE_OF_ROW;
    int64_t first = first_seen(h, query), count = h->seen + query * h->growth - first, i = 0;
    const int8_t *values = h->value_rows + first * pitch;
    float *out = h->out + query * h->out_stride;
    find_scores(
        h->queries + query * h->query_stride, h->key_rows + first * pitch, count, channels, h->scale,
        h->scores, read);
    shape_scores(h, query, first, count, h->scores);
    float factor = to_shares(h->scores, count);
    for (; i + TILE * WIDE <= channels; i += TILE * WIDE)
        mix_tile(h->scores, values, count, channels, i, factor, out, read, TILE);
    for (; i < channels; i += WIDE)
        mix_tile(h->scores, values, count, channels, i, factor, out, read, 1);
}

INLINE void attend(const octavo_head_queries *h, Read *const read) {
    for (int64_t query = 0; query < h->count; query++) attend_row(h, query, read);
}

#define TOKENS(SET, TARGET)                                                                      \
    TARGET static void round_##SET(const float *x, int64_t channels, int8_t *row) {              \
        round_row(x, channels, row);                                                             \
    }                                                                                            \
    TARGET static void widen_##SET(                                                              \
        const int8_t *rows, int64_t count, int64_t channels, float *y) {                         \
        widen_rows(rows, count, channels, y, read_##SET);                                        \
    }                                                                                            \
    TARGET static void attend_##SET(const octavo_head_queries *queries) {                        \
        attend(queries, read_##SET);                                                             \
    }                                                                                            \
    static const octavo_int8_tokens tokens_##SET = {round_##SET, widen_##SET, attend_##SET};

TOKENS(portable, )
#if defined(__x86_64__)
TOKENS(avx2, AVX2)
TOKENS(avx512, VNNI)
#endif

const octavo_int8_tokens *octavo_int8_tokens_of_this_cpu(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return &tokens_avx512;
    case OCTAVO_AVX2: return &tokens_avx2;
#endif
    default: return &tokens_portable;
    }
}
