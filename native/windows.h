/* How a convolution's windows lie in memory: shared by convolution.c and depthwise.c. */
#ifndef OCTAVO_WINDOWS_H
#define OCTAVO_WINDOWS_H

#include "octavo.h"
#include "rounding.h"

enum {
    TILE = 14,      /* pixels beside each other that are made at once, at most */
    DEPTHWISE = 64, /* channels that are made at once, where each has a window of its own */
};

/* A window is runs_y * runs_x runs of values that follow each other. Where channels are in no groups,
 * the taps of a row are one run. Distances count values, which are uint8, or int16 with AVX2. */
typedef struct {
    octavo_shape in, out; /* a 1x1 layer's pixels stand in rows of up to 8 tiles */
    int64_t out_pixels;   /* in all: such a layer's last row may be shorter */
    int depthwise, size;  /* size of a value */
    int64_t group_in, group_out; /* channels of a group */
    int64_t runs_y, runs_x, run;
    int64_t units, unit_bytes; /* of a group: 16 results, or DEPTHWISE; of their packed weights */
    int64_t tiles;             /* of a row of results */
    int64_t band_rows;         /* rows of results whose windows are read one after the other */
    int64_t band_bytes;        /* of scratch memory for these; 0: windows are read where they are */
    int64_t row, step_y, step_x, pixel; /* from row to row, tap to tap, window to window */
} Windows;

INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where a channel's weights of a tap stand among those of its unit, in octavo_pack_depthwise. */
INLINE int64_t depthwise_place(int64_t channel, int64_t tap) {
    int64_t lane = channel / 16, four = channel / 4 % 4;
    return ((tap / 4 * 4 + four) * 4 + lane) * 16 + channel % 4 * 4 + tap % 4;
}

/* Results of `pixels` windows from x on, for the channels of a unit, or two units of a dense layer
 * where the group has a second: those of index `result` on. */
typedef void (*octavo_tile)(
    const octavo_convolution *step, const Windows *w, const void *x, int64_t pixels, int64_t result,
    int64_t group, int64_t unit);
octavo_tile octavo_depthwise_tile(void);

#endif
