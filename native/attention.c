/* Scaled dot product attention on uint8, fused: no scores leave a thread's own memory.
 *
 * Keys and values are packed as the weights of products, once for each head. Then each thread takes
 * some targets of a head: their scores with all keys, the exponentials of these as integers, and the
 * product of those with the values.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "amx.h"
#include "heads.h"
#include "octavo.h"
#include "shares.h"

enum { TARGETS = 24 /* that a thread takes at a time */, TILED_TARGETS = 48 /* with tiles */ };

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

/* ---- rows of scores, compiled for each instruction set ---- */

typedef struct {
    float (*round_row)(float *, int64_t, const Scores *, uint8_t *);
    void (*store_row)(const octavo_attention_call *, const float *, float, char *);
} Rows;

#define ROWS(SET, TARGET, ROUND, STORE)                                                   \
    TARGET static float round_row_##SET(                                                  \
        float *sums, int64_t count, const Scores *meant, uint8_t *q) {                    \
        return ROUND;                                                                     \
    }                                                                                     \
    TARGET static void store_row_##SET(                                                   \
        const octavo_attention_call *call, const float *sums, float sum, char *out) {     \
        STORE;                                                                            \
    }                                                                                     \
    static const Rows rows_##SET = {round_row_##SET, store_row_##SET};

ROWS(portable, , round_row(sums, count, meant, q), store_row(call, sums, sum, out))
#if defined(__x86_64__)
ROWS(avx2, AVX2, round_row(sums, count, meant, q), store_row(call, sums, sum, out))
ROWS(
    avx512, VNNI, round_row_vnni(sums, count, largest_score(sums, count, meant, 0), meant, q, 0),
    store_row_vnni(call, sums, sum, out, 0))
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

/* What one worker works on: some targets of a head, their scores and the shares that these become. */
typedef struct {
    octavo_rows queries, shares; /* as they come; the rounded exponentials */
    void *scores, *mixed;        /* [targets, sources], [targets, value channels], rounded up */
    uint8_t *levels;             /* of a row, or with tiles of all */
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
    int32_t *key_sums; /* with tiles: times the queries' zero point, negated */
    float *ones, *zeros;
    Door *doors;
    char *own; /* the first worker's memory */
    int64_t own_bytes, bytes;
    int64_t targets;                            /* at a time */
    int64_t query_pitch, score_pitch, level_pitch; /* with tiles: bytes from row to row */
    int is_tiled;
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
    Own own = {.queries = {.columns = run->keys.columns}};
    if (run->is_tiled) {
        own.queries.digits = piece(block, used, run->targets * run->query_pitch);
        own.scores = piece(block, used, run->targets * run->score_pitch);
        own.levels = piece(block, used, run->targets * run->level_pitch);
    } else {
        own.queries = rows_in(block, used, run->keys.columns);
        own.shares = rows_in(block, used, run->values.columns);
        own.scores = piece(block, used, run->targets * run->keys.rows * 4);
        own.levels = piece(block, used, up(run->keys.rows, 64));
    }
    own.mixed = piece(block, used, run->targets * run->values.rows * 4);
    return own;
}

/* An odd number of lines: rows at multiples of 4096 bytes would have one place in a cache. */
static int64_t pitch_of(int64_t bytes) { return (up(bytes, 64) / 64 | 1) * 64; }

