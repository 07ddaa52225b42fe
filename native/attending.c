/* Attention of floats in a block of a decoder, of one query or of several that follow each other. */
#include "amx.h"
#include "scores.h"

/* ---- one query, written once and compiled for each instruction set ---- */

enum { TILE = 8 };

INLINE void find_scores(
    const float *query, const float *keys, int64_t sources, int64_t channels, float scale,
    float *scores) {
    int64_t source = 0;
    for (; source + WIDE <= sources; source += WIDE, keys += WIDE * channels) {
        Eight sums[WIDE], together;
        UNROLL
        for (int j = 0; j < WIDE; j++) sums[j] = (Eight){0};
        for (int64_t i = 0; i < channels; i += WIDE) {
            Eight q = *(const Eight *)(query + i);
            UNROLL
            for (int j = 0; j < WIDE; j++) sums[j] += q * *(const Eight *)(keys + j * channels + i);
        }
        sums_of_lanes(sums, &together);
        *(Eight *)(scores + source) = together * scale;
    }
    for (; source < sources; source++, keys += channels)
        scores[source] = product_of(query, keys, channels) * scale;
}

/* So many vectors of channels of the mean of values. */
INLINE void mix_tile(
    const float *shares, const float *values, int64_t sources, int64_t channels, float factor,
    float *out, const int tile) {
    Eight sums[TILE];
    UNROLL
    for (int j = 0; j < tile; j++) sums[j] = (Eight){0};
    for (int64_t source = 0; source < sources; source++, values += channels) {
        float share = shares[source];
        UNROLL
        for (int j = 0; j < tile; j++) sums[j] += share * *(const Eight *)(values + j * WIDE);
    }
    UNROLL
    for (int j = 0; j < tile; j++) *(Eight *)(out + j * WIDE) = sums[j] * factor;
}

INLINE void mix(
    const float *shares, const float *values, int64_t sources, int64_t channels, float factor,
    float *out) {
    int64_t i = 0;
    for (; i + TILE * WIDE <= channels; i += TILE * WIDE)
        mix_tile(shares, values + i, sources, channels, factor, out + i, TILE);
    for (; i < channels; i += WIDE)
        mix_tile(shares, values + i, sources, channels, factor, out + i, 1);
}

INLINE void attend_row(const octavo_head_queries *h, int64_t query) {
    int64_t first = first_seen(h, query), count = h->seen + query * h->growth - first;
    const float *keys = h->keys + first * h->channels, *values = h->values + first * h->channels;
    find_scores(
        h->queries + query * h->query_stride, keys, count, h->channels, h->scale, h->scores);
    shape_scores(h, query, first, count, h->scores);
    float factor = to_shares(h->scores, count);
    mix(h->scores, values, count, h->channels, factor, h->out + query * h->out_stride);
}

/* ---- several queries together, which read each key and value once ---- */

typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));
enum { QUERIES = 8, KEYS = 16, MIXED_ROWS = 4, MIXED = 4 };

/* Scores of so many queries with 16 keys. */
INLINE void tile_of_scores(
    const octavo_head_queries *h, const float *packed, float *scores, int64_t stride, const int count) {
    Sixteen sums[QUERIES];
    UNROLL
    for (int q = 0; q < count; q++) sums[q] = (Sixteen){0};
    for (int64_t i = 0; i < h->channels; i++, packed += KEYS) {
        Sixteen keys = *(const Sixteen *)packed;
        UNROLL
        for (int q = 0; q < count; q++) sums[q] += h->queries[q * h->query_stride + i] * keys;
    }
    UNROLL
    for (int q = 0; q < count; q++) *(Sixteen *)(scores + q * stride) = sums[q] * h->scale;
}

/* So many rows of 16 * `wide` channels of means of values. */
INLINE void tile_of_means(
    const float *shares, int64_t stride, const float *values, int64_t sources, int64_t channels,
    const float *factors, float *out, int64_t out_stride, const int rows, const int wide) {
    Sixteen sums[MIXED_ROWS][MIXED];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int j = 0; j < wide; j++) sums[r][j] = (Sixteen){0};
    for (int64_t source = 0; source < sources; source++, values += channels) {
        Sixteen own[MIXED];
        UNROLL
        for (int j = 0; j < wide; j++) own[j] = *(const Sixteen *)(values + j * KEYS);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float share = shares[r * stride + source];
            UNROLL
            for (int j = 0; j < wide; j++) sums[r][j] += share * own[j];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int j = 0; j < wide; j++)
            *(Sixteen *)(out + r * out_stride + j * KEYS) = sums[r][j] * factors[r];
}

