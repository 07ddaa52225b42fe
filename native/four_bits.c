/* Products of a few rows of floats with weights of four bits, in groups of columns.
 *
 * Of a row 16 bits are kept, as two digits that are int8 both: 256 * upper + lower. The weights are
 * unpacked once for eight rows, and a row is rounded once for all weights.
 */
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "rounding.h"

enum { CHUNK = 32, CHUNK_BYTES = CHUNK * BLOCK / 2, MOST_STEPS = 127 * 256, TILE = 8 };

typedef octavo_four_rows Rows;

INLINE void read_row(const octavo_four_bits *m, const float *from, int64_t row, Rows *rows) {
    int8_t *upper = rows->upper + row * m->columns, *lower = rows->lower + row * m->columns;
    int64_t size = m->columns / m->groups;
    float step = step_of(from, m->columns, MOST_STEPS), inverse = 1.0f / step;
    rows->steps[row] = step;
    for (int64_t group = 0; group < m->groups; group++) {
        int32_t sum = 0;
        for (int64_t k = group * size; k < (group + 1) * size; k++) {
            int32_t q = rounded(clipped(from[k] * inverse, -MOST_STEPS, MOST_STEPS));
            int32_t high = (q + 128) >> 8;
            upper[k] = (int8_t)high;
            lower[k] = (int8_t)(q - high * 256);
            sum += q;
        }
        rows->sums[row * m->groups + group] = (float)sum;
    }
}

/* ---- every CPU ---- */

static void multiply_portable(
    const octavo_four_bits *m, const Rows *rows, int64_t count, int64_t first, int64_t last,
    float *y) {
    int64_t chunks = m->columns / m->groups / CHUNK;
    for (int64_t block = first; block < last; block++)
        for (int64_t r = 0; r < count; r++) {
            const uint8_t *w = m->weights + block * m->columns / CHUNK * CHUNK_BYTES;
            const int8_t *upper = rows->upper + r * m->columns, *lower = rows->lower + r * m->columns;
            float sums[BLOCK] = {0};
            for (int64_t group = 0; group < m->groups; group++) {
                int64_t at = (block * m->groups + group) * BLOCK;
                int32_t high[BLOCK] = {0}, low[BLOCK] = {0};
                for (int64_t c = 0; c < chunks; c++, w += CHUNK_BYTES, upper += CHUNK, lower += CHUNK)
                    for (int i = 0; i < CHUNK_BYTES; i++) {
                        int n = i / 4 % BLOCK, k = i / 64 * 8 + i % 4;
                        high[n] += (w[i] & 15) * upper[k] + (w[i] >> 4) * upper[k + 4];
                        low[n] += (w[i] & 15) * lower[k] + (w[i] >> 4) * lower[k + 4];
                    }
                for (int n = 0; n < BLOCK; n++) {
                    float sum = (float)high[n] * 256.0f + (float)low[n];
                    sum -= (float)m->zero_points[at + n] * rows->sums[r * m->groups + group];
                    sums[n] += sum * m->scales[at + n];
                }
            }
            for (int n = 0; n < BLOCK; n++) {
                int64_t column = block * BLOCK + n;
                float bias = m->bias ? m->bias[column] : 0.0f;
                y[r * m->rows + column] = sums[n] * rows->steps[r] + bias;
            }
        }
}

#if defined(__x86_64__)

/* Four digits, for all lanes of a register. */
INLINE int32_t four_of(const int8_t *digits) {
    int32_t bits;
    memcpy(&bits, digits, 4);
    return bits;
}

/* ---- AVX2 ---- */

AVX2 static void read_avx2(
    const octavo_four_bits *m, const float *x, int64_t row, Rows *rows) {
    read_row(m, x, row, rows);
}

/* A block's sums for one row and group. Pairs of products are at most 3840, and eight of these fit
 * into an int16. */
INLINE AVX2 void group_avx2(
    const uint8_t *w, const int8_t *upper, const int8_t *lower, int64_t chunks, __m256i high[2],
    __m256i low[2]) {
    const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) high[half] = low[half] = _mm256_setzero_si256();
    for (int64_t c = 0; c < chunks; c++, w += CHUNK_BYTES, upper += CHUNK, lower += CHUNK) {
        __m256i pairs_high[2], pairs_low[2];
        for (int half = 0; half < 2; half++)
            pairs_high[half] = pairs_low[half] = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            __m256i u0 = _mm256_set1_epi32(four_of(upper + 8 * i));
            __m256i u1 = _mm256_set1_epi32(four_of(upper + 8 * i + 4));
            __m256i l0 = _mm256_set1_epi32(four_of(lower + 8 * i));
            __m256i l1 = _mm256_set1_epi32(four_of(lower + 8 * i + 4));
            for (int half = 0; half < 2; half++) {
                __m256i both = _mm256_loadu_si256((const __m256i *)(w + 64 * i + 32 * half));
                __m256i w0 = _mm256_and_si256(both, nibble);
                __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                pairs_high[half] = _mm256_add_epi16(
                    pairs_high[half],
                    _mm256_add_epi16(_mm256_maddubs_epi16(w0, u0), _mm256_maddubs_epi16(w1, u1)));
                pairs_low[half] = _mm256_add_epi16(
                    pairs_low[half],
                    _mm256_add_epi16(_mm256_maddubs_epi16(w0, l0), _mm256_maddubs_epi16(w1, l1)));
            }
        }
        for (int half = 0; half < 2; half++) {
            high[half] = _mm256_add_epi32(high[half], _mm256_madd_epi16(pairs_high[half], one));
            low[half] = _mm256_add_epi32(low[half], _mm256_madd_epi16(pairs_low[half], one));
        }
    }
}

