/* Depthwise filters of 3 x 3 taps, strides 1 and 2: the nine weights in registers, rows streaming past them.
 *
 *     y[row r][LANES columns] = clamp(bias + sum over kh, kw of w[kh][kw] * row[r * stride + kh][columns + kw])
 *
 * for each block of rows:                   a table of the input rows that they read
 *   for each vector of columns:             nine weights in registers
 *     for each input row, from the top:     3 loads, 9 multiply-adds, for this output and the two above
 *       a finished output: bias, clamp, y
 *
 * The rows are the strip's (depthwise_strip.h) or x's own (depthwise_inplace.h). Tails: the last vector of a row ends
 * with it and overlaps the one before. Every output has its terms in the order of the filter, whatever it is read from.
 * On data in L1 a vector takes 6.4 cycles at stride 1 and 13 at stride 2, the multiply-adds alone 4.5 (Zen 3, AVX2). */
#ifndef DEPTHWISE_STREAM_H
#define DEPTHWISE_STREAM_H

#include "depthwise_copy.h"
#include "depthwise_tile.h"
#include "epilogue.h"

/* Rows of outputs of a block: two more are begun than are stored. */
enum { STREAM_ROWS = 64 };

/* A vector of columns, or two as pairs, of some rows of outputs of one channel. */
typedef struct stream_job {
    const char *const *rows; /* of the input */
    int64_t count;           /* rows of outputs */
    int64_t at, offsets[3];  /* in each row: the first output's first tap; its three taps */
    int64_t ahead;           /* what is fetched for later: so far from what is read */
    const real *weights, *bias, *masks;
    int masked; /* bits of the taps that need their mask */
    char *y;
    int64_t y_row;   /* from one row to the next, in elements */
    int64_t columns; /* that are stored of two vectors: more than one, not more than there are */
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

/* v where the mask's bits are set, else 0. */
INLINE vec stream_masked(vec v, const real *mask) { return (vec)((stream_bits)v & (stream_bits)vec_load(mask)); }

/* What the three taps of row i of the input read: vectors `offsets` apart (step 0), neighbours (1), or every second
 * element (2), nothing beyond the last of them. Two parts: those of the even and of the odd columns, which lie together
 * as pairs of halves. */
INLINE void stream_load(const int step, const int32_t type, const int parts, const int masked, const stream_job *j,
                        int64_t i, vec v[2][3]) {
    const int64_t bytes = element_bytes(type);
    const char *row = j->rows[i] + j->at * bytes;
    __builtin_prefetch(row + j->ahead * bytes);
    if (parts == 2) {
        vec first = vec_load((const real *)row), last = vec_load((const real *)(row + 2 * bytes));
        if (masked & 1) first = stream_masked(first, j->masks);
        if (masked & 4) last = stream_masked(last, j->masks + 2 * LANES);
        v[0][0] = vec_widen_evens(type, first);
        v[0][1] = v[1][0] = vec_widen_odds(type, first);
        v[0][2] = v[1][1] = vec_widen_evens(type, last);
        v[1][2] = vec_widen_odds(type, last);
        return;
    }
    if (step == 2 && type != CONV_NATIVE) {
        const vec first = vec_load((const real *)row), last = vec_load((const real *)(row + bytes));
        v[0][0] = vec_widen_evens(type, first);
        v[0][1] = vec_widen_odds(type, first);
        v[0][2] = vec_widen_odds(type, last);
    } else if (step == 2) {
        vec odd;
        stream_pairs((const real *)row, &v[0][0], &v[0][1]);
        stream_pairs((const real *)row + 1, &odd, &v[0][2]);
    } else {
        UNROLL
        for (int k = 0; k < 3; k++) {
            const char *x = row + (step == 1 ? k : j->offsets[k]) * bytes;
            v[0][k] = type == CONV_NATIVE ? tile_load((const real *)x, 3) : vec_widen(type, x);
        }
    }
    UNROLL
    for (int k = 0; k < 3; k++)
        if (masked >> k & 1) v[0][k] = stream_masked(v[0][k], j->masks + k * LANES);
}

/* sum = start + a row of taps. Without start: from zero. */
INLINE void stream_add(const int parts, vec sum[2], const vec *start, const vec w[3], const vec v[2][3]) {
    UNROLL
    for (int part = 0; part < parts; part++) {
        sum[part] = start ? start[part] : vec_zero();
        UNROLL
        for (int k = 0; k < 3; k++) sum[part] += w[k] * v[part][k];
    }
}

/* columns of two vectors: as two overlapping halves where they are fewer. */
INLINE void stream_store_pairs(char *y, int64_t columns, const vec sum[2]) {
    char all[sizeof(vec)] __attribute__((aligned(sizeof(vec))));
    if (columns == 2 * LANES) {
        vec_narrow_pairs(y, sum[0], sum[1]);
        return;
    }
    const size_t half = sizeof all / 2, last = (size_t)(columns - LANES) * 2;
    vec_narrow_pairs(all, sum[0], sum[1]);
    memcpy(y, all, half);
    memcpy(y + last, all + last, half);
}

INLINE void stream_store(const int step, const int32_t type, const int parts, const int clamped, const stream_job *j,
                         int64_t r, vec sum[2], vec bias) {
    UNROLL
    for (int part = 0; part < parts; part++) {
        sum[part] += bias;
        if (clamped) sum[part] = vec_clamp(sum[part], j->low, j->high);
    }
    if (parts == 2)
        stream_store_pairs(j->y + r * j->y_row * element_bytes(type), j->columns, sum);
    else
        store_vector(type, j->y, r * j->y_row, step == 2 && type == CONV_NATIVE ? stream_ordered(sum[0]) : sum[0]);
}

INLINE void stream_column(const int down, const int step, const int32_t type, const int parts, const int masked,
                          const int clamped, const stream_job *job) {
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
                          .columns = job->columns,
                          .low = job->low,
                          .high = job->high};
    const vec bias = j.bias ? vec_splat(*j.bias) : vec_zero();
    vec w[9], v[2][3], last[2], before[2], done[2];
    UNROLL
    for (int k = 0; k < 9; k++) w[k] = vec_splat(j.weights[k]);
    stream_load(step, type, parts, masked, &j, 0, v);
    stream_add(parts, last, NULL, w, v);
    if (down == 1) {
        stream_load(step, type, parts, masked, &j, 1, v);
        stream_add(parts, before, last, w + 3, v);
        stream_add(parts, last, NULL, w, v);
    }
    for (int64_t r = 0; r < j.count; r++) {
        if (down == 2) {
            stream_load(step, type, parts, masked, &j, 2 * r + 1, v);
            stream_add(parts, before, last, w + 3, v);
        }
        stream_load(step, type, parts, masked, &j, down * r + 2, v);
        stream_add(parts, done, before, w + 6, v);
        stream_store(step, type, parts, clamped, &j, r, done, bias);
        if (down == 1) stream_add(parts, before, last, w + 3, v);
        stream_add(parts, last, NULL, w, v);
    }
}

