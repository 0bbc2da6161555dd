/* The padded strip of the input that depthwise.c computes from, and the order of a filter's taps on it.
 *
 * Each axis of a block is stored by the classes of the filter's taps: taps whose distance is a multiple of the stride
 * read the same positions of x, one class; output o reads position o + (number of the tap in its class) * step of it.
 * So consecutive outputs read consecutive elements whatever the stride, nothing is stored that no tap reads, and what
 * remains of stride, dilation and padding is one offset per tap. */
#ifndef DEPTHWISE_H
#define DEPTHWISE_H

#include "../cpu.h"
#include "im2col.h"

#define LANES_OF_ROW (VECTOR_BYTES * 8 / CONV_BITS(CONV_DTYPE)) /* LANES for #if */

/* The register tile: ROWS accumulators of one output channel, TAPS weights and one vector of the strip. With 16
 * registers 10 + 4 + 1 (and one for the product where there is no FMA); 8 or more accumulators hide the latency. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { ROWS = 14, TAPS = 4, CHANNEL_ACCS = 24 };
#else
enum { ROWS = 10, TAPS = 4, CHANNEL_ACCS = 12 };
#endif
/* Output channels of a tile where no taps share loads: CHANNEL_ACCS accumulators. */
enum { CHANNELS = 4, ACCS = CHANNEL_ACCS > ROWS ? CHANNEL_ACCS : ROWS };

/* A block of products is summed from zero, as in im2col_gemm.c: 128 keeps the error of a long sum down. */
enum { TERMS = 128 };
enum { MOST_TAPS = 8192, MOST_STRIP_BYTES = 1 << 20 };

#if defined(__clang__)
#define vec_shuffle(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef lane_index vec_lanes __attribute__((vector_size(VECTOR_BYTES)));
#define vec_shuffle(a, b, ...) __builtin_shuffle(a, b, (vec_lanes){__VA_ARGS__})
#endif
typedef real vec_half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(1), may_alias));

