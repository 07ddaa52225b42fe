/* Convolutions and linear layers: where windows lie, what a chunk makes, and packing.
 *
 * A linear layer is a 1x1 convolution. Pixels are made in tiles of some beside each other times 32
 * channels (tiles.c). Windows that reach into the padding are read from a copy of a band of the
 * input, so that no loop asks where it is.
 */
#include <string.h>

#include "octavo.h"
#include "rounding.h"
#include "windows.h"

enum {
    BAND_BYTES = 128 << 10, /* of the input and the result */
    ROW_TILES = 8,
    WEIGHT_BYTES = 24 << 10, /* that stay in a core's first cache while tiles go by */
    LEAST_OF_A_GROUP = 8, /* results, for AMX to be worth it */
    SLACK = 64, /* bytes that may be read behind a band */
    COPIES_OF_A_THREAD = 2,
    OWN_BYTES = 160 << 10,
    CYCLES_OF_A_CHUNK = 8000, /* at least: some microseconds */
};

/* ---- where windows lie ---- */

/* Pixels of layers without windows need not know of images: rows of some tiles, all as long but the
 * last. */
static void in_even_rows(Windows *w, int64_t most_of_a_tile) {
    int64_t pixels = w->out.batch * w->out.height * w->out.width;
    w->out.batch = 1;
    w->out.height = ceiling(pixels, ROW_TILES * most_of_a_tile);
    w->out.width = ceiling(pixels, w->out.height);
    w->in.batch = 1, w->in.height = w->out.height, w->in.width = w->out.width;
}

static int64_t rows_of_band(const octavo_convolution *c, int64_t results) {
    return (results - 1) * c->stride_y + c->dilation_y * (c->kernel_height - 1) + 1;
}

/* With AMX a run ends with a step of its last values, of which others have had some: see tiles.c. */
static int64_t values_ahead(const Windows *w) {
    return w->by_amx && w->length > AMX_BYTES ? ceiling(w->length, AMX_BYTES) * AMX_BYTES - w->length : 0;
}

/* Of packed weights. */
static int64_t run_bytes(const Windows *w) {
    return (w->length + values_ahead(w)) * BLOCK;
}

/* Whether a window takes much fewer of AMX's steps as one run than as so many. */
static int is_shallow(int64_t run, int64_t runs) {
    return 3 * ceiling(run * runs, AMX_BYTES) <= 2 * runs * ceiling(run, AMX_BYTES);
}

static Windows windows_of(const octavo_convolution *c) {
    Windows w = {.in = c->in, .out = c->out};
    w.out_pixels = c->out.batch * c->out.height * c->out.width;
    w.group_in = c->in.channels / c->groups, w.group_out = c->out.channels / c->groups;
    w.depthwise = c->groups > 1 && w.group_in == 1 && w.group_out == 1;
    w.by_amx = octavo_amx() && (c->groups == 1 || w.group_out >= LEAST_OF_A_GROUP);
    w.size = octavo_isa() == OCTAVO_AVX2 && !w.depthwise && !c->narrow ? 2 : 1;
    int joined = c->groups == 1 && c->dilation_x == 1;
    w.runs_y = c->kernel_height, w.runs_x = joined ? 1 : c->kernel_width;
    w.run = joined ? c->kernel_width * w.group_in : w.group_in;
    w.gathered = w.by_amx && joined && is_shallow(w.run, w.runs_y);
    if (w.gathered) w.run *= w.runs_y, w.runs_y = 1;
    w.length = w.gathered ? ceiling(w.run, AMX_BYTES) * AMX_BYTES : ceiling(w.run, 4) * 4;
    if (w.depthwise) {
        w.units = ceiling(c->groups, DEPTHWISE);
        w.unit_bytes = fours_of(c) * 4 * DEPTHWISE;
    } else {
        w.units = ceiling(w.group_out, BLOCK);
        w.unit_bytes = w.runs_y * w.runs_x * run_bytes(&w);
        int64_t units = WEIGHT_BYTES / w.unit_bytes / 2 * 2;
        w.units_at_once = w.by_amx && units > 2 ? least(units, MOST_UNITS) : 2;
    }
    return w;
}

