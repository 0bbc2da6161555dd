/* The strip: a block of the padded input in scratch, laid out so that a filter tap is an offset.
 *
 *     strip[offset(c, kd, kh, kw) + row * row_step + column]  is what output (row, column) of the block reads through
 *                                                             the tap, whatever stride, dilation, padding and layout
 *
 * Along each of h and w there are two layouts, and the smaller one is taken:
 *   shared    the padded positions once; along w de-interleaved by the stride into planes, so that neighbouring outputs
 *             read neighbouring elements; taps overlap                      (small strides and dilations)
 *   per tap   one row or plane for each tap, as in im2col                   (large strides and dilations, few taps)
 * The taps along d always have slots of their own. */
#ifndef STRIP_H
#define STRIP_H

#include "im2col.h"

typedef struct strip_layout {
    int64_t rows, cols;    /* outputs of the block */
    int64_t row_slots;     /* input rows per (channel, kd) */
    int64_t planes, plane; /* along w: how many, and elements of one */
    int64_t row_step;      /* from one output row to the next */
    int64_t row_pitch, channel_pitch;
    int shared_rows, shared_cols;
} strip_layout;

INLINE int64_t gcd_i64(int64_t a, int64_t b) {
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* The layout of a block of rows x cols outputs of one output slice. Sizes saturate for hostile dilations: the per-tap
 * layout is then the smaller one. */
static inline strip_layout strip_layout_of(const conv_problem *p, int64_t rows, int64_t cols) {
    strip_layout s = {.rows = rows, .cols = cols};
    const int64_t reach_h = (p->kernel_h - 1) * p->dilation_h, reach_w = (p->kernel_w - 1) * p->dilation_w;
    const int64_t span = (rows - 1) * p->stride_h + reach_h + 1, width = cols + reach_w / p->stride_w;
    s.shared_rows = span <= p->kernel_h * rows;
    s.row_slots = s.shared_rows ? span : p->kernel_h * rows;
    s.shared_cols = p->kernel_w >= p->stride_w && gcd_i64(p->dilation_w, p->stride_w) == 1 &&
                    width <= p->kernel_w * cols / p->stride_w;
    s.planes = s.shared_cols ? p->stride_w : p->kernel_w;
    s.plane = s.shared_cols ? width : cols;
    s.row_pitch = s.planes * s.plane;
    s.row_step = (s.shared_rows ? p->stride_h : 1) * s.row_pitch;
    /* An odd number of cache lines, or the channels of a tile would fall into a few sets of L1. */
    const int64_t line = CONV_ALIGN / (int64_t)sizeof(real);
    s.channel_pitch = (ceil_div(p->kernel_d * s.row_slots * s.row_pitch, line) | 1) * line;
    return s;
}

/* Where tap (kd, kh, kw) of a channel begins. */
INLINE int64_t strip_offset(const conv_problem *p, const strip_layout *s, int64_t kd, int64_t kh, int64_t kw) {
    const int64_t slot = s->shared_rows ? kh * p->dilation_h : kh * s->rows;
    const int64_t tap = kw * p->dilation_w;
    const int64_t column = s->shared_cols ? tap % p->stride_w * s->plane + tap / p->stride_w : kw * s->plane;
    return (kd * s->row_slots + slot) * s->row_pitch + column;
}

/* Rows of padded positions from h on, one after the other, of one channel and tap along d (begin: where that lies in x)
 * where padding is one value: most strips, small rows among them, so what is the same for all rows is done once. */
static inline void strip_fill_rows(const conv_problem *p, const conv_io *io, const strip_layout *s, int64_t begin,
                                   int64_t h, const row_window *w, int64_t ahead, real *slot) {
    const int64_t top = min_i64(max_i64(-h, 0), s->row_slots), inside = w->end - w->begin;
    const int64_t bottom = max_i64(min_i64(p->in_h - h, s->row_slots), top);
    const real value = real_of(p->pad_value);
    int64_t from = begin + (h + top) * io->x_stride_h + (w->first + w->begin * p->stride_w) * io->x_stride_w;
    /* A short row: a whole vector where x has one, of which the next row stores over what is too much. */
    const int whole = p->x_type == CONV_NATIVE && p->stride_w == 1 && s->planes == 1 && inside < LANES;
    for (int64_t r = 0; r < s->row_slots; r++, slot += s->row_pitch) {
        if (r < top || r >= bottom || inside == 0) {
            fill_padding(p, io, NO_ROW, w, 0, w->count, slot);
            continue;
        }
        if (w->begin > 0) slot[0] = value; /* one is the rule: no loop */
        for (int64_t i = 1; i < w->begin; i++) slot[i] = value;
        if (ahead) fetch_run(p, io, from + ahead, inside);
        if (whole && w->first + w->begin + LANES <= elements_left(p, io, h + r) &&
            (s->row_slots - r) * s->row_pitch - w->begin >= LANES)
            vec_store(slot + w->begin, vec_load((const real *)io->x + from));
        else
            load_elements(p->x_type, io->x, from, w->step, inside, slot + w->begin);
        if (w->end < w->count) slot[w->end] = value;
        for (int64_t i = w->end + 1; i < w->count; i++) slot[i] = value;
        from += io->x_stride_h;
    }
}

/* Whether the columns of planes that follow each other are neighbours in x, and read from the same vectors. */
INLINE int strip_planes_are_neighbours(const conv_problem *p, const conv_io *io, const strip_layout *s) {
    return s->shared_rows && (s->shared_cols || p->dilation_w == 1) && s->planes > 1 && p->stride_w > 1 &&
           p->x_type == CONV_NATIVE && io->x_stride_w == 1 &&
           (p->pad_mode == CONV_PAD_ZEROS || p->pad_mode == CONV_PAD_CONSTANT);
}

/* strip_fill_rows for both planes of stride 2. w: their windows, the columns of which alternate. */
static inline void strip_fill_pairs(const conv_problem *p, const conv_io *io, const strip_layout *s, int64_t begin,
                                    int64_t h, const row_window *w, int64_t ahead, real *slot) {
    const int64_t top = min_i64(max_i64(-h, 0), s->row_slots), plane = s->plane;
    const int64_t bottom = max_i64(min_i64(p->in_h - h, s->row_slots), top);
    const int64_t first = max_i64(w[0].begin, w[1].begin), last = max_i64(min_i64(w[0].end, w[1].end), first);
    const real value = real_of(p->pad_value);
    const real_unaligned *x = io->x;
    int64_t row = begin + (h + top) * io->x_stride_h + w[0].first;
    for (int64_t r = 0; r < s->row_slots; r++, slot += s->row_pitch) {
        const int inside = r >= top && r < bottom;
        for (int64_t i = 0; i < (inside ? first : plane); i++) {
            slot[i] = inside && i >= w[0].begin && i < w[0].end ? x[row + 2 * i] : value;
            slot[plane + i] = inside && i >= w[1].begin && i < w[1].end ? x[row + 2 * i + 1] : value;
        }
        if (!inside) continue;
        if (ahead) fetch_run(p, io, row + ahead, 2 * plane);
        copy_pairs(slot + first, slot + plane + first, CONV_NATIVE, x, row + 2 * first, last - first);
        for (int64_t i = last; i < plane; i++) {
            slot[i] = i >= w[0].begin && i < w[0].end ? x[row + 2 * i] : value;
            slot[plane + i] = i >= w[1].begin && i < w[1].end ? x[row + 2 * i + 1] : value;
        }
        row += io->x_stride_h;
    }
}

/* strip_fill_rows for so many planes. w: their windows. */
static inline void strip_fill_planes(const conv_problem *p, const conv_io *io, const strip_layout *s, int64_t begin,
                                     int64_t h, const row_window *w, int64_t planes, int64_t ahead, real *slot) {
    const int64_t top = min_i64(max_i64(-h, 0), s->row_slots), plane = s->plane, stride = p->stride_w;
    const int64_t bottom = max_i64(min_i64(p->in_h - h, s->row_slots), top);
    int64_t first = w[0].begin, last = w[0].end;
    for (int64_t k = 1; k < planes; k++) first = max_i64(first, w[k].begin), last = min_i64(last, w[k].end);
    if (last < first) first = last = 0; /* what lies outside both ends: all of it is an edge */
    const real value = real_of(p->pad_value);
    const real_unaligned *x = (const real_unaligned *)io->x;
    for (int64_t r = 0; r < s->row_slots; r++, slot += s->row_pitch) {
        const int inside = r >= top && r < bottom;
        const int64_t row = begin + (h + r) * io->x_stride_h + w[0].first, from = row + first * stride;
        for (int64_t k = 0; k < planes; k++) {
            real *const dst = slot + k * plane;
            for (int64_t i = 0; !inside && i < plane; i++) dst[i] = value;
            for (int64_t i = 0; inside && i < first; i++) dst[i] = i < w[k].begin ? value : x[row + stride * i + k];
            for (int64_t i = last; inside && i < plane; i++)
                dst[i] = i >= w[k].begin && i < w[k].end ? x[row + stride * i + k] : value;
        }
        if (!inside || first == last) continue;
        if (ahead) fetch_run(p, io, from + ahead, stride * (last - first));
        if (w[0].first + (last - 1) * stride + LANES <= elements_left(p, io, h + r))
            load_channels_of(CONV_NATIVE, x, from, stride, planes, last - first, slot + first, plane);
        else
            for (int64_t k = 0; k < planes; k++)
                load_elements(CONV_NATIVE, x, from + k, stride, last - first, slot + k * plane + first);
    }
}

/* Fills the slots of some channels (channels_at_once) and one tap along d in one plane. begin: where that lies in x, or
 * NO_ROW. */
INLINE void strip_fill_slice(const conv_problem *p, const conv_io *io, const strip_layout *s, int64_t channels,
                             int64_t begin, int64_t oh, const row_window *window, int64_t ahead, real *slot) {
    const int64_t h = oh * p->stride_h - p->pad_h;
    const int one_value = p->pad_mode == CONV_PAD_ZEROS || p->pad_mode == CONV_PAD_CONSTANT;
    if (channels == 1 && s->shared_rows && one_value && begin != NO_ROW) {
        strip_fill_rows(p, io, s, begin, h, window, ahead, slot);
        return;
    }
    const int64_t taps = s->shared_rows ? 1 : p->kernel_h, rows = s->shared_rows ? s->row_slots : s->rows;
    for (int64_t kh = 0; kh < taps; kh++)
        for (int64_t r = 0; r < rows; r++, slot += s->row_pitch) {
            const int64_t at = s->shared_rows ? h + r : h + r * p->stride_h + kh * p->dilation_h;
            const int64_t row = pad_index(at, p->in_h, p->pad_mode);
            gather_channels(p, io, channels, begin == NO_ROW || row < 0 ? NO_ROW : begin + row * io->x_stride_h, window,
                            slot, s->channel_pitch);
        }
}

/* Fills the strip with count channels from the one at x on, for the outputs from (od, oh, ow) on: planes that read the
 * same lines one after the other, a channel at a time. */
static inline void strip_fill(const conv_problem *p, const conv_io *io, const strip_layout *s, int64_t x, int64_t count,
                              int64_t od, int64_t oh, int64_t ow, real *strip) {
    enum { PLANES = LANES, STRIP_AHEAD = 2 };
    row_window windows[PLANES];
    const int64_t slice = s->row_slots * s->row_pitch;
    const int neighbours = strip_planes_are_neighbours(p, io, s);
    for (int64_t first = 0; first < s->planes; first += PLANES) {
        const int64_t planes = min_i64(s->planes - first, PLANES);
        for (int64_t i = 0; i < planes; i++)
            windows[i] = row_window_of(p, io, (first + i) * (s->shared_cols ? 1 : p->dilation_w), ow, s->plane);
        for (int64_t c = 0, channels; c < count; c += channels) {
            channels = channels_at_once(io, count - c);
            real *const slot = strip + c * s->channel_pitch + first * s->plane;
            const int64_t ahead = c + STRIP_AHEAD < count && io->x_stride_w == 1 ? STRIP_AHEAD * io->x_stride_c : 0;
            for (int64_t kd = 0; kd < p->kernel_d; kd++) {
                const int64_t d = pad_index(od * p->stride_d - p->pad_d + kd * p->dilation_d, p->in_d, p->pad_mode);
                const int64_t from = x + c * io->x_stride_c + d * io->x_stride_d;
                const int64_t h = oh * p->stride_h - p->pad_h;
                if (neighbours && d >= 0 && s->planes == 2 && p->stride_w == 2) {
                    strip_fill_pairs(p, io, s, from, h, windows, ahead, slot + kd * slice);
                    continue;
                }
                if (neighbours && d >= 0) {
                    strip_fill_planes(p, io, s, from, h, windows, planes, ahead, slot + kd * slice);
                    continue;
                }
                for (int64_t i = 0; i < planes; i++)
                    strip_fill_slice(p, io, s, channels, d < 0 ? NO_ROW : from, oh, &windows[i], ahead,
                                     slot + kd * slice + i * s->plane);
            }
        }
    }
}

#endif