INLINE void attend_tile(const octavo_head_queries *h) {
    const int64_t channels = h->channels, end = h->seen + (QUERIES - 1) * h->growth;
    const int64_t begin = first_seen(h, 0) / KEYS * KEYS, stride = (end - begin + KEYS - 1) / KEYS * KEYS;
    float *scores = h->scores, factors[QUERIES];
    for (int64_t source = begin; source < end; source += KEYS)
        tile_of_scores(
            h, (const float *)h->packed + source * channels, scores + source - begin, stride, QUERIES);
    for (int64_t q = 0; q < QUERIES; q++) {
        float *row = scores + q * stride - begin;
        int64_t first = first_seen(h, q), seen = h->seen + q * h->growth;
        shape_scores(h, q, first, seen - first, row + first);
        factors[q] = to_shares(row + first, seen - first);
        for (int64_t i = begin; i < first; i++) row[i] = 0;
        for (int64_t i = seen; i < end; i++) row[i] = 0;
    }
    const float *values = h->values + begin * channels;
    for (int q = 0; q < QUERIES; q += MIXED_ROWS) {
        float *shares = scores + q * stride, *out = h->out + q * h->out_stride;
        int64_t i = 0;
        for (; i + MIXED * KEYS <= channels; i += MIXED * KEYS)
            tile_of_means(
                shares, stride, values + i, end - begin, channels, factors + q, out + i,
                h->out_stride, MIXED_ROWS, MIXED);
        for (; i + KEYS <= channels; i += KEYS)
            tile_of_means(
                shares, stride, values + i, end - begin, channels, factors + q, out + i,
                h->out_stride, MIXED_ROWS, 1);
        for (int r = 0; i < channels && r < MIXED_ROWS; r++)
            mix_tile(
                shares + r * stride, values + i, end - begin, channels, factors[q + r],
                out + r * h->out_stride + i, 1);
    }
}

INLINE void attend(const octavo_head_queries *h) {
    if (h->packed && h->count == QUERIES) {
        attend_tile(h);
        return;
    }
    for (int64_t query = 0; query < h->count; query++) attend_row(h, query);
}

/* Keys alone: [channels][16]. */
static void pack_keys(
    const float *keys, const float *values, int64_t count, int64_t channels, void *block) {
    float *packed = block;
    (void)values;
    for (int64_t i = 0; i < channels; i++, packed += KEYS)
        for (int64_t key = 0; key < KEYS; key++)
            packed[key] = key < count ? keys[key * channels + i] : 0;
}

static int64_t size_of_packed_keys(int64_t channels) { return 4 * KEYS * channels; }

#define ATTENDING(SET, TARGET)                                                                   \
    TARGET static void attend_##SET(const octavo_head_queries *queries) { attend(queries); }     \
    static const octavo_attending attending_##SET = {                                            \
        QUERIES, KEYS, size_of_packed_keys, pack_keys, attend_##SET};

ATTENDING(portable, )
#if defined(__x86_64__)
ATTENDING(avx2, AVX2)
ATTENDING(avx512, VNNI)
#endif

/* ---- AMX ---- */

#if defined(OCTAVO_KNOWS_AMX)

/* Each float is the sum of two bfloat16, upper and lower: of a product the lower times the lower is
 * left out, which is 2^-16 of it. */
enum {
    TILE_QUERIES = TILE_ROWS,
    TILE_SOURCES = 32,
    TILE_CHANNELS = 32 /* of queries and keys; half as many of values */,
    TILE_SIZE = TILE_ROWS * TILE_BYTES,
    MOST_CHANNELS = 256
};

/* 32 floats, of which so many are there, times a factor. */
INLINE void split(
    const float *x, int64_t count, float factor, uint16_t upper[TILE_CHANNELS],
    uint16_t lower[TILE_CHANNELS]) {
    float values[TILE_CHANNELS];
    for (int i = 0; i < TILE_CHANNELS; i++) values[i] = i < count ? x[i] * factor : 0;
    for (int i = 0; i < TILE_CHANNELS; i++) {
        uint32_t bits, rest;
        float high, low;
        memcpy(&bits, values + i, 4);
        bits = (bits + 0x8000) & 0xffff0000;
        memcpy(&high, &bits, 4);
        low = values[i] - high;
        memcpy(&rest, &low, 4);
        upper[i] = (uint16_t)(bits >> 16);
        lower[i] = (uint16_t)((rest + 0x8000) >> 16);
    }
}

INLINE int64_t tiles_of(int64_t channels) { return (channels + TILE_CHANNELS - 1) / TILE_CHANNELS; }

