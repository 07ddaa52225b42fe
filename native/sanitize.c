/* Every kernel on many sizes, under each instruction set: for the sanitizers, which see what a test
 * of results does not. Memory is exactly as long as the kernels may read and write. */
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "octavo.h"

static unsigned seed = 1;
static int below(int limit) { return (int)((seed = seed * 1103515245u + 12345u) >> 8) % limit; }

static void *filled(int64_t count, int size) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-42f};
    if (size == 1) {
        uint8_t *bytes = malloc((size_t)count);
        for (int64_t i = 0; i < count; i++) bytes[i] = (uint8_t)below(256);
        return bytes;
    }
    float *floats = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++)
        floats[i] = below(1000) ? (float)below(2000) / 1000 - 1 : odd[below(5)];
    return floats;
}

static int64_t up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

static octavo_matrix matrix(int64_t rows, int64_t columns) {
    int32_t *sums = calloc((size_t)rows, 4);
    int8_t *weights = filled(rows * columns, 1);
    for (int64_t i = 0; i < rows * columns; i++)
        sums[i / (16 * columns) * 16 + i / 4 % 16] += weights[i];
    return (octavo_matrix){weights, filled(rows, 4), sums, filled(rows, 4), rows, columns};
}

static void forget(octavo_matrix m) {
    free((void *)m.weights), free((void *)m.scales), free((void *)m.sums), free((void *)m.bias);
}

static void one_layer(int kind, int how, int threads) {
    static const int gates[] = {4, 3, 1, 1};
    int64_t steps = 1 + below(5), batch = 1 + below(25), inputs = 1 + below(40), hidden = 1 + below(300);
    int64_t width = up(hidden, 16), states = batch * hidden;
    octavo_matrix of_input = matrix(gates[kind] * width, up(inputs, 4));
    octavo_matrix of_state = matrix(gates[kind] * width, width);
    void *x = filled(steps * batch * inputs, how == OCTAVO_INTEGERS ? 1 : 4);
    float *h0 = filled(states, 4), *c0 = filled(states, 4), *out = filled(steps * states, 4);
    float *hn = filled(states, 4), *cn = filled(states, 4);
    int64_t *offsets = malloc((size_t)(steps + 1) * 8); /* every other layer's sequences are packed */
    for (int64_t step = 0, rows = batch; step <= steps; step++) {
        offsets[step] = step ? offsets[step - 1] + rows : 0;
        if (step) rows = 1 + below((int)rows);
    }
    octavo_recurrent_call call = {
        .kind = kind, .reverse = below(2), .threads = threads, .offsets = below(2) ? offsets : NULL,
        .steps = steps, .batch = batch, .inputs = inputs, .hidden = hidden,
        .reading = {.how = how, .high = 255, .scale = 0.02f, .zero_point = 128},
        .of_input = of_input, .of_state = of_state, .x = x, .x_step = batch * inputs,
        .x_row = inputs, .h0 = h0, .c0 = kind ? NULL : c0, .out = out, .out_step = states,
        .out_row = hidden, .hn = hn, .cn = kind ? NULL : cn};
    if (octavo_recurrent(&call)) exit(1);
    forget(of_input), forget(of_state);
    free(x), free(h0), free(c0), free(out), free(hn), free(cn), free(offsets);
}

static void one_product_of_bytes(int threads) {
    int64_t width = 1 + below(70), count = 1 + below(9);
    octavo_matrix weights = matrix(16 * (1 + below(20)), up(width, 4));
    float *x = filled(count * width, 4), *y = malloc((size_t)(count * weights.rows) * 4);
    octavo_reading reading = {.how = OCTAVO_TENSOR_RANGE + below(3), .low = -128, .high = 127};
    if (octavo_multiply_eight_bits(&weights, x, width, count, y, &reading, threads) == OCTAVO_NO_MEMORY) exit(1);
    forget(weights);
    free(x), free(y);
}