AVX2 static void multiply_avx2(
    const octavo_four_bits *m, const Rows *rows, int64_t count, int64_t first, int64_t last,
    float *y) {
    int64_t chunks = m->columns / m->groups / CHUNK;
    for (int64_t block = first; block < last; block++)
        for (int64_t r = 0; r < count; r++) {
            const uint8_t *w = m->weights + block * m->columns / CHUNK * CHUNK_BYTES;
            const int8_t *upper = rows->upper + r * m->columns, *lower = rows->lower + r * m->columns;
            __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
            for (int64_t group = 0; group < m->groups; group++) {
                __m256i high[2], low[2];
                group_avx2(w, upper, lower, chunks, high, low);
                w += chunks * CHUNK_BYTES, upper += chunks * CHUNK, lower += chunks * CHUNK;
                __m256 steps = _mm256_set1_ps(rows->sums[r * m->groups + group]);
                for (int half = 0; half < 2; half++) {
                    int64_t at = (block * m->groups + group) * BLOCK + 8 * half;
                    __m256 sum = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(high[half]), _mm256_set1_ps(256),
                        _mm256_cvtepi32_ps(low[half]));
                    __m128i zeros = _mm_loadl_epi64((const __m128i *)(m->zero_points + at));
                    __m256 zero_points = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zeros));
                    sum = _mm256_fnmadd_ps(zero_points, steps, sum);
                    sums[half] = _mm256_fmadd_ps(sum, _mm256_loadu_ps(m->scales + at), sums[half]);
                }
            }
            for (int half = 0; half < 2; half++) {
                int64_t column = block * BLOCK + 8 * half;
                __m256 bias = m->bias ? _mm256_loadu_ps(m->bias + column) : _mm256_setzero_ps();
                _mm256_storeu_ps(
                    y + r * m->rows + column,
                    _mm256_fmadd_ps(sums[half], _mm256_set1_ps(rows->steps[r]), bias));
            }
        }
}

/* ---- AVX512 with VNNI ---- */

VNNI static void read_vnni(
    const octavo_four_bits *m, const float *x, int64_t row, Rows *rows) {
    read_row(m, x, row, rows);
}

/* A block's results for `count` rows from `r` on, whose sums stay in registers. */
INLINE VNNI void tile_vnni(
    const octavo_four_bits *m, const Rows *rows, int64_t block, int64_t r, float *y,
    const int count) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const int64_t size = m->columns / m->groups;
    const uint8_t *w = m->weights + block * m->columns / CHUNK * CHUNK_BYTES;
    const int8_t *upper = rows->upper + r * m->columns, *lower = rows->lower + r * m->columns;
    __m512 sums[TILE];
    UNROLL
    for (int i = 0; i < count; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t group = 0; group < m->groups; group++) {
        __m512i high[TILE], low[TILE];
        UNROLL
        for (int i = 0; i < count; i++) high[i] = low[i] = _mm512_setzero_si512();
        for (int64_t k = group * size; k < (group + 1) * size; k += 8, w += 64) {
            _mm_prefetch((const char *)w + 2048, _MM_HINT_T0);
            __m512i both = _mm512_loadu_si512(w);
            __m512i w0 = _mm512_and_si512(both, nibble);
            __m512i w1 = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            UNROLL
            for (int i = 0; i < count; i++) {
                int64_t at = i * m->columns + k;
                __m512i u0 = _mm512_set1_epi32(four_of(upper + at));
                __m512i u1 = _mm512_set1_epi32(four_of(upper + at + 4));
                __m512i l0 = _mm512_set1_epi32(four_of(lower + at));
                __m512i l1 = _mm512_set1_epi32(four_of(lower + at + 4));
                high[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(high[i], w0, u0), w1, u1);
                low[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(low[i], w0, l0), w1, l1);
            }
        }
        int64_t at = (block * m->groups + group) * BLOCK;
        __m512 scales = _mm512_loadu_ps(m->scales + at);
        __m128i zeros = _mm_loadu_si128((const __m128i *)(m->zero_points + at));
        __m512 zero_points = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
        UNROLL
        for (int i = 0; i < count; i++) {
            __m512 steps = _mm512_set1_ps(rows->sums[(r + i) * m->groups + group]);
            __m512 sum = _mm512_fmadd_ps(
                _mm512_cvtepi32_ps(high[i]), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low[i]));
            sums[i] = _mm512_fmadd_ps(_mm512_fnmadd_ps(zero_points, steps, sum), scales, sums[i]);
        }
    }
    __m512 bias = m->bias ? _mm512_loadu_ps(m->bias + block * BLOCK) : _mm512_setzero_ps();
    UNROLL
    for (int i = 0; i < count; i++)
        _mm512_storeu_ps(
            y + (r + i) * m->rows + block * BLOCK,
            _mm512_fmadd_ps(sums[i], _mm512_set1_ps(rows->steps[r + i]), bias));
}