static Run placed(const octavo_attention_call *call, int is_tiled) {
    Run run = {.call = call, .is_tiled = is_tiled};
    char *block = call->memory ? (char *)call->memory + -(uintptr_t)call->memory % 64 : NULL;
    int64_t heads = call->batch * call->shared_heads;
    octavo_matrix *keys = &run.keys, *values = &run.values;
    keys->rows = up(call->sources, BLOCK);
    keys->columns = up(call->channels, is_tiled && call->channels > 64 ? 64 : FOUR);
    values->rows = up(call->value_channels, BLOCK);
    values->columns = up(call->sources, is_tiled ? 64 : FOUR);
    run.targets = is_tiled ? TILED_TARGETS : TARGETS;
    run.query_pitch = pitch_of(keys->columns), run.score_pitch = pitch_of(keys->rows * 4);
    run.level_pitch = pitch_of(values->columns);
    int64_t most = keys->rows > values->rows ? keys->rows : values->rows;
    run.doors = piece(block, &run.bytes, call->workers * (int64_t)sizeof(Door));
    run.packed_keys = piece(block, &run.bytes, heads * keys->rows * keys->columns);
    run.packed_values = piece(block, &run.bytes, heads * values->rows * values->columns);
    run.key_sums = piece(block, &run.bytes, heads * keys->rows * 4);
    run.ones = piece(block, &run.bytes, most * 4);
    run.zeros = piece(block, &run.bytes, most * 4);
    own_in(&run, NULL, &run.own_bytes);
    run.own = piece(block, &run.bytes, call->workers * run.own_bytes);
    keys->scales = values->scales = run.ones; /* rows of scores have a scale of their own */
    keys->bias = values->bias = run.zeros; /* what all scores of a row have more changes none */
    values->sums = (int32_t *)run.zeros;
    return run;
}

int64_t octavo_attention_memory(const octavo_attention_call *call) {
    int64_t bytes = placed(call, 0).bytes, of_tiles = placed(call, 1).bytes;
    return (bytes > of_tiles ? bytes : of_tiles) + 64;
}

static void pack(const Run *run, int64_t index) {
    const octavo_attention_call *call = run->call;
    int64_t head = index / 2, batch = head / call->shared_heads, rest = head % call->shared_heads;
    const octavo_heads *heads = index % 2 ? &call->v : &call->k;
    const uint8_t *from =
        heads->values + batch * heads->batch_stride + rest * heads->head_stride;
    const octavo_matrix *keys = &run->keys, *values = &run->values;
    if (index % 2) {
        pack_values(
            from, heads->row_stride, call->sources, call->value_channels, values->columns,
            run->packed_values + head * values->rows * values->columns);
    } else {
        int32_t *sums = run->key_sums + head * keys->rows;
        pack_keys(
            from, heads->row_stride, call->sources, call->channels, keys->columns,
            run->packed_keys + head * keys->rows * keys->columns, sums);
        for (int64_t i = 0; run->is_tiled && i < keys->rows; i++) sums[i] *= -call->q.zero_point;
    }
}

/* Some targets of a head of queries, and the keys and values that they read. */
typedef struct {
    int64_t batch, head, first, count;
    int64_t most; /* sources that any of them sees */
    octavo_matrix keys, values;
} Part;

static Part part_of(const Run *run, int64_t index) {
    const octavo_attention_call *call = run->call;
    int64_t blocks = up(call->targets, run->targets) / run->targets, all = index / blocks;
    Part part = {
        .batch = all / call->heads, .head = all % call->heads, .first = index % blocks * run->targets};
    int64_t rest = call->targets - part.first;
    part.count = rest < run->targets ? rest : run->targets;
    int64_t end = part.first + part.count;
    part.most = call->causal && end < call->sources ? end : call->sources;
    int64_t shared =
        part.batch * call->shared_heads + part.head / (call->heads / call->shared_heads);
    part.keys = run->keys, part.values = run->values;
    part.keys.weights = run->packed_keys + shared * part.keys.rows * part.keys.columns;
    part.keys.sums = run->key_sums + shared * part.keys.rows;
    part.values.weights = run->packed_values + shared * part.values.rows * part.values.columns;
    return part;
}

static const uint8_t *query_of(const Run *run, const Part *part, int64_t i) {
    const octavo_heads *q = &run->call->q;
    return q->values + part->batch * q->batch_stride + part->head * q->head_stride +
           (part->first + i) * q->row_stride;
}

/* How many sources a target sees. */
static int64_t seen_by(const Run *run, const Part *part, int64_t i) {
    int64_t before = part->first + i + 1;
    return run->call->causal && before < part->most ? before : part->most;
}

