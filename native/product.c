/* Products of rows of integers (reading.c) with int8 weights.
 *
 * With VNNI a row is uint8: one digit of each value, or two, whose products are summed as 256 * upper +
 * lower. Without, it is int16, and pairs of products are summed in int32, since pairs of uint8 x int8
 * overflow int16. Both read the weights once.
 */
#include <string.h>

#include "products.h"

/* ---- every CPU ---- */

/* So many columns at a time: their products fit into an int32. */
enum { PORTABLE_COLUMNS = 512, AVX2_COLUMNS = 1024 };

static void product_portable(
    const octavo_matrix *m, int64_t first, int64_t last, const octavo_rows *rows, int64_t count,
    float *y) {
    int64_t columns = m->columns;
    for (int64_t block = first; block < last; block++)
        for (int64_t r = 0; r < count; r++) {
            const int16_t *x = (const int16_t *)(rows->digits + r * 2 * columns);
            float sums[BLOCK] = {0};
            for (int64_t begin = 0; begin < columns; begin += PORTABLE_COLUMNS) {
                int64_t end = begin + PORTABLE_COLUMNS < columns ? begin + PORTABLE_COLUMNS : columns;
                int32_t part[BLOCK] = {0};
                for (int64_t k = begin; k < end; k += 4) {
                    const int8_t *w = m->weights + (block * columns + k) * BLOCK;
                    for (int n = 0; n < BLOCK; n++)
                        part[n] += x[k] * w[4 * n] + x[k + 1] * w[4 * n + 1] +
                                   x[k + 2] * w[4 * n + 2] + x[k + 3] * w[4 * n + 3];
                }
                for (int n = 0; n < BLOCK; n++) sums[n] += (float)part[n];
            }
            const float *scales = m->scales + block * BLOCK, *bias = m->bias + block * BLOCK;
            float *out = y + r * m->rows + block * BLOCK;
            for (int n = 0; n < BLOCK; n++) out[n] = sums[n] * (scales[n] * rows->scales[r]) + bias[n];
        }
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

/* One block, `count` rows, so many columns that sums fit: each sum in two lanes side by side. */
INLINE AVX2 void part_avx2(
    const int8_t *w, const int16_t *const *x, int64_t columns, __m256i sums[2][4], const int count) {
    __m256i part[2][4];
    for (int r = 0; r < count; r++)
        for (int i = 0; i < 4; i++) part[r][i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < columns; k += 4) {
        __m256i four[2];
        for (int r = 0; r < count; r++) {
            int64_t bits;
            memcpy(&bits, x[r] + k, 8);
            four[r] = _mm256_set1_epi64x(bits);
        }
        for (int i = 0; i < 4; i++) {
            const __m128i *p = (const __m128i *)(w + k * BLOCK + 16 * i);
            __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(p));
            for (int r = 0; r < count; r++)
                part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(weights, four[r]));
        }
    }
    for (int r = 0; r < count; r++)
        for (int i = 0; i < 4; i++) sums[r][i] = part[r][i];
}

/* Functions of their own, so that nothing else wants registers. */
#define NOINLINE static __attribute__((noinline))

NOINLINE AVX2 void part_of_one_row(
    const int8_t *w, const int16_t *const *x, int64_t columns, __m256i sums[2][4]) {
    part_avx2(w, x, columns, sums, 1);
}

NOINLINE AVX2 void part_of_two_rows(
    const int8_t *w, const int16_t *const *x, int64_t columns, __m256i sums[2][4]) {
    part_avx2(w, x, columns, sums, 2);
}

AVX2 static void tile_avx2(
    const int8_t *w, const int16_t *const *x, int64_t columns, __m256 sums[2][4], int count) {
    for (int64_t begin = 0; begin < columns; begin += AVX2_COLUMNS) {
        int64_t size = begin + AVX2_COLUMNS < columns ? AVX2_COLUMNS : columns - begin;
        const int16_t *rest[2] = {x[0] + begin, x[1] + begin};
        __m256i part[2][4];
        (count == 1 ? part_of_one_row : part_of_two_rows)(w + begin * BLOCK, rest, size, part);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < 4; i++)
                sums[r][i] = _mm256_add_ps(sums[r][i], _mm256_cvtepi32_ps(part[r][i]));
    }
}

AVX2 static void product_avx2(
    const octavo_matrix *m, int64_t first, int64_t last, const octavo_rows *rows, int64_t count,
    float *y) {
    for (int64_t block = first; block < last; block++) {
        const int8_t *w = m->weights + block * BLOCK * m->columns;
        for (int64_t r = 0; r < count; r += 2) {
            int two = r + 1 < count;
            const int16_t *x[2];
            __m256 sums[2][4];
            for (int i = 0; i < 2; i++) {
                x[i] = (const int16_t *)(rows->digits + (r + i * two) * 2 * m->columns);
                for (int j = 0; j < 4; j++) sums[i][j] = _mm256_setzero_ps();
            }
            tile_avx2(w, x, m->columns, sums, 1 + two);
            for (int i = 0; i <= two; i++)
                for (int half = 0; half < 2; half++) {
                    int64_t at = block * BLOCK + 8 * half;
                    __m256 sum = _mm256_hadd_ps(sums[i][2 * half], sums[i][2 * half + 1]);
                    sum = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(sum), 0xd8));
                    __m256 scale = _mm256_mul_ps(
                        _mm256_loadu_ps(m->scales + at), _mm256_set1_ps(rows->scales[r + i]));
                    _mm256_storeu_ps(
                        y + (r + i) * m->rows + at,
                        _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(m->bias + at)));
                }
        }
    }
}

