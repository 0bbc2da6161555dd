/* The contract between the layers: one problem, one set of buffers, one table of algorithms.
 *
 *     y[n, g*oc + m, p] = activation(residual[n, g*oc + m, p] + bias[g*oc + m] + sum over (c, kd, kh, kw) of
 *                         w[g*oc + m, c, kd, kh, kw] * x[n, g*ic + c, p * stride - pad + k * dilation])
 *
 * Everything above this header (Python) speaks of arrays, strings and tuples; everything below sees a
 * checked conv_problem and plain pointers. 1-D and 2-D convolutions are 3-D ones with extents of 1.
 * The Python class ConvProblem has the same fields under the same names. */
#ifndef CONV_H
#define CONV_H

#include <stddef.h>
#include <stdint.h>

/* Where an index outside the input comes from; CONV_PAD_CONSTANT: it is pad_value. */
enum { CONV_PAD_ZEROS, CONV_PAD_REFLECT, CONV_PAD_REPLICATE, CONV_PAD_CIRCULAR, CONV_PAD_CONSTANT };

/* How the elements of x and y are stored: in the format that the row computes in, or in a narrower one that is widened
 * when x is copied and rounded once (integers: wrapped) when y is stored. Weights and bias are always native. */
enum { CONV_NATIVE, CONV_F16, CONV_BF16, CONV_I8, CONV_U8, CONV_I16, CONV_U16 };

/* activation(s), a and b being activation_a and activation_b. */
enum {
    CONV_IDENTITY,
    CONV_CLAMP,      /* min(max(s, a), b); relu: a = 0, b = infinity; a NaN stays one */
    CONV_LEAKY_RELU, /* s < 0 ? a s : s */
    CONV_HARDSWISH,  /* s min(max(s + 3, 0), 6) / 6 */
    CONV_SIGMOID,    /* 1 / (1 + exp(-s)) */
    CONV_SILU,       /* s sigmoid(s) */
    CONV_TANH,
    CONV_GELU,     /* s (1 + erf(s / sqrt(2))) / 2 */
    CONV_GELU_TANH /* s (1 + tanh(sqrt(2 / pi) (s + 0.044715 s^3))) / 2 */
};

typedef struct conv_problem {
    int64_t n, groups;
    int64_t ic, oc; /* channels of one group */
    int64_t in_d, in_h, in_w;
    int64_t out_d, out_h, out_w;
    int64_t kernel_d, kernel_h, kernel_w;
    int64_t stride_d, stride_h, stride_w;
    int64_t dilation_d, dilation_h, dilation_w;
    int64_t pad_d, pad_h, pad_w; /* before the first element; what is after follows from out_* */
    double pad_value;
    double activation_a, activation_b;
    int32_t pad_mode;       /* CONV_PAD_* */
    int32_t activation;     /* CONV_IDENTITY ... */
    int32_t x_type, y_type; /* CONV_NATIVE ... */
    int32_t exact;          /* 1: subnormals are kept and no algorithm may trade accuracy for speed */
    int32_t raw;            /* 1: the weights are packed for this one call, which `accepts` may count */
} conv_problem;

/* Strides count elements and may be zero or negative (not zero in y). x need not be aligned; packed, y, residual are.
 */
typedef struct conv_io {
    const void *x;
    int64_t x_stride_n, x_stride_c, x_stride_d, x_stride_h, x_stride_w;
    void *y;
    int64_t y_stride_n, y_stride_c, y_stride_d, y_stride_h, y_stride_w;
    const void *packed; /* the weights as conv_algo.pack left them */
    const void *bias;   /* groups * oc values, or NULL */
    /* What is added before the activation, or NULL: elements of y's type with y's strides. May be y itself: every
     * element is read before it is written, and written once. */
    const void *residual;
} conv_io;

/* What a row does with a problem, in numbers for people (pyconv.explain). */
typedef struct conv_facts {
    int64_t tile_pixels, tile_channels;          /* outputs of the register tile */
    int64_t groups, channels, depth, rows, cols; /* outputs of the largest task; channels: of one group */
    int64_t terms;                               /* of every sum, for which scratch holds the input at a time */
    double operations; /* multiplications and additions of the whole; those of transforms and unused lanes count */
} conv_facts;

/* An algorithm is a row. Its functions are pure: what they return depends on their arguments and on the
 * cache sizes alone, so the same problem always gets the same bits, whatever the batch or the threads. */
typedef struct conv_algo {
    const char *name;
    int (*accepts)(const conv_problem *); /* can do it and is worth it; never looks at n */
    size_t (*packed_bytes)(const conv_problem *);
    size_t (*pack_tasks)(const conv_problem *);
    void (*pack)(const conv_problem *, const void *w, void *packed, size_t task);
    size_t (*scratch_bytes)(const conv_problem *); /* of one thread */
    size_t (*tasks)(const conv_problem *);         /* independent: each owns its block of y, no barrier */
    void (*run)(const conv_problem *, const conv_io *, size_t task, void *scratch);
    conv_facts (*facts)(const conv_problem *);
} conv_algo;

/* What one instruction set offers for one number format: the algorithms in order of preference. */
typedef struct conv_table {
    const char *isa;
    const char *dtype;
    int vector_bytes;
    const conv_algo *const *algos;
    size_t count;
    double (*fma_burn)(int64_t rounds); /* operations done by a loop of multiply-adds on registers alone */
} conv_table;

/* The rows that this CPU and operating system can run, best first; NULL after the last. dtype: "f32", "f64", "i32",
 * "i64". */
const conv_table *conv_table_at(size_t index, const char *dtype);

/* The names of all rows that were compiled, best first; NULL after the last. */
const char *conv_isa_compiled(size_t index);

/* Entering and leaving a parallel region costs 2 to 5 us on the machines measured (2-core Zen 3, libgomp), about what
 * 2**18 multiply-adds take on one core: below twice that a second thread cannot win, nor is a plan cut up for it. */
#define CONV_SERIAL_BELOW_MACS ((int64_t)1 << 19)

/* run.c: what surrounds every task. */
#define CONV_ALIGN 64 /* a cache line, and the widest vector */

void conv_run_task(const conv_algo *, const conv_problem *, const conv_io *, size_t task, void *scratch);
void *conv_memory_new(size_t bytes); /* for packed weights: aligned to CONV_ALIGN; NULL when there is no memory */
void conv_memory_free(void *block);
void *conv_scratch_take(size_t bytes); /* aligned to CONV_ALIGN; NULL when there is no memory */
void conv_scratch_give(void *scratch);
int conv_watch_forks(void);             /* once, at import; nonzero: this system cannot tell */
int conv_in_forked_child(void);         /* OpenMP's threads did not survive the fork: compute serially */
int conv_startable_threads(int wanted); /* the caller counts: 1 to wanted */

#endif
