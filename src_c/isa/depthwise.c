/* Depthwise convolution and small groups: a padded strip of the input in L1, pixels in vector lanes.
 *
 *     y[m, pixels] = bias[m] + sum over (c, taps) of w[m, c, tap] * strip[c][pixels + offset of the tap]
 *
 * for each task (image, block of groups, block of outputs):   one thread
 *   for each group:                                           strip copied from x: L1
 *     for each output channel, for each tile of vectors:      accumulators in rows, or along a row
 *       for each channel, for each chunk of up to 4 taps:     weights in registers
 *         for each vector of the strip:                       one load, used by up to 4 accumulators
 *
 * Taps in consecutive rows of a class (depthwise_strip.h) read the same vectors for consecutive rows of outputs, so a
 * tile of R rows and K taps loads R + K - 1 vectors for R * K multiply-adds; in one dimension taps a vector apart do.
 * What needs no padding is read from x where it lies. Tails: the last vector of a row ends with the row and overlaps
 * the one before; rows narrower than a tile, and outputs that are not consecutive, go through a tile in memory. Every
 * output is summed in the same order.
 * Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", ICML 2018; Zhang, Lo and Lu,
 * "High performance depthwise and pointwise convolutions on mobile devices", AAAI 2020. */
#include "depthwise_copy.h"
#include "depthwise_tile.h"

static int depthwise_accepts(const conv_problem *p) {
    if (p->ic < 1 || p->ic > 16 || p->oc < 1 || p->oc > 16 || p->kernel_d > 64) return 0;
    if (p->kernel_h > 2048 || p->kernel_w > 2048 || p->kernel_d * p->kernel_h * p->kernel_w > 8192) return 0;
    if (p->out_d < 1 || p->out_h < 1 || p->out_w < 1) return 0;
    return dw_plan_of(p).size * (int64_t)sizeof(real) <= DW_MOST_BYTES;
}

INLINE int64_t dw_taps(const conv_problem *p) { return p->kernel_d * p->kernel_h * p->kernel_w; }

static size_t depthwise_packed_bytes(const conv_problem *p) {
    return (size_t)(p->groups * p->oc * p->ic * dw_taps(p)) * sizeof(real);
}

enum { GROUPS_PER_PACK = 64 };

static size_t depthwise_pack_tasks(const conv_problem *p) { return (size_t)ceil_div(p->groups, GROUPS_PER_PACK); }

/* Packed: for each group, for each tile of output channels, for each input channel, for each chunk: [tap][channel]. */
typedef struct pack_context {
    const real *src;
    real *dst;
    int64_t tap_stride, channels, channel_stride;
} pack_context;

static void pack_chunk(void *context, int64_t tap, int64_t taps) {
    pack_context *c = context;
    for (int64_t k = 0; k < taps; k++)
        for (int64_t o = 0; o < c->channels; o++)
            *c->dst++ = c->src[o * c->channel_stride + tap + k * c->tap_stride];
}

static void depthwise_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const dw_plan s = dw_plan_of(p);
    const int64_t taps = dw_taps(p), first = (int64_t)task * GROUPS_PER_PACK * p->oc;
    const int64_t last = min_i64(first + GROUPS_PER_PACK * p->oc, p->groups * p->oc);
    pack_context context = {NULL, (real *)packed + first * p->ic * taps, s.chunk_stride, 0, p->ic * taps};
    if (!s.across) context.tap_stride *= p->kernel_w;
    for (int64_t m = first; m < last; m += context.channels) {
        context.channels = min_i64(s.channels, p->oc - m % p->oc);
        for (int64_t c = 0; c < p->ic; c++) {
            context.src = (const real *)w + (m * p->ic + c) * taps;
            dw_visit_chunks(p, &s, pack_chunk, &context);
        }
    }
}

/* Where a block's vectors are read: the strip, or x itself. */
typedef struct dw_source {
    const real *base;           /* what the block's first output reads through the first tap, channel 0 of a group */
    int64_t row, slice, channel; /* from one output row, output depth, channel to the next */
    int64_t *offsets;           /* of the chunks' first taps */
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
        t->x.offsets[c->count] = d * s->d.dilation * t->io->x_stride_d + h * s->h.dilation * t->io->x_stride_h +
                                 w * s->w.dilation;
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
    if (s->w.stride != 1 || io->x_stride_w != 1 || b->count_w < t->width) return;
    if (!axis_is_inside(&s->d, b->d, b->count_d, t->p->in_d) || !axis_is_inside(&s->h, b->h, b->count_h, t->p->in_h))
        return;
    const int64_t first = min_i64(max_i64(s->w.pad - b->w, 0), b->count_w), reach = (s->w.kernel - 1) * s->w.dilation;
    const int64_t last = max_i64(min_i64(t->p->in_w + s->w.pad - reach - b->w, b->count_w), 0);
    if (s->across) {
        t->inner_first = ceil_div(first, t->width) * t->width;
        t->inner_last = last == b->count_w ? last : last / t->width * t->width;
        if (t->inner_last - t->inner_first < t->width) t->inner_first = t->inner_last = 0;
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
            }
            dw_tile_run(channels, t->s->chunk, t->s->across, &job);
            job.sum = sum;
            job.weights += job.ic * (job.whole * t->s->chunk + job.less * (t->s->chunk - 1)) * channels;
        }
    }
}

