/* libFuzzer's driver: its bytes choose the problem (draw.c), every instruction set and every algorithm computes it, and
 * all must agree with the formula, which is how they are compared with one another. Compiled with -DCHECKER_FUZZ and
 * -fsanitize=fuzzer; CHECKER_FUZZ_PLANT=1 plants a bug that few problems show. */
#ifdef CHECKER_FUZZ
#include <stdlib.h>
#include <string.h>

#include "checker.h"

/* Wrong in two per cent or so of the problems: one bit of the first output, as a tail that nobody tested. */
static void rarely_wrong(const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    planted_into->run(p, io, task, scratch);
    if (p->kernel_w == 5 && p->stride_w == 2 && p->groups > 1) *(unsigned char *)io->y ^= 1;
}

enum { MOST_WORK = 10000 };
static const plant PLANTED = {"a rare tail", rarely_wrong};

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t count);

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t count) {
    static const char *bug;
    if (!bug) bug = getenv("CHECKER_FUZZ_PLANT") ? "1" : "";
    if (count < 2) return 0;
    const storage native = (storage)(bytes[0] % DTYPE_COUNT);
    test_case t;
    choose_from(bytes + 1, count - 1);
    draw_case(&t, bytes[0], native);
    choose_from(NULL, 0);
    const conv_problem *p = &t.p;
    const int64_t outputs = p->n * p->groups * p->oc * p->out_d * p->out_h * p->out_w;
    if (outputs * p->ic * p->kernel_d * p->kernel_h * p->kernel_w > MOST_WORK) return -1; /* small ones find more */
    for (size_t i = 0; conv_table_at(i, DTYPES[native]) != NULL; i++) {
        walk w = {.isa = conv_table_at(i, DTYPES[native])->isa, .planted = *bug ? &PLANTED : NULL};
        run_case(&w, &t, conv_table_at(i, DTYPES[native]));
        if (w.failures) abort();
    }
    return 0;
}
#endif
