/* Layers with weights of either kind, a part of their rows at a time: layers.c. */
#ifndef OCTAVO_LAYERS_H
#define OCTAVO_LAYERS_H

#include "octavo.h"

enum { PART = 4 /* blocks of a weight that a kernel takes at a time */ };

/* How rows are read: 16 bits of each value, of few rows or of many, or eight. Of many rows weights of
 * four bits become int8 in each call; with rows of eight bits by one scale for each row of the weight. */
enum { OCTAVO_FEW_ROWS, OCTAVO_MANY_ROWS, OCTAVO_ROUNDED_ROWS };

/* Rows of floats as a layer reads them. */
typedef struct {
    octavo_rows eight;
    octavo_four_rows four;
} octavo_digits;

int64_t octavo_rows_of(const octavo_layer *layer);
int64_t octavo_columns_of(const octavo_layer *layer);
int64_t octavo_parts_of(const octavo_layer *layer);
/* Whether two layers read a row in one form. */
int octavo_read_alike(const octavo_layer *a, const octavo_layer *b, int how);
/* Returns the step of a row, which is NaN where a value is not finite. */
float octavo_read_for(
    const octavo_layer *layer, int how, octavo_digits *digits, int64_t row, const float *x,
    int64_t width);
/* The columns of a part of y [count][rows of the layer]; `scratch` has octavo_part_scratch bytes and
 * stands on a line of the cache. Returns whether all scales are finite. */
int octavo_part_product(
    const octavo_layer *layer, int how, int64_t part, const octavo_digits *digits, int64_t count,
    float *y, void *scratch);
int64_t octavo_part_scratch(const octavo_layer *layer, int how);

/* Of weights of four bits that become int8: widened.c; exact, by the scales of their groups:
 * grouped.c, where octavo_knows_groups. */
int64_t octavo_widened_scratch(const octavo_four_bits *matrix, int how);
int octavo_widened_product(
    const octavo_four_bits *matrix, int how, int64_t part, const octavo_rows *rows, int64_t count,
    float *y, void *scratch);
int octavo_knows_groups(void);
int64_t octavo_grouped_scratch(const octavo_four_bits *matrix);
void octavo_grouped_product(
    const octavo_four_bits *matrix, int64_t part, const octavo_rows *rows, int64_t count, float *y,
    void *scratch);

#endif
