/* Which instruction sets this CPU *and* operating system can run, and how large the caches are. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

/* What CPUID and XGETBV say on x86; all zero elsewhere. */
typedef struct cpu_features {
    uint32_t leaf1_ecx, leaf7_ebx, extended1_ecx;
    uint64_t xcr0; /* the register states that the operating system saves; 0 without OSXSAVE */
} cpu_features;

enum { CPU_BASELINE = 1, CPU_AVX2 = 2, CPU_AVX512 = 4 };

typedef struct cpu_caches {
    int64_t l1d, l2; /* bytes, of one core */
} cpu_caches;

cpu_features cpu_read_features(void);
unsigned cpu_levels(const cpu_features *); /* a pure function: made-up CPUs can be tested */
const cpu_caches *cpu_cache_sizes(void);
void cpu_name(char name[64]);

#endif
