/* Direct convolution, output channels in lanes: dense layers, without im2col.
 *
 *     T[pixel][channel] += sum over a chain of terms of strip[offset[k] + pixel] * packed[k][channel]
 *
 * for each task (image, group, block of output rows and columns, block of output channels):          one thread
 *   for each block of input channels: fill the strip, and the totals T stay in scratch               both in L2
 *     for each panel of V vectors of output channels, for each chain of terms:                       weights: L1
 *       for each tile of S neighbouring pixels: S x V accumulators, pixels broadcast from the strip  strip: L1, L2
 *   T is transposed into y, bias added                                     (the last few channels: direct_rest.h)
 *
 * Stride, dilation and padding are offsets into the strip (strip.h). A filter of one tap has no rows to respect: its
 * pixels are numbered through the image. Tails: S divides a row as evenly as it can, so no pixel is computed in vain;
 * the last panel has the vectors it needs, their unused lanes multiply zeros, unless pixels in lanes are cheaper. Every
 * output is one sum per chain, from zero, added in order: block sizes, threads and the batch don't change bits.
 * Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018. */
#include "../cpu.h"
#include "algorithm.h"
#include "direct_rest.h"
#include "epilogue.h"
#include "strip.h"

/* Most of the depth of a strip, since filling it costs once for each: with AVX-512 two chains (Golden Cove, 14 x 2
 * tile, layers of ResNet-50: one 2 to 4 % slower, four no faster), else one (AVX2 there: two 2 to 5 % slower). */
#define DIRECT_KC (VECTOR_BYTES == 64 ? 320 : 160)
/* Columns of a block: longer rows (1-D signals) are cut. */
#define DIRECT_COLS 480
/* Output channels of a block: 128 terms of their weights are 128 KiB of floats. */
#define DIRECT_OC 256

typedef struct direct_plan {
    int64_t depth, taps, vectors; /* of a panel */
    int64_t rest;                 /* how many of the last channels have pixels in lanes */
    int64_t channels, blocks;     /* input channels of a strip; how many strips */
    int64_t row_blocks, col_blocks, oc_blocks;
    int64_t oc_block; /* a multiple of the panel */
    int flat;         /* one tap: pixels are numbered through the image, rows == 1 */
    strip_layout strip;
} direct_plan;

INLINE int64_t direct_row(const conv_problem *p, int flat) { return flat ? p->out_d * p->out_h * p->out_w : p->out_w; }

/* Elements of scratch: strip, totals and offsets. A vector of the rest may read as far behind the strip as it is long.
 */
static int64_t direct_elements(const direct_plan *d) {
    const int64_t offsets = (d->channels * d->taps * (int64_t)sizeof(int64_t)) / (int64_t)sizeof(real);
    const int64_t rest = d->rest ? d->strip.rows * rest_pitch(d->strip.cols) * d->rest + LANES : 0;
    return d->channels * d->strip.channel_pitch + d->strip.rows * d->strip.cols * d->oc_block + rest + offsets;
}

/* Pixels of the largest tile with v vectors (DIRECT_FITS). */
INLINE int64_t direct_most_pixels(int64_t v) { return min_i64((VECTOR_REGISTERS - 1) / v - 1, DIRECT_MAX_S); }

/* Terms of a chain: equal ones, and no short rest, of at most a quarter more than chain_terms. A chain's panel of 2
 * vectors is 8 KiB with AVX2, 16 to 20 KiB with AVX-512: a quarter to 40 % of L1. */
INLINE int64_t direct_chain(const conv_problem *p, int64_t depth) {
    const int64_t terms = chain_terms(p), longest = p->exact ? terms : terms + terms / 4;
    return ceil_div(depth, ceil_div(depth, longest));
}

/* Half cycles that a panel of v vectors needs per term for a row: two FMAs and two loads a cycle, four cycles of
 * latency. */
static int64_t panel_cost(int64_t row, int64_t v) {
    const int64_t tiles = ceil_div(row, direct_most_pixels(v)), size = row / tiles, larger = row % tiles;
    int64_t cost = 0;
    for (int i = 0; i < 2; i++) {
        const int64_t s = size + i, count = i ? larger : tiles - larger;
        cost += count * max_i64(max_i64(s * v, 8), s + v);
    }
    return cost;
}

/* The vectors of a panel that cost the fewest cycles for rows of this length and these channels, the last panel having
 * those that are left: with AVX2, 33 channels are 3 + 2 vectors rather than 2 + 2 + 1, whose last one would wait for
 * its broadcasts. More vectors suit short rows: 7 columns are 4 + 3 with 3 vectors on AVX2. The channels that are less
 * than a vector may be the rest. */
