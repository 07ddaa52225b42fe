/* Products of many rows, of which 16 bits are kept, with weights of four bits in groups.
 *
 * The weights of a part become int8 less their zero points once for all rows. Sums of a group are
 * integers; they meet the group's scales as floats.
 */
#include "amx.h"
#include "layers.h"

enum { ROWS = 2, MOST_COLUMNS = 2048 /* whose sums, 256 * upper + lower, fit into an int32 */ };

int octavo_knows_groups(void) { return octavo_isa() >= OCTAVO_AVX512_VNNI; }

/* Pieces of groups, which are no longer than MOST_COLUMNS. */
static int64_t pieces_of(const octavo_four_bits *m) {
    return (m->columns / m->groups + MOST_COLUMNS - 1) / MOST_COLUMNS;
}

/* Weights [PART][columns / 4][16][4], and where sums of upper digits begin, [PART][groups][pieces][16]. */
int64_t octavo_grouped_scratch(const octavo_four_bits *m) {
    return PART * BLOCK * (m->columns + 4 * m->groups * pieces_of(m));
}

#if defined(__x86_64__)

/* Integers of a block; digits are 128 too large, which is taken from where sums begin. */
VNNI static void widen(const octavo_four_bits *m, int64_t block, int8_t *weights, int32_t *starts) {
    const uint8_t *from = m->weights + block * m->columns * BLOCK / 2;
    const __m512i nibble = _mm512_set1_epi8(15), minus = _mm512_set1_epi8((char)-128);
    int64_t size = m->columns / m->groups;
    for (int64_t group = 0; group < m->groups; group++) {
        __m128i zeros = _mm_loadu_si128((const __m128i *)(m->zero_points + (block * m->groups + group) * BLOCK));
        __m512i four = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
        for (int64_t begin = 0; begin < size; begin += MOST_COLUMNS, starts += BLOCK) {
            int64_t end = size - begin < MOST_COLUMNS ? size : begin + MOST_COLUMNS;
            __m512i sums = _mm512_setzero_si512(); /* of 128 times each weight */
            for (int64_t k = begin; k < end; k += 8, from += 64, weights += 128) {
                __m512i both = _mm512_loadu_si512(from);
                __m512i w0 = _mm512_sub_epi8(_mm512_and_si512(both, nibble), four);
                __m512i w1 = _mm512_sub_epi8(
                    _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), four);
                _mm512_store_si512(weights, w0);
                _mm512_store_si512(weights + 64, w1);
                sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, minus, w0), minus, w1);
            }
            _mm512_storeu_si512(starts, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
        }
    }
}

INLINE VNNI __m512i four_digits(const uint8_t *digits) {
    int32_t bits;
    memcpy(&bits, digits, 4);
    return _mm512_set1_epi32(bits);
}

/* GCC copies each sum from register to register around its intrinsic, which takes as long. */
INLINE VNNI __m512i with_products(__m512i sum, __m512i digits, __m512i weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(weights));
    return sum;
}

