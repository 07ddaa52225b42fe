/* Scaled dot product attention on uint8, fused: no scores leave a thread's own memory.
 *
 * Keys and values are packed as the weights of products, once for each head. Then each thread takes
 * some targets of a head: their scores with all keys, the exponentials of these as integers, and the
 * product of those with the values.
 */
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "octavo.h"
#include "rounding.h"

enum { TARGETS = 24 /* that a thread takes at a time */, FOUR = 4 };

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

/* ---- packing: what product.c reads, of values less 128 ---- */

/* Four rows of 16 values, less 128, with four of a row beside four of the next: to `to`, and so many bytes
 * on for each four of the columns. */
INLINE void pack_four_keys(const uint8_t *from, int64_t stride, int8_t *to, const int64_t step) {
#if defined(__x86_64__)
    __m128i rows[FOUR];
    for (int i = 0; i < FOUR; i++)
        rows[i] = _mm_xor_si128(
            _mm_loadu_si128((const __m128i *)(from + i * stride)), _mm_set1_epi8((char)0x80));
    __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpacklo_epi32(rows[2], rows[3]);
    __m128i c = _mm_unpackhi_epi32(rows[0], rows[1]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128((__m128i *)(to + step), _mm_unpackhi_epi64(a, b));
    _mm_storeu_si128((__m128i *)(to + 2 * step), _mm_unpacklo_epi64(c, d));
    _mm_storeu_si128((__m128i *)(to + 3 * step), _mm_unpackhi_epi64(c, d));
#else
    for (int64_t row = 0; row < FOUR; row++)
        for (int64_t i = 0; i < BLOCK; i++)
            to[i / FOUR * step + row * FOUR + i % FOUR] = (int8_t)(from[row * stride + i] ^ 0x80);
#endif
}

/* Four rows of 16 values, less 128, each value of a column beside that of the next row. */
INLINE void pack_four_values(const uint8_t *from, int64_t stride, int8_t *to) {
#if defined(__x86_64__)
    __m128i rows[FOUR];
    for (int i = 0; i < FOUR; i++)
        rows[i] = _mm_xor_si128(
            _mm_loadu_si128((const __m128i *)(from + i * stride)), _mm_set1_epi8((char)0x80));
    __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpacklo_epi8(rows[2], rows[3]);
    __m128i c = _mm_unpackhi_epi8(rows[0], rows[1]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128((__m128i *)(to + BLOCK), _mm_unpackhi_epi16(a, b));
    _mm_storeu_si128((__m128i *)(to + 2 * BLOCK), _mm_unpacklo_epi16(c, d));
    _mm_storeu_si128((__m128i *)(to + 3 * BLOCK), _mm_unpackhi_epi16(c, d));
#else
    for (int64_t row = 0; row < FOUR; row++)
        for (int64_t i = 0; i < BLOCK; i++) to[FOUR * i + row] = (int8_t)(from[row * stride + i] ^ 0x80);
#endif
}

/* Keys [rows, columns] to [rows / 16][columns / 4][16][4], and the sum of each. */
static void pack_keys(
    const uint8_t *from, int64_t stride, int64_t rows, int64_t columns, int8_t *to, int32_t *sums) {
    int64_t width = up(columns, FOUR), rows_of_four = rows / FOUR * FOUR;
    int64_t whole = columns / BLOCK * BLOCK;
    if (rows % BLOCK || columns % FOUR) memset(to, 0, (size_t)(up(rows, BLOCK) * width));
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *key = from + row * stride;
        int8_t *place = to + row / BLOCK * BLOCK * width + row % BLOCK * FOUR;
        int32_t sum = 0;
        for (int64_t i = 0; i < columns; i++) sum += key[i];
        sums[row] = sum - 128 * (int32_t)columns;
        int64_t begin = row < rows_of_four ? whole : 0;
        if (begin && row % FOUR == 0)
            for (int64_t i = 0; i < whole; i += BLOCK)
                pack_four_keys(key + i, stride, place + i * BLOCK, FOUR * BLOCK);
        for (int64_t i = begin; i < columns; i++)
            place[i / FOUR * FOUR * BLOCK + i % FOUR] = (int8_t)(key[i] ^ 0x80);
    }
}

/* Values [sources, channels] to [channels / 16][sources / 4][16][4]. */
static void pack_values(
    const uint8_t *from, int64_t stride, int64_t sources, int64_t channels, int8_t *to) {
    int64_t width = up(sources, FOUR), fours = sources / FOUR * FOUR;
    if (sources % FOUR || channels % BLOCK)
        memset(to, 0, (size_t)(up(channels, BLOCK) * width));
    for (int64_t block = 0; block < channels; block += BLOCK) {
        int64_t count = channels - block < BLOCK ? channels - block : BLOCK;
        int64_t begin = count == BLOCK ? fours : 0;
        for (int64_t row = 0; row < begin; row += FOUR)
            pack_four_values(from + row * stride + block, stride, to + block * width + row * BLOCK);
        for (int64_t row = begin; row < sources; row++) {
            const uint8_t *value = from + row * stride + block;
            int8_t *place = to + (block * width + row / FOUR * FOUR * BLOCK) + row % FOUR;
            for (int64_t i = 0; i < count; i++) place[FOUR * i] = (int8_t)(value[i] ^ 0x80);
        }
    }
}

/* ---- rows of scores, written once and compiled for each instruction set ---- */

INLINE void mask_row(float *scores, int64_t count, const void *mask, int32_t kind) {
    const float *added = mask;
    const uint8_t *seen = mask;
    if (kind == OCTAVO_ADDED_MASK)
        for (int64_t i = 0; i < count; i++) scores[i] += added[i];
    else
        for (int64_t i = 0; i < count; i++) scores[i] = seen[i] ? scores[i] : -INFINITY;
}

/* The exponentials in steps, 0..levels; returns their sum. */
INLINE int32_t to_levels(const float *scores, int64_t count, float largest, float levels, uint8_t *q) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t steps = rounded(exponential(scores[i] - largest, 0.0f) * levels);
        q[i] = (uint8_t)steps;
        sum += steps;
    }
    return sum;
}

