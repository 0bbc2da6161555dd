/* Winograd's F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144, in 3x3 layers of stride 1.
 *
 *     y(tile) = A^T [ sum over c of U[c] . (B^T d[c] B) ] A,   U = G w G^T      (winograd_transform.h)
 *
 * for each task (group, block of output channels, block of T tiles of all images):                   one thread
 *   for each block of input channels: 6 rows of pixels -> B^T d -> V[36][channels][T]                V: half of L2
 *     for each of the 36, for each panel of NR output channels: U [channels][NR]                     U, V: L1
 *       for each R of the tiles: R x NR accumulators, V broadcast, then M[tile][panel][36][NR] += accumulators
 *   for each tile, for each vector of output channels: A^T M A -> sums[4 rows][pixels] -> y               sums: L1
 *
 * A dilation is interleaved sub-images, a depth slice an image. Tails: the last tile of a row or column is moved back
 * until it fits the image, and stores only what the one before it does not; R divides T as evenly as it can; unused
 * lanes of the last panel multiply zeros. Every output is summed in the same order in whatever block, batch or thread.
 *
 * Arithmetic of a tile: 36 ic oc multiply-adds; 12 * (4 + 6) = 120 operations per input channel, since the columns that
 * tiles share are transformed once; 12 * (6 + 4) + 16 = 136 per output channel: 11 % more at 64 x 64 channels. There
 * they take 30 % of the time nevertheless: 2.3 KiB of V or M per tile and 16 channels go through L2.
 *
 * An Inf or NaN in x makes NaN of all 16 outputs, in all channels of its group, of every tile whose 6x6 inputs hold it:
 * up to 3 pixels beyond what the direct sum would reach. So may a magnitude over 1/26 of the largest number, since
 * B^T d B adds up to 25.6 times the largest input. The error is relative to the largest inputs of the tile: where those
 * of one output are all much smaller, 16 u sum |x w| does not hold for it. Lavin and Gray, "Fast algorithms for
 * convolutional neural networks", CVPR 2016. */
#include "../cpu.h"
#include "algorithm.h"
#include "im2col.h"
#include "winograd_filter.h"
#include "winograd_product.h"

typedef struct winograd_plan {
    int64_t sub_h, sub_w;        /* sub-images per axis */
    int64_t tiles_h, tiles_w;    /* of a sub-image */
    int64_t tiles;               /* of all images */
    int64_t most, block, blocks; /* the largest T; T; blocks of tiles */
    int64_t depth, chain;        /* input channels of V; terms that are summed from zero */
    int apart;                   /* the sum of a block of channels is complete before it joins M */
    int64_t panels, task_panels, panel_blocks;
    int64_t pitch, element; /* of V: T in whole vectors; from one of the 36 matrices to the next */
    int64_t m_pitch;        /* of M: from one tile to the next */
    int64_t row_pitch;      /* of the rows of pixels */
} winograd_plan;

/* 64 channels of V (floats), since U [64][NR] is then 4 KiB and V [64][T] 9 KiB of L1; but 8 blocks of channels at
 * most, as adding them up decides the error of many channels. The more tiles share a U the better, but V should stay in
 * L2, which U streams through: 5/8 of it, T = 35 at 64 channels and 512 KiB (Zen 3: T of 24 and 48 are 3 % slower). All
 * output channels up to 256 floats in a task, since each task transforms its input itself (128: 8 % slower for 256
 * channels), but two tasks from 256 on where there is but one block of tiles. M is then larger than L2, and
 * written and read in order. V and M: below 2 MiB - 64 KiB. */
