/* Convolutions of which each channel has a window of its own. */
#include "epilogue.h"
#include "octavo.h"
#include "windows.h"

/* ---- every CPU ---- */

INLINE void block_plain(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const int8_t *weights,
    int64_t channel) {
    int64_t count = least(BLOCK, c->out.channels - channel);
    for (int64_t pixel = 0; pixel < tile->pixels; pixel++) {
        int32_t sums[BLOCK] = {0};
        const uint8_t *window = (const uint8_t *)tile->x + pixel * w->pixel;
        for (int64_t ky = 0; ky < w->runs_y; ky++)
            for (int64_t kx = 0; kx < w->runs_x; kx++) {
                const uint8_t *tap = window + ky * w->step_y + kx * w->step_x;
                for (int64_t n = 0; n < count; n++)
                    sums[n] += tap[n] * weights[depthwise_place(
                                            c->kernel_width, channel % DEPTHWISE + n, ky, kx)];
            }
        for (int64_t n = 0; n < count; n++) sums[n] -= c->in_zero_point * c->weight_sums[channel + n];
        finish(
            &c->epilogue, sums, channel, count, tile->result + pixel * c->out.channels + channel,
            c->at.y);
    }
}

static void block_portable(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const int8_t *weights,
    int64_t channel) {
    block_plain(c, w, tile, weights, channel);
}

INLINE void blocks_of_unit(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t unit,
    void (*make)(
        const octavo_convolution *, const Windows *, const Tile *, const int8_t *, int64_t)) {
    int64_t last = least((unit + 1) * DEPTHWISE, c->out.channels);
    for (int64_t channel = unit * DEPTHWISE; channel < last; channel += BLOCK)
        FOR_TILES(tile, channel) make(c, w, &tile, c->weights + unit * w->unit_bytes, channel);
}

