/* One problem through every algorithm that accepts it, with all buffers at the end and at the start of their pages. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checker.h"

const char *const DTYPES[DTYPE_COUNT] = {"f32", "f64", "i32", "i64"};

typedef struct job {
    const test_case *t;
    const conv_algo *algo;
    place where;
    test_data data;
    conv_io io;
    char error[200];
} job;

static int64_t *numbers(uint64_t *r, int64_t count, int64_t low, int64_t high, int wide) {
    int64_t *values = malloc((size_t)(count ? count : 1) * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = wide ? (int64_t)random_bits(r) : random_in(r, low, high);
    return values;
}

/* What the stored type keeps of the numbers. */
static void as_stored(int64_t *values, int64_t count, storage s) {
    for (int64_t i = 0; i < count; i++) {
        if (s == I32) values[i] = (int32_t)values[i];
        if (s == I8) values[i] = (int8_t)values[i];
        if (s == U8) values[i] = (uint8_t)values[i];
        if (s == I16) values[i] = (int16_t)values[i];
        if (s == U16) values[i] = (uint16_t)values[i];
    }
}

static int64_t weight_count(const conv_problem *p) {
    return p->groups * p->oc * p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
}

static void draw_data(const test_case *t, test_data *data) {
    uint64_t state = t->seed ^ 0x5bd1e995, *r = &state;
    const conv_problem *p = &t->p;
    int64_t *x = numbers(r, t->x.elements, -4, 4, t->wide), *w = numbers(r, weight_count(p), -4, 4, t->wide);
    int64_t *bias = numbers(r, p->groups * p->oc, -50, 50, t->wide);
    int64_t *residual = numbers(r, t->y.elements, -30, 30, t->wide);
    as_stored(x, t->x.elements, t->x_store);
    as_stored(w, weight_count(p), t->native);
    as_stored(bias, p->groups * p->oc, t->native);
    as_stored(residual, t->y.elements, t->y_store);
    *data = (test_data){x, w, bias, residual};
}

static void free_data(test_data *data) {
    free((void *)(uintptr_t)data->x);
    free((void *)(uintptr_t)data->w);
    free((void *)(uintptr_t)data->bias);
    free((void *)(uintptr_t)data->residual);
}

/* All bits 1 are a NaN in every floating format. */
static unsigned char *blank(int which, int64_t bytes, int64_t align, place where) {
    return memset(buffer_take(which, bytes, align, where, 0), 0xff, (size_t)bytes);
}

static unsigned char *filled(int which, const job *j, storage s, const int64_t *values, int64_t count, int shift) {
    unsigned char *to = buffer_take(which, count * storage_bytes(s), storage_bytes(s), j->where, shift);
    for (int64_t i = 0; i < count; i++) put(s, to, i, values[i]);
    return to;
}

/* The n, c, d, h, w after this one; 0 after the last. */
static int next(const conv_problem *p, int64_t at[AXES]) {
    const int64_t shape[AXES] = {p->n, p->groups * p->oc, p->out_d, p->out_h, p->out_w};
    for (int a = AXES - 1; a >= 0; a--) {
        if (++at[a] < shape[a]) return 1;
        at[a] = 0;
    }
    return 0;
}

static void prepare(job *j) {
    const test_case *t = j->t;
    const conv_problem *p = &t->p;
    const int64_t y_bytes = storage_bytes(t->y_store), x_bytes = storage_bytes(t->x_store);
    unsigned char *x = filled(X, j, t->x_store, j->data.x, t->x.elements, t->misaligned);
    unsigned char *y = blank(Y, t->y.elements * y_bytes, y_bytes, j->where), *residual = NULL;
    if (t->has_residual) {
        residual = t->residual_is_y ? y : blank(RESIDUAL, t->y.elements * y_bytes, y_bytes, j->where);
        int64_t at[AXES] = {0};
        do put(t->y_store, residual, element_at(&t->y, at), j->data.residual[element_at(&t->y, at)]);
        while (next(p, at));
    }
    j->io = (conv_io){
        .x = x + t->x.first * x_bytes,
        .x_stride_n = t->x.stride[0],
        .x_stride_c = t->x.stride[1],
        .x_stride_d = t->x.stride[2],
        .x_stride_h = t->x.stride[3],
        .x_stride_w = t->x.stride[4],
        .y = y + t->y.first * y_bytes,
        .y_stride_n = t->y.stride[0],
        .y_stride_c = t->y.stride[1],
        .y_stride_d = t->y.stride[2],
        .y_stride_h = t->y.stride[3],
        .y_stride_w = t->y.stride[4],
        .packed = blank(PACKED, (int64_t)j->algo->packed_bytes(p), CONV_ALIGN, j->where),
        .bias = t->has_bias ? filled(BIAS, j, t->native, j->data.bias, p->groups * p->oc, 0) : NULL,
        .residual = residual ? residual + t->y.first * y_bytes : NULL,
    };
    filled(W, j, t->native, j->data.w, weight_count(p), 0);
    const int64_t scratch = ((int64_t)j->algo->scratch_bytes(p) + CONV_ALIGN - 1) / CONV_ALIGN * CONV_ALIGN;
    blank(SCRATCH, scratch, CONV_ALIGN, j->where);
}

/* Tasks may run in any order: the last one first where buffers lie at the start. Under conv_run_task, which brings the
 * floating-point state back, its flags must be as before; the kernel alone may raise flags. */