/* All tiles of a job. */
static void tiles_run(const dw_task *t, int64_t channels, const dw_tile_job *job) {
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
    real *y;
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

/* All columns of some tiles: those that need padding from the strip, the others from x. */
static void rows_run(const dw_task *t, const dw_batch_at *b, const dw_rows_at *at, const dw_target *target) {
    const dw_plan *s = t->s;
    const int64_t columns = t->b.count_w, inner = t->inner_last > 0;
    const int64_t ends[4] = {0, inner ? t->inner_first : columns, inner ? t->inner_last : columns, columns};
    dw_tile_job job = {.weights = b->weights + at->m * t->p->ic * t->taps, .bias = b->bias ? b->bias + at->m : NULL};
    job.whole = t->whole;
    job.less = t->chunks - t->whole;
    job.ic = t->p->ic;
    job.rows = at->rows;
    job.tiles = at->tiles;
    job.groups = b->groups;
    job.group_weights = t->p->oc * t->p->ic * t->taps;
    job.group_bias = t->p->oc;
    job.column_step = t->width;
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
        job.lane_row = s->tile_step * source->row;
        job.tile_strip = s->across ? source->row : at->rows * job.lane_row;
        job.last_column = max_i64(ends[part + 1] - t->width, 0);
        job.first_column = min_i64(ends[part], job.last_column);
        tiles_run(t, at->channels, &job);
    }
}

/* Where y's columns are not neighbours, or fewer than a tile's: one tile of one group at a time, in memory first. */
static void rows_run_scattered(const dw_task *t, const dw_batch_at *all, dw_rows_at at) {
    const conv_io *io = t->io;
    const int64_t high = t->s->across ? 1 : at.rows, pitch = max_i64(t->b.count_w, t->width), tiles = at.tiles;
    const int64_t step = t->s->tile_step, first = at.h;
    const dw_target in_memory = {t->tile, pitch, high * pitch, 0};
    at.tiles = 1;
    for (int64_t g = 0; g < all->groups; g++) {
        const dw_batch_at one = {1, all->strip + g * t->p->ic * t->strip.channel, all->x + g * t->p->ic * t->x.channel,
                                 all->weights + g * t->p->oc * t->p->ic * t->taps,
                                 all->bias ? all->bias + g * t->p->oc : NULL, NULL};
        for (int64_t i = 0; i < tiles; i++) {
            at.h = first + i * high * step;
            rows_run(t, &one, &at, &in_memory);
            for (int64_t o = 0; o < at.channels; o++)
                for (int64_t r = 0; r < high; r++) {
                    const real *from = t->tile + (o * high + r) * pitch;
                    real *to = all->y + (g * t->p->oc + at.m + o) * io->y_stride_c + (at.h + r * step) * io->y_stride_h;
                    if (io->y_stride_w == 1)
                        dw_copy_run(to, from, t->b.count_w);
                    else
                        for (int64_t c = 0; c < t->b.count_w; c++) to[c * io->y_stride_w] = from[c];
                }
        }
    }
}

/* Some tiles of a batch, of which the first `direct` groups may be stored as whole vectors. */
static void rows_run_all(const dw_task *t, const dw_batch_at *b, const dw_rows_at *at, int64_t direct) {
    dw_batch_at part = *b;
    if (direct > 0) {
        const dw_target y = {b->y + at->m * t->io->y_stride_c + at->h * t->io->y_stride_h,
                             t->s->tile_step * t->io->y_stride_h, t->io->y_stride_c, t->p->oc * t->io->y_stride_c};
        part.groups = direct;
        rows_run(t, &part, at, &y);
    }
    if (direct < b->groups) {
        part.groups = b->groups - direct;
        part.strip += direct * t->p->ic * t->strip.channel;
        part.x += direct * t->p->ic * t->x.channel;
        part.weights += direct * t->p->oc * t->p->ic * t->taps;
        part.bias += part.bias ? direct * t->p->oc : 0;
        part.y += direct * t->p->oc * t->io->y_stride_c;
        rows_run_scattered(t, &part, *at);
    }
}