static winograd_plan winograd_plan_of(const conv_problem *p) {
    const int64_t size = sizeof(real), l2 = cpu_cache_sizes()->l2, task_bytes = 1024;
    winograd_plan g;
    g.sub_h = min_i64(p->dilation_h, p->out_h);
    g.sub_w = min_i64(p->dilation_w, p->out_w);
    g.tiles_h = ceil_div(ceil_div(p->out_h, p->dilation_h), 4);
    g.tiles_w = ceil_div(ceil_div(p->out_w, p->dilation_w), 4);
    g.tiles = p->n * p->out_d * g.sub_h * g.sub_w * g.tiles_h * g.tiles_w;
    g.depth = ceil_div(p->ic, ceil_div(p->ic, max_i64(256 / size, ceil_div(p->ic, 8))));
    /* In data of one sign, chains of L err by about 2.9 u sum |x w| sqrt(L^2 / 9 ic + ic / 9 L), root mean square in
     * the corners of a padded image, where that is most. Summed apart (4 % slower), depth takes L's place in the second
     * term. Measured with these: 2.6 to 3.1 for 32 to 2048 channels. */
    g.chain = ceil_div(g.depth, ceil_div(g.depth, p->ic < 64 ? 12 : p->ic < 128 ? 24 : 32));
    g.apart = ceil_div(p->ic, g.depth) > 4;
    const int64_t fits = ((2 << 20) - (64 << 10)) / ELEMENTS - g.depth * size * LANES;
    g.most = max_i64(l2 * 5 / 8 / (ELEMENTS * g.depth * size), 12);
    g.most = min_i64(g.most, fits / (g.depth * size + task_bytes));
    g.block = max_i64(ceil_div(g.tiles, max_i64(ceil_div(g.tiles, g.most), 1)), 1);
    g.blocks = ceil_div(g.tiles, g.block);
    if (g.blocks > 1 && g.blocks < 8 && g.blocks % 2) { /* three tasks would keep one of two threads waiting */
        g.block = ceil_div(g.tiles, g.blocks + 1);
        g.blocks = ceil_div(g.tiles, g.block);
    }
    g.panels = ceil_div(p->oc, WINOGRAD_NR);
    const int64_t most_panels = (g.blocks > 1 ? task_bytes : task_bytes / 2) / size / WINOGRAD_NR;
    g.task_panels = ceil_div(g.panels, ceil_div(g.panels, most_panels));
    g.panel_blocks = ceil_div(g.panels, g.task_panels);
    /* Odd numbers of cache lines, or the 36 lines that are written together would fall into a few sets of L1. */
    g.pitch = ceil_div(g.block, LANES) * LANES;
    g.element = (ceil_div(g.depth * g.pitch, WINOGRAD_LINE) | 1) * WINOGRAD_LINE;
    g.m_pitch = g.task_panels * ELEMENTS * WINOGRAD_NR + WINOGRAD_LINE;
    g.row_pitch = (ceil_div(g.block * max_i64(LANES, 8), WINOGRAD_LINE) | 1) * WINOGRAD_LINE;
    return g;
}

/* Padding with zeros, or another constant that may be as small, of one tap at most: further out, an output has 2 or 1
 * of its 9 products and up to 3 times the relative error, or none and an error still. */
INLINE int padding_is_narrow(const conv_problem *p) {
    const int64_t below = p->out_h + 2 * p->dilation_h - p->pad_h - p->in_h;
    const int64_t right = p->out_w + 2 * p->dilation_w - p->pad_w - p->in_w;
    return max_i64(p->pad_h, below) <= p->dilation_h && max_i64(p->pad_w, right) <= p->dilation_w;
}

/* Whether one image takes less time than with 9 multiply-adds for each output and pair of channels. In multiply-adds,
 * measured on Zen 3 with AVX2, 16 of them a cycle: those of the GEMM run at four fifths of the direct kernel's speed;
 * the transforms take 30 cycles for each tile and input channel, 20 for an output channel, 40 more each where pixels
 * are not neighbours; a weight takes half a cycle from L3 and a whole one from memory (8 and 4 bytes a cycle) unless
 * the multiplications hide it. Packing raw weights takes 5 to 9 ns more for each filter than direct's (Zen 5: 64 to 256
 * channels of 14 x 14 take 0.63 to 0.93 of direct's time nevertheless, those of 10 x 10 as much). */
