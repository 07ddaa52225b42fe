/* LSTM, GRU and RNN on int8 weights: one direction of one layer.
 *
 * The input's part of the sums is a product of many rows, for many steps at a time. A step is two
 * stages: the rows of the state are rounded, then some threads have some of the units each, with all
 * their gates. Where the input is rounded to eight bits, so is each row of the state by its own
 * range; else 16 bits are kept of both.
 *
 * Sequences of several lengths come packed, the longest first: a step has the rows of those that
 * are as long.
 */
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "octavo.h"
#include "rounding.h"

enum { UNITS = 16, BLOCKS = 4 };

/* So many of the input's sums are kept: of all steps that they are enough for. */
#define KEPT_SUMS (1 << 18)

/* ---- gates, written once and compiled for each instruction set ---- */

/* Some rows and blocks of units: what their gates sum of the input and of the state, which stand as
 * [rows][blocks][gates][16], and the states and cells, `width` apart. */
typedef struct {
    int64_t rows, blocks, width;
    const float *of_input, *of_state, *h;
    float *c, *next;
} Units;

/* Each unit i of a row: a and b are its first gate's sums, at the place of its states. */
#define FOR_UNITS(GATES)                                                                         \
    for (int64_t row = 0; row < u->rows; row++)                                                  \
        for (int64_t block = 0, at = row * u->width, sum = row * u->blocks * (GATES) * UNITS;    \
             block < u->blocks; block++, at += UNITS, sum += (GATES) * UNITS)                    \
            for (int i = 0; i < UNITS; i++)

/* e^2x - 1: tanh is y / (y + 2). Beyond this limit tanh is 1 in float. */
INLINE float of_tanh(float x) { return exponential(x > 20.0f ? 40.0f : 2.0f * x, 1.0f); }

INLINE void lstm(const Units *u) {
    FOR_UNITS(4) {
        const float *a = u->of_input + sum + i, *b = u->of_state + sum + i;
        float in = 1.0f + exponential(-(a[0] + b[0]), 0.0f);
        float forget = 1.0f + exponential(-(a[UNITS] + b[UNITS]), 0.0f);
        float cell = of_tanh(a[2 * UNITS] + b[2 * UNITS]);
        float out = 1.0f + exponential(-(a[3 * UNITS] + b[3 * UNITS]), 0.0f);
        float c = u->c[at + i] / forget + cell / (in * (cell + 2.0f)), y = of_tanh(c);
        u->c[at + i] = c;
        u->next[at + i] = y / (out * (y + 2.0f));
    }
}

INLINE void gru(const Units *u) {
    FOR_UNITS(3) {
        const float *a = u->of_input + sum + i, *b = u->of_state + sum + i;
        float reset = sigmoid(a[0] + b[0]);
        float update = 1.0f + exponential(-(a[UNITS] + b[UNITS]), 0.0f);
        float made = tanhyp(a[2 * UNITS] + reset * b[2 * UNITS]);
        u->next[at + i] = made + (u->h[at + i] - made) / update;
    }
}

INLINE void rnn_tanh(const Units *u) {
    FOR_UNITS(1) u->next[at + i] = tanhyp(u->of_input[sum + i] + u->of_state[sum + i]);
}

INLINE void rnn_relu(const Units *u) {
    FOR_UNITS(1) {
        float y = u->of_input[sum + i] + u->of_state[sum + i];
        u->next[at + i] = y < 0.0f ? 0.0f : y; /* NaN stays */
    }
}

typedef void (*Gates)(const Units *);

#define GATES(SET, TARGET)                                               \
    TARGET static void lstm_##SET(const Units *u) { lstm(u); }           \
    TARGET static void gru_##SET(const Units *u) { gru(u); }             \
    TARGET static void rnn_tanh_##SET(const Units *u) { rnn_tanh(u); }   \
    TARGET static void rnn_relu_##SET(const Units *u) { rnn_relu(u); }   \
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

/* A slice of rows is as many of the tiles of a product. */
enum { SLICE = 18 };

typedef struct {
    const octavo_recurrent_call *call;
    octavo_reading of_input, of_state;
    octavo_rows input, state;
    float *input_sums; /* [blocks of units][kept][gates][16] */
    float *states[2], *cells;
    int64_t gates, width, kept; /* width: hidden, rounded up; kept: rows of input at a time */
} Run;

/* What is done at once: for a step, or for `rows` of the input from that step on. */
typedef struct {
    Run *run;
    int64_t step, rows;
    int64_t first; /* of the step's rows, among those whose sums of the input are kept */
} Part;

static int64_t place(const octavo_recurrent_call *call, int64_t step) {
    return call->reverse ? call->steps - 1 - step : step;
}

