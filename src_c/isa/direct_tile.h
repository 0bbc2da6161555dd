/* The register tile of direct.c: S pixels are broadcast, V vectors of output channels lie in lanes.
 *
 *     totals[s][v] = (add ? totals[s][v] : 0) + sum over k of strip[offset[k] + s] * weights[k][v]
 *
 * Per k: S * V FMAs, S broadcasts and V loads. With AVX2 6 x 2 that is 6 cycles of FMA to 4 of loads (Zen 3), with
 * AVX-512 14 x 2 it is 14 to 8; 8 or more accumulators hide the latency. */
#ifndef DIRECT_TILE_H
#define DIRECT_TILE_H

#include "simd.h"

/* No tile has more than 14 pixels; all have registers for S x V accumulators, V vectors of weights and a broadcast. */
#define DIRECT_MAX_S 14
#define DIRECT_MAX_V 4
#define DIRECT_FITS(s, v) ((s) <= DIRECT_MAX_S && ((s) + 1) * (v) < VECTOR_REGISTERS)

typedef struct direct_operands {
    int64_t depth;
    const int64_t *offsets; /* [depth] */
    const real *strip;      /* of the tile's first pixel */
    const real *weights;    /* [depth][V vectors] */
    real *totals;           /* [S][V vectors] */
    int64_t totals_pitch;
    int add;
    int64_t fetch; /* bytes from the weights of every other term to a line that is to be in L2 later */
} direct_operands;

/* acc += one pixel per row times one term's weights. */
INLINE void direct_term(const int s, const int v, const real *pixel, const real *weights,
                        vec acc[DIRECT_MAX_S][DIRECT_MAX_V]) {
    vec w[DIRECT_MAX_V];
    UNROLL
    for (int j = 0; j < v; j++) w[j] = vec_load(weights + j * LANES);
    UNROLL
    for (int i = 0; i < s; i++) {
        const vec x = vec_splat(pixel[i]);
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] += x * w[j];
    }
}

INLINE void direct_tile(const int s, const int v, const direct_operands *o) {
    vec acc[DIRECT_MAX_S][DIRECT_MAX_V];
    UNROLL
    for (int i = 0; i < s; i++) {
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] = vec_zero();
    }
    const real *weights = o->weights, *strip = o->strip;
    const int64_t *offset = o->offsets, *end = offset + o->depth;
    const int64_t fetch = o->fetch;
    /* Two terms a turn, since pointer arithmetic takes issue slots from the FMAs. */
    for (; offset + 1 < end; offset += 2, weights += 2 * v * LANES) {
        __builtin_prefetch((const char *)weights + fetch, 0, 2);
        direct_term(s, v, strip + offset[0], weights, acc);
        direct_term(s, v, strip + offset[1], weights + v * LANES, acc);
    }
    if (offset < end) direct_term(s, v, strip + *offset, weights, acc);
    real *totals = o->totals;
    const int64_t pitch = o->totals_pitch;
    if (o->add) {
        UNROLL
        for (int i = 0; i < s; i++) {
            UNROLL
            for (int j = 0; j < v; j++) acc[i][j] += vec_load(totals + i * pitch + j * LANES);
        }
    }
    UNROLL
    for (int i = 0; i < s; i++) {
        UNROLL
        for (int j = 0; j < v; j++) vec_store(totals + i * pitch + j * LANES, acc[i][j]);
    }
}

/* A kernel for every tile whose accumulators fit; the others don't exist. */
#define DIRECT_CASE(s, v) \
    case 16 * v + s: \
        if (DIRECT_FITS(s, v)) direct_tile(DIRECT_FITS(s, v) ? s : 1, v, o); \
        break;
#define DIRECT_CASES_TO_7(v) \
    DIRECT_CASE(1, v) \
    DIRECT_CASE(2, v) \
    DIRECT_CASE(3, v) \
    DIRECT_CASE(4, v) \
    DIRECT_CASE(5, v) \
    DIRECT_CASE(6, v) \
    DIRECT_CASE(7, v)
#define DIRECT_CASES_TO_14(v) \
    DIRECT_CASES_TO_7(v) \
    DIRECT_CASE(8, v) \
    DIRECT_CASE(9, v) \
    DIRECT_CASE(10, v) \
    DIRECT_CASE(11, v) \
    DIRECT_CASE(12, v) \
    DIRECT_CASE(13, v) \
    DIRECT_CASE(14, v)

static void direct_tile_of(int64_t s, int64_t v, const direct_operands *o) {
    switch (16 * v + s) {
        DIRECT_CASES_TO_14(1)
        DIRECT_CASES_TO_14(2)
        DIRECT_CASES_TO_14(3)
        DIRECT_CASES_TO_7(4)
    }
}

#endif
