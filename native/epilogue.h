/* What becomes of a layer's sums, `octavo_epilogue`: written once, compiled for each instruction set. */
#ifndef OCTAVO_EPILOGUE_H
#define OCTAVO_EPILOGUE_H

#include "activations.h"
#include "octavo.h"

#define FOR_LANES for (int64_t i = 0; i < count; i++)

/* Runs of up to 16 channels, and where they are: the first one's channel and its index in the result, how
 * far the next one's are from there, and where channels end. */
typedef struct {
    int64_t channel, channel_step, end, at, at_step;
} Runs;

enum { MOST_RUNS = 16 };

INLINE void to_floats(
    const octavo_epilogue *e, const int32_t *sums, int64_t channel, int64_t at, float *v,
    const int64_t count) {
    const float *scales = e->scales + channel, *bias = e->bias + channel;
    FOR_LANES v[i] = (float)sums[i] * scales[i] + bias[i];
    if (e->addend && e->addend_scale == 0.0f) {
        const float *addend = (const float *)e->addend + at;
        FOR_LANES v[i] += addend[i];
    } else if (e->addend) {
        const uint8_t *addend = (const uint8_t *)e->addend + at;
        FOR_LANES v[i] += (float)(addend[i] - e->addend_zero_point) * e->addend_scale;
    }
}

/* What loops read is copied first: the compiler has to expect that bytes are written over it. */
INLINE void store_floats(
    const octavo_epilogue *e, const float *v, int64_t at, void *y, const int64_t count) {
    const float scale = e->out_scale;
    const float low = (float)(e->out_low - e->out_zero_point);
    const float high = (float)(e->out_high - e->out_zero_point);
    if (scale == 0.0f) {
        memcpy((float *)y + at, v, (size_t)count * 4);
        return;
    }
    int32_t q[LANES];
    FOR_LANES q[i] = rounded(clipped(v[i] / scale, low, high)) + e->out_zero_point;
    uint8_t *stored = (uint8_t *)y + at;
    FOR_LANES stored[i] = (uint8_t)q[i];
}

/* The sums of runs, 16 places for each. All of them go through the activation at once, since one
 * vector alone would wait for itself. */
INLINE void finish_runs(
    const octavo_epilogue *e, const int32_t *sums, int64_t runs, const Runs *place, void *y) {
    float v[MOST_RUNS * LANES];
    for (int64_t i = 0; i < runs; i++) {
        int64_t channel = place->channel + i * place->channel_step, at = place->at + i * place->at_step;
        int64_t count = place->end - channel;
        if (count >= LANES) {
            to_floats(e, sums + i * LANES, channel, at, v + i * LANES, LANES);
        } else {
            memset(v + i * LANES, 0, LANES * 4);
            if (count > 0) to_floats(e, sums + i * LANES, channel, at, v + i * LANES, count);
        }
    }
    octavo_activate(e->activation, e->low, e->high, v, runs * LANES);
    for (int64_t i = 0; i < runs; i++) {
        int64_t at = place->at + i * place->at_step;
        int64_t count = place->end - place->channel - i * place->channel_step;
        if (count >= LANES)
            store_floats(e, v + i * LANES, at, y, LANES);
        else if (count > 0)
            store_floats(e, v + i * LANES, at, y, count);
    }
}

/* The sums of `count` <= LANES channels from `channel` on, at index `at` of the result. */
INLINE void finish(
    const octavo_epilogue *e, const int32_t *sums, int64_t channel, int64_t count, int64_t at,
    void *y) {
    Runs one = {channel, 0, channel + count, at, 0};
    finish_runs(e, sums, 1, &one, y);
}

/* ---- with intrinsics, for some endings ---- */

/* What becomes of sums: with a clip for an activation or none they are cut, where an addend of uint8
 * is added in front, or where nothing needs to be done for it; or they go through these activations. */
typedef enum { BARE, CUT, ADDED, SILU, HARDSWISH, ANY_ENDING } Ending;

INLINE int is_clipped(const octavo_epilogue *e) {
    return e->out_scale > 0.0f && !(e->addend && e->addend_scale == 0.0f) &&
           (e->activation == OCTAVO_NO_ACTIVATION || e->activation == OCTAVO_CLIP);
}

/* Never BARE, which depends on channels. */
INLINE Ending ending_of(const octavo_epilogue *e) {
    if (is_clipped(e)) return e->addend ? ADDED : CUT;
    if (e->addend || !(e->out_scale > 0.0f)) return ANY_ENDING;
    return e->activation == OCTAVO_SILU        ? SILU
           : e->activation == OCTAVO_HARDSWISH ? HARDSWISH
                                               : ANY_ENDING;
}