/* ---- AVX512 with VNNI ---- */

/* The sums of so many rows of digits by blocks fit into registers. */
enum { VNNI_ROWS = 6, VNNI_BLOCKS = 4 };

/* At once, before GCC decides what stays in registers: else it stores every sum at each step. */
#define UNROLLED _Pragma("GCC unroll 16")

/* Sums of rows of digits, `pitch` bytes apart, with blocks of weights, `stride` bytes apart. */
INLINE VNNI void tile_vnni(
    const int8_t *w, int64_t stride, const uint8_t *x, int64_t pitch, int64_t columns,
    int32_t sums[VNNI_ROWS][VNNI_BLOCKS][BLOCK], const int count, const int blocks) {
    __m512i own[VNNI_ROWS][VNNI_BLOCKS];
    UNROLLED
    for (int r = 0; r < count; r++)
        UNROLLED
        for (int b = 0; b < blocks; b++) own[r][b] = _mm512_setzero_si512();
    for (int64_t k = 0; k < columns; k += 4, w += 4 * BLOCK, x += 4) {
        __m512i weights[VNNI_BLOCKS];
        UNROLLED
        for (int b = 0; b < blocks; b++) weights[b] = _mm512_loadu_si512(w + b * stride);
        UNROLLED
        for (int r = 0; r < count; r++) {
            int32_t bits;
            memcpy(&bits, x + r * pitch, 4);
            __m512i four = _mm512_set1_epi32(bits);
            UNROLLED
            for (int b = 0; b < blocks; b++)
                own[r][b] = _mm512_dpbusd_epi32(own[r][b], four, weights[b]);
        }
    }
    UNROLLED
    for (int r = 0; r < count; r++)
        UNROLLED
        for (int b = 0; b < blocks; b++) _mm512_store_si512(sums[r][b], own[r][b]);
}

typedef void (*TileVnni)(
    const int8_t *, int64_t stride, const uint8_t *, int64_t pitch, int64_t columns,
    int32_t sums[VNNI_ROWS][VNNI_BLOCKS][BLOCK]);

/* Each number of rows and blocks is a function by itself, so that sums stay in registers. */
#define TILE_VNNI(ROWS, BLOCKS)                                                             \
    VNNI static void tile_vnni_##ROWS##_##BLOCKS(                                           \
        const int8_t *w, int64_t stride, const uint8_t *x, int64_t pitch, int64_t columns,  \
        int32_t sums[VNNI_ROWS][VNNI_BLOCKS][BLOCK]) {                                      \
        tile_vnni(w, stride, x, pitch, columns, sums, ROWS, BLOCKS);                        \
    }
#define NAME_VNNI(ROWS, BLOCKS) tile_vnni_##ROWS##_##BLOCKS,
#define OF_ROWS(NAME, BLOCKS)                                                               \
    NAME(1, BLOCKS) NAME(2, BLOCKS) NAME(3, BLOCKS) NAME(4, BLOCKS) NAME(5, BLOCKS) NAME(6, BLOCKS)

OF_ROWS(TILE_VNNI, 1)
OF_ROWS(TILE_VNNI, 2)
OF_ROWS(TILE_VNNI, 3)
OF_ROWS(TILE_VNNI, 4)
static const TileVnni tiles_vnni[VNNI_BLOCKS][VNNI_ROWS] = {
    {OF_ROWS(NAME_VNNI, 1)}, {OF_ROWS(NAME_VNNI, 2)},
    {OF_ROWS(NAME_VNNI, 3)}, {OF_ROWS(NAME_VNNI, 4)}};

VNNI static void product_vnni(
    const octavo_matrix *m, int64_t first, int64_t last, const octavo_rows *rows, int64_t count,
    float *y) {
    int64_t columns = m->columns, stride = BLOCK * columns;
    int64_t digits = rows->two_digits ? 2 : 1, pitch = 2 * columns / digits;
    int32_t sums[VNNI_ROWS][VNNI_BLOCKS][BLOCK] __attribute__((aligned(64)));
    for (int64_t block = first; block < last; block += VNNI_BLOCKS) {
        int64_t blocks = last - block < VNNI_BLOCKS ? last - block : VNNI_BLOCKS;
        for (int64_t r = 0; r < count; r += VNNI_ROWS / digits) {
            int64_t taken = count - r < VNNI_ROWS / digits ? count - r : VNNI_ROWS / digits;
            tiles_vnni[blocks - 1][taken * digits - 1](
                m->weights + block * stride, stride, rows->digits + 2 * r * columns, pitch, columns,
                sums);
            for (int64_t i = 0; i < taken; i++)
                for (int64_t b = 0; b < blocks; b++)
                    if (digits == 2)
                        finish_row(m, block + b, rows, r + i, sums[2 * i][b], sums[2 * i + 1][b], y, 1);
                    else
                        finish_row(m, block + b, rows, r + i, sums[i][b], NULL, y, 0);
        }
    }
}

#endif

/* ---- which of them ---- */

void octavo_product(
    const octavo_matrix *matrix, int64_t first, int64_t last, const octavo_rows *rows,
    int64_t count, float *y) {
    if (octavo_fills_tiles(matrix, count)) {
        octavo_tile_product(matrix, first, last, rows, count, y);
        return;
    }
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: product_vnni(matrix, first, last, rows, count, y); return;
    case OCTAVO_AVX2: product_avx2(matrix, first, last, rows, count, y); return;
#endif
    default: product_portable(matrix, first, last, rows, count, y);
    }
}
