/* The vector type, its operations and the register tile of the row being compiled.
 *
 * Everything in this folder is compiled once per row = instruction set x number format: CONV_ISA and CONV_DTYPE come
 * from the command line, the instructions from the compiler's target flags. GCC's vector extensions (gcc and clang)
 * give one source for all of them; a vector wider than the machine's is split by the compiler, not wrong.
 * gnu11, not c11: -std=c11 turns contraction off, and with it every fused multiply-add. */
#ifndef SIMD_H
#define SIMD_H

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h> /* what vector extensions cannot name: conversions of halves, masked stores */
#endif

#define CONV_JOIN_(a, b, c) a##_##b##_##c
#define CONV_JOIN(a, b, c) CONV_JOIN_(a, b, c)
#define CONV_STRING_(a) #a
#define CONV_STRING(a) CONV_STRING_(a)

/* Number formats. Integers wrap around: their rows are compiled with -fwrapv, which makes that the language's rule, so
 * int32 and uint32 (int64 and uint64) are one row, and sums of narrower ones are right in every bit that is kept. */
#define conv_bits_f32 32
#define conv_bits_f64 64
#define conv_bits_i32 32
#define conv_bits_i64 64
#define conv_integer_f32 0
#define conv_integer_f64 0
#define conv_integer_i32 1
#define conv_integer_i64 1
#define CONV_OF_(property, dtype) conv_##property##_##dtype
#define CONV_OF(property, dtype) CONV_OF_(property, dtype)
#define CONV_BITS(dtype) CONV_OF(bits, dtype)
#define REAL_IS_INTEGER CONV_OF(integer, CONV_DTYPE)
#if REAL_IS_INTEGER && CONV_BITS(CONV_DTYPE) == 32
typedef int32_t real;
#elif REAL_IS_INTEGER
typedef int64_t real;
#elif CONV_BITS(CONV_DTYPE) == 32
typedef float real;
#else
typedef double real;
#endif

/* The register tile of the GEMMs: TILE_M rows are broadcast, TILE_V vectors of columns lie in lanes. The accumulators
 * TILE_M * TILE_V, one row of columns (TILE_V) and one broadcast must fit the register file; 8 or more accumulators
 * hide the latency of two FMA ports (4 cycles x 2). */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define TILE_M 14 /* 28 + 2 + 1 of 32 registers */
#define TILE_V 2
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#define TILE_M 6 /* 12 + 2 + 1 of 16 registers */
#define TILE_V 2
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#define TILE_M 8 /* 24 + 3 + 1 of 32 registers */
#define TILE_V 3
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#define TILE_M 6 /* 12 + 2 + 1 of 16 registers; the product without FMA needs the last one */
#define TILE_V 2
#endif

#define LANES (VECTOR_BYTES * 8 / CONV_BITS(CONV_DTYPE))
/* Before a loop over registers: the accumulators of a tile are registers only once every index is a constant. Without
 * it they live on the stack, at a quarter of the speed. Each compiler ignores the other's pragma without a word. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real vec_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
typedef real real_unaligned __attribute__((aligned(1), may_alias)); /* x of a packed structured array, say */

INLINE vec vec_load(const real *p) { return *(const vec_unaligned *)p; }
/* Volatile: gcc would load it again for each of the first two products. */
INLINE vec vec_load_once(const real *p) { return *(const volatile vec_unaligned *)p; }
INLINE void vec_store(real *p, vec v) { *(vec_unaligned *)p = v; }
INLINE vec vec_zero(void) { return (vec){0}; }
/* s - 0 is s for every s, -0 and NaN too; the compilers make one broadcast of it. */
INLINE vec vec_splat(real s) { return s - (vec){0}; }

/* Integers by way of 64 bits, so that unsigned ones wrap like the rest. */
INLINE real real_of(double value) {
    if (!REAL_IS_INTEGER) return (real)value;
    return value < 0x1p63 ? (real)(int64_t)value : (real)(uint64_t)value;
}

INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Transposing LANES x LANES: for each power of two s, rows i and i + s exchange their off-diagonal blocks of s lanes.
 * One or two instructions per shuffle; compilers without the builtin (gcc before 12) go through memory. */
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define VEC_CAN_SHUFFLE 1
#endif
#endif

#ifdef VEC_CAN_SHUFFLE
#define VEC_UPPER(j, s) ((j) & (s) ? LANES + (j) - (s) : (j))
#define VEC_LOWER(j, s) ((j) & (s) ? LANES + (j) : (j) + (s))
#define VEC_4(f, j, s) f(j, s), f(j + 1, s), f(j + 2, s), f(j + 3, s)
#if LANES == 2
#define VEC_BLEND(a, b, f, s) __builtin_shufflevector(a, b, f(0, s), f(1, s))
#elif LANES == 4
#define VEC_BLEND(a, b, f, s) __builtin_shufflevector(a, b, VEC_4(f, 0, s))
#elif LANES == 8
#define VEC_BLEND(a, b, f, s) __builtin_shufflevector(a, b, VEC_4(f, 0, s), VEC_4(f, 4, s))
#else
#define VEC_BLEND(a, b, f, s) \
    __builtin_shufflevector(a, b, VEC_4(f, 0, s), VEC_4(f, 4, s), VEC_4(f, 8, s), VEC_4(f, 12, s))
