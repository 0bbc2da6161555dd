/* The padded strip of the input that depthwise.c computes from, and the order of a filter's taps on it.
 *
 * Each axis of a block is stored by the classes of the filter's taps: taps whose distance is a multiple of the stride
 * read the same positions of x, one class; output o reads position o + (number of the tap in its class) * step of it.
 * So consecutive outputs read consecutive elements whatever the stride, nothing is stored that no tap reads, and what
 * remains of stride, dilation and padding is one offset per tap. (strip.h, for many channels, keeps less order.) */
#ifndef DEPTHWISE_STRIP_H
#define DEPTHWISE_STRIP_H

#include "../cpu.h"
#include "strip.h"

/* The register tile: DW_ROWS accumulators of one output channel, DW_TAPS weights and one vector of the strip; or, where
 * no taps share loads, DW_ACCS accumulators of up to DW_CHANNELS output channels. Of 16 registers 10 + 4 + 1 (and one
 * for the product where there is no FMA) or 12 + 1 + 1; 8 or more accumulators hide the latency. */
#if VECTOR_REGISTERS == 32
enum { DW_ROWS = 14, DW_TAPS = 4, DW_ACCS = 24, DW_CHANNELS = 4 };
#else
enum { DW_ROWS = 10, DW_TAPS = 4, DW_ACCS = 12, DW_CHANNELS = 4 };
#endif
/* Sums in memory before they are stored: in L1, beside the strip. */
enum { DW_TILE_BYTES = 8 << 10 };

typedef struct dw_axis {
    int64_t kernel, stride, dilation, pad;
    int64_t classes, step; /* taps k and k + classes read the same class, step positions apart */
    int64_t block, length; /* outputs of a block; positions of one class */
} dw_axis;

typedef struct dw_plan {
    dw_axis d, h, w;
    int64_t row, rows, slice,
        channel; /* elements from one to the next: of a class of a row, a row, a depth, a channel */
    /* Tiles: accumulator r is a vector along a row (across) or in a row, tile_step rows apart. Chunks: up to chunk taps
     * that share the loads of a tile, chunk_stride apart; a class is cut into so many pieces. */
    int64_t across, tile_step, chunk, pieces, chunk_stride;
    int64_t channels; /* output channels of a tile */
    int64_t stream;   /* 3 x 3 taps whose weights all stay in registers (depthwise_stream.h) */
    int64_t blocks_d, blocks_h, blocks_w, groups_per_task, group_blocks;
    int64_t batch;                              /* groups whose strips are filled at once */
    int64_t transposed_rows, transposed_groups; /* rows of a block and its batch where x has its channels last */
    int64_t size;                               /* elements of the strip */
} dw_plan;

static void dw_axis_resize(dw_axis *a, int64_t block) {
    a->block = block;
    a->length = block + (a->kernel - 1) / a->classes * a->step;
}

static dw_axis dw_axis_of(int64_t kernel, int64_t stride, int64_t dilation, int64_t pad, int64_t block) {
    const int64_t g = stride == 1 || dilation == 1 ? 1 : gcd_i64(stride, dilation);
    dw_axis a = {kernel, stride, dilation, pad, min_i64(stride / g, kernel), dilation / g, 0, 0};
    if (a.step > block) { /* the taps of a class share next to nothing: each gets positions of its own */
        a.classes = kernel;
        a.step = 1;
    }
    dw_axis_resize(&a, block);
    return a;
}

/* Positions that the outputs [0, count) read of a class. */
INLINE int64_t dw_class_length(const dw_axis *a, int64_t class, int64_t count) {
    return count + (a->kernel - 1 - class) / a->classes * a->step;
}

/* The source of a position of a class in a block that begins with output first, before padding is looked at. */
INLINE int64_t dw_source_index(const dw_axis *a, int64_t class, int64_t first, int64_t position) {
    return (first + position) * a->stride + class * a->dilation - a->pad;
}

/* Lines would fall into a few sets of L1 if rows or channels were a power of two apart. */
INLINE int64_t dw_pitch(int64_t elements) {
    const int64_t line = CONV_ALIGN / sizeof(real), lines = ceil_div(elements, line);
    return (lines % 16 ? lines : lines + 1) * line;
}

static void dw_layout(dw_plan *s) {
    s->row = ceil_div(s->w.length, LANES) * LANES;
    s->rows = dw_pitch(s->w.classes * s->row);
    s->slice = s->h.classes * s->h.length * s->rows;
    s->channel = dw_pitch(s->d.classes * s->d.length * s->slice);
}

/* The elements of a strip of so many channels: LANES before it, into which the first row reaches (dw_spans), and what
 * the vectors of a narrow last row read behind it. */
static int64_t dw_strip_size(const dw_plan *s, int64_t channels) {
    return LANES + channels * s->channel + (DW_ROWS + 1) * LANES;
}

