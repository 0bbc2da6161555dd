/* Reading the input: where a padded index comes from, and rows of it gathered for consecutive outputs.
 *
 * Padding, stride, dilation and layout end here: whoever calls gets plain contiguous columns. */
#ifndef IM2COL_H
#define IM2COL_H

#include "../conv.h"
#include "simd.h"

/* The source of position i on an axis of n elements, or -1 where the padding is zero. Front-end checks:
 * reflect pads less than n, circular at most n. */
INLINE int64_t pad_index(int64_t i, int64_t n, int32_t mode) {
    if (i >= 0 && i < n) return i;
    switch (mode) {
        case CONV_PAD_REFLECT:
            return i < 0 ? -i : 2 * (n - 1) - i;
        case CONV_PAD_REPLICATE:
            return i < 0 ? 0 : n - 1;
        case CONV_PAD_CIRCULAR:
            return i < 0 ? i + n : i - n;
        default:
            return -1;
    }
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

/* The columns of a filter tap: output column o reads input column o * stride + shift; those in [first, last) lie
 * inside the input. */
typedef struct tap_columns {
    int64_t shift, first, last;
} tap_columns;

INLINE tap_columns tap_columns_of(const conv_problem *p, int64_t kw) {
    const int64_t shift = kw * p->dilation_w - p->pad_w, stride = p->stride_w;
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

#endif
