/* Which instruction set is used: the best that the CPU has, or less if asked. */
#include "octavo.h"

static int found(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return OCTAVO_AVX512_VNNI;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return OCTAVO_AVX2;
#endif
    return OCTAVO_PORTABLE;
}

static _Atomic int used = -1;

int octavo_abi(void) { return OCTAVO_ABI; }

#ifndef OCTAVO_SOURCES
#define OCTAVO_SOURCES ""
#endif
const char *octavo_sources(void) { return OCTAVO_SOURCES; }

int octavo_isa(void) {
    if (used < 0) used = found();
    return used;
}

int octavo_limit_isa(int most) {
    int best = found();
    if (most < OCTAVO_PORTABLE) most = OCTAVO_PORTABLE;
    return used = most < best ? most : best;
}