/* One depth of a batch of groups. left: groups of the task from the batch's first on. */
static void batch_run(const dw_task *t, const dw_batch_at *b, int64_t left) {
    const dw_plan *s = t->s;
    const int64_t step = s->tile_step, high = s->across ? 1 : t->rows;
    const int64_t direct = min_i64(max_i64(left - t->spilling, 0), b->groups);
    const int64_t at_once = t->all_at_once ? t->b.count_h : 1;
    for (int64_t class = 0; class < min_i64(step, t->b.count_h); class++) {
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

/* A tile in memory. */
static int64_t tile_elements(const dw_plan *s) {
    const int64_t rows = s->across ? s->channels : max_i64(DW_ROWS, DW_ACCS);
    return rows * (s->w.block + (s->across ? DW_ROWS : 1) * LANES);
}

static size_t depthwise_scratch_bytes(const conv_problem *p) {
    const dw_plan s = dw_plan_of(p);
    return (size_t)(dw_taps(p) * 2) * sizeof(int64_t) + (size_t)(s.size + tile_elements(&s) + 2 * LANES) * sizeof(real) +
           (size_t)(s.d.classes + s.h.classes + s.w.classes) * sizeof(dw_span);
}

static size_t depthwise_tasks(const conv_problem *p) {
    const dw_plan s = dw_plan_of(p);
    return (size_t)(p->n * s.group_blocks * s.blocks_d * s.blocks_h * s.blocks_w);
}

/* Groups at the end of a task whose vectors must not be stored as a whole: all where columns are not neighbours; those
 * that the last vector of a narrow row reaches beyond, where whatever it reaches into is stored later. */
static int64_t find_spilling(const dw_task *t) {
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const dw_plan *s = t->s;
    const int64_t plane = p->out_h * p->out_w, one_call = s->across ? p->out_h == 1 : p->out_h % t->rows == 0;
    if (t->b.count_w >= t->width && (io->y_stride_w == 1 || p->out_w == 1)) return 0;
    if (p->out_d > 1 || p->oc > 1 || s->tile_step > 1 || !one_call || !t->all_at_once) return p->groups;
    if (t->b.count_h < p->out_h || t->b.count_w < p->out_w || io->y_stride_c != plane) return p->groups;
    return is_dense(1, p->out_h, p->out_w, 0, io->y_stride_h, io->y_stride_w) ? ceil_div(t->width, plane) : p->groups;
}

/* The tiles of block b and where they are read. */
static void task_block(dw_task *t, dw_block_of b) {
    const dw_plan *s = t->s;
    t->b = b;
    /* Equal tiles: 14 rows are two of 7, not 10 and 4. */
    const int64_t most = tile_most_rows(s->channels);
    const int64_t all = s->across ? ceil_div(b.count_w, LANES) : ceil_div(b.count_h, s->tile_step);
    t->rows = ceil_div(all, ceil_div(all, most));
    t->width = (s->across ? t->rows : 1) * LANES;
    /* All tiles of an output channel while the strip is in L1, else all channels of a tile. */
    t->all_at_once = t->p->ic * s->channel * (int64_t)sizeof(real) <= cpu_cache_sizes()->l1d;
    t->spilling = find_spilling(t);
    t->strip.row = s->rows;
    t->strip.slice = s->slice;
    t->strip.channel = s->channel;
    t->x.row = s->h.stride * t->io->x_stride_h;
    t->x.slice = s->d.stride * t->io->x_stride_d;
    t->x.channel = t->io->x_stride_c;
    find_inner(t);
    dw_spans(t->p, s, &b, t->spans);
    offset_context context = {t, 0};
    t->whole = 0;
    dw_visit_chunks(t->p, s, offset_of_chunk, &context);
    t->chunks = context.count;
}

/* The strip of so many groups: without the columns that are read from x. */
static void fill_strip(const dw_task *t, const real_unaligned *x, int64_t group, int64_t groups, real *strip) {
    const conv_problem *p = t->p;
    if (p->pad_mode != CONV_PAD_ZEROS) {
        if (t->inner_last - t->inner_first < t->b.count_w)
            dw_gather_channels(p, t->io, t->s, t->spans, &t->b, x, groups * p->ic, strip);
        return;
    }
    if (t->inner_last == 0) {
        dw_copy_channels(p, t->io, t->s, t->spans, x, group * p->ic, groups * p->ic, strip);
        return;
    }
    dw_span *w = t->spans + t->s->d.classes + t->s->h.classes; /* one class where columns are read from x */
    const dw_span all = *w;
    if (t->inner_first > 0) {
        w->last = min_i64(all.last, t->inner_first + (p->kernel_w - 1) * p->dilation_w);
        dw_copy_channels(p, t->io, t->s, t->spans, x, group * p->ic, groups * p->ic, strip);
    }
    if (t->inner_last < t->b.count_w) {
        w->last = all.last;
        w->first = max_i64(all.first, min_i64(t->inner_last, t->b.count_w - t->width));
        w->source = all.source + w->first - all.first;
        dw_copy_channels(p, t->io, t->s, t->spans, x, group * p->ic, groups * p->ic, strip);
    }
    *w = all;
}

/* Groups [first, last) of one block of one image. x, y: of the image. */
static void block_run(const dw_task *t, const real_unaligned *x, real *y, int64_t first, int64_t last, int64_t batch,
                      real *strip) {
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const dw_block_of *b = &t->b;
    if (p->pad_mode == CONV_PAD_ZEROS && t->inner_last - t->inner_first < b->count_w) /* once for all groups */
        memset(strip - LANES, 0, (size_t)dw_strip_size(t->s, min_i64(batch, last - first) * p->ic) * sizeof(real));
    int64_t inner = 0; /* what the first output reads through the first tap */
    if (t->inner_last > 0)
        inner = dw_source_index(&t->s->d, 0, b->d, 0) * io->x_stride_d +
                dw_source_index(&t->s->h, 0, b->h, 0) * io->x_stride_h + b->w - t->s->w.pad;
    y += b->d * io->y_stride_d + b->h * io->y_stride_h + b->w * io->y_stride_w;
    for (int64_t g = first; g < last; g += batch) {
        const real_unaligned *from = x + g * p->ic * io->x_stride_c;
        dw_batch_at at = {.groups = min_i64(batch, last - g), .weights = io->packed, .bias = io->bias};
        fill_strip(t, from, g, at.groups, strip);
        at.weights += g * p->oc * p->ic * t->taps;
        at.bias += at.bias ? g * p->oc : 0;
        for (int64_t d = 0; d < b->count_d; d++) {
            at.strip = strip + d * t->s->slice;
            at.x = (const real *)from + inner + (t->inner_last > 0 ? d * t->x.slice : 0);
            at.y = y + g * p->oc * io->y_stride_c + d * io->y_stride_d;
            batch_run(t, &at, last - g);
        }
    }
}

static void depthwise_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    dw_plan s = dw_plan_of(p);
    const int64_t blocks = s.blocks_d * s.blocks_h * s.blocks_w, rest = (int64_t)task / blocks;
    const int64_t first = rest % s.group_blocks * s.groups_per_task, n = rest / s.group_blocks;
    const int64_t last = min_i64(first + s.groups_per_task, p->groups), block = (int64_t)task % blocks;
    dw_block_of b = {.w = block % s.blocks_w * s.w.block, .h = block / s.blocks_w % s.blocks_h * s.h.block};
    b.d = block / s.blocks_w / s.blocks_h * s.d.block;
    b.count_w = min_i64(s.w.block, p->out_w - b.w);
    b.count_d = min_i64(s.d.block, p->out_d - b.d);
    const int64_t end = min_i64(b.h + s.h.block, p->out_h);
    const int channels_last = p->pad_mode == CONV_PAD_ZEROS && io->x_stride_c == 1 && io->x_stride_w != 1;
    if (channels_last) dw_axis_resize(&s.h, s.transposed_rows);
    dw_layout(&s);
    real *strip = (real *)scratch + LANES, *tile = (real *)scratch + ceil_div(s.size, LANES) * LANES;
    int64_t *offsets = (int64_t *)(tile + ceil_div(tile_elements(&s), LANES) * LANES);
    dw_task t = {.p = p, .io = io, .s = &s, .taps = dw_taps(p), .terms = chain_terms(p), .tile = tile};
    t.strip.offsets = offsets;
    t.x.offsets = offsets + t.taps;
    t.spans = (dw_span *)(offsets + 2 * t.taps);
    for (; b.h < end; b.h += s.h.block) {
        b.count_h = min_i64(s.h.block, end - b.h);
        task_block(&t, b);
        block_run(&t, (const real_unaligned *)io->x + n * io->x_stride_n, (real *)io->y + n * io->y_stride_n, first,
                  last, channels_last ? s.transposed_groups : s.batch, strip);
    }
}