static void one_product(int threads) {
    int64_t rows = 16 * (1 + below(20)), groups = 1 + below(4), count = 1 + below(below(4) ? 9 : 40);
    int64_t columns = groups * 32 * (1 + below(4));
    uint8_t *weights = filled(rows * columns / 2, 1), *zero_points = filled(rows * groups, 1);
    float *scales = filled(rows * groups, 4), *bias = filled(rows, 4);
    float *x = filled(count * columns, 4), *y = malloc((size_t)(count * rows) * 4);
    octavo_four_bits matrix = {
        weights, scales, zero_points, below(2) ? bias : NULL, rows, columns, groups};
    if (octavo_multiply_four_bits(&matrix, x, count, y, threads) == OCTAVO_NO_MEMORY) exit(1);
    if (octavo_multiply_four_bits_widened(&matrix, x, count, y, 1, threads) == OCTAVO_NO_MEMORY) exit(1);
    free(weights), free(zero_points), free(scales), free(bias), free(x), free(y);
}

static int64_t less(int64_t windows, int64_t kernel, int64_t dilation, int64_t stride, int64_t padding) {
    int64_t size = (windows - 1) * stride + (kernel - 1) * dilation + 1 - padding;
    return size < 1 ? 1 : size;
}

static void one_convolution(int threads) {
    static const float steps[] = {0, 1.0f / 64, 4}; /* of the last sums are often cut as bytes only */
    int64_t groups = below(2) ? 1 : 1 + below(70), depthwise = below(2), wide = !below(50);
    int folded = !below(5); /* 16 or 32 channels, neighbours in a register */
    if (folded) depthwise = 1, groups = 16 << below(2);
    int64_t in = groups * (depthwise ? 1 : 1 + below(wide ? 1000 : 20));
    int64_t out = groups * (depthwise ? 1 : 1 + below(40));
    int64_t height = 1 + below(9), width = 1 + below(40), size = 1 + below(5);
    octavo_convolution c = {
        .groups = groups, .kernel_height = size, .kernel_width = size == 1 ? 1 : 1 + below(5),
        .stride_y = 1 + below(2), .stride_x = 1 + below(2), .padding_top = below(3),
        .padding_left = below(3), .dilation_y = 1 + below(2), .dilation_x = 1 + below(2),
        .in_zero_point = below(256), .narrow = below(2)};
    if (folded) c.kernel_width = 3, c.stride_x = c.dilation_x = 1;
    c.out = (octavo_shape){1 + below(3), height, width, out};
    c.in = (octavo_shape){
        c.out.batch,
        less(height, c.kernel_height, c.dilation_y, c.stride_y, c.padding_top + below(3)),
        less(width, c.kernel_width, c.dilation_x, c.stride_x, c.padding_left + below(3)), in};
    int64_t products = c.kernel_height * c.kernel_width * in / groups;
    int64_t results = c.out.batch * height * width * out;
    int8_t *weights = filled(out * products, 1), *packed = malloc((size_t)octavo_packed_size(&c));
    int32_t *sums = calloc((size_t)out, 4);
    for (int64_t i = 0; i < out * products; i++) sums[i / products] += weights[i];
    octavo_pack_convolution(&c, weights, packed);
    float *scales = filled(out, 4), *bias = filled(out, 4);
    uint8_t *x = filled(c.in.batch * c.in.height * c.in.width * in, 1);
    int adds_floats = below(2);
    void *addend = filled(results, adds_floats ? 4 : 1);
    c.epilogue = (octavo_epilogue){
        .scales = scales, .bias = bias, .addend = below(2) ? addend : NULL,
        .addend_scale = adds_floats ? 0.0f : 0.02f, .addend_zero_point = 128,
        .activation = below(OCTAVO_ACTIVATIONS), .low = -1, .high = 1,
        .out_scale = steps[below(3)], .out_zero_point = below(2) * 100, .out_high = 255};
    if (folded && below(2)) c.epilogue.addend = NULL, c.epilogue.activation = OCTAVO_CLIP;
    c.weights = packed, c.weight_sums = sums, c.at.x = x;
    c.at.y = malloc((size_t)(c.epilogue.out_scale == 0.0f ? 4 * results : results));
    c.at.scratch = malloc((size_t)octavo_scratch_size(&c, octavo_convolution_chunks(&c, threads)));
    octavo_convolve_in_threads(&c, threads);
    free(weights), free(packed), free(sums), free(scales), free(bias), free(x), free(addend);
    free(c.at.y), free(c.at.scratch);
}

