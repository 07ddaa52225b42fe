/* Tiles of a dense layer's results: up to 14 pixels beside each other, 16 or 32 channels.
 *
 * All sums of a tile stay in registers while a window's runs are read, then go through memory to the
 * epilogue.
 */
#include "epilogue.h"
#include "octavo.h"
#include "windows.h"

typedef struct {
    const int8_t *weights;
    int64_t channel, count; /* of results; count is less than 16 in a group's last block */
} Block;

INLINE Block block_of(const octavo_convolution *c, const Windows *w, int64_t group, int64_t unit) {
    return (Block){
        c->weights + (group * w->units + unit) * w->unit_bytes,
        group * w->group_out + unit * BLOCK, least(BLOCK, w->group_out - unit * BLOCK)};
}

/* Each run of a window, at `run`, which counts from its first pixel. */
#define FOR_RUNS                                                         \
    for (int64_t y = 0; y < w->runs_y; y++)                              \
        for (int64_t at = y * w->step_y, run_x = 0; run_x < w->runs_x; run_x++, at += w->step_x)

/* ---- every CPU ---- */

static void block_portable(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const Block *block) {
    for (int64_t pixel = 0; pixel < tile->pixels; pixel++) {
        int32_t sums[BLOCK] = {0};
        const int8_t *weights = block->weights;
        FOR_RUNS {
            const uint8_t *run = (const uint8_t *)tile->x + pixel * w->pixel + at;
            for (int64_t k = 0; k < w->run; k += 4, weights += 4 * BLOCK)
                for (int n = 0; n < BLOCK; n++)
                    sums[n] += run[k] * weights[4 * n] + run[k + 1] * weights[4 * n + 1] +
                               run[k + 2] * weights[4 * n + 2] + run[k + 3] * weights[4 * n + 3];
        }
        for (int64_t n = 0; n < block->count; n++)
            sums[n] -= c->in_zero_point * c->weight_sums[block->channel + n];
        finish(
            &c->epilogue, sums, block->channel, block->count,
            tile->result + pixel * c->out.channels + block->channel, c->y);
    }
}

static void tiles_portable(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    for (int64_t last = least(unit + 2, w->units); unit < last; unit++) {
        Block block = block_of(c, w, group, unit);
        for (int64_t i = band->begin; i < band->end; i++) {
            Tile tile = tile_of(c, w, band, i, group * w->group_in);
            block_portable(c, w, &tile, &block);
        }
    }
}

#if defined(__x86_64__)

/* ---- AVX2: pixels are int16 ---- */

enum { PIXELS_AVX2 = 3 }; /* times 16 channels, whose sums stand in two lanes side by side */

INLINE AVX2 void products_avx2(
    const Windows *w, const int16_t *x, const int8_t *weights, const int32_t *first,
    int32_t sums[PIXELS_AVX2][BLOCK], const int pixels) {
    __m256i own[PIXELS_AVX2][4];
    int64_t pixel = w->pixel, length = w->run;
    for (int p = 0; p < pixels; p++)
        for (int i = 0; i < 4; i++) own[p][i] = _mm256_setzero_si256();
    FOR_RUNS {
        const int16_t *run = x + at;
        for (int64_t k = 0; k < length; k += 4, weights += 4 * BLOCK, run += 4) {
            __m256i four[PIXELS_AVX2];
            for (int p = 0; p < pixels; p++) {
                int64_t bits;
                memcpy(&bits, run + p * pixel, 8);
                four[p] = _mm256_set1_epi64x(bits);
            }
            for (int i = 0; i < 4; i++) {
                __m256i of_four = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weights + i));
                for (int p = 0; p < pixels; p++)
                    own[p][i] = _mm256_add_epi32(own[p][i], _mm256_madd_epi16(of_four, four[p]));
            }
        }
    }
    for (int p = 0; p < pixels; p++) store_pairs(own[p], first, sums[p]);
}

