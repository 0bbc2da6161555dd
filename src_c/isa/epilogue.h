/* From sums to y: bias, residual, activation, the stored type, and runs of pixels with their channels in lanes before.
 *
 *     y[channel][pixel] = activation(totals[pixel][channel] + bias[channel] + residual[channel][pixel])
 *
 * LANES x LANES blocks are transposed in registers. Tails: the last block of a run of LANES pixels or more overlaps the
 * one before unless there is a residual, which may be y; shorter runs, and runs whose pixels are apart, are stored one
 * by one. Channels last are not transposed. */
#ifndef EPILOGUE_H
#define EPILOGUE_H

#include "activation.h"
#include "element.h"

typedef struct totals_run {
    const real *totals; /* [pixel][pitch] */
    int64_t pitch, pixels, channels;
    const real *bias; /* of the first channel, or NULL */
    int64_t y, step;  /* the first pixel of the first channel in y; from one pixel to the next */
} totals_run;

/* The sum's last steps for LANES elements that are neighbours in y. All elements must exist. */
INLINE vec finish_vector(const conv_problem *p, const conv_io *io, vec sum, int64_t y) {
    if (io->residual) sum += load_vector(p->y_type, io->residual, y);
    return p->activation == CONV_IDENTITY ? sum : activate(p, sum);
}

/* The same for count elements in memory, step apart in y, and stores them. */
static inline void finish_run(const conv_problem *p, const conv_io *io, real *sums, int64_t count, int64_t y,
                              int64_t step) {
    int64_t i = 0;
    if (io->residual == NULL && p->activation == CONV_IDENTITY) {
        store_elements(p->y_type, io->y, y, step, count, sums);
        return;
    }
    for (; step == 1 && i + LANES <= count; i += LANES)
        store_vector(p->y_type, io->y, y + i, finish_vector(p, io, vec_load(sums + i), y + i));
    if (i && i < count && io->residual == NULL) {
        i = count - LANES;
        store_vector(p->y_type, io->y, y + i, finish_vector(p, io, vec_load(sums + i), y + i));
        return;
    }
    for (; i < count; i += LANES) {
        const int64_t some = min_i64(LANES, count - i), at = y + i * step;
        vec_values s = {.all = vec_zero()}, more = {.all = vec_zero()};
        for (int64_t j = 0; j < some; j++) s.lane[j] = sums[i + j];
        if (io->residual) load_elements(p->y_type, io->residual, at, step, some, more.lane);
        if (io->residual) s.all += more.all;
        if (p->activation != CONV_IDENTITY) s.all = activate(p, s.all);
        store_elements(p->y_type, io->y, at, step, some, s.lane);
    }
}

/* The type of y where y = sum + bias is all there is to do but narrowing, else NOT_PLAIN. */
enum { NOT_PLAIN = -1 };

INLINE int32_t plain_type(const conv_problem *p, const conv_io *io) {
    return p->activation == CONV_IDENTITY && io->residual == NULL ? p->y_type : NOT_PLAIN;
}

INLINE int output_is_plain(const conv_problem *p, const conv_io *io) { return plain_type(p, io) == CONV_NATIVE; }

/* Whether sums, clamped at most, are what is stored in y, but for narrowing. */
INLINE int output_is_sum(const conv_problem *p, const conv_io *io) {
    return io->residual == NULL && (p->activation == CONV_IDENTITY || p->activation == CONV_CLAMP);
}

INLINE int output_is_direct(const conv_problem *p, const conv_io *io) {
    return p->y_type == CONV_NATIVE && output_is_sum(p, io);
}

INLINE vec bias_lanes(const real *bias, int64_t count) {
    vec v = vec_zero();
    if (bias && count >= LANES) return vec_load(bias);
    for (int64_t i = 0; bias && i < count; i++) v[i] = bias[i];
    return v;
}

/* One block of at most LANES pixels and channels. plain: plain_type, a constant where this is inlined, so that
 * the sums alone are stored from the registers that they were transposed in. */