/* Operands stand in front of a struct. */
#define AT(base, offset, field) {base, offset, offsetof(octavo_operands, field)}
#define NONE {-1, 0, 0}
#define REST NONE, NONE, NONE, NONE

/* Steps in a row: planes of floats are rounded, pooled on, looked up, added to, moved and read back. */
static void one_program(int threads) {
    static const octavo_integers meant = {0.02f, 100, 3, 250};
    octavo_shape in = {1 + below(3), 1 + below(12), 1 + below(12), 1 + below(150)}, out = in;
    int64_t row = in.width * in.channels, plane = in.height * in.width;
    int64_t values = in.batch * in.height * row;
    int64_t taps = 1 + below(3), last = below(2);
    out.height += 2 * (taps / 2) - taps + 1, out.width += 2 * (taps / 2) - taps + 1;
    if (out.height < 1 || out.width < 1) return;
    int64_t pooled = out.batch * out.height * out.width * out.channels;
    float *x = filled(values, 4), *y = malloc((size_t)pooled * 4);
    uint8_t *table = filled(256, 1), *channel = filled(in.channels, 1);
    uint8_t *arena = malloc((size_t)(values + 4 * pooled));
    void *bases[] = {arena, x, y, channel};
    int64_t a = 0, b = values, c = values + pooled, d = values + 2 * pooled, e = values + 3 * pooled;
    octavo_step steps[] = {
        {OCTAVO_QUANTIZE, 1 + below(5), {AT(1, 0, x), AT(0, a, y), REST}, .of.quantize = {
            {0}, in,
            {in.height * row, last ? row : in.width, last ? in.channels : 1, last ? 1 : plane}, meant}},
        {OCTAVO_POOL, 1 + below(5), {AT(0, a, x), AT(0, b, y), REST}, .of.pooling = {
            {0}, in, out, below(3), taps, taps, 1, 1, taps / 2, taps / 2, 1, 1, 0, meant, meant}},
        {OCTAVO_LOOK_UP, 1 + below(5), {AT(0, b, x), AT(0, c, y), REST},
         .of.look_up = {{0}, pooled, table}},
        {OCTAVO_COMBINE, 1 + below(5), {AT(0, c, x), AT(3, 0, other), AT(0, d, y), NONE, NONE, NONE},
         .of.binary = {
            {0}, out, {out.height * out.width * out.channels, out.width * out.channels, out.channels, 1},
            {0, 0, 0, 1}, below(2), meant, meant, meant}},
        {OCTAVO_MOVE, 1 + below(5), {AT(0, d, x), AT(0, e, y), REST}, .of.move = {
            {0}, {1, 1, 1, 1, 1, 1, out.channels, pooled / out.channels}, {0, 0, 0, 0, 0, 0, 1, out.channels},
            {0, 0, 0, 0, 0, 0, pooled / out.channels, 1}, 1}},
        {OCTAVO_DEQUANTIZE, 1 + below(5), {AT(0, e, x), AT(2, 0, y), REST}, .of.dequantize = {
            {0}, pooled, meant}}};
    if (octavo_run(steps, sizeof steps / sizeof *steps, bases, threads)) exit(1);
    free(x), free(y), free(table), free(channel), free(arena);
}