static void choose_panels(direct_plan *d, int64_t row, int64_t oc) {
    int64_t best = INT64_MAX;
    for (int64_t rest = 0; rest <= oc % LANES && rest <= REST_MAX_R; rest += max_i64(oc % LANES, 1)) {
        const int64_t all = rest ? oc / LANES : ceil_div(oc, LANES), more = rest ? rest_cost(row, rest) : 0;
        for (int64_t v = 2; v <= DIRECT_MAX_V; v++) {
            const int64_t cost = all / v * panel_cost(row, v) + (all % v ? panel_cost(row, all % v) : 0) + more;
            if (cost < best) best = cost, d->vectors = v, d->rest = rest;
        }
    }
}

/* Strip and totals may take half of L2; the other half is for weights and y. At least one row, in short pieces if need
 * be. */
static direct_plan direct_plan_of(const conv_problem *p) {
    direct_plan d;
    d.taps = p->kernel_d * p->kernel_h * p->kernel_w;
    d.depth = p->ic * d.taps;
    d.flat = d.taps == 1;
    const int64_t row = direct_row(p, d.flat), all_rows = d.flat ? 1 : p->out_h;
    choose_panels(&d, min_i64(row, DIRECT_COLS), p->oc);
    const int64_t panel = d.vectors * LANES, panels = max_i64(ceil_div(p->oc - d.rest, panel), 1);
    d.blocks =
        ceil_div(p->ic, max_i64(DIRECT_KC / d.taps, 1)); /* of about the same depth: a short chain costs a pass too */
    d.channels = ceil_div(p->ic, d.blocks);
    d.blocks = ceil_div(p->ic, d.channels);
    /* Blocks of output channels: as few as DIRECT_OC allows, but two where one image has few tasks (small outputs with
     * enough taps that filling the strip twice does not show). */
    const int few = row * all_rows <= 256 && d.taps >= 4;
    d.oc_blocks = max_i64(ceil_div(panels * panel, DIRECT_OC), min_i64(few ? 4 : 2, panels / 4));
    d.oc_blocks = max_i64(d.oc_blocks, 1);
    d.oc_block = ceil_div(panels, d.oc_blocks) * panel;
    d.oc_blocks = max_i64(ceil_div(p->oc - d.rest, d.oc_block), 1);
    const int64_t room = cpu_cache_sizes()->l2 / 2 / (int64_t)sizeof(real);
    d.col_blocks = ceil_div(row, DIRECT_COLS);
    d.row_blocks = 1;
    for (;;) {
        const int64_t rows = ceil_div(all_rows, d.row_blocks), cols = ceil_div(row, d.col_blocks);
        d.strip = strip_layout_of(p, rows, cols);
        if (direct_elements(&d) <= room || (rows == 1 && cols <= 16)) break;
        if (rows > 1)
            d.row_blocks = ceil_div(all_rows, rows > 4 ? rows * 3 / 4 : rows - 1);
        else
            d.col_blocks = ceil_div(row, max_i64(cols / 2, 16));
    }
    d.row_blocks = ceil_div(all_rows, d.strip.rows);
    d.col_blocks = ceil_div(row, d.strip.cols);
    return d;
}

/* A strip of bounded size: hostile dilations leave im2col_gemm. So do one-tap filters of little depth over many pixels:
 * transposing T is a third of their time there (Zen 3, depth 64: 75 GFLOP/s to im2col_gemm's 92; 256: 67 to 73; 1024:
 * 90 to 84). The rest has nothing to transpose (128 to 2 channels: 20 to 33). */
static int direct_accepts(const conv_problem *p) {
    const int64_t limit = 1 << 20, taps = p->kernel_d * p->kernel_h * p->kernel_w;
    if (p->oc == 0 || p->ic == 0) return 0;
    if (taps > 1 << 12 || p->dilation_h > limit || p->dilation_w > limit) return 0;
    if (p->stride_h > limit || p->stride_w > limit) return 0;
    if (taps == 1 && p->ic <= 256 && p->oc > REST_MAX_R && p->out_d * p->out_h * p->out_w >= 8 * TILE_V * LANES)
        return 0;
    const direct_plan d = direct_plan_of(p);
    return direct_elements(&d) * (int64_t)sizeof(real) <= 1 << 20;
}

