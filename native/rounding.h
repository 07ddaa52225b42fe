/* What kernels of several files share: targets, and rounding that is compiled for each of them. */
#ifndef OCTAVO_ROUNDING_H
#define OCTAVO_ROUNDING_H

#include <float.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
/* A loop whose variables stay in registers: however often it runs, that is known. */
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")))
#endif

enum { BLOCK = 16, LANES = 16 };

/* Adding this rounds a float, half to even: there it has no fractions. */
#define NO_FRACTIONS 12582912.0f

/* Lowest and highest, zero among them; both NaN where a value is not finite. */
INLINE void find_bounds(const float *x, int64_t count, float *low, float *high) {
    float lows[LANES] = {0}, highs[LANES] = {0}, odd[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float v = x[i + j];
            lows[j] = v < lows[j] ? v : lows[j];
            highs[j] = v > highs[j] ? v : highs[j];
            odd[j] += v * 0.0f;
        }
    for (; i < count; i++) {
        lows[0] = x[i] < lows[0] ? x[i] : lows[0];
        highs[0] = x[i] > highs[0] ? x[i] : highs[0];
        odd[0] += x[i] * 0.0f;
    }
    for (int j = 1; j < LANES; j++) {
        lows[0] = lows[j] < lows[0] ? lows[j] : lows[0];
        highs[0] = highs[j] > highs[0] ? highs[j] : highs[0];
        odd[0] += odd[j];
    }
    *low = lows[0] + odd[0];
    *high = highs[0] + odd[0];
}

INLINE int32_t rounded(float x) { return (int32_t)((x + NO_FRACTIONS) - NO_FRACTIONS); }

INLINE float clipped(float x, float low, float high) {
    x = x > low ? x : low; /* NaN too */
    return x < high ? x : high;
}

/* The step of which the largest of a row has so many; NaN where a value is not finite. */
INLINE float step_of(const float *x, int64_t count, float most_steps) {
    float low, high;
    find_bounds(x, count, &low, &high);
    float most = -low > high ? -low : high;
    return most == most ? (most > FLT_MIN * most_steps ? most / most_steps : FLT_MIN) : most;
}

#endif
