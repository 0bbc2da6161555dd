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

#define CONV_JOIN_(a, b, c) a##_##b##_##c
#define CONV_JOIN(a, b, c) CONV_JOIN_(a, b, c)
#define CONV_STRING_(a) #a
#define CONV_STRING(a) CONV_STRING_(a)

/* Number formats. */
#define conv_bits_f32 32
#define conv_bits_f64 64
#define CONV_BITS_(dtype) conv_bits_##dtype
#define CONV_BITS(dtype) CONV_BITS_(dtype)
#if CONV_BITS(CONV_DTYPE) == 32
typedef float real;
typedef int32_t lane_index;
#else
typedef double real;
typedef int64_t lane_index;
#endif

/* The register tile of the GEMMs: TILE_M rows are broadcast, TILE_V vectors of columns lie in lanes. The accumulators
 * TILE_M * TILE_V, one row of columns (TILE_V) and one broadcast must fit the register file; 8 or more accumulators
 * hide the latency of two FMA ports (4 cycles x 2). */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_M 14 /* 28 + 2 + 1 of 32 registers */
#define TILE_V 2
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define TILE_M 6 /* 12 + 2 + 1 of 16 registers */
#define TILE_V 2
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define TILE_M 8 /* 24 + 3 + 1 of 32 registers */
#define TILE_V 3
#else
#define VECTOR_BYTES 16
#define TILE_M 6 /* 12 + 2 + 1 of 16 registers; the product without FMA needs the last one */
#define TILE_V 2
#endif

#define LANES (VECTOR_BYTES / (int)sizeof(real))
#define INLINE static inline __attribute__((always_inline))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real vec_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
typedef real real_unaligned __attribute__((aligned(1), may_alias)); /* x of a packed structured array, say */

INLINE vec vec_load(const real *p) { return *(const vec_unaligned *)p; }
INLINE void vec_store(real *p, vec v) { *(vec_unaligned *)p = v; }
INLINE vec vec_zero(void) { return (vec){0}; }
/* s - 0 is s for every s, -0 and NaN too; the compilers make one broadcast of it. */
INLINE vec vec_splat(real s) { return s - (vec){0}; }

INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