static Scores scores_of(const Run *run, const Part *part, int64_t i) {
    const octavo_attention_call *call = run->call;
    float scale = call->k.scale * call->scale * call->q.scale;
    Scores scores = {scale, (float)call->levels, call->mask_kind, call->mask};
    int64_t size = call->mask_kind == OCTAVO_ADDED_MASK ? 4 : 1;
    if (call->mask)
        scores.mask = (const char *)call->mask +
                      size * (part->batch * call->mask_batch_stride +
                              part->head * call->mask_head_stride +
                              (part->first + i) * call->mask_row_stride);
    return scores;
}

static char *result_of(const Run *run, const Part *part, int64_t i) {
    const octavo_attention_call *call = run->call;
    int64_t size = call->out_scale == 0.0f ? 4 : 1;
    return (char *)call->out +
           size * (part->batch * call->out_batch_stride + part->head * call->out_head_stride +
                   (part->first + i) * call->out_row_stride);
}

static void attend(const Run *run, Own *own, const Part *part) {
    float sums[TARGETS]; /* of the exponentials */
    const octavo_attention_call *call = run->call;
    const Rows *rows = rows_of_this_cpu();
    int64_t sources = part->keys.rows, channels = part->values.rows;
    float *scores = own->scores, *mixed = own->mixed;
    const octavo_reading queries = {
        .how = OCTAVO_INTEGERS, .scale = 1.0f, .zero_point = call->q.zero_point};
    const octavo_reading shares = {.how = OCTAVO_INTEGERS, .scale = 1.0f};
    for (int64_t i = 0; i < part->count; i++)
        octavo_read_row(&own->queries, i, query_of(run, part, i), call->channels, &queries);
    octavo_product(
        &part->keys, 0, up(part->most, BLOCK) / BLOCK, &own->queries, part->count, scores);
    for (int64_t i = 0; i < part->count; i++) {
        int64_t seen = seen_by(run, part, i);
        Scores meant = scores_of(run, part, i);
        sums[i] = rows->round_row(scores + i * sources, seen, &meant, own->levels);
        octavo_read_row(&own->shares, i, own->levels, seen, &shares);
    }
    octavo_product(&part->values, 0, channels / BLOCK, &own->shares, part->count, mixed);
    for (int64_t i = 0; i < part->count; i++)
        rows->store_row(call, mixed + i * channels, sums[i], result_of(run, part, i));
}

/* ---- AMX ---- */

#if defined(OCTAVO_KNOWS_AMX)

/* Registers 0 to 3 have the sums of a row of tiles. */
#define QUERIES 4
#define KEYS 5
#define SHARES 6
#define VALUES 7
enum { SUMS = 4, STEP = FOUR * BLOCK /* from four of a column's values to the next */ };

/* For as many channels as a tile of queries has. */
AMX static void hold_heads(int64_t channels) {
    TileSizes sizes = {.palette = 1};
    for (int t = 0; t < TILE_REGISTERS; t++)
        sizes.rows[t] = TILE_ROWS, sizes.bytes[t] = TILE_BYTES;
    sizes.bytes[QUERIES] = (uint16_t)channels;
    sizes.rows[KEYS] = (uint8_t)(channels / FOUR);
    tile_sizes(&sizes);
}

/* Of 16 rows: sums with up to four blocks of weights, `stride` bytes apart, from `first` on; a step's columns
 * are those of a tile. */