/* A row of scores to integers, and their sum; NaN where a score is none. Both have room for whole
 * vectors. */
INLINE float round_row(
    float *scores, int64_t count, const void *mask, int32_t kind, float levels, uint8_t *q,
    int32_t (*steps_of)(const float *, int64_t, float, float, uint8_t *)) {
    if (kind != OCTAVO_NO_MASK) mask_row(scores, count, mask, kind);
    int64_t whole = up(count, LANES);
    for (int64_t i = count; i < whole; i++) scores[i] = -INFINITY;
    float largest = largest_of(scores, whole);
    if (largest != largest) {
        memset(q, 0, (size_t)count);
        return largest;
    }
    return (float)steps_of(scores, whole, largest, levels, q);
}

#if defined(__x86_64__)

VNNI static int32_t to_levels_vnni(
    const float *scores, int64_t count, float largest, float levels, uint8_t *q) {
    const float log2_of_e = 1.44269504088896341f;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += LANES) {
        __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(largest));
        __m512 share = power_of_two(_mm512_mul_ps(below, _mm512_set1_ps(log2_of_e)));
        __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(share, _mm512_set1_ps(levels)));
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(steps));
        sum = _mm512_add_epi32(sum, steps);
    }
    return _mm512_reduce_add_epi32(sum);
}

#endif

