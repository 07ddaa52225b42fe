/* Blocks of decoders, as Llama has them, on a few rows: all of them are one call.
 *
 * Products read the weights once, which is what such a call waits for. What stands between them is
 * done where it is needed: a sum with the rest of the row, or an activation, by the chunk that made
 * its values. Of a row that a product reads 16 bits are kept.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "octavo.h"
#include "rounding.h"

enum { PART = 4 /* blocks of a weight that a kernel takes at a time */, STAGES = 10 };

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

/* ---- products with weights of either kind ---- */

/* Rows of floats as a layer reads them. */
typedef struct {
    octavo_rows eight;
    octavo_four_rows four;
} Digits;

static int has_eight_bits(const octavo_layer *layer) { return layer->eight.weights != NULL; }

static int64_t rows_of(const octavo_layer *layer) {
    return has_eight_bits(layer) ? layer->eight.rows : layer->four.rows;
}

static int64_t columns_of(const octavo_layer *layer) {
    return has_eight_bits(layer) ? layer->eight.columns : layer->four.columns;
}

static int64_t parts_of(const octavo_layer *layer) {
    return (rows_of(layer) / BLOCK + PART - 1) / PART;
}

static int read_alike(const octavo_layer *a, const octavo_layer *b) {
    if (has_eight_bits(a) || has_eight_bits(b)) return has_eight_bits(a) && has_eight_bits(b);
    return a->four.groups == b->four.groups;
}

/* The rows in the width of a layer; each thread has its own record of them. */
static octavo_rows rows_for(const octavo_layer *layer, const Digits *digits) {
    octavo_rows rows = digits->eight;
    rows.columns = layer->eight.columns;
    return rows;
}

/* Returns the step of a row, which is NaN where a value is not finite. */
static float read_row(
    const octavo_layer *layer, Digits *digits, int64_t row, const float *x, int64_t width) {
    if (has_eight_bits(layer)) {
        static const octavo_reading floats = {.how = OCTAVO_FLOATS};
        octavo_rows rows = rows_for(layer, digits);
        octavo_read_row(&rows, row, x, width, &floats);
        return rows.scales[row];
    }
    octavo_read_row_of_four_bits(&layer->four, x, row, &digits->four);
    return digits->four.steps[row];
}

static void multiply(
    const octavo_layer *layer, int64_t part, const Digits *digits, int64_t count, float *y) {
    int64_t blocks = rows_of(layer) / BLOCK, first = part * PART;
    int64_t last = first + PART < blocks ? first + PART : blocks;
    if (has_eight_bits(layer)) {
        octavo_rows rows = rows_for(layer, digits);
        octavo_product(&layer->eight, first, last, &rows, count, y);
    } else {
        octavo_product_of_four_bits(&layer->four, first, last, &digits->four, count, y);
    }
}

/* ---- one call ---- */

/* What all blocks of a call work on, one after the other. */
typedef struct {
    const octavo_decoder_call *call;
    const octavo_float_rows *rows;
    int64_t count;     /* rows of x */
    Digits digits[3];  /* what the query, the key and the value read; others the first */
    float *normed;     /* [count][width] */
    float *q, *k, *v;  /* [count][rows of the weight], as all results of products */
    float *attended;   /* [count][heads * channels] */
    float *middle, *gate, *up, *down;
    float *x[2];       /* [count][width]: what blocks give each other */
    float *scores;     /* [chunks][sources] */
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

static void check(Shared *shared, float step) {
    if (step != step) atomic_store_explicit(&shared->is_infinite, 1, memory_order_relaxed);
}

static void read_for_attention(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count) {
        float *normed = s->normed + row * b->width;
        s->rows->normalized(run->x + row * b->width, b->width, &b->before_attention, normed);
        check(s, read_row(&b->query, s->digits, row, normed, b->width));
        if (!read_alike(&b->query, &b->key)) read_row(&b->key, s->digits + 1, row, normed, b->width);
        if (!read_alike(&b->query, &b->value))
            read_row(&b->value, s->digits + 2, row, normed, b->width);
    }
}

static void project(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    int64_t queries = parts_of(&b->query), keys = queries + parts_of(&b->key);
    EACH(part, keys + parts_of(&b->value)) {
        if (part < queries)
            multiply(&b->query, part, s->digits, s->count, s->q);
        else if (part < keys)
            multiply(
                &b->key, part - queries, s->digits + !read_alike(&b->query, &b->key), s->count, s->k);
        else
            multiply(
                &b->value, part - keys, s->digits + 2 * !read_alike(&b->query, &b->value), s->count,
                s->v);
    }
}

