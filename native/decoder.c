/* Blocks of decoders on rows of floats, those of a step or of a prompt: all of them are one call.
 *
 * Products of few rows read the weights once, which is what such a call waits for. What stands between
 * products is done where it is needed: a sum with the rest of the row, or an activation, by the chunk that
 * made its values.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "rounding.h"

enum { STAGES = 12, LEAST_PACKED = 32 /* tokens, for which sources are worth packing */ };

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

/* ---- one call ---- */

/* What all blocks of a call work on, one after the other. */
typedef struct {
    const octavo_decoder_call *call;
    const octavo_float_rows *rows;
    const octavo_attending *attending;
    const octavo_int8_tokens *int8_tokens;
    int how;                 /* rows are read */
    int64_t count;           /* rows of x */
    int64_t sources;         /* that the longest text has in any block */
    octavo_digits digits[3]; /* what the query, the key and the value read; others the first */
    float *normed;           /* [count][width] */
    float *heads[3];         /* [count][rows of the weight], as all results of products */
    char *packed;            /* sources; NULL where single rows attend */
    float *widened[2];       /* keys and values that are packed, out of a cache in int8 */
    float *attended;         /* [count][heads * channels] */
    float *middle, *gate, *up, *down;
    float *x[2];             /* [count][width]: what blocks give each other */
    float *scores;           /* [chunks][scores_size] */
    char *scratch;           /* [chunks][scratch_size] */
    int64_t scores_size, scratch_size;
    _Atomic int is_infinite; /* whether a row was not finite that a product read */
} Shared;

/* A block of the call. */
typedef struct {
    const octavo_decoder *block;
    const octavo_cache *cache;
    Shared *shared;
    const float *x;
    float *y;
} Run;

#define EACH(index, parts) \
    for (int64_t index = (parts) * chunk / chunks; index < (parts) * (chunk + 1) / chunks; index++)

/* Tokens of a text before those of the call. */
static int64_t past_of(const Run *run, int64_t batch) {
    return run->cache->past[batch] + run->shared->call->ahead;
}

/* What a cache has of a text and a head from a token on. */
static void *kept_at(const Run *run, void *of, int64_t batch, int64_t head, int64_t token) {
    const octavo_cache *cache = run->cache;
    int64_t size = run->block->channels + (cache->is_int8 ? OCTAVO_RANGE_OF_ROW : 0);
    int64_t at = batch * cache->batch_stride + head * cache->head_stride + token * size;
    return (char *)of + (cache->is_int8 ? at : 4 * at);
}

static void keep(const Run *run, const float *x, void *at) {
    if (run->cache->is_int8)
        run->shared->int8_tokens->round(x, run->block->channels, at);
    else
        memcpy(at, x, (size_t)run->block->channels * 4);
}

static void tell_infinite(Shared *shared) {
    atomic_store_explicit(&shared->is_infinite, 1, memory_order_relaxed);
}

static void read_row(
    Shared *s, const octavo_layer *layer, int digits, int64_t row, const float *x, int64_t width) {
    float step = octavo_read_for(layer, s->how, s->digits + digits, row, x, width);
    if (step != step) tell_infinite(s);
}

static void multiply(
    Shared *s, const octavo_layer *layer, int64_t part, int digits, float *y, int chunk) {
    char *scratch = s->scratch + chunk * s->scratch_size;
    if (!octavo_part_product(layer, s->how, part, s->digits + digits, s->count, y, scratch))
        tell_infinite(s);
}

/* Which digits the second of two layers reads, or the third. */
static int digits_of(const Shared *s, const octavo_layer *first, const octavo_layer *layer, int own) {
    return octavo_read_alike(first, layer, s->how) ? 0 : own;
}

/* Of the columns of a part: add what a row was before. */
static void add(
    const octavo_layer *layer, int64_t part, int64_t count, int64_t width, const float *y,
    const float *other, int64_t stride, float *sum, int64_t sum_stride) {
    int64_t rows = octavo_rows_of(layer), first = part * PART * BLOCK, last = first + PART * BLOCK;
    if (last > width) last = width;
    for (int64_t row = 0; row < count; row++)
        for (int64_t i = first; i < last; i++)
            sum[row * sum_stride + i] = y[row * rows + i] + other[row * stride + i];
}

/* ---- attention ---- */

