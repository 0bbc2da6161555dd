/* What direct.c decides by a problem's shape: which channels lie in lanes, panels, and blocks that fit the caches. */
#ifndef DIRECT_PLAN_H
#define DIRECT_PLAN_H

#include "../cpu.h"
#include "direct_pixels.h"
#include "direct_terms.h"

/* Most of the depth of a strip, since filling it costs once for each: with AVX-512 two chains (Golden Cove, 14 x 2
 * tile, layers of ResNet-50: one 2 to 4 % slower, four no faster), else one (AVX2 there: two 2 to 5 % slower). */
#define DIRECT_KC (VECTOR_BYTES == 64 ? 320 : 160)
/* Columns of a block: longer rows (1-D signals) are cut. */
#define DIRECT_COLS 480
/* Output channels of a block: 128 terms of their weights are 128 KiB of floats. Twice as many where one tap makes
 * little work of a strip (Zen 5, 1024 to 2048 channels of 14 x 14 at stride 2: 0.85 of the time). */
#define DIRECT_OC 256

typedef struct direct_plan {
    int64_t depth, taps;
    int64_t vectors;          /* of a panel */
    int64_t rest;             /* how many of the last channels, or all, have pixels in lanes */
    int64_t channels, blocks; /* input channels of a strip; how many strips */
    int64_t row_blocks, col_blocks, oc_blocks;
    int64_t oc_block; /* a multiple of the panel */
    int flat;         /* one tap: pixels are numbered through the image, rows == 1 */
    strip_layout strip;
} direct_plan;

INLINE int64_t direct_row(const conv_problem *p, int flat) { return flat ? p->out_d * p->out_h * p->out_w : p->out_w; }

/* Channels with pixels in lanes that a block may have. */
INLINE int64_t direct_block_rest(const direct_plan *d, int64_t oc) {
    return d->rest < oc ? d->rest : min_i64(d->oc_block, oc);
}

/* Pixels of the largest tile with v vectors (DIRECT_FITS). */
INLINE int64_t direct_most_pixels(int64_t v) { return min_i64((VECTOR_REGISTERS - 1) / v - 1, DIRECT_MAX_S); }

/* Terms of a chain: equal ones, and no short rest, of at most a quarter more than chain_terms. A chain's panel of 2
 * vectors is 8 KiB with AVX2, 16 to 20 KiB with AVX-512: a quarter to 40 % of L1. */
INLINE int64_t direct_chain(const conv_problem *p, int64_t depth) {
    const int64_t terms = chain_terms(p), longest = p->exact ? terms : terms + terms / 4;
    return ceil_div(depth, ceil_div(depth, longest));
}

/* Tiles that a row of so many columns has with v vectors. */
INLINE int64_t direct_tiles(int64_t cols, int64_t v) { return ceil_div(cols, direct_most_pixels(v)); }

/* Vectors of the last panel. */
INLINE int64_t direct_last_vectors(const conv_problem *p, const direct_plan *d) {
    const int64_t vectors = ceil_div(p->oc - d->rest, LANES);
    return vectors % d->vectors ? vectors % d->vectors : d->vectors;
}

/* Elements of scratch: strip, totals and offsets. Pixels in lanes may be read a vector behind the strip. */
static int64_t direct_elements(const direct_plan *d, int64_t oc) {
    const int64_t offsets = (d->channels * d->taps * (int64_t)sizeof(int64_t)) / (int64_t)sizeof(real);
    const int64_t lanes = d->rest < oc ? d->strip.rows * d->strip.cols * d->oc_block : 0;
    const int64_t pixels = d->strip.rows * pixels_pitch(d->strip.cols) * direct_block_rest(d, oc);
    return d->channels * d->strip.channel_pitch + lanes + pixels + PIXELS_MAX_V * LANES + offsets;
}

/* Half cycles that a tile needs per term: two FMAs and two loads a cycle, four cycles of latency. */
INLINE int64_t tile_cost(int64_t fmas, int64_t loads) { return max_i64(max_i64(fmas, loads), 8); }

/* The same of a panel of v vectors, and of channels with pixels in lanes, for a row. */
static int64_t panel_cost(int64_t row, int64_t v) {
    const int64_t tiles = direct_tiles(row, v), size = row / tiles, larger = row % tiles;
    return (tiles - larger) * tile_cost(size * v, size + v) + larger * tile_cost((size + 1) * v, size + 1 + v);
}

static double pixels_cost(int64_t row, int64_t channels) {
    const int64_t r = pixels_channels(channels), most = pixels_vectors(channels), vectors = ceil_div(row, LANES);
    const int64_t tiles = ceil_div(vectors, most), v = ceil_div(vectors, tiles), more = channels % r;
    const double whole = (double)(channels / r) * (double)tile_cost(r * v, r + v);
    return (double)tiles * (whole + (more ? (double)tile_cost(more * v, more + v) : 0));
}