static int winograd_is_faster(const conv_problem *p, const winograd_plan *g) {
    const double ic = (double)p->ic, oc = (double)(g->panels * WINOGRAD_NR), apart = p->dilation_w > 1 ? 640 : 0;
    const double tiles = (double)(p->out_d * g->sub_h * g->sub_w) * (double)(g->tiles_h * g->tiles_w);
    const double weights = ELEMENTS * ic * oc, block = tiles < (double)g->most ? tiles : (double)g->most;
    const double l3 = 16 << 20, load = (weights * sizeof(real) > l3 ? 0.5 : 0.25) * VECTOR_BYTES;
    const double multiply = 1.25 * block > load ? 1.25 : load / block;
    const double transform = (480 + apart) * ic * (double)g->panel_blocks + (320 + apart) * oc;
    const double pixels = (double)(p->out_d * p->out_h) * (double)p->out_w, pack = p->raw ? 700 * ic * oc : 0;
    return tiles * (weights * multiply + transform) + pack < 9 * ic * (double)p->oc * pixels;
}

/* The bound of 16 u sum |x w| needs 32 channels: the error grows with the root of their number, the sum with the
 * number. The largest of 2 * 10^6 outputs in corners of padded images: 13.6 for normal data; for data of one sign 13.2
 * from 63 channels on, and with 32 to 56, where two outputs passed 15, 16.5. More than 2048 were not tried. Two lanes
 * (doubles in 16 bytes) are less than a quad. */
static int winograd_accepts(const conv_problem *p) {
    if (LANES < 4 || p->exact || p->ic < 32 || p->ic > 2048 || p->oc == 0) return 0;
    if (p->kernel_d != 1 || p->kernel_h != 3 || p->kernel_w != 3 || p->stride_h != 1 || p->stride_w != 1) return 0;
    if (p->out_h / 4 < p->dilation_h || p->out_w / 4 < p->dilation_w) return 0;
    if ((p->pad_mode == CONV_PAD_ZEROS || p->pad_mode == CONV_PAD_CONSTANT) && !padding_is_narrow(p)) return 0;
    conv_problem image = *p;
    image.n = 1;
    const winograd_plan g = winograd_plan_of(&image);
    return winograd_is_faster(p, &g);
}

static size_t winograd_packed_bytes(const conv_problem *p) {
    return (size_t)(p->groups * ELEMENTS * ceil_div(p->oc, WINOGRAD_NR) * WINOGRAD_NR * p->ic) * sizeof(real);
}

static size_t winograd_pack_tasks(const conv_problem *p) { return (size_t)(p->groups * ceil_div(p->oc, WINOGRAD_NR)); }

/* Packed: for each group, for each block of input channels: [36][panels][channels of the block][NR]. */
static void winograd_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const winograd_plan g = winograd_plan_of(p);
    const int64_t group = (int64_t)task / g.panels, panel = (int64_t)task % g.panels, k = panel * WINOGRAD_NR;
    const real *src = (const real *)w + (group * p->oc + k) * p->ic * 9;
    real *dst = (real *)packed + group * ELEMENTS * g.panels * WINOGRAD_NR * p->ic;
    for (int64_t c0 = 0; c0 < p->ic; c0 += g.depth) {
        const int64_t depth = min_i64(g.depth, p->ic - c0);
        real *u = dst + (c0 * ELEMENTS * g.panels + panel * depth) * WINOGRAD_NR;
        winograd_filters(9, src + c0 * 9, p->ic * 9, p->oc - k, depth, u, g.panels * depth * WINOGRAD_NR);
    }
}

/* Tiles side by side in one row of tiles of one sub-image; its columns are the sub-image's. */
typedef struct winograd_span {
    int64_t first, count; /* tiles, numbered in the block */
    int64_t ow, last_ow;  /* columns of the first tile, and of the last one that fits the image */
    int64_t rows[6];      /* input rows, from the channel's first element; NO_ROW: zeros */
    row_window window;    /* the columns of those rows */
    int64_t z;            /* where they lie in the strip */
    int64_t y;            /* the output of column 0, from the output channel's first element */
    int64_t skip_rows;    /* outputs that belong to the row of tiles above */
} winograd_span;