/* Output channels as they are packed: the last panel has the vectors it needs. */
INLINE int64_t direct_packed_channels(const conv_problem *p) { return ceil_div(p->oc, LANES) * LANES; }

static size_t direct_packed_bytes(const conv_problem *p) {
    const int64_t depth = p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
    return (size_t)(p->groups * depth * direct_packed_channels(p)) * sizeof(real);
}

static size_t direct_pack_tasks(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)(p->groups * (ceil_div(p->oc - d.rest, d.vectors * LANES) + (d.rest > 0)));
}

/* LANES channels side by side: dst[k * pitch + channel] = src[channel * depth + k], zero for channels that don't exist.
 */
static void pack_lanes(const real *src, int64_t depth, int64_t channels, int64_t count, real *dst, int64_t pitch) {
    int64_t k = 0;
    for (; channels == LANES && k + LANES <= count; k += LANES) {
        vec rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = vec_load(src + i * depth + k);
        vec_transpose(rows);
        for (int i = 0; i < LANES; i++) vec_store(dst + (k + i) * pitch, rows[i]);
    }
    for (; k < count; k++)
        for (int64_t m = 0; m < LANES; m++) dst[k * pitch + m] = m < channels ? src[m * depth + k] : 0;
}

/* Packed: for each group, for each block of input channels, for each panel: [depth of the block][channels], the rest
 * being the last panel. A task is one panel of one group. */
static void direct_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const direct_plan d = direct_plan_of(p);
    const int64_t panel = d.vectors * LANES, main = p->oc - d.rest, all = direct_packed_channels(p);
    const int64_t panels = ceil_div(main, panel) + (d.rest > 0), group = (int64_t)task / panels;
    const int64_t m0 = min_i64((int64_t)task % panels * panel, main), used = min_i64(panel, main - m0);
    const int64_t width = ceil_div(used, LANES) * LANES;
    const real *src = (const real *)w + (group * p->oc + m0) * d.depth;
    real *dst = (real *)packed + group * d.depth * all;
    for (int64_t k0 = 0; k0 < d.depth; k0 += d.channels * d.taps) {
        const int64_t kc = min_i64(d.channels * d.taps, d.depth - k0);
        real *rest = dst + k0 * all + main * kc;
        for (int64_t k = 0; m0 == main && k < kc; k++)
            for (int64_t m = 0; m < d.rest; m++) rest[k * d.rest + m] = src[m * d.depth + k0 + k];
        for (int64_t m = 0; m < width; m += LANES)
            pack_lanes(src + m * d.depth + k0, d.depth, min_i64(used - m, LANES), kc, dst + k0 * all + m0 * kc + m,
                       width);
    }
}

static size_t direct_scratch_bytes(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)direct_elements(&d) * sizeof(real) + 2 * CONV_ALIGN;
}

static size_t direct_tasks(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)(p->n * p->groups * (d.flat ? 1 : p->out_d) * d.row_blocks * d.col_blocks * d.oc_blocks);
}

/* One block of the output: where it lies, and its scratch. */
typedef struct direct_block {
    int64_t n, group, od, oh, ow, rows, cols;
    int64_t m0, m1, rest; /* output channels of the panels, and of the rest if it belongs here */
    real *strip, *totals, *rest_totals;
    int64_t *offsets;
} direct_block;

static direct_block direct_block_of(const conv_problem *p, const direct_plan *d, size_t task, void *scratch) {
    direct_block b;
    const int64_t row = direct_row(p, d->flat);
    int64_t t = (int64_t)task;
    b.m0 = t % d->oc_blocks * d->oc_block, t /= d->oc_blocks;
    b.ow = t % d->col_blocks * d->strip.cols, t /= d->col_blocks;
    b.oh = t % d->row_blocks * d->strip.rows, t /= d->row_blocks;
    b.od = d->flat ? 0 : t % p->out_d, t /= d->flat ? 1 : p->out_d;
    b.group = t % p->groups, b.n = t / p->groups;
    b.m1 = min_i64(b.m0 + d->oc_block, p->oc - d->rest);
    b.rest = b.m1 == p->oc - d->rest ? d->rest : 0;
    b.cols = min_i64(d->strip.cols, row - b.ow);
    b.rows = d->flat ? 1 : min_i64(d->strip.rows, p->out_h - b.oh);
    b.offsets = scratch;
    b.strip = (real *)scratch +
              ceil_div(d->channels * d->taps * (int64_t)sizeof(int64_t), CONV_ALIGN) * CONV_ALIGN / sizeof(real);
    b.totals = b.strip + d->channels * d->strip.channel_pitch;
    b.rest_totals = b.totals + d->strip.rows * d->strip.cols * d->oc_block;
    return b;
}

