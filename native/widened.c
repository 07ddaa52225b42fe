/* Products of many rows with weights of four bits, which become int8 in each call, a few blocks at a
 * time, which stay in a cache for all rows of x.
 *
 * Rows of which 16 bits are kept meet weights as they are (grouped.c). For rows that are rounded to
 * eight bits each by its range, weights get one scale for a row of the weight instead of one for each
 * of its groups: so the products are those with weights of eight bits, with half of the instructions.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "rounding.h"

enum { FOUR = 4 };

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

/* ---- parts ---- */

/* What stands in front of the weights of a part. */
typedef struct {
    float scales[PART * BLOCK], bias[PART * BLOCK];
    int32_t sums[PART * BLOCK];
} Values;

int64_t octavo_widened_scratch(const octavo_four_bits *m, int how) {
    if (how == OCTAVO_MANY_ROWS) return octavo_grouped_scratch(m);
    return (int64_t)sizeof(Values) + PART * BLOCK * m->columns;
}

int octavo_widened_product(
    const octavo_four_bits *m, int how, int64_t part, const octavo_rows *all, int64_t count,
    float *y, void *scratch) {
    if (how == OCTAVO_MANY_ROWS) {
        octavo_grouped_product(m, part, all, count, y, scratch);
        return 1;
    }
    int64_t first = part * PART, blocks = m->rows / BLOCK - first, columns = m->columns;
    if (blocks > PART) blocks = PART;
    int64_t panel = octavo_panel(columns);
    int is_finite = 1;
    Values *values = scratch;
    int8_t *weights = (int8_t *)(values + 1);
    for (int64_t b = 0; b < blocks; b++)
        widener()(
            m, first + b, weights + b * BLOCK * columns, values->scales + b * BLOCK,
            values->sums + b * BLOCK);
    for (int64_t n = 0; n < blocks * BLOCK; n++) {
        values->bias[n] = m->bias ? m->bias[first * BLOCK + n] : 0;
        if (!(values->scales[n] <= FLT_MAX)) is_finite = 0;
    }
    const octavo_matrix widened = {
        .weights = weights, .scales = values->scales, .sums = values->sums, .bias = values->bias,
        .rows = m->rows, .columns = columns}; /* as far apart as the rows of y are */
    for (int64_t r = 0; r < count; r += panel) {
        octavo_rows rows = *all;
        rows.digits += r * 2 * columns, rows.scales += r, rows.zero_points += r;
        int64_t taken = count - r < panel ? count - r : panel;
        octavo_product(
            &widened, 0, blocks, &rows, taken, y + r * m->rows + first * BLOCK);
    }
    return is_finite;
}

/* ---- threads ---- */

typedef struct {
    const octavo_layer *layer;
    const float *x;
    float *y;
    int how;
    int64_t count, scratch_bytes; /* of a chunk */
    octavo_digits digits;
    char *scratch;
    _Atomic int is_infinite;
} Product;

static void read_rows(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t columns = product->layer->four.columns, count = product->count;
    for (int64_t r = count * chunk / chunks; r < count * (chunk + 1) / chunks; r++) {
        float step = octavo_read_for(
            product->layer, product->how, &product->digits, r, product->x + r * columns, columns);
        if (step != step) product->is_infinite = 1;
    }
}

static void multiply(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t parts = octavo_parts_of(product->layer);
    for (int64_t part = parts * chunk / chunks; part < parts * (chunk + 1) / chunks; part++)
        if (!octavo_part_product(
                product->layer, product->how, part, &product->digits, product->count, product->y,
                product->scratch + chunk * product->scratch_bytes))
            product->is_infinite = 1;
}

int octavo_multiply_four_bits_widened(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int is_rounded,
    int threads) {
    const octavo_layer layer = {.four = *matrix};
    int64_t columns = matrix->columns;
    int64_t work = count * columns * matrix->rows / OCTAVO_WORK_OF_A_THREAD + 1;
    if (work < threads) threads = (int)work;
    int chunks = octavo_chunks(octavo_parts_of(&layer), threads);
    Product product = {
        .layer = &layer, .x = x, .y = y, .count = count,
        .how = is_rounded ? OCTAVO_ROUNDED_ROWS : OCTAVO_MANY_ROWS};
    product.scratch_bytes = (octavo_part_scratch(&layer, product.how) + 63) / 64 * 64;
    int64_t digits = (2 * count * columns + 63) / 64 * 64, scale_bytes = (8 * count + 63) / 64 * 64;
    char *memory = malloc((size_t)(64 + digits + scale_bytes + chunks * product.scratch_bytes));
    if (!memory) return OCTAVO_NO_MEMORY;
    char *start = memory + (64 - (uintptr_t)memory % 64);
    float *scales = (float *)(start + digits);
    int32_t *zero_points = (int32_t *)(scales + count);
    product.digits.eight = (octavo_rows){(uint8_t *)start, scales, zero_points, columns, 1};
    product.scratch = start + digits + scale_bytes;
    octavo_stage stages[] = {
        {read_rows, &product, octavo_chunks(count, threads)}, {multiply, &product, chunks}};
    octavo_run_stages(stages, 2, threads);
    free(memory);
    return product.is_infinite ? OCTAVO_NOT_FINITE : 0;
}
