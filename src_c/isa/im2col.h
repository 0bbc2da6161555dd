/* Reading the input: where a padded index comes from, and rows of it gathered for consecutive outputs.
 *
 * Padding, stride, dilation and layout end here: whoever calls gets plain contiguous columns. */
#ifndef IM2COL_H
#define IM2COL_H

#include "../conv.h"
#include "simd.h"

/* Terms of a sum that are added up from zero before they join the total of an output. The error of a chain grows with
 * its length, the total's with the number of chains. In units of u sum |x w|, the largest of 4 * 10^5 outputs of normal
 * data (simulated): 49 to 147 terms in chains of 128 err by 4.8 to 5.7, in chains of 16 by 1.7 to 2.4; data of one
 * sign, 576 terms, by 6.1 and 7.4. A chain costs a pass over the accumulators, 15 to 20 cycles (Zen 3) to its 6 per
 * term. */
INLINE int64_t chain_terms(const conv_problem *p) { return p->exact ? 16 : 128; }

/* The source of position i on an axis of n elements, or -1 where the padding is zero. Front-end checks: reflect pads
 * less than n, circular at most n. A strip may ask for positions beyond the padding that no output reads: any valid
 * one. */
INLINE int64_t pad_index(int64_t i, int64_t n, int32_t mode) {
    if (i >= 0 && i < n) return i;
    if (mode == CONV_PAD_ZEROS) return -1;
    if (mode == CONV_PAD_REFLECT) i = i < 0 ? -i : 2 * (n - 1) - i;
    if (mode == CONV_PAD_CIRCULAR) i = i < 0 ? i + n : i - n;
    return min_i64(max_i64(i, 0), n - 1);
}

/* count elements from src, step apart. The last vector of a contiguous run overlaps the one before: nothing beyond
 * either end is read or written. */
INLINE void copy_strided(real *restrict dst, const real_unaligned *restrict src, int64_t step, int64_t count) {
    if (step == 1 && count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_store(dst + i, vec_load((const real *)src + i));
        vec_store(dst + count - LANES, vec_load((const real *)src + count - LANES));
    } else if (step == 2) {
        for (int64_t i = 0; i < count; i++) dst[i] = src[2 * i];
    } else {
        for (int64_t i = 0; i < count; i++) dst[i] = src[step * i];
    }
}

/* Output column o reads input column o * stride + shift; those in [first, last) lie inside the input. */
typedef struct tap_columns {
    int64_t shift, first, last;
} tap_columns;

/* offset: of a filter tap in the padded row, kw * dilation_w. */
INLINE tap_columns tap_columns_at(const conv_problem *p, int64_t offset) {
    const int64_t shift = offset - p->pad_w, stride = p->stride_w;
    const int64_t room = p->in_w - 1 - shift; /* the last output column reads at most this far */
    tap_columns t = {shift, 0, 0};
    t.first = shift >= 0 ? 0 : stride == 1 ? -shift : (-shift - 1) / stride + 1;
    t.last = room < 0 ? 0 : stride == 1 ? room + 1 : room / stride + 1;
    return t;
}

/* dst[0..count) = what the outputs [ow, ow+count) of one row read of the input row through tap t. row is the address of
 * input column 0, or NULL for a row of zeros. */
INLINE void gather_row(const conv_problem *p, const conv_io *io, const real_unaligned *row, tap_columns t, int64_t ow,
                       int64_t count, real *restrict dst) {
    const int64_t a = row ? min_i64(max_i64(t.first - ow, 0), count) : count;
    const int64_t b = max_i64(min_i64(t.last - ow, count), a);
    const int64_t step = io->x_stride_w, first = ow * p->stride_w + t.shift;
    if (row && p->pad_mode != CONV_PAD_ZEROS) {
        for (int64_t i = 0; i < a; i++) dst[i] = row[pad_index(first + i * p->stride_w, p->in_w, p->pad_mode) * step];
        for (int64_t i = b; i < count; i++)
            dst[i] = row[pad_index(first + i * p->stride_w, p->in_w, p->pad_mode) * step];
    } else {
        for (int64_t i = 0; i < a; i++) dst[i] = 0;
        for (int64_t i = b; i < count; i++) dst[i] = 0;
    }
    /* A stride is multiplied only where two columns exist: a hostile one of 2**61 cannot overflow. */
    if (b > a) copy_strided(dst + a, row + (first + a * p->stride_w) * step, b > a + 1 ? p->stride_w * step : 1, b - a);
}

/* The input row that output row (od, oh) reads through tap (kd, kh), or NULL where the padding is zero. */
INLINE const real_unaligned *input_row(const conv_problem *p, const conv_io *io, const real_unaligned *channel,
                                       int64_t od, int64_t oh, int64_t kd, int64_t kh) {
    const int64_t d = pad_index(od * p->stride_d - p->pad_d + kd * p->dilation_d, p->in_d, p->pad_mode);
    const int64_t h = pad_index(oh * p->stride_h - p->pad_h + kh * p->dilation_h, p->in_h, p->pad_mode);
    return d < 0 || h < 0 ? NULL : channel + d * io->x_stride_d + h * io->x_stride_h;
}

/* Whether the pixels of an image, numbered through, are consecutive elements of a tensor with these strides. */
INLINE int is_dense(int64_t d, int64_t h, int64_t w, int64_t stride_d, int64_t stride_h, int64_t stride_w) {
    return (w == 1 || stride_w == 1) && (h == 1 || stride_h == w) && (d == 1 || stride_d == h * w);
}

INLINE int output_is_dense(const conv_problem *p, const conv_io *io) {
    return is_dense(p->out_d, p->out_h, p->out_w, io->y_stride_d, io->y_stride_h, io->y_stride_w);
}

/* A filter of one tap at stride 1 without padding reads the input as it lies. */
INLINE int input_is_dense(const conv_problem *p, const conv_io *io) {
    return p->in_d == p->out_d && p->in_h == p->out_h && p->in_w == p->out_w && p->pad_d == 0 && p->pad_h == 0 &&
           p->pad_w == 0 && p->stride_d == 1 && p->stride_h == 1 && p->stride_w == 1 &&
           is_dense(p->in_d, p->in_h, p->in_w, io->x_stride_d, io->x_stride_h, io->x_stride_w);
}

/* A piece of an output row inside a block of pixels. */
typedef struct pixel_run {
    int64_t od, oh, ow, count;
} pixel_run;

/* Splits the pixels [first, last) into rows; returns how many. */
INLINE int64_t split_rows(const conv_problem *p, int64_t first, int64_t last, pixel_run *runs) {
    int64_t count = 0;
    while (first < last) {
        const int64_t row = first / p->out_w, ow = first % p->out_w;
        const int64_t length = min_i64(p->out_w - ow, last - first);
        runs[count++] = (pixel_run){row / p->out_h, row % p->out_h, ow, length};
        first += length;
    }
    return count;
}

#endif
