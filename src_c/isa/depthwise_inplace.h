/* Depthwise convolution of images that are read where they lie, without a strip: the copy took a third to a half of the
 * time. Filters of 3 x 3 taps (depthwise_stream.h), or of one row of up to 8:
 *
 *     y[LANES columns] = clamp(bias + sum over kw of w[kw] * x[columns + kw * dilation])
 *
 * for each group, for each row of outputs:           weights in registers
 *   for each vector of columns, or two of pairs:     a load and a multiply-add for each tap
 *
 * For outputs that are y = sum + bias, clamped at most. Rows beyond the image are a row of zeros. Columns beyond it are
 * read and masked away: in their place lies the row before or after, but for the first and last row of all x, which are
 * read from copies with room around them. Tails: the last vector of a row ends with it and overlaps the one before.
 * Every output has its terms in the strip's order, and so the same bits. Zhang, Lo and Lu, "High performance depthwise
 * and pointwise convolutions on mobile devices", AAAI 2020. */
#ifndef DEPTHWISE_INPLACE_H
#define DEPTHWISE_INPLACE_H

#include "depthwise_rows.h"

/* INPLACE_REACH: the most columns that are read beyond either end of a row; INPLACE_EDGES: and vectors that do.
 * INPLACE_WIDTH: three rows of x take 48 KiB, as floats. INPLACE_LAST: the rows at the end of x that are copied. */
enum { INPLACE_REACH = 32, INPLACE_WIDTH = 4096, INPLACE_TAPS = 8, INPLACE_LAST = 3 };
enum { INPLACE_EDGES = 2 * (INPLACE_REACH / LANES + 1) };

/* Images that are read where they lie. */
typedef struct inplace_image {
    const conv_problem *p;
    const conv_io *io;
    int64_t width;              /* columns that are computed together: a step */
    int64_t steps, left, right; /* of a row; those at its ends that read beyond them */
    int64_t before, after;      /* columns that are read beyond a row's ends */
    int masked[INPLACE_EDGES];  /* bits of the taps that need their masks, of those steps */
    int64_t end;                /* of x: one beyond the last element */
    int64_t bytes;              /* of an element */
    real *masks;
    char *zeros, *first, *last; /* the rows begin INPLACE_REACH elements after these */
} inplace_image;

INLINE int64_t inplace_pitch(const conv_problem *p) {
    return ceil_div(p->in_w + 2 * INPLACE_REACH, 2 * LANES) * 2 * LANES;
}

/* Columns from the first tap to the last. */
INLINE int64_t inplace_span(const conv_problem *p) { return (p->kernel_w - 1) * p->dilation_w; }

/* Vectors of a step. Two of the format that is the upper half of a float: read and written as pairs, at half of the
 * instructions (Zen 1, AVX2: 3 x 3 taps of 56 columns took 1.72 of float32's time and take 1.27, of 14, which a step
 * exceeds, 1.54 and 1.15, rows of 4 taps 1.59 and 0.95). Two native ones of 3 x 3 taps where those share loads. */
INLINE int64_t inplace_parts(const conv_problem *p) {
    if (p->x_type == CONV_BF16) return p->stride_w == 1 && p->out_w > LANES ? 2 : 1;
    if (!STREAM_SHUFFLES || p->x_type != CONV_NATIVE || p->kernel_h != 3) return 1;
    const int64_t right = (p->out_w - 1) * p->stride_w - p->pad_w + inplace_span(p) - (p->in_w - 1);
    if (p->out_w <= LANES || max_i64(p->pad_w, right) > LANES) return 1;
    return p->stride_w == 1 || p->in_w + p->pad_w >= 3 * LANES ? 2 : 1; /* the third of four vectors has no mask */
}

/* Rows of outputs that are no whole vector, for which a masked store pays. */
INLINE int inplace_is_narrow(const conv_problem *p) { return STREAM_SHUFFLES && p->kernel_h == 3 && p->out_w < LANES; }

/* Where every second native element is read, and half a vector is enough. */
INLINE int inplace_is_half(const conv_problem *p) {
    return p->x_type == CONV_NATIVE && p->stride_w == 2 && 2 * p->out_w <= LANES;
}