static void one_attention(int threads) {
    int64_t batch = 1 + below(2), shared = 1 + below(2), heads = shared * (1 + below(2));
    int64_t targets = 1 + below(60), sources = 1 + below(below(2) ? 60 : 150);
    int64_t channels = 1 + below(80), value_channels = 1 + below(80);
    int kind = below(3), rounded = below(2);
    uint8_t *q = filled(batch * heads * targets * channels, 1);
    uint8_t *k = filled(batch * shared * sources * channels, 1);
    uint8_t *v = filled(batch * shared * sources * value_channels, 1);
    void *mask = filled(targets * sources, kind == OCTAVO_ADDED_MASK ? 4 : 1);
    void *out = malloc((size_t)(batch * heads * targets * value_channels * (rounded ? 1 : 4)));
    octavo_attention_call call = {
        .batch = batch, .heads = heads, .shared_heads = shared, .targets = targets,
        .sources = sources, .channels = channels, .value_channels = value_channels,
        .q = {q, heads * targets * channels, targets * channels, channels, 0.02f, 128},
        .k = {k, shared * sources * channels, channels, shared * channels, 0.02f, 130},
        .v = {v, shared * sources * value_channels, sources * value_channels, value_channels, 0.02f, 9},
        .scale = 0.1f, .levels = 255, .causal = below(2), .mask_kind = kind,
        .mask = kind ? mask : NULL, .mask_row_stride = sources, .out = out,
        .out_batch_stride = targets * heads * value_channels, .out_head_stride = value_channels,
        .out_row_stride = heads * value_channels, .out_scale = rounded ? 0.01f : 0.0f,
        .out_zero_point = 100, .out_high = 255};
    if (octavo_attention(&call, threads)) exit(1);
    /* As the steps of a program. */
    call.workers = threads, call.memory = malloc((size_t)octavo_attention_memory(&call));
    octavo_step steps[] = {
        {OCTAVO_PACK_HEADS, 1 + below(9), .places = {NONE, NONE, NONE, NONE, NONE, NONE}},
        {OCTAVO_ATTEND, 1 + below(9), .places = {NONE, NONE, NONE, NONE, NONE, NONE}}};
    steps[0].of.attention = steps[1].of.attention = call;
    if (octavo_run(steps, 2, NULL, threads)) exit(1);
    free(call.memory);
    free(q), free(k), free(v), free(mask), free(out);
}

/* A dynamic linear layer, a function, and attention of floats, as the steps of a program. */
static void some_floats(int threads) {
    int64_t batch = 1 + below(2), shared = 1 + below(2), heads = shared * (1 + below(2));
    int64_t targets = 1 + below(60), sources = targets + below(60), channels = 8 * (1 + below(9));
    int64_t width = 1 + below(70), count = 1 + below(40);
    int kind = below(3), chunks = 1 + below(9);
    float *x = filled(count * width, 4), *q = filled(batch * heads * targets * channels, 4);
    float *k = filled(batch * shared * sources * channels, 4), *v = filled(batch * shared * sources * channels, 4);
    void *mask = filled(targets * sources, kind == OCTAVO_ADDED_MASK ? 4 : 1);
    float *out = malloc((size_t)(batch * heads * targets * channels * 4));
    octavo_matrix weights = matrix(16 * (1 + below(6)), up(width, 4));
    float *y = malloc((size_t)(count * weights.rows * 4)), *z = malloc((size_t)(count * weights.rows * 4));
    char *digits = malloc((size_t)(count * (2 * weights.columns + 8)));
    octavo_attention_call call = {
        .batch = batch, .heads = heads, .shared_heads = shared, .targets = targets,
        .sources = sources, .channels = channels, .value_channels = channels,
        .q = {q, heads * targets * channels, targets * channels, channels, 0, 0},
        .k = {k, shared * sources * channels, channels, shared * channels, 0, 0},
        .v = {v, shared * sources * channels, sources * channels, channels, 0, 0},
        .scale = 0.1f, .causal = below(2), .mask_kind = kind, .mask = kind ? mask : NULL,
        .mask_row_stride = sources, .out = out, .out_batch_stride = targets * heads * channels,
        .out_head_stride = channels, .out_row_stride = heads * channels, .workers = chunks};
    call.memory = malloc((size_t)octavo_float_attention_memory(&call));
    octavo_dynamic_linear linear = {
        {x, NULL, y, digits}, count, width, {OCTAVO_ROW_RANGE, 0, 255, 0, 0, 0}, weights};
    octavo_step steps[] = {
        {OCTAVO_ROUND_ROWS, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.dynamic_linear = linear},
        {OCTAVO_MULTIPLY_ROWS, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.dynamic_linear = linear},
        {OCTAVO_ACTIVATE, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE},
         .of.activation = {{y, NULL, z, NULL}, count * weights.rows, below(OCTAVO_ACTIVATIONS)}},
        {OCTAVO_PACK_FLOAT_HEADS, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.attention = call},
        {OCTAVO_ATTEND_TO_FLOATS, chunks, {NONE, NONE, NONE, NONE, NONE, NONE}, .of.attention = call}};
    if (octavo_run(steps, sizeof steps / sizeof *steps, NULL, threads)) exit(1);
    forget(weights);
    free(call.memory), free(digits), free(mask), free(out);
    free(x), free(y), free(z), free(q), free(k), free(v);
}

