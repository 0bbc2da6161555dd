/* The rows of one task of depthwise.c: its sources and targets, tiles by chains of terms, and outputs that are not
 * consecutive through a tile in memory. */
#ifndef DEPTHWISE_ROWS_H
#define DEPTHWISE_ROWS_H

#include "depthwise_copy.h"
#include "depthwise_stream.h"

/* Where a block's vectors are read: the strip, or x itself. */
typedef struct dw_source {
    const real *base;            /* what the block's first output reads through the first tap, channel 0 of a group */
    int64_t row, slice, channel; /* from one output row, output depth, channel to the next */
    int64_t *offsets;            /* of the chunks' first taps */
} dw_source;

typedef struct dw_task {
    const conv_problem *p;
    const conv_io *io;
    const dw_plan *s;
    dw_block_of b;
    int64_t taps, terms, chunks, whole; /* whole: chunks that have all their taps */
    int64_t rows, width;                /* accumulators of a tile per channel; columns that it writes */
    int64_t inner_first, inner_last;    /* columns of tiles that are read from x */
    int64_t spilling, all_at_once;      /* find_spilling; tiles before output channels */
    int plain_x;                        /* native elements surrounded by zeros, or by nothing */
    dw_source strip, x;
    dw_span *spans;
    real *tile;
} dw_task;

typedef struct offset_context {
    dw_task *t;
    int64_t count;
} offset_context;

static void offset_of_chunk(void *context, int64_t tap, int64_t taps) {
    offset_context *c = context;
    dw_task *t = c->t;
    const dw_plan *s = t->s;
    const int64_t plane = t->p->kernel_h * t->p->kernel_w;
    const int64_t d = tap / plane, h = tap % plane / t->p->kernel_w, w = tap % t->p->kernel_w;
    const dw_span *of_h = t->spans + s->d.classes, *of_w = of_h + s->h.classes;
    t->strip.offsets[c->count] = (t->spans[d % s->d.classes].base + d / s->d.classes * s->d.step) * s->slice +
                                 (of_h[h % s->h.classes].base + h / s->h.classes * s->h.step) * s->rows +
                                 of_w[w % s->w.classes].base + w / s->w.classes * s->w.step;
    if (t->inner_first < t->inner_last)
        t->x.offsets[c->count] =
            d * s->d.dilation * t->io->x_stride_d + h * s->h.dilation * t->io->x_stride_h + w * s->w.dilation;
    c->count++;
    t->whole += taps == s->chunk;
}

/* Whether all that the outputs of an axis read lies inside the input. */
INLINE int axis_is_inside(const dw_axis *a, int64_t output, int64_t count, int64_t extent) {
    return dw_source_index(a, 0, output, 0) >= 0 &&
           dw_source_index(a, 0, output, count - 1) + (a->kernel - 1) * a->dilation < extent;
}

/* The columns that can be read where they lie: whole tiles along a row, or all of a block. */
static void find_inner(dw_task *t) {
    const dw_plan *s = t->s;
    const conv_io *io = t->io;
    const dw_block_of *b = &t->b;
    t->inner_first = t->inner_last = 0;
    if (t->p->x_type != CONV_NATIVE) return;
    if (s->w.stride != 1 || io->x_stride_w != 1 || b->count_w < t->width) return;
    if (!axis_is_inside(&s->d, b->d, b->count_d, t->p->in_d) || !axis_is_inside(&s->h, b->h, b->count_h, t->p->in_h))
        return;
    const int64_t first = min_i64(max_i64(s->w.pad - b->w, 0), b->count_w), reach = (s->w.kernel - 1) * s->w.dilation;
    const int64_t last = max_i64(min_i64(t->p->in_w + s->w.pad - reach - b->w, b->count_w), 0);
    if (s->across) {
        t->inner_first = ceil_div(first, LANES) * LANES;
        t->inner_last = last;
        if (t->inner_last - t->inner_first < 2 * t->width) t->inner_first = t->inner_last = 0; /* three jobs, not one */
    } else if (first == 0 && last == b->count_w && t->x.row * s->tile_step * (int64_t)sizeof(real) % 1024) {
        t->inner_last = last; /* rows a multiple of 1 KiB apart would share few sets of L1 */
    }
}