#define SUM_TILES(LEFT, RIGHT)                                                               \
    INLINE AMX void sum_tiles_##LEFT(                                                        \
        const uint8_t *rows, int64_t pitch, const int8_t *weights, int64_t stride,           \
        int64_t columns, int64_t step, const int32_t *first, int64_t first_step,             \
        char *to, int64_t to_pitch, const int blocks) {                                      \
        tile_read(0, first, 0);                                                              \
        if (blocks > 1) tile_read(1, first + first_step, 0);                                 \
        if (blocks > 2) tile_read(2, first + 2 * first_step, 0);                             \
        if (blocks > 3) tile_read(3, first + 3 * first_step, 0);                             \
        for (int64_t k = 0; k < columns; k += step, weights += step * BLOCK) {               \
            tile_read(LEFT, rows + k, pitch);                                                \
            tile_read(RIGHT, weights, STEP);                                                 \
            tile_products(0, LEFT, RIGHT);                                                   \
            if (blocks > 1) {                                                                \
                tile_read(RIGHT, weights + stride, STEP);                                    \
                tile_products(1, LEFT, RIGHT);                                               \
            }                                                                                \
            if (blocks > 2) {                                                                \
                tile_read(RIGHT, weights + 2 * stride, STEP);                                \
                tile_products(2, LEFT, RIGHT);                                               \
            }                                                                                \
            if (blocks > 3) {                                                                \
                tile_read(RIGHT, weights + 3 * stride, STEP);                                \
                tile_products(3, LEFT, RIGHT);                                               \
            }                                                                                \
        }                                                                                    \
        tile_write(0, to, to_pitch);                                                         \
        if (blocks > 1) tile_write(1, to + STEP, to_pitch);                                  \
        if (blocks > 2) tile_write(2, to + 2 * STEP, to_pitch);                              \
        if (blocks > 3) tile_write(3, to + 3 * STEP, to_pitch);                              \
    }

SUM_TILES(QUERIES, KEYS)
SUM_TILES(SHARES, VALUES)

#define IN_FOURS(COUNT, CALL)                                   \
    for (int64_t block = 0; block < (COUNT); block += SUMS)     \
        switch ((COUNT) - block) {                              \
        case 1: CALL(1); break;                                 \
        case 2: CALL(2); break;                                 \
        case 3: CALL(3); break;                                 \
        default: CALL(4);                                       \
        }

AMX static void score_tiles(const Run *run, const Own *own, const Part *part) {
    const octavo_matrix *keys = &part->keys;
    int64_t columns = keys->columns, stride = BLOCK * columns, step = columns < 64 ? columns : 64;
#define SCORE(BLOCKS)                                                                          \
    sum_tiles_QUERIES(                                                                         \
        own->queries.digits + i * run->query_pitch, run->query_pitch,                          \
        keys->weights + block * stride, stride, columns, step, keys->sums + block * BLOCK, BLOCK, \
        (char *)own->scores + i * run->score_pitch + block * STEP, run->score_pitch, BLOCKS)
    for (int64_t i = 0; i < part->count; i += TILE_ROWS)
        IN_FOURS(up(part->most, BLOCK) / BLOCK, SCORE)
}

AMX static void mix_tiles(const Run *run, const Own *own, const Part *part) {
    const octavo_matrix *values = &part->values;
    int64_t columns = up(part->most, 64), stride = BLOCK * values->columns;
#define MIX(BLOCKS)                                                                            \
    sum_tiles_SHARES(                                                                          \
        own->levels + i * run->level_pitch, run->level_pitch,                                  \
        values->weights + block * stride, stride, columns, 64, values->sums, 0,                \
        (char *)own->mixed + i * values->rows * 4 + block * STEP, values->rows * 4, BLOCKS)
    for (int64_t i = 0; i < part->count; i += TILE_ROWS)
        IN_FOURS(values->rows / BLOCK, MIX)
}

static void *row_of(void *rows, int64_t i, int64_t pitch) { return (char *)rows + i * pitch; }

AMX static void read_queries(const Run *run, const Own *own, const Part *part) {
    for (int64_t i = 0; i < part->count; i++)
        memcpy(
            own->queries.digits + i * run->query_pitch, query_of(run, part, i),
            (size_t)run->call->channels);
}

/* All largest ones first: behind tiles the CPU is slow at floating point, until for some 200 cycles nothing
 * asks for it. */
