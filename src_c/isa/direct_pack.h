/* The weights as direct.c reads them: for each group, for each block of input channels, for each panel of output
 * channels: [terms of the block][channels of the panel], the terms in the order of direct_terms.h. */
#ifndef DIRECT_PACK_H
#define DIRECT_PACK_H

#include "direct_plan.h"

/* Output channels as they are packed: the last panel has the vectors it needs. */
INLINE int64_t direct_packed_channels(const conv_problem *p) { return ceil_div(p->oc, LANES) * LANES; }

static size_t direct_packed_bytes(const conv_problem *p) {
    const int64_t depth = p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
    return (size_t)(p->groups * depth * direct_packed_channels(p)) * sizeof(real);
}

/* Panels of channels in lanes, and all panels, of a group. */
INLINE int64_t direct_panels(const conv_problem *p, const direct_plan *d) {
    return ceil_div(p->oc - d->rest, d->vectors * LANES);
}

INLINE int64_t direct_all_panels(const conv_problem *p, const direct_plan *d) {
    return direct_panels(p, d) + (d->rest ? ceil_div(d->rest, pixels_channels(d->rest)) : 0);
}

static size_t direct_pack_tasks(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)(p->groups * direct_all_panels(p, &d));
}

/* Where in the terms of a strip of so many channels, tap by tap, the elements of filters go, channel by channel. */
typedef struct term_order {
    int64_t channels, c, kd, kh, kw;
} term_order;

INLINE int64_t next_term(const conv_problem *p, term_order *o) {
    const int64_t term = ((o->kw * p->kernel_d + o->kd) * p->kernel_h + o->kh) * o->channels + o->c;
    if (++o->kw < p->kernel_w) return term;
    o->kw = 0, o->kh++;
    if (o->kh == p->kernel_h) o->kh = 0, o->kd++;
    if (o->kd == p->kernel_d) o->kd = 0, o->c++;
    return term;
}

/* LANES output channels side by side, zeros for those that don't exist: dst[term][pitch] of src[channel][depth]. */
static void pack_lanes(const conv_problem *p, const real *src, int64_t depth, int64_t channels, int64_t count,
                       term_order order, real *dst, int64_t pitch) {
    int64_t k = 0;
    for (; channels == LANES && k + LANES <= count; k += LANES) {
        vec rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = vec_load(src + i * depth + k);
        vec_transpose(rows);
        for (int i = 0; i < LANES; i++) vec_store(dst + next_term(p, &order) * pitch, rows[i]);
    }
    for (; k < count; k++) {
        real *const to = dst + next_term(p, &order) * pitch;
        for (int64_t m = 0; m < LANES; m++) to[m] = m < channels ? src[m * depth + k] : 0;
    }
}

/* Channels with pixels in lanes come last, as many of them in a panel as a tile has. A task is one panel of one group.
 */
static void direct_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const direct_plan d = direct_plan_of(p);
    const int64_t panels = direct_panels(p, &d), lanes = p->oc - d.rest, all = direct_packed_channels(p);
    const int64_t group = (int64_t)task / direct_all_panels(p, &d), panel = (int64_t)task % direct_all_panels(p, &d);
    const int in_lanes = panel < panels;
    const int64_t most = in_lanes ? d.vectors * LANES : pixels_channels(d.rest);
    const int64_t m0 = in_lanes ? panel * most : lanes + (panel - panels) * most;
    const int64_t used = min_i64(most, (in_lanes ? lanes : p->oc) - m0), width = ceil_div(used, LANES) * LANES;
    const real *src = (const real *)w + (group * p->oc + m0) * d.depth;
    real *dst = (real *)packed + group * d.depth * all;
    for (int64_t c0 = 0; c0 < p->ic; c0 += d.channels) {
        term_order order = {min_i64(d.channels, p->ic - c0), 0, 0, 0, 0};
        const int64_t k0 = c0 * d.taps, kc = order.channels * d.taps;
        real *const to = dst + k0 * all + m0 * kc;
        for (int64_t k = 0; !in_lanes && k < kc; k++) {
            real *const row = to + next_term(p, &order) * used;
            for (int64_t m = 0; m < used; m++) row[m] = src[m * d.depth + k0 + k];
        }
        for (int64_t m = 0; in_lanes && m < width; m += LANES)
            pack_lanes(p, src + m * d.depth + k0, d.depth, min_i64(used - m, LANES), kc, order, to + m, width);
    }
}

#endif
