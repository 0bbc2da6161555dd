/* Winograd's F(4, 3) along rows: 6 multiplications for 4 outputs instead of 12, in filters of rows of 3 taps, stride 1.
 *
 *     y(tile) = A^T [ sum over c, kd, kh of U[c, kd, kh] . B^T d[c, kd, kh] ],     U = G w      (winograd_transform.h)
 *
 * for each task (group, block of output channels, block of T tiles of all rows):                         one thread
 *   for each block of terms (c, kd, kh):                                                       V: a quarter of L2
 *     for each (c, kd): rows of pixels -> z                                                               z: L1
 *       for each kh: B^T z -> V[6][terms][T]
 *     M += U V                                                                                  (winograd_product.h)
 *   for each panel of NR output channels: A^T M -> sums[pixel][NR] -> y                                  sums: L1
 *
 * The taps of one (c, kd), below each other, share the rows of z: a tap further down begins some rows later. Where they
 * would share few (a long stride or dilation), every output has kernel_h rows of its own.
 *
 * With a dilation D the tile of output o reads o, o + D .. o + 5 D: a stretch of 4 D outputs is D tiles side by side,
 * in lanes as they lie where D is a multiple of 4; for other dilations the pixels of one remainder are gathered. Tails:
 * what lies beyond the last output's taps is zero, and outputs beyond the last are not stored; unused lanes of the last
 * panel multiply zeros. Every output is summed in the same order in whatever block, batch or thread.
 *
 * An Inf or NaN in x makes NaN of all 4 outputs, in all channels of its group, of every tile whose 6 inputs hold it. So
 * may a magnitude over 1/6 of the largest number, since B^T d adds up to 5.1 times the largest input. The error is
 * relative to the largest inputs of the tile: where those of one output are all much smaller, 16 u sum |x w| does not
 * hold for it. Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. */
#include "../cpu.h"
#include "algorithm.h"
#include "im2col.h"
#include "winograd_filter.h"
#include "winograd_product.h"

enum { LINE_ELEMENTS = 6, LINE_OUTPUTS = 4 };

/* A piece: tiles of one row, `wide` remainders of the dilation by `stretches` of 4 * dilation outputs. Pieces are
 * numbered with rows fastest. */
typedef struct line_plan {
    int64_t terms, parts;        /* of a sum; blocks of them */
    int64_t wide, stretches;     /* of a piece: one of the two is all there is, or the other is 1 */
    int64_t wide_pieces, pieces; /* side by side in a stretch; of a row */
    int64_t block, blocks;       /* pieces of a task; blocks of all rows */
    int64_t tiles;               /* the largest T */
    int64_t depth, chain;        /* the most terms of a block; terms that are summed from zero */
    int64_t panels, task_panels, panel_blocks;
    int64_t pitch, element; /* of V: T in whole vectors; from one of the 6 matrices to the next */
    int64_t m_pitch;        /* of M: from one tile to the next */
    int64_t row, reads;     /* of z: a row; all rows */
    int gathered, shared;   /* each remainder has a row of z of its own; outputs share rows of z, or have their own */
} line_plan;

/* Rows of z: those that pieces share, where that is fewer. Pieces of one column, whose rows are neighbours, are a
 * segment; a block has as many as its pieces begin anew at row 0. */
static void line_plan_rows(const conv_problem *p, line_plan *g) {
    const int64_t span = (p->kernel_h - 1) * p->dilation_h + 1, own = g->block * p->kernel_h;
    const int64_t segments = min_i64(g->block, ceil_div(g->block - 1, max_i64(p->out_h, 1)) + 1);
    g->row = g->wide * (LINE_OUTPUTS * g->stretches + 2);
    g->reads = own;
    g->shared = 0;
    if (span > own || p->stride_h > p->kernel_h) return; /* and what is multiplied here is small */
    const int64_t all = (g->block - segments) * p->stride_h + segments * max_i64(span, p->stride_h);
    g->shared = all <= own;
    if (g->shared) g->reads = all;
}

/* 64 terms of V (floats), of T = 85 tiles for 512 KiB: 21 KiB of L1 for one element beside U [64][NR]; but 8 blocks of
 * terms at most, as adding them up decides the error of many. 128 output channels (floats) in a task, 4 tasks of 512;
 * but each transforms its input itself: up to 512 where there are more blocks and M fits L2 (8 images of 7x7 pixels:
 * 0.8 of the time on Zen 3). */
