/* Filling the strip of depthwise_strip.h from x: rows as they lie, split by stride 2, or transposed where x has its
 * channels last. Zeros around them are written once a task: a copy leaves them as they are. */
#ifndef DEPTHWISE_COPY_H
#define DEPTHWISE_COPY_H

#include "depthwise_strip.h"

/* dst[i] = src[i], i < count. Two copies that overlap in the middle instead of a loop over what remains. */
INLINE void dw_copy_run(real *restrict dst, const real_unaligned *restrict src, int64_t count) {
    const real *from = (const real *)src;
    if (count >= LANES) {
        int64_t i = 0;
        for (; i + 4 * LANES <= count; i += 4 * LANES) { /* by one vector, gcc makes it a call of memcpy: slower */
            const vec a = vec_load(from + i), b = vec_load(from + i + LANES);
            const vec c = vec_load(from + i + 2 * LANES), d = vec_load(from + i + 3 * LANES);
            vec_store(dst + i, a);
            vec_store(dst + i + LANES, b);
            vec_store(dst + i + 2 * LANES, c);
            vec_store(dst + i + 3 * LANES, d);
        }
        if (i + LANES < count) vec_store(dst + i, vec_load(from + i));
        if (i + 2 * LANES < count) vec_store(dst + i + LANES, vec_load(from + i + LANES));
        if (i + 3 * LANES < count) vec_store(dst + i + 2 * LANES, vec_load(from + i + 2 * LANES));
        vec_store(dst + count - LANES, vec_load(from + count - LANES));
    } else {
        copy_few(dst, src, count);
    }
}

/* Rows of one class of a channel, or of a vector of channels. */
typedef struct dw_rows {
    real *dst;
    const void *x;
    int32_t type;
    int64_t src;                                 /* element of x */
    int64_t rows, dst_row, src_row, count, step; /* count elements step apart */
} dw_rows;

/* Narrow elements of a row of half a vector or more, not all of one: both halves, then as one vector. One by one, rows
 * of 14 halves took 70 cycles each (AVX-512). */
INLINE void dw_widen_short(real *dst, int32_t type, const char *x, int64_t count) {
    const size_t bytes = (size_t)element_bytes(type), half = LANES / 2 * bytes;
    char narrow[LANES * sizeof(real)] __attribute__((aligned(CONV_ALIGN)));
    real wide[LANES] __attribute__((aligned(CONV_ALIGN)));
    memset(narrow, 0, sizeof narrow);
    memcpy(narrow, x, half);
    memcpy(narrow + (size_t)count * bytes - half, x + (size_t)count * bytes - half, half);
    vec_store(wide, load_vector(type, narrow, 0));
    dw_copy_run(dst, wide, count);
}

/* Narrow elements of rows of a vector or more; type: a constant where this is inlined, so that it is asked for once for
 * all rows. By calls of load_elements, 576 channels of 14 x 14 halves took 1.6 times as long as floats (Zen 3). */
INLINE void dw_widen_rows(const int32_t type, const dw_rows *r) {
    const int64_t bytes = element_bytes(type), last = r->count - LANES;
    const char *x = (const char *)r->x + r->src * bytes;
    real *dst = r->dst;
    for (int64_t row = 0; row < r->rows; row++, dst += r->dst_row, x += r->src_row * bytes) {
        for (int64_t i = 0; i < last; i += LANES) vec_store(dst + i, vec_widen(type, x + i * bytes));
        vec_store(dst + last, vec_widen(type, x + last * bytes));
    }
}

