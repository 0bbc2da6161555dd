/* Depthwise convolution and small groups: a padded strip of the input in L1, pixels in vector lanes.
 *
 *     y[m, pixels] = bias[m] + sum over (c, taps) of w[m, c, tap] * strip[c][pixels + offset of the tap]
 *
 * for each task (image, block of groups, block of outputs):   one thread
 *   for each group:                                           strip gathered from x: L1
 *     for each tile of ROWS vectors (in rows, or along one):  and each output channel
 *       for each channel, for each chunk of up to TAPS taps:  weights in registers
 *         for each vector of the strip:                       one load, used by up to TAPS accumulators
 *
 * Taps in consecutive rows of a class (depthwise.h) read the same vectors for consecutive rows of outputs, so a tile
 * of R rows and K taps loads R + K - 1 vectors for R * K multiply-adds; in one dimension taps a vector apart do.
 * Tails: the last vector of a row ends with the row and overlaps the one before; rows narrower than a tile, and
 * outputs that are not consecutive, go through a tile in memory. Every output is summed in the same order.
 * Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", ICML 2018; Zhang, Lo and Lu,
 * "High performance depthwise and pointwise convolutions on mobile devices", AAAI 2020. */
#include "depthwise.h"

static int depthwise_accepts(const conv_problem *p) {
    if (p->ic < 1 || p->ic > 16 || p->oc < 1 || p->oc > 16 || p->kernel_w > 2048 || p->kernel_h > 2048) return 0;
    if (p->kernel_d > 64 || p->kernel_d * p->kernel_h * p->kernel_w > MOST_TAPS) return 0;
    if (p->out_d < 1 || p->out_h < 1 || p->out_w < 1) return 0;
    return strip_plan_of(p).size * (int64_t)sizeof(real) <= MOST_STRIP_BYTES;
}

INLINE int64_t tap_count(const conv_problem *p) { return p->kernel_d * p->kernel_h * p->kernel_w; }

static size_t depthwise_packed_bytes(const conv_problem *p) {
    return (size_t)(p->groups * p->oc * p->ic * tap_count(p)) * sizeof(real);
}

enum { GROUPS_PER_PACK = 64 };

static size_t depthwise_pack_tasks(const conv_problem *p) { return (size_t)ceil_div(p->groups, GROUPS_PER_PACK); }

/* Packed: for each group, for each block of channels, for each input channel, for each chunk: [tap][channel]. */
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
    const strip_plan s = strip_plan_of(p);
    const int64_t taps = tap_count(p), first = (int64_t)task * GROUPS_PER_PACK * p->oc;
    const int64_t last = min_i64(first + GROUPS_PER_PACK * p->oc, p->groups * p->oc);
    pack_context context = {NULL, (real *)packed + first * p->ic * taps, s.chunk_stride, 0, p->ic * taps};
    if (!s.across) context.tap_stride *= p->kernel_w;
    for (int64_t m = first; m < last; m += context.channels) {
        context.channels = min_i64(s.channels, p->oc - m % p->oc);
        for (int64_t c = 0; c < p->ic; c++) {
            context.src = (const real *)w + (m * p->ic + c) * taps;
            visit_chunks(p, &s, pack_chunk, &context);
        }
    }
}

/* What a tile multiplies and where it goes: vectors column_step apart, the last at last_column. */
typedef struct tile_job {
    const real *strip, *weights;
    const int64_t *offsets; /* of the chunks: whole of them have all the taps, then less of them have one less */
    int64_t whole, less, ic, channel, lane_row;
    int64_t rows, column_step, last_column;
    real *out;
    int64_t out_row, out_channel;
    const real *sum;  /* of the terms before these, [channel][row][LANES], or NULL */
    const real *bias; /* of the tile's first channel at the last terms, else NULL */
} tile_job;

/* acc[o][r] += weights[k][o] * vector r + k of the strip, for the chunks of one input channel. */
INLINE const real *tile_chunks(const int channels, const int taps, const int rows, const int64_t *offsets,
                               int64_t count, const real *strip, int64_t lane_row, const real *weights, vec *acc) {
    for (int64_t s = 0; s < count; s++, weights += taps * channels) {
        const real *x = strip + offsets[s];
        vec w[TAPS * CHANNELS];
#pragma GCC unroll 16
        for (int k = 0; k < taps * channels; k++) w[k] = vec_splat(weights[k]);
#pragma GCC unroll 32
        for (int i = 0; i < rows + taps - 1; i++) {
            const vec v = vec_load(x + i * lane_row);
#pragma GCC unroll 4
            for (int k = 0; k < taps; k++)
#pragma GCC unroll 4
                for (int o = 0; o < channels; o++)
                    if (i >= k && i - k < rows) acc[o * rows + i - k] += w[k * channels + o] * v;
        }
    }
    return weights;
}

