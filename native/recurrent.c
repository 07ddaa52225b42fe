/* LSTM, GRU and RNN on int8 weights: one direction of one layer.
 *
 * A thread has some of the units, with all their gates. So a step needs one meeting of the threads:
 * when the new state is there, each rounds it for itself.
 */
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "octavo.h"
#include "rounding.h"

enum { UNITS = 16 };

/* The input's sums of so many steps are kept: some MB. */
#define KEPT_SUMS (1 << 20)

/* ---- gates, written once and compiled for each instruction set ---- */

/* x and y: what a block's gates sum of the input and of the state. */
#define FOR_UNITS                                                                       \
    for (int64_t block = 0; block < blocks; block++, c += UNITS, h += UNITS, next += UNITS) \
        for (int i = 0; i < UNITS; i++)

INLINE void lstm(
    const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {
    FOR_UNITS {
        const float *a = x + block * 4 * UNITS + i, *b = y + block * 4 * UNITS + i;
        float in = sigmoid(a[0] + b[0]), forget = sigmoid(a[UNITS] + b[UNITS]);
        float cell = tanhyp(a[2 * UNITS] + b[2 * UNITS]);
        float out = sigmoid(a[3 * UNITS] + b[3 * UNITS]);
        c[i] = forget * c[i] + in * cell;
        next[i] = out * tanhyp(c[i]);
    }
    (void)h;
}

INLINE void gru(
    const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {
    FOR_UNITS {
        const float *a = x + block * 3 * UNITS + i, *b = y + block * 3 * UNITS + i;
        float reset = sigmoid(a[0] + b[0]), update = sigmoid(a[UNITS] + b[UNITS]);
        float made = tanhyp(a[2 * UNITS] + reset * b[2 * UNITS]);
        next[i] = made + update * (h[i] - made);
    }
    (void)c;
}

INLINE void rnn_tanh(
    const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {
    FOR_UNITS next[i] = tanhyp(x[block * UNITS + i] + y[block * UNITS + i]);
    (void)c, (void)h;
}

INLINE void rnn_relu(
    const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {
    FOR_UNITS {
        float sum = x[block * UNITS + i] + y[block * UNITS + i];
        next[i] = sum < 0.0f ? 0.0f : sum; /* NaN stays */
    }
    (void)c, (void)h;
}

typedef void (*Gates)(const float *, const float *, float *, const float *, float *, int64_t);

#define GATES(SET, TARGET)                                                                        \
    TARGET static void lstm_##SET(                                                                \
        const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {  \
        lstm(x, y, c, h, next, blocks);                                                           \
    }                                                                                             \
    TARGET static void gru_##SET(                                                                 \
        const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {  \
        gru(x, y, c, h, next, blocks);                                                            \
    }                                                                                             \
    TARGET static void rnn_tanh_##SET(                                                            \
        const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {  \
        rnn_tanh(x, y, c, h, next, blocks);                                                       \
    }                                                                                             \
    TARGET static void rnn_relu_##SET(                                                            \
        const float *x, const float *y, float *c, const float *h, float *next, int64_t blocks) {  \
        rnn_relu(x, y, c, h, next, blocks);                                                       \
    }                                                                                             \
    static const Gates gates_##SET[] = {lstm_##SET, gru_##SET, rnn_tanh_##SET, rnn_relu_##SET};

GATES(portable, )
#if defined(__x86_64__)
GATES(avx2, AVX2)
GATES(avx512, VNNI)
#endif

static Gates gates_of(int kind) {
    switch (octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return gates_avx512[kind];
    case OCTAVO_AVX2: return gates_avx2[kind];
#endif
    default: return gates_portable[kind];
    }
}

/* ---- steps ---- */

typedef struct {
    const octavo_recurrent_call *call;
    octavo_reading reading;
    octavo_barrier barrier;
    octavo_rows input;       /* of the steps whose sums are kept */
    octavo_rows *own_states; /* each thread's */
    float *input_sums, *state_sums, *states[2], *cells;
    int64_t gates, width, kept; /* width: hidden, rounded up */
} Run;

static int64_t place(const octavo_recurrent_call *call, int64_t step) {
    return call->reverse ? call->steps - 1 - step : step;
}

static void read_input(Run *run, int64_t begin, int64_t end, int thread, int threads) {
    const octavo_recurrent_call *call = run->call;
    int64_t count = (end - begin) * call->batch, size = call->reading.how == OCTAVO_INTEGERS ? 1 : 4;
    for (int64_t row = count * thread / threads; row < count * (thread + 1) / threads; row++) {
        int64_t step = place(call, begin + row / call->batch);
        int64_t at = step * call->x_step + row % call->batch * call->x_row;
        octavo_read_row(
            &run->input, row, (const char *)call->x + at * size, call->inputs, &run->reading);
    }
}

static void one_step(Run *run, int64_t step, int64_t kept, int thread, int64_t first, int64_t last) {
    const octavo_recurrent_call *call = run->call;
    octavo_rows *state = &run->own_states[thread];
    const octavo_reading floats = {.how = OCTAVO_FLOATS};
    int64_t rows = call->of_state.rows, offset = first * UNITS, units = (last - first) * UNITS;
    int64_t own = call->hidden - offset < units ? call->hidden - offset : units;
    const float *h = run->states[step % 2];
    float *next = run->states[(step + 1) % 2];
    for (int64_t b = 0; b < call->batch; b++)
        octavo_read_row(state, b, h + b * run->width, run->width, &floats);
    octavo_product(
        &call->of_state, first * run->gates, last * run->gates, state, call->batch,
        run->state_sums);
    Gates gates = gates_of(call->kind);
    for (int64_t b = 0; b < call->batch; b++) {
        int64_t at = b * run->width + offset, sums = b * rows + offset * run->gates;
        gates(
            run->input_sums + kept * call->batch * rows + sums, run->state_sums + sums,
            run->cells + at, h + at, next + at, last - first);
        float *out = call->out + place(call, step) * call->out_step + b * call->out_row + offset;
        if (own > 0) memcpy(out, next + at, (size_t)own * 4);
    }
}

static void run_layer(void *context, int thread, int threads) {
    Run *run = context;
    const octavo_recurrent_call *call = run->call;
    int64_t blocks = run->width / UNITS;
    int64_t first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    for (int64_t begin = 0; begin < call->steps; begin += run->kept) {
        int64_t end = begin + run->kept < call->steps ? begin + run->kept : call->steps;
        read_input(run, begin, end, thread, threads);
        octavo_wait(&run->barrier, threads);
        octavo_product(
            &call->of_input, first * run->gates, last * run->gates, &run->input,
            (end - begin) * call->batch, run->input_sums);
        for (int64_t step = begin; step < end; step++) {
            one_step(run, step, step - begin, thread, first, last);
            octavo_wait(&run->barrier, threads);
        }
    }
}

static int threads_for(const octavo_recurrent_call *call, int64_t width) {
    int64_t useful = call->of_state.rows * width * call->batch / OCTAVO_WORK_OF_A_THREAD + 1;
    int64_t most = useful < width / UNITS ? useful : width / UNITS;
    return call->threads < most ? call->threads : (int)most;
}

/* One piece of memory after the other out of one block, each on a line of the cache. */
static void *piece(char **rest, int64_t bytes) {
    void *start = *rest;
    *rest += (bytes + 63) / 64 * 64;
    return start;
}

/* Rows of digits out of a block; with none, the bytes that they take. */
static int64_t rows_of(octavo_rows *rows, char **rest, int64_t count, int64_t columns, int floats) {
    int64_t bytes = count * 2 * columns + 64 + 2 * (count * 4 + 64);
    if (!rows) return bytes;
    rows->digits = piece(rest, count * 2 * columns);
    rows->scales = piece(rest, count * 4);
    rows->zero_points = piece(rest, count * 4);
    rows->columns = columns;
    rows->two_digits = floats;
    return bytes;
}

static void with_columns(float *to, const float *from, int64_t rows, int64_t columns, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        memcpy(to + row * width, from + row * columns, (size_t)columns * 4);
        memset(to + row * width + columns, 0, (size_t)(width - columns) * 4);
    }
}

static void without_columns(float *to, const float *from, int64_t rows, int64_t columns, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        memcpy(to + row * columns, from + row * width, (size_t)columns * 4);
}

int octavo_recurrent(const octavo_recurrent_call *call) {
    int64_t width = call->of_state.columns, rows = call->of_state.rows, batch = call->batch;
    int64_t kept = KEPT_SUMS / (batch * rows) + 1;
    int threads = threads_for(call, width);
    Run run = {.call = call, .reading = call->reading, .width = width, .gates = rows / width};
    run.kept = kept < call->steps ? kept : call->steps;

    int64_t input = run.kept * batch, state = batch * width * 4 + 64;
    int64_t bytes = rows_of(NULL, NULL, input, call->of_input.columns, 0) +
                    threads * rows_of(NULL, NULL, batch, width, 0) +
                    (int64_t)sizeof(octavo_rows) * threads + 64 + (input + batch) * rows * 4 + 128 +
                    3 * state;
    char *block = malloc((size_t)bytes + 64);
    if (!block) return 1;
    char *rest = (char *)(((uintptr_t)block + 63) / 64 * 64);
    rows_of(&run.input, &rest, input, call->of_input.columns, call->reading.how == OCTAVO_FLOATS);
    run.own_states = piece(&rest, (int64_t)sizeof(octavo_rows) * threads);
    for (int thread = 0; thread < threads; thread++)
        rows_of(&run.own_states[thread], &rest, batch, width, 1);
    run.input_sums = piece(&rest, input * rows * 4);
    run.state_sums = piece(&rest, batch * rows * 4);
    for (int i = 0; i < 2; i++) run.states[i] = piece(&rest, state - 64);
    run.cells = piece(&rest, state - 64);

    with_columns(run.states[0], call->h0, batch, call->hidden, width);
    if (call->c0) with_columns(run.cells, call->c0, batch, call->hidden, width);
    if (call->reading.how == OCTAVO_TENSOR_RANGE)
        octavo_find_range(
            &run.reading, call->x, call->steps * batch * call->inputs); /* it is contiguous */
    octavo_in_threads(run_layer, &run, threads);
    without_columns(call->hn, run.states[call->steps % 2], batch, call->hidden, width);
    if (call->cn) without_columns(call->cn, run.cells, batch, call->hidden, width);
    free(block);
    return 0;
}
