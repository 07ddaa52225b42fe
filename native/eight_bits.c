/* Products of rows of floats with weights of eight bits: rows are rounded as they are told. */
#include <stdlib.h>

#include "layers.h"
#include "rounding.h"

typedef struct {
    const octavo_matrix *matrix;
    const float *x;
    float *y;
    int64_t width, count;
    octavo_reading reading;
    octavo_rows rows;
    _Atomic int is_infinite;
} Product;

static void read_rows(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t count = product->count;
    for (int64_t r = count * chunk / chunks; r < count * (chunk + 1) / chunks; r++) {
        octavo_read_row(
            &product->rows, r, product->x + r * product->width, product->width,
            &product->reading);
        float scale = product->rows.scales[r];
        if (scale != scale) product->is_infinite = 1;
    }
}

static int64_t parts_of(const octavo_matrix *matrix) {
    return (matrix->rows / BLOCK + PART - 1) / PART;
}

static void multiply(void *context, int chunk, int chunks) {
    Product *product = context;
    int64_t blocks = product->matrix->rows / BLOCK, parts = parts_of(product->matrix);
    int64_t first = parts * chunk / chunks * PART, last = parts * (chunk + 1) / chunks * PART;
    int64_t columns = product->matrix->columns, panel = octavo_panel(columns);
    for (int64_t r = 0; r < product->count; r += panel) {
        octavo_rows rows = product->rows;
        rows.digits += r * 2 * columns, rows.scales += r, rows.zero_points += r;
        octavo_product(
            product->matrix, first, last < blocks ? last : blocks, &rows,
            product->count - r < panel ? product->count - r : panel,
            product->y + r * product->matrix->rows);
    }
}

int octavo_multiply_eight_bits(
    const octavo_matrix *matrix, const float *x, int64_t width, int64_t count, float *y,
    const octavo_reading *reading, int threads) {
    int64_t work = count * matrix->columns * matrix->rows / OCTAVO_WORK_OF_A_THREAD + 1;
    int64_t digits = (2 * count * matrix->columns + 63) / 64 * 64;
    char *memory = malloc((size_t)(64 + digits + 8 * count));
    if (!memory) return OCTAVO_NO_MEMORY;
    char *start = memory + (64 - (uintptr_t)memory % 64); /* on a line of the cache */
    float *scales = (float *)(start + digits);
    int32_t *zero_points = (int32_t *)(scales + count);
    Product product = {
        .matrix = matrix, .x = x, .y = y, .width = width, .count = count,
        .reading = *reading,
        .rows = {
            (uint8_t *)start, scales, zero_points, matrix->columns,
            reading->how == OCTAVO_FLOATS}};
    if (reading->how == OCTAVO_TENSOR_RANGE)
        octavo_find_range(&product.reading, x, count * width);
    if (work < threads) threads = (int)work;
    octavo_stage stages[] = {
        {read_rows, &product, octavo_chunks(count, threads)},
        {multiply, &product, octavo_chunks(parts_of(matrix), threads)}};
    octavo_run_stages(stages, 2, threads);
    free(memory);
    return product.is_infinite ? OCTAVO_NOT_FINITE : 0;
}