/* The elements 0, 2, 4, ... and 1, 3, 5, ... of the 2 * LANES from src. */
INLINE void vec_load_pairs(const real *src, vec *even, vec *odd) {
#if VECTOR_BYTES == 32 /* shuffles across the halves are slow: let the loads do that */
    const vec_half *q = (const vec_half *)src;
#if LANES_OF_ROW == 8
    const vec a = __builtin_shufflevector(q[0], q[2], 0, 1, 2, 3, 4, 5, 6, 7);
    const vec b = __builtin_shufflevector(q[1], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
    *even = vec_shuffle(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
    *odd = vec_shuffle(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
    const vec a = __builtin_shufflevector(q[0], q[2], 0, 1, 2, 3), b = __builtin_shufflevector(q[1], q[3], 0, 1, 2, 3);
    *even = vec_shuffle(a, b, 0, 4, 2, 6);
    *odd = vec_shuffle(a, b, 1, 5, 3, 7);
#endif
#else
    const vec a = vec_load(src), b = vec_load(src + LANES);
#if LANES_OF_ROW == 2
    *even = vec_shuffle(a, b, 0, 2);
    *odd = vec_shuffle(a, b, 1, 3);
#elif LANES_OF_ROW == 4
    *even = vec_shuffle(a, b, 0, 2, 4, 6);
    *odd = vec_shuffle(a, b, 1, 3, 5, 7);
#elif LANES_OF_ROW == 8
    *even = vec_shuffle(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    *odd = vec_shuffle(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    *even = vec_shuffle(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *odd = vec_shuffle(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#endif
#endif
}

typedef struct strip_axis {
    int64_t stride, dilation, pad;
    int64_t kernel, classes, step; /* taps k and k + classes read the same class, step positions apart */
    int64_t block, length;         /* outputs of a block; positions of one class */
} strip_axis;

typedef struct strip_plan {
    strip_axis d, h, w;
    int64_t row, row_size, slice, channel, size; /* elements: of a class of a row, a row, a depth, a channel, all */
    /* Tiles: accumulator r is the vector r * lane_row elements on. Chunks: taps that share the tile's loads, */
    int64_t across;                     /* 1: accumulators lie along a row, 0: in rows tile_step apart */
    int64_t tile_step, lane_row;
    int64_t chunk, pieces, chunk_stride; /* at most chunk of them, chunk_stride taps apart; pieces of a class */
    int64_t channels;                   /* output channels of a tile */
    int64_t blocks_d, blocks_h, blocks_w, groups_per_task, group_blocks;
} strip_plan;

static int64_t gcd_i64(int64_t a, int64_t b) {
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static strip_axis strip_axis_of(int64_t kernel, int64_t stride, int64_t dilation, int64_t pad, int64_t block) {
    const int64_t g = stride == 1 || dilation == 1 ? 1 : gcd_i64(stride, dilation);
    strip_axis a = {stride, dilation, pad, kernel, min_i64(stride / g, kernel), dilation / g, block, block};
    if (a.step > block) { /* the taps of a class share next to nothing: each gets positions of its own */
        a.classes = kernel;
        a.step = 1;
    }
    a.length += (kernel - 1) / a.classes * a.step;
    return a;
}

/* Positions that the outputs [0, count) read of a class. */
INLINE int64_t class_length(const strip_axis *a, int64_t class, int64_t count) {
    return count + (a->kernel - 1 - class) / a->classes * a->step;
}

INLINE int64_t tap_position(const strip_axis *a, int64_t tap) {
    return tap % a->classes * a->length + tap / a->classes * a->step;
}

/* The source of a position of a class in a block that begins with output first, before padding is looked at. */
INLINE int64_t source_index(const strip_axis *a, int64_t class, int64_t first, int64_t position) {
    return (first + position) * a->stride + class * a->dilation - a->pad;
}

/* Lines would fall into a few sets of L1 if rows (or channels) were a power of two apart. */
INLINE int64_t padded_pitch(int64_t elements) {
    const int64_t line = CONV_ALIGN / sizeof(real), lines = ceil_div(elements, line);
    return (lines % 16 ? lines : lines + 1) * line;
}

static void strip_layout(const conv_problem *p, strip_plan *s, int64_t bd, int64_t bh, int64_t bw) {
    s->d = strip_axis_of(p->kernel_d, p->stride_d, p->dilation_d, p->pad_d, bd);
    s->h = strip_axis_of(p->kernel_h, p->stride_h, p->dilation_h, p->pad_h, bh);
    s->w = strip_axis_of(p->kernel_w, p->stride_w, p->dilation_w, p->pad_w, bw);
    const int64_t line = CONV_ALIGN / sizeof(real);
    s->row = ceil_div(s->w.length, line) * line;
    s->row_size = padded_pitch(s->w.classes * s->row);
    s->slice = s->h.classes * s->h.length * s->row_size;
    s->channel = padded_pitch(s->d.classes * s->d.length * s->slice);
    s->size = p->ic * s->channel + (ROWS + 1) * LANES; /* the vectors of a narrow row read on */
    s->w.length = s->row;
}

/* Halves the block until its strip takes at most so many bytes, or the block is as small as allowed. */
static void strip_shrink(const conv_problem *p, strip_plan *s, int64_t bytes, int64_t least_h, int64_t least_w) {
    while (s->size * (int64_t)sizeof(real) > bytes) {
        int64_t bd = s->d.block, bh = s->h.block, bw = s->w.block;
        if (bw > least_w)
            bw = ceil_div(ceil_div(bw, 2), LANES) * LANES;
        else if (bd > 1)
            bd = ceil_div(bd, 2);
        else if (bh > least_h)
            bh = ceil_div(bh, 2);
        else
            break;
        strip_layout(p, s, bd, bh, bw);
    }
}

/* Which taps share the loads of a tile: those of a class of kernel rows, with accumulators in rows; or, along a row,
 * those a whole number of vectors apart. */
static void strip_chunks(const conv_problem *p, strip_plan *s) {
    const int64_t per_class_h = ceil_div(p->kernel_h, s->h.classes);
    const int64_t rows = s->h.block / (per_class_h > 1 ? s->h.step : 1), vectors = ceil_div(s->w.block, LANES);
    const int64_t fold = LANES % s->w.step == 0 ? LANES / s->w.step * s->w.classes : p->kernel_w;
    const int64_t per_class_w = ceil_div(p->kernel_w, fold);
    s->across = vectors > min_i64(rows, 4) && (rows < 4 || min_i64(per_class_w, TAPS) > min_i64(per_class_h, TAPS));
    int64_t taps = s->across ? per_class_w : per_class_h;
    s->chunk_stride = s->across ? fold : s->h.classes;
    if (!s->across && rows < 2) {
        taps = 1;
        s->chunk_stride = p->kernel_h;
    }
    s->pieces = ceil_div(taps, TAPS);
    s->chunk = ceil_div(taps, s->pieces);
    s->tile_step = s->chunk > 1 && !s->across ? s->h.step : 1;
    s->lane_row = s->across ? LANES : s->tile_step * s->row_size;
    s->channels = s->chunk == 1 ? min_i64(p->oc, CHANNELS) : 1;
}

static strip_plan strip_plan_of(const conv_problem *p) {
    strip_plan s;
    const cpu_caches *caches = cpu_cache_sizes();
    strip_layout(p, &s, min_i64(p->out_d, 64), min_i64(p->out_h, 4096), min_i64(p->out_w, 1 << 16));
    /* Read kernel times: in L1, or at least in L2. */
    strip_shrink(p, &s, caches->l1d * 3 / 4, ROWS, 1024);
    strip_shrink(p, &s, caches->l2 / 2, ROWS / 2, 16 * LANES);
    strip_shrink(p, &s, MOST_STRIP_BYTES, 1, LANES);
    strip_chunks(p, &s);
    s.blocks_d = ceil_div(p->out_d, s.d.block);
    s.blocks_h = ceil_div(p->out_h, s.h.block);
    s.blocks_w = ceil_div(p->out_w, s.w.block);
    /* 2^17 multiply-adds are some 5 us; starting a task takes about 0.3. */
    const int64_t work = p->oc * p->ic * p->kernel_d * p->kernel_h * p->kernel_w * s.d.block * s.h.block;
    const int64_t most = 1 << 17;
    s.groups_per_task = min_i64(ceil_div(most, min_i64(min_i64(work, most) * min_i64(s.w.block, most), most)), p->groups);
    s.group_blocks = ceil_div(p->groups, s.groups_per_task);
    return s;
}

/* Called with the flat index of a chunk's first tap, in the order of summation: chunks of s->chunk taps, then those of
 * one tap less. There are no others: a class has reuse or reuse - 1 taps, cut into equal pieces. */
typedef void (*chunk_visitor)(void *context, int64_t tap, int64_t taps);

INLINE void visit_chunks(const conv_problem *p, const strip_plan *s, chunk_visitor visit, void *context) {
    const int64_t kernel = s->across ? p->kernel_w : p->kernel_h, others = s->across ? p->kernel_h : p->kernel_w;
    const int64_t tap_of = s->across ? 1 : p->kernel_w, tap_of_other = s->across ? p->kernel_w : 1;
    for (int64_t size = s->chunk; size > 0 && size >= s->chunk - 1; size--)
        for (int64_t kd = 0; kd < p->kernel_d; kd++)
            for (int64_t class = 0; class < min_i64(s->chunk_stride, kernel); class++) {
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
typedef struct strip_block {
    int64_t d, h, w, count_d, count_h, count_w;
} strip_block;

/* Positions [first, last) of a class lie inside the input; the first of them reads source, the others stride apart. */
typedef struct strip_span {
    int64_t first, last, source;
} strip_span;

static strip_span strip_span_of(const strip_axis *a, int64_t class, int64_t output, int64_t count, int64_t extent) {
    const int64_t start = source_index(a, class, output, 0), length = class_length(a, class, count);
    strip_span s;
    s.first = start >= 0 ? 0 : min_i64((-start - 1) / a->stride + 1, length);
    s.last = start >= extent ? s.first : max_i64(min_i64((extent - 1 - start) / a->stride + 1, length), s.first);
    s.source = source_index(a, class, output, s.first);
    return s;
}

/* All classes of d, then of h, then of w: they are the same for all channels. */
static void strip_spans(const conv_problem *p, const strip_plan *s, const strip_block *b, strip_span *spans) {
    for (int64_t c = 0; c < s->d.classes; c++) *spans++ = strip_span_of(&s->d, c, b->d, b->count_d, p->in_d);
    for (int64_t c = 0; c < s->h.classes; c++) *spans++ = strip_span_of(&s->h, c, b->h, b->count_h, p->in_h);
    for (int64_t c = 0; c < s->w.classes; c++) *spans++ = strip_span_of(&s->w, c, b->w, b->count_w, p->in_w);
}

/* dst[i] = src[i], i < count. Two copies that overlap in the middle instead of a loop over what remains. */
INLINE void copy_run(real *restrict dst, const real_unaligned *restrict src, int64_t count) {
    if (count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_store(dst + i, vec_load((const real *)src + i));
        vec_store(dst + count - LANES, vec_load((const real *)src + count - LANES));
    } else if (count >= LANES / 2) {
        real low[LANES / 2], high[LANES / 2];
        memcpy(low, (const void *)src, sizeof low);
        memcpy(high, (const void *)(src + count - LANES / 2), sizeof high);
        memcpy(dst, low, sizeof low);
        memcpy(dst + count - LANES / 2, high, sizeof high);
    } else {
        for (int64_t i = 0; i < count; i++) dst[i] = src[i];
    }
}

/* even[i] = src[2 * i], odd[i] = src[2 * i + 1], i < count. */
INLINE void copy_pairs(real *restrict even, real *restrict odd, const real_unaligned *restrict src, int64_t count) {
    if (count < LANES) {
        for (int64_t i = 0; i < count; i++) even[i] = src[2 * i], odd[i] = src[2 * i + 1];
        return;
    }
    for (int64_t i = 0;; i = min_i64(i + LANES, count - LANES)) {
        vec a, b;
        vec_load_pairs((const real *)src + 2 * i, &a, &b);
        vec_store(even + i, a);
        vec_store(odd + i, b);
        if (i == count - LANES) break;
    }
}

/* rows rows of count elements that lie step apart. */
static void copy_rows(real *dst, int64_t pitch, const real_unaligned *src, int64_t src_pitch, int64_t step, int64_t rows,
                      int64_t count) {
    if (step == 1) {
        for (; rows > 0; rows--, dst += pitch, src += src_pitch) copy_run(dst, src, count);
    } else {
        for (; rows > 0; rows--, dst += pitch, src += src_pitch)
            for (int64_t i = 0; i < count; i++) dst[i] = src[step * i];
    }
}

/* Two classes whose sources alternate: pairs of neighbours, and what one class has more at the ends. */
static void copy_pair_rows(real *dst[2], int64_t pitch, const real_unaligned *src, int64_t src_pitch, int64_t rows,
                           const strip_span w[2]) {
    const int even = w[0].source > w[1].source; /* the class that comes first */
    const int64_t count[2] = {w[0].last - w[0].first, w[1].last - w[1].first};
    const int64_t pairs = min_i64(count[0], count[1]);
    for (; rows > 0; rows--, src += src_pitch, dst[0] += pitch, dst[1] += pitch) {
        copy_pairs(dst[even], dst[!even], src, pairs);
        for (int c = 0; c < 2; c++)
            for (int64_t i = pairs; i < count[c]; i++) dst[c][i] = src[2 * i + (c != even)];
    }
}

/* The positions of one channel that lie inside the input; the others keep what they hold. */
static void strip_copy_channel(const conv_io *io, const strip_plan *s, const strip_span *spans,
                               const real_unaligned *channel, real *dst) {
    const strip_span *of_h = spans + s->d.classes, *w = of_h + s->h.classes;
    const int pairs = s->w.classes == 2 && s->w.stride == 2 && io->x_stride_w == 1 && w[0].last > w[0].first &&
                      w[1].last > w[1].first && (w[0].source - w[1].source == 1 || w[1].source - w[0].source == 1);
    for (int64_t cd = 0; cd < s->d.classes; cd++)
        for (int64_t i = spans[cd].first; i < spans[cd].last; i++)
            for (int64_t ch = 0; ch < s->h.classes; ch++) {
                const strip_span h = of_h[ch];
                const int64_t rows = h.last - h.first; /* a stride is multiplied only where there are two */
                const int64_t depth = spans[cd].source + (i - spans[cd].first) * s->d.stride;
                const int64_t src_pitch = rows > 1 ? s->h.stride * io->x_stride_h : 0;
                const real_unaligned *src = channel + depth * io->x_stride_d + h.source * io->x_stride_h;
                real *to = dst + (cd * s->d.length + i) * s->slice + (ch * s->h.length + h.first) * s->row_size;
                if (rows <= 0) continue;
                if (pairs) {
                    real *both[2] = {to + w[0].first, to + s->row + w[1].first};
                    copy_pair_rows(both, s->row_size, src + min_i64(w[0].source, w[1].source), src_pitch, rows, w);
                    continue;
                }
                for (int64_t cw = 0; cw < s->w.classes; cw++) {
                    const int64_t count = w[cw].last - w[cw].first;
                    if (count > 0)
                        copy_rows(to + cw * s->row + w[cw].first, s->row_size, src + w[cw].source * io->x_stride_w,
                                  src_pitch, count > 1 ? s->w.stride * io->x_stride_w : 1, rows, count);
                }
            }
}

/* The same for padding that repeats the input: every position. channel: the address of its element 0. */
static void strip_gather_channel(const conv_problem *p, const conv_io *io, const strip_plan *s, const strip_block *b,
                                 const real_unaligned *channel, real *dst) {
    for (int64_t cw = 0; cw < s->w.classes; cw++) {
        const tap_columns columns = tap_columns_of(p, cw);
        const int64_t count = class_length(&s->w, cw, b->count_w);
        for (int64_t cd = 0; cd < s->d.classes; cd++)
            for (int64_t i = 0; i < class_length(&s->d, cd, b->count_d); i++) {
                const int64_t d = pad_index(source_index(&s->d, cd, b->d, i), p->in_d, p->pad_mode);
                for (int64_t ch = 0; ch < s->h.classes; ch++)
                    for (int64_t j = 0; j < class_length(&s->h, ch, b->count_h); j++) {
                        const int64_t h = pad_index(source_index(&s->h, ch, b->h, j), p->in_h, p->pad_mode);
                        gather_row(p, io, channel + d * io->x_stride_d + h * io->x_stride_h, columns, b->w, count,
                                   dst + (cd * s->d.length + i) * s->slice + (ch * s->h.length + j) * s->row_size +
                                       cw * s->row);
                    }
            }
    }
}

#endif
