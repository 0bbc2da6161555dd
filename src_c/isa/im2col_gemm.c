/* im2col + blocked GEMM: accepts every problem, and is what the other algorithms are measured against.
 *
 *     Y[oc, pixels] = W[oc, depth] * im2col(x)[depth, pixels] + bias,  depth = (ic, kernel_d, kernel_h, kernel_w)
 *
 * for each task (image, block of groups, pixels, channels):     one thread
 *   for each group, for each depth block of KC:                 columns [KC][NC] gathered from x: L2
 *     for each block of MC output channels, then each panel of NR = TILE_V vectors of pixels:     columns [KC][NR]: L1
 *       for each panel of MR = TILE_M output channels of the block:                            weights [KC][MR]: L2
 *         for each depth: MR x NR accumulators in registers     then y += accumulators, bias at the last depth block
 *
 * Only one block of the im2col matrix exists at a time. Tails: output channels have a kernel for every MR, pixels go to
 * the narrowest number of vectors, and a partial vector's lanes through a tile in memory; the columns' padding is zero.
 * Every output is summed in the same order whatever its tile, so block sizes, threads and the batch don't change bits.
 * Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008; Chellapilla, Puri
 * and Simard, "High performance convolutional neural networks for document processing", 2006. */
#include "algorithm.h"
#include "epilogue.h"
#include "im2col_plan.h"

static int im2col_gemm_accepts(const conv_problem *p) {
    (void)p;
    return 1;
}

static size_t im2col_gemm_packed_bytes(const conv_problem *p) {
    return (size_t)(p->groups * p->oc * p->ic * p->kernel_d * p->kernel_h * p->kernel_w) * sizeof(real);
}

/* Rows of TILE_M output channels: a pack task handles 16 panels of one group. */
enum { PANELS_PER_PACK = 16 };

static size_t im2col_gemm_pack_tasks(const conv_problem *p) {
    return (size_t)(p->groups * ceil_div(p->oc, PANELS_PER_PACK * TILE_M));
}

/* Packed: for each group, for each depth block, for each panel: [depth][rows of the panel]. The last panel is narrower,
 * so nothing is padded: block k0 of a group begins at k0 * oc, its panel of row m at m * (depth of the block). */
static void im2col_gemm_pack(const conv_problem *p, const void *w, void *packed, size_t task) {
    const int64_t depth = p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
    const int64_t chunks = ceil_div(p->oc, PANELS_PER_PACK * TILE_M);
    const int64_t group = (int64_t)task / chunks, m0 = (int64_t)task % chunks * PANELS_PER_PACK * TILE_M;
    const int64_t m1 = min_i64(m0 + PANELS_PER_PACK * TILE_M, p->oc);
    const real *src = (const real *)w + group * p->oc * depth;
    real *dst = (real *)packed + group * p->oc * depth;
    const int64_t chain = chain_terms(p);
    for (int64_t m = m0; m < m1; m += TILE_M) {
        const int64_t mr = min_i64(TILE_M, p->oc - m);
        for (int64_t k0 = 0; k0 < depth; k0 += chain) {
            const int64_t kc = min_i64(chain, depth - k0);
            real *panel = dst + k0 * p->oc + m * kc;
            for (int64_t i = 0; i < mr; i++)
                for (int64_t k = 0; k < kc; k++) panel[k * mr + i] = src[(m + i) * depth + k0 + k];
        }
    }
}

/* A filter of one tap over dense images is no im2col. Few output channels read x where it lies: a copy, which makes the
 * tiles read from a few pages instead of a page a channel, would take longer than it saves (Zen 5, 56 x 56 pixels, 96
 * to 24 channels: in place 0.78 of the time with AVX-512 and 0.85 with AVX2; 64 to 64: 0.9 and 0.95; 28 x 28, 128 to
 * 512: 1.04 and 0.99). At most 8 channels of a chain may share a set of L1, which are 4 KiB apart. */
static int columns_are_in_place(const conv_problem *p, const conv_io *io) {
    const int64_t apart = io->x_stride_c * (int64_t)sizeof(real), power = apart & -apart, way = 4096;
    const int64_t sharing = min_i64(chain_terms(p), p->ic) * (power > 0 ? min_i64(power, way) : way) / way;
    return input_is_dense(p, io) && p->x_type == CONV_NATIVE && p->oc <= 256 && sharing <= 8;
}