static void read_for_attention(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count) {
        float *normed = s->normed + row * b->width;
        s->rows->normalized(run->x + row * b->width, b->width, &b->before_attention, normed);
        read_row(s, &b->query, 0, row, normed, b->width);
        const octavo_layer *others[] = {&b->key, &b->value};
        for (int i = 0; i < 2; i++)
            if (octavo_rows_of(others[i]) && digits_of(s, &b->query, others[i], i + 1))
                read_row(s, others[i], i + 1, row, normed, b->width);
    }
}

static void project(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    const octavo_layer *layers[] = {&b->query, &b->key, &b->value};
    int64_t ends[3], parts = 0;
    for (int i = 0; i < 3; i++) ends[i] = parts += octavo_parts_of(layers[i]);
    EACH(part, parts) {
        int i = part < ends[0] ? 0 : part < ends[1] ? 1 : 2;
        int64_t own = i ? part - ends[i - 1] : part;
        multiply(s, layers[i], own, digits_of(s, &b->query, layers[i], i), s->heads[i], chunk);
    }
}

/* A head in the results of a row. */
static float *head_at(const Run *run, const octavo_head_places *places, int64_t row, int64_t head) {
    const octavo_decoder *b = run->block;
    const octavo_layer *layers[] = {&b->query, &b->key, &b->value};
    float *of_row = run->shared->heads[places->layer] + row * octavo_rows_of(layers[places->layer]);
    return of_row + places->start + head * places->step;
}

/* Of each row and head of the keys: the queries that read it, and what the cache keeps. */
static void turn_and_keep(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    const octavo_decoder_call *call = run->shared->call;
    const octavo_rotation *rotation = call->rotations + b->rotation;
    Shared *s = run->shared;
    int64_t size = b->channels, queries = b->heads / b->shared_heads;
    EACH(index, s->count * b->shared_heads) {
        int64_t row = index / b->shared_heads, head = index % b->shared_heads;
        int64_t batch = row / call->tokens, token = row % call->tokens;
        int64_t turned = batch * rotation->stride + token * b->turned;
        float *key = head_at(run, &b->keys, row, head);
        for (int64_t i = 0; i <= queries; i++) { /* the key comes last */
            float *x = i < queries ? head_at(run, &b->queries, row, head * queries + i) : key;
            const octavo_norm *norm = i < queries ? &b->of_queries : &b->of_keys;
            if (norm->weight) s->rows->normalized(x, size, norm, x);
            if (b->turned)
                s->rows->rotated(
                    x, b->turned, rotation->cosine + turned, rotation->sine + turned);
        }
        int64_t at = past_of(run, batch) + token;
        keep(run, key, kept_at(run, run->cache->keys, batch, head, at));
        keep(run, head_at(run, &b->values, row, head),
             kept_at(run, run->cache->values, batch, head, at));
    }
}

/* Of packed sources: blocks of each head, as many as the longest text has. */
static int64_t packed_blocks(const Shared *s) {
    return (s->sources + s->attending->sources - 1) / s->attending->sources;
}

/* Of keys or values that are widened, those of a text and a head. */
static float *widened_at(const Run *run, float *widened, int64_t batch, int64_t head) {
    const octavo_decoder *b = run->block;
    int64_t sources = packed_blocks(run->shared) * run->shared->attending->sources;
    return widened + (batch * b->shared_heads + head) * sources * b->channels;
}

static void pack_sources(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    void *kept[] = {run->cache->keys, run->cache->values};
    int64_t blocks = packed_blocks(s), size = s->attending->packed_size(b->channels);
    EACH(index, s->call->batch * b->shared_heads * blocks) {
        int64_t batch = index / blocks / b->shared_heads, head = index / blocks % b->shared_heads;
        int64_t first = index % blocks * s->attending->sources;
        int64_t count = past_of(run, batch) + s->call->tokens - first;
        const float *floats[2];
        if (count <= 0) continue;
        for (int i = 0; i < 2; i++) {
            const void *own = kept_at(run, kept[i], batch, head, first);
            floats[i] = own;
            if (!run->cache->is_int8) continue;
            float *widened = widened_at(run, s->widened[i], batch, head) + first * b->channels;
            int64_t many = count < s->attending->sources ? count : s->attending->sources;
            s->int8_tokens->widen(own, many, b->channels, widened);
            floats[i] = widened;
        }
        s->attending->pack(floats[0], floats[1], count, b->channels, s->packed + index * size);
    }
}

