/* Products of many rows with int8 weights by AMX: 32 rows of digits by two blocks of weights at a time.
 *
 * Tiles of rows are read where they stand. The last rows of a call may be read again with some before
 * them, whose results are the same, and so may the last columns: there weights are zero that were met.
 */
#include "amx.h"
#include "products.h"

enum {
    LEAST_ROWS = 8 /* of fewer, most of a tile's products are of nothing */,
    PAIR = 2 /* tiles of rows, or blocks of weights */,
    BLOCK_STEP = TILE_BYTES * BLOCK /* bytes of a block's weights for a tile's columns */
};

#if defined(OCTAVO_KNOWS_AMX)

int octavo_fills_tiles(const octavo_matrix *matrix, int64_t count) {
    return octavo_amx() && count >= LEAST_ROWS && matrix->columns >= TILE_BYTES;
}

/* Registers: the sums of two tiles of rows by two blocks, and what they are sums of. */
#define SUMS 0
#define NEXT_BLOCK_SUMS 1
#define NEXT_ROWS_SUMS 2
#define NEXT_BOTH_SUMS 3
#define ROWS 4
#define NEXT_ROWS 5
#define WEIGHTS 6
#define NEXT_WEIGHTS 7

AMX static void hold_rows(int64_t height) {
    TileSizes sizes = {.palette = 1};
    for (int t = 0; t < TILE_REGISTERS; t++) {
        sizes.rows[t] = (uint8_t)(t < WEIGHTS ? height : TILE_ROWS);
        sizes.bytes[t] = TILE_BYTES;
    }
    tile_sizes(&sizes);
}

/* Two blocks of weights; behind whole tiles of columns the last ones, in front of them zeros. */
typedef struct {
    const int8_t *weights[PAIR];
    int8_t last[PAIR][BLOCK_STEP] __attribute__((aligned(64)));
} Blocks;

static void take_blocks(Blocks *taken, const octavo_matrix *m, int64_t first, int64_t count) {
    int64_t left = m->columns % TILE_BYTES * BLOCK, size = m->columns * BLOCK;
    for (int64_t b = 0; b < count; b++) {
        taken->weights[b] = m->weights + (first + b) * size;
        memset(taken->last[b], 0, (size_t)(BLOCK_STEP - left));
        memcpy(taken->last[b] + BLOCK_STEP - left, taken->weights[b] + size - left, (size_t)left);
    }
}

/* Add the products of a tile's columns. */
INLINE AMX void add_products(
    const uint8_t *const x[PAIR], int64_t pitch, const int8_t *w, const int8_t *next, const int tiles,
    const int blocks) {
    tile_read(ROWS, x[0], pitch);
    tile_read(WEIGHTS, w, TILE_BYTES);
    tile_products(SUMS, ROWS, WEIGHTS);
    if (blocks > 1) {
        tile_read(NEXT_WEIGHTS, next, TILE_BYTES);
        tile_products(NEXT_BLOCK_SUMS, ROWS, NEXT_WEIGHTS);
    }
    if (tiles > 1) {
        tile_read(NEXT_ROWS, x[1], pitch);
        tile_products(NEXT_ROWS_SUMS, NEXT_ROWS, WEIGHTS);
        if (blocks > 1) tile_products(NEXT_BOTH_SUMS, NEXT_ROWS, NEXT_WEIGHTS);
    }
}

typedef int32_t Sums[PAIR][PAIR][TILE_ROWS][BLOCK]; /* of tiles, blocks */

/* Sums of tiles of rows, `pitch` bytes apart, with blocks. */
INLINE AMX void sum_products(
    const Blocks *taken, const uint8_t *const x[PAIR], int64_t pitch, int64_t columns, Sums sums,
    const int tiles, const int blocks) {
    tile_zero(SUMS);
    if (blocks > 1) tile_zero(NEXT_BLOCK_SUMS);
    if (tiles > 1) tile_zero(NEXT_ROWS_SUMS);
    if (tiles > 1 && blocks > 1) tile_zero(NEXT_BOTH_SUMS);
    const uint8_t *at[PAIR] = {x[0], x[1]};
    int64_t k = 0;
    for (; k + TILE_BYTES <= columns; k += TILE_BYTES) {
        add_products(
            at, pitch, taken->weights[0] + k * BLOCK, taken->weights[1] + k * BLOCK, tiles, blocks);
        at[0] += TILE_BYTES, at[1] += TILE_BYTES;
    }
    if (k < columns) {
        at[0] += columns - k - TILE_BYTES, at[1] += columns - k - TILE_BYTES;
        add_products(at, pitch, taken->last[0], taken->last[1], tiles, blocks);
    }
    tile_write(SUMS, sums[0][0], TILE_BYTES);
    if (blocks > 1) tile_write(NEXT_BLOCK_SUMS, sums[0][1], TILE_BYTES);
    if (tiles > 1) tile_write(NEXT_ROWS_SUMS, sums[1][0], TILE_BYTES);
    if (tiles > 1 && blocks > 1) tile_write(NEXT_BOTH_SUMS, sums[1][1], TILE_BYTES);
}

