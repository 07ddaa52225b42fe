/* Rows of attention: scores to rounded exponentials, and sums of values to their mean.
 *
 * Both come as sums of integers, in float32; those of tiles (AMX) in int32.
 */
#ifndef OCTAVO_SHARES_H
#define OCTAVO_SHARES_H

#include "activations.h"
#include "octavo.h"
#include "rounding.h"

/* What a row's sums mean. */
typedef struct {
    float scale;  /* of a sum */
    float levels; /* of the largest exponential */
    int32_t mask_kind;
    const void *mask;
} Scores;

/* ---- written once and compiled for each instruction set ---- */

INLINE void mask_row(float *scores, int64_t count, const Scores *meant) {
    const float *added = meant->mask;
    const uint8_t *seen = meant->mask;
    if (meant->mask_kind == OCTAVO_ADDED_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] += added[i];
    if (meant->mask_kind == OCTAVO_BOOLEAN_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] = seen[i] ? scores[i] : -INFINITY;
}

/* A row of sums to exponentials in steps, 0..levels, and the sum of these; NaN where a score is none. Both
 * have room for whole vectors. */
INLINE float round_row(float *scores, int64_t count, const Scores *meant, uint8_t *q) {
    int64_t whole = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = 0; i < count; i++) scores[i] *= meant->scale;
    mask_row(scores, count, meant);
    for (int64_t i = count; i < whole; i++) scores[i] = -INFINITY;
    float largest = largest_of(scores, whole);
    if (largest != largest) {
        memset(q, 0, (size_t)count);
        return largest;
    }
    int32_t sum = 0;
    for (int64_t i = 0; i < whole; i++) {
        int32_t steps = rounded(exponential(scores[i] - largest, 0.0f) * meant->levels);
        q[i] = (uint8_t)steps;
        sum += steps;
    }
    return (float)sum;
}

/* The sums of values less 128, to their mean: exact where they are whole numbers of a float. */
INLINE void store_row(const octavo_attention_call *call, const float *sums, float sum, char *out) {
    int64_t count = call->value_channels;
    float shift = sum * (float)(128 - call->v.zero_point);
    float worth = sum == 0.0f ? 0.0f : call->v.scale / sum;
    if (call->out_scale == 0.0f) {
        float *to = (float *)out;
        for (int64_t i = 0; i < count; i++) to[i] = (sums[i] + shift) * worth;
        return;
    }
    float mean[BLOCK];
    for (int64_t block = 0; block < count; block += BLOCK) {
        int64_t size = count - block < BLOCK ? count - block : BLOCK;
        for (int64_t i = 0; i < size; i++) mean[i] = (sums[block + i] + shift) * worth;
        round_floats(
            mean, size, call->out_scale, call->out_zero_point, call->out_low, call->out_high,
            (uint8_t *)out + block);
    }
}

#if defined(__x86_64__)

/* ---- AVX512 ---- */

enum { LINE = 64 };

/* How scores below the largest become levels. */
typedef struct {
    __m512 octaves;  /* of a score */
    __m512 terms[5]; /* levels * 2^f by powers of f, to less than a thousandth of a level */
} Exponent;

INLINE VNNI Exponent exponent_of(float scale, float levels) {
    const float terms[] = {1.0f, 6.93044841e-1f, 2.41280213e-1f, 5.22424467e-2f, 1.34267006e-2f};
    Exponent e = {.octaves = _mm512_set1_ps(scale * 1.44269504088896341f)};
    UNROLL for (int i = 0; i < 5; i++) e.terms[i] = _mm512_set1_ps(levels * terms[i]);
    return e;
}

INLINE VNNI __m512i levels_of(__m512 below, const Exponent *e) {
    __m512 x = _mm512_mul_ps(below, e->octaves), part = e->terms[4];
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    UNROLL for (int i = 3; i >= 0; i--) part = _mm512_fmadd_ps(part, f, e->terms[i]);
    return _mm512_cvtps_epi32(_mm512_scalef_ps(part, x));
}