/* Images one by one: rounded, and each looked up, with a row that all add. */
static void some_slices(int threads) {
    int64_t images = 1 + below(9), count = 1 + below(300), pitches[] = {0, 4 * count, 0, count};
    float *x = filled(images * count, 4);
    uint8_t *row = filled(count, 1), *table = filled(256, 1), *arena = malloc((size_t)(count * threads));
    uint8_t *y = malloc((size_t)(images * count));
    void *bases[] = {arena, x, row, y};
    octavo_integers meant = {0.1f, 100, 0, 255};
    octavo_shape shape = {1, 1, 1, count};
    octavo_step steps[] = {
        {OCTAVO_QUANTIZE, 1 + below(3), {AT(1, 0, x), AT(0, 0, y), REST},
         .of.quantize = {{0}, shape, {0, 0, 0, 1}, meant}},
        {OCTAVO_COMBINE, 1 + below(3), {AT(0, 0, x), AT(2, 0, other), AT(3, 0, y), NONE, NONE, NONE},
         .of.binary = {{0}, shape, {0, 0, 0, 1}, {0, 0, 0, 1}, below(2), meant, meant, meant}},
        {OCTAVO_LOOK_UP, 1, {AT(3, 0, x), AT(3, 0, y), REST}, .of.look_up = {{0}, count, table}}};
    octavo_slices slices = {steps, 3, images, count, 4, pitches};
    if (octavo_run_slices(&slices, bases, threads)) exit(1);
    free(x), free(row), free(table), free(arena), free(y);
}

static octavo_layer a_layer(int64_t rows, int64_t columns) {
    if (columns % 32 || below(2)) return (octavo_layer){.eight = matrix(up(rows, 16), up(columns, 4))};
    int64_t groups = columns % 64 ? 1 : 1 + below(2), padded = up(rows, 16);
    return (octavo_layer){.four = {
        filled(padded * columns / 2, 1), filled(padded * groups, 4), filled(padded * groups, 1),
        below(2) ? filled(padded, 4) : NULL, padded, columns, groups}};
}

static void forget_layer(octavo_layer layer) {
    forget(layer.eight);
    free((void *)layer.four.weights), free((void *)layer.four.scales);
    free((void *)layer.four.zero_points), free((void *)layer.four.bias);
}

