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
    octavo_step step = *given->step; /* its operands are those of this call */
    step.of.at = (octavo_operands){
        at(given->bases, step.x), at(given->bases, step.other), at(given->bases, step.y),
        at(given->bases, step.scratch)};
    switch (step.kind) {
    case OCTAVO_CONVOLVE:
        step.of.convolution.epilogue.addend = step.of.at.other;
        octavo_convolve(&step.of.convolution, chunk, chunks);
        break;
    case OCTAVO_POOL: octavo_pool(&step.of.pooling, chunk, chunks); break;
    case OCTAVO_QUANTIZE: octavo_quantize_values(&step.of.quantize, chunk, chunks); break;
    case OCTAVO_DEQUANTIZE: octavo_dequantize_values(&step.of.dequantize, chunk, chunks); break;
    case OCTAVO_LOOK_UP: octavo_look_up_values(&step.of.look_up, chunk, chunks); break;
    case OCTAVO_COMBINE: octavo_combine(&step.of.binary, chunk, chunks); break;
    case OCTAVO_MOVE: octavo_move_values(&step.of.move, chunk, chunks); break;
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
