/* Which instruction set is used: the best that the CPU has, or less if asked. */
#include "amx.h"
#include "octavo.h"

#if defined(OCTAVO_ACT_OUT_AMX)

static int has_amx(void) { return 1; }

#elif defined(OCTAVO_KNOWS_AMX)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ALLOW_STATE = 0x1023, TILE_VALUES = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */

/* Linux lets a process use the registers, all of its threads, if it asks. */
static int has_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    int tiles = d >> 24 & 1, products = (d >> 25 & 1) && (d >> 22 & 1); /* of int8, bfloat16 */
    return tiles && products && !syscall(SYS_arch_prctl, ALLOW_STATE, TILE_VALUES);
}

#else

static int has_amx(void) { return 0; }

#endif

static int found(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return has_amx() ? OCTAVO_AMX : OCTAVO_AVX512_VNNI;
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

static int set(void) {
    if (used < 0) used = found();
    return used;
}

int octavo_isa(void) { return set() < OCTAVO_AMX ? set() : OCTAVO_AVX512_VNNI; }

int octavo_amx(void) { return set() == OCTAVO_AMX; }

int octavo_limit_isa(int most) {
    int best = found();
    if (most < OCTAVO_PORTABLE) most = OCTAVO_PORTABLE;
    return used = most < best ? most : best;
}
