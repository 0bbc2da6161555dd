/* activation(s) of conv.h, a vector at a time.
 *
 *     exp(s) = 2^n exp(r),  n = round(s / ln 2),  r = s - n ln 2,  |r| <= ln(2) / 2: Taylor's polynomial
 *     tanh(s) = e / (e + 2),  e = exp(2 s) - 1 without cancellation
 *     gelu(s) = s Phi(s),  Phi(-s) = erfc(s / sqrt(2)) / 2: Press et al., "Numerical Recipes", 6.2 (float64: libm's)
 *
 * Within 1e-6 (float32) and 1e-14 (float64) of the exact function, relative; gelu_tanh's lower tail, the exponential of
 * a rounded cubic, within 1e-5 and 5e-13; below the smallest normal number they may be 0. A NaN stays one: comparisons
 * pick s where they are false. The curves are one function that is not inlined: the compiler contracts its products in
 * one way only, so that equal sums get equal bits. Integers are clamped. */
#ifndef ACTIVATION_H
#define ACTIVATION_H

#include <math.h>

#include "../conv.h"
#include "simd.h"

/* Lanes by index without leaving the registers' type. */
typedef union vec_values {
    vec all;
    real lane[LANES];
} vec_values;

/* Lanes of yes where the comparison is true, else of no. A loop over lanes is scalar code with gcc 12. */
typedef __typeof__((vec){0} < (vec){0}) vec_mask;

INLINE vec vec_pick(vec_mask mask, vec yes, vec no) { return (vec)(((vec_mask)yes & mask) | ((vec_mask)no & ~mask)); }

/* With a NaN in s the comparisons are false. */
INLINE vec vec_clamp(vec s, real low, real high) {
    const vec l = vec_splat(low), h = vec_splat(high);
    s = vec_pick(s < l, l, s);
    return vec_pick(s > h, h, s);
}

#if REAL_IS_INTEGER
/* The least and the greatest number stand for limits beyond them, infinity for one. */
INLINE real clamp_limit(double limit) {
    const double end = (double)((int64_t)1 << (CONV_BITS(CONV_DTYPE) - 2)) * 2;
    const real least = (real)((uint64_t)1 << (CONV_BITS(CONV_DTYPE) - 1));
    return limit >= end ? ~least : limit <= -end ? least : (real)limit;
}

INLINE vec activate_curve(const conv_problem *p, vec s) {
    (void)p;
    return s;
}
#else
INLINE real clamp_limit(double limit) { return (real)limit; }

#if CONV_BITS(CONV_DTYPE) == 32
typedef int32_t vec_bits __attribute__((vector_size(VECTOR_BYTES)));
#define MANTISSA_BITS 23
#define EXP_TERMS 7 /* (ln(2) / 2)^8 / 8! = 5e-9 */
#define EXP_LOW (real) - 150
#define EXP_HIGH (real)130
#define LN2_HIGH (real)0x1.62ep-1 /* 12 bits, so that n times it is exact */
#define LN2_LOW (real)0x1.0bfbe8p-15
#else
typedef int64_t vec_bits __attribute__((vector_size(VECTOR_BYTES)));
#define MANTISSA_BITS 52
#define EXP_TERMS 13 /* (ln(2) / 2)^14 / 14! = 4e-18 */
#define EXP_LOW (real) - 1080
#define EXP_HIGH (real)1030
#define LN2_HIGH (real)0x1.62e42feep-1 /* 32 bits */
#define LN2_LOW (real)0x1.a39ef35793c76p-33
#endif
/* Adding it leaves the nearest integer in the low bits of the sum; its own low bits are zeros. */
#define ROUNDER ((real)3 * (real)((int64_t)1 << (MANTISSA_BITS - 1)))

INLINE vec vec_round(vec s) { return (s + ROUNDER) - ROUNDER; }

/* 2^n for an integer n that is a normal exponent; anything for others. */
INLINE vec vec_power2(vec n) {
    const vec one = vec_splat(1);
    return (vec)((((vec_bits)(n + ROUNDER)) << MANTISSA_BITS) + (vec_bits)one);
}

/* Lanes of yes where s is negative, else of no. */
INLINE vec pick_negative(vec s, vec yes, vec no) { return vec_pick(s < 0, yes, no); }

