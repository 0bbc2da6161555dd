/* The register tile of direct.c with pixels in lanes: channels are broadcast. For channels that would leave lanes
 * empty, and for sums of few terms, since what it computes need not be transposed.
 *
 *     to[r][pixel] = (add ? to[r][pixel] : 0) + sum over terms k of strip[offset[k] + pixel] * weights[k][r]
 *
 * Per term: R * V FMAs, V loads of pixels that are neighbours in the strip and R broadcasts: with AVX2 4 x 3, 6 cycles
 * of FMA to 4 of loads (Zen 3), with AVX-512 8 x 3. Tails: a row's last vectors overlap those before where they are
 * stored in y; else they read what lies behind the row in the strip, into totals that nothing reads. */
#ifndef DIRECT_PIXELS_H
#define DIRECT_PIXELS_H

#include "activation.h"
#include "direct_tile.h"

/* Channels of a tile where there are many, and at most where there are few, whose vectors are as many as fit. */
#define PIXELS_R (VECTOR_REGISTERS == 16 ? 4 : 8)
#define PIXELS_MAX_R (VECTOR_REGISTERS == 16 ? 6 : 8)
#define PIXELS_MAX_V 7
#define PIXELS_FITS(r, v) ((r) <= PIXELS_MAX_R && ((r) + 1) * (v) < VECTOR_REGISTERS)

typedef struct pixels_operands {
    const tile_terms *terms;
    const int64_t *offsets; /* [term] */
    const real *strip;      /* of the first pixel */
    const real *weights;    /* [term][R] */
    real *to;               /* totals or y */
    int64_t channel;        /* from one channel to the next of them */
    int add, finish;        /* finish: the bias is added, the sum clamped */
    const real *bias;       /* of the first channel, or NULL */
    int clamped;
    real low, high;
} pixels_operands;

/* acc += one term's pixels times its weights. */
INLINE void pixels_term(const int r, const int v, const real *strip, const real *weights,
                        vec acc[PIXELS_MAX_R][PIXELS_MAX_V]) {
    vec x[PIXELS_MAX_V];
    UNROLL
    for (int j = 0; j < v; j++) x[j] = vec_load(strip + j * LANES);
    UNROLL
    for (int i = 0; i < r; i++) {
        const vec w = vec_splat(weights[i]);
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] += x[j] * w;
    }
}

INLINE void pixels_tile(const int r, const int v, const pixels_operands *o) {
    vec acc[PIXELS_MAX_R][PIXELS_MAX_V];
    UNROLL
    for (int i = 0; i < r; i++) {
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] = vec_zero();
    }
    for (const term_span *span = o->terms->spans; span < o->terms->spans + o->terms->ends[BUT_LAST]; span++) {
        const int64_t *offset = o->offsets + span->first, *const end = o->offsets + span->last;
        const real *weights = o->weights + span->first * r;
        for (; offset < end; offset++, weights += r) pixels_term(r, v, o->strip + *offset, weights, acc);
    }
    real *to = o->to;
    const int64_t channel = o->channel;
    const int add = o->add, clamped = o->clamped; /* y may be anything, for all the compiler knows */
    const real low = o->low, high = o->high, *const bias = o->bias;
    UNROLL
    for (int i = 0; i < r; i++, to += channel) {
        const vec first = bias ? vec_splat(bias[i]) : vec_zero();
        UNROLL
        for (int j = 0; j < v; j++) {
            vec sum = acc[i][j] + (add ? vec_load(to + j * LANES) : first);
            if (clamped) sum = vec_clamp(sum, low, high);
            vec_store(to + j * LANES, sum);
        }
    }
}

/* A kernel for every tile whose accumulators fit; the others don't exist. */
#define PIXELS_CASE(r, v) \
    case 8 * r + v: \
        if (PIXELS_FITS(r, v)) pixels_tile(PIXELS_FITS(r, v) ? r : 1, PIXELS_FITS(r, v) ? v : 1, o); \
        break;
#define PIXELS_CASES(r) \
    PIXELS_CASE(r, 1) \
    PIXELS_CASE(r, 2) PIXELS_CASE(r, 3) PIXELS_CASE(r, 4) PIXELS_CASE(r, 5) PIXELS_CASE(r, 6) PIXELS_CASE(r, 7)

static void pixels_tile_of(int64_t r, int64_t v, const pixels_operands *o) {
    switch (8 * r + v) {
        PIXELS_CASES(1)
        PIXELS_CASES(2)
        PIXELS_CASES(3)
        PIXELS_CASES(4)
        PIXELS_CASES(5)
        PIXELS_CASES(6)
        PIXELS_CASES(7)
        PIXELS_CASES(8)
    }
}

/* Channels of a tile of so many channels in all, and its vectors at most. */
INLINE int64_t pixels_channels(int64_t channels) { return channels <= PIXELS_MAX_R ? channels : PIXELS_R; }

INLINE int64_t pixels_vectors(int64_t channels) {
    return min_i64((VECTOR_REGISTERS - 1) / (pixels_channels(channels) + 1), PIXELS_MAX_V);
}

/* A row in whole vectors. */
INLINE int64_t pixels_pitch(int64_t cols) { return ceil_div(cols, LANES) * LANES; }

/* A row of pixels; weights are [channels / R][depth][R]. */
typedef struct pixels_block {
    int64_t r, most; /* R, and vectors of a tile at most */
    int64_t piece;   /* columns whose pixels stay in L1 for all channels */
    int64_t channels, depth, cols;
} pixels_block;

/* Tiles of R channels, as even as they can be. o: of the row's first pixel; columns [first, last). */
static void pixels_tiles(const pixels_operands *o, const pixels_block *b, int64_t r, int64_t first, int64_t last) {
    const int64_t vectors = ceil_div(last - first, LANES), tiles = ceil_div(vectors, b->most);
    const int64_t size = vectors / tiles, larger = vectors % tiles;
    pixels_operands one = *o;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t v = size + (tile < larger), at = o->finish ? min_i64(first, b->cols - v * LANES) : first;
        one.strip = o->strip + at;
        one.to = o->to + at;
        pixels_tile_of(r, v, &one);
        first += v * LANES;
    }
}

/* All tiles of a row. o: of the first pixel, channel and term. */
static void pixels_row(const pixels_operands *o, const pixels_block *b) {
    pixels_operands one = *o;
    for (int64_t first = 0; first < b->cols; first += b->piece)
        for (int64_t m = 0; m < b->channels; m += b->r) {
            const int64_t r = min_i64(b->r, b->channels - m);
            one.weights = o->weights + m * b->depth;
            one.to = o->to + m * o->channel;
            one.bias = o->bias ? o->bias + m : NULL;
            pixels_tiles(&one, b, r, first, min_i64(first + b->piece, b->cols));
        }
}

/* Whether the tiles of a row can overlap instead of going beyond it. */
INLINE int pixels_fit(int64_t cols, int64_t channels) {
    return cols % LANES == 0 || ceil_div(cols, LANES) > pixels_vectors(channels);
}

#endif
