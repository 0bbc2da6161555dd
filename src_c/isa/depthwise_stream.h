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
 * On data in L1 a vector takes 6.4 cycles at stride 1 and 13 at stride 2, the multiply-adds alone 4.5 (Zen 3, AVX2);
 * with AVX-512, on Zen 5 and in L2, 6.8 and 12: lines that loads and stores cross take the rest. */
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
    int64_t columns; /* that are stored of a vector, or of a pair: more than one vector, not more than there are */
    int64_t second;  /* at step 2 the second vector of a pair lies so far from the first: 0 where nobody wants it */
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
INLINE void stream_pairs_of(vec a, vec b, vec *even, vec *odd) {
    *even = STREAM_PAIRS(a, b, 0);
    *odd = STREAM_PAIRS(a, b, 1);
}
#else
INLINE void stream_pairs_of(vec a, vec b, vec *even, vec *odd) { vec_pairs_of(a, b, even, odd); }
INLINE vec stream_ordered(vec v) { return v; }
#endif

INLINE void stream_pairs(const real *x, int64_t second, vec *even, vec *odd) {
    stream_pairs_of(vec_load(x), vec_load(x + second), even, odd);
}

typedef int64_t stream_bits __attribute__((vector_size(VECTOR_BYTES)));

/* v where the mask's bits are set, else 0. */
INLINE vec stream_masked(vec v, const real *mask) { return (vec)((stream_bits)v & (stream_bits)vec_load(mask)); }

/* Taps as shuffles of fewer loads. With 64 bytes every load ends in another line, which takes as long as two loads, but
 * a shuffle half as long as one (Zen 5; 3 x 3 taps in L2: 6.4 cycles a vector, 8.4 with three loads). */
#if VECTOR_BYTES == 64 && defined(VEC_CAN_SHUFFLE)
#define STREAM_SHUFFLES 1
/* The vectors after a and b have been moved by one or two elements; what lies between those at x and at x + 2. */
#define STREAM_MOVED(j, s) ((j) + (s))
#define STREAM_BETWEEN(j, s) ((j) < LANES - (s) ? (j) + 1 : 2 * LANES - 2)
#define STREAM_OF_FOUR(j, s) ((j) < LANES - (s) ? (j) + (s) : LANES - 3 + (j) + (s))
INLINE vec stream_moved_1(vec a, vec b) { return VEC_BLEND(a, b, STREAM_MOVED, 1); }
INLINE vec stream_moved_2(vec a, vec b) { return VEC_BLEND(a, b, STREAM_MOVED, 2); }
INLINE vec stream_between(vec a, vec b) { return VEC_BLEND(a, b, STREAM_BETWEEN, 1); }
/* The second and third of four, of which a and b are the first and last. */
INLINE vec stream_second(vec a, vec b) { return VEC_BLEND(a, b, STREAM_OF_FOUR, 1); }
INLINE vec stream_third(vec a, vec b) { return VEC_BLEND(a, b, STREAM_OF_FOUR, 2); }
#else
#define STREAM_SHUFFLES 0
INLINE vec stream_moved_1(vec a, vec b) { return (void)b, a; } /* no code */
INLINE vec stream_moved_2(vec a, vec b) { return (void)b, a; }
INLINE vec stream_between(vec a, vec b) { return (void)b, a; }
INLINE vec stream_second(vec a, vec b) { return (void)b, a; }
INLINE vec stream_third(vec a, vec b) { return (void)b, a; }
#endif

/* Where the vectors lie that are masked, one for each bit: the taps' own, or the first and last ones of two parts. */
INLINE int64_t stream_mask_at(const int step, const int32_t type, const int parts, int64_t k) {
    if (type != CONV_NATIVE || parts == 1) return k;
    return k == 0 ? 0 : step == 1 ? (k - 1) * 2 + LANES : (k + 2) * LANES;
}

/* Two vectors of outputs. */
INLINE void stream_load_parts(const int step, const int masked, const stream_job *j, const real *x, vec v[2][3]) {
    vec first = vec_load_once(x), last = vec_load_once(x + (step == 1 ? 1 : 3) * LANES);
    vec next = step == 1 ? vec_load(x + LANES + 2) : vec_splat(x[4 * LANES]);
    if (masked & 1) first = stream_masked(first, j->masks);
    if (masked & 2) last = stream_masked(last, j->masks + LANES);
    if (masked & 4) next = stream_masked(next, j->masks + 2 * LANES);
    if (step == 1) {
        v[0][0] = first;
        v[0][1] = stream_moved_1(first, last);
        v[0][2] = stream_moved_2(first, last);
        v[1][0] = last;
        v[1][1] = stream_between(last, next);
        v[1][2] = next;
    } else {
        stream_pairs_of(first, vec_load_once(x + LANES), &v[0][0], &v[0][1]);
        stream_pairs_of(vec_load_once(x + 2 * LANES), last, &v[1][0], &v[1][1]);
        v[0][2] = stream_moved_1(v[0][0], v[1][0]);
        v[1][2] = stream_moved_1(v[1][0], next);
    }
}

/* Halves: two vectors of them, those of the even and of the odd columns, or one of every second element. */
INLINE void stream_load_halves(const int32_t type, const int parts, const int masked, const stream_job *j,
                               const char *row, vec v[2][3]) {
    vec first = vec_load((const real *)row), last = vec_load((const real *)(row + (parts == 2 ? 4 : 2)));
    if (parts == 2 && masked & 1) first = stream_masked(first, j->masks);
    if (parts == 2 && masked & 4) last = stream_masked(last, j->masks + 2 * LANES);
    v[0][0] = vec_widen_evens(type, first);
    v[0][1] = vec_widen_odds(type, first);
    v[0][2] = parts == 2 ? vec_widen_evens(type, last) : vec_widen_odds(type, last);
    if (parts == 1) return;
    v[1][0] = v[0][1];
    v[1][1] = v[0][2];
    v[1][2] = vec_widen_odds(type, last);
}