static void compute(void *argument) {
    job *j = argument;
    const conv_problem *p = &j->t->p;
    const size_t pack_tasks = j->algo->pack_tasks(p), tasks = j->algo->tasks(p);
    for (size_t i = 0; i < pack_tasks; i++)
        j->algo->pack(p, buffer_start(W), (void *)(uintptr_t)j->io.packed, j->where == AT_END ? i : pack_tasks - 1 - i);
    uint64_t sums[Y];
    for (int which = 0; which < Y; which++) sums[which] = buffer_sum(which);
    const int surrounded = j->where == AT_START;
    const uint64_t control = fp_control(surrounded);
    for (size_t i = 0; i < tasks; i++) {
        clear_upper_halves();
        if (surrounded)
            conv_run_task(j->algo, p, &j->io, tasks - 1 - i, buffer_start(SCRATCH));
        else
            j->algo->run(p, &j->io, i, buffer_start(SCRATCH));
        if (!upper_halves_are_clean()) strcpy(j->error, "upper halves of vector registers left in use");
    }
    if (fp_control(surrounded) != control) strcpy(j->error, "floating-point control word changed");
    for (int which = 0; which < Y; which++)
        if (buffer_sum(which) != sums[which]) snprintf(j->error, sizeof j->error, "buffer %d changed", which);
}

/* Winograd's bound as documented; every other algorithm is exact on integers. */
static double tolerance(const job *j, double magnitude, double value) {
    if (strncmp(j->algo->name, "winograd", 8) != 0) return 0;
    const double native = 16 * magnitude * (j->t->native == F64 ? 0x1p-53 : 0x1p-24);
    return native + (j->t->y_store == F16 ? 0x1p-10 : j->t->y_store == BF16 ? 0x1p-7 : 0) * (fabs(value) + native);
}

/* Elements that are right move to the image of what y must hold, gaps included, and the two must agree at last. */
static void compare(job *j, const int64_t *values, const double *magnitudes) {
    const test_case *t = j->t;
    const int64_t size = storage_bytes(t->y_store), bytes = t->y.elements * size;
    unsigned char *image = blank(EXPECTED, bytes, size, AT_START);
    const unsigned char *y = buffer_start(Y);
    int64_t at[AXES] = {0}, i = 0;
    do {
        const int64_t element = element_at(&t->y, at);
        put(t->y_store, image, element, values[i]);
        if (memcmp(image + element * size, y + element * size, (size_t)size) != 0) {
            const double got = get(t->y_store, y, element), want = get(t->y_store, image, element);
            const double allowed = tolerance(j, magnitudes[i], want); /* 0: a zero may be negative */
            if (!storage_is_float(t->y_store) || !(fabs(got - want) <= allowed)) {
                snprintf(j->error, sizeof j->error, "y[%ld, %ld, %ld, %ld, %ld] is %.17g, not %.17g (within %g)",
                         (long)at[0], (long)at[1], (long)at[2], (long)at[3], (long)at[4], got, want, allowed);
                return;
            }
            memcpy(image + element * size, y + element * size, (size_t)size);
        }
        i++;
    } while (next(&t->p, at));
    if (memcmp(image, y, (size_t)bytes) != 0) strcpy(j->error, "written between the elements of y");
    for (int which = 0; which < EXPECTED; which++)
        if (buffer_start(which) && !canaries_are_whole(which))
            snprintf(j->error, sizeof j->error, "written beside buffer %d", which);
}

static void report(walk *w, const job *j) {
    if (w->failures++ >= MOST_FAILURES || w->quiet) return;
    printf("FAILED: %s %s on %s, buffers at the %s of their pages: %s\n  --isa %s --replay %s:%016lx\n", j->algo->name,
           DTYPES[j->t->native], w->isa, j->where == AT_END ? "end" : "start", j->error, w->isa, DTYPES[j->t->native],
           (unsigned long)j->t->seed);
    print_case(j->t, stdout);
    fflush(stdout);
}

static void run_algorithm(walk *w, job *j, const int64_t *values, const double *magnitudes) {
    for (j->where = AT_END; j->where <= AT_START; j->where++) {
        j->error[0] = 0;
        prepare(j);
        const char *signal_name = guarded(compute, j);
        if (signal_name) snprintf(j->error, sizeof j->error, "%s", signal_name);
        if (!j->error[0]) compare(j, values, magnitudes);
        if (j->error[0]) report(w, j);
        w->runs++;
    }
}

void run_case(walk *w, const test_case *t, const conv_table *table) {
    const conv_problem *p = &t->p;
    const int64_t outputs = p->n * p->groups * p->oc * p->out_d * p->out_h * p->out_w;
    int64_t *values = malloc((size_t)outputs * sizeof *values), at[AXES] = {0}, i = 0;
    double *magnitudes = malloc((size_t)outputs * sizeof *magnitudes);
    job j = {.t = t};
    draw_data(t, &j.data);
    do values[i] = formula(t, &j.data, at, &magnitudes[i]), i++;
    while (next(p, at));
    for (size_t a = 0; a < table->count; a++) {
        if (!table->algos[a]->accepts(p)) continue;
        conv_algo planted = *table->algos[a];
        planted_into = table->algos[a];
        if (w->planted) planted.run = w->planted->run;
        j.algo = &planted;
        run_algorithm(w, &j, values, magnitudes);
        w->ran[t->native][a]++;
    }
    w->problems++;
    free_data(&j.data);
    free(values);
    free(magnitudes);
}

const conv_table *find_table(const char *isa, const char *dtype) {
    const conv_table *table;
    for (size_t i = 0; (table = conv_table_at(i, dtype)) != NULL; i++)
        if (strcmp(table->isa, isa) == 0) return table;
    return NULL;
}