/* The block's pixels of every channel. */
static void copy_columns(const conv_problem *p, const conv_io *io, const gemm_plan *g, int64_t x, int64_t count,
                         int64_t kc, real *columns) {
    for (int64_t k = 0; k < kc; k++, x += io->x_stride_c, columns += g->pitch) {
        if (k + FETCHED < kc) fetch_run(p, io, x + FETCHED * io->x_stride_c, count);
        load_elements(p->x_type, io->x, x, 1, count, columns);
        for (int64_t i = count; i % NR; i++) columns[i] = 0;
    }
}

/* The same of a filter of one tap that has a stride or padding: what a run of pixels reads is found once for all
 * channels. */
static void gather_pixels(const conv_problem *p, const conv_io *io, const gemm_plan *g, int64_t x,
                          const pixel_run *runs, int64_t run_count, int64_t kc, real *columns) {
    int64_t filled = 0;
    for (const pixel_run *run = runs; run < runs + run_count; filled += run++->count) {
        int64_t row = input_row(p, io, x, run->od, run->oh, 0, 0);
        const row_window window = row_window_of(p, io, 0, run->ow, run->count);
        const int64_t inside = window.end - window.begin, step = row == NO_ROW ? 0 : io->x_stride_c;
        const int64_t first = window.first + window.begin * p->stride_w + FETCHED * io->x_stride_c;
        for (int64_t k = 0; k < kc; k++, row += step) {
            if (k + FETCHED < kc && step && inside > 0 && io->x_stride_w == 1)
                fetch_run(p, io, row + first, (inside - 1) * window.step + 1);
            gather_row(p, io, row, &window, columns + k * g->pitch + filled);
        }
    }
    for (int64_t k = 0; k < kc; k++)
        for (int64_t i = filled; i % NR; i++) columns[k * g->pitch + i] = 0;
}

/* columns[k - k0][...] for the depths [k0, k0 + kc); what is beyond the last pixel is zero. */
static void gather_columns(const conv_problem *p, const conv_io *io, const gemm_plan *g, int64_t group,
                           const pixel_run *runs, int64_t run_count, int64_t k0, int64_t kc, real *columns) {
    int64_t c = k0 / g->plane, tap = k0 % g->plane;
    int64_t kd = tap / (p->kernel_h * p->kernel_w), kh = tap / p->kernel_w % p->kernel_h, kw = tap % p->kernel_w;
    for (int64_t k = 0, channels; k < kc; k += channels, columns += channels * g->pitch) {
        const int64_t channel = group + c * io->x_stride_c;
        channels = g->plane == 1 ? channels_at_once(io, kc - k) : 1;
        int64_t filled = 0;
        for (int64_t r = 0; r < run_count; r++) {
            const pixel_run *run = &runs[r];
            const int64_t row = input_row(p, io, channel, run->od, run->oh, kd, kh);
            const row_window window = row_window_of(p, io, kw * p->dilation_w, run->ow, run->count);
            gather_channels(p, io, channels, row, &window, columns + filled, g->pitch);
            filled += run->count;
        }
        for (; filled % NR; filled++)
            for (int64_t i = 0; i < channels; i++) columns[i * g->pitch + filled] = 0;
        if (++kw == p->kernel_w) {
            kw = 0;
            if (++kh == p->kernel_h) {
                kh = 0;
                if (++kd == p->kernel_d) kd = 0, c += channels;
            }
        }
    }
}

typedef struct gemm_output {
    real *c;
    int64_t ldc;
    int add;          /* not the first depth block: y holds the sum so far */
    const real *bias; /* of the tile's first row at the last depth block, else NULL */
} gemm_output;

/* c[mr][nv vectors] = (add ? c : 0) + weights * columns + bias, ldc apart. The one inner loop of this file. It fetches
 * the panel after the next: from memory, where columns are x, it takes longer than one (Zen 5, 16 images of 56 x 56, 64
 * to 64 channels: 1.1 of the time of copied columns with one panel, 0.8 with two). */
