/* The inner loop of depthwise.c: a tile of vectors of outputs, summed over chunks of taps. */
#ifndef DEPTHWISE_TILE_H
#define DEPTHWISE_TILE_H

#include "activation.h"
#include "depthwise_strip.h"

/* Tiles of `rows` vectors for each of some output channels: columns first_column, + column_step, ..., last_column (the
 * last step is cut short: the tiles overlap) of `tiles` tiles, tile_* apart, of `groups` groups, group_* apart. */
typedef struct dw_tile_job {
    const real *strip, *weights;
    const int64_t *offsets; /* of the chunks: whole of them have all the taps, then less of them have one less */
    int64_t whole, less, ic, channel, lane_row;
    int64_t rows, tiles, tile_strip, tile_out;
    int64_t groups, group_strip, group_weights, group_out, group_bias;
    int64_t first_column, column_step, last_column;
    real *out;
    int64_t out_row, out_channel;
    const real *sum;  /* of the terms before these, [channel][row][LANES], or NULL */
    const real *bias; /* of the tile's first channel at the last terms, else NULL */
    int clamped;      /* at the last terms: min(max(sum, low), high) */
    real low, high;
} dw_tile_job;

INLINE vec tile_load(const real *x, const int uses) { return uses == 1 ? vec_load(x) : vec_load_once(x); }

/* acc[o][r] += weights[k][o] * vector r + k of the strip, for some chunks of one input channel. */
INLINE const real *tile_chunks(const int channels, const int taps, const int rows, const int64_t *offsets,
                               int64_t count, const real *strip, int64_t lane_row, const real *weights, vec *acc) {
    for (int64_t s = 0; s < count; s++, weights += taps * channels) {
        const real *x = strip + offsets[s];
        vec w[DW_TAPS * DW_CHANNELS];
        UNROLL
        for (int k = 0; k < taps * channels; k++) w[k] = vec_splat(weights[k]);
        UNROLL
        for (int i = 0; i < rows; i++) {
            const vec v = tile_load(x + i * lane_row, taps);
            UNROLL
            for (int k = 0; k < taps; k++) UNROLL
            for (int o = 0; o < channels; o++)
                if (i >= k) acc[o * rows + i - k] += w[k * channels + o] * v;
        }
        UNROLL
        for (int i = rows; i < rows + taps - 1; i++) { /* below the last row */
            const vec v = tile_load(x + i * lane_row, taps);
            UNROLL
            for (int k = 1; k < taps; k++) UNROLL
            for (int o = 0; o < channels; o++)
                if (i >= k && i - k < rows) acc[o * rows + i - k] += w[k * channels + o] * v;
        }
    }
    return weights;
}

/* A job's constants for one tile. Scalars, not a copy of the job: no store can change them, and a copy of a struct that
 * has just been written waits for its stores (150 cycles with gcc's vector moves on Zen 3). */
typedef struct tile_constants {
    const int64_t *offsets;
    int64_t whole, less, ic, channel, lane_row, out_row, out_channel;
    const real *sum;
    int clamped;
    real low, high;
} tile_constants;

INLINE void tile_store(const int channels, const int rows, const tile_constants *t, const real *biases, real *out,
                       vec *acc) {
    if (t->sum) {
        UNROLL
        for (int i = 0; i < channels * rows; i++) acc[i] += vec_load(t->sum + i * LANES);
    }
    UNROLL
    for (int o = 0; o < channels; o++) {
        const vec bias = biases ? vec_splat(biases[o]) : vec_zero();
        UNROLL
        for (int r = 0; r < rows; r++) acc[o * rows + r] += bias;
    }
    if (t->clamped) {
        UNROLL
        for (int i = 0; i < channels * rows; i++) acc[i] = vec_clamp(acc[i], t->low, t->high);
    }
    UNROLL
    for (int o = 0; o < channels; o++, out += t->out_channel) UNROLL
    for (int r = 0; r < rows; r++) vec_store(out + r * t->out_row, acc[o * rows + r]);
}

