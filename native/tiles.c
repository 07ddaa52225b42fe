/* Tiles of a dense layer's results: up to 14 pixels beside each other (16 with AMX), 16 or 32 channels.
 *
 * All sums of a tile stay in registers while a window's runs are read, then go through memory to the
 * epilogue.
 */
#include "amx.h"
#include "epilogue.h"
#include "octavo.h"
#include "windows.h"

/* Prepares a unit; returns its weights. */
INLINE const int8_t *prepare_unit(
    Prepared *p, const octavo_convolution *c, const Windows *w, int64_t group, int64_t unit) {
    int64_t channel = unit * BLOCK;
    prepare(p, c, group * w->group_out + channel, least(BLOCK, w->group_out - channel));
    return c->weights + (group * w->units + unit) * w->unit_bytes;
}

/* Each run of a window, at `run`, which counts from its first pixel. */
#define FOR_RUNS                                                         \
    for (int64_t y = 0; y < w->runs_y; y++)                              \
        for (int64_t at = y * w->step_y, run_x = 0; run_x < w->runs_x; run_x++, at += w->step_x)

/* ---- every CPU ---- */

static void tile_portable(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const int8_t *packed,
    const Prepared *p) {
    for (int64_t pixel = 0; pixel < tile->pixels; pixel++) {
        int32_t sums[BLOCK];
        const int8_t *weights = packed;
        memcpy(sums, p->first, sizeof sums);
        FOR_RUNS {
            const uint8_t *run = (const uint8_t *)tile->x + pixel * w->pixel + at;
            for (int64_t k = 0; k < w->run; k += 4, weights += 4 * BLOCK)
                for (int n = 0; n < BLOCK; n++)
                    sums[n] += run[k] * weights[4 * n] + run[k + 1] * weights[4 * n + 1] +
                               run[k + 2] * weights[4 * n + 2] + run[k + 3] * weights[4 * n + 3];
        }
        finish(
            &c->epilogue, sums, p->channel, p->count,
            tile->result + pixel * c->out.channels + p->channel, c->at.y);
    }
}

static void tiles_portable(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    for (int64_t last = least(unit + 2, w->units); unit < last; unit++) {
        Prepared p;
        const int8_t *weights = prepare_unit(&p, c, w, group, unit);
        FOR_TILES(tile, group * w->group_in) tile_portable(c, w, &tile, weights, &p);
    }
}

#if defined(__x86_64__)

/* ---- AVX2: up to 6 pixels ---- */

enum { SIX = 6, THREE = 3 };

typedef void (*ProductsAvx2)(
    const Windows *, const char *x, const int8_t *weights, const int32_t *first,
    int32_t sums[SIX][BLOCK]);

/* Of uint8, where the products of two weights sum within int16. */
INLINE AVX2 void narrow_products(
    const Windows *w, const char *x, const int8_t *weights, const int32_t *first,
    int32_t sums[SIX][BLOCK], const int pixels) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i own[SIX][2];
    int64_t pixel = w->pixel, length = w->run;
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int i = 0; i < 2; i++) own[p][i] = _mm256_loadu_si256((const __m256i *)first + i);
    FOR_RUNS {
        const char *run = x + at;
        for (int64_t k = 0; k < length; k += 4, weights += 4 * BLOCK, run += 4) {
            __m256i low = _mm256_loadu_si256((const __m256i *)weights);
            __m256i high = _mm256_loadu_si256((const __m256i *)weights + 1);
            UNROLL for (int p = 0; p < pixels; p++) {
                int32_t bits;
                memcpy(&bits, run + p * pixel, 4);
                __m256i four = _mm256_set1_epi32(bits);
                __m256i a = _mm256_maddubs_epi16(four, low), b = _mm256_maddubs_epi16(four, high);
                own[p][0] = _mm256_add_epi32(own[p][0], _mm256_madd_epi16(a, one));
                own[p][1] = _mm256_add_epi32(own[p][1], _mm256_madd_epi16(b, one));
            }
        }
    }
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int i = 0; i < 2; i++) _mm256_storeu_si256((__m256i *)sums[p] + i, own[p][i]);
}

