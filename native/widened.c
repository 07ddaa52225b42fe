/* Products of many rows, rounded to eight bits each by its range, with weights of four bits.
 *
 * Weights become int8 in each call, by one scale for a row of the weight instead of one for each of
 * its groups, a few blocks at a time, which stay in a cache for all rows of x. So the products are
 * those with weights of eight bits, a quarter of the instructions of exact ones.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "octavo.h"
#include "rounding.h"

enum { PART = 4 /* blocks that a kernel takes at a time */, FOUR = 4 };

/* ---- widening, written once and compiled for each instruction set ---- */

/* The scales of 16 rows: their largest weights become 127. One that is not finite stays so. */
INLINE void widened_scales(const octavo_four_bits *m, int64_t block, float scales[BLOCK]) {
    for (int n = 0; n < BLOCK; n++) scales[n] = 0;
    for (int64_t group = 0; group < m->groups; group++) {
        int64_t at = (block * m->groups + group) * BLOCK;
        for (int n = 0; n < BLOCK; n++) {
            float zero = m->zero_points[at + n], scale = fabsf(m->scales[at + n]);
            float most = scale * (zero > 15 - zero ? zero : 15 - zero);
            scales[n] = scales[n] < most || most != most ? most : scales[n];
        }
    }
    for (int n = 0; n < BLOCK; n++) {
        scales[n] /= 127;
        if (scales[n] < FLT_MIN) scales[n] = FLT_MIN;
    }
}

/* Integers of a block as `octavo_product` reads them. */
INLINE void widen_block(
    const octavo_four_bits *m, int64_t block, int8_t *weights, float *scales, int32_t *sums) {
    const uint8_t *from = m->weights + block * m->columns * BLOCK / 2;
    int64_t size = m->columns / m->groups;
    widened_scales(m, block, scales);
    for (int n = 0; n < BLOCK; n++) sums[n] = 0;
    for (int64_t group = 0; group < m->groups; group++) {
        int64_t at = (block * m->groups + group) * BLOCK;
        float factors[BLOCK], shifts[BLOCK];
        for (int n = 0; n < BLOCK; n++) {
            factors[n] = scales[n] <= FLT_MAX ? m->scales[at + n] / scales[n] : 0;
            shifts[n] = (float)m->zero_points[at + n] * factors[n];
        }
        for (int64_t k = 0; k < size; k += 2 * FOUR, from += FOUR * BLOCK)
            for (int half = 0; half < 2; half++, weights += FOUR * BLOCK) {
                uint32_t packed[BLOCK], wide[BLOCK]; /* four columns of each row */
                memcpy(packed, from, sizeof packed);
                for (int n = 0; n < BLOCK; n++) {
                    uint32_t four = 0;
                    for (int i = 0; i < 32; i += 8) {
                        int32_t q = (packed[n] >> (i + 4 * half)) & 15;
                        q = rounded((float)q * factors[n] - shifts[n]);
                        sums[n] += q;
                        four |= ((uint32_t)q & 255) << i;
                    }
                    wide[n] = four;
                }
                memcpy(weights, wide, sizeof wide);
            }
    }
}

typedef void Widen(
    const octavo_four_bits *m, int64_t block, int8_t *weights, float *scales, int32_t *sums);

static void widen_portable(
    const octavo_four_bits *m, int64_t block, int8_t *weights, float *scales, int32_t *sums) {
    widen_block(m, block, weights, scales, sums);
}

#if defined(__x86_64__)
AVX2 static void widen_avx2(
    const octavo_four_bits *m, int64_t block, int8_t *weights, float *scales, int32_t *sums) {
    widen_block(m, block, weights, scales, sums);
}

VNNI static void widen_vnni(
    const octavo_four_bits *m, int64_t block, int8_t *weights, float *scales, int32_t *sums) {
    widen_block(m, block, weights, scales, sums);
}
#endif

static Widen *widener(void) {
#if defined(__x86_64__)
    if (octavo_isa() >= OCTAVO_AVX512_VNNI) return widen_vnni;
    if (octavo_isa() >= OCTAVO_AVX2) return widen_avx2;
#endif
    return widen_portable;
}