static int64_t tiles_of(const Shared *s) {
    int64_t queries = s->packed ? s->attending->queries : 1;
    return (s->call->tokens + queries - 1) / queries;
}

static void attend(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    const octavo_decoder_call *call = run->shared->call;
    Shared *s = run->shared;
    int is_int8 = run->cache->is_int8 && !s->packed;
    int64_t tiles = tiles_of(s), size = call->mask_kind == OCTAVO_ADDED_MASK ? 4 : 1;
    int64_t in_tile = s->packed ? s->attending->queries : 1, width = b->heads * b->channels;
    EACH(index, call->batch * b->heads * tiles) {
        int64_t batch = index / tiles / b->heads, head = index / tiles % b->heads;
        int64_t token = index % tiles * in_tile, row = batch * call->tokens + token;
        int64_t shared = head / (b->heads / b->shared_heads), past = past_of(run, batch);
        void *keys = kept_at(run, run->cache->keys, batch, shared, 0);
        void *values = kept_at(run, run->cache->values, batch, shared, 0);
        if (run->cache->is_int8 && s->packed) {
            keys = widened_at(run, s->widened[0], batch, shared);
            values = widened_at(run, s->widened[1], batch, shared);
        }
        octavo_head_queries h = {
            .queries = head_at(run, &b->queries, row, head), .keys = keys, .values = values,
            .key_rows = keys, .value_rows = values, .count = in_tile, .channels = b->channels,
            .query_stride = in_tile > 1 ? head_at(run, &b->queries, row + 1, head) -
                                              head_at(run, &b->queries, row, head)
                                        : 0,
            .seen = past + token + 1, .growth = 1, .window = b->window, .scale = b->scale,
            .softcap = b->softcap, .slope = b->slopes ? b->slopes[head] : 0.0f,
            .mask_kind = call->mask_kind, .mask_stride = size * call->mask_row_stride,
            .scores = s->scores + chunk * s->scores_size, .out_stride = width,
            .out = s->attended + row * width + head * b->channels};
        if (h.count > call->tokens - token) h.count = call->tokens - token;
        if (s->packed)
            h.packed = s->packed + (batch * b->shared_heads + shared) * packed_blocks(s) *
                                       s->attending->packed_size(b->channels);
        if (call->mask) /* whose last column is that of the newest token */
            h.mask = (const char *)call->mask +
                     size * (batch * call->mask_batch_stride + head * call->mask_head_stride +
                             token * call->mask_row_stride + call->sources - past - call->tokens);
        (is_int8 ? s->int8_tokens->attend : s->attending->attend)(&h);
    }
}

static void read_attended(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    int64_t width = b->heads * b->channels;
    EACH(row, s->count) read_row(s, &b->out, 0, row, s->attended + row * width, width);
}

static void project_out(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(part, octavo_parts_of(&b->out)) {
        multiply(s, &b->out, part, 0, s->middle, chunk);
        if (!b->after_attention.weight)
            add(&b->out, part, s->count, b->width, s->middle, run->x, b->width, s->middle,
                octavo_rows_of(&b->out));
    }
}

/* ---- what follows attention ---- */

static void read_for_gate(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count) {
        float *normed = s->normed + row * b->width;
        float *middle = s->middle + row * octavo_rows_of(&b->out);
        const float *x = run->x + row * b->width;
        if (b->after_attention.weight) {
            s->rows->normalized(middle, b->width, &b->after_attention, middle);
            for (int64_t i = 0; i < b->width; i++) middle[i] += x[i];
        }
        s->rows->normalized(b->is_parallel ? x : middle, b->width, &b->before_gate, normed);
        read_row(s, &b->gate, 0, row, normed, b->width);
        if (octavo_rows_of(&b->up) && digits_of(s, &b->gate, &b->up, 1))
            read_row(s, &b->up, 1, row, normed, b->width);
    }
}