/* Of int16; each sum in two lanes side by side. */
INLINE AVX2 void wide_products(
    const Windows *w, const char *x, const int8_t *weights, const int32_t *first,
    int32_t sums[SIX][BLOCK], const int pixels) {
    __m256i own[THREE][4];
    int64_t pixel = w->pixel, length = w->run;
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int i = 0; i < 4; i++) own[p][i] = _mm256_setzero_si256();
    FOR_RUNS {
        const int16_t *run = (const int16_t *)x + at;
        for (int64_t k = 0; k < length; k += 4, weights += 4 * BLOCK, run += 4) {
            __m256i four[THREE];
            UNROLL for (int p = 0; p < pixels; p++) {
                int64_t bits;
                memcpy(&bits, run + p * pixel, 8);
                four[p] = _mm256_set1_epi64x(bits);
            }
            UNROLL for (int i = 0; i < 4; i++) {
                __m256i of_four = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weights + i));
                UNROLL for (int p = 0; p < pixels; p++)
                    own[p][i] = _mm256_add_epi32(own[p][i], _mm256_madd_epi16(of_four, four[p]));
            }
        }
    }
    UNROLL for (int p = 0; p < pixels; p++) store_pairs(own[p], first, sums[p]);
}

#define PRODUCTS_AVX2(KIND, PIXELS)                                                           \
    AVX2 static void KIND##_products_##PIXELS(                                                \
        const Windows *w, const char *x, const int8_t *weights, const int32_t *first,         \
        int32_t sums[SIX][BLOCK]) {                                                           \
        KIND##_products(w, x, weights, first, sums, PIXELS);                                  \
    }

PRODUCTS_AVX2(narrow, 1)
PRODUCTS_AVX2(narrow, 2)
PRODUCTS_AVX2(narrow, 3)
PRODUCTS_AVX2(narrow, 4)
PRODUCTS_AVX2(narrow, 5)
PRODUCTS_AVX2(narrow, 6)
PRODUCTS_AVX2(wide, 1)
PRODUCTS_AVX2(wide, 2)
PRODUCTS_AVX2(wide, 3)
static const ProductsAvx2 table_narrow[SIX] = {
    narrow_products_1, narrow_products_2, narrow_products_3,
    narrow_products_4, narrow_products_5, narrow_products_6};
static const ProductsAvx2 table_wide[THREE] = {wide_products_1, wide_products_2, wide_products_3};

AVX2 static void tile_avx2(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const int8_t *weights,
    const Prepared *p) {
    const ProductsAvx2 *table = w->size == 1 ? table_narrow : table_wide;
    int64_t parts = ceiling(tile->pixels, w->size == 1 ? SIX : THREE);
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = tile->pixels * part / parts, pixels = tile->pixels * (part + 1) / parts - first;
        int64_t at = tile->result + first * c->out.channels + p->channel;
        int32_t sums[SIX][BLOCK];
        table[pixels - 1](w, tile->x + first * w->pixel * w->size, weights, p->first, sums);
        Runs runs = {p->channel, 0, p->channel + p->count, at, c->out.channels};
        if (is_clipped(&c->epilogue))
            for (int64_t i = 0; i < pixels; i++, at += c->out.channels)
                finish_avx2(&c->epilogue, p, sums[i], at, c->at.y);
        else
            finish_runs(&c->epilogue, sums[0], pixels, &runs, c->at.y);
    }
}

AVX2 static void tiles_avx2(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    for (int64_t last = least(unit + 2, w->units); unit < last; unit++) {
        Prepared p;
        const int8_t *weights = prepare_unit(&p, c, w, group, unit);
        FOR_TILES(tile, group * w->group_in) tile_avx2(c, w, &tile, weights, &p);
    }
}

