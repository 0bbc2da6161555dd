/* The checker of the kernels: every row of the table against the formula of conv.h, without Python.
 *
 *     draw.c     a seed -> a problem, its layouts and its data: small, but beyond every edge
 *     formula.c  what y must hold, in integers
 *     memory.c   buffers that end, or begin, at a page that must not be touched; wrong accesses come back as errors
 *     state.c    the floating-point state, and whether the upper halves of the vector registers are clean
 *     plants.c   kernels with planted bugs, each of which must be found
 *     one.c      one problem through every algorithm
 *     scratch.c  scratch memory of problems of all sizes
 *     main.c     the walk over the table
 *     fuzz.c     the same from libFuzzer's bytes */
#ifndef CHECKER_H
#define CHECKER_H

#include <stdint.h>
#include <stdio.h>

#include "conv.h"

enum { AXES = 5 }; /* n, channels of all groups, d, h, w */

typedef struct layout {
    int64_t stride[AXES]; /* elements */
    int64_t first;        /* the element with all indices 0, from the lowest address */
    int64_t elements;     /* from the lowest address to the highest, gaps included */
} layout;

/* Storage of an element: a type of conv.h, native ones told apart. */
typedef enum storage { F32, F64, I32, I64, F16, BF16, I8, U8, I16, U16 } storage;

typedef struct test_case {
    uint64_t seed;
    conv_problem p;
    storage native, x_store, y_store;
    layout x, y;
    int wide; /* integers of all sizes, so that sums wrap around */
    int has_bias, has_residual, residual_is_y;
    int misaligned; /* bytes that x lies off its alignment */
} test_case;

/* What the data are, as integers: x in its layout, w, bias, residual in the layout of y. */
typedef struct test_data {
    const int64_t *x, *w, *bias, *residual;
} test_data;

enum { X, W, PACKED, BIAS, RESIDUAL, Y, SCRATCH, EXPECTED, BUFFERS };
typedef enum place { AT_END, AT_START } place;

uint64_t random_bits(uint64_t *state);
int64_t random_in(uint64_t *state, int64_t low, int64_t high); /* both included */
void choose_from(const unsigned char *bytes, size_t count);    /* instead of random numbers, while there are any */
void draw_case(test_case *, uint64_t seed, storage native);
uint64_t case_hash(const test_case *);
void print_case(const test_case *, FILE *);

/* The exact value of one output before it is stored, and the sum of |x w| with |bias| and |residual|. */
int64_t formula(const test_case *, const test_data *, const int64_t at[AXES], double *magnitude);
int64_t element_at(const layout *, const int64_t at[AXES]);

int64_t storage_bytes(storage);
int storage_is_float(storage);
storage storage_named(const char *dtype);
void put(storage, void *buffer, int64_t at, int64_t value); /* rounded to nearest even, or wrapped */
double get(storage, const void *buffer, int64_t at);

/* A buffer for this many bytes, at a protected page; every byte around it is the same canary. */
unsigned char *buffer_take(int which, int64_t bytes, int64_t align, place, int misaligned);
unsigned char *buffer_low(int which); /* where the buffer's pages begin and end */
unsigned char *buffer_high(int which);
unsigned char *buffer_start(int which);
uint64_t buffer_sum(int which); /* changes with what the buffer holds */
int canaries_are_whole(int which);
const char *guarded(void (*job)(void *), void *argument); /* NULL, or the name of the signal that ended the job */

uint64_t fp_control(int with_flags);
int upper_halves_can_be_seen(void);
void clear_upper_halves(void);
int upper_halves_are_clean(void);

typedef struct plant {
    const char *name;
    void (*run)(const conv_problem *, const conv_io *, size_t task, void *scratch);
} plant;
extern const plant PLANTS[];
extern const size_t PLANT_COUNT;
extern const plant UNSOUND[]; /* for sanitizers, not for this program: undefined behaviour that changes no result */
extern const size_t UNSOUND_COUNT;
extern const conv_algo *planted_into; /* what the planted kernels call first */

enum { DTYPE_COUNT = 4, MOST_ALGOS = 32, MOST_FAILURES = 10 };
extern const char *const DTYPES[DTYPE_COUNT];

/* What was run so far on one instruction set. */
typedef struct walk {
    const char *isa;
    int64_t problems, runs, failures;
    int64_t ran[DTYPE_COUNT][MOST_ALGOS];
    const plant *planted; /* NULL: the kernels as they are */
    int quiet;
} walk;

int64_t look_at_scratch(const char *isa, uint64_t seed, int64_t count); /* how many take too much */
void run_case(walk *, const test_case *, const conv_table *);
const conv_table *find_table(const char *isa, const char *dtype);

#endif
