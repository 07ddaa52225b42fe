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

/* The bits of a float as an integer of the same order, and back; a NaN is beyond both infinities. */
INLINE int32_t in_order(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

/* As such integers. */
#define POSITIVE_INFINITY 0x7f800000
#define NEGATIVE_INFINITY (-0x7f800001)

INLINE int32_t ordered(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return in_order(bits);
}

INLINE float from_order(int32_t bits) {
    float value;
    bits = in_order(bits);
    memcpy(&value, &bits, 4);
    return value;
}

/* Lowest and highest, zero among them; both NaN where a value is not finite. By their bits, whose
 * largest are found with vector instructions: as signed integers of the positive ones, as unsigned ones of
 * the negative. */
INLINE void find_bounds(const float *x, int64_t count, float *low, float *high) {
    const uint32_t minus_zero = 0x80000000u;
    int32_t most = 0;
    uint32_t least = minus_zero;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        most = bits > most ? bits : most;
        least = (uint32_t)bits > least ? (uint32_t)bits : least;
    }
    int finite = most < POSITIVE_INFINITY && least < minus_zero + POSITIVE_INFINITY;
    memcpy(high, &most, 4);
    memcpy(low, &least, 4);
    if (least == minus_zero) *low = 0;
    if (!finite) *low = *high = NAN;
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

/* At least the lowest float; NaN if one is NaN, or infinite and positive. */
INLINE float largest_of(const float *x, int64_t count) {
    int32_t most = ordered(-FLT_MAX), least = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = ordered(x[i]);
        most = bits > most ? bits : most;
        least = bits < least ? bits : least;
    }
    return most >= POSITIVE_INFINITY || least < NEGATIVE_INFINITY ? NAN : from_order(most);
}

/* The step of which the largest of a row has so many; NaN where a value is not finite. */
INLINE float step_of(const float *x, int64_t count, float most_steps) {
    int32_t largest = 0; /* magnitude, whose bits are in the order of floats */
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= POSITIVE_INFINITY) return NAN;
    float most = from_order(largest);
    return most > FLT_MIN * most_steps ? most / most_steps : FLT_MIN;
}

#endif
