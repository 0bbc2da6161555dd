/* Direct convolution, output channels in lanes: dense layers, without im2col.
 *
 *     T[pixel][channel] += sum over a chain of terms of strip[offset[k] + pixel] * packed[k][channel]
 *
 * for each task (image, group, block of output rows and columns, block of output channels):          one thread
 *   for each block of input channels: fill the strip, and the totals T stay in scratch               both in L2
 *     for each panel of V vectors of output channels, for each chain of terms:                       weights: L1
 *       for each tile of S neighbouring pixels: S x V accumulators, pixels broadcast from the strip  strip: L1, L2
 *   T is transposed into y, bias added                                     (pixels in lanes: direct_pixels.h)
 *
 * Stride, dilation and padding are offsets into the strip (strip.h). A filter of one tap has no rows to respect: its
 * pixels are numbered through the image. Tails: S divides a row as evenly as it can, so no pixel is computed in vain;
 * the last panel has the vectors it needs, their unused lanes multiply zeros, unless pixels in lanes are cheaper. Every
 * output is one sum per chain, from zero, added in order: block sizes, threads and the batch don't change bits.
 * Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018. */
#include "algorithm.h"
#include "direct_pack.h"
#include "epilogue.h"

/* A strip of bounded size: hostile dilations leave im2col_gemm. So do one-tap filters of little depth over many pixels,
 * whose pixels are better copied in the order that they are read in (Zen 3, 56 x 56, 64 to 256 channels: 81 GFLOP/s to
 * im2col_gemm's 94; 256 to 64: 75 to 86), unless there are few output channels (128 to 2: 33 to 20). */
static int direct_accepts(const conv_problem *p) {
    const int64_t limit = 1 << 20, taps = p->kernel_d * p->kernel_h * p->kernel_w;
    if (p->oc == 0 || p->ic == 0) return 0;
    if (taps > 1 << 12 || p->dilation_h > limit || p->dilation_w > limit) return 0;
    if (p->stride_h > limit || p->stride_w > limit) return 0;
    if (taps == 1 && p->ic <= 256 && p->oc > PIXELS_MAX_R && p->out_d * p->out_h * p->out_w >= 8 * TILE_V * LANES)
        return 0;
    const direct_plan d = direct_plan_of(p);
    return direct_elements(&d, p->oc) * (int64_t)sizeof(real) <= 1 << 20;
}

static size_t direct_scratch_bytes(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)direct_elements(&d, p->oc) * sizeof(real) + 2 * CONV_ALIGN;
}

static size_t direct_tasks(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    return (size_t)(p->n * p->groups * (d.flat ? 1 : p->out_d) * d.row_blocks * d.col_blocks * d.oc_blocks);
}

/* The block's pixels of some channels (channels_at_once), a row at a time. Every second element of a short row: a whole
 * vector, of which the rows after it store over what is too much. */
static void fill_pixels(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                        int64_t x, int64_t channels, real *dst) {
    const int64_t end = b->ow + b->cols, first = b->ow / p->out_w;
    const int pairs = p->stride_w == 2 && p->x_type == CONV_NATIVE && channels == 1;
    int64_t ow = b->ow % p->out_w, oh = first % p->out_h, od = first / p->out_h, of = -1;
    row_window window = {0};
    for (int64_t pixel = b->ow, length; pixel < end; pixel += length, dst += length, ow = 0) {
        length = min_i64(p->out_w - ow, end - pixel);
        if (ow != 0 || length != of) window = row_window_of(p, io, 0, ow, length); /* takes two divisions */
        of = ow == 0 ? length : -1;
        const int64_t row = input_row(p, io, x, od, oh, 0, 0);
        const int inside = row != NO_ROW && window.begin == 0 && window.end == length;
        if (pairs && inside && length < LANES && pixel + LANES <= end &&
            window.first + 2 * LANES <= elements_left(p, io, oh * p->stride_h - p->pad_h))
            vec_store(dst, vec_load_evens((const real *)io->x + row + window.first));
        else
            gather_channels(p, io, channels, row, &window, dst, d->strip.channel_pitch);
        if (++oh == p->out_h) oh = 0, od++;
    }
}

/* The strip of a filter of one tap: the block's pixels one after the other, for each channel. */
static void direct_fill_flat(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                             int64_t x, int64_t count) {
    const int dense = input_is_dense(p, io);
    for (int64_t c = 0, channels; c < count; c += channels, x += channels * io->x_stride_c) {
        real *const dst = b->strip + c * d->strip.channel_pitch;
        channels = dense ? 1 : channels_at_once(io, count - c);
        if (dense)
            load_elements(p->x_type, io->x, x + b->ow, 1, b->cols, dst);
        else
            fill_pixels(p, io, d, b, x, channels, dst);
    }
}