INLINE void tile_store(const int channels, const int rows, const tile_job *job, int64_t column, const vec *acc) {
#pragma GCC unroll 4
    for (int o = 0; o < channels; o++) {
        const vec bias = job->bias ? vec_splat(job->bias[o]) : vec_zero();
        const real *sum = job->sum + o * rows * LANES;
        real *out = job->out + o * job->out_channel + column;
        if (job->sum) {
#pragma GCC unroll 32
            for (int r = 0; r < rows; r++)
                vec_store(out + r * job->out_row, vec_load(sum + r * LANES) + acc[o * rows + r] + bias);
        } else {
#pragma GCC unroll 32
            for (int r = 0; r < rows; r++) vec_store(out + r * job->out_row, acc[o * rows + r] + bias);
        }
    }
}

INLINE void tile_columns(const int channels, const int taps, const int rows, const tile_job *of) {
    const tile_job job = *of; /* a copy that no store can change */
    for (int64_t column = 0;; column = min_i64(column + job.column_step, job.last_column)) {
        vec acc[ACCS];
#pragma GCC unroll 32
        for (int r = 0; r < channels * rows; r++) acc[r] = vec_zero();
        const real *weights = job.weights, *strip = job.strip + column;
        for (int64_t c = 0; c < job.ic; c++, strip += job.channel) {
            weights = tile_chunks(channels, taps, rows, job.offsets, job.whole, strip, job.lane_row, weights, acc);
            if (taps > 1)
                weights = tile_chunks(channels, taps - 1, rows, job.offsets + job.whole, job.less, strip, job.lane_row,
                                      weights, acc);
        }
        tile_store(channels, rows, &job, column, acc);
        if (column == job.last_column) break;
    }
}

#define STRIP_ROWS(r) \
    case r: \
        if (r <= most) tile_columns(channels, taps, r <= most ? r : 1, job); \
        break;

INLINE void tile_of_rows(const int channels, const int taps, const int most, const tile_job *job) {
    switch (job->rows) {
        STRIP_ROWS(1) STRIP_ROWS(2) STRIP_ROWS(3) STRIP_ROWS(4) STRIP_ROWS(5) STRIP_ROWS(6) STRIP_ROWS(7)
        STRIP_ROWS(8) STRIP_ROWS(9) STRIP_ROWS(10) STRIP_ROWS(11) STRIP_ROWS(12) STRIP_ROWS(13) STRIP_ROWS(14)
    }
}

/* The most rows of a tile of so many channels. */
INLINE int tile_most_rows(int64_t channels) { return channels == 1 ? ROWS : (int)(CHANNEL_ACCS / channels); }

static void tile_1_1(const tile_job *job) { tile_of_rows(1, 1, tile_most_rows(1), job); }
static void tile_1_2(const tile_job *job) { tile_of_rows(1, 2, tile_most_rows(1), job); }
static void tile_1_3(const tile_job *job) { tile_of_rows(1, 3, tile_most_rows(1), job); }
static void tile_1_4(const tile_job *job) { tile_of_rows(1, 4, tile_most_rows(1), job); }
static void tile_2_1(const tile_job *job) { tile_of_rows(2, 1, tile_most_rows(2), job); }
static void tile_3_1(const tile_job *job) { tile_of_rows(3, 1, tile_most_rows(3), job); }
static void tile_4_1(const tile_job *job) { tile_of_rows(4, 1, tile_most_rows(4), job); }

static void tile_run(int64_t channels, int64_t taps, const tile_job *job) {
    static void (*const of_taps[TAPS])(const tile_job *) = {tile_1_1, tile_1_2, tile_1_3, tile_1_4};
    static void (*const of_channels[CHANNELS])(const tile_job *) = {tile_1_1, tile_2_1, tile_3_1, tile_4_1};
    (channels == 1 ? of_taps[taps - 1] : of_channels[channels - 1])(job);
}

/* The chunks' offsets in the strip, and how many have all the taps. */
typedef struct offset_context {
    const conv_problem *p;
    const strip_plan *s;
    int64_t *offsets;
    int64_t count, whole;
} offset_context;

static void offset_of_chunk(void *context, int64_t tap, int64_t taps) {
    offset_context *c = context;
    const int64_t plane = c->p->kernel_h * c->p->kernel_w;
    const int64_t d = tap / plane, h = tap % plane / c->p->kernel_w, w = tap % c->p->kernel_w;
    c->offsets[c->count++] = tap_position(&c->s->d, d) * c->s->slice + tap_position(&c->s->h, h) * c->s->row_size +
                             tap_position(&c->s->w, w);
    c->whole += taps == c->s->chunk;
}