static Windows placed(const octavo_convolution *c) {
    Windows w = windows_of(c);
    int64_t wide = (w.out.width - 1) * c->stride_x + c->dilation_x * (c->kernel_width - 1) + 1;
    int64_t high = rows_of_band(c, c->out.height), channels = c->in.channels;
    int inside = !c->padding_top && !c->padding_left && high <= c->in.height && wide <= c->in.width;
    w.in_place = inside && !w.gathered && w.size == 1 && (w.depthwise || w.run % 4 == 0);
    int64_t most_of_a_tile = w.depthwise ? DEPTHWISE_TILE : w.by_amx ? AMX_TILE : TILE;
    if (c->kernel_height * c->kernel_width * c->stride_y * c->stride_x == 1 && inside &&
        w.in.height == w.out.height && w.in.width == w.out.width) {
        in_even_rows(&w, w.by_amx ? AMX_TILE : TILE);
        wide = w.out.width;
    }
    w.tile = ceiling(w.out.width, ceiling(w.out.width, most_of_a_tile));
    w.tiles = ceiling(w.out.width, w.tile);
    w.row = (w.in_place ? w.in.width : wide) * channels;
    w.step_y = c->dilation_y * w.row, w.step_x = c->dilation_x * channels;
    w.pixel = c->stride_x * channels, w.below = c->stride_y * w.row;
    if (w.gathered) {
        w.source_row = w.row;
        w.pixel = w.length;
        w.row = w.below = w.out.width * w.pixel;
    }
    for (int64_t four = 0; w.depthwise && four < least(fours_of(c), MOST_FOURS); four++)
        for (int64_t i = 0; i < 4; i++) {
            int64_t y = least(four / c->kernel_width * 4 + i, c->kernel_height - 1);
            w.taps[four][i] = y * w.step_y + four % c->kernel_width * w.step_x;
        }
    int64_t own = w.gathered ? 0 : rows_of_band(c, 1) * w.row - w.below; /* of a band, beside its rows' */
    int64_t result = w.out.width * c->out.channels;
    int64_t rows = (BAND_BYTES - own * w.size) / (w.below * w.size + result);
    w.band_rows = rows > 1 ? rows : 1;
    w.band_rows = least(w.band_rows, w.out.height);
    if (!w.in_place) {
        int64_t behind = SLACK + (w.by_amx ? w.tile * w.pixel : 0);
        w.band_bytes = ceiling((own + w.band_rows * w.below) * w.size + behind, 64) * 64;
        if (w.gathered) {
            w.source_bytes = ceiling(rows_of_band(c, w.band_rows) * w.source_row + SLACK, 64) * 64;
            w.band_bytes += w.source_bytes;
        }
    }
    return w;
}

/* ---- bands of the input, with padding ---- */

INLINE void put(void *to, int64_t at, const uint8_t *from, int64_t count, int size) {
    if (size == 1)
        memcpy((uint8_t *)to + at, from, (size_t)count);
    else
        for (int64_t i = 0; i < count; i++) ((int16_t *)to)[at + i] = from[i];
}

INLINE void fill(void *to, int64_t at, int32_t value, int64_t count, int size) {
    if (size == 1)
        memset((uint8_t *)to + at, value, (size_t)count);
    else
        for (int64_t i = 0; i < count; i++) ((int16_t *)to)[at + i] = (int16_t)value;
}

INLINE void copy_band(
    const octavo_convolution *c, const Windows *w, int64_t begin, int64_t end, void *to) {
    int64_t channels = c->in.channels, wide = w->row / channels, image = begin / w->out.height;
    int64_t left = least(c->padding_left, wide);
    int64_t y = begin % w->out.height * c->stride_y - c->padding_top;
    int64_t rows = rows_of_band(c, end - begin);
    for (int64_t row = 0; row < rows; row++, y++) {
        int64_t at = row * w->row, start = (image * w->in.height + y) * w->in.width;
        int64_t held = least(w->in.width, c->in.batch * c->in.height * c->in.width - start);
        int64_t inner = y < 0 || y >= w->in.height ? 0 : least(held, wide - left);
        int64_t before = inner ? left * channels : 0;
        fill(to, at, c->in_zero_point, before, w->size);
        const uint8_t *x = c->at.x;
        if (inner) put(to, at + before, x + start * channels, inner * channels, w->size);
        fill(
            to, at + before + inner * channels, c->in_zero_point,
            w->row - before - inner * channels, w->size);
    }
    fill(to, rows * w->row, 0, SLACK / w->size, w->size);
}

static void copy_band_portable(
    const octavo_convolution *c, const Windows *w, int64_t begin, int64_t end, void *to) {
    copy_band(c, w, begin, end, to);
}

#if defined(__x86_64__)

AVX2 static void copy_band_avx2(
    const octavo_convolution *c, const Windows *w, int64_t begin, int64_t end, void *to) {
    copy_band(c, w, begin, end, to);
}

/* Parts of up to 32 bytes of windows, each so far behind the one before. What is written behind a part is
 * written over by the next one. */