AMX static void round_rows(const Run *run, const Own *own, const Part *part, float *sums) {
    float largest[TILED_TARGETS];
    int64_t whole = up(part->most, 64);
    for (int64_t i = 0; i < part->count; i++) {
        Scores meant = scores_of(run, part, i);
        largest[i] = largest_score(row_of(own->scores, i, run->score_pitch), seen_by(run, part, i), &meant, 1);
    }
    for (int64_t i = 0; i < part->count; i++) {
        int64_t seen = seen_by(run, part, i), end = up(seen, 64);
        Scores meant = scores_of(run, part, i);
        uint8_t *levels = own->levels + i * run->level_pitch;
        sums[i] = round_row_vnni(
            row_of(own->scores, i, run->score_pitch), seen, largest[i], &meant, levels, 1);
        if (end < whole) memset(levels + end, 0, (size_t)(whole - end));
    }
}

AMX static void store_rows(const Run *run, const Own *own, const Part *part, const float *sums) {
    const int32_t *mixed = own->mixed;
    for (int64_t i = 0; i < part->count; i++)
        store_row_vnni(
            run->call, mixed + i * part->values.rows, sums[i], result_of(run, part, i), 1);
}

AMX static void attend_by_tiles(const Run *run, Own *own, int64_t first, int64_t last) {
    int64_t columns = run->keys.columns;
    float sums[TILED_TARGETS]; /* of the exponentials */
    hold_heads(columns < 64 ? columns : 64);
    for (int64_t i = first; i < last; i++) {
        Part part = part_of(run, i);
        read_queries(run, own, &part);
        score_tiles(run, own, &part);
        round_rows(run, own, &part, sums);
        mix_tiles(run, own, &part);
        store_rows(run, own, &part, sums);
    }
    tile_release();
}

#endif

/* ---- all parts ---- */

static void prepare(const Run *run) {
    int64_t channels = run->values.rows, most = run->keys.rows > channels ? run->keys.rows : channels;
    for (int64_t i = 0; i < run->call->workers; i++) atomic_flag_clear(&run->doors[i].taken);
    for (int64_t i = 0; i < most; i++) run->ones[i] = 1.0f, run->zeros[i] = 0.0f;
}

static int64_t heads_of(const octavo_attention_call *call) {
    return 2 * call->batch * call->shared_heads;
}

static int64_t parts_of(const Run *run) {
    const octavo_attention_call *call = run->call;
    return call->batch * call->heads * (up(call->targets, run->targets) / run->targets);
}

void octavo_pack_heads(const octavo_attention_call *call, int chunk, int chunks) {
    Run run = placed(call, octavo_amx());
    if (chunk == 0) prepare(&run);
    int64_t heads = heads_of(call);
    for (int64_t i = heads * chunk / chunks; i < heads * (chunk + 1) / chunks; i++) pack(&run, i);
}

void octavo_attend(const octavo_attention_call *call, int chunk, int chunks) {
    Run run = placed(call, octavo_amx());
    int64_t worker = 0; /* no more chunks than workers are at work, so that one is free */
    while (atomic_flag_test_and_set_explicit(&run.doors[worker].taken, memory_order_acquire))
        worker = (worker + 1) % call->workers;
    int64_t used = 0, parts = parts_of(&run);
    int64_t first = parts * chunk / chunks, last = parts * (chunk + 1) / chunks;
    Own own = own_in(&run, run.own + worker * run.own_bytes, &used);
#if defined(OCTAVO_KNOWS_AMX)
    if (run.is_tiled) attend_by_tiles(&run, &own, first, last);
#endif
    for (int64_t i = first; !run.is_tiled && i < last; i++) {
        Part part = part_of(&run, i);
        attend(&run, &own, &part);
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
    Run run = placed(&call, octavo_amx());
    octavo_stage stages[] = {
        {pack_some, &call, octavo_chunks(heads_of(&call), threads)},
        {attend_some, &call, octavo_chunks(parts_of(&run), threads)}};
    octavo_run_stages(stages, 2, threads);
    free(call.memory);
    return 0;
}
