/* From totals to y: a run of pixels that are neighbours in y, with the channels in lanes before.
 *
 *     y[channel][pixel] = totals[pixel][channel] + bias[channel]
 *
 * LANES x LANES blocks are transposed in registers. Tails: the last block of a run of LANES pixels or more overlaps the
 * one before; shorter runs, and runs whose pixels are apart, are stored one by one. Channels last are not transposed.
 */
#ifndef EPILOGUE_H
#define EPILOGUE_H

#include "simd.h"

typedef struct totals_run {
    const real *totals; /* [pixel][pitch] */
    int64_t pitch, pixels, channels;
    const real *bias; /* of the first channel, or NULL */
    real *y;          /* of the first pixel and channel */
    int64_t y_stride_c, y_stride_w;
} totals_run;

INLINE vec bias_lanes(const real *bias, int64_t count) {
    vec v = vec_zero();
    if (bias && count >= LANES) return vec_load(bias);
    for (int64_t i = 0; bias && i < count; i++) v[i] = bias[i];
    return v;
}

/* One block of at most LANES pixels and channels. */
INLINE void store_block(const totals_run *r, int64_t pixel, int64_t pixels, int64_t channel) {
    const int64_t channels = r->channels - channel < LANES ? r->channels - channel : LANES;
    const vec bias = bias_lanes(r->bias ? r->bias + channel : NULL, channels);
    const real *totals = r->totals + pixel * r->pitch + channel;
    real *y = r->y + channel * r->y_stride_c + pixel * r->y_stride_w;
    vec rows[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = i < pixels ? vec_load(totals + i * r->pitch) + bias : vec_zero();
    vec_transpose(rows);
    for (int64_t c = 0; c < channels; c++, y += r->y_stride_c)
        if (pixels == LANES && r->y_stride_w == 1)
            vec_store(y, rows[c]);
        else
            for (int64_t i = 0; i < pixels; i++) y[i * r->y_stride_w] = rows[c][i];
}

/* Totals hold whole vectors of channels, so reading a partial one's unused lanes is fine. */
static void store_totals(const totals_run *r) {
    for (int64_t c = 0; c < r->channels; c += LANES) {
        if (r->y_stride_c == 1 && r->channels - c >= LANES) {
            const vec bias = bias_lanes(r->bias ? r->bias + c : NULL, LANES);
            for (int64_t i = 0; i < r->pixels; i++)
                vec_store(r->y + c + i * r->y_stride_w, vec_load(r->totals + i * r->pitch + c) + bias);
            continue;
        }
        int64_t pixel = 0;
        for (; pixel + LANES <= r->pixels; pixel += LANES) store_block(r, pixel, LANES, c);
        if (pixel < r->pixels && r->pixels >= LANES && r->y_stride_w == 1)
            store_block(r, r->pixels - LANES, LANES, c);
        else if (pixel < r->pixels)
            store_block(r, pixel, r->pixels - pixel, c);
    }
}

#endif