/* The strip of a filter of one tap: the block's pixels one after the other, for each channel. */
static void direct_fill_flat(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                             int64_t x, int64_t count) {
    const int dense = input_is_dense(p, io);
    for (int64_t c = 0; c < count; c++, x += io->x_stride_c) {
        real *dst = b->strip + c * d->strip.channel_pitch;
        int64_t pixel = b->ow;
        if (dense) {
            load_elements(p->x_type, io->x, x + pixel, 1, b->cols, dst);
            continue;
        }
        while (pixel < b->ow + b->cols) {
            const int64_t row = pixel / p->out_w, ow = pixel % p->out_w;
            const int64_t length = min_i64(p->out_w - ow, b->ow + b->cols - pixel);
            const row_window window = row_window_of(p, io, 0, ow, length);
            gather_row(p, io, input_row(p, io, x, row / p->out_h, row % p->out_h, 0, 0), &window, dst);
            dst += length;
            pixel += length;
        }
    }
}

/* Whether a filter of one tap can read x as it lies: no strip. What a vector of the rest reads must be there. Channels
 * a multiple of 512 bytes apart would share so few sets of L1 that a chain of them does not fit. Zen 3 reads 512
 * channels of 49 floats, no multiple of 16 bytes, at 61 GFLOP/s, those of 52 at 86 and the strip at 84; Golden Cove
 * with AVX-512 reads the former at 172 of 220. */
static int x_is_operand(const conv_problem *p, const conv_io *io, const direct_block *b) {
    const uintptr_t first = (uintptr_t)io->x, apart = (uintptr_t)io->x_stride_c * sizeof(real);
    if (p->x_type != CONV_NATIVE || !input_is_dense(p, io) || (b->rest && b->cols % LANES)) return 0;
    return first % sizeof(real) == 0 && apart % 512 != 0 && (VECTOR_BYTES == 64 || apart % 16 == 0);
}

/* totals += strip * weights of one panel, for one chain [k0, k1) of the strip's depth. The weights that come next in
 * memory are the next chain's or panel's: the first tiles fetch them into L2, a line for every other term each, since
 * they come from L3 or memory for layers of more than a few hundred channels, and the first tile would wait for them.
 */
static void direct_panel(const direct_plan *d, const direct_block *b, int64_t vectors, const real *weights, int64_t k0,
                         int64_t k1, int add, real *totals) {
    const int64_t tiles = ceil_div(b->cols, direct_most_pixels(vectors));
    const int64_t size = b->cols / tiles, larger = b->cols % tiles, pitch = d->vectors * LANES;
    const int64_t width = vectors * LANES, next = (k1 - k0) * width * (int64_t)sizeof(real);
    direct_operands o = {k1 - k0, b->offsets + k0, NULL, weights + k0 * width, totals, pitch, add, 0};
    const int64_t lines = 2 * width * (int64_t)sizeof(real) / CONV_ALIGN, all = b->rows * tiles;
    int64_t line = 0, due = 0;
    for (int64_t r = 0; r < b->rows; r++) {
        o.strip = b->strip + r * d->strip.row_step;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t s = size + (tile < larger);
            due += lines;
            o.fetch = due >= all ? next + line++ * CONV_ALIGN : 0;
            due -= due >= all ? all : 0;
            direct_tile_of(s, vectors, &o);
            o.strip += s;
            o.totals += s * pitch;
        }
    }
}

/* Pixels that are neighbours in y, and in a row of the block. */
typedef struct direct_span {
    int64_t count, y, step;
} direct_span;

static direct_span direct_span_at(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                                  int64_t r, int64_t column) {
    const int64_t pixel = b->ow + column, row = d->flat ? pixel / p->out_w : 0;
    const int64_t od = d->flat ? row / p->out_h : b->od, oh = d->flat ? row % p->out_h : b->oh + r;
    const int64_t ow = d->flat ? pixel % p->out_w : pixel, n = b->n * io->y_stride_n;
    if (d->flat && output_is_dense(p, io)) return (direct_span){b->cols - column, n + pixel, 1};
    return (direct_span){min_i64(p->out_w - ow, b->cols - column),
                         n + od * io->y_stride_d + oh * io->y_stride_h + ow * io->y_stride_w, io->y_stride_w};
}

