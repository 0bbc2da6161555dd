/* Scratch memory stays within its bound, whatever the shape: problems of all sizes, of which only the bytes are asked.
 */
#include "checker.h"

enum { SCRATCH_MOST = 2 << 20 }; /* of one thread; a call of some threads may take 1 MiB more */

/* From 1 to 2^bits, each power of two as likely as the others. */
static int64_t any_size(uint64_t *r, int64_t bits) {
    const int64_t shift = random_in(r, 0, bits);
    return shift || bits ? random_in(r, (int64_t)1 << shift, ((int64_t)2 << shift) - 1) : 1;
}

static int one_in_four(uint64_t *r) { return random_in(r, 0, 3) == 0; }

/* An axis of up to 2^bits elements, none (one) for 0 bits; `taps` is the kernel's size, any for 0. */
static void draw_axis(uint64_t *r, int64_t bits, int64_t taps, int64_t *in, int64_t *out, int64_t *kernel,
                      int64_t more[3]) {
    *in = any_size(r, bits);
    *kernel = taps ? taps : any_size(r, one_in_four(r) ? 8 : 3);
    more[0] = bits && taps != 3 ? any_size(r, one_in_four(r) ? 20 : 2) : 1; /* stride */
    more[1] = *kernel > 1 && taps != 3 ? any_size(r, one_in_four(r) ? 30 : 2) : 1;
    more[2] = bits && random_in(r, 0, 1) ? any_size(r, 3) : 0; /* pad */
    const int64_t span = more[1] * (*kernel - 1) + 1;
    if (*in + 2 * more[2] < span) *in = span + any_size(r, bits);
    *out = (*in + 2 * more[2] - span) / more[0] + 1;
}

static conv_problem draw_large(uint64_t *r) {
    conv_problem p = {.n = any_size(r, 3), .groups = random_in(r, 0, 2) ? 1 : any_size(r, 12)};
    const int64_t bits = p.groups > 1 ? 3 : 13, rank = random_in(r, 1, 3);
    p.ic = p.groups > 1 && random_in(r, 0, 1) ? 1 : any_size(r, bits);
    p.oc = p.groups > 1 && p.ic == 1 && random_in(r, 0, 1) ? 1 : any_size(r, bits);
    const int64_t taps = one_in_four(r) ? 1 : one_in_four(r) ? 3 : 0;
    int64_t d[3], h[3], w[3];
    draw_axis(r, rank == 3 ? 8 : 0, rank == 3 ? taps : 1, &p.in_d, &p.out_d, &p.kernel_d, d);
    draw_axis(r, rank >= 2 ? 13 : 0, rank >= 2 ? taps : 1, &p.in_h, &p.out_h, &p.kernel_h, h);
    draw_axis(r, rank == 1 ? 24 : 13, taps, &p.in_w, &p.out_w, &p.kernel_w, w);
    p.stride_d = d[0], p.stride_h = h[0], p.stride_w = w[0];
    p.dilation_d = d[1], p.dilation_h = h[1], p.dilation_w = w[1];
    p.pad_d = d[2], p.pad_h = h[2], p.pad_w = w[2];
    p.pad_mode = (int32_t)random_in(r, 0, 1) * CONV_PAD_REPLICATE;
    p.exact = one_in_four(r);
    p.x_type = (int32_t)random_in(r, 0, 1) * CONV_F16;
    p.y_type = p.x_type;
    return p;
}

static void print_problem(const conv_problem *p) {
    const int64_t *fields = &p->n;
    for (int i = 0; i < 22; i++) printf(" %ld", (long)fields[i]);
    printf(", pad mode %d, exact %d, x_type %d\n", p->pad_mode, p->exact, p->x_type);
}

int64_t look_at_scratch(const char *isa, uint64_t seed, int64_t count) {
    int64_t most[DTYPE_COUNT][MOST_ALGOS] = {{0}}, accepted = 0, failures = 0;
    for (int64_t i = 0; i < count; i++) {
        const int dtype = (int)(i % DTYPE_COUNT);
        const conv_table *table = find_table(isa, DTYPES[dtype]);
        conv_problem p = draw_large(&seed);
        if (dtype == F64 || dtype == I64) p.x_type = p.y_type = CONV_NATIVE;
        if (dtype == I32 && p.x_type) p.x_type = p.y_type = CONV_U8;
        for (size_t a = 0; a < table->count; a++) {
            if (!table->algos[a]->accepts(&p)) continue;
            const int64_t bytes = (int64_t)table->algos[a]->scratch_bytes(&p);
            accepted++;
            if (bytes > most[dtype][a]) most[dtype][a] = bytes;
            if (bytes <= SCRATCH_MOST || failures++ >= MOST_FAILURES) continue;
            printf("FAILED: %s %s on %s takes %ld bytes of scratch:", table->algos[a]->name, DTYPES[dtype], isa,
                   (long)bytes);
            print_problem(&p);
        }
    }
    printf("%s: %ld sizes, %ld rows, %ld over %d bytes of scratch; the most:", isa, (long)count, (long)accepted,
           (long)failures, SCRATCH_MOST);
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++)
        for (size_t a = 0; a < find_table(isa, DTYPES[dtype])->count; a++)
            printf(" %s %s %ld,", find_table(isa, DTYPES[dtype])->algos[a]->name, DTYPES[dtype], (long)most[dtype][a]);
    printf("\n");
    return failures;
}
