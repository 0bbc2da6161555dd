/* The few channels that direct.c's vectors would leave lanes empty for: pixels in lanes, channels are broadcast.
 *
 *     totals[r][pixel] = (add ? totals[r][pixel] : 0) + sum over k of strip[offset[k] + pixel] * weights[k][r]
 *
 * Per k: R * V FMAs, V loads of pixels that are neighbours in the strip and R broadcasts. With AVX2 the 33rd channel of
 * a row of 49 pixels takes 7 FMAs and 8 loads, 4 cycles, instead of 49 FMAs. A row's last vector reads what lies behind
 * it in the strip, into lanes that nothing stores. Every sum is the same as in direct_tile.h, in the same order. */
#ifndef DIRECT_REST_H
#define DIRECT_REST_H

#include "direct_tile.h"

/* Channels and vectors of a tile whose accumulators fit beside the pixels and a weight. One channel less than a vector
 * is no cheaper here. */
#define REST_MAX_R (LANES == 2 ? 1 : LANES < 10 ? LANES - 2 : 8)
#define REST_MAX_V 7
#define REST_FITS(r, v) ((r) <= REST_MAX_R && ((r) + 1) * (v) < VECTOR_REGISTERS)

INLINE int64_t rest_most_vectors(int64_t r) { return min_i64((VECTOR_REGISTERS - 1) / (r + 1), REST_MAX_V); }

INLINE void rest_tile(const int r, const int v, const direct_operands *o) {
    vec acc[REST_MAX_R][REST_MAX_V];
    UNROLL
    for (int i = 0; i < r; i++) {
        UNROLL
        for (int j = 0; j < v; j++) acc[i][j] = vec_zero();
    }
    const real *weights = o->weights;
    for (int64_t k = 0; k < o->depth; k++, weights += r) {
        const real *pixels = o->strip + o->offsets[k];
        vec x[REST_MAX_V];
        UNROLL
        for (int j = 0; j < v; j++) x[j] = vec_load(pixels + j * LANES);
        UNROLL
        for (int i = 0; i < r; i++) {
            const vec w = vec_splat(weights[i]);
            UNROLL
            for (int j = 0; j < v; j++) acc[i][j] += x[j] * w;
        }
    }
    UNROLL
    for (int i = 0; i < r; i++) {
        real *totals = o->totals + i * o->totals_pitch;
        UNROLL
        for (int j = 0; j < v; j++)
            vec_store(totals + j * LANES, o->add ? acc[i][j] + vec_load(totals + j * LANES) : acc[i][j]);
    }
}

#define REST_CASE(r, v) \
    case 8 * r + v: \
        if (REST_FITS(r, v)) rest_tile(REST_FITS(r, v) ? r : 1, REST_FITS(r, v) ? v : 1, o); \
        break;
#define REST_CASES(r) \
    REST_CASE(r, 1) \
    REST_CASE(r, 2) REST_CASE(r, 3) REST_CASE(r, 4) REST_CASE(r, 5) REST_CASE(r, 6) REST_CASE(r, 7)

static void rest_tile_of(int64_t r, int64_t v, const direct_operands *o) {
    switch (8 * r + v) {
        REST_CASES(1)
        REST_CASES(2)
        REST_CASES(3)
        REST_CASES(4)
        REST_CASES(5)
        REST_CASES(6)
        REST_CASES(7)
        REST_CASES(8)
    }
}

/* Half cycles that a row takes per term, as panel_cost of direct.c counts them. */
INLINE int64_t rest_cost(int64_t row, int64_t r) {
    const int64_t vectors = ceil_div(row, LANES), tiles = ceil_div(vectors, rest_most_vectors(r));
    return max_i64(max_i64(r * vectors, r * tiles + vectors), 8 * tiles);
}

/* Totals of a row, in whole vectors. */
INLINE int64_t rest_pitch(int64_t cols) { return ceil_div(cols, LANES) * LANES; }

/* totals[r][rows][rest_pitch] += strip * weights for one chain. o: its terms, the strip's first pixel, and totals. */
static void rest_panel(direct_operands o, int64_t r, int64_t rows, int64_t cols, int64_t row_step) {
    const int64_t vectors = ceil_div(cols, LANES), tiles = ceil_div(vectors, rest_most_vectors(r));
    const int64_t size = vectors / tiles, larger = vectors % tiles;
    const real *strip = o.strip;
    o.totals_pitch = rows * vectors * LANES;
    for (int64_t row = 0; row < rows; row++, strip += row_step) {
        o.strip = strip;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t v = size + (tile < larger);
            rest_tile_of(r, v, &o);
            o.strip += v * LANES;
            o.totals += v * LANES;
        }
    }
}

#endif
