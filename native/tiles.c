/* Tiles of a dense layer's results: up to 14 pixels beside each other, 16 or 32 channels. */
#include "epilogue.h"
#include "octavo.h"
#include "tiles.h"

/* What a tile's functions need to know of one block of 16 channels. */
typedef struct {
    const int8_t *weights;
    int64_t channel, count;
} Block;

INLINE Block block_of(const octavo_convolution *c, const Windows *w, int64_t group, int64_t unit) {
    return (Block){
        c->weights + (group * w->units + unit) * w->unit_bytes,
        group * w->group_out + unit * BLOCK, least(BLOCK, w->group_out - unit * BLOCK)};
}

/* ---- every CPU ---- */

static void tile_portable(
    const octavo_convolution *c, const Windows *w, const void *x, int64_t pixels, int64_t result,
    int64_t group, int64_t unit) {
    int64_t last = least(unit + 2, w->units);
    for (; unit < last; unit++) {
        Block block = block_of(c, w, group, unit);
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            int32_t sums[BLOCK] = {0};
            const int8_t *weights = block.weights;
            for (int64_t ky = 0; ky < w->runs_y; ky++)
                for (int64_t kx = 0; kx < w->runs_x; kx++) {
                    const uint8_t *run = (const uint8_t *)x + pixel * w->pixel + ky * w->step_y + kx * w->step_x;
                    for (int64_t k = 0; k < w->run; k += 4, weights += 4 * BLOCK) {
                        int32_t four[4] = {run[k], run[k + 1], run[k + 2], run[k + 3]};
                        for (int n = 0; n < BLOCK; n++)
                            sums[n] += four[0] * weights[4 * n] + four[1] * weights[4 * n + 1] +
                                       four[2] * weights[4 * n + 2] + four[3] * weights[4 * n + 3];
                    }
                }
            for (int64_t n = 0; n < block.count; n++)
                sums[n] -= c->in_zero_point * c->weight_sums[block.channel + n];
            finish(
                &c->epilogue, sums, block.channel, block.count,
                result + pixel * c->out.channels + block.channel, c->y);
        }
    }
}

/* ---- which of them ---- */

octavo_tile octavo_dense_tile(void) { return tile_portable; }