static int64_t dw_block(const conv_problem *p, dw_plan *s, int64_t bd, int64_t bh, int64_t bw) {
    s->d = dw_axis_of(p->kernel_d, p->stride_d, p->dilation_d, p->pad_d, bd);
    s->h = dw_axis_of(p->kernel_h, p->stride_h, p->dilation_h, p->pad_h, bh);
    s->w = dw_axis_of(p->kernel_w, p->stride_w, p->dilation_w, p->pad_w, bw);
    dw_layout(s);
    s->size = dw_strip_size(s, p->ic);
    return s->size * (int64_t)sizeof(real);
}

/* Halves the block until its strip takes at most so many bytes, or the block is as small as allowed. */
static void dw_shrink(const conv_problem *p, dw_plan *s, int64_t bytes, int64_t least_h, int64_t least_w) {
    int64_t bd = s->d.block, bh = s->h.block, bw = s->w.block;
    while (dw_block(p, s, bd, bh, bw) > bytes) {
        if (bw > least_w)
            bw = ceil_div(ceil_div(bw, 2), LANES) * LANES;
        else if (bd > 1)
            bd = ceil_div(bd, 2);
        else if (bh > least_h) /* whole tiles, of DW_ROWS or a little less */
            bh = max_i64((bh - 1) / least_h * least_h, least_h);
        else
            break;
    }
}

/* Which taps share the loads of a tile: those of a class of kernel rows, with the accumulators in rows; or, with the
 * accumulators along a row, those a whole number of vectors apart. */
static void dw_chunks(const conv_problem *p, dw_plan *s) {
    const int64_t per_class_h = ceil_div(p->kernel_h, s->h.classes);
    const int64_t rows = s->h.block / (per_class_h > 1 ? s->h.step : 1), vectors = ceil_div(s->w.block, LANES);
    const int64_t fold = LANES % s->w.step == 0 ? LANES / s->w.step * s->w.classes : p->kernel_w;
    const int64_t per_class_w = ceil_div(p->kernel_w, fold);
    s->across =
        vectors > min_i64(rows, 4) && (rows < 4 || min_i64(per_class_w, DW_TAPS) > min_i64(per_class_h, DW_TAPS));
    s->stream = p->ic == 1 && p->kernel_d == 1 && p->kernel_h == 3 && p->kernel_w == 3 && p->dilation_h == 1 &&
                p->stride_h <= 2;
    s->across &= !s->stream;
    int64_t taps = s->across ? per_class_w : per_class_h;
    s->chunk_stride = s->across ? fold : s->h.classes;
    if (s->stream || (!s->across && rows < 2)) { /* in the order of the filter */
        taps = 1;
        s->chunk_stride = p->kernel_h;
    }
    s->pieces = ceil_div(taps, DW_TAPS);
    s->chunk = ceil_div(taps, s->pieces);
    s->tile_step = s->chunk > 1 && !s->across ? s->h.step : 1;
    s->channels = s->chunk == 1 && !s->stream ? min_i64(p->oc, DW_CHANNELS) : 1;
}

/* Small images: some groups at once, to have longer loops. Channels last: a vector of channels is read at once, for
 * fewer rows, so that their strips are in L1 again. */
static void dw_batch(const conv_problem *p, dw_plan *s, int64_t l1, int64_t l2) {
    s->batch = max_i64(min_i64(l1 / (int64_t)sizeof(real) / (p->ic * s->channel), 16), 1);
    s->size = dw_strip_size(s, s->batch * p->ic);
    dw_plan t = *s;
    t.transposed_groups = max_i64(LANES / p->ic, 1);
    for (;;) {
        dw_layout(&t);
        const int64_t size = dw_strip_size(&t, t.transposed_groups * p->ic), bytes = size * (int64_t)sizeof(real);
        if (bytes > l1 && t.h.block > t.tile_step * DW_ROWS)
            dw_axis_resize(&t.h, max_i64(t.h.block / 2, t.tile_step * DW_ROWS));
        else if (bytes > l2 && t.transposed_groups > 1)
            t.transposed_groups /= 2;
        else {
            s->size = max_i64(s->size, size);
            break;
        }
    }
    s->transposed_groups = t.transposed_groups;
    s->transposed_rows = t.h.block;
}

enum { DW_MOST_BYTES = 1 << 20 };