/* All of a task that its tiles need. */
typedef struct depthwise_task {
    const conv_problem *p;
    const conv_io *io;
    const strip_plan *s;
    int64_t taps, chunks, whole;
    int64_t tile_rows, width, columns; /* accumulators of a tile, columns that it writes, columns of the block */
    const int64_t *offsets;
    real *strip, *tile;
} depthwise_task;

/* One tile over more than TERMS terms: blocks of whole input channels or of a part of one. */
static void tile_terms(const depthwise_task *t, int64_t channels, const tile_job *all) {
    real sum[ACCS * LANES] __attribute__((aligned(CONV_ALIGN)));
    const int64_t ic = t->p->ic, at_once = max_i64(TERMS / t->taps, 1);
    const int64_t step = t->taps <= TERMS ? t->chunks : TERMS / t->s->chunk;
    tile_job job = *all;
    job.sum = job.bias = NULL;
    job.out = sum;
    job.out_row = LANES;
    job.out_channel = job.rows * LANES;
    for (int64_t c = 0; c < ic; c += at_once) {
        for (int64_t first = 0; first < t->chunks; first += step) {
            const int64_t last = min_i64(first + step, t->chunks);
            job.ic = min_i64(at_once, ic - c);
            job.strip = all->strip + c * job.channel;
            job.offsets = t->offsets + first;
            job.whole = max_i64(min_i64(last, t->whole) - first, 0);
            job.less = last - first - job.whole;
            if (c + at_once >= ic && last == t->chunks) {
                job.out = all->out;
                job.out_row = all->out_row;
                job.out_channel = all->out_channel;
                job.bias = all->bias;
            }
            tile_run(channels, t->s->chunk, &job);
            job.sum = sum;
            job.weights += job.ic * (job.whole * t->s->chunk + job.less * (t->s->chunk - 1)) * channels;
        }
    }
}

/* All columns of a tile of rows. */
static void tile_all(const depthwise_task *t, int64_t channels, tile_job *job) {
    if (t->p->ic * t->taps <= TERMS) {
        tile_run(channels, t->s->chunk, job);
        return;
    }
    const real *strip = job->strip;
    real *out = job->out;
    const int64_t last = job->last_column;
    job->last_column = 0;
    for (int64_t column = 0;; column = min_i64(column + job->column_step, last)) {
        job->strip = strip + column;
        job->out = out + column;
        tile_terms(t, channels, job);
        if (column == last) break;
    }
}

/* rows x columns of a tile in memory to where they belong. */
static void tile_scatter(const real *tile, int64_t pitch, int64_t rows, int64_t columns, real *y, int64_t stride_row,
                         int64_t stride_column) {
    for (int64_t r = 0; r < rows; r++, y += stride_row, tile += pitch) {
        if (stride_column == 1)
            copy_run(y, tile, columns);
        else
            for (int64_t i = 0; i < columns; i++) y[i * stride_column] = tile[i];
    }
}

/* Output channels [m, m + channels) of rows rows, tile_step apart (across: of one row). strip: the first row's
 * position; y: its first element in the first channel. */
static void rows_run(const depthwise_task *t, int64_t channels, int64_t rows, const real *strip, const real *weights,
                     const real *bias, real *y) {
    const strip_plan *s = t->s;
    const int64_t columns = t->columns, stride_w = t->io->y_stride_w, stride_row = s->tile_step * t->io->y_stride_h;
    tile_job job = {.strip = strip, .weights = weights, .offsets = t->offsets, .whole = t->whole, .bias = bias};
    job.less = t->chunks - t->whole;
    job.ic = t->p->ic;
    job.channel = s->channel;
    job.lane_row = s->lane_row;
    job.rows = s->across ? t->tile_rows : rows;
    job.column_step = t->width;
    job.last_column = max_i64(columns - t->width, 0);
    const int direct = (stride_w == 1 || columns == 1) && columns >= t->width;
    const int64_t pitch = max_i64(columns, t->width);
    job.out = direct ? y : t->tile;
    job.out_row = s->across ? LANES : direct ? stride_row : pitch;
    job.out_channel = direct ? t->io->y_stride_c : rows * pitch;
    tile_all(t, channels, &job);
    if (!direct)
        for (int64_t o = 0; o < channels; o++)
            tile_scatter(t->tile + o * job.out_channel, pitch, rows, columns, y + o * t->io->y_stride_c, stride_row,
                         stride_w);
}

/* One depth of one group: all tiles of rows, all output channels. */
static void slice_run(const depthwise_task *t, const strip_block *b, const real *strip, const real *weights,
                      const real *bias, real *y) {
    const strip_plan *s = t->s;
    const int64_t tile = s->across ? 1 : t->tile_rows;
    for (int64_t class = 0; class < min_i64(s->tile_step, b->count_h); class++)
        for (int64_t h = class; h < b->count_h; h += tile * s->tile_step) {
            const int64_t left = b->count_h - h;
            const int64_t rows = tile * s->tile_step <= left ? tile : ceil_div(left, s->tile_step);
            for (int64_t m = 0; m < t->p->oc; m += s->channels)
                rows_run(t, min_i64(s->channels, t->p->oc - m), rows, strip + h * s->row_size,
                         weights + m * t->p->ic * t->taps, bias ? bias + m : NULL,
                         y + m * t->io->y_stride_c + h * t->io->y_stride_h);
        }
}