/* Two blocks on a few rows, or on so many that keys are packed. */
static void one_decoder(int threads) {
    int64_t channels = 8 * (1 + below(10)), shared = 1 + below(3), heads = shared * (1 + below(3));
    int64_t width = below(2) ? 32 * (1 + below(3)) : 1 + below(90);
    int64_t inner = below(2) ? 32 * (1 + below(5)) : 1 + below(150);
    int64_t batch = 1 + below(3), tokens = 1 + below(below(3) ? 3 : 50), rows = batch * tokens;
    int64_t past[3], longest = 0, ahead = below(3), fused = below(2), gated = below(2);
    for (int i = 0; i < batch; i++) {
        past[i] = below(40);
        if (past[i] > longest) longest = past[i];
    }
    int64_t sources = longest + ahead + tokens, room = sources + below(3);
    int64_t at = heads * channels, own = shared * channels;
    int64_t turned = 2 * below((int)channels / 2 + 1), texts = below(2) ? 1 : batch;
    float *norm = filled(width, 4), *of_heads = filled(channels, 4), *slopes = filled(heads, 4);
    float *x = filled(rows * width, 4), *y = malloc((size_t)(rows * width) * 4);
    float *cosine = filled(texts * tokens * turned + 1, 4), *sine = filled(texts * tokens * turned + 1, 4);
    int kind = below(3);
    void *mask = filled(rows * sources, kind == OCTAVO_ADDED_MASK ? 4 : 1);
    octavo_decoder blocks[2];
    octavo_cache caches[2];
    for (int i = 0; i < 2; i++) {
        const octavo_layer none = {{0}, {0}};
        const octavo_norm nothing = {0}, of_rows = {norm, below(2) ? norm : NULL, 1e-5f, 1, below(2), 0};
        const octavo_norm of_each = {of_heads, NULL, 1e-5f, 0, 0, 0};
        blocks[i] = (octavo_decoder){
            .query = a_layer(fused ? at + 2 * own : at, width), .key = fused ? none : a_layer(own, width),
            .value = fused ? none : a_layer(own, width), .out = a_layer(width, at),
            .gate = a_layer(inner, width), .up = gated ? a_layer(inner, width) : none,
            .down = a_layer(width, inner), .before_attention = of_rows, .before_gate = of_rows,
            .of_queries = below(2) ? of_each : nothing, .of_keys = below(2) ? of_each : nothing,
            .after_attention = below(2) ? of_rows : nothing, .after_down = below(2) ? of_rows : nothing,
            .queries = {0, 0, channels}, .keys = {fused ? 0 : 1, fused ? at : 0, channels},
            .values = {fused ? 0 : 2, fused ? at + own : 0, channels}, .width = width, .inner = inner,
            .heads = heads, .shared_heads = shared, .channels = channels, .turned = turned,
            .window = below(2) ? 0 : 1 + below(20), .slopes = below(2) ? slopes : NULL, .scale = 0.1f,
            .softcap = below(2) ? 0 : 3, .activation = below(2) ? OCTAVO_SILU : OCTAVO_CLIP,
            .rotation = i, .is_parallel = below(2)};
        int is_int8 = below(2);
        int64_t size = channels + (is_int8 ? OCTAVO_RANGE_OF_ROW : 0), kept = batch * shared * room * size;
        caches[i] = (octavo_cache){
            filled(kept, is_int8 ? 1 : 4), filled(kept, is_int8 ? 1 : 4), shared * room * size,
            room * size, is_int8, past};
    }
    octavo_rotation rotation = {cosine, sine, texts == 1 ? 0 : tokens * turned};
    octavo_decoder_call call = {
        .batch = batch, .tokens = tokens, .ahead = ahead, .sources = sources, .x = x, .y = y,
        .rotations = {rotation, rotation}, .mask_kind = kind, .mask = kind ? mask : NULL,
        .is_rounded = !below(4), .mask_batch_stride = tokens * sources, .mask_row_stride = sources,
        .caches = caches};
    if (octavo_decode(blocks, 2, &call, threads) == OCTAVO_NO_MEMORY) exit(1);
    for (int i = 0; i < 2; i++) {
        const octavo_decoder *b = blocks + i;
        forget_layer(b->query), forget_layer(b->key), forget_layer(b->value), forget_layer(b->out);
        forget_layer(b->gate), forget_layer(b->up), forget_layer(b->down);
        free(caches[i].keys), free(caches[i].values);
    }
    free(norm), free(of_heads), free(slopes), free(x), free(y), free(cosine), free(sine), free(mask);
}