/* Of each row and head of the keys: the queries that read it, and what the cache keeps. */
static void turn_and_keep(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    const octavo_decoder_call *call = run->shared->call;
    Shared *s = run->shared;
    int64_t size = b->channels, queries = b->heads / b->shared_heads;
    EACH(index, s->count * b->shared_heads) {
        int64_t row = index / b->shared_heads, head = index % b->shared_heads;
        int64_t batch = row / call->tokens, token = row % call->tokens;
        const float *cosine = call->cosine + batch * call->rotary_stride + token * size;
        const float *sine = call->sine + batch * call->rotary_stride + token * size;
        float *key = s->k + row * rows_of(&b->key) + head * size;
        for (int64_t i = 0; i <= queries; i++) { /* the key comes last */
            float *x = key;
            const octavo_norm *norm = &b->of_keys;
            if (i < queries) {
                x = s->q + row * rows_of(&b->query) + (head * queries + i) * size;
                norm = &b->of_queries;
            }
            if (norm->weight) s->rows->normalized(x, size, norm, x);
            s->rows->rotated(x, size, cosine, sine);
        }
        int64_t at = batch * run->cache->batch_stride + head * run->cache->head_stride +
                     (call->past + token) * size;
        const float *value = s->v + row * rows_of(&b->value) + head * size;
        memcpy(run->cache->keys + at, key, (size_t)size * 4);
        memcpy(run->cache->values + at, value, (size_t)size * 4);
    }
}

static void attend(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    const octavo_decoder_call *call = run->shared->call;
    Shared *s = run->shared;
    int64_t size = call->mask_kind == OCTAVO_ADDED_MASK ? 4 : 1;
    float *scores = s->scores + chunk * up(call->sources, LANES);
    EACH(index, s->count * b->heads) {
        int64_t row = index / b->heads, head = index % b->heads;
        int64_t batch = row / call->tokens, token = row % call->tokens;
        int64_t at = batch * run->cache->batch_stride +
                     head / (b->heads / b->shared_heads) * run->cache->head_stride;
        const char *mask = call->mask;
        if (mask)
            mask += size * (batch * call->mask_batch_stride + head * call->mask_head_stride +
                            token * call->mask_row_stride);
        s->rows->attend(
            s->q + row * rows_of(&b->query) + head * b->channels, run->cache->keys + at,
            run->cache->values + at, call->sources, b->channels, b->scale, mask, call->mask_kind,
            scores, s->attended + index * b->channels);
    }
}

static void read_attended(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    int64_t width = b->heads * b->channels;
    EACH(row, s->count)
    check(s, read_row(&b->out, s->digits, row, s->attended + row * width, width));
}

/* Of the columns of a part: add what a row was before. */
static void add(
    const octavo_layer *layer, int64_t part, int64_t count, int64_t width, const float *y,
    const float *other, int64_t stride, float *sum, int64_t sum_stride) {
    int64_t first = part * PART * BLOCK, last = first + PART * BLOCK;
    if (last > width) last = width;
    for (int64_t row = 0; row < count; row++)
        for (int64_t i = first; i < last; i++)
            sum[row * sum_stride + i] = y[row * rows_of(layer) + i] + other[row * stride + i];
}

static void project_out(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(part, parts_of(&b->out)) {
        multiply(&b->out, part, s->digits, s->count, s->middle);
        add(&b->out, part, s->count, b->width, s->middle, run->x, b->width, s->middle,
            rows_of(&b->out));
    }
}

static void read_for_gate(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count) {
        float *normed = s->normed + row * b->width;
        s->rows->normalized(
            s->middle + row * rows_of(&b->out), b->width, &b->before_gate, normed);
        check(s, read_row(&b->gate, s->digits, row, normed, b->width));
        if (!read_alike(&b->gate, &b->up)) read_row(&b->up, s->digits + 1, row, normed, b->width);
    }
}

static void open_gate(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    int64_t rows = rows_of(&b->gate);
    EACH(part, parts_of(&b->gate)) {
        multiply(&b->gate, part, s->digits, s->count, s->gate);
        multiply(&b->up, part, s->digits + !read_alike(&b->gate, &b->up), s->count, s->up);
        int64_t first = part * PART * BLOCK, size = rows - first;
        if (size > PART * BLOCK) size = PART * BLOCK;
        for (int64_t row = 0; row < s->count; row++) {
            float *gate = s->gate + row * rows + first, *other = s->up + row * rows + first;
            octavo_activate(b->activation, 0, 0, gate, size);
            for (int64_t i = 0; i < size; i++) gate[i] *= other[i];
        }
    }
}

