/* What observers keep of values: a histogram whose bins are powers of two wide, so that the same
 * counts come out in whatever parts the values come (octavo/numerics/observers/dyadic.py). */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "octavo.h"
#include "rounding.h"

enum { TABLES = 4, AT_A_TIME = 512, VALUES_OF_A_THREAD = 1 << 15, MOST_THREADS = 256 };
/* float32 has 24 bits of precision, and none of its values is finer than 2**-149. */
enum { PRECISION = 24, FINEST = -149 };

/* Bin k covers [k 2**exponent, (k + 1) 2**exponent); the first one counted has the number `first`. */
typedef struct {
    int64_t exponent, first;
} Grid;

/* Values times this power of two, in two factors since one of them may be no float. */
typedef struct {
    float one, other;
    int32_t first;
} Scaling;

typedef struct {
    float low, high;
} Range;

/* ---- the lowest and the highest ---- */

/* Compilers find extrema of integers. NaN with a sign is below minus infinity, and without one above
 * infinity. */
INLINE Range range_in(const float *x, int64_t count) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        int32_t v = ordered(x[i]);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    return (Range){from_order(low), from_order(high)};
}

static Range range_portable(const float *x, int64_t count) { return range_in(x, count); }
#if defined(__x86_64__)
AVX2 static Range range_avx2(const float *x, int64_t count) { return range_in(x, count); }
VNNI static Range range_avx512(const float *x, int64_t count) { return range_in(x, count); }
#endif

static Range range_of(const float *x, int64_t count) {
#if defined(__x86_64__)
    if (octavo_isa() >= OCTAVO_AVX512_VNNI) return range_avx512(x, count);
    if (octavo_isa() >= OCTAVO_AVX2) return range_avx2(x, count);
#endif
    return range_portable(x, count);
}

typedef struct {
    const float *x;
    int64_t rows, count;
    float *low, *high; /* of each row, or of each thread's part of the only one */
    int threads;       /* that take part */
} Extrema;

static void find_extrema(void *context, int thread, int threads) {
    Extrema *e = context;
    int64_t parts = e->rows == 1 ? threads : e->rows, count = e->count;
    if (!thread) e->threads = threads;
    for (int64_t part = parts * thread / threads; part < parts * (thread + 1) / threads; part++) {
        int64_t from = e->rows == 1 ? count * part / parts : part * count;
        int64_t to = e->rows == 1 ? count * (part + 1) / parts : from + count;
        Range range = range_of(e->x + from, to - from);
        int odd = isnan(range.low) || isnan(range.high);
        e->low[part] = odd ? NAN : range.low;
        e->high[part] = odd ? NAN : range.high;
    }
}

/* No more than there are rows, or than it pays to wake. */
static int threads_for(int64_t rows, int64_t count, int threads) {
    int64_t most = rows * count / VALUES_OF_A_THREAD + 1;
    if (rows > 1 && rows < most) most = rows;
    if (most > MOST_THREADS) most = MOST_THREADS;
    return most < threads ? (int)most : threads < 1 ? 1 : threads;
}

void octavo_extrema(
    const float *x, int64_t rows, int64_t count, float *low, float *high, int threads) {
    float lows[MOST_THREADS], highs[MOST_THREADS];
    int one = rows == 1;
    Extrema e = {x, rows, count, one ? lows : low, one ? highs : high, 0};
    octavo_in_threads(find_extrema, &e, threads_for(rows, count, threads));
    for (int part = 0; one && part < e.threads; part++) {
        int first = part == 0 || isnan(lows[part]);
        if (first || lows[part] < *low) *low = lows[part];
        if (first || highs[part] > *high) *high = highs[part];
        if (isnan(lows[part])) return;
    }
}

/* ---- the grid, as dyadic_grid finds it ---- */

static int64_t exponent_of(double x) { /* the smallest e with x < 2**e */
    int exponent;
    frexp(x, &exponent);
    return exponent;
}

static Grid grid_of(double low, double high, int64_t bins) {
    double magnitude = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
    int64_t exponent = magnitude > 0 ? exponent_of(magnitude) - PRECISION : FINEST;
    if (exponent < FINEST) exponent = FINEST;
    int64_t tight = high > low ? exponent_of((high - low) / (double)bins) - 2 : FINEST;
    if (exponent < tight) exponent = tight;
    for (int again = 0; again < 3; again++) {
        double first = floor(ldexp(low, (int)-exponent)), last = floor(ldexp(high, (int)-exponent));
        exponent += last - first >= (double)bins;
    }
    return (Grid){exponent, (int64_t)floor(ldexp(low, (int)-exponent))};
}

/* Bring the counts of a row onto a grid that is no finer, by way of as much memory. */
static void regrid(int64_t *counts, int64_t bins, Grid old, Grid grid, int64_t *memory) {
    int64_t doublings = grid.exponent - old.exponent;
    if (doublings > PRECISION + 1) doublings = PRECISION + 1; /* bins have 25 bits at most */
    memcpy(memory, counts, (size_t)bins * sizeof *counts);
    memset(counts, 0, (size_t)bins * sizeof *counts);
    for (int64_t bin = 0; bin < bins; bin++)
        if (memory[bin]) counts[((old.first + bin) >> doublings) - grid.first] += memory[bin];
}

/* ---- counting ---- */