INLINE void gemm_tile(const int mr, const int nv, int64_t kc, const real *weights, const real *columns, int64_t pitch,
                      gemm_output out) {
    vec acc[TILE_M][TILE_V];
    UNROLL
    for (int i = 0; i < mr; i++) {
        UNROLL
        for (int j = 0; j < nv; j++) acc[i][j] = vec_zero();
    }
    for (int64_t k = 0; k < kc; k++, weights += mr, columns += pitch) {
        vec b[TILE_V];
        UNROLL
        for (int j = 0; j < nv; j++) b[j] = vec_load(columns + j * LANES);
        for (int j = 0; j < TILE_V; j++) __builtin_prefetch(columns + 2 * NR + j * LANES);
        UNROLL
        for (int i = 0; i < mr; i++) {
            const vec a = vec_splat(weights[i]);
            UNROLL
            for (int j = 0; j < nv; j++) acc[i][j] += a * b[j];
        }
    }
    UNROLL
    for (int i = 0; i < mr; i++) {
        UNROLL
        for (int j = 0; j < nv; j++) {
            vec sum = acc[i][j];
            real *c = out.c + i * out.ldc + j * LANES;
            if (out.add) sum = vec_load(c) + sum;
            if (out.bias) sum += vec_splat(out.bias[i]);
            vec_store(c, sum);
        }
    }
}

#define TILE_ROWS(m) \
    case m: \
        if (m <= TILE_M) gemm_tile(m <= TILE_M ? m : 1, nv, kc, weights, columns, pitch, out); \
        break;

INLINE void gemm_tile_of_rows(int64_t mr, const int nv, int64_t kc, const real *weights, const real *columns,
                              int64_t pitch, gemm_output out) {
    switch (mr) {
        TILE_ROWS(1)
        TILE_ROWS(2)
        TILE_ROWS(3)
        TILE_ROWS(4)
        TILE_ROWS(5)
        TILE_ROWS(6)
        TILE_ROWS(7)
        TILE_ROWS(8)
        TILE_ROWS(9)
        TILE_ROWS(10)
        TILE_ROWS(11)
        TILE_ROWS(12)
        TILE_ROWS(13)
        TILE_ROWS(14)
    }
}

/* nv: the fewest vectors that hold the tile's pixels. */
static void gemm_tile_any(int64_t mr, int64_t pixels, int64_t kc, const real *weights, const real *columns,
                          int64_t pitch, gemm_output out) {
    if (pixels <= LANES)
        gemm_tile_of_rows(mr, 1, kc, weights, columns, pitch, out);
    else if (pixels <= 2 * LANES)
        gemm_tile_of_rows(mr, 2, kc, weights, columns, pitch, out);
    else
        gemm_tile_of_rows(mr, TILE_V, kc, weights, columns, pitch, out);
}

/* What one block of the GEMM multiplies, and where its pixels go. */
typedef struct gemm_block {
    int64_t kc, pixels, pitch;
    const real *columns;
    const real *tail; /* columns of the last panel, if it is not whole */
    int64_t tail_pitch;
    const int64_t *offsets; /* of the pixels in y, or NULL where they are consecutive */
} gemm_block;

/* A tile whose pixels are not consecutive in y, or too few for its vectors, is computed in memory and added one by one,
 * in the same order: (y + sum) + bias. */
static void gemm_tile_scattered(int64_t mr, int64_t pixels, const gemm_block *b, const real *columns, int64_t pitch,
                                const real *weights, int64_t first, gemm_output out) {
    real tile[TILE_M * NR] __attribute__((aligned(CONV_ALIGN)));
    const gemm_output in_memory = {tile, NR, 0, NULL};
    gemm_tile_any(mr, pixels, b->kc, weights, columns, pitch, in_memory);
    for (int64_t i = 0; i < mr; i++)
        for (int64_t j = 0; j < pixels; j++) {
            real *y = out.c + i * out.ldc + (b->offsets ? b->offsets[first + j] : first + j);
            real sum = tile[i * NR + j];
            if (out.add) sum = *y + sum;
            *y = out.bias ? sum + out.bias[i] : sum;
        }
}

/* One depth block: every panel of pixels times the panels of output channels [m0, m1). */
static void gemm_block_run(const gemm_block *b, int64_t m0, int64_t m1, const real *weights, gemm_output out) {
    for (int64_t first = 0; first < b->pixels; first += NR) {
        const int64_t pixels = min_i64(NR, b->pixels - first), pitch = pixels == NR ? b->pitch : b->tail_pitch;
        const real *const columns = pixels == NR ? b->columns + first : b->tail;
        const int whole = b->offsets == NULL && pixels % LANES == 0;
        for (int64_t m = m0; m < m1; m += TILE_M) {
            const int64_t mr = min_i64(TILE_M, m1 - m);
            gemm_output tile = {out.c + m * out.ldc, out.ldc, out.add, out.bias ? out.bias + m : NULL};
            if (whole) {
                tile.c += first;
                gemm_tile_any(mr, pixels, b->kc, weights + m * b->kc, columns, pitch, tile);
            } else {
                gemm_tile_scattered(mr, pixels, b, columns, pitch, weights + m * b->kc, first, tile);
            }
        }
    }
}

