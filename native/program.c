/* A program: steps over one arena of memory, all of them in one call of the pool of threads. */
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