typedef struct winograd_task {
    winograd_plan plan;
    conv_problem p; /* as a sub-image's columns are read: the dilation is the stride */
    int64_t panel, panels, tiles, runs;
    winograd_span *run;
    int32_t *at;                            /* where in a row of z each tile begins */
    real *strip, *z, *zeros, *v, *m, *bias; /* strip, z: 6 rows of pixels of all runs, before and after B^T */
} winograd_task;

/* Where tile i begins: the last one of a row is moved left until it fits. */
INLINE int64_t tile_column(const winograd_span *r, int64_t i) { return min_i64(r->ow + 4 * i, r->last_ow); }

/* The run that begins with a tile, of at most `most` tiles. */
static winograd_span tile_run_at(const winograd_task *t, const conv_io *io, int64_t tile, int64_t most) {
    const winograd_plan *g = &t->plan;
    const conv_problem *p = &t->p;
    const int64_t tx = tile % g->tiles_w, ty = tile / g->tiles_w % g->tiles_h, sub = tile / g->tiles_w / g->tiles_h;
    const int64_t sx = sub % g->sub_w, sy = sub / g->sub_w % g->sub_h, image = sub / g->sub_w / g->sub_h;
    const int64_t n = image / p->out_d, od = image % p->out_d;
    const int64_t last_oh = (p->out_h - sy - 1) / p->dilation_h - 3;
    winograd_span r = {.count = min_i64(g->tiles_w - tx, most), .ow = 4 * tx};
    r.last_ow = (p->out_w - sx - 1) / p->dilation_w - 3;
    r.skip_rows = max_i64(4 * ty - last_oh, 0);
    const int64_t ow = tile_column(&r, 0), oh = (4 * ty - r.skip_rows) * p->dilation_h + sy;
    r.window = row_window_of(p, io, sx, ow, tile_column(&r, r.count - 1) - ow + 6);
    const int64_t d = pad_index(od * p->stride_d - p->pad_d, p->in_d, p->pad_mode);
    for (int i = 0; i < 6; i++) {
        const int64_t h = pad_index(oh + i * p->dilation_h - p->pad_h, p->in_h, p->pad_mode);
        r.rows[i] = d < 0 || h < 0 ? NO_ROW : n * io->x_stride_n + d * io->x_stride_d + h * io->x_stride_h;
    }
    r.y = n * io->y_stride_n + od * io->y_stride_d + oh * io->y_stride_h + sx * io->y_stride_w;
    return r;
}

static void winograd_split(winograd_task *t, const conv_io *io, int64_t first) {
    int64_t z = 0;
    for (int64_t i = 0; i < t->tiles;) {
        winograd_span *r = &t->run[t->runs++];
        *r = tile_run_at(t, io, first + i, t->tiles - i);
        r->first = i;
        r->z = z;
        for (int64_t j = 0; j < r->count; j++) t->at[i + j] = (int32_t)(z + tile_column(r, j) - tile_column(r, 0));
        z += ceil_div(4 * r->count + 2, LANES) * LANES;
        i += r->count;
    }
    for (int64_t i = t->tiles; i < t->plan.pitch; i++) t->at[i] = 0;
}