/* How many sequences have a step. */
static int64_t rows_at(const octavo_recurrent_call *call, int64_t step) {
    const int64_t *offset = call->offsets + place(call, step);
    return call->offsets ? offset[1] - offset[0] : call->batch;
}

/* Where the first of them stands. */
static int64_t first_at(
    const octavo_recurrent_call *call, int64_t step, int64_t step_stride, int64_t row_stride) {
    int64_t at = place(call, step);
    return call->offsets ? call->offsets[at] * row_stride : at * step_stride;
}

static void read_input(void *context, int chunk, int chunks) {
    const Part *part = context;
    Run *run = part->run;
    const octavo_recurrent_call *call = run->call;
    int64_t size = run->of_input.how == OCTAVO_INTEGERS ? 1 : 4, row = 0;
    int64_t first = part->rows * chunk / chunks, last = part->rows * (chunk + 1) / chunks;
    for (int64_t step = part->step; row < last; step++) {
        int64_t count = rows_at(call, step);
        const char *x = (const char *)call->x + first_at(call, step, call->x_step, call->x_row) * size;
        for (int64_t b = 0; b < count; b++, row++)
            if (row >= first && row < last)
                octavo_read_row(
                    &run->input, row, x + b * call->x_row * size, call->inputs, &run->of_input);
    }
}

/* The rows of weights of some blocks of units. */
static octavo_matrix part_of(const octavo_matrix *matrix, int64_t first, int64_t count) {
    int64_t at = first * UNITS;
    return (octavo_matrix){
        matrix->weights + at * matrix->columns, matrix->scales + at, matrix->sums + at,
        matrix->bias + at, count * UNITS, matrix->columns};
}

/* Units of a chunk whose gates are BLOCKS blocks of a product together. */
#define FOR_UNITS_OF_CHUNK                                                                     \
    for (int64_t all = run->width / UNITS, unit = all * chunk / chunks,                        \
                 last = all * (chunk + 1) / chunks, most = BLOCKS / run->gates, blocks;        \
         blocks = last - unit < most ? last - unit : most, unit < last; unit += blocks)

static void sums_of_input(void *context, int chunk, int chunks) {
    const Part *part = context;
    Run *run = part->run;
    FOR_UNITS_OF_CHUNK {
        octavo_matrix gates = part_of(&run->call->of_input, unit * run->gates, blocks * run->gates);
        octavo_product(
            &gates, 0, blocks * run->gates, &run->input, part->rows,
            run->input_sums + unit * run->gates * UNITS * run->kept);
    }
}

static void read_states(void *context, int chunk, int chunks) {
    const Part *part = context;
    Run *run = part->run;
    const float *h = run->states[part->step % 2];
    for (int64_t b = part->rows * chunk / chunks; b < part->rows * (chunk + 1) / chunks; b++)
        octavo_read_row(&run->state, b, h + b * run->width, run->width, &run->of_state);
}

/* Some blocks of units, for a slice of rows at a time: their sums stay in the nearest cache. */
static void next_states(const Part *part, int64_t unit, int64_t blocks, Gates gates) {
    const Run *run = part->run;
    octavo_matrix weights = part_of(&run->call->of_state, unit * run->gates, blocks * run->gates);
    const float *of_input =
        run->input_sums + unit * UNITS * run->gates * run->kept + part->first * weights.rows;
    float sums[SLICE * BLOCKS * UNITS];
    for (int64_t b = 0; b < part->rows; b += SLICE) {
        int64_t rows = part->rows - b < SLICE ? part->rows - b : SLICE, at = b * run->width + unit * UNITS;
        octavo_rows slice = run->state;
        slice.digits += b * 2 * slice.columns, slice.scales += b, slice.zero_points += b;
        octavo_product(&weights, 0, blocks * run->gates, &slice, rows, sums);
        Units units = {
            rows, blocks, run->width, of_input + b * weights.rows, sums,
            run->states[part->step % 2] + at, run->cells + at, run->states[(part->step + 1) % 2] + at};
        gates(&units);
    }
}

static void one_step(void *context, int chunk, int chunks) {
    const Part *part = context;
    const Run *run = part->run;
    const octavo_recurrent_call *call = run->call;
    Gates gates = gates_of(call->kind);
    FOR_UNITS_OF_CHUNK next_states(part, unit, blocks, gates);
    int64_t all = run->width / UNITS, first = all * chunk / chunks * UNITS;
    int64_t end = all * (chunk + 1) / chunks * UNITS;
    int64_t own = (end < call->hidden ? end : call->hidden) - first;
    const float *next = run->states[(part->step + 1) % 2] + first;
    float *out = call->out + first_at(call, part->step, call->out_step, call->out_row) + first;
    for (int64_t b = 0; b < part->rows && own > 0; b++)
        memcpy(out + b * call->out_row, next + b * run->width, (size_t)own * 4);
}

