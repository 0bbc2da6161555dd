/* What y must hold, from the formula of conv.h alone, and how elements are stored. Data are integers, so that the sum
 * is the same in any order: compared without a tolerance. */
#include <math.h>
#include <string.h>

#include "checker.h"

int64_t element_at(const layout *l, const int64_t at[AXES]) {
    int64_t element = l->first;
    for (int a = 0; a < AXES; a++) element += at[a] * l->stride[a];
    return element;
}

/* The index in an axis of n elements, or -1 in padding that has a value of its own. */
static int64_t padded(int64_t i, int64_t n, int mode) {
    if (i >= 0 && i < n) return i;
    if (mode == CONV_PAD_REPLICATE) return i < 0 ? 0 : n - 1;
    if (mode == CONV_PAD_CIRCULAR) return (i % n + n) % n;
    if (mode == CONV_PAD_REFLECT) return i < 0 ? -i : 2 * (n - 1) - i;
    return -1;
}

static int64_t wrapped(storage s, uint64_t v) { return s == I32 ? (int32_t)(uint32_t)v : (int64_t)v; }

int64_t formula(const test_case *t, const test_data *data, const int64_t at[AXES], double *magnitude) {
    const conv_problem *p = &t->p;
    const int64_t group = at[1] / p->oc, *w = data->w + at[1] * p->ic * p->kernel_d * p->kernel_h * p->kernel_w;
    uint64_t sum = 0;
    double size = 0;
    for (int64_t c = 0; c < p->ic; c++)
        for (int64_t kd = 0; kd < p->kernel_d; kd++)
            for (int64_t kh = 0; kh < p->kernel_h; kh++)
                for (int64_t kw = 0; kw < p->kernel_w; kw++, w++) {
                    const int64_t d = padded(at[2] * p->stride_d - p->pad_d + kd * p->dilation_d, p->in_d, p->pad_mode);
                    const int64_t h = padded(at[3] * p->stride_h - p->pad_h + kh * p->dilation_h, p->in_h, p->pad_mode);
                    const int64_t v = padded(at[4] * p->stride_w - p->pad_w + kw * p->dilation_w, p->in_w, p->pad_mode);
                    const int64_t from[AXES] = {at[0], group * p->ic + c, d, h, v};
                    const int outside = d < 0 || h < 0 || v < 0;
                    const int64_t x = outside ? (int64_t)p->pad_value : data->x[element_at(&t->x, from)];
                    sum += (uint64_t)x * (uint64_t)*w;
                    size += fabs((double)x * (double)*w);
                }
    const int64_t bias = t->has_bias ? data->bias[at[1]] : 0;
    const int64_t residual = t->has_residual ? data->residual[element_at(&t->y, at)] : 0;
    int64_t y = wrapped(t->native, sum + (uint64_t)bias + (uint64_t)residual);
    if (p->activation == CONV_CLAMP && (double)y < p->activation_a) y = (int64_t)p->activation_a;
    if (p->activation == CONV_CLAMP && (double)y > p->activation_b) y = (int64_t)p->activation_b;
    *magnitude = size + fabs((double)bias) + fabs((double)residual);
    return y;
}

int64_t storage_bytes(storage s) {
    static const int bytes[] = {[F32] = 4,  [F64] = 8, [I32] = 4, [I64] = 8, [F16] = 2,
                                [BF16] = 2, [I8] = 1,  [U8] = 1,  [I16] = 2, [U16] = 2};
    return bytes[s];
}

int storage_is_float(storage s) { return s == F32 || s == F64 || s == F16 || s == BF16; }

storage storage_named(const char *dtype) {
    static const char *const names[] = {"f32", "f64", "i32", "i64"};
    storage s = F32;
    while (strcmp(names[s], dtype) != 0) s++;
    return s;
}

/* To a multiple of 2^(exponent - bits), the exponent being the value's own; ties to even. */
static double rounded(double v, int bits) {
    int exponent;
    if (v == 0) return 0;
    frexp(v, &exponent);
    return ldexp(nearbyint(ldexp(v, bits - exponent)), exponent - bits);
}

/* An integer that needs no subnormal: the sign, the exponent, the mantissa. */
static uint16_t half_bits(double v) {
    int exponent;
    const double fraction = frexp(fabs(v), &exponent);
    if (v == 0) return 0;
    if (fabs(v) > 65504) return (uint16_t)((v < 0) << 15 | 0x7c00);
    return (uint16_t)((v < 0) << 15 | (exponent + 14) << 10 | ((int)ldexp(fraction, 11) & 0x3ff));
}

static double half_value(uint16_t h) {
    const int exponent = h >> 10 & 31;
    const double magnitude = exponent == 31  ? (h & 0x3ff ? NAN : INFINITY)
                             : exponent == 0 ? ldexp(h & 0x3ff, -24)
                                             : ldexp((h & 0x3ff) | 0x400, exponent - 25);
    return h >> 15 ? -magnitude : magnitude;
}

void put(storage s, void *buffer, int64_t at, int64_t value) {
    const float f32 = (float)(s == BF16 ? rounded((double)value, 8) : (double)value);
    const double f64 = (double)value;
    const uint64_t bits = (uint64_t)value;
    uint16_t half = (uint16_t)value;
    uint32_t word;
    const void *from = s == F32 ? (const void *)&f32 : s == F64 ? (const void *)&f64 : (const void *)&bits;
    if (s == F16) half = half_bits(rounded(f64, 11));
    memcpy(&word, &f32, sizeof word);
    if (s == BF16) half = (uint16_t)(word >> 16);
    if (storage_bytes(s) == 2) from = &half;
    memcpy((char *)buffer + at * storage_bytes(s), from, (size_t)storage_bytes(s)); /* integers: the low bytes */
}

double get(storage s, const void *buffer, int64_t at) {
    uint64_t bits = 0;
    float f32;
    double f64;
    memcpy(&bits, (const char *)buffer + at * storage_bytes(s), (size_t)storage_bytes(s));
    const uint32_t low = (uint32_t)(s == BF16 ? bits << 16 : bits);
    memcpy(&f32, &low, sizeof f32);
    memcpy(&f64, &bits, sizeof f64);
    switch (s) {
        case F16:
            return half_value((uint16_t)bits);
        case F64:
            return f64;
        case F32:
        case BF16:
            return (double)f32;
        default:
            return (double)(int64_t)bits;
    }
}