/* A tile of rows of two digits: upper ones, lower ones. */
INLINE AMX void two_digits(
    const octavo_matrix *m, const Blocks *taken, int64_t block, const octavo_rows *rows, int64_t row,
    int64_t height, float *y, const int blocks) {
    const uint8_t *digits = rows->digits + row * 2 * m->columns;
    const uint8_t *const x[PAIR] = {digits, digits + m->columns};
    Sums sums __attribute__((aligned(64)));
    sum_products(taken, x, 2 * m->columns, m->columns, sums, 2, blocks);
    for (int b = 0; b < blocks; b++)
        for (int64_t i = 0; i < height; i++)
            finish_row(m, block + b, rows, row + i, sums[0][b][i], sums[1][b][i], y, 1);
}

/* So many tiles of rows of one digit, each from its row on. */
INLINE AMX void one_digit(
    const octavo_matrix *m, const Blocks *taken, int64_t block, const octavo_rows *rows,
    const int64_t first[PAIR], int64_t height, float *y, const int tiles, const int blocks) {
    const uint8_t *const x[PAIR] = {
        rows->digits + first[0] * 2 * m->columns, rows->digits + first[1] * 2 * m->columns};
    Sums sums __attribute__((aligned(64)));
    sum_products(taken, x, 2 * m->columns, m->columns, sums, tiles, blocks);
    for (int t = 0; t < tiles; t++)
        for (int b = 0; b < blocks; b++)
            for (int64_t i = 0; i < height; i++)
                finish_row(m, block + b, rows, first[t] + i, sums[t][b][i], NULL, y, 0);
}

INLINE AMX void all_rows(
    const octavo_matrix *m, const Blocks *taken, int64_t block, const octavo_rows *rows, int64_t count,
    int64_t height, float *y, const int blocks) {
    int64_t last = count - height; /* where a last tile begins */
    int64_t at_once = rows->two_digits ? TILE_ROWS : PAIR * TILE_ROWS;
    for (int64_t row = 0; row < count; row += at_once) {
        int64_t next = row + TILE_ROWS;
        const int64_t first[PAIR] = {row < last ? row : last, next < last ? next : last};
        if (rows->two_digits)
            two_digits(m, taken, block, rows, first[0], height, y, blocks);
        else if (next < count)
            one_digit(m, taken, block, rows, first, height, y, 2, blocks);
        else
            one_digit(m, taken, block, rows, first, height, y, 1, blocks);
    }
}

AMX void octavo_tile_product(
    const octavo_matrix *m, int64_t first, int64_t last, const octavo_rows *rows, int64_t count,
    float *y) {
    Blocks taken;
    int64_t height = count < TILE_ROWS ? count : TILE_ROWS;
    hold_rows(height);
    for (int64_t block = first; block < last; block += PAIR) {
        int64_t blocks = last - block < PAIR ? last - block : PAIR;
        take_blocks(&taken, m, block, blocks);
        if (blocks > 1)
            all_rows(m, &taken, block, rows, count, height, y, 2);
        else
            all_rows(m, &taken, block, rows, count, height, y, 1);
    }
    tile_release();
}

#else

int octavo_fills_tiles(const octavo_matrix *matrix, int64_t count) {
    (void)matrix, (void)count;
    return 0;
}

void octavo_tile_product(
    const octavo_matrix *matrix, int64_t first, int64_t last, const octavo_rows *rows,
    int64_t count, float *y) {
    (void)matrix, (void)first, (void)last, (void)rows, (void)count, (void)y; /* never called */
}

#endif