/* Behind the last step whose sums are kept with those of `begin`; how many rows they have. */
static int64_t end_of(const Run *run, int64_t begin, int64_t *rows) {
    int64_t end = begin;
    for (*rows = 0; end < run->call->steps; *rows += rows_at(run->call, end++))
        if (end > begin && *rows + rows_at(run->call, end) > run->kept) break;
    return end;
}

/* Steps are short, and what a chunk reads should be in its core's cache: fewer of them than others
 * cut. */
static int few_chunks(int64_t parts, int threads) {
    int most = threads < 2 ? 1 : 2 * threads;
    return parts < most ? (int)parts : most;
}

/* All stages, two for a step and two more where sums of the input are made; returns how many. */
static int with_stages(Run *run, octavo_stage *stages, Part *parts, int threads) {
    int count = 0, units = few_chunks(run->width / UNITS, threads);
    int64_t rows, kept;
    for (int64_t step = 0, end; step < run->call->steps;) {
        end = end_of(run, step, &kept);
        *parts = (Part){run, step, kept, 0};
        stages[count++] = (octavo_stage){read_input, parts, octavo_chunks(kept, threads)};
        stages[count++] = (octavo_stage){sums_of_input, parts++, units};
        for (int64_t first = 0; step < end; step++, first += rows) {
            rows = rows_at(run->call, step);
            *parts = (Part){run, step, rows, first};
            stages[count++] = (octavo_stage){read_states, parts, few_chunks(rows, threads)};
            stages[count++] = (octavo_stage){one_step, parts++, units};
        }
    }
    return count;
}

static int threads_for(const octavo_recurrent_call *call, int64_t width) {
    int64_t useful = call->of_state.rows * width * call->batch / OCTAVO_WORK_OF_A_THREAD + 1;
    return useful < call->threads ? (int)useful : call->threads;
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

/* The last states of sequences are where their number of steps has left them. */
static void last_states(const Run *run) {
    const octavo_recurrent_call *call = run->call;
    size_t bytes = (size_t)call->hidden * 4;
    for (int64_t b = 0; b < call->batch; b++) {
        int64_t steps = call->steps, at = b * call->hidden;
        if (call->offsets && !call->reverse)
            while (rows_at(call, steps - 1) <= b) steps--;
        memcpy(call->hn + at, run->states[steps % 2] + b * run->width, bytes);
        if (call->cn) memcpy(call->cn + at, run->cells + b * run->width, bytes);
    }
}

int octavo_recurrent(const octavo_recurrent_call *call) {
    int64_t width = call->of_state.columns, rows = call->of_state.rows, batch = call->batch;
    int64_t total = call->offsets ? call->offsets[call->steps] : call->steps * batch;
    int threads = threads_for(call, width), floats = call->reading.how == OCTAVO_FLOATS;
    Run run = {.call = call, .of_input = call->reading, .width = width, .gates = rows / width};
    run.of_state = (octavo_reading){.how = floats ? OCTAVO_FLOATS : OCTAVO_ROW_RANGE, .high = 255};
    run.kept = KEPT_SUMS / rows < batch ? batch : KEPT_SUMS / rows;
    if (run.kept > total) run.kept = total;

    int64_t state = batch * width * 4, sums = run.kept * rows * 4, columns = call->of_input.columns;
    int64_t parts = 2 * call->steps * (int64_t)sizeof(Part);
    int64_t stages = 4 * call->steps * (int64_t)sizeof(octavo_stage);
    int64_t bytes = rows_of(NULL, NULL, run.kept, columns, 0) + rows_of(NULL, NULL, batch, width, 0);
    char *block = malloc((size_t)(bytes + sums + 3 * state + parts + stages + 7 * 64));
    if (!block) return 1;
    char *rest = (char *)(((uintptr_t)block + 63) / 64 * 64);
    rows_of(&run.input, &rest, run.kept, columns, floats);
    rows_of(&run.state, &rest, batch, width, floats);
    run.input_sums = piece(&rest, sums);
    for (int i = 0; i < 2; i++) run.states[i] = piece(&rest, state);
    run.cells = piece(&rest, state);
    octavo_stage *all = piece(&rest, stages);
    int count = with_stages(&run, all, piece(&rest, parts), threads);

    for (int i = 0; i < 2; i++) with_columns(run.states[i], call->h0, batch, call->hidden, width);
    if (call->c0) with_columns(run.cells, call->c0, batch, call->hidden, width);
    if (call->reading.how == OCTAVO_TENSOR_RANGE)
        octavo_find_range(&run.of_input, call->x, total * call->inputs); /* it is contiguous */
    octavo_run_stages(all, count, threads);
    last_states(&run);
    free(block);
    return 0;
}
