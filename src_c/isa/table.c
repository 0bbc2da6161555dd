/* This row's algorithms in one const struct, in order of preference: the one translation unit that is compiled per row.
 * Adding an algorithm is one file and one word here. */
#include "depthwise.c"
#include "direct.c"
#include "im2col_gemm.c"
#include "winograd.c"

#define ALGORITHM(name) \
    {#name,       name##_accepts,       name##_packed_bytes, name##_pack_tasks, \
     name##_pack, name##_scratch_bytes, name##_tasks,        name##_run}

static const conv_algo algorithms[] = {
    ALGORITHM(depthwise),
    ALGORITHM(winograd),
    ALGORITHM(direct),
    ALGORITHM(im2col_gemm),
};

/* The FMA peak: 12 independent accumulators cover 4 cycles of latency on two ports, and fit 16 registers. */
static double fma_burn(int64_t rounds) {
    enum { CHAINS = 12 };
    vec acc[CHAINS], a = vec_splat((real)0.999), b = vec_splat((real)0.001);
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
