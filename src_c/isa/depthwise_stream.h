/* Depthwise filters of 3 x 3 taps, strides 1 and 2: the nine weights in registers, rows streaming past them.
 *
 *     y[row r][LANES columns] = clamp(bias + sum over kh, kw of w[kh][kw] * row[r * stride + kh][columns + kw])
 *
 * for each group, for each block of rows:            a table of the input rows that they read
 *   for each output channel, for each vector of columns:
 *     for each input row, from the top:              3 loads, 9 multiply-adds: into this output, the last, the one
 * before a finished row: bias, clamp, y
 *
 * The rows are the strip's (depthwise_strip.h), or x's own where nothing but y = sum + bias is wanted and strides allow
 * it: the copy took a third to a half of the time. There, rows beyond the image are a row of zeros in the table.
 * Columns beyond it are read and masked away: in their place lies the row before or after, but for the first and last
 * row of all x, of which the table has copies with room around them. Every second column (stride 2) is taken from two
 * loads. Tails: the last vector of a row ends with it and overlaps the one before. Every output has its terms in the
 * order of the filter, whatever it is read from. Zhang, Lo and Lu, "High performance depthwise and pointwise
 * convolutions on mobile devices", AAAI 2020. */
#ifndef DEPTHWISE_STREAM_H
#define DEPTHWISE_STREAM_H

#include "depthwise_copy.h"
#include "depthwise_tile.h"
#include "epilogue.h"

/* Rows of outputs of a block: of 112 columns and stride 2, what they read takes 29 KB. STREAM_REACH: the most columns
 * that are read beyond either end of a row. STREAM_WIDTH: three rows of x take 48 KiB, as floats. */
enum { STREAM_ROWS = 64, STREAM_REACH = 16, STREAM_WIDTH = 4096 };
enum { STREAM_EDGES = 2 * (STREAM_REACH / LANES + 1) };

/* A vector of columns of some rows of outputs of one channel. */
typedef struct stream_job {
    const real *const *rows; /* of the input */
    int64_t count;           /* rows of outputs */
    int64_t at, offsets[3];  /* in each row: the first output's first tap; its three taps */
    int64_t ahead;           /* what is fetched for later: so far from what is read */
    const real *weights, *bias, *masks;
    int masked; /* bits of the taps that need their mask */
    real *y;
    int64_t y_row;
    int clamped;
    real low, high;
} stream_job;

/* Every second element from x on (even) and from x + 1 (odd), in the order in which shuffles within the halves of 32
 * bytes make them: those take one cycle, across the halves three. Sums are put in order once instead. */
#if VECTOR_BYTES == 32 && defined(VEC_CAN_SHUFFLE)
#if LANES == 8
#define STREAM_PAIRS(a, b, s) __builtin_shufflevector(a, b, s, 2 + s, 8 + s, 10 + s, 4 + s, 6 + s, 12 + s, 14 + s)
INLINE vec stream_ordered(vec v) { return __builtin_shufflevector(v, v, 0, 1, 4, 5, 2, 3, 6, 7); }
#else
#define STREAM_PAIRS(a, b, s) __builtin_shufflevector(a, b, s, 4 + s, 2 + s, 6 + s)
INLINE vec stream_ordered(vec v) { return __builtin_shufflevector(v, v, 0, 2, 1, 3); }
#endif
INLINE void stream_pairs(const real *x, vec *even, vec *odd) {
    const vec a = vec_load(x), b = vec_load(x + LANES);
    *even = STREAM_PAIRS(a, b, 0);
    *odd = STREAM_PAIRS(a, b, 1);
}
#else
INLINE void stream_pairs(const real *x, vec *even, vec *odd) { dw_load_pairs(x, even, odd); }
INLINE vec stream_ordered(vec v) { return v; }
#endif

typedef int64_t stream_bits __attribute__((vector_size(VECTOR_BYTES)));

/* What the three taps of row i of the input read: vectors `offsets` apart (step 0), neighbours (1), or every second
 * element (2), nothing beyond the last of them. */
INLINE void stream_load(const int step, const int masked, const stream_job *j, int64_t i, vec v[3]) {
    const real *row = j->rows[i] + j->at;
    __builtin_prefetch(row + j->ahead);
    if (step == 2) {
        vec odd;
        stream_pairs(row, &v[0], &v[1]);
        stream_pairs(row + 1, &odd, &v[2]);
    } else {
        UNROLL
        for (int k = 0; k < 3; k++) v[k] = tile_load(row + (step == 1 ? k : j->offsets[k]), 3);
    }
    UNROLL
    for (int k = 0; k < 3; k++)
        if (masked >> k & 1) v[k] = (vec)((stream_bits)v[k] & (stream_bits)vec_load(j->masks + k * LANES));
}

