/* How a convolution's windows lie in memory: shared by convolution.c and depthwise.c. */
#ifndef OCTAVO_WINDOWS_H
#define OCTAVO_WINDOWS_H

#include "octavo.h"
#include "rounding.h"

enum {
    TILE = 14,      /* pixels beside each other that are made at once, at most */
    AMX_TILE = 16,
    AMX_BYTES = 64, /* of a window that are multiplied at once */
    MOST_UNITS = 8, /* of which weights stay in the cache */
    DEPTHWISE_TILE = 56, /* where no sums have to stay in registers */
    DEPTHWISE = 64, /* channels that are made at once, where each has a window of its own */
    MOST_FOURS = 32, /* fours of taps of such a window, for kernels with intrinsics */
};

/* A window is runs_y * runs_x runs of values that follow each other. Where channels are in no groups,
 * the taps of a row are one run. Distances count values, which are uint8, or with AVX2 int16
 * where the weights are not narrow. */
typedef struct {
    octavo_shape in, out; /* a 1x1 layer's pixels stand in rows of up to 8 tiles */
    int64_t out_pixels;   /* in all: such a layer's last row may be shorter */
    int depthwise, by_amx, size;  /* size of a value */
    int in_place; /* whether windows are read where they are, not from a copy of a band */
    int gathered; /* whether each window is copied by itself, as one run */
    int64_t group_in, group_out; /* channels of a group */
    int64_t runs_y, runs_x, run;
    int64_t units, unit_bytes; /* of a group: 16 results, or DEPTHWISE; of their packed weights */
    int64_t tile, tiles;       /* pixels of a tile, and how many are in a row of results */
    int64_t band_rows;         /* rows of results whose windows are read one after the other */
    int64_t band_bytes;        /* of scratch memory for these; 0: windows are read where they are */
    int64_t source_row, source_bytes; /* of the copy that windows are gathered from, behind them */
    int64_t row, step_y, step_x, pixel; /* from row to row, tap to tap, window to window */
    int64_t length;            /* of a run, with what fills its last step */
    int64_t units_at_once;     /* that are made of a tile before the next one */
    int64_t below;             /* from the windows of a row of results to those of the next */
    int64_t taps[MOST_FOURS][4]; /* where those of a depthwise window are, below each other */
} Windows;

INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Four taps below each other are multiplied at once; of rows that a window lacks weights are zero. */
INLINE int64_t fours_of(const octavo_convolution *c) {
    return ceiling(c->kernel_height, 4) * c->kernel_width;
}

/* Where a channel's weight stands among those of its unit. */
INLINE int64_t depthwise_place(int64_t kernel_width, int64_t channel, int64_t y, int64_t x) {
    int64_t lane = channel / 16, four = channel / 4 % 4;
    return (((y / 4 * kernel_width + x) * 4 + four) * 4 + lane) * 16 + channel % 4 * 4 + y % 4;
}

/* A band of the input at x, the row of results that begins there, and the tiles that are made of it,
 * counted from the first of all. */
typedef struct {
    const char *x;
    int64_t row, begin, end;
} Band;

/* Pixels beside each other: where their first window is, and the index of the first result. */
typedef struct {
    int64_t index, row, piece;
    const char *x;
    int64_t pixels, result;
    int64_t ahead; /* of AMX's registers, which are of one size: so many pixels of the tile before */
} Tile;

INLINE void place_tile(
    Tile *tile, const octavo_convolution *c, const Windows *w, const Band *band, int64_t channel) {
    int64_t start = tile->row * w->out.width, left = tile->piece * w->tile;
    int64_t right = least(left + w->tile, least(w->out.width, w->out_pixels - start));
    int64_t down = (tile->row - band->row) * w->below;
    tile->pixels = right - left; /* less than one behind the end of a short row */
    tile->ahead = w->by_amx && w->in_place ? w->tile - tile->pixels : 0;
    tile->x = band->x + (down + (left - tile->ahead) * w->pixel + channel) * w->size;
    tile->result = (start + left) * c->out.channels;
}

/* Each tile of a band, for windows that begin at a channel. */
#define FOR_TILES(TILE_, CHANNEL)                                                                \
    for (Tile TILE_ = {band->begin, band->row, band->begin - band->row * w->tiles, 0, 0, 0, 0};   \
         TILE_.index < band->end && (place_tile(&TILE_, c, w, band, CHANNEL), 1); TILE_.index++,  \
              TILE_.piece + 1 < w->tiles ? TILE_.piece++ : (TILE_.row++, TILE_.piece = 0))

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
octavo_tiles octavo_dense_tiles(const Windows *w), octavo_depthwise_tiles(int64_t fours);
/* Before and behind calls of it, of the same thread. */
void octavo_begin_tiles(const Windows *w), octavo_end_tiles(const Windows *w);

#endif