/* The sums of values less 128, to their mean: exact where they are whole numbers of a float. */
INLINE void store_row(const octavo_attention_call *call, const float *sums, float sum, char *out) {
    int64_t count = call->value_channels;
    float shift = sum * (float)(128 - call->v.zero_point);
    float worth = sum == 0.0f ? 0.0f : call->v.scale / sum;
    if (call->out_scale == 0.0f) {
        float *to = (float *)out;
        for (int64_t i = 0; i < count; i++) to[i] = (sums[i] + shift) * worth;
        return;
    }
    float mean[BLOCK];
    for (int64_t block = 0; block < count; block += BLOCK) {
        int64_t size = count - block < BLOCK ? count - block : BLOCK;
        for (int64_t i = 0; i < size; i++) mean[i] = (sums[block + i] + shift) * worth;
        round_floats(
            mean, size, call->out_scale, call->out_zero_point, call->out_low, call->out_high,
            (uint8_t *)out + block);
    }
}

typedef struct {
    float (*round_row)(float *, int64_t, const void *, int32_t, float, uint8_t *);
    void (*store_row)(const octavo_attention_call *, const float *, float, char *);
} Rows;

#define ROWS(SET, TARGET, TO_LEVELS)                                                             \
    TARGET static float round_row_##SET(                                                         \
        float *scores, int64_t count, const void *mask, int32_t kind, float levels, uint8_t *q) { \
        return round_row(scores, count, mask, kind, levels, q, TO_LEVELS);                       \
    }                                                                                            \
    TARGET static void store_row_##SET(                                                          \
        const octavo_attention_call *call, const float *sums, float sum, char *out) {            \
        store_row(call, sums, sum, out);                                                         \
    }                                                                                            \
    static const Rows rows_##SET = {round_row_##SET, store_row_##SET};

ROWS(portable, , to_levels)
#if defined(__x86_64__)
ROWS(avx2, AVX2, to_levels)
ROWS(avx512, VNNI, to_levels_vnni)
#endif

static const Rows *rows_of_this_cpu(void) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return &rows_avx512;
    case OCTAVO_AVX2: return &rows_avx2;
#endif
    default: return &rows_portable;
    }
}

/* ---- one call ---- */

/* What one worker works on: the targets of a head, as rows of products, and their scores. */
typedef struct {
    octavo_rows queries, shares; /* as they come; the rounded exponentials */
    float *scores, *mixed;       /* [TARGETS, sources], [TARGETS, value channels], rounded up */
    uint8_t *levels;             /* [sources] */
} Own;

/* Whether a worker's memory is in use. */
typedef struct {
    _Alignas(64) atomic_flag taken;
} Door;

/* Where all of that is in the memory of a call. */
typedef struct {
    const octavo_attention_call *call;
    octavo_matrix keys, values; /* of the first head */
    int8_t *packed_keys, *packed_values;
    int32_t *key_sums;
    float *key_scales, *ones, *zeros;
    Door *doors;
    char *own; /* the first worker's memory */
    int64_t own_bytes, bytes;
} Run;

/* One piece of memory after the other out of one block, each on a line of the cache; without a block
 * their bytes are counted. */
static void *piece(char *block, int64_t *used, int64_t bytes) {
    void *start = block ? block + *used : NULL;
    *used += up(bytes, 64);
    return start;
}

static octavo_rows rows_in(char *block, int64_t *used, int64_t columns) {
    octavo_rows rows = {.columns = columns};
    rows.digits = piece(block, used, TARGETS * 2 * columns);
    rows.scales = piece(block, used, TARGETS * 4);
    rows.zero_points = piece(block, used, TARGETS * 4);
    return rows;
}

static Own own_in(const Run *run, char *block, int64_t *used) {
    Own own;
    own.queries = rows_in(block, used, run->keys.columns);
    own.shares = rows_in(block, used, run->values.columns);
    own.scores = piece(block, used, TARGETS * run->keys.rows * 4);
    own.mixed = piece(block, used, TARGETS * run->values.rows * 4);
    own.levels = piece(block, used, run->keys.rows);
    return own;
}

