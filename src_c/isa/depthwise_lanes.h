/* Depthwise convolution of images with their channels last: channels in vector lanes, x read and y written in place.
 *
 *     y[pixel][LANES channels] = finish(sum over taps of w[tap][LANES] * x[pixel * stride + tap * dilation][LANES])
 *
 * for each block of channels:                                weights of all taps transposed: L1 or L2
 *   for each row of the task, for each tile of pixels:       what the pixels read, all channels: L1
 *     for each two vectors of channels:                      an accumulator for each pixel and vector
 *       for each tap, in the order of the strip's chunks:    two weight vectors, one load for each multiply-add
 *
 * No strip, no transposing of x. What a tap reads beyond the image is a vector of zeros, multiplied like the rest, so
 * that every output gets the bits that it has where channels are not last; pixels that read beyond the ends of a row
 * are tiles of their own. Tails: the tiles of a row are about as long as each other; the last vector of channels ends
 * with the image's and overlaps the one before, unless there is a residual, which may be y. */
#ifndef DEPTHWISE_LANES_H
#define DEPTHWISE_LANES_H

#include "depthwise_strip.h"
#include "epilogue.h"

/* Vectors of channels at once: those of a cache line, two at most, which is then read once for both (Zen 3, 3 x 3, 960
 * channels of 7 x 7: 0.77 of the time, 576 of 14 x 14: 0.85). Their accumulators leave registers for weights and, in
 * narrow types, an element. What limits them is a load for each multiply-add: 1.6 a cycle there. */
enum { DW_VECTORS = VECTOR_BYTES < CONV_ALIGN ? 2 : 1 };
enum { DW_PIXELS = (VECTOR_REGISTERS == 32 ? 14 : 12) / DW_VECTORS, DW_EDGE = 4 };
/* Weights of a block of channels: in L2 beside some rows of x and y. */
enum { DW_LANES_BYTES = 128 << 10 };

/* More taps share loads between outputs in planes, which is worth transposing x where few registers hold few of them
 * (Zen 3, 7 x 7: 0.58 to 0.82 of the time; 5 x 5: 0.99 to 1.34). */
enum { DW_LANES_TAPS = VECTOR_REGISTERS == 32 ? 4096 : 32 };

/* A tap: its place in the filter, how far its element of x lies from the first tap's, and where a row of outputs reads
 * it: in x, or in lane_zeros, whatever the index (mask: all bits or none). */
typedef struct dw_lane_tap {
    int64_t d, h, w, offset, mask;
    const void *from;
} dw_lane_tap;

static const real lane_zeros[DW_VECTORS * LANES] __attribute__((aligned(CONV_ALIGN)));

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
    const int64_t most = min_i64(chain_terms(p), DW_LANES_TAPS);
    return p->ic == 1 && p->oc == 1 && p->groups >= LANES && p->pad_mode == CONV_PAD_ZEROS &&
           p->kernel_d * p->kernel_h * p->kernel_w <= most;
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
        dw_lane_tap t = {tap / plane * p->dilation_d,
                         tap % plane / p->kernel_w * p->dilation_h,
                         tap % p->kernel_w * p->dilation_w,
                         0,
                         0,
                         NULL};
        t.offset = t.d * l->io->x_stride_d + t.h * l->io->x_stride_h + t.w * l->io->x_stride_w;
        l->taps[l->count++] = t;
    }
}

/* Pixels of a row, whose first tap reads column and x. */
typedef struct lane_at {
    int64_t column, x;
    const real *weights, *bias;
} lane_at;

/* Sums for some pixels and vectors, to[pixel * step + channel]. edge: some read beyond the ends of the row. */
INLINE void lane_pixels(const int pixels, const int vectors, const int edge, const int32_t type, const dw_lanes *l,
                        const lane_at *at, real *to, int64_t step) {
    const int64_t stride = l->p->stride_w, pitch = stride * l->io->x_stride_w, more = l->count * LANES;
    const uint64_t columns = (uint64_t)l->p->in_w;
    const real *weights = at->weights;
    vec acc[DW_PIXELS][DW_VECTORS], w[DW_VECTORS];
    UNROLL
    for (int i = 0; i < pixels; i++)
        for (int j = 0; j < vectors; j++) acc[i][j] = vec_zero();
    for (const dw_lane_tap *t = l->taps, *const end = t + l->count; t < end; t++, weights += LANES) {
        for (int j = 0; j < vectors; j++) w[j] = vec_load(weights + j * more);
        const int64_t next = pitch & t->mask, column = at->column + t->w;
        int64_t x = (at->x + t->offset) & t->mask;
        UNROLL
        for (int i = 0; i < pixels; i++, x += next) {
            const int inside = !edge || (uint64_t)(column + i * stride) < columns;
            for (int j = 0; j < vectors; j++)
                acc[i][j] += w[j] * load_vector(type, inside ? t->from : lane_zeros, (inside ? x : 0) + j * LANES);
        }
    }
    UNROLL
    for (int i = 0; i < pixels; i++)
        for (int j = 0; j < vectors; j++)
            vec_store(to + i * step + j * LANES, at->bias ? acc[i][j] + vec_load(at->bias + j * LANES) : acc[i][j]);
}

/* A kernel for every number of pixels whose accumulators fit, below zero for those at an edge; the others don't exist.
 */
