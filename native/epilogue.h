/* What becomes of a layer's sums, `octavo_epilogue`: written once, compiled for each instruction set. */
#ifndef OCTAVO_EPILOGUE_H
#define OCTAVO_EPILOGUE_H

#include "activations.h"
#include "octavo.h"

#define FOR_LANES for (int64_t i = 0; i < count; i++)

INLINE void activate(int32_t activation, float low, float high, float *v, const int64_t count) {
    switch (activation) {
    case OCTAVO_CLIP: FOR_LANES v[i] = clipped(v[i], low, high); break;
    case OCTAVO_HARDSWISH: FOR_LANES v[i] = hardswish(v[i]); break;
    case OCTAVO_HARDSIGMOID: FOR_LANES v[i] = hardsigmoid(v[i]); break;
    case OCTAVO_SILU: FOR_LANES v[i] = silu(v[i]); break;
    case OCTAVO_SIGMOID: FOR_LANES v[i] = sigmoid(v[i]); break;
    case OCTAVO_GELU: FOR_LANES v[i] = gelu(v[i]); break;
    case OCTAVO_GELU_TANH: FOR_LANES v[i] = gelu_tanh(v[i]); break;
    case OCTAVO_TANH: FOR_LANES v[i] = tanhyp(v[i]); break;
    }
}

/* What loops read is copied first: the compiler has to expect that bytes are written over it. */
INLINE void finish_lanes(
    const octavo_epilogue *e, const int32_t *sums, int64_t channel, int64_t at, void *y,
    const int64_t count) {
    const float *scales = e->scales + channel, *bias = e->bias + channel;
    const float scale = e->out_scale;
    const float low = (float)(e->out_low - e->out_zero_point);
    const float high = (float)(e->out_high - e->out_zero_point);
    float v[LANES];
    FOR_LANES v[i] = (float)sums[i] * scales[i] + bias[i];
    if (e->addend) {
        const uint8_t *addend = e->addend + at;
        FOR_LANES v[i] += (float)(addend[i] - e->addend_zero_point) * e->addend_scale;
    }
    activate(e->activation, e->low, e->high, v, count);
    if (scale == 0.0f) {
        memcpy((float *)y + at, v, (size_t)count * 4);
        return;
    }
    int32_t q[LANES];
    FOR_LANES q[i] = rounded(clipped(v[i] / scale, low, high)) + e->out_zero_point;
    uint8_t *stored = (uint8_t *)y + at;
    FOR_LANES stored[i] = (uint8_t)q[i];
}

/* The sums of `count` <= LANES channels from `channel` on, at index `at` of the result. */
INLINE void finish(
    const octavo_epilogue *e, const int32_t *sums, int64_t channel, int64_t count, int64_t at,
    void *y) {
    if (count == LANES)
        finish_lanes(e, sums, channel, at, y, LANES);
    else
        finish_lanes(e, sums, channel, at, y, count);
}

/* ---- AVX512: sums to integers in registers, where an epilogue has no activation but a clip ---- */

INLINE int is_clipped(const octavo_epilogue *e) {
    return e->out_scale > 0.0f && (e->activation == OCTAVO_NO_ACTIVATION || e->activation == OCTAVO_CLIP);
}

#if defined(__x86_64__)

/* All in steps of the result: divided once for many pixels. */
typedef struct {
    __m512 low, high, addend_scale;
    __m512i addend_zero_point, zero_point;
} Steps512;

INLINE VNNI Steps512 steps_of(const octavo_epilogue *e) {
    float low = (float)(e->out_low - e->out_zero_point);
    float high = (float)(e->out_high - e->out_zero_point);
    int clips = e->activation == OCTAVO_CLIP;
    return (Steps512){
        _mm512_set1_ps(clips ? clipped(e->low / e->out_scale, low, high) : low),
        _mm512_set1_ps(clips ? clipped(e->high / e->out_scale, low, high) : high),
        _mm512_set1_ps(e->addend_scale / e->out_scale), _mm512_set1_epi32(e->addend_zero_point),
        _mm512_set1_epi32(e->out_zero_point)};
}

/* Scales or biases of 16 channels, of which the mask has those that there are. */
INLINE VNNI __m512 in_steps(const octavo_epilogue *e, const float *values, __mmask16 mask) {
    return _mm512_div_ps(_mm512_maskz_loadu_ps(mask, values), _mm512_set1_ps(e->out_scale));
}

/* The integers that sums are stored as; `addend` is NULL where nothing is added. */
INLINE VNNI __m512i stored(
    __m512i sums, __m512 scales, __m512 bias, const __m512i *addend, const Steps512 *in) {
    __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scales, bias);
    if (addend) {
        __m512 steps = _mm512_cvtepi32_ps(_mm512_sub_epi32(*addend, in->addend_zero_point));
        v = _mm512_fmadd_ps(steps, in->addend_scale, v);
    }
    v = _mm512_min_ps(_mm512_max_ps(v, in->low), in->high); /* NaN becomes low */
    return _mm512_add_epi32(_mm512_cvtps_epi32(v), in->zero_point);
}

#endif

#endif
