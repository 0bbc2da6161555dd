/* Depthwise convolution of images with their channels last: channels in vector lanes, x read and y written in place.
 *
 *     y[pixel][LANES channels] = finish(sum over taps of w[tap][LANES] * x[pixel * stride + tap * dilation][LANES])
 *
 * for each block of channels:                                weights of all taps transposed: L1 or L2
 *   for each row of the task, for each tile of pixels:       what the pixels read, all channels: L1
 *     for each vector of channels:                           an accumulator for each pixel
 *       for each tap, in the order of the strip's chunks:    one weight vector, one load for each multiply-add
 *
 * No strip, no transposing of x. What a tap reads beyond the image is a vector of zeros, multiplied like the rest, so
 * that every output gets the bits that it has where channels are not last; pixels that read beyond the ends of a row
 * are tiles of one. Tails: the last vector of channels ends with the image's and overlaps the one before, unless there
 * is a residual, which may be y. */
#ifndef DEPTHWISE_LANES_H
#define DEPTHWISE_LANES_H

#include "depthwise_strip.h"
#include "epilogue.h"

/* Accumulators, beside a weight and, in narrow types, an element; what remains of a row is in tiles of DW_FEW, or one.
 */
enum { DW_PIXELS = VECTOR_REGISTERS == 32 ? 14 : 10, DW_FEW = 4 };
/* Weights of a block of channels: in L2 beside some rows of x and y. */
enum { DW_LANES_BYTES = 128 << 10 };

/* A tap: its place in the filter, and how far its element of x lies from the first tap's. */
typedef struct dw_lane_tap {
    int64_t d, h, w, offset;
    int64_t inside; /* whether it reads a row of the image */
} dw_lane_tap;

static const real lane_zeros[LANES] __attribute__((aligned(CONV_ALIGN)));

typedef struct dw_lanes {
    const conv_problem *p;
    const conv_io *io;
    int64_t count; /* taps */
    dw_lane_tap *taps;
    int64_t vectors; /* of channels of a block */
    real *weights;   /* [vector][tap][LANES] */
} dw_lanes;

/* Vectors of channels of a block. One where a filter has many rows, which stay in L1 from one row of outputs to the
 * next: 56 x 56, 7 x 7. */
static int64_t lane_vectors(const conv_problem *p, int64_t taps) {
    if (p->kernel_h > 3) return 1;
    return min_i64(max_i64(DW_LANES_BYTES / (taps * LANES * (int64_t)sizeof(real)), 1), ceil_div(p->groups, LANES));
}

/* One chain of terms, so that no total is needed besides the accumulators. */
static int lanes_accepts(const conv_problem *p) {
    return p->ic == 1 && p->oc == 1 && p->groups >= LANES && p->pad_mode == CONV_PAD_ZEROS &&
           p->kernel_d * p->kernel_h * p->kernel_w <= chain_terms(p);
}

static int lanes_reads(const conv_problem *p, const conv_io *io) {
    return lanes_accepts(p) && io->x_stride_c == 1 && io->y_stride_c == 1 &&
           (io->residual == NULL || p->groups % LANES == 0);
}

static size_t lanes_bytes(const conv_problem *p) {
    if (!lanes_accepts(p)) return 0;
    const int64_t taps = p->kernel_d * p->kernel_h * p->kernel_w;
    return (size_t)taps * ((size_t)(lane_vectors(p, taps) * LANES) * sizeof(real) + sizeof(dw_lane_tap));
}

/* Of dw_visit_chunks. */
typedef struct lane_context {
    dw_lanes *l;
    int64_t stride; /* from one tap of a chunk to the next */
} lane_context;

static void lane_chunk(void *context, int64_t tap, int64_t taps) {
    const lane_context *c = context;
    dw_lanes *l = c->l;
    const conv_problem *p = l->p;
    const int64_t plane = p->kernel_h * p->kernel_w;
    for (int64_t k = 0; k < taps; k++, tap += c->stride) {
        dw_lane_tap t = {tap / plane * p->dilation_d, tap % plane / p->kernel_w * p->dilation_h,
                         tap % p->kernel_w * p->dilation_w, 0, 0};
        t.offset = t.d * l->io->x_stride_d + t.h * l->io->x_stride_h + t.w * l->io->x_stride_w;
        l->taps[l->count++] = t;
    }
}

/* Pixels of a row, whose first tap reads column and x; they go to y. */
typedef struct lane_at {
    int64_t column, x, y;
    const real *weights;
    vec bias;
} lane_at;

INLINE void lane_store(const dw_lanes *l, vec sum, int64_t y) {
    store_vector(l->p->y_type, l->io->y, y, finish_vector(l->p, l->io, sum, y));
}

/* Volatile, or gcc loads the elements of all pixels first and keeps sums in memory. */
INLINE vec lane_load(int32_t type, const void *x, int64_t at) {
    if (type != CONV_NATIVE) return load_vector(type, x, at);
    return *(const volatile vec_unaligned *)((const real *)x + at);
}

/* Some pixels that read columns of the image with all their taps. */
INLINE void lane_pixels(const int pixels, const dw_lanes *l, int32_t type, const lane_at *at) {
    const int64_t step = l->p->stride_w * l->io->x_stride_w, y_step = l->io->y_stride_w, count = l->count;
    const real *weights = at->weights;
    vec acc[DW_PIXELS];
    UNROLL
    for (int i = 0; i < pixels; i++) acc[i] = vec_zero();
    for (int64_t k = 0; k < count; k++) {
        const vec w = vec_load(weights + k * LANES);
        const int inside = l->taps[k].inside != 0;
        const void *from = inside ? l->io->x : lane_zeros;
        const int64_t next = inside ? step : 0;
        int64_t x = inside ? at->x + l->taps[k].offset : 0;
        UNROLL
        for (int i = 0; i < pixels; i++, x += next) acc[i] += w * lane_load(type, from, x);
    }
    UNROLL
    for (int i = 0; i < pixels; i++) lane_store(l, acc[i] + at->bias, at->y + i * y_step);
}