/* ---- AVX512 with VNNI ---- */

/* Of a unit: 16 of each pixel. */
typedef int32_t Sums[2 * AMX_TILE][BLOCK];

/* A table's functions for each number of pixels: NAME(pixels, blocks). */
#define TILES(NAME, BLOCKS)                                                                  \
    NAME(1, BLOCKS) NAME(2, BLOCKS) NAME(3, BLOCKS) NAME(4, BLOCKS) NAME(5, BLOCKS)          \
    NAME(6, BLOCKS) NAME(7, BLOCKS) NAME(8, BLOCKS) NAME(9, BLOCKS) NAME(10, BLOCKS)         \
    NAME(11, BLOCKS) NAME(12, BLOCKS) NAME(13, BLOCKS) NAME(14, BLOCKS)

typedef void (*ProductsVnni)(
    const Windows *, const char *x, const int8_t *weights, const Prepared *prepared,
    Sums *sums);

INLINE VNNI void products_vnni(
    const Windows *w, const char *x, const int8_t *weights, const Prepared *prepared,
    Sums *sums, const int pixels, const int blocks) {
    __m512i own[2][TILE];
    int64_t pixel = w->pixel, unit = w->unit_bytes, length = w->run;
    UNROLL for (int b = 0; b < blocks; b++)
        UNROLL for (int p = 0; p < pixels; p++) own[b][p] = _mm512_loadu_si512(prepared[b].first);
    FOR_RUNS {
        const char *run = x + at;
        for (int64_t k = 0; k < length; k += 4, weights += 4 * BLOCK, run += 4) {
            __m512i of_block[2];
            UNROLL for (int b = 0; b < blocks; b++) of_block[b] = _mm512_loadu_si512(weights + b * unit);
            UNROLL for (int p = 0; p < pixels; p++) {
                int32_t bits;
                memcpy(&bits, run + p * pixel, 4);
                __m512i four = _mm512_set1_epi32(bits);
                UNROLL for (int b = 0; b < blocks; b++)
                    own[b][p] = _mm512_dpbusd_epi32(own[b][p], four, of_block[b]);
            }
        }
    }
    UNROLL for (int b = 0; b < blocks; b++)
        UNROLL for (int p = 0; p < pixels; p++) _mm512_store_si512(sums[b][p], own[b][p]);
}

#define PRODUCTS_VNNI(PIXELS, BLOCKS)                                                       \
    VNNI static void products_vnni_##PIXELS##_##BLOCKS(                                     \
        const Windows *w, const char *x, const int8_t *weights, const Prepared *prepared,   \
        Sums *sums) {                                                            \
        products_vnni(w, x, weights, prepared, sums, PIXELS, BLOCKS);                          \
    }
#define NAME_VNNI(PIXELS, BLOCKS) products_vnni_##PIXELS##_##BLOCKS,

TILES(PRODUCTS_VNNI, 1)
TILES(PRODUCTS_VNNI, 2)
static const ProductsVnni table_vnni[2][TILE] = {{TILES(NAME_VNNI, 1)}, {TILES(NAME_VNNI, 2)}};