/* What a row of steps reads beyond the end of an input row. */
INLINE int64_t inplace_after(const conv_problem *p) {
    const int64_t least = inplace_is_half(p) ? LANES / 2 : inplace_parts(p) * LANES;
    return max_i64((max_i64(p->out_w, least) - 1) * p->stride_w - p->pad_w + inplace_span(p) - (p->in_w - 1), 0);
}

/* One row of taps, in the order of the filter. */
INLINE int inplace_is_line(const conv_problem *p, const dw_plan *s) {
    return p->ic == 1 && p->oc == 1 && p->kernel_h == 1 && p->kernel_w <= INPLACE_TAPS && s->chunk == 1 &&
           p->stride_w == 1 && p->pad_h == 0 && (p->out_h - 1) * p->stride_h < p->in_h;
}

static int inplace_shape(const conv_problem *p, const dw_plan *s) {
    const int square = s->stream && p->stride_w <= 2 && p->dilation_w == 1;
    if (!square && !inplace_is_line(p, s)) return 0;
    if (p->pad_mode != CONV_PAD_ZEROS || p->kernel_d != 1 || p->in_d != 1 || p->out_d != 1) return 0;
    if (p->in_w > INPLACE_WIDTH || (p->out_w < LANES && !inplace_is_narrow(p))) return 0;
    if (p->pad_w > p->in_w || inplace_after(p) > INPLACE_LAST * p->in_w) return 0;
    return max_i64(p->pad_w, inplace_after(p)) <= INPLACE_REACH;
}

static size_t inplace_bytes(const conv_problem *p, const dw_plan *s) {
    if (!inplace_shape(p, s)) return 0;
    const int64_t edges = min_i64(INPLACE_EDGES, ceil_div(p->out_w, LANES));
    return (size_t)((2 + INPLACE_LAST) * inplace_pitch(p) + edges * p->kernel_w * LANES) * sizeof(real);
}

/* Elements that are read as vectors: native ones, and halves, of which a stride of 2 takes the upper or lower ones of
 * pairs. */
INLINE int inplace_type(const conv_problem *p) {
    const int half = p->x_type == CONV_F16 || p->x_type == CONV_BF16;
    return p->x_type == p->y_type && (p->x_type == CONV_NATIVE || (HAS_HALVES && half && LOWER_FIRST));
}

static int inplace_reads(const conv_problem *p, const conv_io *io, const dw_plan *s) {
    if (!inplace_type(p) || !output_is_sum(p, io) || !inplace_shape(p, s)) return 0;
    if (io->x_stride_w != 1 || io->y_stride_w != 1 || (p->in_h > 1 && io->x_stride_h < p->in_w)) return 0;
    return (p->n == 1 || io->x_stride_n >= 0) && (p->groups == 1 || io->x_stride_c >= 0);
}

/* All bits of the elements that a step reads inside the row, in the order that stream_ordered mends. Returns the bits
 * of the taps that read others, too. */
static int inplace_mask(const conv_problem *p, int64_t ow, real *masks) {
    const int64_t parts = inplace_parts(p);
    const int plain = p->x_type == CONV_NATIVE, step = (int)p->stride_w;
    const size_t bytes = parts == 2 && !plain ? 2 : sizeof(real);
    int masked = 0;
    for (int k = 0; k < (int)p->kernel_w; k++) {
        real inside[2 * LANES];
        for (int64_t i = 0; i < 2 * LANES; i++) {
            const int64_t at = stream_mask_at(step, p->x_type, (int)parts, k) * p->dilation_w;
            const int64_t column = ow * p->stride_w - p->pad_w + at + i;
            memset((char *)inside + i * bytes, column >= 0 && column < p->in_w ? 0xff : 0, bytes);
            masked |= (column < 0 || column >= p->in_w) << k;
        }
        vec v = vec_load(inside), odd;
        if (parts == 1 && step == 2 && plain)
            stream_pairs(inside, inplace_is_half(p) ? 0 : LANES, &v, &odd);
        else if (parts == 1 && step == 2)
            v = vec_load_evens(inside);
        vec_store(masks + k * LANES, v);
    }
    return masked;
}