static void one_table(int threads) {
    int64_t rows = 1 + below(20), groups = 1 + below(3), columns = groups * 2 * (1 + below(40));
    int64_t count = below(30), bags = below(6), *indices = malloc((size_t)count * 8 + 8);
    int bits = below(2) ? 8 : 4;
    uint8_t *values = filled(rows * columns * bits / 8, 1);
    float *scales = filled(rows * groups, 4), *factors = filled(count, 4);
    int32_t *zero_points = calloc((size_t)(rows * groups), 4);
    float *y = malloc((size_t)((count + bags) * columns) * 4 + 4);
    int64_t offsets[6] = {0};
    for (int64_t i = 0; i < count; i++) indices[i] = below((int)rows + 1) - !below(40);
    for (int64_t i = 1; i < bags; i++) offsets[i] = offsets[i - 1] + below(9);
    octavo_table table = {
        values, scales, below(2) ? zero_points : NULL, rows, columns, groups, bits, below(2)};
    octavo_pick_rows(&table, indices, count, y, threads);
    octavo_bags all = {
        offsets, bags, count, below(3), below((int)rows) - 1, below(2) ? factors : NULL};
    octavo_sum_bags(&table, &all, indices, bags && below(2) ? bags - 1 : bags, y, threads);
    free(indices), free(values), free(scales), free(factors), free(zero_points), free(y);
}

static void one_histogram(int threads) {
    int64_t rows = below(2) ? 1 : 1 + below(9), count = 1 + below(rows == 1 ? 100000 : 900);
    int64_t bins = 16 + below(3000), *counts = calloc((size_t)(rows * bins), 8);
    int64_t *zeros = calloc((size_t)rows, 8);
    float *low = malloc((size_t)rows * 4), *high = malloc((size_t)rows * 4);
    for (int64_t row = 0; row < rows; row++) low[row] = 1, high[row] = -1;
    for (int batch = 0; batch < 3; batch++) {
        static const float sizes[] = {1.0f, 3e38f, 1e-38f, 1e-44f};
        float *x = malloc((size_t)(rows * count) * 4), size = sizes[below(4)];
        for (int64_t i = 0; i < rows * count; i++) x[i] = ((float)below(2001) / 1000 - 1) * size;
        if (!below(4)) x[below((int)(rows * count))] = below(2) ? NAN : -INFINITY;
        octavo_histogram seen = {x, rows, count, bins, counts, zeros, low, high};
        int status = octavo_observe(&seen, threads);
        if (status != 0 && status != OCTAVO_NOT_FINITE) exit(1);
        free(x);
    }
    free(counts), free(zeros), free(low), free(high);
}

static void one_weight(void) {
    int64_t columns = 1 + below(150), groups = 1 + below(40), rows = below(2) ? 1 : 1 + below(40);
    int64_t values = columns * groups * rows;
    float *left = filled(values, 4), *integers = malloc((size_t)values * 4);
    float *errors = malloc((size_t)values * 4), *scales = malloc((size_t)values * 4);
    float *zero_points = calloc((size_t)values, 4), *shares = filled(columns * columns * groups, 4);
    for (int64_t i = 0; i < values; i++) scales[i] = (float)(1 + below(9)) / 8;
    octavo_columns all = {
        left, integers, errors, scales, zero_points, shares, columns, groups, rows, -8, 7};
    for (int64_t start = 0; start < columns; start += OCTAVO_MOST_COLUMNS) {
        int64_t stop = start + OCTAVO_MOST_COLUMNS < columns ? start + OCTAVO_MOST_COLUMNS : columns;
        octavo_round_columns(&all, start, stop);
    }
    for (int64_t i = 0; i < values; i++)
        if (integers[i] < -8 || integers[i] > 7) exit(1);
    free(left), free(integers), free(errors), free(scales), free(zero_points), free(shares);
}

