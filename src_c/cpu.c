/* CPU detection and the list of tables. Compiled at baseline flags: it must run on any CPU of the architecture. */
#include "cpu.h"
#include "conv.h"

#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
__attribute__((target("xsave"))) static uint64_t read_xcr0(void) { return _xgetbv(0); }
#endif

cpu_features cpu_read_features(void) {
    cpu_features f = {0};
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        f.leaf1_ecx = ecx;
        if (ecx & bit_OSXSAVE) f.xcr0 = read_xcr0();
    }
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) f.leaf7_ebx = ebx;
    if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) f.extended1_ecx = ecx;
#endif
    return f;
}

/* A row built for a level may use every instruction of it, not only the vector ones: all bits are asked for. The
 * levels are those of the x86-64 psABI; bit positions from Intel's SDM volume 2, CPUID. */
unsigned cpu_levels(const cpu_features *f) {
    const uint32_t v2_leaf1 =
        1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;              /* SSE3..SSE4.2, CX16, POPCNT */
    const uint32_t v3_leaf1 = 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA MOVBE OSXSAVE AVX F16C */
    const uint32_t v3_leaf7 = 1u << 3 | 1u << 5 | 1u << 8;                          /* BMI1 AVX2 BMI2 */
    const uint32_t v3_extended = 1u << 0 | 1u << 5;                                 /* LAHF LZCNT */
    const uint32_t v4_leaf7 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* AVX512 F DQ CD BW VL */
    const uint64_t ymm_state = 0x6, zmm_state = 0xe6; /* XMM, YMM; and opmask, ZMM0-15 upper halves, ZMM16-31 */
    const uint32_t leaf1 = v2_leaf1 | v3_leaf1;
    unsigned levels = CPU_BASELINE;
    if ((f->leaf1_ecx & leaf1) == leaf1 && (f->leaf7_ebx & v3_leaf7) == v3_leaf7 &&
        (f->extended1_ecx & v3_extended) == v3_extended && (f->xcr0 & ymm_state) == ymm_state) {
        levels |= CPU_AVX2;
        if ((f->leaf7_ebx & v4_leaf7) == v4_leaf7 && (f->xcr0 & zmm_state) == zmm_state) levels |= CPU_AVX512;
    }
    return levels;
}

#if defined(__APPLE__)
static int64_t cache_bytes(const char *name) {
    int64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname(name, &bytes, &size, NULL, 0) == 0 ? bytes : 0;
}
#define L1D_BYTES() cache_bytes("hw.l1dcachesize")
#define L2_BYTES() cache_bytes("hw.l2cachesize")
#elif defined(_SC_LEVEL1_DCACHE_SIZE)
#define L1D_BYTES() sysconf(_SC_LEVEL1_DCACHE_SIZE)
#define L2_BYTES() sysconf(_SC_LEVEL2_CACHE_SIZE)
#else
#define L1D_BYTES() 0
#define L2_BYTES() 0
#endif

/* Where the system does not tell (arm64 Linux, often) the sizes are those of a small core: Cortex-A53's. Upper
 * limits: a core never gets more than a share of a larger, shared L2. */
const cpu_caches *cpu_cache_sizes(void) {
    static cpu_caches caches;
    if (caches.l2 == 0) {
        const int64_t l1d = L1D_BYTES(), l2 = L2_BYTES();
        caches.l1d = l1d >= 8 << 10 && l1d <= 1 << 20 ? l1d : 32 << 10;
        caches.l2 = l2 < 64 << 10 ? 256 << 10 : l2 > 2 << 20 ? 2 << 20 : l2;
    }
    return &caches;
}

void cpu_name(char name[64]) {
    name[0] = 0;
#if defined(__x86_64__)
    unsigned registers[12];
    for (unsigned i = 0; i < 3; i++) {
        unsigned *r = registers + 4 * i;
        if (!__get_cpuid(0x80000002 + i, r, r + 1, r + 2, r + 3)) return;
    }
    memcpy(name, registers, sizeof registers);
    name[sizeof registers] = 0;
#endif
}

/* A new number format is one word in each of these two lines, one in setup.py and one in isa/simd.h. */
#define FORMATS(row, isa) row(isa, f32) row(isa, f64) row(isa, i32) row(isa, i64)
enum { FORMAT_COUNT = 4 };
#define DECLARE(isa, dtype) extern const conv_table conv_table_##isa##_##dtype;
#define ADDRESS(isa, dtype) &conv_table_##isa##_##dtype,
FORMATS(DECLARE, avx512)
FORMATS(DECLARE, avx2)
FORMATS(DECLARE, sse2)
FORMATS(DECLARE, neon)
FORMATS(DECLARE, generic)

/* A new instruction set is one line here and one above, one in setup.py and one block in isa/simd.h. Best first. */
static const struct {
    unsigned level;
    const conv_table *tables[FORMAT_COUNT];
} rows[] = {
#ifdef CONV_ROW_AVX512
    {CPU_AVX512, {FORMATS(ADDRESS, avx512)}},
#endif
#ifdef CONV_ROW_AVX2
    {CPU_AVX2, {FORMATS(ADDRESS, avx2)}},
#endif
#ifdef CONV_ROW_SSE2
    {CPU_BASELINE, {FORMATS(ADDRESS, sse2)}},
#endif
#ifdef CONV_ROW_NEON
    {CPU_BASELINE, {FORMATS(ADDRESS, neon)}},
#endif
#ifdef CONV_ROW_GENERIC
    {CPU_BASELINE, {FORMATS(ADDRESS, generic)}},
#endif
};

const conv_table *conv_table_at(size_t index, const char *dtype) {
    static unsigned levels; /* CPUID traps in a virtual machine: asked once */
    if (levels == 0) {
        const cpu_features features = cpu_read_features();
        levels = cpu_levels(&features);
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((rows[i].level & levels) == 0) continue;
        if (index-- > 0) continue;
        for (size_t format = 0; format < FORMAT_COUNT; format++)
            if (strcmp(rows[i].tables[format]->dtype, dtype) == 0) return rows[i].tables[format];
        return NULL;
    }
    return NULL;
}

const char *conv_isa_compiled(size_t index) {
    return index < sizeof rows / sizeof rows[0] ? rows[index].tables[0]->isa : NULL;
}