typedef void (*TileVnni)(const octavo_four_bits *, const Rows *, int64_t, int64_t, float *);

#define TILE_VNNI(COUNT)                                                                        \
    VNNI static void tile_vnni_##COUNT(                                                         \
        const octavo_four_bits *m, const Rows *rows, int64_t block, int64_t r, float *y) {      \
        tile_vnni(m, rows, block, r, y, COUNT);                                                 \
    }
#define NAME_VNNI(COUNT) tile_vnni_##COUNT,
#define OF_COUNTS(NAME) NAME(1) NAME(2) NAME(3) NAME(4) NAME(5) NAME(6) NAME(7) NAME(8)

OF_COUNTS(TILE_VNNI)
static const TileVnni tiles_vnni[TILE] = {OF_COUNTS(NAME_VNNI)};

VNNI static void multiply_vnni(
    const octavo_four_bits *m, const Rows *rows, int64_t count, int64_t first, int64_t last,
    float *y) {
    for (int64_t block = first; block < last; block++)
        for (int64_t r = 0; r < count; r += TILE)
            tiles_vnni[(count - r < TILE ? count - r : TILE) - 1](m, rows, block, r, y);
}

#endif

/* ---- which of them ---- */

void octavo_read_row_of_four_bits(
    const octavo_four_bits *m, const float *x, int64_t row, octavo_four_rows *rows) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: read_vnni(m, x, row, rows); return;
    case OCTAVO_AVX2: read_avx2(m, x, row, rows); return;
#endif
    default: read_row(m, x, row, rows);
    }
}

void octavo_product_of_four_bits(
    const octavo_four_bits *m, int64_t first, int64_t last, const octavo_four_rows *rows,
    int64_t count, float *y) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: multiply_vnni(m, rows, count, first, last, y); return;
    case OCTAVO_AVX2: multiply_avx2(m, rows, count, first, last, y); return;
#endif
    default: multiply_portable(m, rows, count, first, last, y);
    }
}

/* ---- threads ---- */

typedef struct {
    const octavo_four_bits *matrix;
    const float *x;
    float *y;
    int64_t count;
    Rows rows;
    _Atomic int is_infinite;
} Product;

static void read_rows(void *context, int chunk, int chunks) {
    Product *product = context;
    const octavo_four_bits *m = product->matrix;
    int64_t count = product->count;
    for (int64_t r = count * chunk / chunks; r < count * (chunk + 1) / chunks; r++) {
        octavo_read_row_of_four_bits(m, product->x + r * m->columns, r, &product->rows);
        float step = product->rows.steps[r];
        if (step != step) product->is_infinite = 1;
    }
}

static void multiply(void *context, int chunk, int chunks) {
    Product *product = context;
    const octavo_four_bits *m = product->matrix;
    int64_t blocks = m->rows / BLOCK, panel = octavo_panel(m->columns);
    for (int64_t r = 0; r < product->count; r += panel) {
        Rows rows = product->rows;
        rows.upper += r * m->columns, rows.lower += r * m->columns;
        rows.sums += r * m->groups, rows.steps += r;
        octavo_product_of_four_bits(
            m, blocks * chunk / chunks, blocks * (chunk + 1) / chunks, &rows,
            product->count - r < panel ? product->count - r : panel, product->y + r * m->rows);
    }
}

int octavo_multiply_four_bits(
    const octavo_four_bits *matrix, const float *x, int64_t count, float *y, int threads) {
    if (count > OCTAVO_MOST_FEW_ROWS && octavo_knows_groups())
        return octavo_multiply_four_bits_widened(matrix, x, count, y, 0, threads);
    int64_t digits = count * matrix->columns;
    int64_t work = digits * matrix->rows / OCTAVO_WORK_OF_A_THREAD + 1;
    char *memory = malloc((size_t)(2 * digits + 4 * count * (matrix->groups + 1)));
    if (!memory) return OCTAVO_NO_MEMORY;
    float *floats = (float *)memory; /* first, where memory is aligned for them */
    int8_t *bytes = (int8_t *)(floats + count * (matrix->groups + 1));
    Product product = {
        .matrix = matrix, .x = x, .y = y, .count = count,
        .rows = {bytes, bytes + digits, floats, floats + count * matrix->groups}};
    if (work < threads) threads = (int)work;
    octavo_stage stages[] = {
        {read_rows, &product, octavo_chunks(count, threads)},
        {multiply, &product, octavo_chunks(matrix->rows / BLOCK, threads)}};
    octavo_run_stages(stages, 2, threads);
    free(memory);
    return product.is_infinite ? OCTAVO_NOT_FINITE : 0;
}