INLINE vec stream_add(vec sum, const vec w[3], const vec v[3]) {
    UNROLL
    for (int k = 0; k < 3; k++) sum += w[k] * v[k];
    return sum;
}

INLINE void stream_store(const int step, const int clamped, const stream_job *j, int64_t r, vec sum, vec bias) {
    sum += bias;
    if (clamped) sum = vec_clamp(sum, j->low, j->high);
    vec_store(j->y + r * j->y_row, step == 2 ? stream_ordered(sum) : sum);
}

INLINE void stream_column(const int down, const int step, const int masked, const int clamped, const stream_job *job) {
    /* Scalar by scalar: a copy of a struct that has just been written waits for its stores (150 cycles on Zen 3). */
    const stream_job j = {.rows = job->rows,
                          .count = job->count,
                          .at = job->at,
                          .offsets = {job->offsets[0], job->offsets[1], job->offsets[2]},
                          .ahead = job->ahead,
                          .weights = job->weights,
                          .bias = job->bias,
                          .masks = job->masks,
                          .y = job->y,
                          .y_row = job->y_row,
                          .low = job->low,
                          .high = job->high};
    const vec bias = j.bias ? vec_splat(*j.bias) : vec_zero();
    vec w[9], v[3], last, before = vec_zero();
    UNROLL
    for (int k = 0; k < 9; k++) w[k] = vec_splat(j.weights[k]);
    stream_load(step, masked, &j, 0, v);
    last = stream_add(vec_zero(), w, v);
    if (down == 1) {
        stream_load(step, masked, &j, 1, v);
        before = stream_add(last, w + 3, v);
        last = stream_add(vec_zero(), w, v);
    }
    for (int64_t r = 0; r < j.count; r++) {
        if (down == 2) {
            stream_load(step, masked, &j, 2 * r + 1, v);
            before = stream_add(last, w + 3, v);
        }
        stream_load(step, masked, &j, down * r + 2, v);
        stream_store(step, clamped, &j, r, stream_add(before, w + 6, v), bias);
        if (down == 1) before = stream_add(last, w + 3, v);
        last = stream_add(vec_zero(), w, v);
    }
}

INLINE void stream_any(const int down, const int step, const int clamped, const stream_job *j) {
    if (step == 0 || j->masked == 0)
        stream_column(down, step, 0, clamped, j);
    else if (j->masked == 1)
        stream_column(down, step, 1, clamped, j);
    else if (j->masked == 4)
        stream_column(down, step, 4, clamped, j);
    else
        stream_column(down, step, 7, clamped, j);
}

/* The name says the stride of rows and the step of columns. */
#define DW_STREAM(down, step) \
    static void stream_##down##_##step(const stream_job *j) { \
        j->clamped ? stream_any(down, step, 1, j) : stream_any(down, step, 0, j); \
    }
DW_STREAM(1, 0)
DW_STREAM(1, 1)
DW_STREAM(1, 2)
DW_STREAM(2, 0)
DW_STREAM(2, 1)
DW_STREAM(2, 2)

static void stream_run(int64_t down, int64_t step, const stream_job *j) {
    static void (*const run[2][3])(const stream_job *) = {{stream_1_0, stream_1_1, stream_1_2},
                                                          {stream_2_0, stream_2_1, stream_2_2}};
    run[down - 1][step](j);
}

/* Equal blocks of so many rows. */
INLINE int64_t stream_block(int64_t count) { return ceil_div(count, max_i64(ceil_div(count, STREAM_ROWS), 1)); }

