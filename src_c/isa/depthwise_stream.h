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

/* A vector of columns of some rows of outputs of one channel. */
typedef struct stream_job {
    const char *const *rows; /* of the input */
    int64_t count;           /* rows of outputs */
    int64_t at, offsets[3];  /* in each row: the first output's first tap; its three taps */
    int64_t ahead;           /* what is fetched for later: so far from what is read */
    const real *weights, *bias, *masks;
    int masked; /* bits of the taps that need their mask */
    char *y;
    int64_t y_row; /* from one row to the next, in elements */
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
 * element (2), nothing beyond the last of them. */
INLINE void stream_load(const int step, const int32_t type, const int masked, const stream_job *j, int64_t i,
                        vec v[3]) {
    const int64_t bytes = element_bytes(type);
    const char *row = j->rows[i] + j->at * bytes;
    __builtin_prefetch(row + j->ahead * bytes);
    if (step == 2 && type != CONV_NATIVE) {
        v[0] = vec_widen_evens(type, row);
        v[1] = vec_widen_odds(type, row);
        v[2] = vec_widen_odds(type, row + bytes);
    } else if (step == 2) {
        vec odd;
        stream_pairs((const real *)row, &v[0], &v[1]);
        stream_pairs((const real *)row + 1, &odd, &v[2]);
    } else {
        UNROLL
        for (int k = 0; k < 3; k++) {
            const char *x = row + (step == 1 ? k : j->offsets[k]) * bytes;
            v[k] = type == CONV_NATIVE ? tile_load((const real *)x, 3) : vec_widen(type, x);
        }
    }
    UNROLL
    for (int k = 0; k < 3; k++)
        if (masked >> k & 1) v[k] = stream_masked(v[k], j->masks + k * LANES);
}

INLINE vec stream_add(vec sum, const vec w[3], const vec v[3]) {
    UNROLL
    for (int k = 0; k < 3; k++) sum += w[k] * v[k];
    return sum;
}

INLINE void stream_store(const int step, const int32_t type, const int clamped, const stream_job *j, int64_t r, vec sum,
                         vec bias) {
    sum += bias;
    if (clamped) sum = vec_clamp(sum, j->low, j->high);
    if (step == 2 && type == CONV_NATIVE) sum = stream_ordered(sum);
    store_vector(type, j->y, r * j->y_row, sum);
}

INLINE void stream_column(const int down, const int step, const int32_t type, const int masked, const int clamped,
                          const stream_job *job) {
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
    stream_load(step, type, masked, &j, 0, v);
    last = stream_add(vec_zero(), w, v);
    if (down == 1) {
        stream_load(step, type, masked, &j, 1, v);
        before = stream_add(last, w + 3, v);
        last = stream_add(vec_zero(), w, v);
    }
    for (int64_t r = 0; r < j.count; r++) {
        if (down == 2) {
            stream_load(step, type, masked, &j, 2 * r + 1, v);
            before = stream_add(last, w + 3, v);
        }
        stream_load(step, type, masked, &j, down * r + 2, v);
        stream_store(step, type, clamped, &j, r, stream_add(before, w + 6, v), bias);
        if (down == 1) before = stream_add(last, w + 3, v);
        last = stream_add(vec_zero(), w, v);
    }
}

INLINE void stream_any(const int down, const int step, const int32_t type, const int clamped, const stream_job *j) {
    if (step == 0 || j->masked == 0)
        stream_column(down, step, type, 0, clamped, j);
    else if (j->masked == 1)
        stream_column(down, step, type, 1, clamped, j);
    else if (j->masked == 4)
        stream_column(down, step, type, 4, clamped, j);
    else
        stream_column(down, step, type, 7, clamped, j);
}

INLINE void stream_of_type(const int down, const int step, const int32_t type, const stream_job *j) {
    if (type != CONV_NATIVE && !HAS_HALVES) return; /* no code */
    j->clamped ? stream_any(down, step, type, 1, j) : stream_any(down, step, type, 0, j);
}

/* The name says the stride of rows and the step of columns. The strip holds no halves. */
#define DW_STREAM(down, step) \
    static void stream_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_NATIVE, j); } \
    static void stream_f16_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_F16, j); } \
    static void stream_bf16_##down##_##step(const stream_job *j) { stream_of_type(down, step, CONV_BF16, j); }
DW_STREAM(1, 1)
DW_STREAM(1, 2)
DW_STREAM(2, 1)
DW_STREAM(2, 2)
static void stream_1_0(const stream_job *j) { stream_of_type(1, 0, CONV_NATIVE, j); }
static void stream_2_0(const stream_job *j) { stream_of_type(2, 0, CONV_NATIVE, j); }

/* Equal blocks of so many rows. */
INLINE int64_t stream_block(int64_t count) { return ceil_div(count, max_i64(ceil_div(count, STREAM_ROWS), 1)); }

/* A job of tiles on the strip: all their rows are consecutive. down: stride of rows. */
static void stream_tiles(int64_t down, const dw_tile_job *job) {
    const char *rows[2 * STREAM_ROWS + 2];
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