INLINE void stream_any(const int down, const int step, const int32_t type, const int parts, const int clamped,
                       const stream_job *j) {
    if (step == 0 || j->masked == 0)
        stream_column(down, step, type, parts, 0, clamped, j);
    else if (j->masked == 1)
        stream_column(down, step, type, parts, 1, clamped, j);
    else if (j->masked == 4)
        stream_column(down, step, type, parts, 4, clamped, j);
    else
        stream_column(down, step, type, parts, 7, clamped, j);
}

INLINE void stream_of_type(const int down, const int step, const int32_t type, const int parts, const stream_job *j) {
    if (type != CONV_NATIVE && !HAS_HALVES) return; /* no code */
    j->clamped ? stream_any(down, step, type, parts, 1, j) : stream_any(down, step, type, parts, 0, j);
}

/* The name says the stride of rows and the step of columns. The strip holds no halves. */
#define DW_STREAM(down, step) \
    static void stream_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_NATIVE, 1, j); } \
    static void stream_f16_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_F16, 1, j); } \
    static void stream_bf16_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_BF16, 1, j); }
DW_STREAM(1, 1)
DW_STREAM(1, 2)
DW_STREAM(2, 1)
DW_STREAM(2, 2)
static void stream_1_0(const stream_job *j) { stream_of_type(1, 0, CONV_NATIVE, 1, j); }
static void stream_2_0(const stream_job *j) { stream_of_type(2, 0, CONV_NATIVE, 1, j); }
static void stream_pairs_1(const stream_job *j) { stream_of_type(1, 1, CONV_BF16, 2, j); }
static void stream_pairs_2(const stream_job *j) { stream_of_type(2, 1, CONV_BF16, 2, j); }

/* Equal blocks of rows of outputs, of at most so many. */
INLINE int64_t stream_block(int64_t count, int64_t most) { return ceil_div(count, max_i64(ceil_div(count, most), 1)); }

/* A job of tiles on the strip: all their rows are consecutive. down: stride of rows. */
static void stream_tiles(int64_t down, const dw_tile_job *job) {
    const char *rows[2 * STREAM_ROWS + 2];
    stream_job j = {.rows = rows, .y_row = job->out_row, .clamped = job->clamped, .low = job->low, .high = job->high};
    const int64_t count = job->rows * job->tiles, block = stream_block(count, STREAM_ROWS),
                  odd = job->offsets[3] - job->offsets[0];
    for (int k = 0; k < 3; k++) j.offsets[k] = job->offsets[k];
    for (int64_t group = 0; group < job->groups; group++) {
        const real *strip = job->strip + group * job->group_strip;
        j.weights = job->weights + group * job->group_weights;
        j.bias = job->bias ? job->bias + group * job->group_bias : NULL;
        for (int64_t r = 0; r < count; r += block) {
            j.count = min_i64(block, count - r);
            for (int64_t i = 0; i < j.count * down + 3 - down; i++)
                rows[i] = (const char *)(strip + (r + i / down) * job->lane_row + i % down * odd);
            for (j.at = job->first_column;; j.at = min_i64(j.at + job->column_step, job->last_column)) {
                j.y = (char *)(job->out + group * job->group_out + r * job->out_row + j.at);
                down == 1 ? stream_1_0(&j) : stream_2_0(&j);
                if (j.at == job->last_column) break;
            }
        }
    }
}

#endif
