/* Scores of a query with its sources, and what becomes of them: shares. */
#ifndef OCTAVO_SCORES_H
#define OCTAVO_SCORES_H

#include "activations.h"
#include "float_vectors.h"

typedef int32_t Places __attribute__((vector_size(32)));

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

/* The first source that a query sees. */
INLINE int64_t first_seen(const octavo_head_queries *h, int64_t query) {
    int64_t seen = h->seen + query * h->growth;
    return h->window && seen > h->window ? seen - h->window : 0;
}

#endif
