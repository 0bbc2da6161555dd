/* The products of Winograd's algorithm, one register tile at a time, for one of the transform's elements.
 *
 *     m[r][NR] += sum over c of v[c][r] * u[c][NR]          r: tiles, at most R; NR: a panel's output channels
 *
 * for each chain of input channels:
 *   for each input channel: 2 vectors of u, r broadcasts of v, 2 r multiply-adds         v, u: L1; sums: registers
 *   m += sums
 *
 * Tails: one function for every r from 1 to R; unused lanes of u are zeros. */
#ifndef WINOGRAD_PRODUCT_H
#define WINOGRAD_PRODUCT_H

#include "winograd_transform.h"

/* The register tile: R tiles broadcast times NR channels. 12 + 2 + 1 of 16 registers; 28 + 2 + 1 of AVX-512's 32; NEON
 * multiplies by lanes of 4 tiles: 24 + 2 + 3. */
#define WINOGRAD_R (VECTOR_REGISTERS == 16 ? 6 : VECTOR_BYTES == 64 ? 14 : 12)

/* One call of the register tile: m[r][NR] = (add ? m : 0) + sum over depth of v[depth][r] * u[depth][NR]. */
typedef struct winograd_product {
    int64_t depth, chain, pitch, m_pitch;
    const real *v, *u, *next; /* next: what to prefetch, `share` elements for each term */
    int64_t share;
    real *m;
    int add;
} winograd_product;

/* The sum in chains, each from zero and then added to m: the pass over m costs some 30 cycles, a term 6.6 (Zen 3). */
INLINE void winograd_tile(const int r, const winograd_product *x) {
    const real *v = x->v, *u = x->u, *next = x->next;
    const int64_t depth = x->depth, chain = x->chain, pitch = x->pitch, m_pitch = x->m_pitch, share = x->share;
    real *const sums = x->m;
    int add = x->add;
    for (int64_t c0 = 0; c0 < depth; c0 += chain, add = 1) {
        vec acc[WINOGRAD_R][2];
        UNROLL
        for (int i = 0; i < r; i++) acc[i][0] = acc[i][1] = vec_zero();
        for (int64_t c = min_i64(chain, depth - c0); c > 0; c--) {
            const vec b0 = vec_load(u), b1 = vec_load(u + LANES);
            __builtin_prefetch(next);
            UNROLL
            for (int i = 0; i < r; i++) {
                const vec a = vec_splat(v[i]);
                acc[i][0] += a * b0;
                acc[i][1] += a * b1;
            }
            v += pitch, u += WINOGRAD_NR, next += share;
        }
        UNROLL
        for (int i = 0; i < r; i++) {
            real *m = sums + i * m_pitch;
            vec_store(m, add ? vec_load(m) + acc[i][0] : acc[i][0]);
            vec_store(m + LANES, add ? vec_load(m + LANES) + acc[i][1] : acc[i][1]);
        }
    }
}

#define WINOGRAD_CASE(r) \
    case r: \
        if (r <= WINOGRAD_R) winograd_tile(r <= WINOGRAD_R ? r : 1, x); \
        break;

static void winograd_tile_any(int64_t r, const winograd_product *x) {
    switch (r) {
        WINOGRAD_CASE(1)
        WINOGRAD_CASE(2)
        WINOGRAD_CASE(3)
        WINOGRAD_CASE(4)
        WINOGRAD_CASE(5)
        WINOGRAD_CASE(6)
        WINOGRAD_CASE(7)
        WINOGRAD_CASE(8)
        WINOGRAD_CASE(9)
        WINOGRAD_CASE(10)
        WINOGRAD_CASE(11)
        WINOGRAD_CASE(12)
        WINOGRAD_CASE(13)
        WINOGRAD_CASE(14)
    }
}

/* The product is summed apart before it is added to M: one level more of adding up, for many channels. */
static void winograd_tile_apart(int64_t r, winograd_product x) {
    real sums[WINOGRAD_R * WINOGRAD_NR] __attribute__((aligned(CONV_ALIGN))), *m = x.m;
    const int64_t m_pitch = x.m_pitch;
    x.m = sums, x.m_pitch = WINOGRAD_NR, x.add = 0;
    winograd_tile_any(r, &x);
    for (int64_t i = 0; i < r; i++, m += m_pitch)
        for (int j = 0; j < WINOGRAD_NR; j += LANES)
            vec_store(m + j, vec_load(m + j) + vec_load(sums + i * WINOGRAD_NR + j));
}

#endif
