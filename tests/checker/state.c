/* Registers that a kernel must leave as they were. */
#include "checker.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

enum { STICKY_FLAGS = 0x3f };
uint64_t fp_control(int with_flags) { return _mm_getcsr() & (with_flags ? ~0u : ~(unsigned)STICKY_FLAGS); }

/* XGETBV with ecx = 1 tells which register states are not in their initial configuration: bit 2, the upper halves of
 * YMM. Where VZEROUPPER does not clear that bit (emulators, some CPUs) it says nothing. */
__attribute__((target("xsave"))) static int upper_in_use(void) { return (_xgetbv(1) >> 2 & 1) != 0; }

__attribute__((target("avx"))) static int bit_follows(void) {
    _mm256_zeroupper();
    const int before = upper_in_use();
    volatile __m256i ones = _mm256_set1_epi32(-1);
    __m256i dirty = ones;
    __asm__ volatile("" : "+x"(dirty));
    const int after = upper_in_use();
    __asm__ volatile("" : "+x"(dirty));
    _mm256_zeroupper();
    return !before && after;
}

int upper_halves_can_be_seen(void) {
    static int known = -1;
    if (known < 0) {
        unsigned a, b, c, d;
        known = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE) && (c & bit_AVX) &&
                __get_cpuid_count(13, 1, &a, &b, &c, &d) && (a & 4) && bit_follows();
    }
    return known;
}

__attribute__((target("avx"))) static void zero_upper(void) { _mm256_zeroupper(); }

void clear_upper_halves(void) {
    if (upper_halves_can_be_seen()) zero_upper();
}

int upper_halves_are_clean(void) { return !upper_halves_can_be_seen() || !upper_in_use(); }

#else

#if defined(__aarch64__)
uint64_t fp_control(int with_flags) {
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return (void)with_flags, control;
}
#else
uint64_t fp_control(int with_flags) { return (void)with_flags, 0; }
#endif
int upper_halves_can_be_seen(void) { return 0; }
void clear_upper_halves(void) {}
int upper_halves_are_clean(void) { return 1; }

#endif