static line_plan line_plan_of(const conv_problem *p) {
    const int64_t size = sizeof(real), dilation = p->dilation_w, l2 = cpu_cache_sizes()->l2;
    line_plan g;
    const int64_t units = p->ic * p->kernel_d; /* of kernel_h terms, which lie in one block */
    g.terms = units * p->kernel_h;
    g.parts = ceil_div(units, ceil_div(max_i64(256 / size, ceil_div(g.terms, 8)), p->kernel_h));
    g.depth = ceil_div(units, g.parts) * p->kernel_h;
    /* Largest errors of 2 to 4 * 10^6 outputs from 24 terms to 128, of 2 * 10^5 for 2048: 8.3 u sum |x w| for normal
     * data, 10.1 for data of one sign; 19.7 with chains of 64. Of 10^5 to 6 * 10^5 outputs of 3x3, 5x3 and 3x3x3
     * filters with padding, 88 to 2040 terms: 5.5 and 9.3. */
    g.chain = ceil_div(g.depth, ceil_div(g.depth, g.terms < 64 ? 16 : g.terms < 128 ? 22 : 32));
    const int64_t most = max_i64(l2 / 4 / (LINE_ELEMENTS * g.depth * size) / 4 * 4, 16);
    const int64_t all = ceil_div(p->out_w, LINE_OUTPUTS * dilation), rows = p->n * p->out_d * p->out_h;
    g.gathered = dilation % 4 != 0;
    g.wide_pieces = ceil_div(dilation, most);
    g.wide = ceil_div(ceil_div(dilation, g.wide_pieces), 4) * 4;
    if (g.wide_pieces == 1) g.wide = dilation;
    g.wide_pieces = ceil_div(dilation, g.wide);
    g.stretches = g.wide_pieces > 1 ? 1 : ceil_div(all, ceil_div(all, most / dilation));
    g.pieces = g.wide_pieces * ceil_div(all, g.stretches);
    const int64_t every = rows * g.pieces, fits = g.wide_pieces > 1 ? 1 : max_i64(most / (g.wide * g.stretches), 1);
    g.block = max_i64(ceil_div(every, max_i64(ceil_div(every, fits), 1)), 1);
    g.blocks = ceil_div(every, g.block);
    g.tiles = g.block * g.wide * g.stretches;
    line_plan_rows(p, &g);
    g.panels = ceil_div(p->oc, WINOGRAD_NR);
    const int64_t room = min_i64(l2, 1 << 20) / (LINE_ELEMENTS * max_i64(g.tiles, 1));
    const int64_t task_bytes = max_i64(min_i64(room, g.blocks < 2 ? 512 : g.blocks < 4 ? 1024 : 2048), 512);
    g.task_panels = ceil_div(g.panels, ceil_div(g.panels, task_bytes / size / WINOGRAD_NR));
    g.panel_blocks = ceil_div(g.panels, g.task_panels);
    /* Odd numbers of cache lines, as in winograd.c. */
    g.pitch = ceil_div(g.tiles, LANES) * LANES;
    g.element = (ceil_div(g.depth * g.pitch, WINOGRAD_LINE) | 1) * WINOGRAD_LINE;
    g.m_pitch = g.task_panels * LINE_ELEMENTS * WINOGRAD_NR + WINOGRAD_LINE;
    return g;
}

/* The first term of a block: the blocks are as long as each other, but for kernel_h terms. */
INLINE int64_t line_part(const conv_problem *p, const line_plan *g, int64_t part) {
    return p->ic * p->kernel_d * part / g->parts * p->kernel_h;
}

/* As in winograd.c, for one axis. */
INLINE int line_padding_is_narrow(const conv_problem *p) {
    const int64_t right = p->out_w + 2 * p->dilation_w - p->pad_w - p->in_w;
    return max_i64(p->pad_w, right) <= p->dilation_w;
}

/* The taps on one axis that read the input, at least, of the outputs that any tap of it does. */
INLINE int64_t fewest_taps(int64_t taps, int64_t dilation, int64_t pad, int64_t in, int64_t after) {
    const int64_t before = ceil_div(max_i64(pad, 0), dilation), beyond = ceil_div(max_i64(after, 0), dilation);
    const int fits = in > (taps - 1) * dilation; /* no output reads beyond both ends */
    return max_i64(taps - (fits ? max_i64(before, beyond) : before + beyond), 1);
}

/* Terms of a sum, at least, that are not products with padding: zeros in V err by nothing, but fewer terms are a
 * smaller sum |x w| to err by. */
