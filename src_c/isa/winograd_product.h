/* The products of Winograd's algorithms, 36 matrices of them or 6, one for each element of a transformed tile.
 *
 *     M[tile][panel][element][NR] += sum over c of V[element][c][tile] * U[element][panel][c][NR]
 *
 * for each element, for each panel of NR output channels, for each R of the tiles:             U, V of an element: L1
 *   for each chain of input channels:
 *     for each input channel: 2 vectors of U, R broadcasts of V, 2 R multiply-adds           sums: registers
 *     M += sums
 *
 * Tails: one function for every r from 1 to R; unused lanes of u are zeros. */
#ifndef WINOGRAD_PRODUCT_H
#define WINOGRAD_PRODUCT_H

#include "winograd_transform.h"

/* The register tile: R tiles broadcast times NR channels. 12 + 2 + 1 of 16 registers; 28 + 2 + 1 of AVX-512's 32; NEON
 * multiplies by lanes of 4 tiles: 24 + 2 + 3. */
#define WINOGRAD_R (VECTOR_REGISTERS == 16 ? 6 : VECTOR_BYTES == 64 ? 14 : 12)

#define WINOGRAD_LINE ((int64_t)(CONV_ALIGN / sizeof(real)))

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

typedef struct winograd_sums {
    int64_t elements, tiles;               /* of a transformed tile; of the task */
    int64_t panel, panels, all_panels;     /* the task's first one, its, and those of U */
    int64_t chain;                         /* terms that are summed from zero */
    int apart;                             /* the sum of a block of channels is complete before it joins M */
    int64_t pitch, element_pitch, m_pitch; /* of V: from channel to channel, element to element; of M: tile to tile */
    const real *v;
    real *m;
} winograd_sums;

/* M of the task, from one block of input channels. The next panel of U and lines of M are fetched meanwhile: U is
 * mostly larger than L2, and M is touched once per panel. A prefetch never faults: the last ones go beyond U. */
static void winograd_multiply(const winograd_sums *s, const real *u, int64_t depth, int add) {
    const int64_t groups = ceil_div(s->tiles, WINOGRAD_R), panel_size = depth * WINOGRAD_NR;
    winograd_product x = {.depth = depth, .chain = s->chain, .pitch = s->pitch, .m_pitch = s->m_pitch, .add = add};
    x.share = min_i64(ceil_div(WINOGRAD_NR, groups), WINOGRAD_LINE);
    for (int64_t e = 0; e < s->elements; e++)
        for (int64_t panel = 0; panel < s->panels; panel++) {
            const int last = panel + 1 == s->panels;
            const int64_t next_e = last ? e + 1 : e, next_panel = last ? 0 : panel + 1;
            const real *next_m = s->m + (next_panel * s->elements + next_e) * WINOGRAD_NR;
            x.u = u + (e * s->all_panels + s->panel + panel) * panel_size;
            x.next = u + (next_e * s->all_panels + s->panel + next_panel) * panel_size;
            for (int64_t i = 0, left = groups; left > 0; left--, x.next += depth * x.share) {
                const int64_t r = ceil_div(s->tiles - i, left);
                for (int64_t j = i; j < i + r; j++) __builtin_prefetch(next_m + j * s->m_pitch, 1);
                x.v = s->v + e * s->element_pitch + i;
                x.m = s->m + (panel * s->elements + e) * WINOGRAD_NR + i * s->m_pitch;
                if (add && s->apart)
                    winograd_tile_apart(r, x);
                else
                    winograd_tile_any(r, &x);
                i += r;
            }
        }
}

#endif