static void tiles_portable(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    (void)group;
    blocks_of_unit(c, w, band, unit, block_portable);
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

INLINE AVX2 __m128i load16(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }

AVX2 static void block_avx2(
    const octavo_convolution *c, const Windows *w, const Tile *tile, const int8_t *weights,
    int64_t channel) {
    if (channel + BLOCK > c->out.channels) {
        block_plain(c, w, tile, weights, channel);
        return;
    }
    int32_t sums[BLOCK];
    Prepared prepared;
    prepare(&prepared, c, channel, BLOCK);
    int64_t bytes = w->unit_bytes;
    weights += channel % DEPTHWISE;
    const uint8_t *x = (const uint8_t *)tile->x;
    int64_t at = tile->result + channel;
    for (int64_t p = 0; p < tile->pixels; p++, x += w->pixel, at += c->out.channels) {
        __m256i own[4];
        UNROLL for (int i = 0; i < 4; i++) own[i] = _mm256_setzero_si256();
        for (int64_t four = 0; four < bytes / 256; four++) {
            const int64_t *taps = w->taps[four];
            __m128i one = load16(x + taps[0]), two = load16(x + taps[1]);
            __m128i three = load16(x + taps[2]), last = load16(x + taps[3]);
            __m128i a = _mm_unpacklo_epi8(one, two), b = _mm_unpackhi_epi8(one, two);
            __m128i d = _mm_unpacklo_epi8(three, last), e = _mm_unpackhi_epi8(three, last);
            __m128i side[4] = {
                _mm_unpacklo_epi16(a, d), _mm_unpackhi_epi16(a, d), _mm_unpacklo_epi16(b, e),
                _mm_unpackhi_epi16(b, e)};
            UNROLL for (int i = 0; i < 4; i++) {
                const __m128i *of_four = (const __m128i *)(weights + (four * 4 + i) * 64);
                own[i] = _mm256_add_epi32(
                    own[i], _mm256_madd_epi16(
                                _mm256_cvtepu8_epi16(side[i]),
                                _mm256_cvtepi8_epi16(_mm_loadu_si128(of_four))));
            }
        }
        store_pairs(own, prepared.first, sums);
        finish_avx2(&c->epilogue, &prepared, sums, at, c->at.y);
    }
}

AVX2 static void tiles_avx2(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    (void)group;
    blocks_of_unit(c, w, band, unit, block_avx2);
}

/* ---- AVX512 with VNNI ---- */

/* Four registers of 16 channels as four whose lane i holds four channels of the i-th: what unpacking
 * of bytes makes, and back. */
INLINE VNNI void turn(__m512i r[4]) {
    __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x44), b = _mm512_shuffle_i32x4(r[0], r[1], 0xee);
    __m512i c = _mm512_shuffle_i32x4(r[2], r[3], 0x44), d = _mm512_shuffle_i32x4(r[2], r[3], 0xee);
    r[0] = _mm512_shuffle_i32x4(a, c, 0x88), r[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[2] = _mm512_shuffle_i32x4(b, d, 0x88), r[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* What is the same for all pixels of 64 channels, of which the mask has those that there are; as
 * unpacking of bytes leaves them. */
typedef struct {
    __mmask64 mask;
    __m512i first[4];
    __m512 scales[4], bias[4];
    Prepared512 common;
    Ending ending;
} Channels512;

INLINE VNNI void prepare_channels(Channels512 *known, const octavo_convolution *c, int64_t channel) {
    int64_t count = c->out.channels - channel;
    known->mask = count < DEPTHWISE ? ((__mmask64)1 << count) - 1 : ~(__mmask64)0;
    UNROLL for (int i = 0; i < 4; i++) {
        Prepared p;
        int64_t at = i * BLOCK;
        prepare(&p, c, channel + at, count > at ? least(BLOCK, count - at) : 0);
        known->first[i] = _mm512_loadu_si512(p.first);
        known->scales[i] = _mm512_loadu_ps(p.scales), known->bias[i] = _mm512_loadu_ps(p.bias);
        known->common = in_registers(&c->epilogue, &p);
        known->ending = !i || p.ending == known->ending ? p.ending : CUT; /* one is BARE */
    }
    turn(known->first), turn((__m512i *)known->scales), turn((__m512i *)known->bias);
}

/* Each of four taps' 64 bytes, side by side: lane by lane four channels of all taps. */
INLINE VNNI void unpack_taps(const __m512i tap[4], __m512i fours[4]) {
    __m512i a = _mm512_unpacklo_epi8(tap[0], tap[1]), b = _mm512_unpackhi_epi8(tap[0], tap[1]);
    __m512i c = _mm512_unpacklo_epi8(tap[2], tap[3]), d = _mm512_unpackhi_epi8(tap[2], tap[3]);
    fours[0] = _mm512_unpacklo_epi16(a, c), fours[1] = _mm512_unpackhi_epi16(a, c);
    fours[2] = _mm512_unpacklo_epi16(b, d), fours[3] = _mm512_unpackhi_epi16(b, d);
}

/* 64 bytes, or those that the mask has. */
INLINE VNNI __m512i load(const uint8_t *from, __mmask64 mask, const int whole) {
    return whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(mask, from);
}

/* Stores with a mask are slow: only the last bytes get one. */
INLINE VNNI void store(uint8_t *to, __m512i bytes, __mmask64 mask, const int whole) {
    if (whole) {
        _mm512_storeu_si512(to, bytes);
        return;
    }
    if ((mask & 0xffffffff) == 0xffffffff) {
        _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(bytes));
        bytes = _mm512_shuffle_i32x4(bytes, bytes, 0x4e);
        mask >>= 32, to += 32;
    }
    for (; mask; mask >>= 16, to += 16) {
        if ((mask & 0xffff) == 0xffff)
            _mm_storeu_si128((__m128i *)to, _mm512_castsi512_si128(bytes));
        else
            _mm_mask_storeu_epi8(to, (__mmask16)mask, _mm512_castsi512_si128(bytes));
        bytes = _mm512_shuffle_i32x4(bytes, bytes, 0x39);
    }
}

INLINE VNNI void store_bytes(
    const octavo_convolution *c, const Channels512 *known, const __m512i sums[4], int64_t at,
    const int whole, const Ending ending) {
    const octavo_epilogue *e = &c->epilogue;
    __m512i zero = _mm512_setzero_si512(), fours[4] = {zero, zero, zero, zero}, steps[4];
    if (ending == ADDED) {
        __m512i taps[4] = {load((const uint8_t *)e->addend + at, known->mask, whole), zero, zero, zero};
        unpack_taps(taps, fours);
    }
    Prepared512 prepared = known->common;
    UNROLL for (int i = 0; i < 4; i++) {
        prepared.scales = known->scales[i], prepared.bias = known->bias[i];
        steps[i] = in_steps(sums[i], fours[i], &prepared, ending);
    }
    store((uint8_t *)c->at.y + at, in_bytes(steps, &prepared, ending), known->mask, whole);
}

/* What is the same for all pixels of a unit; distances of two windows, and of two results. */
typedef struct {
    const octavo_convolution *c;
    const Windows *w;
    const int8_t *weights;
    int64_t channel, pixel, result;
    Channels512 known;
} Unit512;

INLINE VNNI void add_products(__m512i sums[4], const __m512i fours[4], const int8_t *weights) {
    UNROLL for (int i = 0; i < 4; i++)
        sums[i] = _mm512_dpbusd_epi32(sums[i], fours[i], _mm512_loadu_si512(weights + i * 64));
}

INLINE VNNI void store_any(const Unit512 *unit, __m512i sums[4], int64_t at) {
    int32_t lanes[DEPTHWISE];
    turn(sums);
    UNROLL for (int i = 0; i < 4; i++) _mm512_storeu_si512(lanes + i * BLOCK, sums[i]);
    Runs runs = {unit->channel, BLOCK, unit->c->out.channels, at, BLOCK};
    finish_runs_vnni(&unit->c->epilogue, lanes, DEPTHWISE / BLOCK, &runs, unit->c->at.y);
}

/* Endings that sums go through memory for, so that kernels are compiled once for all of them. */
VNNI static __attribute__((noinline)) void store_others(
    const Unit512 *unit, __m512i (*sums)[4], int64_t pixels, int64_t at) {
    const Channels512 *known = &unit->known;
    for (int64_t p = 0; p < pixels; p++, at += unit->result)
        switch (known->ending) {
        case CUT: store_bytes(unit->c, known, sums[p], at, 0, CUT); break;
        case ADDED: store_bytes(unit->c, known, sums[p], at, 0, ADDED); break;
        case SILU: store_bytes(unit->c, known, sums[p], at, 0, SILU); break;
        case HARDSWISH: store_bytes(unit->c, known, sums[p], at, 0, HARDSWISH); break;
        default: store_any(unit, sums[p], at);
        }
}

INLINE VNNI void store_sums(
    const Unit512 *unit, __m512i (*sums)[4], const int pixels, int64_t at, const int whole,
    const Ending ending) {
    if (ending == ANY_ENDING)
        store_others(unit, sums, pixels, at);
    else
        UNROLL for (int p = 0; p < pixels; p++)
            store_bytes(unit->c, &unit->known, sums[p], at + p * unit->result, whole, ending);
}

INLINE VNNI void load_four(
    __m512i fours[4], const uint8_t *x, const int64_t taps[4], __mmask64 mask, const int whole) {
    __m512i tap[4];
    UNROLL for (int i = 0; i < 4; i++) tap[i] = load(x + taps[i], mask, whole);
    unpack_taps(tap, fours);
}

/* One pixel of any window. */
INLINE VNNI void one_pixel(
    const Unit512 *unit, const uint8_t *x, int64_t at, const int whole, const Ending ending) {
    __m512i sums[4];
    UNROLL for (int i = 0; i < 4; i++) sums[i] = unit->known.first[i];
    for (int64_t four = 0; four < unit->w->unit_bytes / 256; four++) {
        __m512i fours[4];
        load_four(fours, x, unit->w->taps[four], unit->known.mask, whole);
        add_products(sums, fours, unit->weights + four * 256);
    }
    store_sums(unit, &sums, 1, at, whole, ending);
}

enum { FOUR_PIXELS = 4 };

/* Four pixels, of windows so wide and so far from each other: a column of the input is read once. */
INLINE VNNI void four_pixels(
    const Unit512 *unit, const uint8_t *x, int64_t at, const int whole, const Ending ending,
    const int width, const int stride) {
    const octavo_convolution *c = unit->c;
    const int8_t *weights = unit->weights;
    __m512i sums[FOUR_PIXELS][4];
    UNROLL for (int p = 0; p < FOUR_PIXELS; p++)
        UNROLL for (int i = 0; i < 4; i++) sums[p][i] = unit->known.first[i];
    for (int64_t y = 0; y < c->kernel_height; y += 4, weights += width * 256) {
        const int64_t *taps = unit->w->taps[y / 4 * width];
        UNROLL for (int column = 0; column < (FOUR_PIXELS - 1) * stride + width; column++) {
            __m512i fours[4];
            load_four(fours, x + column * c->in.channels, taps, unit->known.mask, whole);
            UNROLL for (int p = 0; p < FOUR_PIXELS; p++)
                if (column >= p * stride && column < p * stride + width)
                    add_products(sums[p], fours, weights + (column - p * stride) * 256);
        }
    }
    store_sums(unit, sums, FOUR_PIXELS, at, whole, ending);
}

/* Pixels beside each other. */
INLINE VNNI void pixels_of(
    const Unit512 *unit, const uint8_t *x, int64_t at, int64_t pixels, const int whole,
    const Ending ending, const int width, const int stride) {
    int64_t p = 0;
    for (; width && p + FOUR_PIXELS <= pixels; p += FOUR_PIXELS)
        four_pixels(
            unit, x + p * unit->pixel, at + p * unit->result, whole, ending, width, stride);
    for (; p < pixels; p++)
        one_pixel(unit, x + p * unit->pixel, at + p * unit->result, whole, ending);
}

/* All tiles of a unit; windows of width 0 may be of any shape. */
INLINE VNNI void pixels_vnni(
    const Unit512 *unit, const Band *band, const int whole, const Ending ending, const int width,
    const int stride) {
    const octavo_convolution *c = unit->c;
    const Windows *w = unit->w;
    FOR_TILES(tile, unit->channel) {
        int64_t at = tile.result + unit->channel;
        pixels_of(unit, (const uint8_t *)tile.x, at, tile.pixels, whole, ending, width, stride);
    }
}

#define PIXELS_VNNI(WIDTH, STRIDE)                                                           \
    VNNI static void pixels_vnni_##WIDTH##_##STRIDE(const Unit512 *unit, const Band *band) { \
        int whole = !~unit->known.mask;                                                      \
        Ending ending = unit->known.ending;                                                  \
        if (whole && ending == BARE)                                                      \
            pixels_vnni(unit, band, 1, BARE, WIDTH, STRIDE);                                 \
        else if (ending == BARE)                                                          \
            pixels_vnni(unit, band, 0, BARE, WIDTH, STRIDE);                                 \
        else if (ending == CUT)                                                       \
            pixels_vnni(unit, band, 0, CUT, WIDTH, STRIDE);                                  \
        else                                                                                 \
            pixels_vnni(unit, band, 0, ANY_ENDING, WIDTH, STRIDE);                           \
    }

PIXELS_VNNI(0, 0)
PIXELS_VNNI(3, 1)
PIXELS_VNNI(3, 2)
PIXELS_VNNI(5, 1)
PIXELS_VNNI(5, 2)

/* ---- few channels: pixels beside each other fill a register ---- */

enum { MOST_FOLDED_FOURS = 3 };

/* Sixteen channels four times, or thirty-two twice. */
INLINE VNNI __m512i repeated(__m512i channels, const int times) {
    return times == 4 ? _mm512_shuffle_i32x4(channels, channels, 0x00)
                      : _mm512_shuffle_i32x4(channels, channels, 0x44);
}

/* So many neighbours' windows of width 3 and stride 1 are one window of all their channels, and the next
 * one of these is as many columns away. */
INLINE VNNI void pixels_folded(
    const Unit512 *unit, const Band *band, const int times, const Ending ending) {
    const octavo_convolution *c = unit->c;
    const Windows *w = unit->w;
    int8_t weights[MOST_FOLDED_FOURS * 256] __attribute__((aligned(64)));
    Unit512 folded = *unit;
    folded.known.mask = ~(__mmask64)0;
    folded.weights = weights, folded.pixel = times * unit->pixel, folded.result = times * unit->result;
    for (int64_t i = 0; i < w->unit_bytes; i += 64)
        _mm512_store_si512(weights + i, repeated(_mm512_loadu_si512(unit->weights + i), times));
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i scales = _mm512_castps_si512(unit->known.scales[i]);
        __m512i bias = _mm512_castps_si512(unit->known.bias[i]);
        folded.known.first[i] = repeated(unit->known.first[i], times);
        folded.known.scales[i] = _mm512_castsi512_ps(repeated(scales, times));
        folded.known.bias[i] = _mm512_castsi512_ps(repeated(bias, times));
    }
    FOR_TILES(tile, 0) {
        const uint8_t *x = (const uint8_t *)tile.x;
        int64_t groups = tile.pixels / times, done = groups * times;
        pixels_of(&folded, x, tile.result, groups, 1, ending, 3, times);
        for (; done < tile.pixels; done++)
            one_pixel(unit, x + done * unit->pixel, tile.result + done * unit->result, 0, ending);
    }
}