static dw_plan dw_plan_of(const conv_problem *p) {
    dw_plan s;
    const cpu_caches *caches = cpu_cache_sizes();
    dw_block(p, &s, min_i64(p->out_d, 64), min_i64(p->out_h, 4096), min_i64(p->out_w, 1 << 16));
    /* Read kernel times: in L1 beside the rows of x and y that pass through it, or at least in L2. Half of L1 for one
     * group and a quarter for several, whose strips are all filled before the first is read: 56 x 56, 3 x 3 in L2 takes
     * 0.74 us a channel, and 1.03 with three quarters for both (AVX-512, 48 KiB; 112 x 112, stride 2: 1.6 and 2.2).
     * Rows that are read where they lie, and filters that read much more than passes through, have three quarters. */
    const int much = (p->kernel_h == 1 && p->stride_w == 1) || p->kernel_h * p->kernel_w > 128;
    dw_shrink(p, &s, much ? caches->l1d * 3 / 4 : caches->l1d / 2, DW_ROWS, 1024);
    dw_shrink(p, &s, caches->l2 / 2, DW_ROWS / 2, 16 * LANES);
    dw_shrink(p, &s, DW_MOST_BYTES, 1, LANES);
    dw_chunks(p, &s);
    dw_batch(p, &s, caches->l1d / 4, caches->l2 / 2);
    s.blocks_d = ceil_div(p->out_d, s.d.block);
    s.blocks_h = ceil_div(p->out_h, s.h.block);
    s.blocks_w = ceil_div(p->out_w, s.w.block);
    /* 2^18 multiply-adds are some 5 to 10 us; starting a task takes about 0.3. */
    const int64_t work = p->oc * p->ic * p->kernel_d * p->kernel_h * p->kernel_w * s.d.block * s.h.block;
    const int64_t most = 1 << 18;
    s.groups_per_task = ceil_div(most, min_i64(min_i64(work, most) * min_i64(s.w.block, most), most));
    s.groups_per_task = min_i64(max_i64(s.groups_per_task, s.transposed_groups), p->groups);
    s.group_blocks = ceil_div(p->groups, s.groups_per_task);
    return s;
}

/* Called with the flat index of a chunk's first tap, in the order of summation: chunks of s->chunk taps, then those of
 * one tap less. There are no others: two classes differ by one tap at most, and are cut into equal pieces. */
typedef void (*dw_visitor)(void *context, int64_t tap, int64_t taps);

INLINE void dw_visit_chunks(const conv_problem *p, const dw_plan *s, dw_visitor visit, void *context) {
    const int64_t kernel = s->across ? p->kernel_w : p->kernel_h, others = s->across ? p->kernel_h : p->kernel_w;
    const int64_t tap_of = s->across ? 1 : p->kernel_w, tap_of_other = s->across ? p->kernel_w : 1;
    for (int64_t size = s->chunk; size > 0 && size >= s->chunk - 1; size--)
        for (int64_t kd = 0; kd < p->kernel_d; kd++)
            for (int64_t class = 0; class < min_i64(s->chunk_stride, kernel); class ++) {
                const int64_t count = ceil_div(kernel - class, s->chunk_stride);
                for (int64_t piece = 0; piece < s->pieces; piece++) {
                    const int64_t from = piece * count / s->pieces, to = (piece + 1) * count / s->pieces;
                    const int64_t tap = kd * p->kernel_h * p->kernel_w + (class + from * s->chunk_stride) * tap_of;
                    for (int64_t other = 0; to - from == size && other < others; other++)
                        visit(context, tap + other * tap_of_other, size);
                }
            }
}

/* The first output of a block and how many it really has. */
typedef struct dw_block_of {
    int64_t d, h, w, count_d, count_h, count_w;
} dw_block_of;

/* Positions [first, last) of a class lie inside the input; the first of them reads source, the others stride apart.
 * In the strip position 0 is at base: a slot along d and h, elements along w. */
typedef struct dw_span {
    int64_t first, last, source, base;
} dw_span;

static dw_span dw_span_of(const dw_axis *a, int64_t class, int64_t output, int64_t count, int64_t extent) {
    const int64_t start = dw_source_index(a, class, output, 0), length = dw_class_length(a, class, count);
    dw_span s;
    s.first = start >= 0 ? 0 : min_i64((-start - 1) / a->stride + 1, length);
    s.last = start >= extent ? s.first : max_i64(min_i64((extent - 1 - start) / a->stride + 1, length), s.first);
    s.source = dw_source_index(a, class, output, s.first);
    s.base = class * a->length;
    return s;
}

/* All classes of d, then of h, then of w: they are the same for all channels. What comes first of x in a row lies at a
 * whole vector: the padding before it reaches into the end of the row above. So it does in each class where there is
 * room for its padding behind the class before. */
static void dw_spans(const conv_problem *p, const dw_plan *s, const dw_block_of *b, dw_span *spans) {
    for (int64_t c = 0; c < s->d.classes; c++) *spans++ = dw_span_of(&s->d, c, b->d, b->count_d, p->in_d);
    for (int64_t c = 0; c < s->h.classes; c++) *spans++ = dw_span_of(&s->h, c, b->h, b->count_h, p->in_h);
    int64_t most = 0;
    for (int64_t c = 0; c < s->w.classes; c++) {
        spans[c] = dw_span_of(&s->w, c, b->w, b->count_w, p->in_w);
        most = max_i64(most, spans[c].first % LANES);
    }
    const int room = s->w.length + most <= s->row;
    for (int64_t c = 0; c < s->w.classes; c++) spans[c].base = c * s->row - spans[room ? c : 0].first % LANES;
}

#endif
