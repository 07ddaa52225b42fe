/* A program: steps over one arena of memory, all of them in one call of the pool of threads. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "octavo.h"

typedef struct {
    const octavo_step *step;
    void *const *bases;
} Given;

static void take(void *context, int chunk, int chunks) {
    const Given *given = context;
    octavo_step step = *given->step; /* its pointers are those of this call */
    for (const octavo_place *p = step.places; p < step.places + OCTAVO_MOST_PLACES; p++)
        if (p->base >= 0) {
            void *pointer = (char *)given->bases[p->base] + p->offset;
            memcpy((char *)&step.of + p->field, &pointer, sizeof pointer);
        }
    switch (step.kind) {
    case OCTAVO_CONVOLVE: octavo_convolve(&step.of.convolution, chunk, chunks); break;
    case OCTAVO_POOL: octavo_pool(&step.of.pooling, chunk, chunks); break;
    case OCTAVO_QUANTIZE: octavo_quantize_values(&step.of.quantize, chunk, chunks); break;
    case OCTAVO_DEQUANTIZE: octavo_dequantize_values(&step.of.dequantize, chunk, chunks); break;
    case OCTAVO_LOOK_UP: octavo_look_up_values(&step.of.look_up, chunk, chunks); break;
    case OCTAVO_COMBINE: octavo_combine(&step.of.binary, chunk, chunks); break;
    case OCTAVO_MOVE: octavo_move_values(&step.of.move, chunk, chunks); break;
    case OCTAVO_CALCULATE: octavo_calculate(&step.of.arithmetic, chunk, chunks); break;
    case OCTAVO_NORMALIZE: octavo_normalize_rows(&step.of.normalization, chunk, chunks); break;
    case OCTAVO_PACK_HEADS: octavo_pack_heads(&step.of.attention, chunk, chunks); break;
    case OCTAVO_ATTEND: octavo_attend(&step.of.attention, chunk, chunks); break;
    case OCTAVO_ADD_UP: octavo_add_up(&step.of.total, chunk, chunks); break;
    case OCTAVO_GATHER: octavo_gather_rows(&step.of.gather, chunk, chunks); break;
    case OCTAVO_ROUND_ROWS: octavo_round_rows(&step.of.dynamic_linear, chunk, chunks); break;
    case OCTAVO_MULTIPLY_ROWS: octavo_multiply_rows(&step.of.dynamic_linear, chunk, chunks); break;
    case OCTAVO_PACK_FLOAT_HEADS: octavo_pack_float_heads(&step.of.attention, chunk, chunks); break;
    case OCTAVO_ATTEND_TO_FLOATS: octavo_attend_to_floats(&step.of.attention, chunk, chunks); break;
    case OCTAVO_ACTIVATE: octavo_activate_values(&step.of.activation, chunk, chunks); break;
    }
}

int octavo_run(const octavo_step *steps, int64_t count, void *const *bases, int threads) {
    size_t most = (size_t)count + !count;
    octavo_stage *stages = malloc(most * sizeof *stages);
    Given *given = malloc(most * sizeof *given);
    if (stages && given) {
        for (int64_t i = 0; i < count; i++) {
            given[i] = (Given){steps + i, bases};
            stages[i] = (octavo_stage){take, given + i, (int)steps[i].chunks};
        }
        octavo_run_stages(stages, (int)count, threads);
    }
    int missing = !stages || !given;
    free(stages), free(given);
    return missing;
}

/* ---- parts of a batch ---- */

/* No more parts are under way than there are threads; each holds a place, with an arena and addresses. */
typedef struct {
    const octavo_slices *slices;
    void *const *bases;
    void **own_bases;
    _Atomic char *held;
} Slicing;

static void take_part(void *context, int part, int parts) {
    (void)parts;
    const Slicing *slicing = context;
    const octavo_slices *slices = slicing->slices;
    int64_t place = 0, count = slices->base_count;
    /* The first that is free: the one that this thread had before, whose arena is in its cache. */
    while (atomic_exchange_explicit(slicing->held + place, 1, memory_order_acquire)) place++;
    void **bases = slicing->own_bases + place * count;
    bases[0] = (char *)slicing->bases[0] + place * slices->arena;
    for (int64_t i = 1; i < count; i++)
        bases[i] = (char *)slicing->bases[i] + part * slices->pitches[i];
    for (int64_t i = 0; i < slices->count; i++) {
        Given given = {slices->steps + i, bases};
        int chunks = (int)slices->steps[i].chunks;
        for (int chunk = 0; chunk < chunks; chunk++) take(&given, chunk, chunks);
    }
    atomic_store_explicit(slicing->held + place, 0, memory_order_release);
}

int octavo_run_slices(const octavo_slices *slices, void *const *bases, int threads) {
    size_t places = threads < 1 ? 1 : (size_t)threads;
    void **own_bases = malloc(places * (size_t)slices->base_count * sizeof *own_bases);
    _Atomic char *held = calloc(places, sizeof *held);
    int missing = !own_bases || !held;
    if (!missing) {
        Slicing slicing = {slices, bases, own_bases, held};
        octavo_stage stage = {take_part, &slicing, (int)slices->parts};
        octavo_run_stages(&stage, 1, threads);
    }
    free(own_bases), free((void *)held);
    return missing;
}
