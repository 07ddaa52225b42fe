/* Largest values and means over windows, and over all of an image. */
#include <string.h>

#include "octavo.h"
#include "stored.h"

/* Channels that are taken at once; fewer where there are not enough of these for all chunks. */
enum { BLOCK_OF_CHANNELS = 64, SMALL_BLOCK = 16, MOST_IN_A_SUM = 257 /* bytes in 16 bits */ };

/* The part of a window that lies in the image, along one axis. */
typedef struct {
    int64_t first, last;
} Span;

INLINE Span span_of(int64_t start, int64_t taps, int64_t dilation, int64_t size) {
    Span span = {0, taps};
    if (start < 0) span.first = (-start + dilation - 1) / dilation;
    while (span.last > span.first && start + (span.last - 1) * dilation >= size) span.last--;
    return span;
}

/* One window, of all channels or some: y of the channels from `first` on. */
typedef struct {
    const uint8_t *pixels; /* of the image's first pixel, at the first of these channels */
    Span rows, columns;
    int64_t y0, x0;
} Window;

INLINE const uint8_t *pixel_at(const octavo_pooling *p, const Window *w, int64_t i, int64_t j) {
    int64_t row = w->y0 + i * p->dilation_y, column = w->x0 + j * p->dilation_x;
    return w->pixels + (row * p->in.width + column) * p->in.channels;
}

#define FOR_TAPS(w)                                            \
    for (int64_t i = w->rows.first; i < w->rows.last; i++)     \
        for (int64_t j = w->columns.first; j < w->columns.last; j++)

INLINE void largest(const octavo_pooling *p, const Window *w, uint8_t *y, const int64_t count) {
    uint8_t most[BLOCK_OF_CHANNELS];
    /* A window that is wholly outside has the least that can be stored. */
    int is_empty = w->rows.first >= w->rows.last || w->columns.first >= w->columns.last;
    memset(most, is_empty ? p->out_integers.low : 0, sizeof most);
    FOR_TAPS(w) {
        const uint8_t *pixel = pixel_at(p, w, i, j);
        for (int64_t c = 0; c < count; c++) most[c] = most[c] > pixel[c] ? most[c] : pixel[c];
    }
    for (int64_t c = 0; c < count; c++) y[c] = most[c];
}

INLINE void mean(
    const octavo_pooling *p, const Window *w, float divisor, uint8_t *y, const int64_t count) {
    int64_t sums[BLOCK_OF_CHANNELS] = {0};
    for (int64_t i = w->rows.first; i < w->rows.last; i++)
        for (int64_t begin = w->columns.first; begin < w->columns.last; begin += MOST_IN_A_SUM) {
            int64_t end = w->columns.last - begin < MOST_IN_A_SUM ? w->columns.last : begin + MOST_IN_A_SUM;
            uint16_t part[BLOCK_OF_CHANNELS] = {0};
            for (int64_t j = begin; j < end; j++) {
                const uint8_t *pixel = pixel_at(p, w, i, j);
                for (int64_t c = 0; c < count; c++) part[c] = (uint16_t)(part[c] + pixel[c]);
            }
            for (int64_t c = 0; c < count; c++) sums[c] += part[c];
        }
    const octavo_integers out = p->out_integers;
    int64_t pixels = (w->rows.last - w->rows.first) * (w->columns.last - w->columns.first);
    int64_t zeros = pixels * p->in_integers.zero_point;
    float scale = p->in_integers.scale / divisor;
    for (int64_t c = 0; c < count; c++)
        y[c] = stored((float)(sums[c] - zeros) * scale, &out);
}

/* By how much a window's sum is divided; torch counts what lies in the padding, but not what
 * ceil_mode adds beyond it. */
INLINE int64_t counted(const octavo_pooling *p, const Window *w) {
    if (p->divisor) return p->divisor;
    if (p->operation == OCTAVO_MEAN)
        return (w->rows.last - w->rows.first) * (w->columns.last - w->columns.first);
    int64_t below = p->in.height + p->padding_top - w->y0;
    int64_t right = p->in.width + p->padding_left - w->x0;
    return (below < p->kernel_height ? below : p->kernel_height) *
           (right < p->kernel_width ? right : p->kernel_width);
}

INLINE void of_window(const octavo_pooling *p, const Window *w, uint8_t *y, const int64_t count) {
    if (p->operation == OCTAVO_LARGEST)
        largest(p, w, y, count);
    else
        mean(p, w, (float)counted(p, w), y, count);
}

INLINE void pool_share(const octavo_pooling *p, int chunk, int chunks) {
    int64_t channels = p->in.channels, windows = p->out.batch * p->out.height * p->out.width;
    int64_t block = windows * channels < chunks * BLOCK_OF_CHANNELS ? SMALL_BLOCK : BLOCK_OF_CHANNELS;
    int64_t blocks = (channels + block - 1) / block;
    SHARE(first, last, windows * blocks);
    for (int64_t i = first; i < last; i++) {
        int64_t from = i % blocks * block, pixel = i / blocks;
        int64_t column = pixel % p->out.width, row = pixel / p->out.width % p->out.height;
        int64_t image = pixel / p->out.width / p->out.height;
        Window w = {
            .pixels = (const uint8_t *)p->at.x + image * p->in.height * p->in.width * channels + from,
            .y0 = row * p->stride_y - p->padding_top,
            .x0 = column * p->stride_x - p->padding_left};
        w.rows = span_of(w.y0, p->kernel_height, p->dilation_y, p->in.height);
        w.columns = span_of(w.x0, p->kernel_width, p->dilation_x, p->in.width);
        uint8_t *y = (uint8_t *)p->at.y + pixel * channels + from;
        int64_t left = channels - from < block ? channels - from : block;
        while (left) { /* numbers that are known are vectors without a loop */
            int64_t count = left;
            if (left >= BLOCK_OF_CHANNELS)
                count = BLOCK_OF_CHANNELS, of_window(p, &w, y, BLOCK_OF_CHANNELS);
            else if (left >= BLOCK_OF_CHANNELS / 2)
                count = BLOCK_OF_CHANNELS / 2, of_window(p, &w, y, BLOCK_OF_CHANNELS / 2);
            else if (left >= SMALL_BLOCK)
                count = SMALL_BLOCK, of_window(p, &w, y, SMALL_BLOCK);
            else
                of_window(p, &w, y, left);
            left -= count, y += count, w.pixels += count;
        }
    }
}

FOR_EACH_SET(octavo_pool, octavo_pooling, pool_share)
