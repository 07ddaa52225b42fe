/* How a convolution's windows lie in memory: shared by convolution.c and depthwise.c. */
#ifndef OCTAVO_WINDOWS_H
#define OCTAVO_WINDOWS_H

#include "octavo.h"
#include "rounding.h"

enum {
    TILE = 14,      /* pixels beside each other that are made at once, at most */
    DEPTHWISE = 64, /* channels that are made at once, where each has a window of its own */
    MOST_TAPS = 64, /* of such a window, for kernels with intrinsics */
};

/* A window is runs_y * runs_x runs of values that follow each other. Where channels are in no groups,
 * the taps of a row are one run. Distances count values, which are uint8, or with AVX2 int16
 * where the weights are not narrow. */
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
    int64_t taps[MOST_TAPS]; /* where those of a depthwise window are; behind them zeros */
} Windows;

INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where a channel's weights of a tap stand among those of its unit, in octavo_pack_depthwise. */
INLINE int64_t depthwise_place(int64_t channel, int64_t tap) {
    int64_t lane = channel / 16, four = channel / 4 % 4;
    return ((tap / 4 * 4 + four) * 4 + lane) * 16 + channel % 4 * 4 + tap % 4;
}

/* A band of the input at x, and the tiles of results that are made of it, counted from the first
 * of all. */
typedef struct {
    const char *x;
    int64_t begin, end;
} Band;

/* Up to TILE pixels beside each other: where their first window is, and the index of the first result. */
typedef struct {
    const char *x;
    int64_t pixels, result;
} Tile;

INLINE Tile tile_of(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t tile, int64_t channel) {
    int64_t row = tile / w->tiles, piece = tile % w->tiles, start = row * w->out.width;
    int64_t wide = least(w->out.width, w->out_pixels - start);
    int64_t left = wide * piece / w->tiles, right = wide * (piece + 1) / w->tiles;
    int64_t at = (row - band->begin / w->tiles) * c->stride_y * w->row + left * w->pixel + channel;
    return (Tile){band->x + at * w->size, right - left, (start + left) * c->out.channels};
}

#if defined(__x86_64__)

/* Sums of 16 channels, each in two lanes side by side, four channels in a register. */
INLINE AVX2 void store_pairs(const __m256i own[4], const int32_t *first, int32_t *sums) {
    for (int half = 0; half < 2; half++) {
        __m256i both = _mm256_permute4x64_epi64(
            _mm256_hadd_epi32(own[2 * half], own[2 * half + 1]), 0xd8);
        __m256i begin = _mm256_loadu_si256((const __m256i *)(first + 8 * half));
        _mm256_storeu_si256((__m256i *)(sums + 8 * half), _mm256_add_epi32(both, begin));
    }
}

#endif

/* Makes one unit of channels of a band's tiles, or a dense layer's unit with the next one of its
 * group. */
typedef void (*octavo_tiles)(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit);
/* That of the instruction set: tiles.c, depthwise.c. */
octavo_tiles octavo_dense_tiles(void), octavo_depthwise_tiles(int64_t taps);

#endif
