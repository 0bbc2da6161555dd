/* What im2col_gemm.c decides by a problem's shape: blocks of the GEMM that fit the caches, and tasks. */
#ifndef IM2COL_PLAN_H
#define IM2COL_PLAN_H

#include "../cpu.h"
#include "im2col.h"

/* Most depth of a block: one chain of terms (im2col.h). 128 x NR floats are 8 KiB (AVX2) or 16 KiB (AVX-512), a quarter
 * or a third of L1. */
#define KC 128
#define NR (TILE_V * LANES)
/* Weights [MC][KC], 96 KiB of floats with AVX2 and 112 KiB with AVX-512, stay in L2 while the panels of pixels pass. */
#define MC (TILE_M * (TILE_M > 8 ? 16 : 32))
#define LINE ((int64_t)(CONV_ALIGN / sizeof(real)))

typedef struct gemm_plan {
    int64_t depth, pixels, plane;    /* plane: kernel_d * kernel_h * kernel_w */
    int64_t nc, pitch, pixel_blocks; /* pixels of a block; distance of two rows of its columns */
    int64_t groups_per_task, group_blocks;
    int64_t oc_block, oc_blocks; /* output channels of a block, a multiple of TILE_M */
} gemm_plan;

static gemm_plan gemm_plan_of(const conv_problem *p) {
    gemm_plan g;
    g.plane = p->kernel_d * p->kernel_h * p->kernel_w;
    g.depth = p->ic * g.plane;
    g.pixels = p->out_d * p->out_h * p->out_w;
    /* The columns may take a quarter of L2 (KC x 256 floats of 512 KiB); at least two panels, so that a row copy is
     * longer than its overhead; four or more blocks where there are pixels for it, to have tasks for threads. */
    const int64_t room = cpu_cache_sizes()->l2 / 4 / (KC * (int64_t)sizeof(real)) / NR;
    const int64_t most = NR * min_i64(max_i64(room, 2), 16);
    const int64_t blocks = max_i64(ceil_div(g.pixels, most), min_i64(4, ceil_div(g.pixels, 2 * NR)));
    g.nc = ceil_div(ceil_div(g.pixels, blocks), NR) * NR;
    g.pixel_blocks = ceil_div(g.pixels, g.nc);
    /* An odd number of cache lines, or the rows of a panel would fall into a few sets of L1. */
    g.pitch = ceil_div(g.nc, LINE) * LINE;
    if (g.pitch / LINE % 2 == 0) g.pitch += LINE;
    /* Sums that y cannot hold (narrow, or added to) are kept beside it: 512 KiB of them at most. */
    const int64_t most_oc = max_i64((512 << 10) / (int64_t)sizeof(real) / g.pitch / TILE_M, 1) * TILE_M;
    g.oc_blocks = ceil_div(p->oc, most_oc);
    g.oc_block = ceil_div(ceil_div(p->oc, g.oc_blocks), TILE_M) * TILE_M;
    /* Depthwise: enough groups in a task that starting it (about 0.1 us) does not show: 2^15 multiply-adds are 1 us. */
    const int64_t work = max_i64(p->oc * g.depth, 1);
    g.groups_per_task = min_i64(max_i64((1 << 15) / min_i64(work * min_i64(g.nc, 1 << 15), 1 << 15), 1), p->groups);
    g.group_blocks = ceil_div(p->groups, g.groups_per_task);
    return g;
}

#endif