static void dw_copy_rows(dw_rows r) {
    if (HAS_HALVES && r.step == 1 && r.type == CONV_F16 && r.count >= LANES) {
        dw_widen_rows(CONV_F16, &r);
    } else if (HAS_HALVES && r.step == 1 && r.type == CONV_BF16 && r.count >= LANES) {
        dw_widen_rows(CONV_BF16, &r);
    } else if (r.step == 1 && r.type == CONV_NATIVE) {
        for (; r.rows > 0; r.rows--, r.dst += r.dst_row, r.src += r.src_row)
            dw_copy_run(r.dst, (const real_unaligned *)r.x + r.src, r.count);
    } else if (r.step == 1 && r.count < LANES && r.count >= LANES / 2) {
        for (; r.rows > 0; r.rows--, r.dst += r.dst_row, r.src += r.src_row)
            dw_widen_short(r.dst, r.type, (const char *)r.x + r.src * element_bytes(r.type), r.count);
    } else {
        for (; r.rows > 0; r.rows--, r.dst += r.dst_row, r.src += r.src_row)
            load_elements(r.type, r.x, r.src, r.step, r.count, r.dst);
    }
}

/* Two classes whose sources alternate: pairs of neighbours, and what one class has more at the end. */
static void dw_copy_pair_rows(dw_rows r, const dw_span w[2]) {
    const int even = w[0].source > w[1].source; /* the class that comes first */
    const int64_t count[2] = {w[0].last - w[0].first, w[1].last - w[1].first}, pairs = min_i64(count[0], count[1]);
    real *dst[2] = {r.dst + w[0].base + w[0].first, r.dst + w[1].base + w[1].first};
    for (r.src += w[even].source; r.rows > 0; r.rows--, r.src += r.src_row, dst[0] += r.dst_row, dst[1] += r.dst_row) {
        copy_pairs(dst[even], dst[!even], r.type, r.x, r.src, pairs);
        for (int c = 0; c < 2; c++)
            for (int64_t i = pairs; i < count[c]; i++)
                dst[c][i] = load_element(r.type, r.x, r.src + 2 * i + (c != even));
    }
}

/* LANES channels, next to each other in src, to strips `channel` apart; the first skip of them are not wanted. */
static void dw_transpose_rows(dw_rows r, int64_t channel, int64_t skip, int64_t channels, int64_t room) {
    for (; r.rows > 0; r.rows--, r.dst += r.dst_row, r.src += r.src_row)
        for (int64_t i = 0;; i = min_i64(i + LANES, r.count - LANES)) {
            const int64_t columns = min_i64(r.count, LANES);
            vec block[LANES];
            UNROLL
            for (int j = 0; j < LANES; j++)
                block[j] = j < columns ? load_vector(r.type, r.x, r.src + (i + j) * r.step) : vec_zero();
            vec_transpose(block);
            for (int64_t c = 0; c < channels; c++) {
                real *dst = r.dst + c * channel + i;
                if (columns == LANES || room >= LANES) /* a narrow row's zeros fall on zeros */
                    vec_store(dst, block[skip + c]);
                else
                    for (int64_t j = 0; j < columns; j++) dst[j] = block[skip + c][j];
            }
            if (i + LANES >= r.count) break;
        }
}

/* A rectangle of a depth slot, for all channels of a batch: rows of one class, all classes of columns. */
static void dw_copy_slot(const conv_io *io, const dw_plan *s, const dw_span *w, dw_rows r, int64_t channels) {
    const int pairs = (LOWER_FIRST || r.type == CONV_NATIVE) && s->w.classes == 2 && s->w.stride == 2 &&
                      io->x_stride_w == 1 && w[0].last > w[0].first && w[1].last > w[1].first &&
                      (w[0].source - w[1].source == 1 || w[1].source - w[0].source == 1);
    if (pairs) {
        for (int64_t c = 0; c < channels; c++, r.dst += s->channel, r.src += io->x_stride_c) dw_copy_pair_rows(r, w);
        return;
    }
    const dw_rows row = r;
    for (int64_t cw = 0; cw < s->w.classes; cw++) {
        r.count = w[cw].last - w[cw].first;
        if (r.count <= 0) continue;
        r.dst = row.dst + w[cw].base + w[cw].first;
        r.src = row.src + w[cw].source * io->x_stride_w;
        r.step = r.count > 1 ? s->w.stride * io->x_stride_w : 1;
        for (int64_t c = 0; c < channels; c++, r.dst += s->channel, r.src += io->x_stride_c) dw_copy_rows(r);
    }
}