/* ---- threads ---- */

/* What a chunk widens at a time. */
typedef struct {
    float scales[PART * BLOCK], bias[PART * BLOCK];
    int32_t sums[PART * BLOCK];
} Values;

typedef struct {
    const octavo_four_bits *matrix;
    const float *x;
    float *y;
    int64_t count;
    octavo_rows rows;
    int8_t *widened;    /* [chunks][PART * BLOCK * columns] */
    _Atomic int is_infinite;
} Product;

static void read_rows(void *context, int chunk, int chunks) {
    static const octavo_reading reading = {.how = OCTAVO_ROW_RANGE, .low = 0, .high = 255};
    Product *product = context;
    int64_t columns = product->matrix->columns, count = product->count;
    for (int64_t r = count * chunk / chunks; r < count * (chunk + 1) / chunks; r++) {
        octavo_read_row(&product->rows, r, product->x + r * columns, columns, &reading);
        float scale = product->rows.scales[r];
        if (scale != scale) product->is_infinite = 1;
    }
}

static void multiply_part(Product *product, int64_t part, int chunk) {
    const octavo_four_bits *m = product->matrix;
    int64_t first = part * PART, blocks = m->rows / BLOCK - first, columns = m->columns;
    if (blocks > PART) blocks = PART;
    int64_t panel = octavo_panel(columns);
    int8_t *weights = product->widened + chunk * PART * BLOCK * columns;
    Values values;
    for (int64_t b = 0; b < blocks; b++)
        widener()(
            m, first + b, weights + b * BLOCK * columns, values.scales + b * BLOCK,
            values.sums + b * BLOCK);
    for (int64_t n = 0; n < blocks * BLOCK; n++) {
        values.bias[n] = m->bias ? m->bias[first * BLOCK + n] : 0;
        if (!(values.scales[n] <= FLT_MAX)) product->is_infinite = 1;
    }
    const octavo_matrix widened = {
        .weights = weights, .scales = values.scales, .sums = values.sums, .bias = values.bias,
        .rows = m->rows, .columns = columns}; /* as far apart as the rows of y are */
    for (int64_t r = 0; r < product->count; r += panel) {
        octavo_rows rows = product->rows;
        rows.digits += r * 2 * columns, rows.scales += r, rows.zero_points += r;
        int64_t taken = product->count - r < panel ? product->count - r : panel;
        octavo_product(
            &widened, 0, blocks, &rows, taken, product->y + r * m->rows + first * BLOCK);
    }
}

static int64_t parts_of(const octavo_four_bits *matrix) {
    return (matrix->rows / BLOCK + PART - 1) / PART;
}

static void multiply(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t parts = parts_of(product->matrix);
    for (int64_t part = parts * chunk / chunks; part < parts * (chunk + 1) / chunks; part++)
        multiply_part(product, part, chunk);
}

int octavo_multiply_four_bits_widened(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int threads) {
    int64_t columns = matrix->columns;
    int64_t work = count * columns * matrix->rows / OCTAVO_WORK_OF_A_THREAD + 1;
    if (work < threads) threads = (int)work;
    int chunks = octavo_chunks(parts_of(matrix), threads);
    int64_t widened = chunks * PART * BLOCK * columns;
    char *memory = malloc((size_t)(count * (2 * columns + 8) + widened));
    if (!memory) return OCTAVO_NO_MEMORY;
    float *scales = (float *)memory; /* first, where memory is aligned for them */
    int32_t *zero_points = (int32_t *)(scales + count);
    uint8_t *digits = (uint8_t *)(zero_points + count);
    Product product = {
        .matrix = matrix, .x = x, .y = y, .count = count,
        .rows = {digits, scales, zero_points, columns, 0},
        .widened = (int8_t *)digits + 2 * count * columns};
    octavo_stage stages[] = {
        {read_rows, &product, octavo_chunks(count, threads)}, {multiply, &product, chunks}};
    octavo_run_stages(stages, 2, threads);
    free(memory);
    return product.is_infinite ? OCTAVO_NOT_FINITE : 0;
}