static Run placed(const octavo_attention_call *call) {
    Run run = {.call = call};
    char *block = call->memory ? (char *)call->memory + -(uintptr_t)call->memory % 64 : NULL;
    int64_t heads = call->batch * call->shared_heads;
    octavo_matrix *keys = &run.keys, *values = &run.values;
    keys->rows = up(call->sources, BLOCK), keys->columns = up(call->channels, FOUR);
    values->rows = up(call->value_channels, BLOCK), values->columns = up(call->sources, FOUR);
    int64_t most = keys->rows > values->rows ? keys->rows : values->rows;
    run.doors = piece(block, &run.bytes, call->workers * (int64_t)sizeof(Door));
    run.packed_keys = piece(block, &run.bytes, heads * keys->rows * keys->columns);
    run.packed_values = piece(block, &run.bytes, heads * values->rows * values->columns);
    run.key_sums = piece(block, &run.bytes, heads * keys->rows * 4);
    run.key_scales = piece(block, &run.bytes, keys->rows * 4);
    run.ones = piece(block, &run.bytes, values->rows * 4);
    run.zeros = piece(block, &run.bytes, most * 4);
    own_in(&run, NULL, &run.own_bytes);
    run.own = piece(block, &run.bytes, call->workers * run.own_bytes);
    keys->scales = run.key_scales, values->scales = run.ones;
    keys->bias = values->bias = run.zeros; /* what all scores of a row have more changes none */
    values->sums = (int32_t *)run.zeros;
    return run;
}

int64_t octavo_attention_memory(const octavo_attention_call *call) { return placed(call).bytes + 64; }

static void pack(const Run *run, int64_t index) {
    const octavo_attention_call *call = run->call;
    int64_t head = index / 2, batch = head / call->shared_heads, rest = head % call->shared_heads;
    const octavo_heads *heads = index % 2 ? &call->v : &call->k;
    const uint8_t *from =
        heads->values + batch * heads->batch_stride + rest * heads->head_stride;
    const octavo_matrix *keys = &run->keys, *values = &run->values;
    if (index % 2)
        pack_values(
            from, heads->row_stride, call->sources, call->value_channels,
            run->packed_values + head * values->rows * values->columns);
    else
        pack_keys(
            from, heads->row_stride, call->sources, call->channels,
            run->packed_keys + head * keys->rows * keys->columns,
            run->key_sums + head * keys->rows);
}

static void attend(
    const Run *run, Own *own, int64_t batch, int64_t head, int64_t first, int64_t count) {
    float sums[TARGETS]; /* of the exponentials */
    const octavo_attention_call *call = run->call;
    const Rows *rows = rows_of_this_cpu();
    int64_t shared =
        batch * call->shared_heads + head / (call->heads / call->shared_heads);
    octavo_matrix keys = run->keys, values = run->values;
    keys.weights = run->packed_keys + shared * keys.rows * keys.columns;
    keys.sums = run->key_sums + shared * keys.rows;
    values.weights = run->packed_values + shared * values.rows * values.columns;

    const octavo_reading integers = {
        .how = OCTAVO_INTEGERS, .scale = call->q.scale, .zero_point = call->q.zero_point};
    const uint8_t *q = call->q.values + batch * call->q.batch_stride + head * call->q.head_stride;
    for (int64_t i = 0; i < count; i++)
        octavo_read_row(
            &own->queries, i, q + (first + i) * call->q.row_stride, call->channels, &integers);
    int64_t most = call->causal && first + count < call->sources ? first + count : call->sources;
    octavo_product(&keys, 0, up(most, BLOCK) / BLOCK, &own->queries, count, own->scores);

    const octavo_reading shares = {.how = OCTAVO_INTEGERS, .scale = 1.0f};
    int64_t size = call->mask_kind == OCTAVO_ADDED_MASK ? 4 : 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t target = first + i;
        int64_t seen = call->causal && target + 1 < most ? target + 1 : most;
        const char *mask = call->mask;
        if (mask)
            mask += size * (batch * call->mask_batch_stride + head * call->mask_head_stride +
                            target * call->mask_row_stride);
        sums[i] = rows->round_row(
            own->scores + i * keys.rows, seen, mask, call->mask_kind, (float)call->levels,
            own->levels);
        octavo_read_row(&own->shares, i, own->levels, seen, &shares);
    }
    octavo_product(&values, 0, values.rows / BLOCK, &own->shares, count, own->mixed);
    char *out = call->out;
    size = call->out_scale == 0.0f ? 4 : 1;
    for (int64_t i = 0; i < count; i++)
        rows->store_row(
            call, own->mixed + i * values.rows, sums[i],
            out + size * (batch * call->out_batch_stride + head * call->out_head_stride +
                          (first + i) * call->out_row_stride));
}