INLINE vec vec_abs(vec s) { return pick_negative(s, -s, s); }

/* exp(r) - 1 for |r| <= ln(2) / 2 where s = n ln 2 + r. */
INLINE vec exp_reduced(vec s, vec *n) {
    static const real inverse[] = {
        0,           1,           1 / (real)2, 1 / (real)3,  1 / (real)4,  1 / (real)5,  1 / (real)6,
        1 / (real)7, 1 / (real)8, 1 / (real)9, 1 / (real)10, 1 / (real)11, 1 / (real)12, 1 / (real)13};
    *n = vec_round(s * (real)1.44269504088896340736);
    const vec r = (s - *n * LN2_HIGH) - *n * LN2_LOW;
    vec sum = vec_splat(1);
    UNROLL
    for (int k = EXP_TERMS; k > 1; k--) sum = 1 + sum * (r * inverse[k]);
    return sum * r;
}

/* In two steps, since 2^n may be beyond the range of normal numbers where exp(s) is not. */
INLINE vec vec_exp(vec s) {
    vec n;
    const vec fraction = exp_reduced(vec_clamp(s, EXP_LOW, EXP_HIGH), &n);
    const vec half = vec_round(n * (real)0.5);
    return (fraction + 1) * vec_power2(half) * vec_power2(n - half);
}

/* tanh(20) is 1 in both formats. */
INLINE vec vec_tanh(vec s) {
    vec n;
    const vec fraction = exp_reduced(2 * vec_clamp(vec_abs(s), 0, 20), &n), scale = vec_power2(n);
    const vec e = scale * fraction + (scale - 1), t = e / (e + 2);
    return pick_negative(s, -t, t);
}

/* s Phi(s). With z = |s| / sqrt(2): erfc(z) = t exp(-z^2 + polynomial in t), t = 1 / (1 + z / 2). exp doubles the error
 * of z^2 many times over, so the square is that of the upper half of s, exactly, and the rest is a factor. */
INLINE vec vec_gelu(vec s) {
#if CONV_BITS(CONV_DTYPE) == 32
    static const real c[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                             -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    const vec a = vec_clamp(vec_abs(s), 0, 20), t = 1 / (1 + a * (real)0.35355339059327376220);
    const vec upper = (vec)((vec_bits)a & ~(vec_bits){0} << 12);
    vec sum = vec_splat(c[0]);
    UNROLL
    for (int k = 1; k < 10; k++) sum = c[k] + sum * t;
    sum -= (a - upper) * (a + upper) * (real)0.5;
    const vec tail = t * vec_exp(upper * upper * (real)-0.5) * vec_exp(sum) * (real)0.5; /* Phi(-|s|) */
    return s * pick_negative(s, tail, 1 - tail);
#else
    vec_values v = {.all = s};
    for (int i = 0; i < LANES; i++) v.lane[i] *= (real)(0.5 * erfc(-0.70710678118654752440 * v.lane[i]));
    return v.all;
#endif
}

/* s (1 + tanh(u)) / 2 = s / (1 + exp(-2 u)). */
INLINE vec vec_gelu_tanh(vec s) {
    const vec u2 = (real)1.59576912160573071176 * (s + (real)0.044715 * (s * s * s));
    return s / (1 + vec_exp(-u2));
}

__attribute__((noinline, unused)) static vec activate_curve(const conv_problem *p, vec s) {
    switch (p->activation) {
        case CONV_LEAKY_RELU:
            return pick_negative(s, s * (real)p->activation_a, s);
        case CONV_HARDSWISH:
            return s * (vec_clamp(s + 3, 0, 6) / 6);
        case CONV_SIGMOID:
            return 1 / (1 + vec_exp(-s));
        case CONV_SILU:
            return s / (1 + vec_exp(-s));
        case CONV_TANH:
            return vec_tanh(s);
        case CONV_GELU:
            return vec_gelu(s);
        case CONV_GELU_TANH:
            return vec_gelu_tanh(s);
        default:
            return s;
    }
}
#endif

INLINE vec activate(const conv_problem *p, vec s) {
    if (p->activation != CONV_CLAMP) return activate_curve(p, s);
    return vec_clamp(s, clamp_limit(p->activation_a), clamp_limit(p->activation_b));
}

#endif