/* What costs the fewest cycles for rows of this length: panels of how many vectors, the last one having those that are
 * left, and which channels have pixels in lanes: none, those that are less than a vector, or all. With AVX2, 33
 * channels are 2 + 2 vectors and one channel; 7 columns are 4 + 3 with 3 vectors. Sums in lanes are stored, transposed
 * and stored again, 6 half cycles a vector, pixels in lanes stored once if one chain is all. */
static void choose_lanes(const conv_problem *p, direct_plan *d, int64_t row) {
    const int64_t few = p->oc % LANES, tries[3] = {0, few <= PIXELS_MAX_R ? few : 0, p->oc};
    const int64_t once = direct_chain(p, d->depth) == d->depth;
    double best = 0;
    for (int i = 0; i < 3; i++) {
        const int64_t rest = tries[i], all = ceil_div(p->oc - rest, LANES);
        const double pixels = (double)ceil_div(row, LANES) * (double)rest, lanes = (double)row * (double)all;
        const double store = (6 * lanes + (once ? 2 : 6) * pixels) / (double)d->depth;
        for (int64_t v = 2; v <= DIRECT_MAX_V; v++) {
            const double panels = (double)(all / v) * (double)panel_cost(row, v);
            const double last = all % v ? (double)panel_cost(row, all % v) : 0;
            const double cost = panels + last + (rest ? pixels_cost(row, rest) : 0) + store;
            if (best == 0 || cost < best) best = cost, d->vectors = v, d->rest = rest;
        }
    }
    if (d->rest == p->oc) d->vectors = max_i64(2, PIXELS_R / LANES);
}

/* Panels that blocks of output channels are made of. Fewer channels than one with pixels in lanes are a block's last.
 */
INLINE int64_t block_panels(const conv_problem *p, const direct_plan *d) {
    return ceil_div(d->rest < p->oc ? p->oc - d->rest : p->oc, d->vectors * LANES);
}

/* Blocks of output channels, given how many: equal ones of whole panels. */
INLINE void split_channels(const conv_problem *p, direct_plan *d, int64_t blocks) {
    const int64_t panels = block_panels(p, d), most = ceil_div(panels, blocks);
    d->oc_block = most * d->vectors * LANES;
    d->oc_blocks = ceil_div(panels, most);
}

/* Blocks of rows, so many at least, and columns: strip and totals may take half of L2; the other half is for weights
 * and y. At least one row, in short pieces if need be. */
static void split_rows_and_columns(const conv_problem *p, direct_plan *d, int64_t row, int64_t all_rows,
                                   int64_t row_blocks) {
    const int64_t room = cpu_cache_sizes()->l2 / 2 / (int64_t)sizeof(real);
    const int64_t tile = d->rest ? pixels_vectors(d->rest) * LANES : 1;
    d->col_blocks = ceil_div(row, DIRECT_COLS);
    d->row_blocks = row_blocks;
    for (;;) {
        const int64_t rows = ceil_div(all_rows, d->row_blocks);
        int64_t cols = ceil_div(row, d->col_blocks);
        const int least = rows == 1 && cols <= 16; /* whatever whole tiles make of it */
        if (cols < row && cols > 2 * tile) cols = ceil_div(cols, tile) * tile;
        d->strip = strip_layout_of(p, rows, cols);
        if (direct_elements(d, p->oc) <= room || least) break;
        if (rows > 1)
            d->row_blocks = ceil_div(all_rows, rows > 4 ? rows * 3 / 4 : rows - 1);
        else
            d->col_blocks = ceil_div(row, max_i64(cols / 2, 16));
    }
    d->row_blocks = ceil_div(all_rows, d->strip.rows);
    d->col_blocks = ceil_div(row, d->strip.cols);
}

/* Whether the tasks of an image should be more, for threads to share: fewer than 4, or an odd few, of enough work. Two
 * will do for a filter of one tap, which has little to compute for each element that the strip is filled with. */
INLINE int tasks_are_few(const conv_problem *p, const direct_plan *d) {
    const int64_t tasks = p->groups * (d->flat ? 1 : p->out_d) * d->row_blocks * d->col_blocks * d->oc_blocks;
    const double pixels = (double)p->out_d * (double)p->out_h * (double)p->out_w;
    const double macs = (double)p->groups * (double)p->oc * (double)d->depth * pixels;
    return macs >= (double)CONV_SERIAL_BELOW_MACS && (tasks < (d->flat ? 2 : 4) || (tasks < 8 && tasks % 2));
}

/* Blocks: as few as the caches allow, since each block of output channels fills the strip, 2 cycles an element, and
 * each block of rows reads all weights, half a cycle (Zen 1). More where tasks are few, in the cheaper way (3 x 3,
 * stride 2, 128 channels of 56 x 56 and 256 of 28 x 28, in rows not channels: 5 and 4 % less time). A filter of
 * one tap has two blocks of output channels at once: its pixels stay together (512 to 256 channels of 13 x 13: 20 %).
 */
