/* What kernels of several files share: targets, and rounding that is compiled for each of them. */
#ifndef OCTAVO_ROUNDING_H
#define OCTAVO_ROUNDING_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* Floats to uint8, half to even by a scale and zero point, cut to low..high. */
INLINE void round_floats(
    const float *x, int64_t count, float scale, int32_t zero_point, int32_t low, int32_t high,
    uint8_t *q) {
    float least = (float)(low - zero_point), most = (float)(high - zero_point);
    for (int64_t i = 0; i < count; i++)
        q[i] = (uint8_t)(rounded(clipped(x[i] / scale, least, most)) + zero_point);
}

/* The bits of a float as an integer of the same order, and back; a NaN is beyond both infinities. */
INLINE int32_t in_order(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

/* At least the lowest float; NaN if one is NaN, or infinite and positive. */
INLINE float largest_of(const float *scores, int64_t count) {
    const float lowest = -FLT_MAX, infinity = INFINITY, lowest_of_all = -INFINITY;
    int32_t most, least, bits;
    memcpy(&bits, &lowest, 4);
    most = least = in_order(bits);
    for (int64_t i = 0; i < count; i++) {
        memcpy(&bits, scores + i, 4);
        int32_t own = in_order(bits);
        most = own > most ? own : most;
        least = own < least ? own : least;
    }
    memcpy(&bits, &infinity, 4);
    int32_t too_much = in_order(bits);
    memcpy(&bits, &lowest_of_all, 4);
    if (most >= too_much || least < in_order(bits)) return NAN;
    bits = in_order(most);
    float largest;
    memcpy(&largest, &bits, 4);
    return largest;
}

/* The step of which the largest of a row has so many; NaN where a value is not finite. */
INLINE float step_of(const float *x, int64_t count, float most_steps) {
    float low, high;
    find_bounds(x, count, &low, &high);
    float most = -low > high ? -low : high;
    return most == most ? (most > FLT_MIN * most_steps ? most / most_steps : FLT_MIN) : most;
}

#endif
