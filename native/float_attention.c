/* Attention of floats as two steps of a program, for layers that are quantized around it: keys and
 * values of each head side by side and packed, then some queries of a head at a time. */
#include <string.h>

#include "octavo.h"
#include "rounding.h"

/* Where each piece of the memory of a call begins, in bytes. */
typedef struct {
    const octavo_attending *attending;
    int64_t blocks, packed_size, scores_size; /* blocks of a head; bytes of one, and of a chunk's scores */
    int64_t values, packed, scores, all;      /* keys come first */
} Memory;

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

static Memory memory_of(const octavo_attention_call *call) {
    enum { LINE = 64, MORE_SOURCES = 64 /* of rows that end in whole tiles */ };
    Memory m = {.attending = octavo_attending_of_this_cpu(call->channels)};
    int64_t heads = call->batch * call->shared_heads;
    int64_t floats = up(4 * heads * call->sources * call->channels, LINE);
    m.blocks = (call->sources + m.attending->sources - 1) / m.attending->sources;
    m.packed_size = m.attending->packed_size(call->channels);
    m.scores_size = 4 * m.attending->queries * up(call->sources + MORE_SOURCES, 32);
    m.values = floats;
    m.packed = 2 * floats;
    m.scores = m.packed + up(heads * m.blocks * m.packed_size, LINE);
    m.all = m.scores + call->workers * m.scores_size;
    return m;
}

int64_t octavo_float_attention_memory(const octavo_attention_call *call) {
    return memory_of(call).all;
}

static void copy_rows(
    const octavo_heads *heads, int64_t batch, int64_t head, int64_t first, int64_t count,
    int64_t channels, float *to) {
    const float *from = (const float *)heads->values + batch * heads->batch_stride +
                        head * heads->head_stride + first * heads->row_stride;
    for (int64_t row = 0; row < count; row++)
        memcpy(to + row * channels, from + row * heads->row_stride, (size_t)channels * sizeof *to);
}

void octavo_pack_float_heads(const octavo_attention_call *call, int chunk, int chunks) {
    Memory m = memory_of(call);
    char *memory = call->memory;
    int64_t all = call->batch * call->shared_heads * m.blocks, channels = call->channels;
    for (int64_t i = all * chunk / chunks; i < all * (chunk + 1) / chunks; i++) {
        int64_t head = i / m.blocks, first = i % m.blocks * m.attending->sources;
        int64_t left = call->sources - first, at = (head * call->sources + first) * channels;
        int64_t count = left < m.attending->sources ? left : m.attending->sources;
        float *keys = (float *)memory + at, *values = (float *)(memory + m.values) + at;
        int64_t batch = head / call->shared_heads, own = head % call->shared_heads;
        copy_rows(&call->k, batch, own, first, count, channels, keys);
        copy_rows(&call->v, batch, own, first, count, channels, values);
        m.attending->pack(keys, values, count, channels, memory + m.packed + i * m.packed_size);
    }
}

void octavo_attend_to_floats(const octavo_attention_call *call, int chunk, int chunks) {
    Memory m = memory_of(call);
    char *memory = call->memory;
    int64_t tiles = (call->targets + m.attending->queries - 1) / m.attending->queries;
    int64_t all = call->batch * call->heads * tiles, channels = call->channels;
    int64_t of_mask = call->mask_kind == OCTAVO_ADDED_MASK ? 4 : 1;
    for (int64_t i = all * chunk / chunks; i < all * (chunk + 1) / chunks; i++) {
        int64_t batch = i / tiles / call->heads, head = i / tiles % call->heads;
        int64_t target = i % tiles * m.attending->queries, left = call->targets - target;
        int64_t shared = head / (call->heads / call->shared_heads) + batch * call->shared_heads;
        int64_t at = shared * call->sources * channels;
        octavo_head_queries h = {
            .queries = (const float *)call->q.values + batch * call->q.batch_stride +
                       head * call->q.head_stride + target * call->q.row_stride,
            .keys = (const float *)memory + at,
            .values = (const float *)(memory + m.values) + at,
            .packed = memory + m.packed + shared * m.blocks * m.packed_size,
            .count = left < m.attending->queries ? left : m.attending->queries,
            .query_stride = call->q.row_stride,
            .channels = channels,
            .seen = call->causal ? target + 1 : call->sources,
            .growth = call->causal,
            .scale = call->scale,
            .mask_kind = call->mask_kind,
            .mask_stride = of_mask * call->mask_row_stride,
            .scores = (float *)(memory + m.scores + chunk * m.scores_size),
            .out = (float *)call->out + batch * call->out_batch_stride +
                   head * call->out_head_stride + target * call->out_row_stride,
            .out_stride = call->out_row_stride};
        if (call->mask_kind != OCTAVO_NO_MASK)
            h.mask = (const char *)call->mask +
                     of_mask * (batch * call->mask_batch_stride + head * call->mask_head_stride +
                                target * call->mask_row_stride);
        m.attending->attend(&h);
    }
}