/* Tiles of upper and of lower halves: of keys for each 32 channels, twice, of 16 sources each,
 * [channels / 2][sources][2]; then of values for each 16 channels, [sources / 2][channels][2]. */
static int64_t size_of_packed_tiles(int64_t channels) { return 8 * tiles_of(channels) * TILE_SIZE; }

AMX static void pack_tiles(
    const float *keys, const float *values, int64_t count, int64_t channels, void *packed) {
    enum { PAIRS = TILE_CHANNELS / 2 };
    int64_t tiles = tiles_of(channels);
    uint32_t(*of_keys)[2][2][PAIRS][TILE_ROWS] = packed; /* [tile][half of the sources][lower?] */
    uint16_t(*of_values)[2][2][PAIRS][TILE_ROWS][2] = (void *)(of_keys + tiles);
    for (int64_t source = 0; source < TILE_SOURCES; source++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t at = source * channels + tile * TILE_CHANNELS;
            int64_t there = source < count ? channels - tile * TILE_CHANNELS : 0;
            uint16_t halves[2][TILE_CHANNELS];
            split(keys + at, there, 1, halves[0], halves[1]);
            for (int half = 0; half < 2; half++)
                for (int pair = 0; pair < PAIRS; pair++)
                    memcpy(
                        &of_keys[tile][source / TILE_ROWS][half][pair][source % TILE_ROWS],
                        halves[half] + 2 * pair, 4);
            split(values + at, there, 1, halves[0], halves[1]);
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < TILE_CHANNELS; i++)
                    of_values[tile][i / TILE_ROWS][half][source / 2][i % TILE_ROWS][source % 2] =
                        halves[half][i];
        }
}

/* Registers: sums; upper and lower halves of what stands on the left, and of what on the right. */
#define SUMS 0
#define NEXT_SUMS 1
#define THIRD_SUMS 2
#define FOURTH_SUMS 3
#define UPPER 4
#define LOWER 5
#define OTHER_UPPER 6
#define OTHER_LOWER 7

#define ADD_PRODUCTS(sums, tile)                                     \
    tile_read(OTHER_UPPER, tile, TILE_BYTES);                        \
    tile_read(OTHER_LOWER, (const char *)(tile) + TILE_SIZE, TILE_BYTES); \
    tile_float_products(sums, UPPER, OTHER_UPPER);                   \
    tile_float_products(sums, LOWER, OTHER_UPPER);                   \
    tile_float_products(sums, UPPER, OTHER_LOWER);

AMX static void hold_floats(void) {
    TileSizes sizes = {.palette = 1};
    for (int t = 0; t < TILE_REGISTERS; t++) {
        sizes.rows[t] = TILE_ROWS;
        sizes.bytes[t] = TILE_BYTES;
    }
    tile_sizes(&sizes);
}

typedef uint16_t Halves[2][TILE_QUERIES][TILE_CHANNELS];

/* Scores of 16 queries with 32 sources. */
INLINE AMX void scores_by_tiles(
    const Halves *queries, const char *packed, int64_t tiles, float *scores, int64_t stride) {
    tile_zero(SUMS);
    tile_zero(NEXT_SUMS);
    for (int64_t tile = 0; tile < tiles; tile++, packed += 4 * TILE_SIZE) {
        tile_read(UPPER, queries[tile][0], TILE_BYTES);
        tile_read(LOWER, queries[tile][1], TILE_BYTES);
        ADD_PRODUCTS(SUMS, packed)
        ADD_PRODUCTS(NEXT_SUMS, packed + 2 * TILE_SIZE)
    }
    tile_write(SUMS, scores, 4 * stride);
    tile_write(NEXT_SUMS, scores + TILE_ROWS, 4 * stride);
}

/* Sums of shares times values, of 64 channels, or of the last 32. */
INLINE AMX void means_by_tiles(
    const float *shares, int64_t stride, const char *packed, int64_t size, int64_t blocks,
    float sums[4][TILE_QUERIES][TILE_ROWS], const int wide) {
    tile_zero(SUMS);
    tile_zero(NEXT_SUMS);
    if (wide) {
        tile_zero(THIRD_SUMS);
        tile_zero(FOURTH_SUMS);
    }
    for (int64_t block = 0; block < blocks; block++, packed += size, shares += TILE_SOURCES) {
        tile_read(UPPER, shares, 4 * stride);
        tile_read(LOWER, shares + TILE_SOURCES / 2, 4 * stride);
        ADD_PRODUCTS(SUMS, packed)
        ADD_PRODUCTS(NEXT_SUMS, packed + 2 * TILE_SIZE)
        if (wide) {
            ADD_PRODUCTS(THIRD_SUMS, packed + 4 * TILE_SIZE)
            ADD_PRODUCTS(FOURTH_SUMS, packed + 6 * TILE_SIZE)
        }
    }
    tile_write(SUMS, sums[0], TILE_BYTES);
    tile_write(NEXT_SUMS, sums[1], TILE_BYTES);
    if (wide) {
        tile_write(THIRD_SUMS, sums[2], TILE_BYTES);
        tile_write(FOURTH_SUMS, sums[3], TILE_BYTES);
    }
}