/* Whether pixels in lanes are complete after one chain and stored in y, as neighbours. */
static int pixels_are_final(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b) {
    if (d->blocks > 1 || direct_chain(p, d->depth) < d->depth || !pixels_fit(b->cols, d->rest)) return 0;
    if (p->y_type != CONV_NATIVE || io->residual) return 0;
    if (p->activation != CONV_IDENTITY && p->activation != CONV_CLAMP) return 0;
    return d->flat ? output_is_dense(p, io) : io->y_stride_w == 1;
}

/* Whether a filter of one tap can read x as it lies: no strip. Pixels in lanes must all be there. Channels a multiple
 * of 512 bytes apart would share so few sets of L1 that a chain of them does not fit. Zen 3 reads 512 channels of 49
 * floats, no multiple of 16 bytes, at 61 GFLOP/s, those of 52 at 86 and the strip at 84; Golden Cove with AVX-512 reads
 * the former at 172 of 220. */
static int x_is_operand(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b) {
    const uintptr_t first = (uintptr_t)io->x, apart = (uintptr_t)io->x_stride_c * sizeof(real);
    if (p->x_type != CONV_NATIVE || !input_is_dense(p, io)) return 0;
    if (b->rest && b->cols % LANES && !pixels_are_final(p, io, d, b)) return 0;
    return first % sizeof(real) == 0 && apart % 512 != 0 && (VECTOR_BYTES == 64 || apart % 16 == 0);
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

/* y = activation(totals + bias + residual) for row r of one panel. */
static void direct_store(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                         int64_t m, int64_t r, const real *totals) {
    const int64_t pitch = d->vectors * LANES, channel = b->group * p->oc + m;
    const real *bias = io->bias ? (const real *)io->bias + channel : NULL;
    for (int64_t column = 0; column < b->cols;) {
        const direct_span s = direct_span_at(p, io, d, b, r, column);
        const totals_run run = {totals, pitch, s.count, min_i64(pitch, b->m1 - m), bias, s.y + channel * io->y_stride_c,
                                s.step};
        store_totals(p, io, &run);
        column += s.count;
        totals += s.count * pitch;
    }
}

/* The same where pixels are in lanes: LANES channels of them, as they lie in y where it has channels last. */
static void store_transposed(const conv_problem *p, const conv_io *io, const real *sums, int64_t pitch,
                             totals_run run) {
    real tile[LANES * LANES];
    vec block[LANES];
    const int64_t pixels = run.pixels;
    run.totals = tile;
    run.pitch = LANES;
    for (int64_t first = 0; first < pixels; first += LANES, run.y += LANES * run.step) {
        run.pixels = min_i64(LANES, pixels - first);
        for (int i = 0; i < LANES; i++) block[i] = i < run.channels ? vec_load(sums + i * pitch + first) : vec_zero();
        vec_transpose(block);
        for (int i = 0; i < LANES; i++) vec_store(tile + i * LANES, block[i]);
        store_totals(p, io, &run);
    }
}

static void direct_store_pixels(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b) {
    const int64_t row = pixels_pitch(b->cols), pitch = b->rows * row, step = io->y_stride_c == 1 ? LANES : 1;
    for (int64_t m = 0; m < b->rest; m += step) {
        const int64_t channel = b->group * p->oc + b->r0 + m;
        const real *bias = io->bias ? (const real *)io->bias + channel : NULL;
        for (int64_t r = 0; r < b->rows; r++)
            for (int64_t column = 0; column < b->cols;) {
                const direct_span s = direct_span_at(p, io, d, b, r, column);
                real *sums = b->rest_totals + m * pitch + r * row + column;
                const int64_t y = s.y + channel * io->y_stride_c;
                for (int64_t i = 0; step == 1 && bias && i < s.count; i++) sums[i] += *bias;
                if (step == 1)
                    finish_run(p, io, sums, s.count, y, s.step);
                else
                    store_transposed(p, io, sums, pitch,
                                     (totals_run){.pixels = s.count,
                                                  .channels = min_i64(step, b->rest - m),
                                                  .bias = bias,
                                                  .y = y,
                                                  .step = s.step});
                column += s.count;
            }
    }
}

/* to += strip * weights for all chains of a strip where pixels are in lanes, or y at once. */
static void direct_multiply_pixels(const conv_problem *p, const conv_io *io, const direct_plan *d,
                                   const direct_block *b, const real *weights, int64_t depth, int add) {
    const int64_t pitch = pixels_pitch(b->cols), channel = b->group * p->oc + b->r0, most = pixels_vectors(d->rest);
    const int64_t chain = direct_chain(p, depth);
    const int64_t reads = depth / p->kernel_w * min_i64(p->stride_w, p->kernel_w), tile = most * LANES;
    const int64_t piece = cpu_cache_sizes()->l1d / 2 / (int64_t)sizeof(real) / reads / tile;
    pixels_block block = {pixels_channels(d->rest), most, max_i64(piece, 4) * tile, b->rest, depth, b->cols};
    pixels_operands o = {.to = b->rest_totals, .channel = b->rows * pitch};
    int64_t to_row = pitch;
    o.finish = pixels_are_final(p, io, d, b);
    if (o.finish) {
        o.to = (real *)io->y + direct_span_at(p, io, d, b, 0, 0).y + channel * io->y_stride_c;
        o.channel = io->y_stride_c;
        o.bias = io->bias ? (const real *)io->bias + channel : NULL;
        o.clamped = p->activation == CONV_CLAMP;
        o.low = clamp_limit(p->activation_a);
        o.high = clamp_limit(p->activation_b);
        to_row = io->y_stride_h;
    }
    o.weights = weights + b->r0 * depth;
    o.offsets = b->offsets;
    tile_terms terms;
    real *const to = o.to;
    for (int64_t k0 = 0; k0 < depth; k0 += chain)
        for (int64_t r = 0; r < b->rows; r++) {
            const row_terms row = row_terms_of(p, depth / d->taps, b->od, b->oh + r);
            select_terms(p, &row, &b->classes.taps[0], (term_span){k0, min_i64(k0 + chain, depth)}, &terms);
            o.terms = &terms;
            o.add = add || k0 > 0;
            o.strip = b->strip + r * d->strip.row_step;
            o.to = to + r * to_row;
            pixels_row(&o, &block);
        }
}

/* A chain: terms of a strip. */
typedef struct direct_chain_of {
    term_span span;
    int add, only; /* to the totals so far; the sum is complete */
} direct_chain_of;

/* totals += strip * weights of one panel, for one chain; if that is all there is, a row goes to y while L1 holds it.
 * The weights that come next in memory are the next chain's or panel's: the first tiles fetch them into L2, a line for
 * every other term each, since they come from L3 or memory for layers of more than a few hundred channels, and the
 * first tile would wait for them.
 */
static void direct_panel(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                         int64_t m, int64_t depth, const direct_chain_of *chain, const real *weights, real *totals) {
    const int64_t vectors = min_i64(d->vectors, ceil_div(b->m1 - m, LANES)), width = vectors * LANES;
    const int64_t tiles = direct_tiles(b->cols, vectors), size = b->cols / tiles, larger = b->cols % tiles;
    const int64_t pitch = d->vectors * LANES;
    const int64_t next = (chain->span.last - chain->span.first) * width * (int64_t)sizeof(real);
    const uint8_t *const class_of = b->class_of[vectors < d->vectors];
    tile_terms terms;
    direct_operands o = {&terms, b->offsets, NULL, weights, totals, pitch, chain->add, 0};
    const int64_t lines = 2 * width * (int64_t)sizeof(real) / CONV_ALIGN, all = b->rows * tiles;
    int64_t line = 0, due = 0;
    for (int64_t r = 0; r < b->rows; r++) {
        real *const first = o.totals;
        const row_terms row = row_terms_of(p, depth / d->taps, b->od, b->oh + r);
        int64_t selected = -1;
        o.strip = b->strip + r * d->strip.row_step;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t s = size + (tile < larger), class = d->flat ? 0 : class_of[tile];
            if (class != selected) select_terms(p, &row, &b->classes.taps[class], chain->span, &terms);
            selected = class;
            due += lines;
            o.fetch = due >= all ? next + line++ * CONV_ALIGN : 0;
            due -= due >= all ? all : 0;
            direct_tile_of(s, vectors, &o);
            o.strip += s;
            o.totals += s * pitch;
        }
        if (chain->only) {
            direct_store(p, io, d, b, m, r, first);
            o.totals = first;
        }
    }
}