/* The table of the rows from h on of the channel that begins at element x of x; rows may be outside. */
static void inplace_input_rows(const inplace_image *t, int64_t x, int64_t h, int64_t count, const char **rows) {
    const conv_problem *p = t->p;
    const int64_t stride = t->io->x_stride_h, top = min_i64(max_i64(-h, 0), count);
    const int64_t bottom = max_i64(min_i64(p->in_h - h, count), top);
    for (int64_t i = 0; i < top; i++) rows[i] = t->zeros + INPLACE_REACH * t->bytes;
    for (int64_t i = bottom; i < count; i++) rows[i] = t->zeros + INPLACE_REACH * t->bytes;
    if (top == bottom) return;
    const int64_t first = x + (h + top) * stride, last = x + (h + bottom - 1) * stride;
    const size_t row_bytes = (size_t)(p->in_w * t->bytes);
    const char *row = (const char *)t->io->x + first * t->bytes;
    for (int64_t i = top; i < bottom; i++, row += stride * t->bytes) rows[i] = row;
    if (first < t->before) rows[top] = memcpy(t->first + INPLACE_REACH * t->bytes, rows[top], row_bytes);
    char *copy = t->last + INPLACE_REACH * t->bytes;
    for (int64_t i = bottom - 1, at = last; i >= top && at + p->in_w + t->after > t->end; i--, at -= stride) {
        rows[i] = memcpy(copy, rows[i], row_bytes);
        copy += inplace_pitch(p) * (int64_t)sizeof(real);
    }
}

/* The first column of step i: the last one ends with the row. */
INLINE int64_t inplace_column(int64_t i, int64_t width, int64_t out_w) {
    return max_i64(min_i64(i * width, out_w - width), 0);
}

static inplace_image inplace_begin(const conv_problem *p, const conv_io *io, real *scratch) {
    inplace_image t = {.p = p, .io = io, .width = inplace_parts(p) * LANES, .before = p->pad_w};
    const int64_t pitch = inplace_pitch(p);
    t.steps = ceil_div(p->out_w, t.width);
    t.bytes = element_bytes(p->x_type);
    t.zeros = (char *)scratch;
    t.first = (char *)(scratch + pitch);
    t.last = (char *)(scratch + 2 * pitch);
    t.masks = scratch + (2 + INPLACE_LAST) * pitch;
    memset(scratch, 0, (size_t)((2 + INPLACE_LAST) * pitch) * sizeof(real));
    t.after = inplace_after(p);
    t.end = p->in_w + (p->in_h - 1) * io->x_stride_h;
    if (p->groups > 1) t.end += (p->groups - 1) * io->x_stride_c;
    if (p->n > 1) t.end += (p->n - 1) * io->x_stride_n;
    for (int64_t i = 0; i < t.steps; i++) {
        const int64_t ow = inplace_column(i, t.width, p->out_w), x = ow * p->stride_w - p->pad_w;
        const int left = x < 0, right = !left && x + (t.width - 1) * p->stride_w + inplace_span(p) >= p->in_w;
        const int64_t edge = t.left + t.right;
        if (left || right) t.masked[edge] = inplace_mask(p, ow, t.masks + edge * p->kernel_w * LANES);
        t.left += left;
        t.right += right;
    }
    return t;
}

/* All columns of a block. j: of its rows. next: from this channel to the one after it. */
INLINE void inplace_columns(const inplace_image *t, void (*run)(const stream_job *), stream_job *j, int64_t next) {
    const conv_problem *p = t->p;
    const int64_t inner = t->steps - t->right;
    char *const y = j->y;
    for (int64_t i = 0; i < t->steps; i++) {
        const int64_t ow = inplace_column(i, t->width, p->out_w);
        j->at = ow * p->stride_w - p->pad_w;
        j->ahead = i + 1 < t->steps ? t->width * p->stride_w : next - j->at;
        j->y = y + ow * t->bytes;
        const int64_t edge = i < t->left ? i : i < inner ? -1 : t->left + i - inner;
        j->masked = edge < 0 ? 0 : t->masked[edge];
        j->masks = t->masks + edge * 3 * LANES;
        run(j);
    }
}

/* Rows of outputs of a block: what they read takes half of L1 at stride 2, since vectors that are neighbours share a
 * line of each row (Zen 1, 96 channels of 112 x 112, from memory: 18 rows take 0.8 of the time of 56), and all of it at
 * stride 1, where two more rows are begun (32 channels of 112 x 112: 28 rows take 1.1 of the time of 56), and with
 * steps of two vectors (Zen 5, the former 96 channels: 19 rows take 1.06, 56 rows 1.14 of the time of 28). */