AVX2 static void block_avx2(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const Block *block,
    const int32_t first[BLOCK]) {
    const int16_t *x = (const int16_t *)tile->x;
    for (int64_t done = 0; done < tile->pixels; done += PIXELS_AVX2) {
        int64_t pixels = least(PIXELS_AVX2, tile->pixels - done);
        int32_t sums[PIXELS_AVX2][BLOCK];
        switch (pixels) {
        case 1: products_avx2(w, x + done * w->pixel, block->weights, first, sums, 1); break;
        case 2: products_avx2(w, x + done * w->pixel, block->weights, first, sums, 2); break;
        default: products_avx2(w, x + done * w->pixel, block->weights, first, sums, PIXELS_AVX2);
        }
        for (int64_t p = 0; p < pixels; p++)
            finish(
                &c->epilogue, sums[p], block->channel, block->count,
                tile->result + (done + p) * c->out.channels + block->channel, c->y);
    }
}

AVX2 static void tiles_avx2(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    for (int64_t last = least(unit + 2, w->units); unit < last; unit++) {
        Block block = block_of(c, w, group, unit);
        int32_t first[BLOCK] = {0};
        for (int64_t n = 0; n < block.count; n++)
            first[n] = -c->in_zero_point * c->weight_sums[block.channel + n];
        for (int64_t i = band->begin; i < band->end; i++) {
            Tile tile = tile_of(c, w, band, i, group * w->group_in);
            block_avx2(c, w, &tile, &block, first);
        }
    }
}

/* ---- AVX512 with VNNI ---- */

/* A table's functions for each number of pixels: NAME(pixels, blocks). */
#define TILES(NAME, BLOCKS)                                                                  \
    NAME(1, BLOCKS) NAME(2, BLOCKS) NAME(3, BLOCKS) NAME(4, BLOCKS) NAME(5, BLOCKS)          \
    NAME(6, BLOCKS) NAME(7, BLOCKS) NAME(8, BLOCKS) NAME(9, BLOCKS) NAME(10, BLOCKS)         \
    NAME(11, BLOCKS) NAME(12, BLOCKS) NAME(13, BLOCKS) NAME(14, BLOCKS)

typedef void (*ProductsVnni)(
    const Windows *, const uint8_t *x, const int8_t *weights, const __m512i *first,
    int32_t sums[2][TILE][BLOCK]);

/* The sums of a tile, which begin at `first`. */
INLINE VNNI void products_vnni(
    const Windows *w, const uint8_t *x, const int8_t *weights, const __m512i *first,
    int32_t sums[2][TILE][BLOCK], const int pixels, const int blocks) {
    __m512i own[2][TILE];
    int64_t pixel = w->pixel, unit = w->unit_bytes, length = w->run;
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < pixels; p++) own[b][p] = first[b];
    FOR_RUNS {
        const uint8_t *run = x + at;
        for (int64_t k = 0; k < length; k += 4, weights += 4 * BLOCK, run += 4) {
            __m512i of_block[2];
            for (int b = 0; b < blocks; b++) of_block[b] = _mm512_loadu_si512(weights + b * unit);
            for (int p = 0; p < pixels; p++) {
                int32_t bits;
                memcpy(&bits, run + p * pixel, 4);
                __m512i four = _mm512_set1_epi32(bits);
                for (int b = 0; b < blocks; b++)
                    own[b][p] = _mm512_dpbusd_epi32(own[b][p], four, of_block[b]);
            }
        }
    }
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < pixels; p++) _mm512_store_si512(sums[b][p], own[b][p]);
}

#define PRODUCTS_VNNI(PIXELS, BLOCKS)                                                       \
    VNNI static void products_vnni_##PIXELS##_##BLOCKS(                                     \
        const Windows *w, const uint8_t *x, const int8_t *weights, const __m512i *first,    \
        int32_t sums[2][TILE][BLOCK]) {                                                            \
        products_vnni(w, x, weights, first, sums, PIXELS, BLOCKS);                          \
    }
#define NAME_VNNI(PIXELS, BLOCKS) products_vnni_##PIXELS##_##BLOCKS,

TILES(PRODUCTS_VNNI, 1)
TILES(PRODUCTS_VNNI, 2)
static const ProductsVnni table_vnni[2][TILE] = {{TILES(NAME_VNNI, 1)}, {TILES(NAME_VNNI, 2)}};