/* The epilogue of up to four registers of sums: of one block or two side by side, `count` pixels. */
INLINE VNNI void finish_four(
    const octavo_convolution *c, const Prepared512 *known, Sums *sums,
    int64_t first, int64_t count, int64_t at, __mmask32 mask, const int blocks, const int whole,
    const Ending ending) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    int64_t step = c->out.channels;
    const uint8_t *from = (const uint8_t *)c->epilogue.addend + at;
    uint8_t *to = (uint8_t *)c->at.y + at;
    __m512i steps[4];
    UNROLL for (int i = 0; i < 4; i++) {
        int64_t pixel = least(i / blocks, count - 1);
        const int b = i % blocks;
        const uint8_t *bytes = from + pixel * step + b * BLOCK;
        __m512i addend = _mm512_setzero_si512();
        if (ending == ADDED)
            addend = _mm512_cvtepu8_epi32(
                whole ? _mm_loadu_si128((const __m128i *)bytes)
                      : _mm_maskz_loadu_epi8((__mmask16)(mask >> b * BLOCK), bytes));
        __m512i own = _mm512_load_si512(sums[b][first + pixel]);
        steps[i] = in_steps(own, addend, known + b, ending);
    }
    __m512i bytes = _mm512_permutexvar_epi32(order, in_bytes(steps, known, ending));
    UNROLL for (int i = 0; i < count; i++, to += step) {
        __m256i two = _mm512_castsi512_si256(bytes);
        if (whole && blocks == 2)
            _mm256_storeu_si256((__m256i *)to, two);
        else if (whole)
            _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(two));
        else
            _mm256_mask_storeu_epi8(to, mask, two);
        bytes = blocks == 2 ? _mm512_shuffle_i32x4(bytes, bytes, 0x4e)
                            : _mm512_shuffle_i32x4(bytes, bytes, 0x39);
    }
}

INLINE VNNI void finish_bytes(
    const octavo_convolution *c, const Prepared *prepared, const Prepared512 *kept, Sums *sums,
    int64_t pixels, int64_t at, const int blocks, const int whole, const Ending ending) {
    const int at_once = 4 / blocks;
    int64_t count = BLOCK * (blocks - 1) + prepared[blocks - 1].count, step = c->out.channels, p = 0;
    __mmask32 mask = (__mmask32)(((uint64_t)1 << count) - 1);
    Prepared512 known[2]; /* in registers: what is stored might be theirs, as far as compilers know */
    UNROLL for (int b = 0; b < blocks; b++) known[b] = kept[b];
    for (; p + at_once <= pixels; p += at_once)
        finish_four(c, known, sums, p, at_once, at + p * step, mask, blocks, whole, ending);
    if (p < pixels)
        finish_four(c, known, sums, p, pixels - p, at + p * step, mask, blocks, whole, ending);
}

/* Two units after the other, the last one may be alone. */
INLINE VNNI void finish_units(
    const octavo_convolution *c, const Prepared *p, const Prepared512 *known, Sums *sums,
    int64_t pixels, int64_t at, int64_t units, const Ending ending) {
    for (; units > 0; units -= 2, p += 2, known += 2, sums += 2, at += 2 * BLOCK) {
        int whole = p[units > 1].count == BLOCK;
        if (units > 1 && whole)
            finish_bytes(c, p, known, sums, pixels, at, 2, 1, ending);
        else if (units > 1)
            finish_bytes(c, p, known, sums, pixels, at, 2, 0, ending);
        else if (whole)
            finish_bytes(c, p, known, sums, pixels, at, 1, 1, ending);
        else
            finish_bytes(c, p, known, sums, pixels, at, 1, 0, ending);
    }
}

#define ENDED(ENDING)                                                                        \
    case ENDING: finish_units(c, p, known, sums, pixels, at, units, ENDING); break;

/* The epilogue of some units for pixels beside each other. */
VNNI static void finish_vnni(
    const octavo_convolution *c, const Prepared *p, const Prepared512 *known, Sums *sums,
    int64_t pixels, int64_t result, int64_t units) {
    int64_t at = result + p->channel;
    Ending ending = p->ending;
    for (int64_t i = 1; i < units; i++)
        if (p[i].ending != ending) ending = CUT; /* one is BARE */
    switch (ending) {
        ENDED(BARE)
        ENDED(CUT)
        ENDED(ADDED)
        ENDED(SILU)
        ENDED(HARDSWISH)
    case ANY_ENDING:
        for (int64_t i = 0; i < units; i++, at += BLOCK)
            for (int64_t first = 0; first < pixels; first += MOST_RUNS) {
                int64_t step = c->out.channels, from = at + first * step;
                Runs runs = {p[i].channel, 0, p[i].channel + p[i].count, from, step};
                finish_runs_vnni(
                    &c->epilogue, sums[i][first], least(MOST_RUNS, pixels - first), &runs, c->at.y);
            }
    }
}