/* What is the same for all pixels of up to 16 channels; not known where any ending will do. Scales
 * and bias are in steps of the result, divided once, unless an activation is in between: then a factor
 * makes steps of its result. */
typedef struct {
    int32_t first[BLOCK] __attribute__((aligned(64))); /* what sums begin at */
    int64_t channel, count;
    float scales[BLOCK], bias[BLOCK], low, high, addend_scale, factor;
    Ending ending;
} Prepared;

/* Whether nothing but rounding is left to do: the zero point is 0, bytes are cut at 0 and 255, and all
 * that may become of sums of int32 fits into int32. */
INLINE int is_bare(const Prepared *p, int32_t zero_point) {
    const float most = 2147483648.0f;
    const int64_t count = BLOCK;
    int bare = zero_point == 0 && rounded(p->low) == 0 && rounded(p->high) == UINT8_MAX;
    FOR_LANES bare &= fabsf(p->scales[i]) * most + fabsf(p->bias[i]) < most; /* no with NaN */
    return bare;
}

INLINE void prepare(Prepared *p, const octavo_convolution *c, int64_t channel, int64_t count) {
    const octavo_epilogue *e = &c->epilogue;
    *p = (Prepared){.channel = channel, .count = count, .ending = ending_of(e)};
    for (int64_t i = 0; i < count; i++) p->first[i] = -c->in_zero_point * c->weight_sums[channel + i];
    if (p->ending == ANY_ENDING) return;
    const float scale = p->ending == SILU || p->ending == HARDSWISH ? 1.0f : e->out_scale;
    FOR_LANES p->scales[i] = e->scales[channel + i] / scale;
    FOR_LANES p->bias[i] = e->bias[channel + i] / scale;
    p->low = (float)(e->out_low - e->out_zero_point);
    p->high = (float)(e->out_high - e->out_zero_point);
    p->addend_scale = e->addend_scale / e->out_scale;
    p->factor = 1.0f / (p->ending == HARDSWISH ? 6.0f * e->out_scale : e->out_scale);
    if (e->activation == OCTAVO_CLIP) {
        float low = clipped(e->low / e->out_scale, p->low, p->high);
        p->high = clipped(e->high / e->out_scale, p->low, p->high);
        p->low = low;
    }
    if (p->ending == CUT && is_bare(p, e->out_zero_point)) p->ending = BARE;
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

/* Half of 16 sums, as integers that are stored. */
INLINE AVX2 __m256i half_stored(
    const octavo_epilogue *e, const Prepared *p, const int32_t *sums, const uint8_t *addend, int half) {
    __m256 v = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)sums + half));
    v = _mm256_fmadd_ps(
        v, _mm256_loadu_ps(p->scales + 8 * half), _mm256_loadu_ps(p->bias + 8 * half));
    if (addend) {
        __m256i steps = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(addend + 8 * half)));
        steps = _mm256_sub_epi32(steps, _mm256_set1_epi32(e->addend_zero_point));
        v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(steps), _mm256_set1_ps(p->addend_scale), v);
    }
    v = _mm256_max_ps(v, _mm256_set1_ps(p->low)); /* NaN becomes low */
    v = _mm256_min_ps(v, _mm256_set1_ps(p->high));
    return _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(e->out_zero_point));
}