#define PIXELS_FOLDED(TIMES)                                                                 \
    VNNI static void pixels_folded_##TIMES(const Unit512 *unit, const Band *band) {          \
        if (unit->known.ending == BARE)                                                      \
            pixels_folded(unit, band, TIMES, BARE);                                          \
        else                                                                                 \
            pixels_folded(unit, band, TIMES, ANY_ENDING);                                    \
    }

PIXELS_FOLDED(2)
PIXELS_FOLDED(4)

/* ---- all of them ---- */

VNNI static void tiles_vnni(
    const octavo_convolution *c, const Windows *w, const Band *band, int64_t group, int64_t unit) {
    (void)group;
    Unit512 of = {c, w, c->weights + unit * w->unit_bytes, unit * DEPTHWISE, w->pixel, c->out.channels, {0}};
    prepare_channels(&of.known, c, of.channel);
    int near = c->dilation_x == 1 && c->stride_x <= 2, kind = c->kernel_width * 10 + c->stride_x;
    int folds = near && kind == 31 && fours_of(c) <= MOST_FOLDED_FOURS && of.known.ending != ANY_ENDING;
    if (folds && c->out.channels == 32)
        pixels_folded_2(&of, band);
    else if (folds && c->out.channels == 16)
        pixels_folded_4(&of, band);
    else
        switch (near ? kind : 0) {
        case 31: pixels_vnni_3_1(&of, band); break;
        case 32: pixels_vnni_3_2(&of, band); break;
        case 51: pixels_vnni_5_1(&of, band); break;
        case 52: pixels_vnni_5_2(&of, band); break;
        default: pixels_vnni_0_0(&of, band);
        }
}

#endif

/* ---- which of them ---- */

octavo_tiles octavo_depthwise_tiles(int64_t fours) {
    switch (fours > MOST_FOURS ? OCTAVO_PORTABLE : octavo_isa()) {
#if defined(__x86_64__)
    case OCTAVO_AVX512_VNNI: return tiles_vnni;
    case OCTAVO_AVX2: return tiles_avx2;
#endif
    default: return tiles_portable;
    }
}