/* The offsets of the runs' pixels in y, from the first pixel of an image. */
static void pixel_offsets(const conv_io *io, const pixel_run *runs, int64_t run_count, int64_t *offsets) {
    for (int64_t r = 0; r < run_count; r++)
        for (int64_t i = 0; i < runs[r].count; i++)
            *offsets++ = runs[r].od * io->y_stride_d + runs[r].oh * io->y_stride_h + (runs[r].ow + i) * io->y_stride_w;
}

/* Channels last: y cannot hold the sums as the tiles store them. */
static int channels_are_neighbours(const conv_problem *p, const conv_io *io) {
    return io->y_stride_c == 1 && !output_is_dense(p, io);
}

/* LANES channels, neighbours in y, of a run of pixels: transposed, so that each pixel's are stored at once. The last
 * vector of sums may be another run's or what lies behind them. */
static void finish_channels(const conv_problem *p, const conv_io *io, const real *sums, int64_t pitch, int64_t count,
                            int64_t y) {
    for (int64_t i = 0; i < count; i += LANES) {
        vec rows[LANES];
        UNROLL
        for (int c = 0; c < LANES; c++) rows[c] = vec_load(sums + c * pitch + i);
        vec_transpose(rows);
        for (int64_t j = 0; j < min_i64(LANES, count - i); j++) {
            const int64_t at = y + (i + j) * io->y_stride_w;
            store_vector(p->y_type, io->y, at, finish_vector(p, io, rows[j], at));
        }
    }
}

/* The sums of output channels m0 to m1 of a group, for each run of pixels, to y. */
static void finish_block(const conv_problem *p, const conv_io *io, const gemm_plan *g, const pixel_run *runs,
                         int64_t run_count, int64_t m0, int64_t m1, int64_t y, real *sums) {
    for (int64_t m = m0, channels; m < m1; m += channels, sums += channels * g->pitch) {
        int64_t done = 0;
        channels = channels_are_neighbours(p, io) && m1 - m >= LANES ? LANES : 1;
        for (int64_t r = 0; r < run_count; done += runs[r++].count) {
            const int64_t at = y + m * io->y_stride_c + runs[r].od * io->y_stride_d + runs[r].oh * io->y_stride_h +
                               runs[r].ow * io->y_stride_w;
            if (channels > 1)
                finish_channels(p, io, sums + done, g->pitch, runs[r].count, at);
            else
                finish_run(p, io, sums + done, runs[r].count, at, io->y_stride_w);
        }
    }
}

static size_t im2col_gemm_scratch_bytes(const conv_problem *p) {
    const gemm_plan g = gemm_plan_of(p);
    return (size_t)((KC + g.oc_block) * g.pitch) * sizeof(real) + (size_t)g.nc * (sizeof(pixel_run) + sizeof(int64_t));
}

static size_t im2col_gemm_tasks(const conv_problem *p) {
    const gemm_plan g = gemm_plan_of(p);
    return (size_t)(p->n * g.group_blocks * g.pixel_blocks * g.oc_blocks);
}

/* What a task works on. */
typedef struct gemm_task {
    const conv_problem *p;
    const conv_io *io;
    gemm_plan g;
    int64_t first, last; /* pixels */
    int64_t m0, m1;      /* output channels */
    int plain;           /* y holds the sums while they grow */
    int consecutive;     /* pixels are neighbours where the sums are kept */
    real *columns, *sums;
    pixel_run *runs;
    int64_t run_count, *offsets;
} gemm_task;