/* z of every run for one channel. Rows of x are read in place where only zeros surround them: z has those already. */
static void winograd_rows(const winograd_task *t, const conv_io *io, int64_t channel, int64_t ahead) {
    const int64_t pitch = t->plan.row_pitch;
    for (const winograd_span *r = t->run; r < t->run + t->runs; r++) {
        const row_window *w = &r->window;
        const real_unaligned *row[6];
        if (t->p.pad_mode == CONV_PAD_ZEROS && t->p.x_type == CONV_NATIVE && w->step == 1 &&
            w->end - w->begin >= LANES) {
            const int64_t first = (w->first + w->begin) * io->x_stride_w;
            for (int i = 0; i < 6; i++)
                row[i] = r->rows[i] == NO_ROW ? t->zeros : (const real_unaligned *)io->x + channel + r->rows[i] + first;
            winograd_columns(row, w->end - w->begin, ahead, t->z + r->z + w->begin, pitch);
        } else {
            for (int i = 0; i < 6; i++) {
                real *dst = t->strip + i * pitch + r->z;
                gather_row(&t->p, io, r->rows[i] == NO_ROW ? NO_ROW : channel + r->rows[i], w, dst);
                row[i] = dst;
            }
            winograd_columns(row, ceil_div(w->count, LANES) * LANES, 0, t->z + r->z, pitch);
        }
    }
}

/* V of one channel, from z. */
static void winograd_input(const winograd_task *t, real *v) {
    for (int64_t i = 0; i < t->tiles; i += LANES)
        winograd_input_tiles(t->z, t->plan.row_pitch, t->at + i, v + i, t->plan.element);
}

/* Tiles side by side that are put in order together: 64 pixels of 4 rows are 16 KiB of L1. */
enum { OUTPUT_TILES = 16 };

/* LANES output channels from k on of the tiles [first, last) of a run, by way of sums[4][pixel][LANES]. y: where the
 * task's first output channel begins. */
static void winograd_output_run(const winograd_task *t, const conv_io *io, const winograd_span *r, int64_t first,
                                int64_t last, int64_t k, int64_t y, int64_t oc) {
    real sums[4 * 4 * OUTPUT_TILES * LANES] __attribute__((aligned(CONV_ALIGN)));
    const int64_t step_h = t->p.dilation_h * io->y_stride_h, step_w = t->p.dilation_w * io->y_stride_w;
    const int64_t skip = r->ow + 4 * first - tile_column(r, first); /* where the first of them is the last of its row */
    const int64_t column = tile_column(r, first) + skip, pixels = tile_column(r, last - 1) + 4 - column;
    const int64_t at = y + r->y + k * io->y_stride_c + column * step_w, pitch = 4 * OUTPUT_TILES;
    const real *m = t->m + (r->first + first) * t->plan.m_pitch + k / WINOGRAD_NR * ELEMENTS * WINOGRAD_NR;
    for (int64_t i = first; i < last; i++, m += t->plan.m_pitch) {
        /* Four tiles fill a cache line of floats: while they do, one of each of the four rows. */
        const int64_t line = at + (i & 3) * step_h + ((i - first) & ~3) * 4 * step_w;
        for (int c = 0; c < LANES; c++) __builtin_prefetch((real *)io->y + line + c * io->y_stride_c, 1);
        winograd_output_tile(m + k % WINOGRAD_NR, r->ow + 4 * i - tile_column(r, i),
                             sums + (tile_column(r, i) - column) * LANES, pitch);
    }
    for (int64_t i = r->skip_rows; i < 4; i++) {
        const totals_run run = {sums + i * pitch * LANES, LANES, pixels, min_i64(oc - k, LANES), t->bias + k,
                                at + i * step_h,          step_w};
        if (oc > k) store_totals(&t->p, io, &run);
    }
}

/* y: where the first of the task's oc output channels begins. */
static void winograd_output(const winograd_task *t, const conv_io *io, int64_t y, int64_t oc) {
    for (const winograd_span *r = t->run; r < t->run + t->runs; r++) {
        const int64_t parts = ceil_div(r->count, OUTPUT_TILES);
        for (int64_t k = 0; k < t->panels * WINOGRAD_NR; k += LANES)
            for (int64_t i = 0; i < parts; i++)
                winograd_output_run(t, io, r, r->count * i / parts, r->count * (i + 1) / parts, k, y, oc);
    }
}