#define LANE_CASE(n) \
    case n: \
        if (n <= DW_PIXELS) lane_pixels(n <= DW_PIXELS ? n : 1, vectors, 0, type, l, at, to, step); \
        break; \
    case -n: \
        if (n <= DW_EDGE) lane_pixels(n <= DW_EDGE ? n : 1, vectors, 1, type, l, at, to, step); \
        break;

INLINE void lane_cases(const int32_t type, const int vectors, int64_t pixels, const dw_lanes *l, const lane_at *at,
                       real *to, int64_t step) {
    switch (pixels) {
        LANE_CASE(1)
        LANE_CASE(2)
        LANE_CASE(3)
        LANE_CASE(4)
        LANE_CASE(5)
        LANE_CASE(6)
        LANE_CASE(7)
        LANE_CASE(8)
        LANE_CASE(9)
        LANE_CASE(10)
        LANE_CASE(11)
        LANE_CASE(12)
        LANE_CASE(13)
        LANE_CASE(14)
    }
}

/* Functions of their own, or gcc 12 keeps accumulators in memory because of the calls around them (a fifth of the
 * speed). */
typedef void lane_kernel(int64_t pixels, const dw_lanes *, const lane_at *, real *to, int64_t step);

#define LANE_KERNEL(name, type, vectors) \
    __attribute__((noinline)) static void name(int64_t n, const dw_lanes *l, const lane_at *at, real *to, int64_t s) { \
        lane_cases(type, vectors, n, l, at, to, s); \
    }
LANE_KERNEL(lane_native_one, CONV_NATIVE, 1)
LANE_KERNEL(lane_native_more, CONV_NATIVE, DW_VECTORS)
#if CONV_BITS(CONV_DTYPE) == 32
LANE_KERNEL(lane_f16, CONV_F16, 1)
LANE_KERNEL(lane_bf16, CONV_BF16, 1)
#endif

INLINE lane_kernel *lane_kernel_of(int32_t type, int64_t vectors) {
#if CONV_BITS(CONV_DTYPE) == 32
    if (type == CONV_F16) return lane_f16;
    if (type == CONV_BF16) return lane_bf16;
#endif
    (void)type;
    return DW_VECTORS > 1 && vectors > 1 ? lane_native_more : lane_native_one;
}

/* All channels of a block, from `first` on, of so many pixels: to y if sums are all there is to it, else by a tile. */
static void lane_tile(const dw_lanes *l, int64_t pixels, int edge, int64_t first, lane_at at, int64_t y) {
    const conv_problem *p = l->p;
    const conv_io *io = l->io;
    const int64_t x = at.x;
    const int plain = output_is_plain(p, io);
    real sums[DW_PIXELS * DW_VECTORS * LANES] __attribute__((aligned(CONV_ALIGN)));
    for (int64_t j = 0, vectors; j < l->vectors; j += vectors) {
        const int64_t c = min_i64(first + j * LANES, p->groups - LANES);
        const int more = j + DW_VECTORS <= l->vectors && c + DW_VECTORS * LANES <= p->groups;
        vectors = more && p->x_type == CONV_NATIVE ? DW_VECTORS : 1;
        at.x = x + c;
        at.weights = l->weights + j * l->count * LANES;
        at.bias = io->bias ? (const real *)io->bias + c : NULL;
        lane_kernel_of(p->x_type, vectors)(edge ? -pixels : pixels, l, &at, plain ? (real *)io->y + y + c : sums,
                                           plain ? io->y_stride_w : vectors * LANES);
        const totals_run run = {sums, vectors * LANES, pixels, vectors * LANES, NULL, y + c, io->y_stride_w};
        if (!plain) store_totals(p, io, &run);
    }
}

/* One row of outputs, from y on; at: of its first one. */
static void lane_row(const dw_lanes *l, int64_t channel, lane_at at, int64_t y) {
    const conv_problem *p = l->p;
    const int64_t room = p->in_w - (p->kernel_w - 1) * p->dilation_w - at.column; /* for the first tap */
    const int64_t first = ceil_div(p->pad_w, p->stride_w), last = room > 0 ? ceil_div(room, p->stride_w) : 0;
    for (int64_t w = 0, pixels; w < p->out_w; w += pixels) {
        const int64_t end = w < first ? min_i64(first, p->out_w) : w < last ? min_i64(last, p->out_w) : p->out_w;
        const int edge = w < first || w >= last;
        pixels = ceil_div(end - w, ceil_div(end - w, edge ? DW_EDGE : DW_PIXELS));
        lane_tile(l, pixels, edge, channel, at, y + w * l->io->y_stride_w);
        at.x += pixels * p->stride_w * l->io->x_stride_w;
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
            for (dw_lane_tap *t = l.taps; t < l.taps + taps; t++) {
                const int inside = (uint64_t)(d + t->d) < (uint64_t)p->in_d && (uint64_t)(h + t->h) < (uint64_t)p->in_h;
                t->mask = inside ? -1 : 0;
                t->from = inside ? io->x : lane_zeros;
            }
            lane_at at = {-p->pad_w, 0, NULL, NULL};
            at.x = n * io->x_stride_n + d * io->x_stride_d + h * io->x_stride_h + at.column * io->x_stride_w;
            lane_row(&l, j * LANES, at, n * io->y_stride_n + od * io->y_stride_d + oh * io->y_stride_h);
        }
    }
}

#endif