/* A job of tiles on the strip: all their rows are consecutive. down: stride of rows. */
static void stream_tiles(int64_t down, const dw_tile_job *job) {
    const real *rows[2 * STREAM_ROWS + 2];
    stream_job j = {.rows = rows, .y_row = job->out_row, .clamped = job->clamped, .low = job->low, .high = job->high};
    const int64_t count = job->rows * job->tiles, block = stream_block(count), odd = job->offsets[3] - job->offsets[0];
    for (int k = 0; k < 3; k++) j.offsets[k] = job->offsets[k];
    for (int64_t group = 0; group < job->groups; group++) {
        const real *strip = job->strip + group * job->group_strip;
        j.weights = job->weights + group * job->group_weights;
        j.bias = job->bias ? job->bias + group * job->group_bias : NULL;
        for (int64_t r = 0; r < count; r += block) {
            j.count = min_i64(block, count - r);
            for (int64_t i = 0; i < j.count * down + 3 - down; i++)
                rows[i] = strip + (r + i / down) * job->lane_row + i % down * odd;
            for (j.at = job->first_column;; j.at = min_i64(j.at + job->column_step, job->last_column)) {
                j.y = job->out + group * job->group_out + r * job->out_row + j.at;
                stream_run(down, 0, &j);
                if (j.at == job->last_column) break;
            }
        }
    }
}

/* Images that are read where they lie. */
typedef struct stream_image {
    const conv_problem *p;
    const conv_io *io;
    int64_t vectors, left, right;       /* of a row; those at its ends that read beyond them */
    int64_t before, after;              /* columns that are read beyond a row's ends */
    int masked[STREAM_EDGES];           /* bits of the taps that need their masks, of those vectors */
    int64_t end;                        /* of x: one beyond the last element */
    real *masks, *zeros, *first, *last; /* the rows begin STREAM_REACH after these */
} stream_image;

INLINE int64_t stream_pitch(const conv_problem *p) {
    return ceil_div(p->in_w + 2 * STREAM_REACH, 2 * LANES) * 2 * LANES;
}

/* What an output row reads beyond the end of an input row. */
INLINE int64_t stream_after(const conv_problem *p) {
    return max_i64((p->out_w - 1) * p->stride_w - p->pad_w + 2 - (p->in_w - 1), 0);
}

static int stream_reads_shape(const conv_problem *p, const dw_plan *s) {
    if (!s->stream || p->pad_mode != CONV_PAD_ZEROS || p->stride_w > 2 || p->dilation_w > 1 || p->in_d != 1 ||
        p->out_d != 1)
        return 0;
    if (p->in_w > STREAM_WIDTH || p->out_w < LANES || s->blocks_w > 1 || s->blocks_d > 1) return 0;
    return max_i64(p->pad_w, stream_after(p)) <= min_i64(STREAM_REACH, p->in_w);
}

static size_t stream_bytes(const conv_problem *p, const dw_plan *s) {
    if (!stream_reads_shape(p, s)) return 0;
    const int64_t edges = min_i64(STREAM_EDGES, ceil_div(p->out_w, LANES));
    return (size_t)(3 * stream_pitch(p) + edges * 3 * LANES) * sizeof(real);
}

static int stream_reads(const conv_problem *p, const conv_io *io, const dw_plan *s) {
    if (p->x_type != CONV_NATIVE || !output_is_direct(p, io) || !stream_reads_shape(p, s)) return 0;
    if (io->x_stride_w != 1 || io->y_stride_w != 1 || (p->in_h > 1 && io->x_stride_h < p->in_w)) return 0;
    return (p->n == 1 || io->x_stride_n >= 0) && (p->groups == 1 || io->x_stride_c >= 0);
}

/* All bits of the elements that a vector reads inside the row, in the order that stream_ordered mends. Returns the bits
 * of the taps that read others, too. */
static int stream_mask(const conv_problem *p, int64_t ow, real *masks) {
    int masked = 0;
    for (int k = 0; k < 3; k++) {
        real inside[2 * LANES];
        for (int64_t i = 0; i < 2 * LANES; i++) {
            const int64_t column = ow * p->stride_w - p->pad_w + k + i;
            memset(inside + i, column >= 0 && column < p->in_w ? 0xff : 0, sizeof(real));
            masked |= (column < 0 || column >= p->in_w) << k;
        }
        vec v = vec_load(inside), odd;
        if (p->stride_w == 2) stream_pairs(inside, &v, &odd);
        vec_store(masks + k * LANES, v);
    }
    return masked;
}