/* Results of so many rows and blocks, whose sums stay in registers. */
INLINE VNNI void tile(
    const octavo_four_bits *m, int64_t first, const int8_t *weights, const int32_t *starts,
    const octavo_rows *rows, int64_t row, float *y, const int count, const int blocks) {
    const int64_t columns = m->columns, size = columns / m->groups, pieces = pieces_of(m);
    const uint8_t *x = rows->digits + row * 2 * columns;
    /* In memory: integer sums alone fill the registers. */
    float sums[ROWS][PART][BLOCK] __attribute__((aligned(64)));
    memset(sums, 0, sizeof sums);
    int64_t k = 0;
    for (int64_t piece = 0; piece < m->groups * pieces; piece++) {
        __asm__ volatile("" : : "r"(sums) : "memory");
        int64_t group = piece / pieces, end = (group + 1) * size;
        if (end - k > MOST_COLUMNS) end = k + MOST_COLUMNS;
        __m512i upper[ROWS][PART], lower[ROWS][PART];
        UNROLL
        for (int r = 0; r < count; r++)
            UNROLL
            for (int b = 0; b < blocks; b++) {
                upper[r][b] = _mm512_loadu_si512(starts + (b * m->groups * pieces + piece) * BLOCK);
                lower[r][b] = _mm512_setzero_si512();
            }
        for (; k < end; k += 4) {
            __m512i w[PART];
            UNROLL
            for (int b = 0; b < blocks; b++)
                w[b] = _mm512_load_si512(weights + b * columns * BLOCK + k * BLOCK);
            UNROLL
            for (int r = 0; r < count; r++) {
                __m512i u = four_digits(x + r * 2 * columns + k);
                __m512i l = four_digits(x + r * 2 * columns + columns + k);
                UNROLL
                for (int b = 0; b < blocks; b++) {
                    upper[r][b] = with_products(upper[r][b], u, w[b]);
                    lower[r][b] = with_products(lower[r][b], l, w[b]);
                }
            }
        }
        UNROLL
        for (int b = 0; b < blocks; b++) {
            __m512 scales = _mm512_loadu_ps(m->scales + ((first + b) * m->groups + group) * BLOCK);
            UNROLL
            for (int r = 0; r < count; r++) {
                __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper[r][b], 8), lower[r][b]);
                __m512 before = _mm512_load_ps(sums[r][b]);
                _mm512_store_ps(
                    sums[r][b], _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, before));
            }
        }
    }
    UNROLL
    for (int b = 0; b < blocks; b++) {
        int64_t at = (first + b) * BLOCK;
        __m512 bias = m->bias ? _mm512_loadu_ps(m->bias + at) : _mm512_setzero_ps();
        UNROLL
        for (int r = 0; r < count; r++)
            _mm512_storeu_ps(
                y + (row + r) * m->rows + at,
                _mm512_fmadd_ps(
                    _mm512_load_ps(sums[r][b]), _mm512_set1_ps(rows->scales[row + r]), bias));
    }
}

typedef void Tile(
    const octavo_four_bits *m, int64_t first, const int8_t *weights, const int32_t *starts,
    const octavo_rows *rows, int64_t row, float *y);

#define TILE(COUNT, BLOCKS)                                                                  \
    VNNI static void tile_##COUNT##_##BLOCKS(                                                \
        const octavo_four_bits *m, int64_t first, const int8_t *weights,                     \
        const int32_t *starts, const octavo_rows *rows, int64_t row, float *y) {             \
        tile(m, first, weights, starts, rows, row, y, COUNT, BLOCKS);                        \
    }
#define OF_BLOCKS(NAME, COUNT) NAME(COUNT, 1) NAME(COUNT, 2) NAME(COUNT, 3) NAME(COUNT, 4)
#define NAME_TILE(COUNT, BLOCKS) tile_##COUNT##_##BLOCKS,

OF_BLOCKS(TILE, 1)
OF_BLOCKS(TILE, 2)
static Tile *const tiles[ROWS][PART] = {{OF_BLOCKS(NAME_TILE, 1)}, {OF_BLOCKS(NAME_TILE, 2)}};

/* ---- AMX ---- */

#if defined(OCTAVO_KNOWS_AMX)

/* Registers: sums of upper and of lower digits of 16 rows with a block, and what they are sums of. */
#define UPPER 0
#define LOWER 1
#define UPPER_DIGITS 2
#define LOWER_DIGITS 3
#define WEIGHTS 4

AMX static void hold_columns(int64_t columns) {
    TileSizes sizes = {.palette = 1};
    for (int t = UPPER; t <= WEIGHTS; t++) {
        sizes.rows[t] = (uint8_t)(t < WEIGHTS ? TILE_ROWS : columns / 4);
        sizes.bytes[t] = (uint16_t)(t < UPPER_DIGITS || t == WEIGHTS ? TILE_BYTES : columns);
    }
    tile_sizes(&sizes);
}

/* Results of 16 rows with a block. While a piece's products are summed, sums of the one before meet
 * their scales. */