static void one_calculation(int threads) {
    octavo_shape shape = {1 + below(3), 1 + below(5), 1 + below(5), 1 + below(40)};
    int64_t row = shape.width * shape.channels, values = shape.batch * shape.height * row;
    float *x = filled(values, 4), *other = filled(shape.channels, 4), *y = malloc((size_t)values * 4);
    octavo_step step = {
        OCTAVO_CALCULATE, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.arithmetic = {
            {x, other, y, NULL}, shape, {shape.height * row, row, shape.channels, 1}, {0, 0, 0, below(2)},
            below(4)}};
    if (octavo_run(&step, 1, NULL, threads)) exit(1);
    step = (octavo_step){
        OCTAVO_ADD_UP, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.total = {
            {x, NULL, y, NULL}, shape.batch, shape.height * shape.width, shape.channels, 2.0f}};
    if (octavo_run(&step, 1, NULL, threads)) exit(1);
    int64_t rows[7], width = shape.channels;
    for (int i = 0; i < 7; i++) rows[i] = below(5);
    int8_t *table = filled(5 * width, 1);
    float scales[5] = {1, 2, 3, 4, 5}, *gathered = malloc((size_t)(7 * width) * 4);
    int32_t zero_points[5] = {0, 1, 2, 3, 4};
    step = (octavo_step){
        OCTAVO_GATHER, 1 + below(9), {NONE, NONE, NONE, NONE, NONE, NONE}, .of.gather = {
            {rows, NULL, gathered, NULL}, 7, width, table, scales, zero_points}};
    if (octavo_run(&step, 1, NULL, threads)) exit(1);
    free(x), free(other), free(y), free(table), free(gathered);
}

static void one_normalization(int threads) {
    int64_t count = 1 + below(40), columns = 1 + below(300), values = count * columns;
    int integers = below(2), adds = !integers && below(2);
    void *x = filled(values, integers ? 1 : 4);
    float *addend = filled(values, 4), *weight = filled(columns, 4), *bias = filled(columns, 4);
    float *out = malloc((size_t)values * 4);
    uint8_t *rounded = malloc((size_t)values);
    octavo_normalization call = {
        .count = count, .columns = columns, .kind = below(3), .x = x, .x_zero_point = 128,
        .x_scale = integers ? 0.02f : 0.0f, .eps = 1e-5f, .addend = adds ? addend : NULL,
        .weight = below(2) ? weight : NULL, .bias = below(2) ? bias : NULL,
        .out = below(2) ? out : NULL, .rounded = below(2) ? rounded : NULL, .scale = 0.02f,
        .zero_point = 100, .high = 255};
    if (octavo_normalize(&call, threads)) exit(1);
    free(x), free(addend), free(weight), free(bias), free(out), free(rounded);
}

static void count_chunk(void *context, int chunk, int chunks) {
    atomic_fetch_add((_Atomic int *)context, chunk < chunks);
}

/* Stages of a few chunks, or of none. */
static void some_stages(int threads) {
    _Atomic int counts[4] = {0};
    octavo_stage stages[4];
    for (int i = 0; i < 4; i++) stages[i] = (octavo_stage){count_chunk, counts + i, below(4)};
    octavo_run_stages(stages, 4, threads);
    for (int i = 0; i < 4; i++)
        if (counts[i] != stages[i].chunks) exit(1);
}

int main(void) {
    if (octavo_abi() != OCTAVO_ABI) return 1;
    for (int set = octavo_limit_isa(OCTAVO_AMX); set >= OCTAVO_PORTABLE; set--) {
        octavo_limit_isa(set);
        for (int kind = OCTAVO_LSTM; kind <= OCTAVO_RNN_RELU; kind++)
            for (int how = OCTAVO_INTEGERS; how <= OCTAVO_FLOATS; how++)
                for (int round = 0; round < 12; round++) one_layer(kind, how, 1 + round % 3);
        for (int round = 0; round < 50; round++) {
            some_stages(1 + round % 3);
            one_product_of_bytes(1 + round % 3);
            one_product(1 + round % 3);
            one_attention(1 + round % 3);
            one_histogram(1 + round % 3);
            one_weight();
            one_table(1 + round % 3);
            one_normalization(1 + round % 3);
            one_calculation(1 + round % 3);
            one_decoder(1 + round % 3);
        }
        for (int round = 0; round < 400; round++) {
            one_convolution(1 + round % 3);
            one_program(1 + round % 3);
            some_slices(1 + round % 3);
            some_floats(1 + round % 3);
        }
        printf("instruction set %d: clean\n", set);
    }
    return 0;
}
