/* Reading the input: where a padded index comes from, and rows of it gathered for consecutive outputs.
 *
 * Padding, stride, dilation and layout end here: whoever calls gets plain contiguous columns. */
#ifndef IM2COL_H
#define IM2COL_H

#include "element.h"

/* Terms of a sum that are added up from zero before they join the total of an output. The error of a chain grows with
 * its length, the total's with the number of chains. In units of u sum |x w|, the largest of 4 * 10^5 outputs of normal
 * data (simulated): 49 to 147 terms in chains of 128 err by 4.8 to 5.7, in chains of 16 by 1.7 to 2.4. Data of one sign
 * is worst where either grows long, so an exact chain has about sqrt(depth) terms. A chain costs a pass over the
 * accumulators, 15 to 20 cycles (Zen 3) to its 6 per term. */
INLINE int64_t chain_terms(const conv_problem *p) {
    const int64_t depth = p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
    int64_t terms = p->exact ? 16 : 128;
    while (terms < 128 && terms * terms < depth) terms += 16;
    return terms;
}

/* The source of position i on an axis of n elements, or -1 where the padding has a value of its own. Front-end checks:
 * reflect pads less than n, circular at most n. A strip may ask for positions beyond the padding that no output reads:
 * any valid one. */
INLINE int64_t pad_index(int64_t i, int64_t n, int32_t mode) {
    if (i >= 0 && i < n) return i;
    if (mode == CONV_PAD_ZEROS || mode == CONV_PAD_CONSTANT) return -1;
    if (mode == CONV_PAD_REFLECT) i = i < 0 ? -i : 2 * (n - 1) - i;
    if (mode == CONV_PAD_CIRCULAR) i = i < 0 ? i + n : i - n;
    return min_i64(max_i64(i, 0), n - 1);
}

/* What the outputs [ow, ow + count) of a row read through a tap at `offset` (kw * dilation_w) in the padded input row:
 * output ow + i reads input column first + i * stride_w, which lies inside the input for i in [begin, end). */
typedef struct row_window {
    int64_t count, first, begin, end;
    int64_t step; /* from one column to the next, in elements of x */
} row_window;

INLINE row_window row_window_of(const conv_problem *p, const conv_io *io, int64_t offset, int64_t ow, int64_t count) {
    const int64_t stride = p->stride_w, first = ow * stride + offset - p->pad_w;
    const int64_t room = p->in_w - 1 - first; /* the last column reads at most this far from the first */
    row_window w = {count, first, 0, 0, 1};
    w.begin = first >= 0 ? 0 : min_i64(stride == 1 ? -first : (-first - 1) / stride + 1, count);
    w.end = room < 0 ? 0 : min_i64(stride == 1 ? room + 1 : room / stride + 1, count);
    w.end = max_i64(w.begin, w.end);
    /* A stride is multiplied only where two columns exist: a hostile one of 2**50 cannot overflow. */
    if (w.end - w.begin > 1) w.step = stride * io->x_stride_w;
    return w;
}

/* Rows of x are elements from its first one: one mechanism for all stored types. */
#define NO_ROW INT64_MIN /* a row of padding */

/* The outputs [from, to) of a window, all of which read padding. */
INLINE void fill_padding(const conv_problem *p, const conv_io *io, int64_t row, const row_window *w, int64_t from,
                         int64_t to, real *restrict dst) {
    if (row == NO_ROW || p->pad_mode == CONV_PAD_ZEROS || p->pad_mode == CONV_PAD_CONSTANT) {
        for (int64_t i = from; i < to; i++) dst[i] = real_of(p->pad_value);
    } else {
        for (int64_t i = from; i < to; i++)
            dst[i] = load_element(p->x_type, io->x,
                                  row + pad_index(w->first + i * p->stride_w, p->in_w, p->pad_mode) * io->x_stride_w);
    }
}

/* dst[0..count) = the window's columns of an input row. row: where its column 0 lies in x, or NO_ROW. */
INLINE void gather_row(const conv_problem *p, const conv_io *io, int64_t row, const row_window *w, real *restrict dst) {
    const int64_t begin = row != NO_ROW ? w->begin : w->count, end = row != NO_ROW ? w->end : w->count;
    fill_padding(p, io, row, w, 0, begin, dst);
    fill_padding(p, io, row, w, end, w->count, dst);
    if (begin < end)
        load_elements(p->x_type, io->x, row + (w->first + begin * p->stride_w) * io->x_stride_w, w->step, end - begin,
                      dst + begin);
}

/* Channels that are read at once: LANES where they are neighbours in x, and so many are left. */
INLINE int64_t channels_at_once(const conv_io *io, int64_t left) {
    return io->x_stride_c == 1 && io->x_stride_w != 1 && left >= LANES ? LANES : 1;
}

/* gather_row for as many channels, pitch elements of dst apart. */
INLINE void gather_channels(const conv_problem *p, const conv_io *io, int64_t channels, int64_t row,
                            const row_window *w, real *restrict dst, int64_t pitch) {
    const int64_t begin = row != NO_ROW ? w->begin : w->count, end = row != NO_ROW ? w->end : w->count;
    if (channels == 1) {
        gather_row(p, io, row, w, dst);
        return;
    }
    for (int64_t c = 0; c < channels; c++) {
        const int64_t at = row != NO_ROW ? row + c : NO_ROW;
        fill_padding(p, io, at, w, 0, begin, dst + c * pitch);
        fill_padding(p, io, at, w, end, w->count, dst + c * pitch);
    }
    if (begin < end)
        load_channels(p->x_type, io->x, row + (w->first + begin * p->stride_w) * io->x_stride_w, w->step, end - begin,
                      dst + begin, pitch);
}

/* How many channels ahead x is fetched (Zen 1, 256 channels of 56 x 56: stride 2 takes 8 % less time, stride 1 to 64
 * channels 4 %; two ahead 4 and 7 %). */
enum { FETCHED = 4 };

/* Fetches elements of a later channel: each has pages of its own, where the machine foresees nothing. */
INLINE void fetch_run(const conv_problem *p, const conv_io *io, int64_t at, int64_t count) {
    const int64_t bytes = element_bytes(p->x_type);
    const char *x = (const char *)io->x + at * bytes;
    for (int64_t i = 0; i < count * bytes; i += CONV_ALIGN) __builtin_prefetch(x + i);
}

/* The input row that output row (od, oh) reads through tap (kd, kh), or NO_ROW. channel: where that begins in x. */
INLINE int64_t input_row(const conv_problem *p, const conv_io *io, int64_t channel, int64_t od, int64_t oh, int64_t kd,
                         int64_t kh) {
    const int64_t d = pad_index(od * p->stride_d - p->pad_d + kd * p->dilation_d, p->in_d, p->pad_mode);
    const int64_t h = pad_index(oh * p->stride_h - p->pad_h + kh * p->dilation_h, p->in_h, p->pad_mode);
    return d < 0 || h < 0 ? NO_ROW : channel + d * io->x_stride_d + h * io->x_stride_h;
}

/* Elements of x from column 0 of input row h on to the end of the slice's last row, where rows follow each other: they
 * all exist. */
INLINE int64_t elements_left(const conv_problem *p, const conv_io *io, int64_t h) {
    const int follow = io->x_stride_w == 1 && io->x_stride_h >= 0;
    return follow && h >= 0 && h < p->in_h ? (p->in_h - 1 - h) * io->x_stride_h + p->in_w : 0;
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