static int64_t line_least_terms(const conv_problem *p) {
    if (p->pad_mode != CONV_PAD_ZEROS && p->pad_mode != CONV_PAD_CONSTANT) return p->ic * p->kernel_d * p->kernel_h;
    const int64_t span_d = (p->kernel_d - 1) * p->dilation_d, span_h = (p->kernel_h - 1) * p->dilation_h;
    const int64_t below_d = (p->out_d - 1) * p->stride_d + span_d - p->pad_d - p->in_d + 1;
    const int64_t below_h = (p->out_h - 1) * p->stride_h + span_h - p->pad_h - p->in_h + 1;
    return p->ic * fewest_taps(p->kernel_d, p->dilation_d, p->pad_d, p->in_d, below_d) *
           fewest_taps(p->kernel_h, p->dilation_h, p->pad_h, p->in_h, below_h);
}

/* Whether one image takes less time than with 3 multiply-adds for each output and term. In multiply-adds of `direct`,
 * measured on Zen 3 with AVX2, 16 of them a cycle: those of U V at five sixths of its speed, B^T 60 for each tile and
 * term, A^T 40 for an output channel; a weight takes 3/8 of a cycle from L3 and half a one from memory where few tiles
 * share it. 31 layers, 16 to 512 channels and 2 to 1568 tiles: within 0.12 of the ratio from 10 tiles on. */
static int line_is_faster(const conv_problem *p, const line_plan *g) {
    const double terms = (double)g->terms, oc = (double)(g->panels * WINOGRAD_NR);
    const double rows = (double)(p->out_d * p->out_h);
    const double tiles = rows * (double)(ceil_div(p->out_w, LINE_OUTPUTS * p->dilation_w) * p->dilation_w);
    const double weights = LINE_ELEMENTS * terms * oc, l3 = 16 << 20;
    const double load = (weights * sizeof(real) > l3 ? 0.25 : 0.1875) * VECTOR_BYTES, block = (double)g->tiles;
    const double multiply = 1.2 * block > load ? 1.2 : load / block;
    const double transform = 60 * terms * (double)g->panel_blocks + 40 * oc;
    return tiles * (weights * multiply + transform) < 3 * terms * (double)p->oc * rows * (double)p->out_w;
}

#define WINOGRAD_1D_RAW_OUTPUTS 300

static int winograd_1d_accepts(const conv_problem *p) {
    if (p->raw && p->out_d * p->out_h * p->out_w < WINOGRAD_1D_RAW_OUTPUTS) return 0;
    if (LANES < 4 || p->exact || p->oc == 0 || p->kernel_w != 3 || p->stride_w != 1) return 0;
    if (p->kernel_d * p->kernel_h > 2048 || p->ic > 2048) return 0;
    if (line_least_terms(p) < 32 || p->ic * p->kernel_d * p->kernel_h > 2048) return 0;
    if (p->out_w / LINE_OUTPUTS < p->dilation_w) return 0;
    if ((p->pad_mode == CONV_PAD_ZEROS || p->pad_mode == CONV_PAD_CONSTANT) && !line_padding_is_narrow(p)) return 0;
    conv_problem image = *p;
    image.n = 1;
    const line_plan g = line_plan_of(&image);
    return 4 * p->kernel_h <= g.depth && line_is_faster(p, &g);
}

static size_t winograd_1d_packed_bytes(const conv_problem *p) {
    const int64_t terms = p->ic * p->kernel_d * p->kernel_h;
    return (size_t)(p->groups * LINE_ELEMENTS * ceil_div(p->oc, WINOGRAD_NR) * WINOGRAD_NR * terms) * sizeof(real);
}

static size_t winograd_1d_pack_tasks(const conv_problem *p) {
    return (size_t)(p->groups * ceil_div(p->oc, WINOGRAD_NR));
}

/* Packed: for each group, for each block of terms: [6][panels][terms of the block][NR]. */
static void winograd_1d_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const line_plan g = line_plan_of(p);
    const int64_t group = (int64_t)task / g.panels, panel = (int64_t)task % g.panels, k = panel * WINOGRAD_NR;
    const real *src = (const real *)w + (group * p->oc + k) * g.terms * 3;
    real *dst = (real *)packed + group * LINE_ELEMENTS * g.panels * WINOGRAD_NR * g.terms;
    for (int64_t part = 0; part < g.parts; part++) {
        const int64_t first = line_part(p, &g, part), depth = line_part(p, &g, part + 1) - first;
        real *u = dst + (first * LINE_ELEMENTS * g.panels + panel * depth) * WINOGRAD_NR;
        winograd_filters(3, src + first * 3, g.terms * 3, p->oc - k, depth, u, g.panels * depth * WINOGRAD_NR);
    }
}

