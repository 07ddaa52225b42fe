/* Stored integers of kernels without weights, and how such a kernel is compiled for each target. */
#ifndef OCTAVO_STORED_H
#define OCTAVO_STORED_H

#include "octavo.h"
#include "rounding.h"

/* What a chunk makes, of so many: from first to last. */
#define SHARE(first, last, count) \
    int64_t first = (count) * chunk / chunks, last = (count) * (chunk + 1) / chunks

/* The integer of a value; NaN becomes the lowest. */
INLINE uint8_t stored(float x, const octavo_integers *out) {
    float zero = (float)out->zero_point;
    float steps = clipped(x / out->scale, (float)out->low - zero, (float)out->high - zero);
    return (uint8_t)(rounded(steps) + out->zero_point);
}

INLINE float meant(uint8_t q, const octavo_integers *in) {
    return (float)(q - in->zero_point) * in->scale;
}

/* The function `name` of a step, out of one that is inlined into one for each target. */
#if defined(__x86_64__)
#define FOR_EACH_SET(name, step_type, share)                                           \
    static void name##_portable(const step_type *s, int t, int n) { share(s, t, n); }  \
    AVX2 static void name##_avx2(const step_type *s, int t, int n) { share(s, t, n); } \
    VNNI static void name##_vnni(const step_type *s, int t, int n) { share(s, t, n); } \
    void name(const step_type *s, int t, int n) {                                      \
        int set = octavo_isa();                                                        \
        if (set >= OCTAVO_AVX512_VNNI)                                                 \
            name##_vnni(s, t, n);                                                      \
        else if (set >= OCTAVO_AVX2)                                                   \
            name##_avx2(s, t, n);                                                      \
        else                                                                           \
            name##_portable(s, t, n);                                                  \
    }
#else
#define FOR_EACH_SET(name, step_type, share) \
    void name(const step_type *s, int t, int n) { share(s, t, n); }
#endif

#endif
