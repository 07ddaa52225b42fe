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

INLINE float sum_of(const float *x, int64_t count, float mean, const int squares) {
    Eight sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * WIDE <= count; i += 4 * WIDE)
        for (int j = 0; j < 4; j++) {
            Eight values = *(const Eight *)(x + i + j * WIDE) - mean;
            if (squares) values *= values;
            sums[j] += values;
        }
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = sum_of_lanes(sums);
    for (; i < count; i++) sum += squares ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return sum;
}

INLINE void normalized(const float *x, int64_t count, const octavo_norm *norm, float *y) {
    float mean = norm->centered ? sum_of(x, count, 0, 0) / (float)count : 0.0f;
    float factor = 1.0f / sqrtf(sum_of(x, count, mean, 1) / (float)count + norm->eps);
    for (int64_t i = 0; i < count; i++) y[i] = (x[i] - mean) * factor * (norm->more + norm->weight[i]);
    if (norm->bias)
        for (int64_t i = 0; i < count; i++) y[i] += norm->bias[i];
}

/* A head's channels, in place: the first half with the second. */
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

/* What becomes of the scores of sources from `first` on before they are compared. */
INLINE void shape_scores(
    const octavo_head_queries *h, int64_t query, int64_t first, int64_t count, float *scores) {
    if (h->softcap != 0.0f) {
        float inverse = 1.0f / h->softcap;
        for (int64_t i = 0; i < count; i++) scores[i] = h->softcap * tanhyp(scores[i] * inverse);
    }
    if (h->slope != 0.0f)
        for (int64_t i = 0; i < count; i++) scores[i] += h->slope * (float)(first + i);
    if (h->mask_kind == OCTAVO_NO_MASK) return;
    const char *mask = (const char *)h->mask + query * h->mask_stride;
    const float *added = (const float *)mask + first;
    const uint8_t *seen = (const uint8_t *)mask + first;
    if (h->mask_kind == OCTAVO_ADDED_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] += added[i];
    if (h->mask_kind == OCTAVO_BOOLEAN_MASK)
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

/* The first source that a query sees. */
INLINE int64_t first_seen(const octavo_head_queries *h, int64_t query) {
    int64_t seen = h->seen + query;
    return h->window && seen > h->window ? seen - h->window : 0;
}

INLINE void attend_row(const octavo_head_queries *h, int64_t query) {
    int64_t first = first_seen(h, query), count = h->seen + query - first;
    const float *keys = h->keys + first * h->channels, *values = h->values + first * h->channels;
    find_scores(
        h->queries + query * h->query_stride, keys, count, h->channels, h->scale, h->scores);
    shape_scores(h, query, first, count, h->scores);
    float factor = to_shares(h->scores, count);
    mix(h->scores, values, count, h->channels, factor, h->out + query * h->out_stride);
}

/* ---- several queries together, which read each key and value once ---- */

typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));
enum { KEYS = OCTAVO_PACKED_KEYS, MIXED_ROWS = 4, MIXED = 4 };

/* Scores of so many queries with 16 keys. */
INLINE void tile_of_scores(
    const octavo_head_queries *h, const float *packed, float *scores, int64_t stride, const int count) {
    Sixteen sums[OCTAVO_QUERIES];
    UNROLL
    for (int q = 0; q < count; q++) sums[q] = (Sixteen){0};
    for (int64_t i = 0; i < h->channels; i++, packed += KEYS) {
        Sixteen keys = *(const Sixteen *)packed;
        UNROLL
        for (int q = 0; q < count; q++) sums[q] += h->queries[q * h->query_stride + i] * keys;
    }
    UNROLL
    for (int q = 0; q < count; q++) *(Sixteen *)(scores + q * stride) = sums[q] * h->scale;
}

/* So many rows of 16 * `wide` channels of means of values. */
INLINE void tile_of_means(
    const float *shares, int64_t stride, const float *values, int64_t sources, int64_t channels,
    const float *factors, float *out, int64_t out_stride, const int rows, const int wide) {
    Sixteen sums[MIXED_ROWS][MIXED];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int j = 0; j < wide; j++) sums[r][j] = (Sixteen){0};
    for (int64_t source = 0; source < sources; source++, values += channels) {
        Sixteen own[MIXED];
        UNROLL
        for (int j = 0; j < wide; j++) own[j] = *(const Sixteen *)(values + j * KEYS);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float share = shares[r * stride + source];
            UNROLL
            for (int j = 0; j < wide; j++) sums[r][j] += share * own[j];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int j = 0; j < wide; j++)
            *(Sixteen *)(out + r * out_stride + j * KEYS) = sums[r][j] * factors[r];
}

INLINE void attend_tile(const octavo_head_queries *h) {
    const int64_t channels = h->channels, end = h->seen + OCTAVO_QUERIES - 1;
    const int64_t begin = first_seen(h, 0) / KEYS * KEYS, stride = (end - begin + KEYS - 1) / KEYS * KEYS;
    float *scores = h->scores, factors[OCTAVO_QUERIES];
    for (int64_t source = begin; source < end; source += KEYS)
        tile_of_scores(
            h, h->packed + source * channels, scores + source - begin, stride, OCTAVO_QUERIES);
    for (int64_t q = 0; q < OCTAVO_QUERIES; q++) {
        float *row = scores + q * stride - begin;
        int64_t first = first_seen(h, q), seen = h->seen + q;
        shape_scores(h, q, first, seen - first, row + first);
        factors[q] = to_shares(row + first, seen - first);
        for (int64_t i = begin; i < first; i++) row[i] = 0;
        for (int64_t i = seen; i < end; i++) row[i] = 0;
    }
    const float *values = h->values + begin * channels;
    for (int q = 0; q < OCTAVO_QUERIES; q += MIXED_ROWS) {
        float *shares = scores + q * stride, *out = h->out + q * h->out_stride;
        int64_t i = 0;
        for (; i + MIXED * KEYS <= channels; i += MIXED * KEYS)
            tile_of_means(
                shares, stride, values + i, end - begin, channels, factors + q, out + i,
                h->out_stride, MIXED_ROWS, MIXED);
        for (; i + KEYS <= channels; i += KEYS)
            tile_of_means(
                shares, stride, values + i, end - begin, channels, factors + q, out + i,
                h->out_stride, MIXED_ROWS, 1);
        for (int r = 0; i < channels && r < MIXED_ROWS; r++)
            mix_tile(
                shares + r * stride, values + i, end - begin, channels, factors[q + r],
                out + r * h->out_stride + i, 1);
    }
}

INLINE void attend(const octavo_head_queries *h) {
    if (h->packed && h->count == OCTAVO_QUERIES) {
        attend_tile(h);
        return;
    }
    for (int64_t query = 0; query < h->count; query++) attend_row(h, query);
}

void octavo_pack_keys(const float *keys, int64_t count, int64_t channels, float *packed) {
    for (int64_t i = 0; i < channels; i++, packed += KEYS)
        for (int64_t key = 0; key < KEYS; key++)
            packed[key] = key < count ? keys[key * channels + i] : 0;
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
    TARGET static void attend_##SET(const octavo_head_queries *queries) { attend(queries); }     \
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