static size_t winograd_scratch_bytes(const conv_problem *p) {
    const winograd_plan g = winograd_plan_of(p);
    const int64_t reals = 13 * g.row_pitch + ELEMENTS * g.element + g.block * g.m_pitch + g.task_panels * WINOGRAD_NR;
    return (size_t)reals * sizeof(real) + (size_t)g.block * sizeof(winograd_span) + (size_t)g.pitch * sizeof(int32_t);
}

static size_t winograd_tasks(const conv_problem *p) {
    const winograd_plan g = winograd_plan_of(p);
    return (size_t)(p->groups * g.panel_blocks * g.blocks);
}

static void winograd_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    winograd_task t = {.plan = winograd_plan_of(p), .p = *p, .m = scratch};
    const winograd_plan *g = &t.plan;
    const int64_t block = (int64_t)task % g->blocks, rest = (int64_t)task / g->blocks, group = rest / g->panel_blocks;
    t.p.stride_w = p->dilation_w;
    t.panel = rest % g->panel_blocks * g->task_panels;
    t.panels = min_i64(g->task_panels, g->panels - t.panel);
    t.tiles = min_i64(g->block, g->tiles - block * g->block);
    t.v = t.m + g->block * g->m_pitch;
    t.bias = t.v + ELEMENTS * g->element;
    t.zeros = t.bias + g->task_panels * WINOGRAD_NR;
    t.strip = t.zeros + g->row_pitch;
    t.z = t.strip + 6 * g->row_pitch;
    t.run = (winograd_span *)(t.z + 6 * g->row_pitch);
    t.at = (int32_t *)(t.run + g->block);
    memset(t.bias, 0, (size_t)(g->task_panels * WINOGRAD_NR + 13 * g->row_pitch) * sizeof(real));
    winograd_split(&t, io, block * g->block);
    const int64_t k = t.panel * WINOGRAD_NR, oc = min_i64(t.panels * WINOGRAD_NR, p->oc - k);
    if (io->bias) memcpy(t.bias, (const real *)io->bias + group * p->oc + k, (size_t)oc * sizeof(real));
    const int64_t x = group * p->ic * io->x_stride_c;
    const real *u = (const real *)io->packed + group * ELEMENTS * g->panels * WINOGRAD_NR * p->ic;
    const winograd_sums sums = {ELEMENTS, t.tiles,  t.panel,    t.panels,   g->panels, g->chain,
                                g->apart, g->pitch, g->element, g->m_pitch, t.v,       t.m};
    for (int64_t c0 = 0; c0 < p->ic; c0 += g->depth) {
        const int64_t depth = min_i64(g->depth, p->ic - c0);
        for (int64_t c = c0; c < c0 + depth; c++) {
            /* Channels lie apart in memory: two ahead is what latency asks for. */
            winograd_rows(&t, io, x + c * io->x_stride_c, min_i64(p->ic - 1 - c, 2) * io->x_stride_c);
            winograd_input(&t, t.v + (c - c0) * g->pitch);
        }
        winograd_multiply(&sums, u + c0 * ELEMENTS * g->panels * WINOGRAD_NR, depth, c0 > 0);
    }
    winograd_output(&t, io, (group * p->oc + k) * io->y_stride_c, oc);
}

static conv_facts winograd_facts(const conv_problem *p) {
    const winograd_plan g = winograd_plan_of(p);
    const int64_t oc = g.panels * WINOGRAD_NR;
    const double tiles = (double)(p->groups * g.tiles);
    return (conv_facts){
        .tile_pixels = min_i64(WINOGRAD_R, g.block),
        .tile_channels = WINOGRAD_NR,
        .groups = 1,
        .channels = min_i64(g.task_panels * WINOGRAD_NR, p->oc),
        .depth = 1,
        .rows = 4, /* tiles are numbered through all images */
        .cols = 4 * g.block,
        .terms = g.depth * 9,
        .operations = tiles * (double)(2 * ELEMENTS * p->ic * oc + 120 * p->ic * g.panel_blocks + 136 * oc),
    };
}

ALGORITHM(winograd);