VNNI static void tiles_vnni(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    int64_t blocks = least(2, w->units - unit);
    Sums sums[2] __attribute__((aligned(64)));
    Prepared prepared[2];
    const int8_t *weights = prepare_unit(&prepared[0], c, w, group, unit);
    if (blocks > 1) prepare_unit(&prepared[1], c, w, group, unit + 1);
    Prepared512 known[2];
    for (int64_t b = 0; b < blocks; b++) known[b] = in_registers(&c->epilogue, prepared + b);
    FOR_TILES(tile, group * w->group_in) {
        if (tile.pixels < 1) continue;
        table_vnni[blocks - 1][tile.pixels - 1](w, tile.x, weights, prepared, sums);
        finish_vnni(c, prepared, known, sums, tile.pixels, tile.result, blocks);
    }
}

#endif

/* ---- AMX ---- */

#if defined(OCTAVO_KNOWS_AMX)

/* Registers: the sums of two tiles by two units of channels, of up to 64 of a window's values those
 * that the pixels of a tile have, and their weights. */
#define SUMS 0
#define NEXT_UNITS_SUMS 1
#define NEXT_TILES_SUMS 2
#define LAST_SUMS 3
#define X 4
#define NEXT_X 5
#define WEIGHTS 6
#define NEXT_WEIGHTS 7

enum { STEP = 4 * BLOCK }; /* from four of a window's values to the next, among the weights */

AMX void octavo_begin_tiles(const Windows *w) {
    if (!w->by_amx) return;
    TileSizes sizes = {.palette = 1};
    int64_t bytes = least(w->length, TILE_BYTES);
    for (int t = SUMS; t < TILE_REGISTERS; t++) {
        sizes.rows[t] = (uint8_t)(t < WEIGHTS ? w->tile : bytes / 4);
        sizes.bytes[t] = (uint16_t)(t == X || t == NEXT_X ? bytes : TILE_BYTES);
    }
    tile_sizes(&sizes);
}

AMX void octavo_end_tiles(const Windows *w) {
    if (w->by_amx) tile_release();
}

/* One step of a window's values. */
INLINE AMX void step(
    const char *x, const char *next_x, int64_t pixel, const int8_t *weights,
    const int8_t *next_weights, const int tiles, const int blocks) {
    tile_read(X, x, pixel);
    tile_read(WEIGHTS, weights, STEP);
    tile_products(SUMS, X, WEIGHTS);
    if (blocks > 1) {
        tile_read(NEXT_WEIGHTS, next_weights, STEP);
        tile_products(NEXT_UNITS_SUMS, X, NEXT_WEIGHTS);
    }
    if (tiles > 1) {
        tile_read(NEXT_X, next_x, pixel);
        tile_products(NEXT_TILES_SUMS, NEXT_X, WEIGHTS);
        if (blocks > 1) tile_products(LAST_SUMS, NEXT_X, NEXT_WEIGHTS);
    }
}

/* The sums of up to two tiles by two units, one tile's behind the other's. The last step of a run ends where
 * the run does, and what it has in common with the one before meets weights of zero: so nothing behind a
 * window is read. */
