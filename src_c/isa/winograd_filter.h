/* Filters as Winograd's algorithm multiplies them: U = G w G^T, with the matrix G of winograd_transform.h.
 *
 * for each LANES input channels:
 *   for each vector of output channels: their weights, contiguous for one filter -> f[weights][LANES filters]
 *   for each input channel, for each vector of doubles: G w, then (G w) G^T, then the denominators, rounded into u
 *
 * Tails: the last LANES input channels overlap the ones before; filters that don't exist are zeros. A filter of floats
 * takes 14 ns up to 128 x 128 channels and 25 where U is larger than L3's share (Zen 3, AVX2), 7 and 8 on
 * Zen 5. */
#ifndef WINOGRAD_FILTER_H
#define WINOGRAD_FILTER_H

#include "winograd_transform.h"

/* A vector of doubles, and what it is in memory. */
typedef double wide __attribute__((vector_size(VECTOR_BYTES)));
#define WIDE_LANES ((int64_t)(VECTOR_BYTES / sizeof(double)))
typedef real narrow __attribute__((vector_size(VECTOR_BYTES / sizeof(double) * sizeof(real)), aligned(1), may_alias));

/* u = G g without the denominators. */
INLINE void winograd_filter_1d(const wide g[3], wide u[6]) {
    const double a = POINT_A, b = POINT_B;
    const wide even_a = g[0] + a * a * g[2], even_b = g[0] + b * b * g[2];
    u[0] = g[0];
    u[1] = even_a + a * g[1];
    u[2] = even_a - a * g[1];
    u[3] = even_b + b * g[1];
    u[4] = even_b - b * g[1];
    u[5] = g[2];
}

/* Row i of G is divided by this. */
INLINE double winograd_denominator(const int i) {
    const double a2 = A2, b2 = B2, n_a = 2 * a2 * (a2 - b2), n_b = 2 * b2 * (b2 - a2);
    return i == 0 ? a2 * b2 : i == 5 ? 1 : i < 3 ? n_a : n_b;
}

/* Denominators are exact and divide last, so that a weight is rounded once: a reciprocal's error would be the same in
 * all channels and add up. The product with the reciprocal is right where doubles become floats; among doubles it takes
 * one step of Newton. */
INLINE void winograd_divide(wide v, const double n, real *u) {
    const double reciprocal = 1 / n;
    wide q = v * reciprocal;
    if (sizeof(real) == sizeof(double)) q += (v - q * n) * reciprocal;
    *(narrow *)u = __builtin_convertvector(q, narrow);
}

/* u[36][element] of one input channel and WIDE_LANES filters. f: their weights, LANES apart. */
INLINE void winograd_filter(const real *f, real *u, int64_t element) {
    wide t[6][3], v[6];
    UNROLL
    for (int j = 0; j < 3; j++) {
        wide g[3];
        UNROLL
        for (int i = 0; i < 3; i++) g[i] = __builtin_convertvector(*(const narrow *)(f + (3 * i + j) * LANES), wide);
        winograd_filter_1d(g, v);
        UNROLL
        for (int i = 0; i < 6; i++) t[i][j] = v[i];
    }
    UNROLL
    for (int i = 0; i < 6; i++) {
        winograd_filter_1d(t[i], v);
        UNROLL
        for (int j = 0; j < 6; j++)
            winograd_divide(v[j], winograd_denominator(i) * winograd_denominator(j), u + (6 * i + j) * element);
    }
}

/* The same for the 3 weights of a line and u[6][element]. */
INLINE void winograd_filter_line(const real *f, real *u, int64_t element) {
    wide g[3], v[6];
    UNROLL
    for (int i = 0; i < 3; i++) g[i] = __builtin_convertvector(*(const narrow *)(f + i * LANES), wide);
    winograd_filter_1d(g, v);
    UNROLL
    for (int i = 0; i < 6; i++) winograd_divide(v[i], winograd_denominator(i), u + i * element);
}

/* f[count][LANES]: the first `count` weights, whole vectors of them, of LANES filters. w: the first filter, `row` from
 * one to the next, of which `channels` exist. */
INLINE void transpose_filters(const real *w, int64_t row, int64_t channels, int64_t count, real *f) {
    for (int64_t k = 0; k < count; k += LANES) {
        vec rows[LANES];
        UNROLL
        for (int i = 0; i < LANES; i++) rows[i] = i < channels ? vec_load(w + i * row + k) : vec_zero();
        vec_transpose(rows);
        UNROLL
        for (int i = 0; i < LANES; i++) vec_store(f + (k + i) * LANES, rows[i]);
    }
}

/* u[element]: [depth][NR] of each of the 36 or, for 3 taps, 6 elements, for depth >= LANES input channels. By way of a
 * block of its own, since where they lie in u the 36 lines of a channel fall into few sets of L1 (Zen 3: 30 ns a
 * filter, with it 14), as the lines of the block do but for its pitch (Zen 5, AVX-512: 15 ns, with it 7). */
INLINE void winograd_filters(const int taps, const real *w, int64_t row, int64_t channels, int64_t depth, real *u,
                             int64_t element) {
    enum { BLOCK = LANES * WINOGRAD_NR, PITCH = BLOCK + CONV_ALIGN / sizeof(real) };
    real f[2][9 * LANES * LANES] __attribute__((aligned(CONV_ALIGN)));
    real block[ELEMENTS][PITCH] __attribute__((aligned(CONV_ALIGN)));
    for (int64_t c0 = 0; c0 < depth; c0 += LANES) {
        c0 = min_i64(c0, depth - LANES);
        for (int i = 0; i < 2; i++)
            transpose_filters(w + i * LANES * row + c0 * taps, row, channels - i * LANES, taps * LANES, f[i]);
        for (int64_t c = 0; c < LANES; c++)
            for (int64_t k = 0; k < WINOGRAD_NR; k += WIDE_LANES) {
                const real *weights = f[k / LANES] + c * taps * LANES + k % LANES;
                if (taps == 9)
                    winograd_filter(weights, block[0] + c * WINOGRAD_NR + k, PITCH);
                else
                    winograd_filter_line(weights, block[0] + c * WINOGRAD_NR + k, PITCH);
            }
        for (int e = 0; e < (taps == 9 ? ELEMENTS : 6); e++)
            memcpy(u + e * element + c0 * WINOGRAD_NR, block[e], BLOCK * sizeof(real));
    }
}

#endif
