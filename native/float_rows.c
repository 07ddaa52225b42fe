/* Rows of floats in a block of a decoder: norms and rotation. */
#include "float_vectors.h"

/* ---- rows, written once and compiled for each instruction set ---- */

INLINE float sum_of(const float *x, int64_t count, float mean, const int squares) {
    Eight sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * WIDE <= count; i += 4 * WIDE)
        for (int j = 0; j < 4; j++) {
            Eight values = *(const Eight *)(x + i + j * WIDE) - mean;
            if (squares) values *= values;
            sums[j] += values;
        }
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = sum_of_lanes(sums);
    for (; i < count; i++) sum += squares ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return sum;
}

INLINE void normalized(const float *x, int64_t count, const octavo_norm *norm, float *y) {
    float mean = norm->centered ? sum_of(x, count, 0, 0) / (float)count : 0.0f;
    float factor = 1.0f / sqrtf(sum_of(x, count, mean, 1) / (float)count + norm->eps);
    for (int64_t i = 0; i < count; i++) y[i] = (x[i] - mean) * factor * (norm->more + norm->weight[i]);
    if (norm->bias)
        for (int64_t i = 0; i < count; i++) y[i] += norm->bias[i];
}

/* A head's channels, in place: the first half with the second. */
INLINE void rotated(float *x, int64_t count, const float *cosine, const float *sine) {
    int64_t half = count / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

#define ROWS(SET, TARGET)                                                                        \
    TARGET static void normalized_##SET(                                                         \
        const float *x, int64_t count, const octavo_norm *norm, float *y) {                      \
        normalized(x, count, norm, y);                                                           \
    }                                                                                            \
    TARGET static void rotated_##SET(                                                            \
        float *x, int64_t count, const float *cosine, const float *sine) {                       \
        rotated(x, count, cosine, sine);                                                         \
    }                                                                                            \
    static const octavo_float_rows rows_##SET = {normalized_##SET, rotated_##SET};

ROWS(portable, )
#if defined(__x86_64__)
ROWS(avx2, AVX2)
ROWS(avx512, VNNI)
#endif

const octavo_float_rows *octavo_float_rows_of_this_cpu(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return &rows_avx512;
    case OCTAVO_AVX2: return &rows_avx2;
#endif
    default: return &rows_portable;
    }
}