/* A tile in memory: ROWS rows, or CHANNELS channels of fewer rows, of a block's columns or of one tile. */
static int64_t tile_elements(const strip_plan *s) {
    return (s->channels > 1 ? CHANNEL_ACCS : ROWS) * (s->across ? s->w.block + ROWS * LANES : s->w.block + LANES);
}

static size_t depthwise_scratch_bytes(const conv_problem *p) {
    const strip_plan s = strip_plan_of(p);
    return (size_t)tap_count(p) * sizeof(int64_t) + (size_t)(s.size + tile_elements(&s) + 2 * LANES) * sizeof(real) +
           (size_t)(s.d.classes + s.h.classes + s.w.classes) * sizeof(strip_span);
}

static size_t depthwise_tasks(const conv_problem *p) {
    const strip_plan s = strip_plan_of(p);
    return (size_t)(p->n * s.group_blocks * s.blocks_d * s.blocks_h * s.blocks_w);
}

static strip_block strip_block_of(const conv_problem *p, const strip_plan *s, int64_t block) {
    strip_block b;
    b.w = block % s->blocks_w * s->w.block;
    b.h = block / s->blocks_w % s->blocks_h * s->h.block;
    b.d = block / s->blocks_w / s->blocks_h * s->d.block;
    b.count_w = min_i64(s->w.block, p->out_w - b.w);
    b.count_h = min_i64(s->h.block, p->out_h - b.h);
    b.count_d = min_i64(s->d.block, p->out_d - b.d);
    return b;
}

/* Equal tiles: 14 rows are two of 7, not 10 and 4. */
static void plan_tiles(depthwise_task *t, const strip_block *b) {
    const int64_t most = tile_most_rows(t->s->channels);
    const int64_t all = t->s->across ? ceil_div(b->count_w, LANES) : ceil_div(b->count_h, t->s->tile_step);
    t->tile_rows = ceil_div(all, ceil_div(all, most));
    t->width = (t->s->across ? t->tile_rows : 1) * LANES;
    t->columns = b->count_w;
}

static void depthwise_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    const strip_plan s = strip_plan_of(p);
    const int64_t blocks = s.blocks_d * s.blocks_h * s.blocks_w, rest = (int64_t)task / blocks;
    const int64_t first = rest % s.group_blocks * s.groups_per_task, n = rest / s.group_blocks;
    const strip_block b = strip_block_of(p, &s, (int64_t)task % blocks);
    real *strip = scratch, *tile = strip + ceil_div(s.size, LANES) * LANES;
    int64_t *offsets = (int64_t *)(tile + ceil_div(tile_elements(&s), LANES) * LANES);
    strip_span *spans = (strip_span *)(offsets + tap_count(p));
    offset_context context = {p, &s, offsets, 0, 0};
    visit_chunks(p, &s, offset_of_chunk, &context);
    depthwise_task t = {p, io, &s, tap_count(p), context.count, context.whole, 0, 0, 0, offsets, strip, tile};
    plan_tiles(&t, &b);
    strip_spans(p, &s, &b, spans);
    const int zeros = p->pad_mode == CONV_PAD_ZEROS;
    if (zeros) memset(strip, 0, (size_t)s.size * sizeof(real)); /* once for all groups */
    for (int64_t g = first; g < min_i64(first + s.groups_per_task, p->groups); g++) {
        const real_unaligned *x = (const real_unaligned *)io->x + n * io->x_stride_n + g * p->ic * io->x_stride_c;
        for (int64_t c = 0; c < p->ic; c++) {
            if (zeros)
                strip_copy_channel(io, &s, spans, x + c * io->x_stride_c, strip + c * s.channel);
            else
                strip_gather_channel(p, io, &s, &b, x + c * io->x_stride_c, strip + c * s.channel);
        }
        const real *weights = (const real *)io->packed + g * p->oc * p->ic * t.taps;
        const real *bias = io->bias ? (const real *)io->bias + g * p->oc : NULL;
        real *y = (real *)io->y + n * io->y_stride_n + g * p->oc * io->y_stride_c + b.d * io->y_stride_d +
                  b.h * io->y_stride_h + b.w * io->y_stride_w;
        for (int64_t d = 0; d < b.count_d; d++)
            slice_run(&t, &b, strip + d * s.slice, weights, bias, y + d * io->y_stride_d);
    }
}