INLINE int64_t inplace_block(const conv_problem *p, int64_t bytes) {
    const int wide = p->x_type == CONV_NATIVE && inplace_parts(p) == 2;
    const int64_t room = cpu_cache_sizes()->l1d / (wide ? 1 : p->stride_h);
    const int64_t rows = room / (p->in_w * p->stride_h * bytes);
    return stream_block(p->out_h, max_i64(min_i64(rows, STREAM_ROWS), 8));
}

/* Task `task` of so many of one image, which lies at x and y: blocks of rows of all groups. */
static void inplace_stream_run(const inplace_image *t, int64_t x, int64_t y, int64_t task, int64_t tasks) {
    static void (*const of_type[3][2][2])(const stream_job *) = {
        {{stream_1_1, stream_1_2}, {stream_2_1, stream_2_2}},
        {{stream_f16_1_1, stream_f16_1_2}, {stream_f16_2_1, stream_f16_2_2}},
        {{stream_bf16_1_1, stream_bf16_1_2}, {stream_bf16_2_1, stream_bf16_2_2}}};
    static void (*const parts[2][2])(const stream_job *) = {{stream_parts_1_1, stream_parts_1_2},
                                                            {stream_parts_2_1, stream_parts_2_2}};
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const int type = p->x_type == CONV_NATIVE ? 0 : p->x_type == CONV_F16 ? 1 : 2;
    void (*run)(const stream_job *) = of_type[type][p->stride_h - 1][p->stride_w - 1];
    if (type == 2 && inplace_parts(p) == 2) run = p->stride_h == 1 ? stream_pairs_1 : stream_pairs_2;
    if (type == 0 && inplace_parts(p) == 2) run = parts[p->stride_h - 1][p->stride_w - 1];
    const char *rows[2 * STREAM_ROWS + 2];
    const int64_t block = inplace_block(p, t->bytes), blocks = ceil_div(p->out_h, block), all = p->groups * blocks;
    stream_job j = {.rows = rows, .y_row = io->y_stride_h, .columns = min_i64(p->out_w, t->width)};
    j.second = inplace_is_half(p) ? 0 : LANES;
    j.clamped = p->activation == CONV_CLAMP;
    j.low = clamp_limit(p->activation_a);
    j.high = clamp_limit(p->activation_b);
    for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; i++) {
        const int64_t group = i / blocks, oh = i % blocks * block;
        j.count = min_i64(block, p->out_h - oh);
        inplace_input_rows(t, x + group * io->x_stride_c, oh * p->stride_h - p->pad_h,
                           j.count * p->stride_h + 3 - p->stride_h, rows);
        for (int64_t m = group * p->oc; m < (group + 1) * p->oc; m++) {
            j.weights = (const real *)io->packed + m * 9;
            j.bias = io->bias ? (const real *)io->bias + m : NULL;
            j.y = (char *)io->y + (y + m * io->y_stride_c + oh * io->y_stride_h) * t->bytes;
            inplace_columns(t, run, &j, io->x_stride_c);
        }
    }
}

/* A row of outputs of one channel. */
typedef struct line_job {
    const char *x;
    const real *weights, *bias;
    char *y;
} line_job;

/* Three or four neighbouring taps, from two loads. */
INLINE void line_sum_near(const int taps, const real *x, const vec *w, const real *masks, vec *sum) {
    vec v[4] = {vec_load_once(x)}, last = vec_load_once(x + taps - 1);
    if (masks) v[0] = stream_masked(v[0], masks), last = stream_masked(last, masks + (taps - 1) * LANES);
    v[1] = taps == 3 ? stream_between(v[0], last) : stream_second(v[0], last);
    v[2] = taps == 3 ? last : stream_third(v[0], last);
    v[3] = last;
    *sum = vec_zero();
    UNROLL
    for (int k = 0; k < taps; k++) *sum += w[k] * v[k];
}

