/* Rows of tables of integers, as floats: picked, or summed up in bags.
 *
 * Only the rows that are asked for are read.
 */
#include "octavo.h"
#include "rounding.h"

/* A thread more for so many values. */
enum { VALUES_OF_A_THREAD = 1 << 15 };

/* What becomes of a row's values. */
enum { PUT, ADD, KEEP_LARGER };

typedef struct {
    const octavo_table *table;
    const octavo_bags *bags;
    const int64_t *indices;
    float *y;
    int64_t count; /* of rows, or bags */
    void (*take)(const octavo_table *, int64_t, int, float, float *);
} Call;

INLINE void take_value(float *y, float value, float factor, const int action) {
    if (action == PUT)
        *y = value;
    else if (action == ADD)
        *y += value * factor;
    else
        *y = value > *y ? value : *y;
}

INLINE void take_group(
    const uint8_t *q, int64_t count, float scale, int32_t zero_point, float *restrict y,
    float factor, const int bits, const int is_signed, const int action) {
    int32_t shift = bits == 4 ? 8 : 128; /* a signed integer is x ^ shift - shift */
    int32_t less = is_signed ? shift + zero_point : zero_point;
    for (int64_t i = 0; i < count * bits / 8; i++) {
        int32_t both = q[i];
        if (bits == 8) {
            int32_t value = is_signed ? both ^ shift : both;
            take_value(y + i, (float)(value - less) * scale, factor, action);
        } else {
            int32_t first = both & 15, second = both >> 4;
            if (is_signed) first ^= shift, second ^= shift;
            take_value(y + 2 * i, (float)(first - less) * scale, factor, action);
            take_value(y + 2 * i + 1, (float)(second - less) * scale, factor, action);
        }
    }
}

INLINE void take_row(
    const octavo_table *t, int64_t row, int action, float factor, float *y, const int bits,
    const int is_signed) {
    int64_t size = t->columns / t->groups, bytes = size * bits / 8;
    const uint8_t *q = t->values + row * t->columns * bits / 8;
    for (int64_t group = 0; group < t->groups; group++, q += bytes, y += size) {
        float scale = t->scales[row * t->groups + group];
        int32_t zero_point = t->zero_points ? t->zero_points[row * t->groups + group] : 0;
        switch (action) {
        case PUT: take_group(q, size, scale, zero_point, y, factor, bits, is_signed, PUT); break;
        case ADD: take_group(q, size, scale, zero_point, y, factor, bits, is_signed, ADD); break;
        default: take_group(q, size, scale, zero_point, y, factor, bits, is_signed, KEEP_LARGER);
        }
    }
}

#define TAKE(SET, TARGET)                                                              \
    TARGET static void take_##SET(                                                     \
        const octavo_table *t, int64_t row, int action, float factor, float *y) {      \
        switch (t->bits * 2 + (t->is_signed != 0)) {                                   \
        case 17: take_row(t, row, action, factor, y, 8, 1); break;                     \
        case 16: take_row(t, row, action, factor, y, 8, 0); break;                     \
        case 9: take_row(t, row, action, factor, y, 4, 1); break;                      \
        default: take_row(t, row, action, factor, y, 4, 0);                            \
        }                                                                              \
    }

TAKE(portable, )
#if defined(__x86_64__)
TAKE(avx2, AVX2)
TAKE(avx512, VNNI)
#endif

static void pick(void *context, int chunk, int chunks) {
    const Call *call = context;
    int64_t columns = call->table->columns;
    for (int64_t i = call->count * chunk / chunks; i < call->count * (chunk + 1) / chunks; i++)
        call->take(call->table, call->indices[i], PUT, 1.0f, call->y + i * columns);
}

/* Where a bag's indices end. */
static int64_t end_of(const octavo_bags *bags, int64_t bag) {
    return bag + 1 < bags->offset_count ? bags->offsets[bag + 1] : bags->index_count;
}

static void sum_bags(void *context, int chunk, int chunks) {
    const Call *call = context;
    const octavo_bags *bags = call->bags;
    int64_t columns = call->table->columns;
    for (int64_t bag = call->count * chunk / chunks; bag < call->count * (chunk + 1) / chunks; bag++) {
        float *y = call->y + bag * columns;
        int64_t taken = 0;
        for (int64_t k = 0; k < columns; k++) y[k] = 0.0f;
        for (int64_t i = bags->offsets[bag]; i < end_of(bags, bag); i++) {
            if (call->indices[i] == bags->padding) continue;
            int action = bags->mode != OCTAVO_LARGEST_ROW ? ADD : taken ? KEEP_LARGER : PUT;
            float factor = bags->factors ? bags->factors[i] : 1.0f;
            call->take(call->table, call->indices[i], action, factor, y);
            taken++;
        }
        if (bags->mode == OCTAVO_MEAN_OF_ROWS && taken)
            for (int64_t k = 0; k < columns; k++) y[k] /= (float)taken;
    }
}

static int run(Call *call, octavo_task task, int64_t rows, int threads) {
    for (int64_t i = 0; i < rows; i++)
        if (call->indices[i] < 0 || call->indices[i] >= call->table->rows) return OCTAVO_NO_SUCH_ROW;
    int64_t useful = rows * call->table->columns / VALUES_OF_A_THREAD + 1;
    if (useful < threads) threads = (int)useful;
    call->take = take_portable;
#if defined(__x86_64__)
    if (octavo_isa() == OCTAVO_AVX2) call->take = take_avx2;
    if (octavo_isa() == OCTAVO_AVX512_VNNI) call->take = take_avx512;
#endif
    octavo_stage stage = {task, call, octavo_chunks(call->count, threads)};
    if (call->count) octavo_run_stages(&stage, 1, threads);
    return 0;
}

int octavo_pick_rows(
    const octavo_table *table, const int64_t *indices, int64_t count, float *y, int threads) {
    Call call = {.table = table, .indices = indices, .y = y, .count = count};
    return run(&call, pick, count, threads);
}

int octavo_sum_bags(
    const octavo_table *table, const octavo_bags *bags, const int64_t *indices, int64_t count,
    float *y, int threads) {
    for (int64_t i = 0, before = 0; i < bags->offset_count; before = bags->offsets[i++])
        if (bags->offsets[i] < before || bags->offsets[i] > (i ? bags->index_count : 0))
            return OCTAVO_NO_SUCH_OFFSET;
    Call call = {.table = table, .bags = bags, .indices = indices, .y = y, .count = count};
    return run(&call, sum_bags, bags->index_count, threads);
}