static void open_gate(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    int64_t rows = octavo_rows_of(&b->gate);
    int is_gated = octavo_rows_of(&b->up) > 0;
    EACH(part, octavo_parts_of(&b->gate)) {
        multiply(s, &b->gate, part, 0, s->gate, chunk);
        if (is_gated) multiply(s, &b->up, part, digits_of(s, &b->gate, &b->up, 1), s->up, chunk);
        int64_t first = part * PART * BLOCK, size = rows - first;
        if (size > PART * BLOCK) size = PART * BLOCK;
        for (int64_t row = 0; row < s->count; row++) {
            float *gate = s->gate + row * rows + first;
            octavo_activate(b->activation, 0, INFINITY, gate, size); /* a clip is a relu */
            if (!is_gated) continue;
            const float *other = s->up + row * rows + first;
            for (int64_t i = 0; i < size; i++) gate[i] *= other[i];
        }
    }
}

static void read_gated(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count)
    read_row(s, &b->down, 0, row, s->gate + row * octavo_rows_of(&b->gate), b->inner);
}

static void project_down(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(part, octavo_parts_of(&b->down)) {
        multiply(s, &b->down, part, 0, s->down, chunk);
        if (!b->after_down.weight)
            add(&b->down, part, s->count, b->width, s->down, s->middle, octavo_rows_of(&b->out),
                run->y, b->width);
    }
}

static void norm_and_add(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count) {
        float *y = run->y + row * b->width;
        const float *middle = s->middle + row * octavo_rows_of(&b->out);
        s->rows->normalized(
            s->down + row * octavo_rows_of(&b->down), b->width, &b->after_down, y);
        for (int64_t i = 0; i < b->width; i++) y[i] += middle[i];
    }
}

/* The stages of a block; without chunks where there is nothing to do. */
static void stages_of(Run *run, int threads, octavo_stage *stages) {
    const octavo_decoder *b = run->block;
    const Shared *s = run->shared;
    int64_t count = s->count, texts = s->call->batch;
    int64_t projected =
        octavo_parts_of(&b->query) + octavo_parts_of(&b->key) + octavo_parts_of(&b->value);
    const struct {
        octavo_task task;
        int64_t parts;
    } all[STAGES] = {
        {read_for_attention, count},
        {project, projected},
        {turn_and_keep, count * b->shared_heads},
        {pack_sources, s->packed ? texts * b->shared_heads * packed_blocks(s) : 0},
        {attend, texts * b->heads * tiles_of(s)},
        {read_attended, count},
        {project_out, octavo_parts_of(&b->out)},
        {read_for_gate, count},
        {open_gate, octavo_parts_of(&b->gate)},
        {read_gated, count},
        {project_down, octavo_parts_of(&b->down)},
        {norm_and_add, b->after_down.weight ? count : 0}};
    for (int i = 0; i < STAGES; i++)
        stages[i] = (octavo_stage){all[i].task, run, octavo_chunks(all[i].parts, threads)};
}

/* ---- memory ---- */

/* One piece after the other out of one block, each on a line of the cache; without a block their
 * bytes are counted. */
static void *piece(char *block, int64_t *used, int64_t bytes) {
    void *start = block ? block + *used : NULL;
    *used += up(bytes, 64);
    return start;
}

/* The most that any block needs: rows of its layers, in the order of octavo_decoder, and others. */
typedef struct {
    int64_t rows[7], width, columns, groups, attended, packed /* bytes of a block, of all heads */;
    int64_t widened; /* channels of all heads of keys */
} Sizes;

static void at_least(int64_t *size, int64_t other) {
    if (*size < other) *size = other;
}

static Sizes sizes_of(const octavo_decoder *blocks, int64_t count, Shared *s) {
    Sizes sizes = {0};
    for (int64_t i = 0; i < count; i++) {
        const octavo_decoder *b = blocks + i;
        const octavo_layer *layers[] = {&b->query, &b->key, &b->value, &b->out,
                                        &b->gate,  &b->up,  &b->down};
        for (int j = 0; j < 7; j++) {
            at_least(sizes.rows + j, octavo_rows_of(layers[j]));
            at_least(&sizes.columns, octavo_columns_of(layers[j]));
            at_least(&sizes.groups, layers[j]->four.groups);
            if (octavo_rows_of(layers[j]))
                at_least(&s->scratch_size, up(octavo_part_scratch(layers[j], s->how), 64));
        }
        at_least(&sizes.width, b->width);
        at_least(&sizes.attended, b->heads * b->channels);
        if (s->call->caches[i].is_int8) at_least(&sizes.widened, b->shared_heads * b->channels);
        at_least(&sizes.packed, b->shared_heads * s->attending->packed_size(b->channels));
        for (int64_t text = 0; text < s->call->batch; text++)
            at_least(&s->sources, s->call->caches[i].past[text] + s->call->ahead + s->call->tokens);
    }
    return sizes;
}

