/* Convolutions of which each channel has a window of its own. */
#include "epilogue.h"
#include "octavo.h"
#include "windows.h"

/* ---- every CPU ---- */

static void tile_portable(
    const octavo_convolution *c, const Windows *w, const void *x, int64_t pixels, int64_t result,
    int64_t group, int64_t unit) {
    (void)group;
    const int8_t *weights = c->weights + unit * w->unit_bytes;
    int64_t last = least((unit + 1) * DEPTHWISE, c->out.channels);
    for (int64_t channel = unit * DEPTHWISE; channel < last; channel += BLOCK) {
        int64_t count = least(BLOCK, last - channel);
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            int32_t sums[BLOCK] = {0};
            const uint8_t *window = (const uint8_t *)x + pixel * w->pixel + channel;
            for (int64_t ky = 0; ky < w->runs_y; ky++)
                for (int64_t kx = 0; kx < w->runs_x; kx++) {
                    const uint8_t *tap = window + ky * w->step_y + kx * w->step_x;
                    for (int64_t n = 0; n < count; n++)
                        sums[n] += tap[n] * weights[depthwise_place(
                                                channel % DEPTHWISE + n, ky * w->runs_x + kx)];
                }
            for (int64_t n = 0; n < count; n++)
                sums[n] -= c->in_zero_point * c->weight_sums[channel + n];
            finish(
                &c->epilogue, sums, channel, count, result + pixel * c->out.channels + channel, c->y);
        }
    }
}

/* ---- which of them ---- */

octavo_tile octavo_depthwise_tile(void) { return tile_portable; }