/* Any pixel. */
INLINE void lane_edge(const dw_lanes *l, int32_t type, const lane_at *at) {
    const conv_problem *p = l->p;
    vec sum = vec_zero();
    for (int64_t k = 0; k < l->count; k++) {
        const dw_lane_tap t = l->taps[k];
        const int inside = t.inside && (uint64_t)(at->column + t.w) < (uint64_t)p->in_w;
        const vec v = inside ? load_vector(type, l->io->x, at->x + t.offset) : vec_zero();
        sum += vec_load(at->weights + k * LANES) * v;
    }
    lane_store(l, sum + at->bias, at->y);
}

/* All channels of a block, from `first` on, of so many pixels: 0 for one at the edge. */
INLINE void lane_tile(const int pixels, const dw_lanes *l, int32_t type, int64_t first, lane_at at) {
    const conv_io *io = l->io;
    const int64_t x = at.x, y = at.y;
    for (int64_t j = 0; j < l->vectors; j++) {
        const int64_t c = min_i64(first + j * LANES, l->p->groups - LANES);
        at.x = x + c;
        at.y = y + c;
        at.weights = l->weights + j * l->count * LANES;
        at.bias = io->bias ? vec_load((const real *)io->bias + c) : vec_zero();
        if (pixels)
            lane_pixels(pixels ? pixels : 1, l, type, &at);
        else
            lane_edge(l, type, &at);
    }
}

/* One row of outputs; at: of its first one. */
static void lane_row(const dw_lanes *l, int32_t type, int64_t channel, lane_at at) {
    const conv_problem *p = l->p;
    const int64_t room = p->in_w - (p->kernel_w - 1) * p->dilation_w - at.column; /* for the first tap */
    const int64_t first = ceil_div(p->pad_w, p->stride_w), last = room > 0 ? ceil_div(room, p->stride_w) : 0;
    for (int64_t w = 0, pixels; w < p->out_w; w += pixels) {
        const int64_t left = w >= first ? min_i64(last, p->out_w) - w : 0;
        pixels = left >= DW_PIXELS ? DW_PIXELS : left >= DW_FEW ? DW_FEW : 1;
        if (pixels == DW_PIXELS && type == CONV_NATIVE)
            lane_tile(DW_PIXELS, l, CONV_NATIVE, channel, at);
        else if (pixels == DW_FEW && type == CONV_NATIVE)
            lane_tile(DW_FEW, l, CONV_NATIVE, channel, at);
        else if (pixels == DW_FEW || pixels == DW_PIXELS)
            lane_tile((int)(pixels = DW_FEW), l, type, channel, at);
        else
            lane_tile(0, l, type, channel, at);
        at.x += pixels * p->stride_w * l->io->x_stride_w;
        at.y += pixels * l->io->y_stride_w;
        at.column += pixels * p->stride_w;
    }
}

/* The weights of a block of channels. */
static void lane_weights(const dw_lanes *l, int64_t first) {
    for (int64_t j = 0; j < l->vectors; j++) {
        const int64_t c = min_i64(first + j * LANES, l->p->groups - LANES);
        const real *w = (const real *)l->io->packed + c * l->count;
        for (int64_t k = 0; k < l->count; k++)
            for (int64_t i = 0; i < LANES; i++) l->weights[(j * l->count + k) * LANES + i] = w[i * l->count + k];
    }
}

/* Rows [first, last), of all depths, of one image; x, y: of the image. */
static void lanes_run(const conv_problem *p, const conv_io *io, const dw_plan *s, int64_t n, int64_t first,
                      int64_t last, void *scratch) {
    const int64_t taps = p->kernel_d * p->kernel_h * p->kernel_w, all = ceil_div(p->groups, LANES);
    const int64_t most = lane_vectors(p, taps);
    dw_lanes l = {.p = p, .io = io, .weights = scratch};
    l.taps = (dw_lane_tap *)(l.weights + most * taps * LANES);
    lane_context context = {&l, s->across ? s->chunk_stride : s->chunk_stride * p->kernel_w};
    dw_visit_chunks(p, s, lane_chunk, &context);
    for (int64_t j = 0; j < all; j += most) {
        l.vectors = min_i64(most, all - j);
        lane_weights(&l, j * LANES);
        for (int64_t row = first; row < last; row++) {
            const int64_t od = row / p->out_h, oh = row % p->out_h;
            const int64_t d = od * p->stride_d - p->pad_d, h = oh * p->stride_h - p->pad_h;
            for (dw_lane_tap *t = l.taps; t < l.taps + taps; t++)
                t->inside = (uint64_t)(d + t->d) < (uint64_t)p->in_d && (uint64_t)(h + t->h) < (uint64_t)p->in_h;
            lane_at at = {-p->pad_w, 0, 0, NULL, vec_zero()};
            at.x = n * io->x_stride_n + d * io->x_stride_d + h * io->x_stride_h + at.column * io->x_stride_w;
            at.y = n * io->y_stride_n + od * io->y_stride_d + oh * io->y_stride_h;
            lane_row(&l, p->x_type, j * LANES, at);
        }
    }
}

#endif