/* totals += strip * weights for all panels and chains of a block of input channels, the last one or not. weights: where
 * those of its channels begin. */
static void direct_multiply(const conv_problem *p, const conv_io *io, const direct_plan *d, const direct_block *b,
                            const real *weights, int64_t depth, int add, int last) {
    const int64_t panel = d->vectors * LANES, terms = direct_chain(p, depth), pixels = b->rows * b->cols;
    for (int64_t m = b->m0; m < b->m1; m += panel) {
        real *const totals = b->totals + (m - b->m0) * pixels;
        for (int64_t k0 = 0; k0 < depth; k0 += terms) {
            const direct_chain_of chain = {
                {k0, min_i64(k0 + terms, depth)}, add || k0 > 0, last && !add && terms >= depth};
            direct_panel(p, io, d, b, m, depth, &chain, weights + m * depth, totals);
        }
        for (int64_t r = 0; last && (add || terms < depth) && r < b->rows; r++)
            direct_store(p, io, d, b, m, r, totals + r * b->cols * panel);
    }
}

/* Where the terms of so many input channels begin in the strip. */
static void fill_offsets(const conv_problem *p, const strip_layout *s, int64_t channels, int64_t *offsets) {
    for (int64_t kw = 0; kw < p->kernel_w; kw++)
        for (int64_t kd = 0; kd < p->kernel_d; kd++)
            for (int64_t kh = 0; kh < p->kernel_h; kh++) {
                const int64_t tap = strip_offset(p, s, kd, kh, kw);
                for (int64_t c = 0; c < channels; c++) *offsets++ = c * s->channel_pitch + tap;
            }
}