INLINE VNNI void gather_parts(
    uint8_t *to, const uint8_t *from, int64_t windows, int64_t runs, const Windows *w, int64_t next,
    int64_t next_run, int64_t count) {
    for (int64_t window = 0; window < windows; window++, to += w->pixel, from += next)
        for (int64_t run = 0; run < runs; run++)
            for (int64_t k = 0; k < count; k += 32)
                _mm256_storeu_si256(
                    (__m256i *)(to + run * count + k),
                    _mm256_loadu_si256((const __m256i *)(from + run * next_run + k)));
}

/* The windows of rows of results, one behind the other, by way of a copy with padding behind them. */
VNNI static void gather_windows(
    const octavo_convolution *c, const Windows *w, int64_t begin, int64_t end, uint8_t *to) {
    Windows source = *w;
    source.row = w->source_row;
    uint8_t *copy = to + w->band_bytes - w->source_bytes;
    copy_band(c, &source, begin, end, copy);
    int64_t channels = c->in.channels, count = c->kernel_width * channels, runs = c->kernel_height;
    int64_t next = c->stride_x * channels, next_run = c->dilation_y * source.row;
    for (int64_t row = begin; row < end; row++, to += w->row, copy += c->stride_y * source.row)
        if (count <= 32)
            gather_parts(to, copy, w->out.width, runs, w, next, next_run, least(count, 32));
        else
            gather_parts(to, copy, w->out.width, runs, w, next, next_run, count);
}

#endif

/* Where the first window of row `begin` of the results is. */
static const char *read_band(
    const octavo_convolution *c, const Windows *w, int64_t begin, int64_t end, uint8_t *scratch) {
    if (w->in_place) {
        int64_t image = begin / w->out.height, y = begin % w->out.height * c->stride_y;
        return (const char *)c->at.x + (image * w->in.height + y) * w->row;
    }
#if defined(__x86_64__)
    if (w->gathered)
        gather_windows(c, w, begin, end, scratch);
    else if (octavo_isa() >= OCTAVO_AVX2)
        copy_band_avx2(c, w, begin, end, scratch);
    else
#endif
        copy_band_portable(c, w, begin, end, scratch);
    return (const char *)scratch;
}

/* ---- what a chunk makes ---- */

/* Tiles of results, units of channels that are made at once (of all groups), and about how many
 * cycles a tile of these takes, and to read all weights or all of the input. */
typedef struct {
    int64_t tiles, step, of_group, units, cycles, weights, input;
} Work;

enum { PRODUCTS_OF_A_CYCLE = 128, PRODUCTS_OF_AN_EPILOGUE = 32, READ_IN_A_CYCLE = 32, COPIED_IN_A_CYCLE = 6 };

static Work work_of(const octavo_convolution *c, const Windows *w) {
    Work work = {.tiles = w->out.batch * w->out.height * w->tiles, .step = w->depthwise ? 1 : w->units_at_once};
    int64_t groups = w->depthwise ? 1 : c->groups, of_step = w->depthwise ? DEPTHWISE : work.step * BLOCK;
    int64_t window = c->kernel_height * c->kernel_width * w->group_in;
    work.of_group = ceiling(w->units, work.step);
    work.units = groups * work.of_group;
    work.cycles = w->tile * of_step * (window + PRODUCTS_OF_AN_EPILOGUE) / PRODUCTS_OF_A_CYCLE + 1;
    work.weights = groups * w->units * w->unit_bytes / READ_IN_A_CYCLE;
    work.input = c->in.batch * c->in.height * c->in.width * c->in.channels /
                 (w->band_bytes ? COPIED_IN_A_CYCLE : READ_IN_A_CYCLE);
    return work;
}

/* What the largest of so many chunks takes that have some of the pixels each, or all of them for some
 * of the channels. */
static int64_t cycles_by_tiles(const Work *work, int64_t chunks) {
    return ceiling(work->tiles, chunks) * work->units * work->cycles + work->weights;
}

static int64_t cycles_by_units(const Work *work, int64_t chunks) {
    return work->tiles * ceiling(work->units, chunks) * work->cycles + work->input;
}

typedef struct {
    int64_t first_tile, last_tile, first_unit, last_unit;
} Share;

static Share share_of(const Work *work, int64_t chunk, int64_t chunks) {
    int64_t tiles = work->tiles, units = work->units;
    if (cycles_by_units(work, chunks) < cycles_by_tiles(work, chunks))
        return (Share){0, tiles, units * chunk / chunks, units * (chunk + 1) / chunks};
    return (Share){tiles * chunk / chunks, tiles * (chunk + 1) / chunks, 0, units};
}

/* A band of nearly all layers fits, and a thread finds it in its cache again. */
static _Thread_local uint8_t own_scratch[OWN_BYTES] __attribute__((aligned(64)));

