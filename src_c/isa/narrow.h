/* A vector of elements as they are stored, LANES neighbours (conv.h, CONV_F16 ...), to and from the vector of sums.
 * vec_widen_evens, _odds: every second of 2 * LANES elements of two bytes, the lower or the upper ones of pairs;
 * vec_narrow_pairs: the way back for CONV_BF16.
 *
 * Widening is exact. Narrowing rounds once, to nearest even, overflowing to infinity; integers keep their low bits.
 * Both are integer operations, or the instructions for them, so that neither flushing subnormals nor the instruction
 * set changes a result: the subnormals of a half are ordinary floats. Rows of 64 bits have no narrower types. */
#ifndef NARROW_H
#define NARROW_H

#include "../conv.h"
#include "simd.h"

/* Whether elements may be halves, so that no other row has code for them. */
enum { HAS_HALVES = CONV_BITS(CONV_DTYPE) == 32 && !REAL_IS_INTEGER };

#if CONV_BITS(CONV_DTYPE) != 32

INLINE vec vec_widen(int32_t type, const void *x) { return (void)type, vec_load((const real *)x); }
INLINE vec vec_widen_evens(int32_t type, vec pairs) { return (void)type, pairs; }
INLINE vec vec_widen_odds(int32_t type, vec pairs) { return (void)type, pairs; }
INLINE void vec_narrow(int32_t type, void *y, vec v) { (void)type, vec_store((real *)y, v); }
INLINE void vec_narrow_pairs(void *y, vec even, vec odd) { (void)y, (void)even, (void)odd; }

#elif REAL_IS_INTEGER

typedef int8_t vec_i8 __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t vec_u8 __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int16_t vec_i16 __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef uint16_t vec_u16 __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

INLINE vec vec_widen(int32_t type, const void *x) {
    switch (type) {
        case CONV_I8:
            return __builtin_convertvector(*(const vec_i8 *)x, vec);
        case CONV_U8:
            return __builtin_convertvector(*(const vec_u8 *)x, vec);
        case CONV_I16:
            return __builtin_convertvector(*(const vec_i16 *)x, vec);
        default:
            return __builtin_convertvector(*(const vec_u16 *)x, vec);
    }
}

INLINE vec vec_widen_evens(int32_t type, vec pairs) { return type == CONV_I16 ? pairs << 16 >> 16 : pairs & 0xffff; }

INLINE vec vec_widen_odds(int32_t type, vec pairs) { return type == CONV_I16 ? pairs >> 16 : pairs >> 16 & 0xffff; }

INLINE void vec_narrow(int32_t type, void *y, vec v) {
    if (type == CONV_I8 || type == CONV_U8)
        *(vec_u8 *)y = __builtin_convertvector(v, vec_u8);
    else
        *(vec_u16 *)y = __builtin_convertvector(v, vec_u16);
}

INLINE void vec_narrow_pairs(void *y, vec even, vec odd) { (void)y, (void)even, (void)odd; }

#else

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef int32_t vec_bits __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vec_unsigned __attribute__((vector_size(VECTOR_BYTES)));

INLINE vec_bits vec_choose(vec_bits mask, vec_bits yes, vec_bits no) { return (mask & yes) | (~mask & no); }