/* Count values into tables in turn; returns how many are zero. */
INLINE int64_t count_in(const float *x, int64_t count, Scaling to, int64_t *const tables[TABLES]) {
    int32_t bin[AT_A_TIME];
    int64_t zeros = 0;
    for (int64_t from = 0; from < count; from += AT_A_TIME, x += AT_A_TIME) {
        int size = count - from < AT_A_TIME ? (int)(count - from) : AT_A_TIME, i = 0;
        int32_t some = 0;
        for (int j = 0; j < size; j++) {
            float v = x[j], y = v * to.one * to.other;
            int32_t whole = (int32_t)y;
            /* Below the whole number, or below zero and too near to it for a float. */
            whole -= ((float)whole > y) | ((y == 0.0f) & (v < 0.0f));
            bin[j] = whole - to.first;
            some += v == 0.0f;
        }
        zeros += some;
        for (; i + TABLES <= size; i += TABLES)
            for (int t = 0; t < TABLES; t++) tables[t][bin[i + t]]++;
        for (; i < size; i++) tables[0][bin[i]]++;
    }
    return zeros;
}

static int64_t count_portable(
    const float *x, int64_t count, Scaling to, int64_t *const tables[TABLES]) {
    return count_in(x, count, to, tables);
}
#if defined(__x86_64__)
AVX2 static int64_t count_avx2(
    const float *x, int64_t count, Scaling to, int64_t *const tables[TABLES]) {
    return count_in(x, count, to, tables);
}
VNNI static int64_t count_avx512(
    const float *x, int64_t count, Scaling to, int64_t *const tables[TABLES]) {
    return count_in(x, count, to, tables);
}
#endif

static int64_t count_values(
    const float *x, int64_t count, Grid grid, int64_t *const tables[TABLES]) {
    int power = (int)-grid.exponent, one = power > 64 ? 64 : power;
    Scaling to = {ldexpf(1.0f, one), ldexpf(1.0f, power - one), (int32_t)grid.first};
#if defined(__x86_64__)
    if (octavo_isa() >= OCTAVO_AVX512_VNNI) return count_avx512(x, count, to, tables);
    if (octavo_isa() >= OCTAVO_AVX2) return count_avx2(x, count, to, tables);
#endif
    return count_portable(x, count, to, tables);
}

typedef struct {
    const octavo_histogram *seen;
    Grid *grids;     /* of each row */
    int64_t *tables; /* [threads][TABLES][bins] beside the only row, so that equal values that
                        follow each other do not wait for each other */
    _Atomic int64_t zeros;
} Counting;

static void count_all(void *context, int thread, int threads) {
    Counting *c = context;
    const octavo_histogram *seen = c->seen;
    int64_t rows = seen->rows, count = seen->count, bins = seen->bins, *tables[TABLES];
    if (rows == 1) {
        int64_t from = count * thread / threads, to = count * (thread + 1) / threads;
        for (int t = 0; t < TABLES; t++) tables[t] = c->tables + (thread * TABLES + t) * bins;
        c->zeros += count_values(seen->x + from, to - from, c->grids[0], tables);
        return;
    }
    for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
        for (int t = 0; t < TABLES; t++) tables[t] = seen->counts + row * bins;
        seen->zeros[row] += count_values(seen->x + row * count, count, c->grids[row], tables);
    }
}

/* ---- all of it ---- */

/* The range of a row takes in another, and what was counted moves onto its grid. */
static Grid widen(const octavo_histogram *seen, int64_t row, Range range, int64_t *memory) {
    float *low = seen->low + row, *high = seen->high + row;
    int had = *low <= *high;
    Grid old = had ? grid_of(*low, *high, seen->bins) : (Grid){0};
    if (!had || range.low < *low) *low = range.low;
    if (!had || range.high > *high) *high = range.high;
    Grid grid = grid_of(*low, *high, seen->bins);
    if (had && (grid.exponent != old.exponent || grid.first != old.first))
        regrid(seen->counts + row * seen->bins, seen->bins, old, grid, memory);
    return grid;
}

static int observe(
    const octavo_histogram *seen, int threads, Grid *grids, float *ranges, int64_t *tables) {
    int64_t rows = seen->rows, bins = seen->bins;
    float *low = ranges, *high = ranges + rows;
    octavo_extrema(seen->x, rows, seen->count, low, high, threads);
    for (int64_t row = 0; row < rows; row++)
        if (!isfinite(low[row]) || !isfinite(high[row])) return OCTAVO_NOT_FINITE;
    for (int64_t row = 0; row < rows; row++)
        grids[row] = widen(seen, row, (Range){low[row], high[row]}, tables);
    if (rows == 1) memset(tables, 0, (size_t)bins * sizeof *tables); /* it moved counts */
    Counting counting = {seen, grids, tables, 0};
    octavo_in_threads(count_all, &counting, threads);
    if (rows == 1) {
        seen->zeros[0] += counting.zeros;
        for (int64_t table = 0; table < threads * TABLES; table++)
            for (int64_t bin = 0; bin < bins; bin++)
                seen->counts[bin] += tables[table * bins + bin];
    }
    return 0;
}

int octavo_observe(const octavo_histogram *seen, int threads) {
    int64_t rows = seen->rows;
    threads = threads_for(rows, seen->count, threads);
    size_t tables = rows == 1 ? (size_t)threads * TABLES : 1;
    Grid *grids = malloc((size_t)rows * sizeof *grids);
    float *ranges = malloc((size_t)(2 * rows) * sizeof *ranges);
    int64_t *counts = calloc(tables, (size_t)seen->bins * sizeof *counts);
    int status = OCTAVO_NO_MEMORY;
    if (grids && ranges && counts) status = observe(seen, threads, grids, ranges, counts);
    free(grids), free(ranges), free(counts);
    return status;
}