/* All memory of a call; returns how much it is. */
static int64_t place(Shared *s, char *block, const Sizes *sizes, int chunks) {
    int64_t used = 0, count = s->count;
    int is_packed = s->call->tokens >= LEAST_PACKED;
    for (int i = 0; i < 3; i++) {
        uint8_t *digits = piece(block, &used, 2 * count * sizes->columns);
        float *steps = piece(block, &used, 4 * count);
        int32_t *zero_points = piece(block, &used, 4 * count);
        float *sums = piece(block, &used, 4 * count * sizes->groups);
        int8_t *lower = block ? (int8_t *)digits + count * sizes->columns : NULL;
        s->digits[i].eight = (octavo_rows){digits, steps, zero_points, 0, 1};
        s->digits[i].four = (octavo_four_rows){(int8_t *)digits, lower, sums, steps};
    }
    const int64_t *rows = sizes->rows;
    const struct {
        float **to;
        int64_t size;
    } floats[] = {
        {&s->normed, sizes->width}, {&s->heads[0], rows[0]}, {&s->heads[1], rows[1]},
        {&s->heads[2], rows[2]}, {&s->attended, sizes->attended}, {&s->middle, rows[3]},
        {&s->gate, rows[4]}, {&s->up, rows[5]}, {&s->down, rows[6]}, {&s->x[0], sizes->width},
        {&s->x[1], sizes->width}};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i].to = piece(block, &used, 4 * count * floats[i].size);
    s->scores_size = (is_packed ? s->attending->queries : 1) * up(s->sources + 64, 32);
    s->scores = piece(block, &used, 4 * chunks * s->scores_size);
    s->scratch = piece(block, &used, chunks * s->scratch_size);
    if (is_packed) {
        int64_t blocks = s->call->batch * packed_blocks(s);
        s->packed = piece(block, &used, blocks * sizes->packed);
        for (int i = 0; i < 2; i++)
            s->widened[i] =
                piece(block, &used, 4 * blocks * s->attending->sources * sizes->widened);
    }
    return used;
}

int octavo_decode(
    const octavo_decoder *blocks, int64_t count, const octavo_decoder_call *call, int threads) {
    Shared shared = {
        .call = call, .rows = octavo_float_rows_of_this_cpu(), .count = call->batch * call->tokens,
        .int8_tokens = octavo_int8_tokens_of_this_cpu()};
    int64_t most_channels = 0;
    for (int64_t i = 0; i < count; i++) at_least(&most_channels, blocks[i].channels);
    shared.attending = octavo_attending_of_this_cpu(most_channels);
    shared.how = shared.count > OCTAVO_MOST_FEW_ROWS ? OCTAVO_MANY_ROWS : OCTAVO_FEW_ROWS;
    if (call->is_rounded) shared.how = OCTAVO_ROUNDED_ROWS;
    Sizes sizes = sizes_of(blocks, count, &shared);
    int chunks = octavo_chunks(INT32_MAX, threads); /* the most of any stage */
    int64_t size = up(place(&shared, NULL, &sizes, chunks) + 64, 64);
    char *memory = malloc((size_t)(size + count * (int64_t)(sizeof(Run) + STAGES * sizeof(octavo_stage))));
    if (!memory) return OCTAVO_NO_MEMORY;
    place(&shared, (char *)up((intptr_t)memory, 64), &sizes, chunks);
    octavo_stage *stages = (octavo_stage *)(memory + size);
    Run *runs = (Run *)(stages + STAGES * count);
    for (int64_t i = 0; i < count; i++) {
        runs[i] = (Run){
            .block = blocks + i, .cache = call->caches + i, .shared = &shared,
            .x = i ? shared.x[i % 2] : call->x,
            .y = i + 1 < count ? shared.x[(i + 1) % 2] : call->y};
        stages_of(runs + i, threads, stages + i * STAGES);
    }
    octavo_run_stages(stages, (int)(count * STAGES), threads);
    int is_infinite = atomic_load(&shared.is_infinite);
    free(memory);
    return is_infinite ? OCTAVO_NOT_FINITE : 0;
}
