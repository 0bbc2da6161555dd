/* Kernels with planted bugs, the positive controls: the real kernel runs, and then what such a bug would do. A checker
 * that misses one of them is broken. */
#include <stdlib.h>
#include <string.h>

#include "checker.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#endif

const conv_algo *planted_into;

#define PLANT(name) static void name(const conv_problem *p, const conv_io *io, size_t task, void *scratch)
#define REAL_KERNEL() planted_into->run(p, io, task, scratch)

static void read_byte(const volatile unsigned char *at) { (void)*at; }

PLANT(x_over_read) {
    REAL_KERNEL();
    read_byte(buffer_high(X)); /* as the last vector of a row, loaded whole */
}

PLANT(x_under_read) {
    REAL_KERNEL();
    read_byte(buffer_low(X) - 1);
}

PLANT(packed_over_read) {
    REAL_KERNEL();
    read_byte(buffer_high(PACKED));
}

PLANT(y_over_write) {
    REAL_KERNEL();
    *(volatile unsigned char *)buffer_high(Y) = 0;
}

PLANT(y_write_near) {
    REAL_KERNEL();
    buffer_start(Y)[-1] ^= 1; /* no page is protected there, if y lies at the end of its pages */
}

PLANT(scratch_over_write) {
    REAL_KERNEL();
    *(volatile unsigned char *)buffer_high(SCRATCH) = 0;
}

PLANT(one_bit_wrong) {
    REAL_KERNEL();
    const int64_t wide = p->y_type == CONV_NATIVE ? 4 : p->y_type == CONV_I8 || p->y_type == CONV_U8 ? 1 : 2;
    *((unsigned char *)io->y + (wide > 1)) ^= 0x40;
}

PLANT(no_store_at_all) { (void)p, (void)io, (void)task, (void)scratch; }

PLANT(x_is_changed) {
    REAL_KERNEL();
    *(unsigned char *)(uintptr_t)io->x ^= 1;
}

PLANT(control_word_changed) {
    REAL_KERNEL();
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() ^ 0x8000);
#elif defined(__aarch64__)
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control ^ 1 << 24));
#else
    *(unsigned char *)io->y ^= 0x55;
#endif
}

#if defined(__x86_64__)
/* No target("avx"): the compiler would clean up at the end of the function. */
static void dirty_upper_halves(void) {
    __asm__ volatile("vpcmpeqd %%xmm15, %%xmm15, %%xmm15\n\tvinsertf128 $1, %%xmm15, %%ymm15, %%ymm15" ::: "xmm15");
}
#else
static void dirty_upper_halves(void) {}
#endif

PLANT(upper_halves_left) {
    REAL_KERNEL();
    if (upper_halves_can_be_seen()) dirty_upper_halves();
}

const plant PLANTS[] = {
    {"x read past its end", x_over_read},
    {"x read before its start", x_under_read},
    {"packed weights read past their end", packed_over_read},
    {"y written past its end", y_over_write},
    {"y written beside it", y_write_near},
    {"scratch written past its end", scratch_over_write},
    {"one bit wrong", one_bit_wrong},
    {"nothing stored", no_store_at_all},
    {"x changed", x_is_changed},
    {"control word changed", control_word_changed},
    {"upper halves left in use", upper_halves_left},
};
const size_t PLANT_COUNT = sizeof PLANTS / sizeof PLANTS[0];

PLANT(stack_over_write) {
    REAL_KERNEL();
    volatile unsigned char near[16], *byte = near; /* by a pointer: an index out of bounds is another bug */
    for (int64_t i = 0; i < 16 + (p->n > 0); i++) byte[i] = 0;
    read_byte(near);
}

PLANT(signed_overflow) {
    REAL_KERNEL();
    volatile int32_t size = INT32_MAX;
    size = size + (p->n > 0);
}

PLANT(heap_over_read) {
    REAL_KERNEL();
    unsigned char *block = malloc((size_t)p->n + 7);
    block[0] = 0;
    read_byte(block + p->n + 7);
    free(block);
}

const plant UNSOUND[] = {{"stack", stack_over_write}, {"overflow", signed_overflow}, {"heap", heap_over_read}};
const size_t UNSOUND_COUNT = sizeof UNSOUND / sizeof UNSOUND[0];