void octavo_convolve(const octavo_convolution *c, int chunk, int chunks) {
    Windows w = placed(c);
    octavo_tiles make =
        w.depthwise ? octavo_depthwise_tiles(fours_of(c)) : octavo_dense_tiles(&w);
    Work work = work_of(c, &w);
    Share share = share_of(&work, chunk, chunks);
    uint8_t *scratch = own_scratch;
    if (w.band_bytes > OWN_BYTES)
        scratch = (uint8_t *)(((uintptr_t)c->at.scratch + 63) / 64 * 64) + chunk * w.band_bytes;
    octavo_begin_tiles(&w);
    for (int64_t begin = share.first_tile, end; begin < share.last_tile; begin = end) {
        int64_t row = begin / w.tiles, image_end = (row / w.out.height + 1) * w.out.height;
        end = least(least(row + w.band_rows, image_end) * w.tiles, share.last_tile);
        Band band = {read_band(c, &w, row, ceiling(end, w.tiles), scratch), row, begin, end};
        for (int64_t unit = share.first_unit; unit < share.last_unit; unit++)
            make(c, &w, &band, unit / work.of_group, unit % work.of_group * work.step);
    }
    octavo_end_tiles(&w);
}

/* All take as long as the largest, and a thread may have to wait for half of one. Where bands are
 * copied each chunk copies its own, which other chunks do not find in a cache. */
int octavo_convolution_chunks(const octavo_convolution *c, int threads) {
    Windows w = placed(c);
    Work work = work_of(c, &w);
    int64_t all = work.tiles * work.units * work.cycles, best = INT64_MAX;
    int found = 1, most = octavo_chunks(all / CYCLES_OF_A_CHUNK + 1, threads);
    if (w.band_bytes) most = (int)least(most, COPIES_OF_A_THREAD * threads);
    for (int chunks = 1; chunks <= most; chunks++) {
        int64_t cycles = least(cycles_by_tiles(&work, chunks), cycles_by_units(&work, chunks));
        int64_t whole = ceiling(chunks, threads) * cycles + cycles / 2;
        if (whole < best) best = whole, found = chunks;
    }
    return found;
}

static void convolve(void *context, int chunk, int chunks) {
    octavo_convolve(context, chunk, chunks);
}

void octavo_convolve_in_threads(const octavo_convolution *c, int threads) {
    octavo_stage stage = {convolve, (void *)c, octavo_convolution_chunks(c, threads)};
    octavo_run_stages(&stage, 1, threads);
}

/* ---- packing ---- */

int64_t octavo_scratch_size(const octavo_convolution *c, int chunks) {
    int64_t bytes = placed(c).band_bytes;
    return bytes > OWN_BYTES ? bytes * chunks + 64 : 0;
}

int64_t octavo_packed_size(const octavo_convolution *c) {
    Windows w = windows_of(c);
    return (w.depthwise ? 1 : c->groups) * w.units * w.unit_bytes;
}

/* Where the weights of a run stand among the packed ones. */
static int64_t place(const octavo_convolution *c, const Windows *w, int64_t out, int64_t run) {
    if (w->depthwise)
        return out / DEPTHWISE * w->unit_bytes +
               depthwise_place(
                   c->kernel_width, out % DEPTHWISE, run / c->kernel_width, run % c->kernel_width);
    int64_t channel = out % w->group_out, unit = out / w->group_out * w->units + channel / BLOCK;
    return unit * w->unit_bytes + run * run_bytes(w) + channel % BLOCK * 4;
}

/* Each weight, and where it stands among the packed ones. */
#define FOR_WEIGHTS                                                                          \
    int64_t runs = w.runs_y * w.runs_x, index = 0, ahead = values_ahead(&w) * BLOCK;         \
    int64_t last = ahead ? w.run / AMX_BYTES * AMX_BYTES : w.run;                            \
    for (int64_t out = 0; out < c->out.channels; out++)                                      \
        for (int64_t run = 0, start; start = place(c, &w, out, run), run < runs; run++)      \
            for (int64_t k = 0, at = start; k < w.run;                                       \
                 k++, at = start + k / 4 * (4 * BLOCK) + k % 4 + (k < last ? 0 : ahead), index++)

void octavo_pack_convolution(const octavo_convolution *c, const int8_t *weights, int8_t *packed) {
    Windows w = windows_of(c);
    memset(packed, 0, (size_t)octavo_packed_size(c));
    FOR_WEIGHTS packed[at] = weights[index];
}

void octavo_unpack_convolution(const octavo_convolution *c, const int8_t *packed, int8_t *weights) {
    Windows w = windows_of(c);
    FOR_WEIGHTS weights[index] = packed[at];
}
