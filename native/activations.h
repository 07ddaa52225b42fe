/* Activations of floats: plain C without branches, which is compiled again for each instruction set. */
#ifndef OCTAVO_ACTIVATIONS_H
#define OCTAVO_ACTIVATIONS_H

#include <string.h>

#include "rounding.h"

/* e^x - less, to about 2 units in the last place (S. Moshier, Cephes, expf); less is 0 or 1, and near
 * x = 0 nothing cancels. NaN stays NaN. */
INLINE float exponential(float x, float less) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504088896341f + NO_FRACTIONS, n = shifted - NO_FRACTIONS;
    float f = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000u + 127u) << 23; /* of NO_FRACTIONS */
    float power;
    memcpy(&power, &bits, 4);
    return p * power + (power - less);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x, 0.0f)); }

INLINE float tanhyp(float x) {
    float y = exponential(2.0f * x, 1.0f);
    return y / (y + 2.0f);
}

/* To a few units in the last place: a quotient of polynomials, between -4 and 4 beyond which it is
 * 1 in float (as Eigen and XLA have it). */
INLINE float error_function(float x) {
    x = clipped(x, -4.0f, 4.0f);
    float s = x * x, p = -2.72614225801306e-10f, q = -1.45660718464996e-05f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

INLINE float hardsigmoid(float x) { return clipped(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
INLINE float hardswish(float x) { return x * hardsigmoid(x); }
INLINE float silu(float x) { return x * sigmoid(x); }
INLINE float gelu(float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f)); }
INLINE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhyp(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

#if defined(__x86_64__)

/* ---- 16 at once, where results are rounded to steps behind ---- */

/* 2^x to about 3 units in the last place. */
INLINE VNNI __m512 power_of_two(__m512 x) {
    const float terms[] = {5.582631585e-02f, 2.401536178e-01f, 6.931530731e-01f, 9.999999251e-01f};
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.877575591e-03f), f, _mm512_set1_ps(8.989342716e-03f));
    UNROLL for (int i = 0; i < 4; i++) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(p, x);
}

/* silu(x) * factor */
INLINE VNNI __m512 scaled_silu(__m512 x, __m512 factor) {
    __m512 power = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504088896341f)));
    return _mm512_div_ps(_mm512_mul_ps(x, factor), _mm512_add_ps(power, _mm512_set1_ps(1.0f)));
}

/* 6 hardswish(x) * factor, in this order: x * factor may be infinite where hardswish(x) is 0. */
INLINE VNNI __m512 scaled_hardswish(__m512 x, __m512 factor) {
    __m512 part = _mm512_max_ps(_mm512_add_ps(x, _mm512_set1_ps(3.0f)), _mm512_setzero_ps());
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_min_ps(part, _mm512_set1_ps(6.0f))), factor);
}

#endif

#endif