#endif
/* Each exchange a function of its own, since the shuffle wants constants. */
#define VEC_EXCHANGE(s) \
    INLINE vec vec_upper_##s(vec a, vec b) { return VEC_BLEND(a, b, VEC_UPPER, (s < LANES ? s : 1)); } \
    INLINE vec vec_lower_##s(vec a, vec b) { return VEC_BLEND(a, b, VEC_LOWER, (s < LANES ? s : 1)); }
VEC_EXCHANGE(1)
VEC_EXCHANGE(2)
VEC_EXCHANGE(4)
VEC_EXCHANGE(8)

INLINE vec vec_upper(const int s, vec a, vec b) {
    return s == 1 ? vec_upper_1(a, b) : s == 2 ? vec_upper_2(a, b) : s == 4 ? vec_upper_4(a, b) : vec_upper_8(a, b);
}

INLINE vec vec_lower(const int s, vec a, vec b) {
    return s == 1 ? vec_lower_1(a, b) : s == 2 ? vec_lower_2(a, b) : s == 4 ? vec_lower_4(a, b) : vec_lower_8(a, b);
}

/* Every second element from p on. The second load begins one early, to end with the last element that is asked for. */
#define VEC_EVENS(j, s) ((j) < LANES / 2 ? 2 * (j) : 2 * (j) + 1 + (s))
INLINE vec vec_load_evens(const real *p) { return VEC_BLEND(vec_load(p), vec_load(p + LANES - 1), VEC_EVENS, 0); }

INLINE void vec_transpose(vec rows[LANES]) {
    UNROLL
    for (int s = 1; s < LANES; s *= 2) {
        UNROLL
        for (int i = 0; i < LANES; i++) {
            if (i & s) continue;
            const vec a = rows[i], b = rows[i + s];
            rows[i] = vec_upper(s, a, b);
            rows[i + s] = vec_lower(s, a, b);
        }
    }
}
#else
INLINE vec vec_load_evens(const real *p) {
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = p[2 * i];
    return v;
}

INLINE void vec_transpose(vec rows[LANES]) {
    vec columns[LANES];
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) columns[j][i] = rows[i][j];
    memcpy(rows, columns, sizeof columns);
}
#endif

/* The elements 0, 2, 4, ... and 1, 3, 5, ... of the 2 * LANES from p. */
#ifdef VEC_CAN_SHUFFLE
#if VECTOR_BYTES == 32 /* shuffles across the halves are slow: the loads do that */
#define VEC_SPAN (LANES / 2)
#else
#define VEC_SPAN LANES
#endif
#define VEC_PAIR(j, s) \
    ((j) / VEC_SPAN * VEC_SPAN + (j) * 2 % VEC_SPAN + ((j) % VEC_SPAN * 2 < VEC_SPAN ? 0 : LANES) + (s))

/* Of a and b side by side; with 32 bytes of the halves a0, b0, a1, b1. */
INLINE void vec_pairs_of(vec a, vec b, vec *even, vec *odd) {
    *even = VEC_BLEND(a, b, VEC_PAIR, 0);
    *odd = VEC_BLEND(a, b, VEC_PAIR, 1);
}

INLINE void vec_load_pairs(const real *p, vec *even, vec *odd) {
#if VECTOR_BYTES == 32
    typedef real vec_half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(1), may_alias));
    const vec_half *q = (const vec_half *)p;
#if LANES == 8
    const vec a = __builtin_shufflevector(q[0], q[2], 0, 1, 2, 3, 4, 5, 6, 7);
    const vec b = __builtin_shufflevector(q[1], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    const vec a = __builtin_shufflevector(q[0], q[2], 0, 1, 2, 3), b = __builtin_shufflevector(q[1], q[3], 0, 1, 2, 3);
#endif
    vec_pairs_of(a, b, even, odd);
#else
    vec_pairs_of(vec_load(p), vec_load(p + LANES), even, odd);
#endif
}
#else
INLINE void vec_pairs_of(vec a, vec b, vec *even, vec *odd) {
    for (int i = 0; i < LANES; i++) {
        (*even)[i] = i < LANES / 2 ? a[2 * i] : b[2 * i - LANES];
        (*odd)[i] = i < LANES / 2 ? a[2 * i + 1] : b[2 * i + 1 - LANES];
    }
}

INLINE void vec_load_pairs(const real *p, vec *even, vec *odd) {
    vec_pairs_of(vec_load(p), vec_load(p + LANES), even, odd);
}
#endif

#endif
