/* Keys and values of a head as products read them: less 128, fours of values by 16 columns. */
#ifndef OCTAVO_HEADS_H
#define OCTAVO_HEADS_H

#include "rounding.h"

enum { FOUR = 4 };

/* Four rows of 16 values, less 128, with four of a row beside four of the next: to `to`, and so many bytes
 * on for each four of the columns. */
INLINE void pack_four_keys(const uint8_t *from, int64_t stride, int8_t *to, const int64_t step) {
#if defined(__x86_64__)
    __m128i rows[FOUR];
    for (int i = 0; i < FOUR; i++)
        rows[i] = _mm_xor_si128(
            _mm_loadu_si128((const __m128i *)(from + i * stride)), _mm_set1_epi8((char)0x80));
    __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpacklo_epi32(rows[2], rows[3]);
    __m128i c = _mm_unpackhi_epi32(rows[0], rows[1]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128((__m128i *)(to + step), _mm_unpackhi_epi64(a, b));
    _mm_storeu_si128((__m128i *)(to + 2 * step), _mm_unpacklo_epi64(c, d));
    _mm_storeu_si128((__m128i *)(to + 3 * step), _mm_unpackhi_epi64(c, d));
#else
    for (int64_t row = 0; row < FOUR; row++)
        for (int64_t i = 0; i < BLOCK; i++)
            to[i / FOUR * step + row * FOUR + i % FOUR] = (int8_t)(from[row * stride + i] ^ 0x80);
#endif
}

/* Four rows of 16 values, less 128, each value of a column beside that of the next row. */
INLINE void pack_four_values(const uint8_t *from, int64_t stride, int8_t *to) {
#if defined(__x86_64__)
    __m128i rows[FOUR];
    for (int i = 0; i < FOUR; i++)
        rows[i] = _mm_xor_si128(
            _mm_loadu_si128((const __m128i *)(from + i * stride)), _mm_set1_epi8((char)0x80));
    __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpacklo_epi8(rows[2], rows[3]);
    __m128i c = _mm_unpackhi_epi8(rows[0], rows[1]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128((__m128i *)(to + BLOCK), _mm_unpackhi_epi16(a, b));
    _mm_storeu_si128((__m128i *)(to + 2 * BLOCK), _mm_unpacklo_epi16(c, d));
    _mm_storeu_si128((__m128i *)(to + 3 * BLOCK), _mm_unpackhi_epi16(c, d));
#else
    for (int64_t row = 0; row < FOUR; row++)
        for (int64_t i = 0; i < BLOCK; i++) to[FOUR * i + row] = (int8_t)(from[row * stride + i] ^ 0x80);
#endif
}

INLINE int32_t sum_of_bytes(const uint8_t *from, int64_t count) {
    int32_t sum = 0;
    int64_t i = 0;
#if defined(__x86_64__)
    __m128i sums = _mm_setzero_si128();
    for (; i + BLOCK <= count; i += BLOCK) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
    }
    sum = _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
#endif
    for (; i < count; i++) sum += from[i];
    return sum;
}

/* Keys [rows, columns] to [rows / 16][width / 4][16][4], and the sum of each. */
INLINE void pack_keys(
    const uint8_t *from, int64_t stride, int64_t rows, int64_t columns, int64_t width, int8_t *to,
    int32_t *sums) {
    int64_t rows_of_four = rows / FOUR * FOUR, whole = columns / BLOCK * BLOCK;
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    if (rows % BLOCK || columns != width) memset(to, 0, (size_t)(blocks * BLOCK * width));
    for (int64_t row = rows; row < blocks * BLOCK; row++) sums[row] = 0;
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *key = from + row * stride;
        int8_t *place = to + row / BLOCK * BLOCK * width + row % BLOCK * FOUR;
        sums[row] = sum_of_bytes(key, columns) - 128 * (int32_t)columns;
        int64_t begin = row < rows_of_four ? whole : 0;
        if (begin && row % FOUR == 0)
            for (int64_t i = 0; i < whole; i += BLOCK)
                pack_four_keys(key + i, stride, place + i * BLOCK, FOUR * BLOCK);
        for (int64_t i = begin; i < columns; i++)
            place[i / FOUR * FOUR * BLOCK + i % FOUR] = (int8_t)(key[i] ^ 0x80);
    }
}

/* Values [sources, channels] to [channels / 16][width / 4][16][4]. */
INLINE void pack_values(
    const uint8_t *from, int64_t stride, int64_t sources, int64_t channels, int64_t width, int8_t *to) {
    int64_t fours = sources / FOUR * FOUR, blocks = (channels + BLOCK - 1) / BLOCK;
    if (sources != width || channels % BLOCK) memset(to, 0, (size_t)(blocks * BLOCK * width));
    for (int64_t block = 0; block < channels; block += BLOCK) {
        int64_t count = channels - block < BLOCK ? channels - block : BLOCK;
        int64_t begin = count == BLOCK ? fours : 0;
        for (int64_t row = 0; row < begin; row += FOUR)
            pack_four_values(from + row * stride + block, stride, to + block * width + row * BLOCK);
        for (int64_t row = begin; row < sources; row++) {
            const uint8_t *value = from + row * stride + block;
            int8_t *place = to + (block * width + row / FOUR * FOUR * BLOCK) + row % FOUR;
            for (int64_t i = 0; i < count; i++) place[FOUR * i] = (int8_t)(value[i] ^ 0x80);
        }
    }
}

#endif
