/* Activations of many floats, compiled for each instruction set. They are functions of their own, since
 * inside of a kernel the compiler doesn't make vectors of their loops. */
#include "activations.h"
#include "octavo.h"

#define FOR_ALL for (int64_t i = 0; i < count; i++)

INLINE void activate(int32_t activation, float low, float high, float *v, int64_t count) {
    switch (activation) {
    case OCTAVO_CLIP: FOR_ALL v[i] = clipped(v[i], low, high); break;
    case OCTAVO_HARDSWISH: FOR_ALL v[i] = hardswish(v[i]); break;
    case OCTAVO_HARDSIGMOID: FOR_ALL v[i] = hardsigmoid(v[i]); break;
    case OCTAVO_SILU: FOR_ALL v[i] = silu(v[i]); break;
    case OCTAVO_SIGMOID: FOR_ALL v[i] = sigmoid(v[i]); break;
    case OCTAVO_GELU: FOR_ALL v[i] = gelu(v[i]); break;
    case OCTAVO_GELU_TANH: FOR_ALL v[i] = gelu_tanh(v[i]); break;
    case OCTAVO_TANH: FOR_ALL v[i] = tanhyp(v[i]); break;
    case OCTAVO_RELU: FOR_ALL v[i] = v[i] < 0 ? 0 : v[i]; break;
    }
}

typedef void (*Activate)(int32_t activation, float low, float high, float *v, int64_t count);

static void activate_portable(int32_t activation, float low, float high, float *v, int64_t count) {
    activate(activation, low, high, v, count);
}

#if defined(__x86_64__)

AVX2 static void activate_avx2(int32_t activation, float low, float high, float *v, int64_t count) {
    activate(activation, low, high, v, count);
}

VNNI static void activate_vnni(int32_t activation, float low, float high, float *v, int64_t count) {
    activate(activation, low, high, v, count);
}

static const Activate ACTIVATE[] = {activate_portable, activate_avx2, activate_vnni};

#else

static const Activate ACTIVATE[] = {activate_portable};

#endif

void octavo_activate(int32_t activation, float low, float high, float *v, int64_t count) {
    if (activation != OCTAVO_NO_ACTIVATION)
        ACTIVATE[octavo_isa()](activation, low, high, v, count);
}