/* One group. x, y: where its first channel begins. */
static void gemm_group_run(const gemm_task *t, int64_t x, int64_t y, const real *weights, const real *bias) {
    const conv_problem *p = t->p;
    const gemm_plan *g = &t->g;
    const int dense = g->plane == 1 && input_is_dense(p, t->io);
    const int in_place = dense && columns_are_in_place(p, t->io);
    real *c = t->plain ? (real *)t->io->y + y + (t->consecutive ? t->first : 0) : t->sums - t->m0 * g->pitch;
    int64_t k0 = 0;
    do { /* once even where there are no input channels: y is the bias then */
        const int64_t kc = min_i64(chain_terms(p), g->depth - k0);
        const int64_t pixels = t->last - t->first, from = x + k0 * t->io->x_stride_c + t->first;
        const int64_t whole = pixels / NR * NR, copied = in_place ? whole : 0; /* the first pixel that is */
        real *const tail = t->columns + whole;
        gemm_block block = {kc, pixels, g->pitch, t->columns, tail, g->pitch, t->consecutive ? NULL : t->offsets};
        const gemm_output out = {c, t->plain ? t->io->y_stride_c : g->pitch, k0 > 0, k0 + kc == g->depth ? bias : NULL};
        if (in_place) {
            block.columns = (const real *)t->io->x + from;
            block.pitch = t->io->x_stride_c;
        }
        if (dense)
            copy_columns(p, t->io, g, from + copied, pixels - copied, kc, t->columns + copied);
        else if (g->plane == 1 && channels_at_once(t->io, kc) == 1)
            gather_pixels(p, t->io, g, x + k0 * t->io->x_stride_c, t->runs, t->run_count, kc, t->columns);
        else
            gather_columns(p, t->io, g, x, t->runs, t->run_count, k0, kc, t->columns);
        for (int64_t m = t->m0; m < t->m1; m += MC)
            gemm_block_run(&block, m, min_i64(m + MC, t->m1), weights + k0 * p->oc, out);
        k0 += kc;
    } while (k0 < g->depth);
    if (!t->plain) finish_block(p, t->io, g, t->runs, t->run_count, t->m0, t->m1, y, t->sums);
}

static void im2col_gemm_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    gemm_task t = {.p = p, .io = io, .g = gemm_plan_of(p), .columns = scratch};
    const gemm_plan *g = &t.g;
    int64_t rest = (int64_t)task;
    t.m0 = rest % g->oc_blocks * g->oc_block, rest /= g->oc_blocks;
    t.first = rest % g->pixel_blocks * g->nc, rest /= g->pixel_blocks;
    const int64_t first_group = rest % g->group_blocks * g->groups_per_task, n = rest / g->group_blocks;
    t.m1 = min_i64(t.m0 + g->oc_block, p->oc);
    t.last = min_i64(t.first + g->nc, g->pixels);
    t.sums = t.columns + KC * g->pitch;
    t.runs = (pixel_run *)(t.sums + g->oc_block * g->pitch);
    t.offsets = (int64_t *)(t.runs + g->nc);
    t.run_count = split_rows(p, t.first, t.last, t.runs);
    t.plain = output_is_plain(p, io) && !channels_are_neighbours(p, io);
    t.consecutive = !t.plain || output_is_dense(p, io);
    if (!t.consecutive) pixel_offsets(io, t.runs, t.run_count, t.offsets);
    for (int64_t group = first_group; group < min_i64(first_group + g->groups_per_task, p->groups); group++)
        gemm_group_run(&t, n * io->x_stride_n + group * p->ic * io->x_stride_c,
                       n * io->y_stride_n + group * p->oc * io->y_stride_c,
                       (const real *)io->packed + group * p->oc * g->depth,
                       io->bias ? (const real *)io->bias + group * p->oc : NULL);
}

static conv_facts im2col_gemm_facts(const conv_problem *p) {
    const gemm_plan g = gemm_plan_of(p);
    const double pixels = (double)(p->n * p->groups) * (double)(ceil_div(g.pixels, LANES) * LANES);
    return (conv_facts){
        .tile_pixels = min_i64(NR, ceil_div(g.pixels, LANES) * LANES),
        .tile_channels = min_i64(TILE_M, p->oc),
        .groups = g.groups_per_task,
        .channels = min_i64(g.oc_block, p->oc),
        .depth = 1,
        .rows = 1, /* pixels are numbered through the image */
        .cols = min_i64(g.nc, g.pixels),
        .terms = min_i64(chain_terms(p), g.depth),
        .operations = 2 * pixels * (double)(p->oc * g.depth),
    };
}

ALGORITHM(im2col_gemm);