static void direct_run(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    const direct_plan d = direct_plan_of(p);
    direct_block b;
    direct_block_of(p, &d, task, scratch, &b);
    const int64_t all = direct_packed_channels(p);
    const int64_t x = b.n * io->x_stride_n + b.group * p->ic * io->x_stride_c;
    const real *packed = (const real *)io->packed + b.group * d.depth * all;
    const int in_place = d.flat && x_is_operand(p, io, &d, &b);
    strip_layout layout = d.strip;
    if (in_place) layout.channel_pitch = io->x_stride_c;
    for (int64_t block = 0, filled = 0; block < d.blocks; block++) {
        const int64_t c0 = block * d.channels, count = min_i64(d.channels, p->ic - c0), depth = count * d.taps;
        if (filled != count) fill_offsets(p, &layout, filled = count, b.offsets);
        if (in_place)
            b.strip = (real *)io->x + x + c0 * io->x_stride_c + b.ow;
        else if (d.flat)
            direct_fill_flat(p, io, &d, &b, x + c0 * io->x_stride_c, count);
        else
            strip_fill(p, io, &d.strip, x + c0 * io->x_stride_c, count, b.od, b.oh, b.ow, b.strip);
        direct_multiply(p, io, &d, &b, packed + c0 * d.taps * all, depth, block > 0, block + 1 == d.blocks);
        if (b.rest) direct_multiply_pixels(p, io, &d, &b, packed + c0 * d.taps * all, depth, block > 0);
    }
    if (!pixels_are_final(p, io, &d, &b)) direct_store_pixels(p, io, &d, &b);
}

/* Products that a filter of one input and output channel is left with, of pixels as its tiles have them. */
static double direct_products(const conv_problem *p, const direct_plan *d) {
    double depth = 0, rows = 0, columns = 0;
    if (d->flat) return (double)direct_row(p, 1);
    for (int64_t od = 0; od < p->out_d; od++) depth += (double)tap_count(row_terms_of(p, 1, od, 0).kd);
    for (int64_t oh = 0; oh < p->out_h; oh++) rows += (double)tap_count(row_terms_of(p, 1, 0, oh).kh);
    for (int64_t ow = 0; ow < p->out_w; ow += d->strip.cols) {
        const int64_t cols = min_i64(d->strip.cols, p->out_w - ow), tiles = direct_tiles(cols, d->vectors);
        for (int64_t i = 0, at = 0, pixels; i < tiles; i++, at += pixels) {
            pixels = cols / tiles + (i < cols % tiles);
            const tile_taps t = tile_taps_of(p, ow + at, pixels, DIRECT_HAS_KINDS(pixels, d->vectors));
            const int64_t whole = t.bounds[BUT_LAST] - t.bounds[WHOLE], all = t.bounds[TERM_KINDS] - t.bounds[0];
            columns += (double)(d->rest == p->oc ? pixels * p->kernel_w : pixels * all - (all - whole));
        }
    }
    return depth * rows * columns;
}

static conv_facts direct_facts(const conv_problem *p) {
    const direct_plan d = direct_plan_of(p);
    const int64_t main = ceil_div(p->oc - d.rest, LANES) * LANES, row = direct_row(p, d.flat), cols = d.strip.cols;
    const int64_t vectors = ceil_div(cols, LANES), most = main ? direct_most_pixels(d.vectors) : pixels_vectors(d.rest);
    const double unused = (double)(ceil_div(row, LANES) * LANES) / (double)row; /* of whole vectors */
    const double channels = (double)(p->n * p->groups) * ((double)main + (double)d.rest * unused);
    return (conv_facts){
        .tile_pixels = main ? ceil_div(cols, ceil_div(cols, most)) : ceil_div(vectors, ceil_div(vectors, most)) * LANES,
        .tile_channels = main ? min_i64(d.vectors * LANES, main) : pixels_channels(d.rest),
        .groups = 1,
        .channels = min_i64(d.oc_block + (main ? d.rest : 0), p->oc),
        .depth = 1,
        .rows = d.strip.rows,
        .cols = cols,
        .terms = d.channels * d.taps,
        .operations = 2 * channels * (double)p->ic * direct_products(p, &d),
    };
}

ALGORITHM(direct);