/* Pieces of one column in consecutive output rows. */
typedef struct line_segment {
    int64_t wide, stretches, rows, reads; /* of a piece; of outputs; of z */
    int64_t tiles;                        /* of a piece */
    int64_t ow;                           /* the first tile's output */
    int64_t d, h, x;                      /* where the first tap reads, in padded rows; the image in x */
    int64_t y;                            /* output 0 of the first row */
    int64_t z;
} line_segment;

typedef struct line_task {
    line_plan plan;
    conv_problem p; /* as z's pixels are read: a dilation may be the stride */
    int64_t panels, tiles, count;
    int64_t ahead; /* how far the channel lies that is fetched, where rows are long, or 0 */
    line_segment *segment;
    int32_t *at; /* where in z each tile begins, for the first tap */
    real *z, *v, *m, *sums, *bias;
} line_task;

/* The segment that begins with a piece, of at most `most` pieces. */
static line_segment line_segment_at(const line_task *t, const conv_io *io, int64_t index, int64_t most) {
    const line_plan *g = &t->plan;
    const conv_problem *p = &t->p;
    const int64_t oh = index % p->out_h, column = index / p->out_h, i = column % g->pieces;
    const int64_t od = column / g->pieces % p->out_d, n = column / g->pieces / p->out_d;
    const int64_t first = i / g->wide_pieces * g->stretches, remainder = i % g->wide_pieces * g->wide;
    const int64_t all = ceil_div(p->out_w, LINE_OUTPUTS * p->dilation_w);
    line_segment l = {.wide = min_i64(g->wide, p->dilation_w - remainder),
                      .stretches = min_i64(g->stretches, all - first),
                      .rows = g->shared ? min_i64(most, p->out_h - oh) : 1};
    l.reads = g->shared ? (l.rows - 1) * p->stride_h + (p->kernel_h - 1) * p->dilation_h + 1 : p->kernel_h;
    l.tiles = l.wide * l.stretches;
    l.ow = first * LINE_OUTPUTS * p->dilation_w + remainder;
    l.d = od * p->stride_d - p->pad_d;
    l.h = oh * p->stride_h - p->pad_h;
    l.x = n * io->x_stride_n;
    l.y = n * io->y_stride_n + od * io->y_stride_d + oh * io->y_stride_h;
    return l;
}

static void line_split(line_task *t, const conv_io *io, int64_t first, int64_t count) {
    const line_plan *g = &t->plan;
    for (int64_t z = 0; count > 0;) {
        line_segment *l = &t->segment[t->count++];
        *l = line_segment_at(t, io, first, count);
        l->z = z;
        const int64_t row = LINE_OUTPUTS * l->stretches + 2;
        for (int64_t r = 0; r < l->rows; r++)
            for (int64_t i = 0; i < l->tiles; i++) {
                const int64_t stretch = i / l->wide, remainder = i % l->wide;
                const int64_t at = g->gathered ? remainder * row + LINE_OUTPUTS * stretch
                                               : LINE_OUTPUTS * l->wide * stretch + remainder;
                t->at[t->tiles++] = (int32_t)(z + r * t->p.stride_h * g->row + at);
            }
        z += l->reads * g->row;
        first += l->rows, count -= l->rows;
    }
    for (int64_t i = t->tiles; i < g->pitch; i++) t->at[i] = 0;
}

/* z[rows][0..count) = a segment's padded input rows from `column` on, `step` columns apart; what lies beyond the last
 * output's taps stays zero. image: the slice that they are in, or NO_ROW. */
static void line_gather(const line_task *t, const conv_io *io, const line_segment *l, int64_t image, int64_t column,
                        int64_t count, real *z) {
    const conv_problem *p = &t->p;
    const int64_t end = p->out_w + 2 * p->dilation_w, used = ceil_div(max_i64(end - column, 0), p->stride_w);
    const int64_t step = t->plan.shared ? 1 : p->dilation_h;
    const row_window w = row_window_of(p, io, column, 0, min_i64(count, used));
    for (int64_t r = 0; r < l->reads; r++, z += t->plan.row) {
        const int64_t h = pad_index(l->h + r * step, p->in_h, p->pad_mode);
        const int64_t row = image == NO_ROW || h < 0 ? NO_ROW : image + h * io->x_stride_h;
        if (t->ahead && row != NO_ROW) fetch_run(p, io, row + t->ahead + w.first + w.begin, w.end - w.begin);
        gather_row(p, io, row, &w, z);
    }
}

