/* Tiles of a dense layer's results: up to 14 pixels beside each other, 16 or 32 channels.
 *
 * All sums of a tile stay in registers while a window's runs are read, then go through memory to the
 * epilogue.
 */
#include "epilogue.h"
#include "octavo.h"
#include "tiles.h"

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

static void tile_portable(
    const octavo_convolution *c, const Windows *w, const void *x, int64_t pixels, int64_t result,
    int64_t group, int64_t unit) {
    int64_t last = least(unit + 2, w->units);
    for (; unit < last; unit++) {
        Block block = block_of(c, w, group, unit);
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            int32_t sums[BLOCK] = {0};
            const int8_t *weights = block.weights;
            FOR_RUNS {
                const uint8_t *run = (const uint8_t *)x + pixel * w->pixel + at;
                for (int64_t k = 0; k < w->run; k += 4, weights += 4 * BLOCK)
                    for (int n = 0; n < BLOCK; n++)
                        sums[n] += run[k] * weights[4 * n] + run[k + 1] * weights[4 * n + 1] +
                                   run[k + 2] * weights[4 * n + 2] + run[k + 3] * weights[4 * n + 3];
            }
            for (int64_t n = 0; n < block.count; n++)
                sums[n] -= c->in_zero_point * c->weight_sums[block.channel + n];
            finish(
                &c->epilogue, sums, block.channel, block.count,
                result + pixel * c->out.channels + block.channel, c->y);
        }
    }
}

#if defined(__x86_64__)

/* A table's functions for each number of pixels: NAME(pixels, blocks). */
#define TILES(NAME, BLOCKS)                                                                  \
    NAME(1, BLOCKS) NAME(2, BLOCKS) NAME(3, BLOCKS) NAME(4, BLOCKS) NAME(5, BLOCKS)          \
    NAME(6, BLOCKS) NAME(7, BLOCKS) NAME(8, BLOCKS) NAME(9, BLOCKS) NAME(10, BLOCKS)         \
    NAME(11, BLOCKS) NAME(12, BLOCKS) NAME(13, BLOCKS) NAME(14, BLOCKS)

/* ---- AVX512 with VNNI ---- */

typedef void (*ProductsVnni)(
    const Windows *, const uint8_t *x, const int8_t *weights, const __m512i *first,
    __m512i sums[2][TILE]);

/* The sums of a tile, which begin at `first`. */
INLINE VNNI void products_vnni(
    const Windows *w, const uint8_t *x, const int8_t *weights, const __m512i *first,
    __m512i sums[2][TILE], const int pixels, const int blocks) {
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
        for (int p = 0; p < pixels; p++) sums[b][p] = own[b][p];
}

#define PRODUCTS_VNNI(PIXELS, BLOCKS)                                                       \
    VNNI static void products_vnni_##PIXELS##_##BLOCKS(                                     \
        const Windows *w, const uint8_t *x, const int8_t *weights, const __m512i *first,    \
        __m512i sums[2][TILE]) {                                                            \
        products_vnni(w, x, weights, first, sums, PIXELS, BLOCKS);                          \
    }
#define NAME_VNNI(PIXELS, BLOCKS) products_vnni_##PIXELS##_##BLOCKS,

TILES(PRODUCTS_VNNI, 1)
TILES(PRODUCTS_VNNI, 2)
static const ProductsVnni table_vnni[2][TILE] = {{TILES(NAME_VNNI, 1)}, {TILES(NAME_VNNI, 2)}};

/* The epilogue of a block of channels for all pixels of a tile, without an activation but a clip. */
INLINE VNNI void finish_clipped_vnni(
    const octavo_convolution *c, const Block *block, const __m512i *sums, int64_t pixels, int64_t at,
    const int added) {
    const octavo_epilogue *e = &c->epilogue;
    Rounding r = rounding_of(e);
    __mmask16 mask = (__mmask16)((1u << block->count) - 1);
    __m512 scales = _mm512_maskz_loadu_ps(mask, e->scales + block->channel);
    __m512 bias = _mm512_maskz_loadu_ps(mask, e->bias + block->channel);
    __m512 low = _mm512_set1_ps(r.low), high = _mm512_set1_ps(r.high);
    __m512 step = _mm512_set1_ps(e->out_scale), inverse = _mm512_set1_ps(r.inverse);
    __m512i zero_point = _mm512_set1_epi32(e->out_zero_point);
    for (int64_t p = 0; p < pixels; p++, at += c->out.channels) {
        __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[p]), scales, bias);
        if (added) {
            __m128i bytes = _mm_maskz_loadu_epi8(mask, e->addend + at);
            __m512i steps = _mm512_sub_epi32(
                _mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(e->addend_zero_point));
            v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(steps), _mm512_set1_ps(e->addend_scale), v);
        }
        v = _mm512_min_ps(_mm512_max_ps(v, low), high);
        /* The quotient as division has it (P. Markstein), which takes as long as five products. */
        __m512 q = _mm512_mul_ps(v, inverse);
        q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, step, v), inverse, q);
        __m512i integers = _mm512_add_epi32(_mm512_cvtps_epi32(q), zero_point);
        _mm_mask_storeu_epi8((uint8_t *)c->y + at, mask, _mm512_cvtepi32_epi8(integers));
    }
}

VNNI static void finish_vnni(
    const octavo_convolution *c, const Block *block, const __m512i *sums, int64_t pixels,
    int64_t result) {
    const octavo_epilogue *e = &c->epilogue;
    int64_t at = result + block->channel;
    if (is_clipped(e) && e->addend)
        finish_clipped_vnni(c, block, sums, pixels, at, 1);
    else if (is_clipped(e))
        finish_clipped_vnni(c, block, sums, pixels, at, 0);
    else
        for (int64_t p = 0; p < pixels; p++, at += c->out.channels)
            finish(e, (const int32_t *)&sums[p], block->channel, block->count, at, c->y);
}

VNNI static void tile_vnni(
    const octavo_convolution *c, const Windows *w, const void *x, int64_t pixels, int64_t result,
    int64_t group, int64_t unit) {
    int64_t blocks = least(2, w->units - unit);
    __m512i sums[2][TILE], first[2];
    Block block[2];
    for (int64_t b = 0; b < blocks; b++) {
        block[b] = block_of(c, w, group, unit + b);
        __mmask16 mask = (__mmask16)((1u << block[b].count) - 1);
        __m512i of_weights = _mm512_maskz_loadu_epi32(mask, c->weight_sums + block[b].channel);
        first[b] = _mm512_mullo_epi32(of_weights, _mm512_set1_epi32(-c->in_zero_point));
    }
    table_vnni[blocks - 1][pixels - 1](w, x, block[0].weights, first, sums);
    for (int64_t b = 0; b < blocks; b++) finish_vnni(c, &block[b], sums[b], pixels, result);
}

#endif

/* ---- which of them ---- */

octavo_tile octavo_dense_tile(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return tile_vnni;
#endif
    default: return tile_portable;
    }
}