/* One tile over more than t->terms terms: chains of whole input channels or of a part of one (chain_terms). */
static void tile_chains(const dw_task *t, int64_t channels, const dw_tile_job *all) {
    real sum[(DW_ACCS > DW_ROWS ? DW_ACCS : DW_ROWS) * LANES] __attribute__((aligned(CONV_ALIGN)));
    const int64_t ic = t->p->ic, at_once = max_i64(t->terms / t->taps, 1);
    const int64_t step = t->taps <= t->terms ? t->chunks : t->terms / t->s->chunk;
    dw_tile_job job = *all;
    job.bias = NULL;
    job.clamped = 0;
    job.out = sum;
    job.out_row = LANES;
    job.out_channel = job.rows * LANES;
    for (int64_t c = 0; c < ic; c += at_once) {
        for (int64_t first = 0; first < t->chunks; first += step) {
            const int64_t last = min_i64(first + step, t->chunks);
            job.ic = min_i64(at_once, ic - c);
            job.strip = all->strip + c * job.channel;
            job.offsets = all->offsets + first;
            job.whole = max_i64(min_i64(last, t->whole) - first, 0);
            job.less = last - first - job.whole;
            if (c + at_once >= ic && last == t->chunks) {
                job.out = all->out;
                job.out_row = all->out_row;
                job.out_channel = all->out_channel;
                job.bias = all->bias;
                job.clamped = all->clamped;
            }
            dw_tile_run(channels, t->s->chunk, t->s->across, &job);
            job.sum = sum;
            job.weights += job.ic * (job.whole * t->s->chunk + job.less * (t->s->chunk - 1)) * channels;
        }
    }
}

/* All tiles of a job. */
static void tiles_run(const dw_task *t, int64_t channels, const dw_tile_job *job) {
    if (t->s->stream) {
        stream_tiles(t->p->stride_h, job);
        return;
    }
    if (t->p->ic * t->taps <= t->terms) {
        dw_tile_run(channels, t->s->chunk, t->s->across, job);
        return;
    }
    dw_tile_job one = *job;
    one.groups = one.tiles = 1;
    one.first_column = one.last_column = 0;
    for (int64_t group = 0; group < job->groups; group++) {
        one.weights = job->weights + group * job->group_weights;
        one.bias = job->bias ? job->bias + group * job->group_bias : NULL;
        for (int64_t tile = 0; tile < job->tiles; tile++)
            for (int64_t column = job->first_column;; column = min_i64(column + job->column_step, job->last_column)) {
                one.strip = job->strip + group * job->group_strip + tile * job->tile_strip + column;
                one.out = job->out + group * job->group_out + tile * job->tile_out + column;
                tile_chains(t, channels, &one);
                if (column == job->last_column) break;
            }
    }
}

/* A batch of groups at one depth of a block: what the first output reads, through the first tap of x and at the
 * beginning of the strip, and where it goes. */
typedef struct dw_batch_at {
    int64_t groups;
    const real *strip, *x, *weights, *bias;
    int64_t y;
} dw_batch_at;

/* Tiles of some output channels: from row h on, `tiles` tiles of so many accumulators. */
typedef struct dw_rows_at {
    int64_t m, channels, h, rows, tiles;
} dw_rows_at;

/* Where outputs go: the first, and the distances to the next row of a tile, to the next channel and group. */
typedef struct dw_target {
    real *first;
    int64_t row, channel, group;
} dw_target;

/* Vectors of a tile along a row of so many columns: equal tiles, whole ones in what is read from x. */
static int64_t vectors_across(int64_t columns, int64_t channels, int from_x) {
    const int64_t all = ceil_div(columns, LANES), vectors = ceil_div(all, ceil_div(all, tile_most_rows(channels)));
    return from_x ? min_i64(vectors, columns / LANES) : vectors;
}

/* All columns of some tiles: those that need padding from the strip, the others from x. */
static void rows_run(const dw_task *t, const dw_batch_at *b, const dw_rows_at *at, const dw_target *target) {
    const dw_plan *s = t->s;
    const int64_t columns = t->b.count_w, inner = t->inner_last > 0;
    const int64_t ends[4] = {0, inner ? t->inner_first : columns, inner ? t->inner_last : columns, columns};
    dw_tile_job job = {.weights = b->weights + at->m * t->p->ic * t->taps, .bias = b->bias ? b->bias + at->m : NULL};
    job.whole = t->whole;
    job.less = t->chunks - t->whole;
    job.ic = t->p->ic;
    job.tiles = at->tiles;
    job.groups = b->groups;
    job.group_weights = t->p->oc * t->p->ic * t->taps;
    job.group_bias = t->p->oc;
    job.clamped = output_is_direct(t->p, t->io) && t->p->activation == CONV_CLAMP;
    job.low = clamp_limit(t->p->activation_a);
    job.high = clamp_limit(t->p->activation_b);
    job.out = target->first;
    job.out_row = s->across ? LANES : target->row;
    job.out_channel = target->channel;
    job.group_out = target->group;
    job.tile_out = s->across ? target->row : at->rows * target->row;
    for (int part = 0; part < 3; part++) {
        const dw_source *source = part == 1 ? &t->x : &t->strip;
        if (ends[part] >= ends[part + 1]) continue;
        job.strip = (part == 1 ? b->x : b->strip) + at->h * source->row;
        job.offsets = source->offsets;
        job.channel = source->channel;
        job.group_strip = t->p->ic * source->channel;
        job.rows = s->across ? vectors_across(ends[part + 1] - ends[part], s->channels, part == 1) : at->rows;
        job.column_step = (s->across ? job.rows : 1) * LANES;
        job.lane_row = s->across ? LANES : s->tile_step * source->row;
        job.tile_strip = s->across ? source->row : at->rows * job.lane_row;
        job.last_column = max_i64(ends[part + 1] - job.column_step, 0);
        job.first_column = min_i64(ends[part], job.last_column);
        tiles_run(t, at->channels, &job);
    }
}