/* F16C's instructions, which vector extensions cannot name; they keep subnormals whatever is flushed. */
#if defined(__AVX512F__)
INLINE vec widen_f16(halves h) { return (vec)_mm512_cvtph_ps((__m256i)h); }
INLINE halves narrow_f16(vec v) { return (halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
INLINE vec widen_f16(halves h) { return (vec)_mm256_cvtph_ps((__m128i)h); }
INLINE halves narrow_f16(vec v) { return (halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
/* Exponents 1 to 30 move from bias 15 to 127, 31 to 255; below 1 the value is the mantissa times 2^-24. */
INLINE vec widen_f16(halves h) {
    const vec_bits bits = __builtin_convertvector(h, vec_bits), rest = bits & 0x7fff;
    const vec_bits exponent = (112 << 23) + ((rest > 0x7bff) & 112 << 23);
    const vec_bits small = (vec_bits)(__builtin_convertvector(rest, vec) * 0x1p-24f);
    return (vec)((bits & 0x8000) << 16 | vec_choose(rest < 0x400, small, (rest << 13) + exponent));
}

/* Adding half of what is cut off, less one unless the last bit kept is odd, rounds to nearest even; a carry moves to
 * the next exponent and at last to infinity. Below 2^-14 the unit is 2^-24: adding 2^-1 leaves units of 2^-24 in the
 * sum. A NaN keeps its first bits and becomes a quiet one. */
INLINE halves narrow_f16(vec v) {
    const vec_bits bits = (vec_bits)v, rest = bits & 0x7fffffff, half = (vec_bits)(vec_zero() + 0.5f);
    const vec_bits normal = (rest + 0xfff + (rest >> 13 & 1) - (112 << 23)) >> 13;
    const vec_bits small = (vec_bits)((vec)rest + 0.5f) - half;
    const vec_bits finite = vec_choose(rest < 0x38800000, small, normal);
    const vec_bits large = vec_choose(rest > 0x7f800000, 0x7e00 | (rest >> 13 & 0x1ff), (vec_bits){0} + 0x7c00);
    return __builtin_convertvector((bits >> 16 & 0x8000) | vec_choose(rest > 0x477fffff, large, finite), halves);
}
#endif

/* By name, too: gcc makes four instructions of the conversion. */
#if defined(__AVX512F__)
INLINE vec widen_bf16(halves h) { return (vec)((vec_bits)_mm512_cvtepu16_epi32((__m256i)h) << 16); }
#elif defined(__F16C__)
INLINE vec widen_bf16(halves h) { return (vec)((vec_bits)_mm256_cvtepu16_epi32((__m128i)h) << 16); }
#else
INLINE vec widen_bf16(halves h) { return (vec)(__builtin_convertvector(h, vec_bits) << 16); }
#endif

/* The same rounding as narrow_f16, of 16 bits, which are above the others then. No NaN. */
INLINE vec_bits rounded_bf16(vec v) {
    const vec_bits bits = (vec_bits)v;
    return bits + 0x7fff + (bits >> 16 & 1);
}

INLINE halves narrow_bf16(vec v) {
    const vec_bits bits = vec_choose((vec_bits)(v != v), (vec_bits)v | 0x400000, rounded_bf16(v));
    return __builtin_convertvector((vec_unsigned)bits >> 16, halves);
}

INLINE vec vec_widen(int32_t type, const void *x) {
    return type == CONV_F16 ? widen_f16(*(const halves *)x) : widen_bf16(*(const halves *)x);
}

INLINE vec vec_widen_evens(int32_t type, vec pairs) {
    const vec_bits bits = (vec_bits)pairs;
    return type == CONV_F16 ? widen_f16(__builtin_convertvector(bits & 0xffff, halves)) : (vec)(bits << 16);
}

INLINE vec vec_widen_odds(int32_t type, vec pairs) {
    const vec_bits bits = (vec_bits)pairs;
    return type == CONV_F16 ? widen_f16(__builtin_convertvector(bits >> 16 & 0xffff, halves)) : (vec)(bits & ~0xffff);
}

INLINE void vec_narrow(int32_t type, void *y, vec v) {
    *(halves *)y = type == CONV_F16 ? narrow_f16(v) : narrow_bf16(v);
}

/* The NaNs must be those of sums of such elements: quiet, and 0 in the bits that are cut off, so that rounding leaves
 * the others as they are. */
INLINE void vec_narrow_pairs(void *y, vec even, vec odd) {
    const vec_unsigned low = (vec_unsigned)rounded_bf16(even) >> 16, high = (vec_unsigned)rounded_bf16(odd);
    vec_store((real *)y, (vec)(low | (high & 0xffff0000)));
}

#endif

#endif
