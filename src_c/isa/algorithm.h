/* An algorithm's row of the table: ALGORITHM(name) at the end of name.c, and name in ALGORITHMS at its place. */
#ifndef ALGORITHM_H
#define ALGORITHM_H

#include "../conv.h"
#include "simd.h"

#define ALGORITHM_OF_ROW(name) CONV_JOIN(name, CONV_ISA, CONV_DTYPE)
#define ALGORITHM(name) \
    extern const conv_algo ALGORITHM_OF_ROW(name); \
    const conv_algo ALGORITHM_OF_ROW(name) = { \
        #name,        name##_accepts, name##_packed_bytes, name##_pack_tasks, name##_pack, name##_scratch_bytes, \
        name##_tasks, name##_run,     name##_facts}

/* In order of preference. Integers have the one that takes everything, for the others' compile time (setup.py). */
#if REAL_IS_INTEGER
#define ALGORITHMS(row) row(im2col_gemm)
#else
#define ALGORITHMS(row) row(depthwise) row(winograd) row(winograd_1d) row(direct) row(im2col_gemm)
#endif

#endif
