/* Products of a few rows of floats with weights of eight bits: of a row 16 bits are kept. */
#include <stdlib.h>

#include "octavo.h"
#include "rounding.h"

typedef struct {
    const octavo_matrix *matrix;
    const float *x;
    float *y;
    int64_t width, count;
    octavo_rows rows;
} Product;

static void read_rows(void *context, int chunk, int chunks) {
    Product *product = context;
    const octavo_reading floats = {.how = OCTAVO_FLOATS};
    int64_t count = product->count;
    for (int64_t r = count * chunk / chunks; r < count * (chunk + 1) / chunks; r++)
        octavo_read_row(
            &product->rows, r, product->x + r * product->width, product->width, &floats);
}

static void multiply(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t blocks = product->matrix->rows / BLOCK;
    octavo_product(
        product->matrix, blocks * chunk / chunks, blocks * (chunk + 1) / chunks, &product->rows,
        product->count, product->y);
}

int octavo_multiply_eight_bits(
    const octavo_matrix *matrix, const float *x, int64_t width, int64_t count, float *y,
    int threads) {
    int64_t work = count * matrix->columns * matrix->rows / OCTAVO_WORK_OF_A_THREAD + 1;
    char *memory = malloc((size_t)(count * (2 * matrix->columns + 8)));
    if (!memory) return 1;
    float *scales = (float *)memory; /* first, where memory is aligned for them */
    int32_t *zero_points = (int32_t *)(scales + count);
    Product product = {
        .matrix = matrix, .x = x, .y = y, .width = width, .count = count,
        .rows = {(uint8_t *)(zero_points + count), scales, zero_points, matrix->columns, 1}};
    if (work < threads) threads = (int)work;
    octavo_stage stages[] = {
        {read_rows, &product, octavo_chunks(count, threads)},
        {multiply, &product, octavo_chunks(matrix->rows / BLOCK, threads)}};
    octavo_run_stages(stages, 2, threads);
    free(memory);
    return 0;
}
