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
 * Many images are read where they lie (depthwise_inplace.h); 3 x 3 taps have their own loops (depthwise_stream.h).
 * Tails: the last vector of a row ends with the row and overlaps the one before; rows narrower than a tile, and outputs
 * that are not consecutive, go through a tile in memory. Every output is summed in the same order. Zhang, Franchetti
 * and Low, "High performance zero-memory overhead direct convolutions", ICML 2018; Zhang, Lo and Lu, "High performance
 * depthwise and pointwise convolutions on mobile devices", AAAI 2020. */
#include "algorithm.h"
#include "depthwise_inplace.h"
#include "depthwise_lanes.h"

static int depthwise_accepts(const conv_problem *p) {
    if (p->ic < 1 || p->ic > 16 || p->oc < 1 || p->oc > 16 || p->kernel_d > 64) return 0;
    if (p->kernel_h > 2048 || p->kernel_w > 2048 || p->kernel_d * p->kernel_h * p->kernel_w > 8192) return 0;
    if (p->out_d < 1 || p->out_h < 1 || p->out_w < 1) return 0;
    /* As many channels as that fill the lanes of direct: 16 to 16 of 28 x 28, 3 x 3, 58 GFLOP/s here and 76 there (Zen
     * 3); 16 to 8, 47 and 37. */
    if (p->ic >= 16 && p->oc >= 16) return 0;
    /* Long strides share few loads: images of 2 to 16 channels to as many, 3 x 3 to 11 x 11, take direct 0.5 to 1.08 of
     * the time (Zen 5, AVX-512 and AVX2), signals of 1 channel to 8 or 16 0.75 to 0.9. */
    const int connected = p->groups == 1 || p->oc >= 16;
    if (p->stride_w > 1 && connected && (p->ic > 1 || (p->kernel_h == 1 && p->oc >= 8))) return 0;
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
        for (int64_t o = 0; o < c->channels; o++) *c->dst++ = c->src[o * c->channel_stride + tap + k * c->tap_stride];
}

/* Whether the chunks are single taps in the order of the filter. */
static int is_in_order(const conv_problem *p, const dw_plan *s) {
    const int one_by_one = s->chunk == 1 && s->channels == 1;
    return one_by_one &&
           (s->across ? p->kernel_h == 1 && s->chunk_stride >= p->kernel_w : s->chunk_stride == p->kernel_h);
}

static void depthwise_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const dw_plan s = dw_plan_of(p);
    const int64_t taps = dw_taps(p), first = (int64_t)task * GROUPS_PER_PACK * p->oc;
    const int64_t last = min_i64(first + GROUPS_PER_PACK * p->oc, p->groups * p->oc);
    if (is_in_order(p, &s)) {
        memcpy((real *)packed + first * p->ic * taps, (const real *)w + first * p->ic * taps,
               (size_t)((last - first) * p->ic * taps) * sizeof(real));
        return;
    }
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

/* A tile in memory. */
static int64_t tile_elements(const dw_plan *s) {
    const int64_t rows = s->across ? s->channels : max_i64(DW_ROWS, DW_ACCS);
    return max_i64(rows * s->w.block, DW_TILE_BYTES / (int64_t)sizeof(real)) + DW_CHANNELS * DW_ACCS * LANES;
}

static size_t depthwise_scratch_bytes(const conv_problem *p) {
    const dw_plan s = dw_plan_of(p);
    const size_t strip = (size_t)(dw_taps(p) * 2) * sizeof(int64_t) +
                         (size_t)(s.size + tile_elements(&s) + 2 * LANES) * sizeof(real) +
                         (size_t)(s.d.classes + s.h.classes + s.w.classes) * sizeof(dw_span);
    const size_t lanes = lanes_bytes(p), inplace = inplace_bytes(p, &s), most = strip > lanes ? strip : lanes;
    return most > inplace ? most : inplace;
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
    if (!output_is_direct(p, io)) return p->groups;
    if (t->b.count_w >= t->width && (io->y_stride_w == 1 || p->out_w == 1)) return 0;
    if (p->out_d > 1 || p->oc > 1 || s->tile_step > 1 || !one_call || !t->all_at_once) return p->groups;
    if (t->b.count_h < p->out_h || t->b.count_w < p->out_w || io->y_stride_c != plane) return p->groups;
    return is_dense(1, p->out_h, p->out_w, 0, io->y_stride_h, io->y_stride_w) ? ceil_div(t->width, plane) : p->groups;
}