INLINE void line_sum(const int taps, const int32_t type, const int parts, const int near, const char *x, int64_t at,
                     int64_t dilation, const vec *w, const real *masks, vec sum[2]) {
    if (near) {
        line_sum_near(taps, (const real *)x + at, w, masks, sum);
        return;
    }
    sum[0] = sum[1] = vec_zero();
    UNROLL
    for (int k = 0; k < taps; k++) {
        vec v = parts == 2 ? vec_load((const real *)(x + (at + k * dilation) * element_bytes(type)))
                           : load_vector(type, x, at + k * dilation);
        if (masks) v = stream_masked(v, masks + k * LANES);
        if (parts == 2) sum[1] += w[k] * vec_widen_odds(type, v), v = vec_widen_evens(type, v);
        sum[0] += w[k] * v;
    }
}

INLINE void line_row(const int taps, const int32_t type, const int parts, const int near, const inplace_image *t,
                     const line_job *j) {
    const conv_problem *p = t->p;
    const int64_t dilation = p->dilation_w, pad = p->pad_w, steps = t->steps, left = t->left, inner = steps - t->right;
    const int64_t width = parts * LANES, out_w = p->out_w;
    const vec bias = j->bias ? vec_splat(*j->bias) : vec_zero();
    const int clamped = p->activation == CONV_CLAMP;
    const real low = clamp_limit(p->activation_a), high = clamp_limit(p->activation_b), *masks = t->masks;
    const char *x = j->x;
    char *const y = j->y;
    vec w[INPLACE_TAPS], sum[2];
    UNROLL
    for (int k = 0; k < taps; k++) w[k] = vec_splat(j->weights[k]);
    for (int64_t i = 0; i < steps; i++) {
        const int64_t ow = inplace_column(i, width, out_w);
        if (i >= left && i < inner) {
            line_sum(taps, type, parts, near, x, ow - pad, dilation, w, NULL, sum);
        } else {
            line_sum(taps, type, parts, near, x, ow - pad, dilation, w, masks, sum);
            masks += taps * LANES;
        }
        UNROLL
        for (int part = 0; part < parts; part++) {
            sum[part] += bias;
            if (clamped) sum[part] = vec_clamp(sum[part], low, high);
        }
        if (parts == 2)
            stream_store_pairs(y + ow * element_bytes(type), min_i64(out_w, width), sum);
        else
            store_vector(type, y, ow, sum[0]);
    }
}

INLINE void line_of_type(const int taps, const inplace_image *t, const line_job *j) {
    if (STREAM_SHUFFLES && (taps == 3 || taps == 4) && t->p->x_type == CONV_NATIVE && t->p->dilation_w == 1)
        line_row(taps, CONV_NATIVE, 1, 1, t, j);
    else if (t->p->x_type == CONV_NATIVE)
        line_row(taps, CONV_NATIVE, 1, 0, t, j);
    else if (HAS_HALVES && t->p->x_type == CONV_F16)
        line_row(taps, CONV_F16, 1, 0, t, j);
    else if (HAS_HALVES && inplace_parts(t->p) == 2)
        line_row(taps, CONV_BF16, 2, 0, t, j);
    else if (HAS_HALVES)
        line_row(taps, CONV_BF16, 1, 0, t, j);
}

#define DW_LINE(taps) \
    static void line_##taps(const inplace_image *t, const line_job *j) { line_of_type(taps, t, j); }
DW_LINE(1)
DW_LINE(2)
DW_LINE(3)
DW_LINE(4)
DW_LINE(5)
DW_LINE(6)
DW_LINE(7)
DW_LINE(8)

/* Task `task` of so many of one image: rows of outputs of all groups. */
static void inplace_line_run(const inplace_image *t, int64_t x, int64_t y, int64_t task, int64_t tasks) {
    static void (*const run[INPLACE_TAPS])(const inplace_image *, const line_job *) = {line_1, line_2, line_3, line_4,
                                                                                       line_5, line_6, line_7, line_8};
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const int64_t all = p->groups * p->out_h;
    for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; i++) {
        const int64_t group = i / p->out_h, oh = i % p->out_h;
        line_job j = {.weights = (const real *)io->packed + group * p->kernel_w,
                      .bias = io->bias ? (const real *)io->bias + group : NULL,
                      .y = (char *)io->y + (y + group * io->y_stride_c + oh * io->y_stride_h) * t->bytes};
        inplace_input_rows(t, x + group * io->x_stride_c, oh * p->stride_h, 1, &j.x);
        run[p->kernel_w - 1](t, &j);
    }
}

#endif
