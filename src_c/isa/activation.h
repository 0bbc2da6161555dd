/* activation(s) of conv.h, a vector at a time.
 *
 * Clamping is two blends in the caller; the others are calls, since what they save would be registers for every tile.
 */
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

static inline double activate_one(const conv_problem *p, double s) {
    switch (p->activation) {
        case CONV_LEAKY_RELU:
            return s < 0 ? p->activation_a * s : s;
        case CONV_HARDSWISH:
            return s < -3 ? 0 : s > 3 ? s : s * (s + 3) / 6;
        case CONV_SIGMOID:
            return 1 / (1 + exp(-s));
        case CONV_SILU:
            return s / (1 + exp(-s));
        case CONV_TANH:
            return tanh(s);
        case CONV_GELU:
            return s * (1 + erf(s * 0.70710678118654752440)) / 2;
        case CONV_GELU_TANH:
            return s * (1 + tanh(0.79788456080286535588 * (s + 0.044715 * s * s * s))) / 2;
        default:
            return s;
    }
}

static inline vec activate_lanes(const conv_problem *p, vec s) {
    vec_values v = {.all = s};
    for (int i = 0; i < LANES; i++) v.lane[i] = (real)activate_one(p, (double)v.lane[i]);
    return v.all;
}

INLINE vec activate(const conv_problem *p, vec s) {
    if (p->activation != CONV_CLAMP) return activate_lanes(p, s);
    vec_values v = {.all = s};
    const real low = (real)p->activation_a, high = (real)p->activation_b;
    for (int i = 0; i < LANES; i++) {
        const real least = v.lane[i] < low ? low : v.lane[i];
        v.lane[i] = least > high ? high : least;
    }
    return v.all;
}

#endif