/* Tiles of one group in memory first, then as many of their rows as there are to y: where vectors of sums are not what
 * is stored, or must not be stored as a whole. Rows of the tiles follow one another in memory, and what a narrow row's
 * vector writes beyond it is written again by the next row; behind the last row of a channel there is room for it. */
static void rows_run_in_memory(const dw_task *t, const dw_batch_at *b, const dw_rows_at *at) {
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const int64_t columns = t->b.count_w, step = t->s->tile_step, rows = at->tiles * (t->s->across ? 1 : at->rows);
    const int64_t channel = rows * columns + t->width;
    rows_run(t, b, at, &(const dw_target){t->tile, columns, channel, 0});
    const int joined = io->y_stride_w == 1 && (rows == 1 || step * io->y_stride_h == columns);
    const int64_t runs = joined ? 1 : rows, count = joined ? rows * columns : columns;
    for (int64_t o = 0; o < at->channels; o++)
        for (int64_t r = 0; r < runs; r++) {
            real *from = t->tile + o * channel + r * columns;
            const int64_t to = b->y + (at->m + o) * io->y_stride_c + (at->h + r * step) * io->y_stride_h;
            if (io->y_stride_w == 1 && output_is_direct(p, io))
                dw_copy_run((real *)io->y + to, from, count);
            else
                finish_run(p, io, from, count, to, io->y_stride_w);
        }
}

/* The same for all groups of a batch: as many tiles at once as their memory holds. */
static void rows_run_scattered(const dw_task *t, const dw_batch_at *all, const dw_rows_at *at) {
    const int64_t high = t->s->across ? 1 : at->rows;
    const int64_t one = at->channels * high * t->b.count_w,
                  most = max_i64(DW_TILE_BYTES / (int64_t)sizeof(real) / one, 1);
    dw_batch_at b = *all;
    b.groups = 1;
    for (int64_t g = 0; g < all->groups; g++) {
        dw_rows_at some = *at;
        for (int64_t tile = 0; tile < at->tiles; tile += most) {
            some.h = at->h + tile * high * t->s->tile_step;
            some.tiles = min_i64(most, at->tiles - tile);
            rows_run_in_memory(t, &b, &some);
        }
        b.strip += t->p->ic * t->strip.channel;
        b.x += t->p->ic * t->x.channel;
        b.weights += t->p->oc * t->p->ic * t->taps;
        if (b.bias) b.bias += t->p->oc;
        b.y += t->p->oc * t->io->y_stride_c;
    }
}

/* Some tiles of a batch, of which the first `direct` groups may be stored as whole vectors. */
static void rows_run_all(const dw_task *t, const dw_batch_at *b, const dw_rows_at *at, int64_t direct) {
    dw_batch_at part = *b;
    if (direct > 0) {
        const dw_target y = {(real *)t->io->y + b->y + at->m * t->io->y_stride_c + at->h * t->io->y_stride_h,
                             t->s->tile_step * t->io->y_stride_h, t->io->y_stride_c, t->p->oc * t->io->y_stride_c};
        part.groups = direct;
        rows_run(t, &part, at, &y);
    }
    if (direct < b->groups) {
        part.groups = b->groups - direct;
        part.strip += direct * t->p->ic * t->strip.channel;
        part.x += direct * t->p->ic * t->x.channel;
        part.weights += direct * t->p->oc * t->p->ic * t->taps;
        if (part.bias) part.bias += direct * t->p->oc;
        part.y += direct * t->p->oc * t->io->y_stride_c;
        rows_run_scattered(t, &part, at);
    }
}

/* One depth of a batch of groups. left: groups of the task from the batch's first on. */
static void batch_run(const dw_task *t, const dw_batch_at *b, int64_t left) {
    const dw_plan *s = t->s;
    const int64_t step = s->tile_step, high = s->across ? 1 : t->rows;
    const int64_t direct = min_i64(max_i64(left - t->spilling, 0), b->groups);
    const int64_t at_once = t->all_at_once ? t->b.count_h : 1;
    for (int64_t class = 0; class < min_i64(step, t->b.count_h); class ++) {
        const int64_t all = ceil_div(t->b.count_h - class, step);
        for (int64_t r = 0; r < all;) {
            const int64_t tiles = min_i64((all - r) / high, at_once);
            dw_rows_at at = {0, 0, class + r * step, s->across || tiles ? t->rows : all - r, max_i64(tiles, 1)};
            for (; at.m < t->p->oc; at.m += at.channels) {
                at.channels = min_i64(s->channels, t->p->oc - at.m);
                rows_run_all(t, b, &at, direct);
            }
            r += tiles ? tiles * high : all - r;
        }
    }
}

#endif