static void prepare(const Run *run) {
    const octavo_attention_call *call = run->call;
    for (int64_t i = 0; i < call->workers; i++) atomic_flag_clear(&run->doors[i].taken);
    for (int64_t i = 0; i < run->keys.rows; i++) {
        run->key_scales[i] = call->k.scale * call->scale;
        run->zeros[i] = 0.0f;
    }
    for (int64_t i = 0; i < run->values.rows; i++) {
        run->ones[i] = 1.0f;
        run->zeros[i] = 0.0f;
    }
}

static int64_t parts_of(const octavo_attention_call *call) {
    return 2 * call->batch * call->shared_heads;
}

static int64_t blocks_of(const octavo_attention_call *call) { return up(call->targets, TARGETS) / TARGETS; }

void octavo_pack_heads(const octavo_attention_call *call, int chunk, int chunks) {
    Run run = placed(call);
    if (chunk == 0) prepare(&run);
    int64_t parts = parts_of(call);
    for (int64_t i = parts * chunk / chunks; i < parts * (chunk + 1) / chunks; i++) pack(&run, i);
}

void octavo_attend(const octavo_attention_call *call, int chunk, int chunks) {
    Run run = placed(call);
    int64_t worker = 0; /* no more chunks than workers are at work, so that one is free */
    while (atomic_flag_test_and_set_explicit(&run.doors[worker].taken, memory_order_acquire))
        worker = (worker + 1) % call->workers;
    int64_t used = 0;
    Own own = own_in(&run, run.own + worker * run.own_bytes, &used);
    int64_t blocks = blocks_of(call), all = call->batch * call->heads * blocks;
    for (int64_t i = all * chunk / chunks; i < all * (chunk + 1) / chunks; i++) {
        int64_t head = i / blocks, first = i % blocks * TARGETS, rest = call->targets - first;
        attend(
            &run, &own, head / call->heads, head % call->heads, first,
            rest < TARGETS ? rest : TARGETS);
    }
    atomic_flag_clear_explicit(&run.doors[worker].taken, memory_order_release);
}

static void pack_some(void *context, int chunk, int chunks) { octavo_pack_heads(context, chunk, chunks); }

static void attend_some(void *context, int chunk, int chunks) { octavo_attend(context, chunk, chunks); }

int octavo_attention(const octavo_attention_call *given, int threads) {
    octavo_attention_call call = *given;
    int64_t pairs = call.batch * call.heads * call.targets * call.sources;
    int64_t useful = pairs * (call.channels + call.value_channels) / OCTAVO_WORK_OF_A_THREAD + 1;
    threads = useful < threads ? (int)useful : threads;
    call.workers = threads;
    call.memory = malloc((size_t)octavo_attention_memory(&call));
    if (!call.memory) return 1;
    int64_t all = call.batch * call.heads * blocks_of(&call);
    octavo_stage stages[] = {
        {pack_some, &call, octavo_chunks(parts_of(&call), threads)},
        {attend_some, &call, octavo_chunks(all, threads)}};
    octavo_run_stages(stages, 2, threads);
    free(call.memory);
    return 0;
}