static void read_gated(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(row, s->count)
    check(s, read_row(&b->down, s->digits, row, s->gate + row * rows_of(&b->gate), b->inner));
}

static void project_down(void *context, int chunk, int chunks) {
    const Run *run = context;
    const octavo_decoder *b = run->block;
    Shared *s = run->shared;
    EACH(part, parts_of(&b->down)) {
        multiply(&b->down, part, s->digits, s->count, s->down);
        add(&b->down, part, s->count, b->width, s->down, s->middle, rows_of(&b->out), run->y,
            b->width);
    }
}

/* The stages of a block. */
static void stages_of(Run *run, int threads, octavo_stage *stages) {
    const octavo_decoder *b = run->block;
    int64_t count = run->shared->count;
    int64_t projected = parts_of(&b->query) + parts_of(&b->key) + parts_of(&b->value);
    const struct {
        octavo_task task;
        int64_t parts;
    } all[STAGES] = {
        {read_for_attention, count}, {project, projected},
        {turn_and_keep, count * b->shared_heads}, {attend, count * b->heads},
        {read_attended, count}, {project_out, parts_of(&b->out)},
        {read_for_gate, count}, {open_gate, parts_of(&b->gate)},
        {read_gated, count}, {project_down, parts_of(&b->down)}};
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

typedef struct {
    int64_t width, columns, groups, attended, query, key, value, middle, gate, up, down, chunks;
} Sizes;

static void at_least(int64_t *size, int64_t other) {
    if (*size < other) *size = other;
}

static Sizes sizes_of(const octavo_decoder *blocks, int64_t blocks_count, int64_t count, int threads) {
    Sizes sizes = {0};
    for (const octavo_decoder *b = blocks; b < blocks + blocks_count; b++) {
        const octavo_layer *layers[] = {&b->query, &b->key, &b->value, &b->out, &b->gate, &b->up, &b->down};
        int64_t *rows[] = {
            &sizes.query, &sizes.key, &sizes.value, &sizes.middle, &sizes.gate, &sizes.up, &sizes.down};
        for (int i = 0; i < 7; i++) {
            at_least(rows[i], rows_of(layers[i]));
            at_least(&sizes.columns, columns_of(layers[i]));
            if (!has_eight_bits(layers[i])) at_least(&sizes.groups, layers[i]->four.groups);
        }
        at_least(&sizes.width, b->width);
        at_least(&sizes.attended, b->heads * b->channels);
        at_least(&sizes.chunks, octavo_chunks(count * b->heads, threads));
    }
    return sizes;
}

/* All memory of a call; returns how much it is. */
static int64_t place(Shared *s, char *block, const Sizes *sizes) {
    int64_t used = 0, count = s->count;
    for (int i = 0; i < 3; i++) {
        uint8_t *digits = piece(block, &used, 2 * count * sizes->columns);
        float *steps = piece(block, &used, 4 * count);
        int32_t *zero_points = piece(block, &used, 4 * count);
        float *sums = piece(block, &used, 4 * count * sizes->groups);
        int8_t *lower = block ? (int8_t *)digits + count * sizes->columns : NULL;
        s->digits[i].eight = (octavo_rows){digits, steps, zero_points, 0, 1};
        s->digits[i].four = (octavo_four_rows){(int8_t *)digits, lower, sums, steps};
    }
    const struct {
        float **to;
        int64_t size;
    } floats[] = {
        {&s->normed, sizes->width}, {&s->q, sizes->query}, {&s->k, sizes->key},
        {&s->v, sizes->value}, {&s->attended, sizes->attended}, {&s->middle, sizes->middle},
        {&s->gate, sizes->gate}, {&s->up, sizes->up}, {&s->down, sizes->down},
        {&s->x[0], sizes->width}, {&s->x[1], sizes->width}};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i].to = piece(block, &used, 4 * count * floats[i].size);
    s->scores = piece(block, &used, 4 * sizes->chunks * up(s->call->sources, LANES));
    return used;
}

int octavo_decode(
    const octavo_decoder *blocks, int64_t count, const octavo_decoder_call *call, int threads) {
    Shared shared = {
        .call = call, .rows = octavo_float_rows_of_this_cpu(), .count = call->batch * call->tokens};
    Sizes sizes = sizes_of(blocks, count, shared.count, threads);
    int64_t size = up(place(&shared, NULL, &sizes) + 64, 64);
    char *memory = malloc((size_t)(size + count * (int64_t)(sizeof(Run) + STAGES * sizeof(octavo_stage))));
    if (!memory) return OCTAVO_NO_MEMORY;
    place(&shared, (char *)up((intptr_t)memory, 64), &sizes);
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