/* z of one channel and slice of taps. */
static void line_rows(const line_task *t, const conv_io *io, int64_t channel, int64_t kd) {
    const conv_problem *p = &t->p;
    const int64_t dilation = p->dilation_w;
    for (const line_segment *l = t->segment; l < t->segment + t->count; l++) {
        const int64_t d = pad_index(l->d + kd * p->dilation_d, p->in_d, p->pad_mode);
        const int64_t image = d < 0 ? NO_ROW : channel + l->x + d * io->x_stride_d;
        const int64_t length = LINE_OUTPUTS * l->stretches + 2;
        real *z = t->z + l->z;
        if (t->plan.gathered)
            for (int64_t i = 0; i < l->wide; i++) line_gather(t, io, l, image, l->ow + i, length, z + i * length);
        else if (l->wide == dilation)
            line_gather(t, io, l, image, l->ow, length * dilation, z);
        else
            for (int64_t i = 0; i < length; i++)
                line_gather(t, io, l, image, l->ow + i * dilation, l->wide, z + i * l->wide);
    }
}

/* V of one term, from the rows z of its tap. */
static void line_input(const line_task *t, const real *z, real *v) {
    const int64_t element = t->plan.element, wide = t->segment->wide; /* the same in all pieces of a task */
    for (int64_t i = 0; i < t->tiles; i += LANES)
        if (t->plan.gathered) {
            winograd_input_row(z, t->at + i, v + i, element);
        } else {
            vec d[6], u[6];
            UNROLL
            for (int j = 0; j < 6; j++) d[j] = load_quads(z + j * wide, t->at + i);
            winograd_input_1d(d, u);
            UNROLL
            for (int j = 0; j < 6; j++) vec_store(v + i + j * element, u[j]);
        }
}

/* sums[pixel][NR] of a piece, from m, its first tile in M; and its row of y, of at most `channels`. */
static void line_output(const line_task *t, const conv_io *io, const line_segment *l, const real *m, const real *bias,
                        int64_t y, int64_t channels) {
    const conv_problem *p = &t->p;
    for (int64_t i = 0; i < l->tiles; i++, m += t->plan.m_pitch) {
        real *sums = t->sums + (i / l->wide * LINE_OUTPUTS * l->wide + i % l->wide) * WINOGRAD_NR;
        UNROLL
        for (int k = 0; k < WINOGRAD_NR; k += LANES) {
            vec d[6], o[4];
            UNROLL
            for (int j = 0; j < 6; j++) d[j] = vec_load(m + j * WINOGRAD_NR + k);
            winograd_output_1d(d, o);
            UNROLL
            for (int j = 0; j < 4; j++) vec_store(sums + j * l->wide * WINOGRAD_NR + k, o[j]);
        }
    }
    const int64_t whole = l->wide == p->dilation_w, pixels = (whole ? LINE_OUTPUTS * l->stretches : 1) * l->wide;
    for (int64_t j = 0; j < (whole ? 1 : LINE_OUTPUTS); j++) { /* stretches of outputs */
        const int64_t ow = l->ow + j * p->dilation_w, count = min_i64(pixels, p->out_w - ow);
        const totals_run run = {t->sums + j * l->wide * WINOGRAD_NR,
                                WINOGRAD_NR,
                                count,
                                min_i64(channels, WINOGRAD_NR),
                                bias,
                                y + ow * io->y_stride_w,
                                io->y_stride_w};
        if (count > 0) store_totals(p, io, &run);
    }
}

static size_t winograd_1d_scratch_bytes(const conv_problem *p) {
    const line_plan g = line_plan_of(p);
    const int64_t panel = g.task_panels * WINOGRAD_NR, z = g.reads * g.row + 2 * LANES;
    const int64_t reals =
        g.tiles * g.m_pitch + LINE_ELEMENTS * g.element + LINE_OUTPUTS * g.tiles * WINOGRAD_NR + panel + z;
    return (size_t)reals * sizeof(real) + (size_t)g.block * sizeof(line_segment) + (size_t)g.pitch * sizeof(int32_t);
}

static size_t winograd_1d_tasks(const conv_problem *p) {
    const line_plan g = line_plan_of(p);
    return (size_t)(p->groups * g.panel_blocks * g.blocks);
}