INLINE AMX void make_sums(
    const Windows *w, const Tile *pair, const int8_t *weights, const Prepared *p, Sums *sums,
    const int tiles, const int blocks) {
    int64_t pixel = w->pixel, unit = w->unit_bytes, length = w->length, rows = w->tile;
    int64_t end = length > TILE_BYTES ? length - TILE_BYTES : 0;
    int64_t bytes = least(length, TILE_BYTES) * BLOCK;
    const char *x = pair[0].x, *next_x = pair[1].x;
    tile_read(SUMS, p[0].first, 0);
    if (blocks > 1) tile_read(NEXT_UNITS_SUMS, p[1].first, 0);
    if (tiles > 1) tile_read(NEXT_TILES_SUMS, p[0].first, 0);
    if (tiles > 1 && blocks > 1) tile_read(LAST_SUMS, p[1].first, 0);
    FOR_RUNS
        for (int64_t k = 0; k < length; k += TILE_BYTES, weights += bytes) {
            int64_t from = at + least(k, end);
            step(x + from, next_x + from, pixel, weights, weights + unit, tiles, blocks);
        }
    tile_write(SUMS, sums[0], STEP);
    if (blocks > 1) tile_write(NEXT_UNITS_SUMS, sums[1], STEP);
    if (tiles > 1) tile_write(NEXT_TILES_SUMS, sums[0][rows], STEP);
    if (tiles > 1 && blocks > 1) tile_write(LAST_SUMS, sums[1][rows], STEP);
}

/* The epilogue of all units of a pair: of both tiles at once where they are beside each other. */
AMX static void finish_pair(
    const octavo_convolution *c, const Windows *w, const Tile *pair, int64_t tiles, const Prepared *p,
    const Prepared512 *known, Sums *sums, int64_t units) {
    int64_t behind = pair[0].result + w->tile * c->out.channels;
    int are_joined = tiles > 1 && !pair[0].ahead && !pair[1].ahead && pair[1].result == behind;
    if (are_joined) {
        finish_vnni(c, p, known, sums, w->tile + pair[1].pixels, pair[0].result, units);
        return;
    }
    for (int64_t t = 0; t < tiles; t++)
        finish_vnni(
            c, p, known, (Sums *)sums[0][t * w->tile + pair[t].ahead], pair[t].pixels, pair[t].result, units);
}

/* All products of a pair of tiles, then all of its epilogue: for some 200 cycles behind an instruction on
 * tiles vectors of floats take twice as long. Its results fill lines of the cache. */
AMX static void tiles_amx(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    int64_t units = least(w->units_at_once, w->units - unit), count = 0;
    Sums sums[MOST_UNITS] __attribute__((aligned(64)));
    Prepared prepared[MOST_UNITS];
    Prepared512 known[MOST_UNITS];
    Tile pair[2];
    for (int64_t i = 0; i < units; i++) {
        prepare_unit(prepared + i, c, w, group, unit + i);
        known[i] = in_registers(&c->epilogue, prepared + i);
    }
    FOR_TILES(tile, group * w->group_in) {
        if (tile.pixels > 0) pair[count++] = tile;
        if (!count || (count < 2 && tile.index + 1 < band->end)) continue;
        const int8_t *weights = c->weights + (group * w->units + unit) * w->unit_bytes;
        for (int64_t i = 0; i < units; i += 2, weights += 2 * w->unit_bytes)
            switch (count * 2 + least(2, units - i)) {
            case 3: make_sums(w, pair, weights, prepared + i, sums + i, 1, 1); break;
            case 4: make_sums(w, pair, weights, prepared + i, sums + i, 1, 2); break;
            case 5: make_sums(w, pair, weights, prepared + i, sums + i, 2, 1); break;
            case 6: make_sums(w, pair, weights, prepared + i, sums + i, 2, 2); break;
            }
        finish_pair(c, w, pair, count, prepared, known, sums, units);
        count = 0;
    }
}

#else

void octavo_begin_tiles(const Windows *w) { (void)w; }
void octavo_end_tiles(const Windows *w) { (void)w; }

#endif

/* ---- which of them ---- */

octavo_tiles octavo_dense_tiles(const Windows *w) {
#if defined(OCTAVO_KNOWS_AMX)
    if (w->by_amx) return tiles_amx;
#else
    (void)w;
#endif
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return tiles_vnni;
    case OCTAVO_AVX2: return tiles_avx2;
#endif
    default: return tiles_portable;
    }
}