INLINE AVX2 void finish_avx2(
    const octavo_epilogue *e, const Prepared *p, const int32_t *sums, int64_t at, void *y) {
    if (!is_clipped(e)) {
        finish(e, sums, p->channel, p->count, at, y);
        return;
    }
    uint8_t part[BLOCK];
    const uint8_t *addend = e->addend ? (const uint8_t *)e->addend + at : NULL;
    if (addend && p->count < BLOCK) addend = memcpy(part, addend, (size_t)p->count);
    __m256i both = _mm256_packs_epi32(
        half_stored(e, p, sums, addend, 0), half_stored(e, p, sums, addend, 1));
    both = _mm256_permute4x64_epi64(both, 0xd8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    if (p->count == BLOCK) {
        _mm_storeu_si128((__m128i *)((uint8_t *)y + at), bytes);
    } else {
        _mm_storeu_si128((__m128i *)part, bytes);
        memcpy((uint8_t *)y + at, part, (size_t)p->count);
    }
}

/* ---- AVX512 ---- */

/* 16 channels' constants, in registers; integers are cut as bytes, where one register has 64 of them. */
typedef struct {
    __m512 scales, bias, addend_scale, factor;
    __m512i addend_zero_point, zero_point, low, high;
} Prepared512;

INLINE VNNI Prepared512 in_registers(const octavo_epilogue *e, const Prepared *p) {
    return (Prepared512){
        _mm512_loadu_ps(p->scales), _mm512_loadu_ps(p->bias), _mm512_set1_ps(p->addend_scale),
        _mm512_set1_ps(p->factor),
        _mm512_set1_epi32(e->addend_zero_point), _mm512_set1_epi16((int16_t)e->out_zero_point),
        _mm512_set1_epi8((char)(rounded(p->low) + e->out_zero_point)),
        _mm512_set1_epi8((char)(rounded(p->high) + e->out_zero_point))};
}

/* Sums as integers, in front of the zero point. What is beyond int16 stays so: NaN and what is too low
 * becomes the least int32. The addend is read where it is ADDED. */
INLINE VNNI __m512i in_steps(
    __m512i sums, __m512i addend, const Prepared512 *p, const Ending ending) {
    __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), p->scales, p->bias);
    if (ending == BARE) return _mm512_cvtps_epi32(v);
    if (ending == ADDED) {
        __m512 steps = _mm512_cvtepi32_ps(_mm512_sub_epi32(addend, p->addend_zero_point));
        v = _mm512_fmadd_ps(steps, p->addend_scale, v);
    }
    if (ending == SILU) v = scaled_silu(v, p->factor);
    if (ending == HARDSWISH) v = scaled_hardswish(v, p->factor);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(INT16_MAX), v));
}

/* Four registers of such integers as those that are stored, as packing of lanes leaves them. */
INLINE VNNI __m512i in_bytes(const __m512i steps[4], const Prepared512 *p, const Ending ending) {
    __m512i a = _mm512_packs_epi32(steps[0], steps[1]), b = _mm512_packs_epi32(steps[2], steps[3]);
    if (ending == BARE) return _mm512_packus_epi16(a, b);
    a = _mm512_adds_epi16(a, p->zero_point), b = _mm512_adds_epi16(b, p->zero_point);
    return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), p->low), p->high);
}

/* As finish_runs, with vectors of 16. */
INLINE VNNI __mmask16 lanes_of(const Runs *place, int64_t i) {
    int64_t count = place->end - place->channel - i * place->channel_step;
    return count >= BLOCK ? 0xffff : (__mmask16)((1u << (count > 0 ? count : 0)) - 1);
}

INLINE VNNI void finish_runs_vnni(
    const octavo_epilogue *e, const int32_t *sums, int64_t runs, const Runs *place, void *y) {
    float v[MOST_RUNS * BLOCK] __attribute__((aligned(64)));
    for (int64_t i = 0; i < runs; i++) {
        int64_t channel = place->channel + i * place->channel_step, at = place->at + i * place->at_step;
        __mmask16 lanes = lanes_of(place, i);
        __m512 value = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * BLOCK)),
            _mm512_maskz_loadu_ps(lanes, e->scales + channel),
            _mm512_maskz_loadu_ps(lanes, e->bias + channel));
        if (e->addend && e->addend_scale == 0.0f) {
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, (const float *)e->addend + at));
        } else if (e->addend) {
            const uint8_t *addend = (const uint8_t *)e->addend + at;
            __m512i steps = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, addend));
            steps = _mm512_sub_epi32(steps, _mm512_set1_epi32(e->addend_zero_point));
            value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(steps), _mm512_set1_ps(e->addend_scale), value);
        }
        _mm512_store_ps(v + i * BLOCK, value);
    }
    octavo_activate(e->activation, e->low, e->high, v, runs * BLOCK);
    const __m512 scale = _mm512_set1_ps(e->out_scale);
    const __m512 low = _mm512_set1_ps((float)(e->out_low - e->out_zero_point));
    const __m512 high = _mm512_set1_ps((float)(e->out_high - e->out_zero_point));
    for (int64_t i = 0; i < runs; i++) {
        int64_t at = place->at + i * place->at_step;
        __mmask16 lanes = lanes_of(place, i);
        __m512 value = _mm512_load_ps(v + i * BLOCK);
        if (e->out_scale == 0.0f) {
            _mm512_mask_storeu_ps((float *)y + at, lanes, value);
            continue;
        }
        value = _mm512_max_ps(_mm512_div_ps(value, scale), low); /* NaN becomes low */
        __m512i steps = _mm512_cvtps_epi32(_mm512_min_ps(value, high));
        steps = _mm512_add_epi32(steps, _mm512_set1_epi32(e->out_zero_point));
        _mm_mask_storeu_epi8((uint8_t *)y + at, lanes, _mm512_cvtepi32_epi8(steps));
    }
}

#endif

#endif
