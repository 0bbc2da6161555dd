/* The register tile of direct.c: S pixels are broadcast, V vectors of output channels lie in lanes.
 *
 *     totals[s][v] = (add ? totals[s][v] : 0) + sum over terms k of strip[offset[k] + s] * weights[k][v]
 *
 * The terms are spans of a chain, so that those which meet padding alone are left out (direct_terms.h). Per term: S * V
 * FMAs, S broadcasts and V loads. With AVX2 6 x 2 that is 6 cycles of FMA to 4 of loads (Zen 3), with AVX-512 14 x 2 it
 * is 14 to 8; 8 or more accumulators hide the latency. */
#ifndef DIRECT_TILE_H
#define DIRECT_TILE_H

#include "simd.h"

/* Which pixels of a tile a term has: all but the first, all, all but the last. */
enum { BUT_FIRST, WHOLE, BUT_LAST, TERM_KINDS };

/* Terms [first, last). */
typedef struct term_span {
    int64_t first, last;
} term_span;

/* Spans of each kind, one after the other. No chain has more than 160 terms, which a span each would be. */
enum { TERM_SPANS = 160 };
typedef struct tile_terms {
    int64_t ends[TERM_KINDS];
    term_span spans[TERM_SPANS];
} tile_terms;

/* No tile has more than 14 pixels; all have registers for S x V accumulators, V vectors of weights and a broadcast. */
#define DIRECT_MAX_S 14
#define DIRECT_MAX_V 4
#define DIRECT_FITS(s, v) ((s) <= DIRECT_MAX_S && ((s) + 1) * (v) < VECTOR_REGISTERS)

typedef struct direct_operands {
    const tile_terms *terms;
    const int64_t *offsets; /* [term] */
    const real *strip;      /* of the tile's first pixel */
    const real *weights;    /* [term][V vectors] */
    real *totals;           /* [S][V vectors] */
    int64_t totals_pitch;
    int add;
    int64_t fetch; /* bytes from the weights of every other term to a line that is to be in L2 later */
} direct_operands;

/* acc += pixels [first, last) times one term's weights. */
INLINE void direct_term(const int first, const int last, const int v, const real *pixel, const real *weights,
                        vec acc[DIRECT_MAX_S][DIRECT_MAX_V]) {
    vec w[DIRECT_MAX_V];
    UNROLL
    for (int j = 0; j < v; j++) w[j] = vec_load(weights + j * LANES);
    UNROLL
    for (int i = first; i < last; i++) {
        const vec x = vec_splat(pixel[i]);
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] += x * w[j];
    }
}

/* The same of the terms of some spans, two a turn, since pointer arithmetic takes issue slots from the FMAs. */
INLINE void direct_spans(const int first, const int last, const int v, const direct_operands *o, int64_t from,
                         int64_t end, vec acc[DIRECT_MAX_S][DIRECT_MAX_V]) {
    const real *const strip = o->strip;
    const int64_t fetch = o->fetch;
    for (const term_span *span = o->terms->spans + from; span < o->terms->spans + end; span++) {
        const int64_t *offset = o->offsets + span->first, *const behind = o->offsets + span->last;
        const real *weights = o->weights + span->first * (v * LANES);
        for (; offset + 1 < behind; offset += 2, weights += 2 * v * LANES) {
            __builtin_prefetch((const char *)weights + fetch, 0, 2);
            direct_term(first, last, v, strip + offset[0], weights, acc);
            direct_term(first, last, v, strip + offset[1], weights + v * LANES, acc);
        }
        if (offset < behind) direct_term(first, last, v, strip + *offset, weights, acc);
    }
}

/* Tiles that leave few registers do without loops for the kinds, between which GCC 12 moves accumulators to the stack
 * (4 x 3 with AVX2: half the speed), and so do those that latency holds up: they multiply zeros. */
#define DIRECT_HAS_KINDS(s, v) (((s) - 1) * (v) > 8 && ((s) + 1) * (v) + 3 < VECTOR_REGISTERS)

INLINE void direct_tile(const int s, const int v, const direct_operands *o) {
    vec acc[DIRECT_MAX_S][DIRECT_MAX_V];
    UNROLL
    for (int i = 0; i < s; i++) {
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] = vec_zero();
    }
    const int64_t *const ends = o->terms->ends;
    if (DIRECT_HAS_KINDS(s, v)) {
        direct_spans(1, s, v, o, 0, ends[BUT_FIRST], acc);
        direct_spans(0, s, v, o, ends[BUT_FIRST], ends[WHOLE], acc);
        direct_spans(0, s - 1, v, o, ends[WHOLE], ends[BUT_LAST], acc);
    } else {
        direct_spans(0, s, v, o, 0, ends[BUT_LAST], acc);
    }
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
