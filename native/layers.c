/* Products of rows with layers whose weights have eight bits or four, a part at a time. */
#include "layers.h"
#include "rounding.h"

static int has_eight_bits(const octavo_layer *layer) { return layer->eight.weights != NULL; }

/* Whether its rows are those of weights of eight bits. */
static int reads_eight(const octavo_layer *layer, int how) {
    return has_eight_bits(layer) || how == OCTAVO_ROUNDED_ROWS ||
           (how == OCTAVO_MANY_ROWS && octavo_knows_groups());
}

int64_t octavo_rows_of(const octavo_layer *layer) {
    return has_eight_bits(layer) ? layer->eight.rows : layer->four.rows;
}

int64_t octavo_columns_of(const octavo_layer *layer) {
    return has_eight_bits(layer) ? layer->eight.columns : layer->four.columns;
}

int64_t octavo_parts_of(const octavo_layer *layer) {
    return (octavo_rows_of(layer) / BLOCK + PART - 1) / PART;
}

int octavo_read_alike(const octavo_layer *a, const octavo_layer *b, int how) {
    if (reads_eight(a, how) || reads_eight(b, how))
        return reads_eight(a, how) && reads_eight(b, how) &&
               octavo_columns_of(a) == octavo_columns_of(b);
    return a->four.groups == b->four.groups;
}

/* The rows in the width of a layer; each thread has its own record of them. */
static octavo_rows rows_for(const octavo_layer *layer, int how, const octavo_digits *digits) {
    octavo_rows rows = digits->eight;
    rows.columns = octavo_columns_of(layer);
    rows.two_digits = how != OCTAVO_ROUNDED_ROWS;
    return rows;
}

float octavo_read_for(
    const octavo_layer *layer, int how, octavo_digits *digits, int64_t row, const float *x,
    int64_t width) {
    static const octavo_reading floats = {.how = OCTAVO_FLOATS};
    static const octavo_reading rounded = {.how = OCTAVO_ROW_RANGE, .low = 0, .high = 255};
    if (reads_eight(layer, how)) {
        octavo_rows rows = rows_for(layer, how, digits);
        octavo_read_row(&rows, row, x, width, how == OCTAVO_ROUNDED_ROWS ? &rounded : &floats);
        return rows.scales[row];
    }
    octavo_read_row_of_four_bits(&layer->four, x, row, &digits->four);
    return digits->four.steps[row];
}

int octavo_part_product(
    const octavo_layer *layer, int how, int64_t part, const octavo_digits *digits, int64_t count,
    float *y, void *scratch) {
    int64_t blocks = octavo_rows_of(layer) / BLOCK, first = part * PART;
    int64_t last = first + PART < blocks ? first + PART : blocks;
    octavo_rows rows = rows_for(layer, how, digits);
    if (has_eight_bits(layer))
        octavo_product(&layer->eight, first, last, &rows, count, y);
    else if (reads_eight(layer, how))
        return octavo_widened_product(&layer->four, how, part, &rows, count, y, scratch);
    else
        octavo_product_of_four_bits(&layer->four, first, last, &digits->four, count, y);
    return 1;
}

int64_t octavo_part_scratch(const octavo_layer *layer, int how) {
    if (has_eight_bits(layer) || !reads_eight(layer, how)) return 0;
    return octavo_widened_scratch(&layer->four, how);
}