/* y = activation(totals + bias + residual) for one panel. */
static void direct_store(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                         int64_t m, const real *totals) {
    const int64_t pitch = d->vectors * LANES, channel = b->group * p->oc + m;
    const real *bias = io->bias ? (const real *)io->bias + channel : NULL;
    for (int64_t r = 0; r < b->rows; r++)
        for (int64_t column = 0; column < b->cols;) {
            const direct_span s = direct_span_at(p, io, d, b, r, column);
            const totals_run run = {
                totals, pitch, s.count, min_i64(pitch, b->m1 - m), bias, s.y + channel * io->y_stride_c, s.step};
            store_totals(p, io, &run);
            column += s.count;
            totals += s.count * pitch;
        }
}

/* The same for the rest, whose pixels are neighbours already. */
static void direct_store_rest(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b) {
    real *sums = b->rest_totals;
    for (int64_t m = 0; m < b->rest; m++) {
        const int64_t channel = b->group * p->oc + b->m1 + m;
        const real bias = io->bias ? ((const real *)io->bias)[channel] : 0;
        for (int64_t r = 0; r < b->rows; r++, sums += rest_pitch(b->cols))
            for (int64_t column = 0; column < b->cols;) {
                const direct_span s = direct_span_at(p, io, d, b, r, column);
                for (int64_t i = column; i < column + s.count; i++) sums[i] += bias;
                finish_run(p, io, sums + column, s.count, s.y + channel * io->y_stride_c, s.step);
                column += s.count;
            }
    }
}

/* totals += strip * weights for all panels and chains of a strip. weights: where those of its input channels begin. */
static void direct_multiply(const conv_problem *p, const direct_plan *d, const direct_block *b, const real *weights,
                            int64_t depth, int add) {
    const int64_t panel = d->vectors * LANES, chain = direct_chain(p, depth), pixels = b->rows * b->cols;
    for (int64_t m = b->m0; m < b->m1; m += panel)
        for (int64_t k0 = 0; k0 < depth; k0 += chain)
            direct_panel(d, b, min_i64(d->vectors, ceil_div(b->m1 - m, LANES)), weights + m * depth, k0,
                         min_i64(k0 + chain, depth), add || k0 > 0, b->totals + (m - b->m0) * pixels);
    for (int64_t k0 = 0; b->rest && k0 < depth; k0 += chain)
        rest_panel((direct_operands){.depth = min_i64(chain, depth - k0),
                                     .offsets = b->offsets + k0,
                                     .strip = b->strip,
                                     .weights = weights + b->m1 * depth + k0 * b->rest,
                                     .totals = b->rest_totals,
                                     .add = add || k0 > 0},
                   b->rest, b->rows, b->cols, d->strip.row_step);
}

static void direct_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    const direct_plan d = direct_plan_of(p);
    direct_block b = direct_block_of(p, &d, task, scratch);
    const int64_t panel = d.vectors * LANES, all = direct_packed_channels(p), pixels = b.rows * b.cols;
    const int64_t x = b.n * io->x_stride_n + b.group * p->ic * io->x_stride_c;
    const real *packed = (const real *)io->packed + b.group * d.depth * all;
    const int in_place = d.flat && x_is_operand(p, io, &b);
    int64_t k = 0;
    for (int64_t c = 0; c < d.channels; c++)
        for (int64_t kd = 0; kd < p->kernel_d; kd++)
            for (int64_t kh = 0; kh < p->kernel_h; kh++)
                for (int64_t kw = 0; kw < p->kernel_w; kw++)
                    b.offsets[k++] = in_place ? c * io->x_stride_c : strip_offset(p, &d.strip, c, kd, kh, kw);
    for (int64_t block = 0; block < d.blocks; block++) {
        const int64_t c0 = block * d.channels, count = min_i64(d.channels, p->ic - c0), depth = count * d.taps;
        if (in_place)
            b.strip = (real *)io->x + x + c0 * io->x_stride_c + b.ow;
        else if (d.flat)
            direct_fill_flat(p, io, &d, &b, x + c0 * io->x_stride_c, count);
        else
            strip_fill(p, io, &d.strip, x + c0 * io->x_stride_c, count, b.od, b.oh, b.ow, b.strip);
        direct_multiply(p, &d, &b, packed + c0 * d.taps * all, depth, block > 0);
    }
    for (int64_t m = b.m0; m < b.m1; m += panel) direct_store(p, io, &d, &b, m, b.totals + (m - b.m0) * pixels);
    direct_store_rest(p, io, &d, &b);
}

ALGORITHM(direct);