/* The same where x has its channels last: the channels from `first` of all. */
static void dw_transpose_slot(const dw_plan *s, const conv_io *io, const dw_span *w, dw_rows r, int64_t first,
                              int64_t channels, int64_t all) {
    const dw_rows row = r;
    for (int64_t cw = 0; cw < s->w.classes; cw++) {
        r.count = w[cw].last - w[cw].first;
        if (r.count <= 0) continue;
        r.step = r.count > 1 ? s->w.stride * io->x_stride_w : 1;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t skip = max_i64(first + c + LANES - all, 0); /* nothing beyond the last channel is read */
            r.dst = row.dst + w[cw].base + w[cw].first + c * s->channel;
            r.src = row.src + w[cw].source * io->x_stride_w + c - skip;
            dw_transpose_rows(r, s->channel, skip, min_i64(LANES - skip, channels - c),
                              s->w.classes == 1 ? s->row - w[cw].base - w[cw].first : 0);
        }
    }
}

/* The channels from `first` on, which lies at element x of x: what of them lies inside the input. */
static void dw_copy_channels(const conv_problem *p, const conv_io *io, const dw_plan *s, const dw_span *spans,
                             int64_t x, int64_t first, int64_t channels, real *strip) {
    const dw_span *of_h = spans + s->d.classes, *w = of_h + s->h.classes;
    const int64_t all = p->groups * p->ic;
    for (int64_t cd = 0; cd < s->d.classes; cd++)
        for (int64_t i = spans[cd].first; i < spans[cd].last; i++)
            for (const dw_span *h = of_h; h < w; h++) {
                dw_rows r = {.rows = h->last - h->first, .dst_row = s->rows, .x = io->x, .type = p->x_type};
                if (r.rows <= 0) continue;
                r.dst = strip + (spans[cd].base + i) * s->slice + (h->base + h->first) * s->rows;
                r.src = x + (spans[cd].source + (i - spans[cd].first) * s->d.stride) * io->x_stride_d +
                        h->source * io->x_stride_h;
                if (r.rows > 1) r.src_row = s->h.stride * io->x_stride_h; /* a stride is used where there are two */
                if (io->x_stride_c == 1 && io->x_stride_w != 1 && all >= LANES)
                    dw_transpose_slot(s, io, w, r, first, channels, all);
                else
                    dw_copy_slot(io, s, w, r, channels);
            }
}

/* The same for padding that is not zero: every position of each channel. */
static void dw_gather_channels(const conv_problem *p, const conv_io *io, const dw_plan *s, const dw_span *spans,
                               const dw_block_of *b, int64_t x, int64_t channels, real *strip) {
    const dw_span *w = spans + s->d.classes + s->h.classes;
    for (int64_t cw = 0; cw < s->w.classes; cw++) {
        const row_window window =
            row_window_of(p, io, cw * p->dilation_w, b->w, dw_class_length(&s->w, cw, b->count_w));
        for (int64_t c = 0; c < channels; c++)
            for (int64_t cd = 0; cd < s->d.classes; cd++)
                for (int64_t i = 0; i < dw_class_length(&s->d, cd, b->count_d); i++)
                    for (int64_t ch = 0; ch < s->h.classes; ch++)
                        for (int64_t j = 0; j < dw_class_length(&s->h, ch, b->count_h); j++) {
                            const int64_t d = pad_index(dw_source_index(&s->d, cd, b->d, i), p->in_d, p->pad_mode);
                            const int64_t h = pad_index(dw_source_index(&s->h, ch, b->h, j), p->in_h, p->pad_mode);
                            const int64_t row = x + c * io->x_stride_c + d * io->x_stride_d + h * io->x_stride_h;
                            gather_row(p, io, d < 0 || h < 0 ? NO_ROW : row, &window,
                                       strip + c * s->channel + (cd * s->d.length + i) * s->slice +
                                           (ch * s->h.length + j) * s->rows + w[cw].base);
                        }
    }
}

#endif
