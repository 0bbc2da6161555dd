/* Elements of x and y as they are stored (conv.h, CONV_F16 ...), to and from the format of the sums.
 *
 * Native elements are copied as vectors. Narrower ones are widened exactly when x is copied and rounded once, to
 * nearest even, when y is stored; both by integer operations on their bits, so that neither flushing subnormals nor the
 * instruction set changes a result. Tails: the last vector of a run overlaps the one before, or elements go one by one.
 */
#ifndef ELEMENT_H
#define ELEMENT_H

#include "../conv.h"
#include "simd.h"

INLINE int64_t element_bytes(int32_t type) {
    return type == CONV_NATIVE ? (int64_t)sizeof(real) : type == CONV_I8 || type == CONV_U8 ? 1 : 2;
}

/* count native elements from src, step apart: nothing beyond either end is read or written. */
INLINE void copy_strided(real *restrict dst, const real_unaligned *restrict src, int64_t step, int64_t count) {
    const real *from = (const real *)src;
    if (step == 1 && count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_store(dst + i, vec_load(from + i));
        vec_store(dst + count - LANES, vec_load(from + count - LANES));
    } else if (step == 2 && count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_store(dst + i, vec_load_evens(from + 2 * i));
        vec_store(dst + count - LANES, vec_load_evens(from + 2 * (count - LANES)));
    } else {
        for (int64_t i = 0; i < count; i++) dst[i] = src[step * i];
    }
}

INLINE float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE uint32_t bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* Exponents 1 to 30 move from bias 15 to 127, 31 to 255; below 1 the value is the mantissa times 2^-24. */
INLINE float widen_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    const uint32_t shifted = (rest << 13) + (rest >= 0x7c00 ? 224u << 23 : 112u << 23);
    const uint32_t small = bits_of_float((float)rest * 0x1p-24f);
    return float_of_bits(sign | (rest < 0x400 ? small : shifted));
}

INLINE float widen_bf16(uint16_t h) { return float_of_bits((uint32_t)h << 16); }

/* Adding half of what is cut off, less one unless the last bit kept is odd, rounds to nearest even; a carry moves to
 * the next exponent and at last to infinity. Below 2^-14 the unit is 2^-24: adding 2^-1 leaves units of 2^-24 in the
 * sum. */
INLINE uint16_t narrow_f16(float f) {
    const uint32_t bits = bits_of_float(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    const uint32_t normal = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
    const uint32_t small = bits_of_float(float_of_bits(rest) + 0.5f) - bits_of_float(0.5f);
    const uint32_t finite = rest < 0x38800000 ? small : normal > 0x7c00 ? 0x7c00 : normal;
    return (uint16_t)(sign | (rest > 0x7f800000 ? 0x7e00 : rest >= 0x47800000 ? 0x7c00 : finite));
}

INLINE uint16_t narrow_bf16(float f) {
    const uint32_t bits = bits_of_float(f);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* One loop per stored type, for the compiler to vectorise. */
#define LOAD_LOOP(kind, type, widen) \
    case kind: \
        for (int64_t i = 0; i < count; i++) dst[i] = (real)widen(((const type *)x)[at + i * step]); \
        break;
#define STORE_LOOP(kind, type, narrow) \
    case kind: \
        for (int64_t i = 0; i < count; i++) ((type *)y)[at + i * step] = (type)narrow(src[i]); \
        break;

/* dst[i] = x[at + i * step] */
static inline void load_narrow(int32_t type, const void *x, int64_t at, int64_t step, int64_t count,
                               real *restrict dst) {
    switch (type) {
        LOAD_LOOP(CONV_F16, uint16_t, widen_f16)
        LOAD_LOOP(CONV_BF16, uint16_t, widen_bf16)
        LOAD_LOOP(CONV_I8, int8_t, )
        LOAD_LOOP(CONV_U8, uint8_t, )
        LOAD_LOOP(CONV_I16, int16_t, )
        LOAD_LOOP(CONV_U16, uint16_t, )
    }
}

/* y[at + i * step] = src[i] */
static inline void store_narrow(int32_t type, void *y, int64_t at, int64_t step, int64_t count,
                                const real *restrict src) {
    switch (type) {
        STORE_LOOP(CONV_F16, uint16_t, narrow_f16)
        STORE_LOOP(CONV_BF16, uint16_t, narrow_bf16)
        STORE_LOOP(CONV_I8, int8_t, )
        STORE_LOOP(CONV_U8, uint8_t, )
        STORE_LOOP(CONV_I16, int16_t, )
        STORE_LOOP(CONV_U16, uint16_t, )
    }
}

INLINE void load_elements(int32_t type, const void *x, int64_t at, int64_t step, int64_t count, real *restrict dst) {
    if (type == CONV_NATIVE)
        copy_strided(dst, (const real_unaligned *)x + at, step, count);
    else
        load_narrow(type, x, at, step, count, dst);
}

INLINE real load_element(int32_t type, const void *x, int64_t at) {
    real value = 0;
    if (type == CONV_NATIVE) return ((const real_unaligned *)x)[at];
    load_narrow(type, x, at, 1, 1, &value);
    return value;
}

#endif
