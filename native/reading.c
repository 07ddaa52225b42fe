/* Rows rounded to integers, as products read them.
 *
 * With VNNI a row is uint8: integers as they come, or floats of 16 bits as two digits. Without, it is
 * int16.
 */
#include <math.h>
#include <string.h>

#include "octavo.h"
#include "rounding.h"

enum { HALF = 32767 };

/* ---- rounding, written once and compiled for each instruction set ---- */

/* As octavo::fake_quantize_dynamic finds them; the zero point is that of stored integers. */
INLINE void range_to_scale(octavo_reading *r, float low, float high) {
    const float smallest = 1.0842021724855044e-19f;
    int32_t shift = r->low < 0 ? -r->low : 0;
    float zero_point = 0;
    if (r->symmetric) {
        int32_t steps = r->high < -r->low ? r->high : -r->low;
        r->scale = (-low > high ? -low : high) / (float)steps;
    } else {
        /* Of halves, which are the same to the bit: of all finite values none is beyond floats. */
        r->scale = (0.5f * high - 0.5f * low) / (0.5f * (float)(r->high - r->low));
    }
    if (r->scale < smallest) r->scale = smallest;
    if (!r->symmetric)
        zero_point = clipped(
            (float)r->low - nearbyintf(low / r->scale), (float)r->low, (float)r->high);
    r->zero_point = (int32_t)zero_point + shift;
}

INLINE void find_range(octavo_reading *reading, const float *x, int64_t count) {
    float low, high;
    find_bounds(x, count, &low, &high);
    range_to_scale(reading, low, high);
}

/* Floats to stored integers, by a scale. */
INLINE void to_integers(const float *x, int64_t count, const octavo_reading *r, uint8_t *q) {
    int32_t shift = r->low < 0 ? -r->low : 0;
    float zero_point = (float)r->zero_point, low = (float)(r->low + shift),
          high = (float)(r->high + shift), scale = r->scale;
    for (int64_t i = 0; i < count; i++) {
        float steps = clipped(x[i] / scale, -1024, 1024);
        steps = (steps + NO_FRACTIONS) - NO_FRACTIONS;
        q[i] = (uint8_t)(int32_t)clipped(steps + zero_point, low, high);
    }
}

INLINE void to_int16(const float *x, int64_t count, float step, int16_t *q) {
    float inverse = 1.0f / step;
    for (int64_t i = 0; i < count; i++) q[i] = (int16_t)rounded(clipped(x[i] * inverse, -HALF, HALF));
}

typedef void ToIntegers(const float *x, int64_t count, const octavo_reading *r, uint8_t *q);
typedef void ToTwoDigits(const float *x, int64_t count, float step, uint8_t *upper, uint8_t *lower);

/* With VNNI where there is a function that makes two digits. */
INLINE void read_row(
    octavo_rows *rows, int64_t index, const void *x, int64_t width, const octavo_reading *reading,
    ToIntegers *to_integers, ToTwoDigits *to_two_digits) {
    const int vnni = to_two_digits != NULL;
    int64_t columns = rows->columns;
    uint8_t *digits = rows->digits + index * 2 * columns;
    if (reading->how == OCTAVO_FLOATS) {
        float step = step_of(x, width, HALF);
        rows->scales[index] = step;
        rows->zero_points[index] = 0;
        if (vnni)
            to_two_digits(x, width, step, digits, digits + columns);
        else
            to_int16(x, width, step, (int16_t *)digits);
    } else {
        octavo_reading own = *reading;
        uint8_t *q = vnni ? digits : digits + columns; /* int16 overtake them from the front */
        if (own.how == OCTAVO_ROW_RANGE) {
            float low, high;
            find_bounds(x, width, &low, &high);
            range_to_scale(&own, low, high);
        }
        if (own.how == OCTAVO_INTEGERS)
            memcpy(q, x, (size_t)width);
        else
            to_integers(x, width, &own, q);
        rows->scales[index] = own.scale;
        rows->zero_points[index] = own.zero_point;
        if (!vnni)
            for (int64_t i = 0; i < width; i++) {
                int16_t value = (int16_t)(q[i] - own.zero_point);
                memcpy(digits + 2 * i, &value, 2);
            }
    }
    /* What stands behind a row meets weights of zero. */
    int64_t size = vnni && reading->how != OCTAVO_FLOATS ? 1 : 2;
    if (vnni)
        for (int64_t digit = 0; digit < size; digit++)
            memset(digits + digit * columns + width, 0, (size_t)(columns - width));
    else
        memset(digits + 2 * width, 0, (size_t)(2 * (columns - width)));
}

/* ---- every CPU ---- */

static void read_row_portable(
    octavo_rows *rows, int64_t i, const void *x, int64_t width, const octavo_reading *reading) {
    read_row(rows, i, x, width, reading, to_integers, NULL);
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

AVX2 static void read_row_avx2(
    octavo_rows *rows, int64_t i, const void *x, int64_t width, const octavo_reading *reading) {
    read_row(rows, i, x, width, reading, to_integers, NULL);
}

AVX2 static void find_range_avx2(octavo_reading *reading, const float *x, int64_t count) {
    find_range(reading, x, count);
}

/* ---- AVX512 ---- */

/* So many lanes of 16, or none, or all. */
INLINE VNNI __mmask16 lanes_from(int64_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1);
}

