/* A program: steps over one arena of memory, all of them in one call of the pool of threads. */
#include <stdlib.h>

#include "octavo.h"

typedef struct {
    const octavo_step *step;
    void *const *bases;
} Given;

static void *at(void *const *bases, octavo_place place) {
    return place.base < 0 ? NULL : (char *)bases[place.base] + place.offset;
}

static void take(void *context, int chunk, int chunks) {
    const Given *given = context;
    octavo_step step = *given->step; /* its pointers are those of this call */
    void *x = at(given->bases, step.x), *other = at(given->bases, step.other);
    void *y = at(given->bases, step.y), *scratch = at(given->bases, step.scratch);
    switch (step.kind) {
    case OCTAVO_CONVOLVE:
        step.of.convolution.x = x;
        step.of.convolution.y = y;
        step.of.convolution.scratch = scratch;
        step.of.convolution.epilogue.addend = other;
        octavo_convolve(&step.of.convolution, chunk, chunks);
        break;
    case OCTAVO_POOL:
        step.of.pooling.x = x;
        step.of.pooling.y = y;
        octavo_pool(&step.of.pooling, chunk, chunks);
        break;
    case OCTAVO_QUANTIZE:
        step.of.quantize.x = x;
        step.of.quantize.y = y;
        octavo_quantize_values(&step.of.quantize, chunk, chunks);
        break;
    case OCTAVO_DEQUANTIZE:
        step.of.dequantize.x = x;
        step.of.dequantize.y = y;
        octavo_dequantize_values(&step.of.dequantize, chunk, chunks);
        break;
    case OCTAVO_LOOK_UP:
        step.of.look_up.x = x;
        step.of.look_up.y = y;
        octavo_look_up_values(&step.of.look_up, chunk, chunks);
        break;
    case OCTAVO_COMBINE:
        step.of.binary.x = x;
        step.of.binary.other = other;
        step.of.binary.y = y;
        octavo_combine(&step.of.binary, chunk, chunks);
        break;
    case OCTAVO_MOVE:
        step.of.move.x = x;
        step.of.move.y = y;
        octavo_move_values(&step.of.move, chunk, chunks);
        break;
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