static void choose_blocks(const conv_problem *p, direct_plan *d) {
    const int64_t row = direct_row(p, d->flat), all_rows = d->flat ? 1 : p->out_h, panels = block_panels(p, d);
    const int64_t least = d->flat ? min_i64(2, panels / 4) : 1;
    split_channels(p, d, max_i64(ceil_div(panels * d->vectors * LANES, (d->flat ? 2 : 1) * DIRECT_OC), least));
    split_rows_and_columns(p, d, row, all_rows, 1);
    const int by_rows = (double)p->oc * (double)d->taps < 4 * (double)p->in_h * (double)p->in_w;
    while (tasks_are_few(p, d)) {
        const int64_t blocks = d->oc_blocks, more = blocks % 2 ? blocks + 1 : 2 * blocks;
        if (by_rows && d->strip.rows > 4) {
            split_rows_and_columns(p, d, row, all_rows, ceil_div(all_rows, d->strip.rows - 1));
            continue;
        }
        if (more > panels / 4) break;
        split_channels(p, d, more);
        if (d->oc_blocks == blocks) break;
    }
}

static direct_plan direct_plan_of(const conv_problem *p) {
    const int64_t taps = p->kernel_d * p->kernel_h * p->kernel_w;
    direct_plan d = {.depth = p->ic * taps, .taps = taps, .flat = taps == 1};
    choose_lanes(p, &d, min_i64(direct_row(p, d.flat), DIRECT_COLS));
    d.blocks = ceil_div(p->ic, max_i64(DIRECT_KC / taps, 1)); /* of about the same depth: a short chain costs a pass */
    d.channels = ceil_div(p->ic, d.blocks);
    d.blocks = ceil_div(p->ic, d.channels);
    choose_blocks(p, &d);
    return d;
}

/* One block of the output: where it lies, and its scratch. */
typedef struct direct_block {
    int64_t n, group, od, oh, ow, rows, cols;
    int64_t m0, m1;   /* output channels of panels */
    int64_t r0, rest; /* the first one with pixels in lanes, and how many */
    real *strip, *totals, *rest_totals;
    int64_t *offsets;
    term_classes classes;
    uint8_t class_of[2][DIRECT_COLS]; /* the tiles of a panel of d->vectors, and of the last one */
} direct_block;

/* The classes of a row's tiles for panels of v vectors. */
static void classify_tiles(const conv_problem *p, direct_block *b, int64_t v, uint8_t *class_of) {
    const int64_t tiles = direct_tiles(b->cols, v), size = b->cols / tiles, larger = b->cols % tiles;
    for (int64_t tile = 0, ow = b->ow; tile < tiles; tile++) {
        const int64_t pixels = size + (tile < larger);
        class_of[tile] = term_class_of(p, &b->classes, ow, pixels, DIRECT_HAS_KINDS(pixels, v));
        ow += pixels;
    }
}

static void direct_block_of(const conv_problem *p, const direct_plan *d, size_t task, void *scratch, direct_block *b) {
    const int64_t row = direct_row(p, d->flat);
    int64_t t = (int64_t)task;
    b->m0 = t % d->oc_blocks * d->oc_block, t /= d->oc_blocks;
    b->ow = t % d->col_blocks * d->strip.cols, t /= d->col_blocks;
    b->oh = t % d->row_blocks * d->strip.rows, t /= d->row_blocks;
    b->od = d->flat ? 0 : t % p->out_d, t /= d->flat ? 1 : p->out_d;
    b->group = t % p->groups, b->n = t / p->groups;
    const int64_t lanes = p->oc - d->rest;
    b->m1 = max_i64(min_i64(b->m0 + d->oc_block, lanes), b->m0);
    b->r0 = max_i64(b->m0, lanes);
    b->rest = lanes == 0 ? min_i64(d->oc_block, p->oc - b->m0) : b->m1 == lanes ? d->rest : 0;
    b->cols = min_i64(d->strip.cols, row - b->ow);
    b->rows = d->flat ? 1 : min_i64(d->strip.rows, p->out_h - b->oh);
    b->offsets = scratch;
    b->strip = (real *)scratch +
               ceil_div(d->channels * d->taps * (int64_t)sizeof(int64_t), CONV_ALIGN) * CONV_ALIGN / sizeof(real);
    b->totals = b->strip + d->channels * d->strip.channel_pitch;
    b->rest_totals = b->totals + (lanes ? d->strip.rows * d->strip.cols * d->oc_block : 0);
    b->classes.count = 1;
    b->classes.taps[0] = (tile_taps){{0, 0, p->kernel_w, p->kernel_w}};
    if (!d->flat && lanes) {
        const int64_t v = direct_last_vectors(p, d);
        classify_tiles(p, b, d->vectors, b->class_of[0]);
        if (v != d->vectors) classify_tiles(p, b, v, b->class_of[1]);
    }
}

#endif