/* The lowest bytes of 64 integers, in their order; what is beyond 0..255 is cut. */
INLINE VNNI __m512i in_bytes_of_four(const __m512i v[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i two = _mm512_packs_epi32(v[0], v[1]), next = _mm512_packs_epi32(v[2], v[3]);
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(two, next));
}

INLINE VNNI __mmask16 lanes_of(int64_t count) {
    return (__mmask16)(count < LANES ? count < 0 ? 0 : (1 << count) - 1 : 0xffff);
}

INLINE VNNI __m512 sums_at(const void *sums, int64_t i, const int whole_numbers) {
    const char *at = (const char *)sums + 4 * i;
    return whole_numbers ? _mm512_cvtepi32_ps(_mm512_loadu_si512(at)) : _mm512_loadu_ps(at);
}

/* Sums to scores in float, in place; the largest of them, NaN where one is none. */
INLINE VNNI float mask_row_vnni(void *sums, int64_t count, const Scores *meant, const int whole_numbers) {
    const __m512 infinity = _mm512_set1_ps(INFINITY), hidden = _mm512_set1_ps(-INFINITY);
    const __m512 scale = _mm512_set1_ps(meant->scale);
    const float *added = meant->mask;
    const uint8_t *seen = meant->mask;
    __m512 largest = _mm512_set1_ps(-FLT_MAX);
    __mmask16 wrong = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        __mmask16 lanes = lanes_of(count - i);
        __m512 score = sums_at(sums, i, whole_numbers);
        if (meant->mask_kind == OCTAVO_ADDED_MASK) {
            score = _mm512_fmadd_ps(score, scale, _mm512_maskz_loadu_ps(lanes, added + i));
        } else {
            score = _mm512_mul_ps(score, scale);
            if (meant->mask_kind == OCTAVO_BOOLEAN_MASK) {
                __m128i bytes = _mm_maskz_loadu_epi8(lanes, seen + i);
                lanes = _mm_test_epi8_mask(bytes, bytes);
            }
        }
        score = _mm512_mask_blend_ps(lanes, hidden, score);
        wrong |= _mm512_cmp_ps_mask(score, infinity, _CMP_NLT_UQ);
        largest = _mm512_max_ps(score, largest);
        _mm512_storeu_ps((float *)sums + i, score);
    }
    return wrong ? NAN : _mm512_reduce_max_ps(largest);
}

/* The largest sum. */
INLINE VNNI float largest_sum(const void *sums, int64_t count, const int whole_numbers) {
    __m512i most = _mm512_set1_epi32(INT32_MIN);
    __m512 largest = _mm512_set1_ps(-FLT_MAX);
    int64_t whole = count - count % LANES;
    __mmask16 rest = lanes_of(count - whole);
    if (whole_numbers) {
        const int32_t *x = sums;
        for (int64_t i = 0; i < whole; i += LANES)
            most = _mm512_max_epi32(most, _mm512_loadu_si512(x + i));
        most = _mm512_mask_max_epi32(most, rest, most, _mm512_maskz_loadu_epi32(rest, x + whole));
        return (float)_mm512_reduce_max_epi32(most);
    }
    const float *x = sums;
    for (int64_t i = 0; i < whole; i += LANES)
        largest = _mm512_max_ps(largest, _mm512_loadu_ps(x + i));
    largest = _mm512_mask_max_ps(largest, rest, largest, _mm512_maskz_loadu_ps(rest, x + whole));
    return _mm512_reduce_max_ps(largest);
}

/* Whether exponentials are of the sums as they are, times a number. */
INLINE VNNI int are_plain(const Scores *meant) {
    return meant->mask_kind == OCTAVO_NO_MASK && meant->scale > 0.0f && meant->scale < 1e30f;
}

/* The largest of a row's sums, or of what they become by a mask, in place; NaN where a score is none. */
INLINE VNNI float largest_score(
    void *sums, int64_t count, const Scores *meant, const int whole_numbers) {
    return are_plain(meant) ? largest_sum(sums, count, whole_numbers)
                            : mask_row_vnni(sums, count, meant, whole_numbers);
}