/* What the three taps of row i of the input read: vectors `offsets` apart (step 0), neighbours (1), or every second
 * element (2), nothing beyond the last of them. */
INLINE void stream_load(const int step, const int32_t type, const int parts, const int masked, const stream_job *j,
                        int64_t i, vec v[2][3]) {
    const int64_t bytes = element_bytes(type);
    const char *row = j->rows[i] + j->at * bytes;
    const real *x = (const real *)row;
    const int between = STREAM_SHUFFLES && step == 1 && type == CONV_NATIVE;
    __builtin_prefetch(row + j->ahead * bytes);
    if (parts == 2 && type == CONV_NATIVE) {
        __builtin_prefetch(row + (j->ahead + LANES) * bytes);
        if (step == 2) __builtin_prefetch(row + (j->ahead + 2 * LANES) * bytes);
        if (step == 2) __builtin_prefetch(row + (j->ahead + 3 * LANES) * bytes);
        stream_load_parts(step, masked, j, x, v);
        return;
    }
    if (type != CONV_NATIVE && (parts == 2 || step == 2)) {
        stream_load_halves(type, parts, masked, j, row, v);
        if (parts == 2) return;
    } else if (step == 2) {
        vec odd;
        stream_pairs(x, j->second, &v[0][0], &v[0][1]);
        stream_pairs(x + 1, j->second, &odd, &v[0][2]);
    } else {
        UNROLL
        for (int k = 0; k < 3; k++) {
            const char *tap = row + (step == 1 ? k : j->offsets[k]) * bytes;
            if (k == 1 && between) continue;
            v[0][k] = type == CONV_NATIVE ? vec_load_once((const real *)tap) : vec_widen(type, tap);
        }
    }
    UNROLL
    for (int k = 0; k < 3; k++)
        if (masked >> k & 1 && !(k == 1 && between)) v[0][k] = stream_masked(v[0][k], j->masks + k * LANES);
    if (between) v[0][1] = stream_between(v[0][0], v[0][2]);
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

/* The first `count` halves of a vector: rows narrower than one are read in place with AVX-512 alone. */
INLINE void stream_store_few(const int32_t type, char *y, vec v, int64_t count) {
    char all[sizeof(vec)] __attribute__((aligned(sizeof(vec))));
    vec_narrow(type, all, v);
#if STREAM_SHUFFLES && CONV_BITS(CONV_DTYPE) == 32
    _mm256_mask_storeu_epi16(y, (__mmask16)((1u << count) - 1), *(const __m256i *)all);
#else
    memcpy(y, all, (size_t)count * 2);
#endif
}

INLINE void stream_store(const int step, const int32_t type, const int parts, const int clamped, const stream_job *j,
                         int64_t r, vec sum[2], vec bias) {
    UNROLL
    for (int part = 0; part < parts; part++) {
        sum[part] += bias;
        if (clamped) sum[part] = vec_clamp(sum[part], j->low, j->high);
    }
    char *const y = j->y + r * j->y_row * element_bytes(type);
    if (type != CONV_NATIVE) {
        if (parts == 2)
            stream_store_pairs(y, j->columns, sum);
        else if (j->columns < LANES)
            stream_store_few(type, y, sum[0], j->columns);
        else
            store_vector(type, y, 0, sum[0]);
        return;
    }
    if (step == 2 && parts == 1) sum[0] = stream_ordered(sum[0]);
    const int64_t before = (parts - 1) * LANES;
    if (parts == 2) vec_store((real *)y, sum[0]);
    if (j->columns < before + LANES)
        store_few((real *)y + before, sum[parts - 1], j->columns - before);
    else
        vec_store((real *)y + before, sum[parts - 1]);
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
                          .second = job->second,
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
    if (type == CONV_NATIVE && parts == 2 && !STREAM_SHUFFLES) return; /* no code */
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
static void stream_parts_1_1(const stream_job *j) { stream_of_type(1, 1, CONV_NATIVE, 2, j); }
static void stream_parts_1_2(const stream_job *j) { stream_of_type(1, 2, CONV_NATIVE, 2, j); }
static void stream_parts_2_1(const stream_job *j) { stream_of_type(2, 1, CONV_NATIVE, 2, j); }
static void stream_parts_2_2(const stream_job *j) { stream_of_type(2, 2, CONV_NATIVE, 2, j); }
static void stream_1_0(const stream_job *j) { stream_of_type(1, 0, CONV_NATIVE, 1, j); }
static void stream_2_0(const stream_job *j) { stream_of_type(2, 0, CONV_NATIVE, 1, j); }
static void stream_pairs_1(const stream_job *j) { stream_of_type(1, 1, CONV_BF16, 2, j); }
static void stream_pairs_2(const stream_job *j) { stream_of_type(2, 1, CONV_BF16, 2, j); }

/* Equal blocks of rows of outputs, of at most so many. */
INLINE int64_t stream_block(int64_t count, int64_t most) { return ceil_div(count, max_i64(ceil_div(count, most), 1)); }

/* A job of tiles on the strip: all their rows are consecutive. down: stride of rows. */
static void stream_tiles(int64_t down, const dw_tile_job *job) {
    const char *rows[2 * STREAM_ROWS + 2];
    stream_job j = {.rows = rows,
                    .y_row = job->out_row,
                    .columns = LANES,
                    .second = LANES,
                    .clamped = job->clamped,
                    .low = job->low,
                    .high = job->high};
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
