/* The products of direct.c: spans of terms, without those that meet nothing but the zeros around the image.
 *
 *     terms of a strip: for each tap (kw, kd, kh), for each input channel
 *
 * Along d and w a tap is left out where all pixels of a tile lie outside, and one pixel of it where that is the first
 * or the last (kinds); along h the rows of outputs have the filter rows that lie inside. Tiles of the same filter
 * columns are a class, few in a row. The terms that an output has are added in this order whatever its tile. An Inf or
 * NaN in the weights does not make a NaN of zeros that are left out, as it does of those that are multiplied. Small
 * images and wide dilations are mostly padding (33 x 33, dilation 18: 41 % of the products are left). */
#ifndef DIRECT_TERMS_H
#define DIRECT_TERMS_H

#include "direct_tile.h"
#include "strip.h"

/* Tiles of more classes have all terms. */
enum { TERM_CLASSES = 24 };

/* Filter taps [first, last) along an axis. */
typedef struct tap_range {
    int64_t first, last;
} tap_range;

INLINE int64_t tap_count(tap_range r) { return max_i64(r.last - r.first, 0); }

/* Those at which position `at + tap * dilation` is one of n; empty ones may have first > last. */
INLINE tap_range taps_inside(int64_t at, int64_t n, int64_t dilation, int64_t taps) {
    tap_range r = {0, 0};
    if (at < 0) r.first = min_i64((-at - 1) / dilation + 1, taps);
    if (at < n) r.last = n - at > (taps - 1) * dilation ? taps : (n - at - 1) / dilation + 1;
    return r;
}

INLINE int taps_are_clipped(const conv_problem *p) {
    return p->pad_mode == CONV_PAD_ZEROS && p->kernel_d * p->kernel_h * p->kernel_w > 1;
}

/* Filter columns of each kind, of a tile of so many pixels from column ow on: the kinds follow each other. */
typedef struct tile_taps {
    int64_t bounds[TERM_KINDS + 1];
} tile_taps;

static tile_taps tile_taps_of(const conv_problem *p, int64_t ow, int64_t pixels, int kinds) {
    if (!taps_are_clipped(p)) return (tile_taps){{0, 0, p->kernel_w, p->kernel_w}};
    const int64_t at = ow * p->stride_w - p->pad_w, behind = at + (pixels - 1) * p->stride_w;
    const tap_range left = taps_inside(at, p->in_w, p->dilation_w, p->kernel_w);
    const tap_range right = taps_inside(behind, p->in_w, p->dilation_w, p->kernel_w);
    const int64_t first = right.first, last = max_i64(left.last, first), whole = min_i64(left.first, last);
    if (!kinds) return (tile_taps){{first, first, last, last}};
    return (tile_taps){{first, whole, min_i64(max_i64(right.last, whole), last), last}};
}

/* The classes of a row's tiles. */
typedef struct term_classes {
    int64_t count;
    tile_taps taps[TERM_CLASSES]; /* of class 0: all */
} term_classes;

/* The class of a tile; a new one, if there may be more. */
static uint8_t term_class_of(const conv_problem *p, term_classes *classes, int64_t ow, int64_t pixels, int kinds) {
    const tile_taps taps = tile_taps_of(p, ow, pixels, kinds);
    int64_t i = 0;
    while (i < classes->count && memcmp(&classes->taps[i], &taps, sizeof taps) != 0) i++;
    if (i == TERM_CLASSES) return 0;
    if (i == classes->count) classes->taps[classes->count++] = taps;
    return (uint8_t)i;
}

/* What the tiles of a row of outputs read at most: their taps along d and h, of so many input channels. */
typedef struct row_terms {
    int64_t channels;
    tap_range kd, kh;
} row_terms;

static row_terms row_terms_of(const conv_problem *p, int64_t channels, int64_t od, int64_t oh) {
    row_terms r = {channels, {0, p->kernel_d}, {0, p->kernel_h}};
    if (!taps_are_clipped(p)) return r;
    r.kd = taps_inside(od * p->stride_d - p->pad_d, p->in_d, p->dilation_d, p->kernel_d);
    r.kh = taps_inside(oh * p->stride_h - p->pad_h, p->in_h, p->dilation_h, p->kernel_h);
    return r;
}

/* Appends those of the terms [first, last) that a chain has, to the last span if they follow it: the number of spans.
 */
INLINE int64_t append_span(tile_terms *t, int64_t begin, int64_t count, term_span chain, int64_t first, int64_t last) {
    first = max_i64(first, chain.first), last = min_i64(last, chain.last);
    if (first >= last) return count;
    if (count > begin && t->spans[count - 1].last == first)
        t->spans[--count].last = last;
    else
        t->spans[count] = (term_span){first, last};
    return count + 1;
}

/* The terms of a chain that a tile has. */
static void select_terms(const conv_problem *p, const row_terms *row, const tile_taps *taps, term_span chain,
                         tile_terms *to) {
    const int64_t channels = row->channels, line = p->kernel_h * channels, column = p->kernel_d * line;
    const int whole = tap_count(row->kd) == p->kernel_d && tap_count(row->kh) == p->kernel_h;
    int64_t count = 0;
    for (int kind = 0; kind < TERM_KINDS; to->ends[kind++] = count) {
        const int64_t first = taps->bounds[kind], last = taps->bounds[kind + 1], begin = count;
        if (whole && first < last) count = append_span(to, begin, count, chain, first * column, last * column);
        for (int64_t w = max_i64(first, chain.first / column); !whole && w < last && w * column < chain.last; w++)
            for (int64_t d = row->kd.first; d < row->kd.last; d++) {
                const int64_t at = w * column + d * line;
                count =
                    append_span(to, begin, count, chain, at + row->kh.first * channels, at + row->kh.last * channels);
            }
    }
}

#endif