/* The rows, or vectors across, of the tiles of so many outputs. Equal tiles: 14 rows are two of 7, not 10 and 4. */
static int64_t tile_rows(const dw_plan *s, int64_t count_h, int64_t count_w) {
    const int64_t all = s->across ? ceil_div(count_w, LANES) : ceil_div(count_h, s->tile_step);
    return ceil_div(all, ceil_div(all, tile_most_rows(s->channels)));
}

/* The tiles of block b and where they are read. */
static void task_block(dw_task *t, dw_block_of b) {
    const dw_plan *s = t->s;
    t->b = b;
    t->rows = tile_rows(s, b.count_h, b.count_w);
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
static void fill_strip(const dw_task *t, int64_t at, int64_t group, int64_t groups, real *strip) {
    const conv_problem *p = t->p;
    if (!t->plain_x) {
        if (t->inner_last - t->inner_first < t->b.count_w)
            dw_gather_channels(p, t->io, t->s, t->spans, &t->b, at, groups * p->ic, strip);
        return;
    }
    if (t->inner_last == 0) {
        dw_copy_channels(p, t->io, t->s, t->spans, at, group * p->ic, groups * p->ic, strip);
        return;
    }
    dw_span *w = t->spans + t->s->d.classes + t->s->h.classes; /* one class where columns are read from x */
    const dw_span all = *w;
    if (t->inner_first > 0) {
        w->last = min_i64(all.last, t->inner_first + (p->kernel_w - 1) * p->dilation_w);
        dw_copy_channels(p, t->io, t->s, t->spans, at, group * p->ic, groups * p->ic, strip);
    }
    if (t->inner_last < t->b.count_w) {
        w->last = all.last;
        /* what the last of its tiles, which end with the row, reads */
        const int64_t columns = t->b.count_w - t->inner_last, vectors = vectors_across(columns, t->s->channels, 0);
        w->first = max_i64(all.first, min_i64(t->inner_last, t->b.count_w - vectors * LANES));
        w->source = all.source + w->first - all.first;
        dw_copy_channels(p, t->io, t->s, t->spans, at, group * p->ic, groups * p->ic, strip);
    }
    *w = all;
}

/* Groups [first, last) of one block of one image. x, y: of the image. */
static void block_run(const dw_task *t, int64_t x, int64_t y, int64_t first, int64_t last, int64_t batch, real *strip) {
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const dw_block_of *b = &t->b;
    if (t->plain_x && t->inner_last - t->inner_first < b->count_w) /* once for all groups */
        memset(strip - LANES, 0, (size_t)dw_strip_size(t->s, min_i64(batch, last - first) * p->ic) * sizeof(real));
    int64_t inner = 0; /* what the first output reads through the first tap */
    if (t->inner_last > 0)
        inner = dw_source_index(&t->s->d, 0, b->d, 0) * io->x_stride_d +
                dw_source_index(&t->s->h, 0, b->h, 0) * io->x_stride_h + b->w - t->s->w.pad;
    y += b->d * io->y_stride_d + b->h * io->y_stride_h + b->w * io->y_stride_w;
    for (int64_t g = first; g < last; g += batch) {
        const int64_t from = x + g * p->ic * io->x_stride_c;
        dw_batch_at at = {.groups = min_i64(batch, last - g), .weights = io->packed, .bias = io->bias};
        fill_strip(t, from, g, at.groups, strip);
        at.weights += g * p->oc * p->ic * t->taps;
        if (at.bias) at.bias += g * p->oc; /* C knows no sum of NULL and 0 */
        for (int64_t d = 0; d < b->count_d; d++) {
            at.strip = strip + d * t->s->slice;
            at.x = (const real *)io->x + from + inner + (t->inner_last > 0 ? d * t->x.slice : 0);
            at.y = y + g * p->oc * io->y_stride_c + d * io->y_stride_d;
            batch_run(t, &at, last - g);
        }
    }
}

static void depthwise_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    dw_plan s = dw_plan_of(p);
    const int64_t blocks = s.blocks_d * s.blocks_h * s.blocks_w, rest = (int64_t)task / blocks;
    const int64_t tasks = blocks * s.group_blocks, image = (int64_t)task / tasks, i = (int64_t)task % tasks;
    if (lanes_reads(p, io)) { /* as many tasks of an image, but of its rows */
        const int64_t rows = p->out_d * p->out_h;
        lanes_run(p, io, &s, image, rows * i / tasks, rows * (i + 1) / tasks, scratch);
        return;
    }
    if (inplace_reads(p, io, &s)) { /* or of blocks of rows */
        const inplace_image t = inplace_begin(p, io, scratch);
        (s.stream ? inplace_stream_run : inplace_line_run)(&t, image * io->x_stride_n, image * io->y_stride_n, i,
                                                           tasks);
        return;
    }
    const int64_t first = rest % s.group_blocks * s.groups_per_task, n = rest / s.group_blocks;
    const int64_t last = min_i64(first + s.groups_per_task, p->groups), block = (int64_t)task % blocks;
    dw_block_of b = {.w = block % s.blocks_w * s.w.block, .h = block / s.blocks_w % s.blocks_h * s.h.block};
    b.d = block / s.blocks_w / s.blocks_h * s.d.block;
    b.count_w = min_i64(s.w.block, p->out_w - b.w);
    b.count_d = min_i64(s.d.block, p->out_d - b.d);
    const int64_t end = min_i64(b.h + s.h.block, p->out_h);
    const int plain_x = p->pad_mode == CONV_PAD_ZEROS;
    const int channels_last = plain_x && io->x_stride_c == 1 && io->x_stride_w != 1;
    if (channels_last) dw_axis_resize(&s.h, s.transposed_rows);
    dw_layout(&s);
    real *strip = (real *)scratch + LANES, *tile = (real *)scratch + ceil_div(s.size, LANES) * LANES;
    int64_t *offsets = (int64_t *)(tile + ceil_div(tile_elements(&s), LANES) * LANES);
    dw_task t = {
        .p = p, .io = io, .s = &s, .taps = dw_taps(p), .terms = chain_terms(p), .tile = tile, .plain_x = plain_x};
    t.strip.offsets = offsets;
    t.x.offsets = offsets + t.taps;
    t.spans = (dw_span *)(offsets + 2 * t.taps);
    for (; b.h < end; b.h += s.h.block) {
        b.count_h = min_i64(s.h.block, end - b.h);
        task_block(&t, b);
        block_run(&t, n * io->x_stride_n, n * io->y_stride_n, first, last,
                  channels_last ? s.transposed_groups : s.batch, strip);
    }
}

static conv_facts depthwise_facts(const conv_problem *p) {
    const dw_plan s = dw_plan_of(p);
    const double channels = (double)(p->n * p->groups) * (double)(p->ic * p->oc * dw_taps(p));
    return (conv_facts){
        .tile_pixels = (s.stream ? 1 : tile_rows(&s, s.h.block, s.w.block)) * LANES,
        .tile_channels = s.channels,
        .groups = s.groups_per_task,
        .channels = p->oc,
        .depth = s.d.block,
        .rows = s.h.block,
        .cols = s.w.block,
        .terms = p->ic * dw_taps(p),
        .operations = 2 * channels * (double)(p->out_d * p->out_h) * (double)(ceil_div(p->out_w, LANES) * LANES),
    };
}

ALGORITHM(depthwise);