/* The table of the rows from h on of the channel that begins at element x of x; rows may be outside. */
static void stream_input_rows(const stream_image *t, int64_t x, int64_t h, int64_t count, const real **rows) {
    const conv_problem *p = t->p;
    const int64_t stride = t->io->x_stride_h, top = min_i64(max_i64(-h, 0), count);
    const int64_t bottom = max_i64(min_i64(p->in_h - h, count), top);
    for (int64_t i = 0; i < top; i++) rows[i] = t->zeros + STREAM_REACH;
    for (int64_t i = bottom; i < count; i++) rows[i] = t->zeros + STREAM_REACH;
    if (top == bottom) return;
    const int64_t first = x + (h + top) * stride, last = x + (h + bottom - 1) * stride;
    const real *row = (const real *)t->io->x + first;
    for (int64_t i = top; i < bottom; i++, row += stride) rows[i] = row;
    if (first < t->before) rows[top] = memcpy(t->first + STREAM_REACH, rows[top], (size_t)p->in_w * sizeof(real));
    if (last + p->in_w + t->after > t->end)
        rows[bottom - 1] = memcpy(t->last + STREAM_REACH, rows[bottom - 1], (size_t)p->in_w * sizeof(real));
}

static stream_image stream_begin(const conv_problem *p, const conv_io *io, real *scratch) {
    stream_image t = {.p = p, .io = io, .vectors = ceil_div(p->out_w, LANES), .before = p->pad_w, .zeros = scratch};
    const int64_t pitch = stream_pitch(p);
    t.first = scratch + pitch;
    t.last = t.first + pitch;
    t.masks = t.last + pitch;
    memset(scratch, 0, (size_t)(3 * pitch) * sizeof(real));
    t.after = stream_after(p);
    t.end = p->in_w + (p->in_h - 1) * io->x_stride_h;
    if (p->groups > 1) t.end += (p->groups - 1) * io->x_stride_c;
    if (p->n > 1) t.end += (p->n - 1) * io->x_stride_n;
    for (int64_t i = 0; i < t.vectors; i++) {
        const int64_t ow = min_i64(i * LANES, p->out_w - LANES), x = ow * p->stride_w - p->pad_w;
        const int left = x < 0, right = !left && x + (LANES - 1) * p->stride_w + 2 >= p->in_w;
        const int64_t edge = t.left + t.right;
        if (left || right) t.masked[edge] = stream_mask(p, ow, t.masks + edge * 3 * LANES);
        t.left += left;
        t.right += right;
    }
    return t;
}

/* All columns of a block. j: of its rows. next: from this channel to the one after it. */
static void stream_columns(const stream_image *t, stream_job *j, int64_t next) {
    const conv_problem *p = t->p;
    const int64_t inner = t->vectors - t->right;
    real *const y = j->y;
    for (int64_t i = 0; i < t->vectors; i++) {
        const int64_t ow = min_i64(i * LANES, p->out_w - LANES);
        j->at = ow * p->stride_w - p->pad_w;
        j->ahead = i + 1 < t->vectors ? LANES * p->stride_w : next - j->at;
        j->y = y + ow;
        const int64_t edge = i < t->left ? i : i < inner ? -1 : t->left + i - inner;
        j->masked = edge < 0 ? 0 : t->masked[edge];
        j->masks = t->masks + edge * 3 * LANES;
        stream_run(p->stride_h, p->stride_w, j);
    }
}

/* Task `task` of so many of one image, which lies at x and y: blocks of rows of all groups. */
static void stream_image_run(const stream_image *t, int64_t x, int64_t y, int64_t task, int64_t tasks) {
    const conv_problem *p = t->p;
    const conv_io *io = t->io;
    const real *rows[2 * STREAM_ROWS + 2];
    const int64_t block = stream_block(p->out_h), blocks = ceil_div(p->out_h, block), all = p->groups * blocks;
    stream_job j = {.rows = rows, .y_row = io->y_stride_h};
    j.clamped = p->activation == CONV_CLAMP;
    j.low = clamp_limit(p->activation_a);
    j.high = clamp_limit(p->activation_b);
    for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; i++) {
        const int64_t group = i / blocks, oh = i % blocks * block;
        j.count = min_i64(block, p->out_h - oh);
        stream_input_rows(t, x + group * io->x_stride_c, oh * p->stride_h - p->pad_h,
                          j.count * p->stride_h + 3 - p->stride_h, rows);
        for (int64_t m = group * p->oc; m < (group + 1) * p->oc; m++) {
            j.weights = (const real *)io->packed + m * 9;
            j.bias = io->bias ? (const real *)io->bias + m : NULL;
            j.y = (real *)io->y + y + m * io->y_stride_c + oh * io->y_stride_h;
            stream_columns(t, &j, io->x_stride_c);
        }
    }
}

#endif