/* Packing of lanes leaves four bytes of each of four vectors side by side. */
INLINE VNNI __m512i in_order_of_lanes(void) {
    return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

/* 32 floats, of which so many are there, as integers of 16 bits. */
INLINE VNNI __m512i sixteen_bits(const float *x, int64_t count, __m512 inverse) {
    __m512i two[2];
    UNROLL
    for (int i = 0; i < 2; i++) {
        __m512 own = _mm512_maskz_loadu_ps(lanes_from(count - 16 * i), x + 16 * i);
        two[i] = _mm512_cvtps_epi32(_mm512_mul_ps(own, inverse));
    }
    return _mm512_packs_epi32(two[0], two[1]);
}

/* No value has more than HALF steps: the largest may have a little more by its own step, and is rounded. */
VNNI static void to_two_digits_vnni(
    const float *x, int64_t count, float step, uint8_t *upper, uint8_t *lower) {
    const __m512i order = in_order_of_lanes();
    const __m512i sign = _mm512_set1_epi16((int16_t)0x8000), byte = _mm512_set1_epi16(255);
    const __m512 inverse = _mm512_set1_ps(1.0f / step);
    for (int64_t i = 0; i < count; i += 64) {
        __mmask64 there = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
        __m512i a = _mm512_xor_si512(sixteen_bits(x + i, count - i, inverse), sign);
        __m512i b = _mm512_xor_si512(sixteen_bits(x + i + 32, count - i - 32, inverse), sign);
        __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        __m512i low = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
        _mm512_mask_storeu_epi8(upper + i, there, _mm512_permutexvar_epi32(order, high));
        _mm512_mask_storeu_epi8(lower + i, there, _mm512_permutexvar_epi32(order, low));
    }
}

/* Quotients rounded, of which a reciprocal gives all that are not within some of its errors of a half. */
INLINE VNNI __m512i quotients(__m512 x, __m512 scale, __m512 inverse) {
    const __m512 near_a_half = _mm512_set1_ps(0.5f - 0x1p-11f);
    const __m512 most = _mm512_set1_ps(1024), least = _mm512_set1_ps(-1024);
    __m512 steps = _mm512_mul_ps(x, inverse);
    __m512 part = _mm512_sub_ps(steps, _mm512_roundscale_ps(steps, 0));
    if (_mm512_cmp_ps_mask(_mm512_abs_ps(part), near_a_half, _CMP_NLE_UQ))
        steps = _mm512_div_ps(x, scale);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(steps, least), most));
}

VNNI static void to_integers_vnni(const float *x, int64_t count, const octavo_reading *r, uint8_t *q) {
    int32_t shift = r->low < 0 ? -r->low : 0;
    const __m512i zero_point = _mm512_set1_epi32(r->zero_point);
    const __m512i low = _mm512_set1_epi8((char)(r->low + shift));
    const __m512i high = _mm512_set1_epi8((char)(r->high + shift));
    const __m512 scale = _mm512_set1_ps(r->scale), inverse = _mm512_set1_ps(1.0f / r->scale);
    for (int64_t i = 0; i < count; i += 64) {
        __m512i steps[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            __m512 own = _mm512_maskz_loadu_ps(lanes_from(count - i - 16 * j), x + i + 16 * j);
            steps[j] = _mm512_add_epi32(quotients(own, scale, inverse), zero_point);
        }
        __m512i bytes = _mm512_packus_epi16(
            _mm512_packs_epi32(steps[0], steps[1]), _mm512_packs_epi32(steps[2], steps[3]));
        bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, low), high);
        __mmask64 there = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
        _mm512_mask_storeu_epi8(q + i, there, _mm512_permutexvar_epi32(in_order_of_lanes(), bytes));
    }
}

VNNI static void read_row_vnni(
    octavo_rows *rows, int64_t i, const void *x, int64_t width, const octavo_reading *reading) {
    read_row(rows, i, x, width, reading, to_integers_vnni, to_two_digits_vnni);
}

VNNI static void find_range_vnni(octavo_reading *reading, const float *x, int64_t count) {
    find_range(reading, x, count);
}

#endif

/* ---- which of them ---- */

void octavo_find_range(octavo_reading *reading, const float *x, int64_t count) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: find_range_vnni(reading, x, count); return;
    case OCTAVO_AVX2: find_range_avx2(reading, x, count); return;
#endif
    default: find_range(reading, x, count);
    }
}

void octavo_read_row(
    octavo_rows *rows, int64_t index, const void *x, int64_t width, const octavo_reading *reading) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: read_row_vnni(rows, index, x, width, reading); return;
    case OCTAVO_AVX2: read_row_avx2(rows, index, x, width, reading); return;
#endif
    default: read_row_portable(rows, index, x, width, reading);
    }
}
