/* What becomes of a layer's sums, `octavo_epilogue`: written once, compiled for each instruction set. */
#ifndef OCTAVO_EPILOGUE_H
#define OCTAVO_EPILOGUE_H

#include "activations.h"
#include "octavo.h"

#define FOR_LANES for (int64_t i = 0; i < count; i++)

INLINE void activate(const octavo_epilogue *e, float *v, const int64_t count) {
    switch (e->activation) {
    case OCTAVO_CLIP: FOR_LANES v[i] = clipped(v[i], e->low, e->high); break;
    case OCTAVO_HARDSWISH: FOR_LANES v[i] = hardswish(v[i]); break;
    case OCTAVO_HARDSIGMOID: FOR_LANES v[i] = hardsigmoid(v[i]); break;
    case OCTAVO_SILU: FOR_LANES v[i] = silu(v[i]); break;
    case OCTAVO_SIGMOID: FOR_LANES v[i] = sigmoid(v[i]); break;
    case OCTAVO_GELU: FOR_LANES v[i] = gelu(v[i]); break;
    case OCTAVO_GELU_TANH: FOR_LANES v[i] = gelu_tanh(v[i]); break;
    case OCTAVO_TANH: FOR_LANES v[i] = tanhyp(v[i]); break;
    }
}

INLINE void finish_lanes(
    const octavo_epilogue *e, const int32_t *sums, int64_t channel, int64_t at, void *y,
    const int64_t count) {
    const float *scales = e->scales + channel, *bias = e->bias + channel;
    float v[LANES];
    FOR_LANES v[i] = (float)sums[i] * scales[i] + bias[i];
    if (e->addend) {
        const uint8_t *addend = e->addend + at;
        FOR_LANES v[i] += (float)(addend[i] - e->addend_zero_point) * e->addend_scale;
    }
    activate(e, v, count);
    if (e->out_scale == 0.0f) {
        memcpy((float *)y + at, v, (size_t)count * 4);
        return;
    }
    float low = (float)(e->out_low - e->out_zero_point), high = (float)(e->out_high - e->out_zero_point);
    uint8_t *q = (uint8_t *)y + at;
    FOR_LANES {
        int32_t steps = rounded(clipped(v[i] / e->out_scale, low, high));
        q[i] = (uint8_t)(steps + e->out_zero_point);
    }
}

/* Whether an epilogue rounds and has no activation, but for a clip. */
INLINE int is_clipped(const octavo_epilogue *e) {
    return e->out_scale > 0.0f && (e->activation == OCTAVO_NO_ACTIVATION || e->activation == OCTAVO_CLIP);
}

/* The floats that an epilogue of this kind cuts to before it rounds, and what it then multiplies by. */
typedef struct {
    float low, high, inverse;
} Rounding;

INLINE Rounding rounding_of(const octavo_epilogue *e) {
    float low = (float)(e->out_low - e->out_zero_point) * e->out_scale;
    float high = (float)(e->out_high - e->out_zero_point) * e->out_scale;
    int clips = e->activation == OCTAVO_CLIP;
    return (Rounding){
        clips ? clipped(e->low, low, high) : low, clips ? clipped(e->high, low, high) : high,
        1.0f / e->out_scale};
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

#endif