/* Scores of a query become shares, as upper and lower halves of 32 each in their place; returns their
 * factor. */
INLINE float halves_of_shares(
    const octavo_head_queries *h, int64_t query, int64_t begin, int64_t end, float *scores) {
    int64_t first = first_seen(h, query), seen = h->seen + query * h->growth;
    float *row = scores - begin;
    shape_scores(h, query, first, seen - first, row + first);
    float factor = to_shares(row + first, seen - first);
    for (int64_t i = begin; i < first; i++) row[i] = 0;
    for (int64_t i = seen; i < end; i++) row[i] = 0;
    for (int64_t i = begin; i < end; i += TILE_SOURCES) {
        uint16_t halves[2][TILE_SOURCES];
        split(row + i, TILE_SOURCES, 1, halves[0], halves[1]);
        memcpy(row + i, halves, sizeof halves);
    }
    return factor;
}

INLINE AMX void attend_by_tiles(const octavo_head_queries *h) {
    const int64_t channels = h->channels, tiles = tiles_of(channels);
    const int64_t begin = first_seen(h, 0) / TILE_SOURCES * TILE_SOURCES;
    const int64_t blocks = (h->seen + (h->count - 1) * h->growth - begin + TILE_SOURCES - 1) / TILE_SOURCES;
    /* An odd number of blocks apart, rows do not meet in one set of the cache. */
    const int64_t stride = (blocks | 1) * TILE_SOURCES, size = size_of_packed_tiles(channels);
    const char *packed = (const char *)h->packed + begin / TILE_SOURCES * size;
    Halves queries[MOST_CHANNELS / TILE_CHANNELS] __attribute__((aligned(64)));
    float factors[TILE_QUERIES], sums[4][TILE_QUERIES][TILE_ROWS] __attribute__((aligned(64)));
    for (int64_t q = 0; q < TILE_QUERIES; q++)
        for (int64_t tile = 0; tile < tiles; tile++)
            split(
                h->queries + (q < h->count ? q : 0) * h->query_stride + tile * TILE_CHANNELS,
                channels - tile * TILE_CHANNELS, h->scale, queries[tile][0][q], queries[tile][1][q]);
    hold_floats();
    for (int64_t block = 0; block < blocks; block++)
        scores_by_tiles(
            queries, packed + block * size, tiles, h->scores + block * TILE_SOURCES, stride);
    for (int64_t q = 0; q < h->count; q++)
        factors[q] = halves_of_shares(
            h, q, begin, begin + blocks * TILE_SOURCES, h->scores + q * stride);
    packed += size / 2;
    for (int64_t i = 0; i < channels; i += 2 * TILE_CHANNELS, packed += 8 * TILE_SIZE) {
        if (channels - i > TILE_CHANNELS)
            means_by_tiles(h->scores, stride, packed, size, blocks, sums, 1);
        else
            means_by_tiles(h->scores, stride, packed, size, blocks, sums, 0);
        int64_t end = channels - i < 2 * TILE_CHANNELS ? channels - i : 2 * TILE_CHANNELS;
        for (int64_t q = 0; q < h->count; q++)
            for (int64_t j = 0; j < end; j++)
                h->out[q * h->out_stride + i + j] = sums[j / TILE_ROWS][q][j % TILE_ROWS] * factors[q];
    }
    tile_release();
}

AMX static void attend_amx(const octavo_head_queries *h) {
    if (h->packed)
        attend_by_tiles(h);
    else
        attend(h);
}

static const octavo_attending attending_amx = {
    TILE_QUERIES, TILE_SOURCES, size_of_packed_tiles, pack_tiles, attend_amx};

#endif

/* ---- which of them ---- */

const octavo_attending *octavo_attending_of_this_cpu(int64_t most_channels) {
#if defined(OCTAVO_KNOWS_AMX)
    if (octavo_amx() && most_channels <= MOST_CHANNELS) return &attending_amx;
#endif
    (void)most_channels;
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return &attending_avx512;
    case OCTAVO_AVX2: return &attending_avx2;
#endif
    default: return &attending_portable;
    }
}