INLINE void tile_one(const int channels, const int taps, const int rows, const tile_constants *t, const real *strip,
                     const real *weights, const real *bias, real *out) {
    vec acc[DW_CHANNELS * 14]; /* those that are used are registers */
    UNROLL
    for (int o = 0; o < channels; o++) UNROLL
    for (int r = 0; r < rows; r++) acc[o * rows + r] = vec_zero();
    for (int64_t c = 0; c < t->ic; c++, strip += t->channel) {
        weights = tile_chunks(channels, taps, rows, t->offsets, t->whole, strip, t->lane_row, weights, acc);
        if (taps > 1)
            weights =
                tile_chunks(channels, taps - 1, rows, t->offsets + t->whole, t->less, strip, t->lane_row, weights, acc);
    }
    tile_store(channels, rows, t, bias, out, acc);
}

INLINE void tile_all(const int channels, const int taps, const int across, const int rows, const dw_tile_job *job) {
    const tile_constants t = {
        job->offsets, job->whole,       job->less, job->ic,      job->channel, across ? LANES : job->lane_row,
        job->out_row, job->out_channel, job->sum,  job->clamped, job->low,     job->high};
    const int64_t groups = job->groups, tiles = job->tiles, first = job->first_column, last = job->last_column;
    const int64_t step = job->column_step, tile_strip = job->tile_strip, tile_out = job->tile_out;
    const int64_t group_strip = job->group_strip, group_weights = job->group_weights, group_out = job->group_out;
    const real *weights = job->weights, *bias = job->bias, *strip = job->strip;
    real *out = job->out;
    for (int64_t group = 0; group < groups; group++) {
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int64_t column = first;; column = min_i64(column + step, last)) {
                tile_one(channels, taps, rows, &t, strip + tile * tile_strip + column, weights, bias,
                         out + tile * tile_out + column);
                if (column == last) break;
            }
        weights += group_weights;
        if (bias) bias += job->group_bias;
        strip += group_strip;
        out += group_out;
    }
}

/* The most accumulators per channel of a tile of so many channels. */
INLINE int tile_most_rows(int64_t channels) { return channels == 1 ? DW_ROWS : (int)(DW_ACCS / channels); }

#define DW_TILE_ROWS(r) \
    case r: \
        if (r <= most) tile_all(channels, taps, across, r <= most ? r : 1, job); \
        break;

INLINE void tile_of_rows(const int channels, const int taps, const int across, const dw_tile_job *job) {
    const int most = tile_most_rows(channels);
    switch (job->rows) {
        DW_TILE_ROWS(1)
        DW_TILE_ROWS(2)
        DW_TILE_ROWS(3)
        DW_TILE_ROWS(4)
        DW_TILE_ROWS(5)
        DW_TILE_ROWS(6)
        DW_TILE_ROWS(7)
        DW_TILE_ROWS(8)
        DW_TILE_ROWS(9)
        DW_TILE_ROWS(10)
        DW_TILE_ROWS(11)
        DW_TILE_ROWS(12)
        DW_TILE_ROWS(13)
        DW_TILE_ROWS(14)
    }
}

/* The name says channels, taps. Taps that share loads along a row are worth tiles of their own: 31 of them take 13 %
 * less where the distance of vectors is a constant (AVX2). */
#define DW_TILE(c, t, across, name) \
    static void tile_##name(const dw_tile_job *job) { tile_of_rows(c, t, across, job); }
DW_TILE(1, 1, 0, 1_1)
DW_TILE(1, 2, 0, 1_2)
DW_TILE(1, 3, 0, 1_3)
DW_TILE(1, 4, 0, 1_4)
DW_TILE(1, 2, 1, across_2)
DW_TILE(1, 3, 1, across_3)
DW_TILE(1, 4, 1, across_4)
DW_TILE(2, 1, 0, 2_1)
DW_TILE(3, 1, 0, 3_1)
DW_TILE(4, 1, 0, 4_1)

/* Tiles of several channels have one tap to a chunk. */
static void dw_tile_run(int64_t channels, int64_t taps, int64_t across, const dw_tile_job *job) {
    static void (*const of_taps[2][DW_TAPS])(const dw_tile_job *) = {
        {tile_1_1, tile_1_2, tile_1_3, tile_1_4}, {tile_1_1, tile_across_2, tile_across_3, tile_across_4}};
    static void (*const of_channels[DW_CHANNELS])(const dw_tile_job *) = {tile_1_1, tile_2_1, tile_3_1, tile_4_1};
    (channels > 1 ? of_channels[channels - 1] : of_taps[across][taps - 1])(job);
}

#endif