static void winograd_1d_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    line_task t = {.plan = line_plan_of(p), .p = *p, .m = scratch};
    const line_plan *g = &t.plan;
    const int64_t block = (int64_t)task % g->blocks, rest = (int64_t)task / g->blocks, group = rest / g->panel_blocks;
    const int64_t first = rest % g->panel_blocks * g->task_panels, every = p->n * p->out_d * p->out_h * g->pieces;
    if (g->gathered) t.p.stride_w = p->dilation_w;
    if (g->row >= 128 && t.p.stride_w * io->x_stride_w == 1) t.ahead = 2 * io->x_stride_c;
    t.panels = min_i64(g->task_panels, g->panels - first);
    t.v = t.m + g->tiles * g->m_pitch;
    t.sums = t.v + LINE_ELEMENTS * g->element;
    t.bias = t.sums + LINE_OUTPUTS * g->tiles * WINOGRAD_NR;
    t.z = t.bias + g->task_panels * WINOGRAD_NR;
    t.segment = (line_segment *)(t.z + g->reads * g->row + 2 * LANES);
    t.at = (int32_t *)(t.segment + g->block);
    memset(t.bias, 0, (size_t)(g->task_panels * WINOGRAD_NR + g->reads * g->row + 2 * LANES) * sizeof(real));
    line_split(&t, io, block * g->block, min_i64(g->block, every - block * g->block));
    const int64_t k = first * WINOGRAD_NR, oc = min_i64(t.panels * WINOGRAD_NR, p->oc - k);
    if (io->bias) memcpy(t.bias, (const real *)io->bias + group * p->oc + k, (size_t)oc * sizeof(real));
    const int64_t x = group * p->ic * io->x_stride_c, y = (group * p->oc + k) * io->y_stride_c;
    const real *u = (const real *)io->packed + group * LINE_ELEMENTS * g->panels * WINOGRAD_NR * g->terms;
    const winograd_sums sums = {LINE_ELEMENTS, t.tiles,  first,      t.panels,   g->panels, g->chain,
                                g->parts > 4,  g->pitch, g->element, g->m_pitch, t.v,       t.m};
    for (int64_t part = 0; part < g->parts; part++) {
        const int64_t begin = line_part(p, g, part), end = line_part(p, g, part + 1);
        for (int64_t term = begin; term < end; term += p->kernel_h) {
            const int64_t unit = term / p->kernel_h;
            line_rows(&t, io, x + unit / p->kernel_d * io->x_stride_c, unit % p->kernel_d);
            for (int64_t kh = 0; kh < p->kernel_h; kh++)
                line_input(&t, t.z + kh * (g->shared ? p->dilation_h : 1) * g->row,
                           t.v + (term - begin + kh) * g->pitch);
        }
        winograd_multiply(&sums, u + begin * LINE_ELEMENTS * g->panels * WINOGRAD_NR, end - begin, part > 0);
    }
    for (int64_t panel = 0; panel < t.panels; panel++) {
        const real *m = t.m + panel * LINE_ELEMENTS * WINOGRAD_NR;
        const int64_t c = panel * WINOGRAD_NR;
        for (const line_segment *l = t.segment; l < t.segment + t.count; l++)
            for (int64_t r = 0; r < l->rows; r++, m += l->tiles * g->m_pitch)
                line_output(&t, io, l, m, t.bias + c, y + c * io->y_stride_c + l->y + r * io->y_stride_h, oc - c);
    }
}

/* Per tile: 12 operations of B^T for a term and 12 of A^T for an output channel. */
static conv_facts winograd_1d_facts(const conv_problem *p) {
    const line_plan g = line_plan_of(p);
    const int64_t oc = g.panels * WINOGRAD_NR;
    const double stretches = (double)ceil_div(p->out_w, LINE_OUTPUTS * p->dilation_w);
    const double tiles = (double)(p->n * p->groups * p->out_d * p->out_h) * stretches * (double)p->dilation_w;
    return (conv_facts){
        .tile_pixels = min_i64(WINOGRAD_R, g.tiles),
        .tile_channels = WINOGRAD_NR,
        .groups = 1,
        .channels = min_i64(g.task_panels * WINOGRAD_NR, p->oc),
        .depth = 1,
        .rows = 1, /* tiles are numbered through all rows */
        .cols = LINE_OUTPUTS * g.tiles,
        .terms = g.depth * 3,
        .operations = tiles * (double)(2 * LINE_ELEMENTS * g.terms * oc + 12 * g.terms * g.panel_blocks + 12 * oc),
    };
}

ALGORITHM(winograd_1d);
