/* Vectors of eight floats, by loops that are compiled for each instruction set. */
#ifndef OCTAVO_FLOAT_VECTORS_H
#define OCTAVO_FLOAT_VECTORS_H

#include "octavo.h"
#include "rounding.h"

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
enum { WIDE = 8 };

INLINE float sum_of_lanes(const Eight *lanes) {
    float sum = 0;
    for (int i = 0; i < WIDE; i++) sum += (*lanes)[i];
    return sum;
}

#endif