INLINE VNNI __m512i line_of_levels(
    const void *scores, int64_t count, float largest, const Exponent *e, const int whole_numbers,
    const int is_whole) {
    __m512i steps[4];
    UNROLL for (int j = 0; j < 4; j++) {
        steps[j] = _mm512_setzero_si512();
        if (!is_whole && j * LANES >= count) continue;
        __m512 own = sums_at(scores, j * LANES, whole_numbers);
        steps[j] = levels_of(_mm512_sub_ps(own, _mm512_set1_ps(largest)), e);
        if (!is_whole) steps[j] = _mm512_maskz_mov_epi32(lanes_of(count - j * LANES), steps[j]);
    }
    return in_bytes_of_four(steps);
}

INLINE VNNI float add_up_levels(
    const void *scores, int64_t count, float largest, float scale, float levels, uint8_t *q,
    const int whole_numbers) {
    const __m512i ones = _mm512_set1_epi8(1);
    const Exponent e = exponent_of(scale, levels);
    __m512i sum = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + LINE <= count; i += LINE) {
        const char *from = (const char *)scores + 4 * i;
        __m512i line = line_of_levels(from, LINE, largest, &e, whole_numbers, 1);
        sum = _mm512_dpbusd_epi32(sum, line, ones);
        _mm512_storeu_si512(q + i, line);
    }
    if (i < count) {
        const char *from = (const char *)scores + 4 * i;
        __m512i line = line_of_levels(from, count - i, largest, &e, whole_numbers, 0);
        sum = _mm512_dpbusd_epi32(sum, line, ones);
        _mm512_storeu_si512(q + i, line);
    }
    return (float)_mm512_reduce_add_epi32(sum);
}

/* As round_row, with the largest score in hand; writes whole lines of q. */
INLINE VNNI float round_row_vnni(
    const void *sums, int64_t count, float largest, const Scores *meant, uint8_t *q,
    const int whole_numbers) {
    if (largest != largest) {
        memset(q, 0, (size_t)((count + LINE - 1) / LINE * LINE));
        return largest;
    }
    if (are_plain(meant))
        return add_up_levels(sums, count, largest, meant->scale, meant->levels, q, whole_numbers);
    return add_up_levels(sums, count, largest, 1.0f, meant->levels, q, 0);
}

/* As store_row, but for one rounding: the mean is not divided by its step, but its worth is. */
INLINE VNNI void store_row_vnni(
    const octavo_attention_call *call, const void *sums, float sum, char *out,
    const int whole_numbers) {
    int64_t count = call->value_channels;
    int is_rounded = call->out_scale != 0.0f;
    float worth = sum == 0.0f ? 0.0f : call->v.scale / sum;
    const __m512 shift = _mm512_set1_ps(sum * (float)(128 - call->v.zero_point));
    const __m512 factor = _mm512_set1_ps(is_rounded ? worth / call->out_scale : worth);
    const int32_t zero_point = call->out_zero_point;
    const __m512 low = _mm512_set1_ps((float)(call->out_low - zero_point));
    const __m512 high = _mm512_set1_ps((float)(call->out_high - zero_point));
    if (!is_rounded)
        for (int64_t i = 0; i < count; i += LANES) {
            __m512 own = _mm512_add_ps(sums_at(sums, i, whole_numbers), shift);
            _mm512_mask_storeu_ps((float *)out + i, lanes_of(count - i), _mm512_mul_ps(own, factor));
        }
    else
        for (int64_t i = 0; i < count; i += LINE) {
            __m512i steps[4];
            UNROLL for (int j = 0; j < 4; j++) {
                steps[j] = _mm512_setzero_si512();
                if (i + j * LANES >= count) continue;
                __m512 own = _mm512_add_ps(sums_at(sums, i + j * LANES, whole_numbers), shift);
                own = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(own, factor), low), high);
                steps[j] = _mm512_add_epi32(_mm512_cvtps_epi32(own), _mm512_set1_epi32(zero_point));
            }
            uint64_t left = (uint64_t)(count - i);
            __mmask64 bytes = left < LINE ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
            _mm512_mask_storeu_epi8(out + i, bytes, in_bytes_of_four(steps));
        }
}

#endif
#endif