INLINE void store_block(const int32_t plain, const conv_problem *p, const conv_io *io, const totals_run *r,
                        int64_t pixel, int64_t pixels, int64_t channel) {
    const int64_t channels = r->channels - channel < LANES ? r->channels - channel : LANES;
    const vec bias = bias_lanes(r->bias ? r->bias + channel : NULL, channels);
    const real *totals = r->totals + pixel * r->pitch + channel;
    int64_t y = r->y + channel * io->y_stride_c + pixel * r->step;
    const int whole = pixels == LANES && r->step == 1;
    vec_values rows[LANES];
    if (whole && plain != NOT_PLAIN && channels == LANES) { /* in registers */
        UNROLL
        for (int i = 0; i < LANES; i++, totals += r->pitch) rows[i].all = vec_load(totals) + bias;
        vec_transpose(&rows[0].all);
        UNROLL
        for (int c = 0; c < LANES; c++, y += io->y_stride_c) store_vector(plain, io->y, y, rows[c].all);
        return;
    }
    for (int i = 0; i < LANES; i++) rows[i].all = i < pixels ? vec_load(totals + i * r->pitch) + bias : vec_zero();
    vec_transpose(&rows[0].all);
    for (int64_t c = 0; c < channels; c++, y += io->y_stride_c)
        if (whole && plain != NOT_PLAIN)
            store_vector(plain, io->y, y, rows[c].all);
        else if (plain == CONV_NATIVE && r->step == 1)
            store_few((real *)io->y + y, rows[c].all, pixels);
        else if (plain == CONV_NATIVE)
            for (int64_t i = 0; i < pixels; i++) ((real *)io->y)[y + i * r->step] = rows[c].lane[i];
        else if (whole)
            store_vector(p->y_type, io->y, y, finish_vector(p, io, rows[c].all, y));
        else
            finish_run(p, io, rows[c].lane, pixels, y, r->step);
}

/* LANES channels of every pixel, as they lie in y. */
INLINE void store_columns(const int32_t plain, const conv_problem *p, const conv_io *io, const totals_run *r,
                          int64_t channel) {
    const vec bias = bias_lanes(r->bias ? r->bias + channel : NULL, LANES);
    for (int64_t i = 0; i < r->pixels; i++) {
        const int64_t y = r->y + channel + i * r->step;
        const vec sum = vec_load(r->totals + i * r->pitch + channel) + bias;
        if (plain != NOT_PLAIN)
            store_vector(plain, io->y, y, sum);
        else
            store_vector(p->y_type, io->y, y, finish_vector(p, io, sum, y));
    }
}

INLINE void store_all(const int32_t plain, const conv_problem *p, const conv_io *io, const totals_run *r) {
    for (int64_t c = 0; c < r->channels; c += LANES) {
        if (io->y_stride_c == 1 && r->channels - c >= LANES) {
            store_columns(plain, p, io, r, c);
            continue;
        }
        int64_t pixel = 0;
        for (; pixel + LANES <= r->pixels; pixel += LANES) store_block(plain, p, io, r, pixel, LANES, c);
        if (pixel < r->pixels && r->pixels >= LANES && r->step == 1 && io->residual == NULL)
            store_block(plain, p, io, r, r->pixels - LANES, LANES, c);
        else if (pixel < r->pixels)
            store_block(plain, p, io, r, pixel, r->pixels - pixel, c);
    }
}

/* Totals hold whole vectors of channels, so reading a partial one's unused lanes is fine. */
static inline void store_totals(const conv_problem *p, const conv_io *io, const totals_run *r) {
    const int32_t plain = plain_type(p, io);
    if (plain == CONV_NATIVE)
        store_all(CONV_NATIVE, p, io, r);
    else if (HAS_HALVES && plain == CONV_F16)
        store_all(CONV_F16, p, io, r);
    else if (HAS_HALVES && plain == CONV_BF16)
        store_all(CONV_BF16, p, io, r);
    else
        store_all(NOT_PLAIN, p, io, r);
}

#endif
