/* What products of rows have in common: product.c, tile_products.c. */
#ifndef OCTAVO_PRODUCTS_H
#define OCTAVO_PRODUCTS_H

#include "octavo.h"
#include "rounding.h"

/* Whether so many rows are worth tiles on this CPU; then their products, as octavo_product has them. */
int octavo_fills_tiles(const octavo_matrix *matrix, int64_t count);
void octavo_tile_product(
    const octavo_matrix *matrix, int64_t first, int64_t last, const octavo_rows *rows,
    int64_t count, float *y);

#if defined(__x86_64__)

/* The results of a row with a block of weights, of its digits' sums; lower ones where it has two. */
INLINE VNNI void finish_row(
    const octavo_matrix *m, int64_t block, const octavo_rows *rows, int64_t row, const int32_t *upper,
    const int32_t *lower, float *y, const int two_digits) {
    const int64_t at = block * BLOCK;
    const __m512i zero_point = _mm512_set1_epi32(two_digits ? 128 : rows->zero_points[row]);
    __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(
        _mm512_load_si512(upper), _mm512_mullo_epi32(_mm512_loadu_si512(m->sums + at), zero_point)));
    if (two_digits)
        sum = _mm512_fmadd_ps(
            sum, _mm512_set1_ps(256), _mm512_cvtepi32_ps(_mm512_load_si512(lower)));
    __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(m->scales + at), _mm512_set1_ps(rows->scales[row]));
    _mm512_storeu_ps(
        y + row * m->rows + at, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(m->bias + at)));
}

#endif
#endif
