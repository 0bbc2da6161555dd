/* This row's algorithms in one const struct, in order of preference (algorithm.h). */
#include "algorithm.h"

#define DECLARE(name) extern const conv_algo ALGORITHM_OF_ROW(name);
#define ADDRESS(name) &ALGORITHM_OF_ROW(name),
ALGORITHMS(DECLARE)
static const conv_algo *const algorithms[] = {ALGORITHMS(ADDRESS)};

/* The peak of multiply-adds: 12 independent accumulators cover 4 cycles of latency on two ports. */
static double fma_burn(int64_t rounds) {
    enum { CHAINS = 12 };
    const double factor = REAL_IS_INTEGER ? 5 : 0.999, term = REAL_IS_INTEGER ? 3 : 0.001;
    vec acc[CHAINS], a = vec_splat((real)factor), b = vec_splat((real)term);
    for (int i = 0; i < CHAINS; i++) acc[i] = vec_splat((real)(i + 2)); /* 1 would be a fixed point, and folded */
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL
        for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * a + b;
    }
    volatile vec sink;
    for (int i = 0; i < CHAINS; i++) sink = acc[i];
    (void)sink;
    return 2.0 * CHAINS * LANES * (double)rounds;
}

extern const conv_table CONV_JOIN(conv_table, CONV_ISA, CONV_DTYPE);
const conv_table CONV_JOIN(conv_table, CONV_ISA, CONV_DTYPE) = {
    .isa = CONV_STRING(CONV_ISA),
    .dtype = CONV_STRING(CONV_DTYPE),
    .vector_bytes = VECTOR_BYTES,
    .algos = algorithms,
    .count = sizeof algorithms / sizeof algorithms[0],
    .fma_burn = fma_burn,
};