/* A block's constants, for all its tiles. */
typedef struct {
    Block block;
    __mmask16 mask;
    __m512i first; /* what sums begin at */
    __m512 scales, bias;
    Steps512 in;
} Block512;

INLINE VNNI void prepare(Block512 *b, const octavo_convolution *c, Block block) {
    const octavo_epilogue *e = &c->epilogue;
    b->block = block;
    b->mask = (__mmask16)((1u << block.count) - 1);
    b->first = _mm512_mullo_epi32(
        _mm512_maskz_loadu_epi32(b->mask, c->weight_sums + block.channel),
        _mm512_set1_epi32(-c->in_zero_point));
    if (!is_clipped(e)) return;
    b->scales = in_steps(e, e->scales + block.channel, b->mask);
    b->bias = in_steps(e, e->bias + block.channel, b->mask);
    b->in = steps_of(e);
}

/* The epilogue of a block for all pixels of a tile, without an activation but a clip. */
INLINE VNNI void finish_clipped(
    const octavo_convolution *c, const Block512 *b, int32_t sums[TILE][BLOCK], int64_t pixels, int64_t at,
    const int added, const int whole) {
    const uint8_t *from = c->epilogue.addend + at;
    uint8_t *to = (uint8_t *)c->y + at;
    int64_t step = c->out.channels;
    const __m512 scales = b->scales, bias = b->bias;
    const Steps512 in = b->in;
    for (int64_t p = 0; p < pixels; p++, to += step, from += step) {
        __m512i addend;
        if (added)
            addend = _mm512_cvtepu8_epi32(
                whole ? _mm_loadu_si128((const __m128i *)from) : _mm_maskz_loadu_epi8(b->mask, from));
        __m128i bytes =
            _mm512_cvtepi32_epi8(stored(_mm512_load_si512(sums[p]), scales, bias, added ? &addend : NULL, &in));
        if (whole)
            _mm_storeu_si128((__m128i *)to, bytes);
        else
            _mm_mask_storeu_epi8(to, b->mask, bytes);
    }
}

VNNI static void finish_vnni(
    const octavo_convolution *c, const Block512 *b, int32_t sums[TILE][BLOCK], int64_t pixels,
    int64_t result) {
    const octavo_epilogue *e = &c->epilogue;
    int64_t at = result + b->block.channel;
    if (is_clipped(e))
        switch ((e->addend ? 2 : 0) + (b->block.count == BLOCK)) {
        case 0: finish_clipped(c, b, sums, pixels, at, 0, 0); break;
        case 1: finish_clipped(c, b, sums, pixels, at, 0, 1); break;
        case 2: finish_clipped(c, b, sums, pixels, at, 1, 0); break;
        default: finish_clipped(c, b, sums, pixels, at, 1, 1);
        }
    else
        for (int64_t p = 0; p < pixels; p++, at += c->out.channels)
            finish(e, sums[p], b->block.channel, b->block.count, at, c->y);
}

VNNI static void tiles_vnni(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    int64_t blocks = least(2, w->units - unit);
    int32_t sums[2][TILE][BLOCK] __attribute__((aligned(64)));
    __m512i first[2];
    Block512 block[2];
    for (int64_t b = 0; b < blocks; b++) {
        prepare(&block[b], c, block_of(c, w, group, unit + b));
        first[b] = block[b].first;
    }
    for (int64_t i = band->begin; i < band->end; i++) {
        Tile tile = tile_of(c, w, band, i, group * w->group_in);
        if (!tile.pixels) continue;
        table_vnni[blocks - 1][tile.pixels - 1](
            w, (const uint8_t *)tile.x, block[0].block.weights, first, sums);
        for (int64_t b = 0; b < blocks; b++)
            finish_vnni(c, &block[b], sums[b], tile.pixels, tile.result);
    }
}

#endif

/* ---- which of them ---- */

octavo_tiles octavo_dense_tiles(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return tiles_vnni;
    case OCTAVO_AVX2: return tiles_avx2;
#endif
    default: return tiles_portable;
    }
}