AMX static void tile_amx(
    const octavo_four_bits *m, int64_t block, const int8_t *weights, const int32_t *starts,
    const octavo_rows *rows, int64_t row, int64_t at_once, float *y) {
    const int64_t columns = m->columns, size = columns / m->groups, pieces = pieces_of(m);
    const uint8_t *x = rows->digits + row * 2 * columns;
    const float *scales = m->scales + block * m->groups * BLOCK;
    int32_t upper[2][TILE_ROWS][BLOCK] __attribute__((aligned(64)));
    int32_t lower[2][TILE_ROWS][BLOCK] __attribute__((aligned(64)));
    __m512 sums[TILE_ROWS];
    UNROLL
    for (int r = 0; r < TILE_ROWS; r++) sums[r] = _mm512_setzero_ps();
    for (int64_t k = 0, piece = 0; piece <= m->groups * pieces; piece++) {
        if (piece < m->groups * pieces) {
            int64_t end = (piece / pieces + 1) * size;
            if (end - k > MOST_COLUMNS) end = k + MOST_COLUMNS;
            tile_read(UPPER, starts + piece * BLOCK, 0);
            tile_zero(LOWER);
            for (; k < end; k += at_once) {
                tile_read(WEIGHTS, weights + k * BLOCK, TILE_BYTES);
                tile_read(UPPER_DIGITS, x + k, 2 * columns);
                tile_products(UPPER, UPPER_DIGITS, WEIGHTS);
                tile_read(LOWER_DIGITS, x + columns + k, 2 * columns);
                tile_products(LOWER, LOWER_DIGITS, WEIGHTS);
            }
            tile_write(UPPER, upper[piece % 2], TILE_BYTES);
            tile_write(LOWER, lower[piece % 2], TILE_BYTES);
        }
        if (!piece) continue;
        int64_t before = piece - 1;
        __m512 scale = _mm512_loadu_ps(scales + before / pieces * BLOCK);
        UNROLL
        for (int r = 0; r < TILE_ROWS; r++) {
            __m512i high = _mm512_slli_epi32(_mm512_load_si512(upper[before % 2][r]), 8);
            __m512i sum = _mm512_add_epi32(high, _mm512_load_si512(lower[before % 2][r]));
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[r]);
        }
    }
    __m512 bias = m->bias ? _mm512_loadu_ps(m->bias + block * BLOCK) : _mm512_setzero_ps();
    UNROLL
    for (int r = 0; r < TILE_ROWS; r++)
        _mm512_storeu_ps(
            y + (row + r) * m->rows + block * BLOCK,
            _mm512_fmadd_ps(sums[r], _mm512_set1_ps(rows->scales[row + r]), bias));
}

/* Of a part's blocks; the last rows are read with some before them, whose results are the same. */
AMX static void multiply_amx(
    const octavo_four_bits *m, int64_t first, int64_t blocks, const int8_t *weights,
    const int32_t *starts, const octavo_rows *rows, int64_t count, float *y) {
    int64_t at_once = m->columns / m->groups % TILE_BYTES ? TILE_BYTES / 2 : TILE_BYTES;
    hold_columns(at_once);
    for (int64_t row = 0; row < count; row += TILE_ROWS)
        for (int64_t b = 0; b < blocks; b++)
            tile_amx(
                m, first + b, weights + b * BLOCK * m->columns,
                starts + b * m->groups * pieces_of(m) * BLOCK, rows,
                row + TILE_ROWS <= count ? row : count - TILE_ROWS, at_once, y);
    tile_release();
}

static int fills_tiles(int64_t count) { return octavo_amx() && count >= TILE_ROWS; }

#endif

void octavo_grouped_product(
    const octavo_four_bits *m, int64_t part, const octavo_rows *rows, int64_t count, float *y,
    void *scratch) {
    int64_t first = part * PART, blocks = m->rows / BLOCK - first;
    if (blocks > PART) blocks = PART;
    int8_t *weights = scratch;
    int32_t *starts = (int32_t *)(weights + PART * BLOCK * m->columns);
    for (int64_t b = 0; b < blocks; b++)
        widen(
            m, first + b, weights + b * BLOCK * m->columns,
            starts + b * m->groups * pieces_of(m) * BLOCK);
#if defined(OCTAVO_KNOWS_AMX)
    if (fills_tiles(count)) {
        multiply_amx(m, first, blocks, weights, starts, rows, count, y);
        return;
    }
#endif
    for (int64_t r = 0; r < count; r += ROWS)
        tiles[count - r < ROWS ? 0 : 1][blocks - 1](m, first, weights, starts, rows, r, y);
}

#else

void octavo_grouped_product(
    const octavo_four_bits *m, int64_t part, const octavo_rows *rows, int64_t count, float *y,
    void *scratch) {
    (void)m, (void)part, (void)rows, (void)count, (void)y, (void)scratch; /* never called */
}

#endif
