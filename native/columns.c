/* Columns of a weight rounded one after the other, each error passed on to the columns behind it
 * (octavo/quantization/weights/gptq.py). A product is rounded before its sum, or not, as torch's
 * operators do it, so that the integers are the same. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include <math.h>
#include <string.h>

#include "octavo.h"
#include "rounding.h"

/* Of rows that lie side by side, in a strip of one group, or of groups of one row. */
typedef struct {
    int64_t first, group, count; /* of the rows, and of the group of the first of them */
} Lanes;

/* Values of some rows, and what stands in for the rest of a vector. */
INLINE void read_lanes(float to[LANES], const float *from, int64_t count, float rest) {
    for (int i = 0; i < LANES; i++) to[i] = i < count ? from[i] : rest;
}

/* What each lane's column behind takes back of an error. */
INLINE void read_shares(float to[LANES], const float *from, int64_t count, int own) {
    if (own) read_lanes(to, from, count, 0);
    for (int i = 0; i < LANES && !own; i++) to[i] = *from;
}

INLINE void round_lanes(const octavo_columns *c, int64_t start, int64_t stop, Lanes on) {
    float left[OCTAVO_MOST_COLUMNS][LANES];
    int64_t width = c->groups * c->rows;
    int own = c->rows == 1;
    for (int64_t at = start; at < stop; at++)
        read_lanes(left[at - start], c->left + at * width + on.first, on.count, 0);
    for (int64_t at = start; at < stop; at++) {
        int64_t place = at * width + on.first;
        float scale[LANES], zero_point[LANES], rounded[LANES], error[LANES];
        const float *column = left[at - start];
        read_lanes(scale, c->scales + place, on.count, 1);
        read_lanes(zero_point, c->zero_points + place, on.count, 0);
        for (int i = 0; i < LANES; i++) {
            float q = rintf(column[i] / scale[i]) + zero_point[i];
            q = q < c->lowest ? c->lowest : q;
            rounded[i] = q > c->highest ? c->highest : q;
            error[i] = column[i] - (rounded[i] - zero_point[i]) * scale[i];
        }
        memcpy(c->integers + place, rounded, (size_t)on.count * sizeof *rounded);
        memcpy(c->errors + place, error, (size_t)on.count * sizeof *error);
        for (int64_t behind = at + 1; behind < stop; behind++) {
            float share[LANES];
            const float *shares = c->shares + (at * c->columns + behind) * c->groups + on.group;
            read_shares(share, shares, on.count, own);
            float *to = left[behind - start];
            for (int i = 0; i < LANES; i++) to[i] = fmaf(-share[i], error[i], to[i]);
        }
    }
}

static void round_portable(const octavo_columns *c, int64_t start, int64_t stop, Lanes on) {
    round_lanes(c, start, stop, on);
}
#if defined(__x86_64__)
AVX2 static void round_avx2(const octavo_columns *c, int64_t start, int64_t stop, Lanes on) {
    round_lanes(c, start, stop, on);
}
VNNI static void round_avx512(const octavo_columns *c, int64_t start, int64_t stop, Lanes on) {
    round_lanes(c, start, stop, on);
}
#endif

void octavo_round_columns(const octavo_columns *c, int64_t start, int64_t stop) {
    int64_t strips = c->rows == 1 ? 1 : c->groups, length = c->rows == 1 ? c->groups : c->rows;
    for (int64_t strip = 0; strip < strips; strip++)
        for (int64_t from = 0; from < length; from += LANES) {
            int64_t count = length - from < LANES ? length - from : LANES;
            Lanes on = {strip * length + from, c->rows == 1 ? from : strip, count};
#if defined(__x86_64__)
            if (octavo_isa() >= OCTAVO_AVX512_VNNI) round_avx512(c, start, stop, on);
            else if (octavo_isa() >= OCTAVO_AVX2) round_avx2(c, start, stop, on);
            else
#endif
                round_portable(c, start, stop, on);
        }
}
