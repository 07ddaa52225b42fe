/* AMX: eight registers that hold tiles of up to 16 rows of 64 bytes, and an instruction that adds the
 * products of two such tiles to 16 x 16 sums.
 *
 * Intel's Software Developer's Manual, volume 1, chapter 18. Compiled with OCTAVO_ACT_OUT_AMX the
 * registers are memory, and what a CPU would refuse ends the process: so the kernels are tested on
 * CPUs without them.
 */
#ifndef OCTAVO_AMX_H
#define OCTAVO_AMX_H

#include "rounding.h"

#if defined(__x86_64__) && defined(__linux__) && \
    (defined(OCTAVO_ACT_OUT_AMX) || __has_include(<amxint8intrin.h>))
#define OCTAVO_KNOWS_AMX

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE_REGISTERS = 8 };

/* How many rows each register has, and how many bytes a row. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileSizes;

#if defined(OCTAVO_ACT_OUT_AMX)

#include <stdlib.h>

#define AMX VNNI
static _Thread_local struct {
    TileSizes sizes;
    uint8_t values[TILE_REGISTERS][TILE_ROWS][TILE_BYTES];
} acted;

INLINE void insist(int holds) {
    if (!holds) abort();
}

INLINE void tile_sizes(const TileSizes *sizes) {
    for (int t = 0; t < 16; t++)
        insist(
            sizes->palette == 1 && sizes->rows[t] <= (t < TILE_REGISTERS ? TILE_ROWS : 0) &&
            sizes->bytes[t] <= TILE_BYTES && !sizes->rows[t] == !sizes->bytes[t]);
    memset(&acted, 0, sizeof acted);
    acted.sizes = *sizes;
}

INLINE void tile_release(void) { memset(&acted, 0, sizeof acted); }

INLINE void tile_zero(int tile) {
    insist(acted.sizes.rows[tile]);
    memset(acted.values[tile], 0, sizeof acted.values[tile]);
}

INLINE void tile_read(int tile, const void *from, int64_t stride) {
    insist(acted.sizes.rows[tile]);
    memset(acted.values[tile], 0, sizeof acted.values[tile]);
    for (int row = 0; row < acted.sizes.rows[tile]; row++)
        memcpy(acted.values[tile][row], (const char *)from + row * stride, acted.sizes.bytes[tile]);
}

INLINE void tile_write(int tile, void *to, int64_t stride) {
    insist(acted.sizes.rows[tile]);
    for (int row = 0; row < acted.sizes.rows[tile]; row++)
        memcpy((char *)to + row * stride, acted.values[tile][row], acted.sizes.bytes[tile]);
}

/* sums += a (uint8) times b (int8), of which each four rows' values stand beside each other. */
INLINE void tile_products(int sums, int a, int b) {
    const TileSizes *s = &acted.sizes;
    insist(s->rows[sums] && s->rows[sums] == s->rows[a] && s->bytes[sums] == s->bytes[b]);
    insist(s->bytes[a] % 4 == 0 && s->bytes[b] % 4 == 0 && s->rows[b] == s->bytes[a] / 4);
    for (int row = 0; row < s->rows[sums]; row++)
        for (int n = 0; n < s->bytes[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, acted.values[sums][row] + 4 * n, 4);
            for (int k = 0; k < s->bytes[a]; k++)
                sum += acted.values[a][row][k] * (int8_t)acted.values[b][k / 4][4 * n + k % 4];
            memcpy(acted.values[sums][row] + 4 * n, &sum, 4);
        }
}

INLINE float from_bfloat16(const uint8_t *bytes) {
    uint32_t bits = (uint32_t)(bytes[0] | bytes[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* sums of float32 += a times b, both bfloat16, of which each two rows' values stand beside each other. */
INLINE void tile_float_products(int sums, int a, int b) {
    const TileSizes *s = &acted.sizes;
    insist(s->rows[sums] && s->rows[sums] == s->rows[a] && s->bytes[sums] == s->bytes[b]);
    insist(s->bytes[a] % 4 == 0 && s->bytes[b] % 4 == 0 && s->rows[b] == s->bytes[a] / 4);
    for (int row = 0; row < s->rows[sums]; row++)
        for (int n = 0; n < s->bytes[sums] / 4; n++) {
            float sum;
            memcpy(&sum, acted.values[sums][row] + 4 * n, 4);
            for (int k = 0; k < s->bytes[a] / 2; k++)
                sum += from_bfloat16(acted.values[a][row] + 2 * k) *
                       from_bfloat16(acted.values[b][k / 2] + 4 * n + 2 * (k % 2));
            memcpy(acted.values[sums][row] + 4 * n, &sum, 4);
        }
}

#else

/* Not by GCC's intrinsics: its tile_read does not say that it reads memory. A register's number has to
 * be a literal. */
#define AMX VNNI
#define TILE_NAME(tile) "%%tmm" #tile
#define tile_sizes(sizes) __asm__ volatile("ldtilecfg %0" ::"m"(*(sizes)) : "memory")
#define tile_release() __asm__ volatile("tilerelease" ::: "memory")
#define tile_zero(tile) __asm__ volatile("tilezero " TILE_NAME(tile)::: "memory")
#define tile_read(tile, from, stride)                                              \
    __asm__ volatile("tileloadd (%0,%1,1), " TILE_NAME(tile) ::"r"((const void *)(from)), \
                     "r"((int64_t)(stride))                                        \
                     : "memory")
#define tile_write(tile, to, stride)                                               \
    __asm__ volatile("tilestored " TILE_NAME(tile) ", (%0,%1,1)" ::"r"((void *)(to)), \
                     "r"((int64_t)(stride))                                        \
                     : "memory")
#define tile_products(sums, a, b)                                                  \
    __asm__ volatile("tdpbusd " TILE_NAME(b) ", " TILE_NAME(a) ", " TILE_NAME(sums) ::: "memory")
#define tile_float_products(sums, a, b)                                            \
    __asm__ volatile("tdpbf16ps " TILE_NAME(b) ", " TILE_NAME(a) ", " TILE_NAME(sums) ::: "memory")

#endif
#endif
#endif
