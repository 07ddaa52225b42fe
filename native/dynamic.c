/* Layers of floats as steps of programs: linear layers that round what they read at each call, and
 * functions of one value. */
#include <string.h>

#include "layers.h"
#include "rounding.h"

enum { ACTIVATED = 1024 /* values at a time, which stay in the first cache */ };

static octavo_rows rows_of(const octavo_dynamic_linear *step) {
    int64_t columns = step->matrix.columns;
    float *scales = (float *)((uint8_t *)step->at.scratch + step->count * 2 * columns);
    return (octavo_rows){
        step->at.scratch, scales, (int32_t *)(scales + step->count), columns,
        step->reading.how == OCTAVO_FLOATS};
}

void octavo_round_rows(const octavo_dynamic_linear *step, int chunk, int chunks) {
    octavo_rows rows = rows_of(step);
    const float *x = step->at.x;
    int64_t last = step->count * (chunk + 1) / chunks;
    for (int64_t r = step->count * chunk / chunks; r < last; r++)
        octavo_read_row(&rows, r, x + r * step->width, step->width, &step->reading);
}

void octavo_multiply_rows(const octavo_dynamic_linear *step, int chunk, int chunks) {
    octavo_rows rows = rows_of(step);
    const octavo_matrix *matrix = &step->matrix;
    int64_t blocks = matrix->rows / BLOCK, first = blocks * chunk / chunks;
    int64_t last = blocks * (chunk + 1) / chunks, panel = octavo_panel(matrix->columns);
    float *y = step->at.y;
    for (int64_t r = 0; r < step->count; r += panel) {
        octavo_rows own = rows;
        own.digits += r * 2 * matrix->columns, own.scales += r, own.zero_points += r;
        octavo_product(
            matrix, first, last, &own, step->count - r < panel ? step->count - r : panel,
            y + r * matrix->rows);
    }
}

void octavo_activate_values(const octavo_activation *step, int chunk, int chunks) {
    const float *x = step->at.x;
    float *y = step->at.y;
    int64_t last = step->count * (chunk + 1) / chunks;
    for (int64_t i = step->count * chunk / chunks; i < last; i += ACTIVATED) {
        int64_t count = last - i < ACTIVATED ? last - i : ACTIVATED;
        memcpy(y + i, x + i, (size_t)count * sizeof *y);
        octavo_activate((int32_t)step->activation, 0, 0, y + i, count);
    }
}
