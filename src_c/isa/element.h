/* Elements of x and y as they are stored (conv.h, CONV_F16 ...), to and from the format of the sums.
 *
 * Native elements are copied as vectors. Narrower ones are widened when x is copied and rounded once when y is stored
 * (narrow.h). Tails: the last vector of a run overlaps the one before, or elements go one by one. */
#ifndef ELEMENT_H
#define ELEMENT_H

#include "narrow.h"

INLINE int64_t element_bytes(int32_t type) {
    return type == CONV_NATIVE ? (int64_t)sizeof(real) : type == CONV_I8 || type == CONV_U8 ? 1 : 2;
}

/* Some neighbouring bytes, no more than a vector has: two pieces of a power of two that overlap. */
INLINE void copy_near(void *to, const void *from, int64_t bytes) {
    char *dst = to;
    const char *src = from;
    UNROLL
    for (int64_t piece = VECTOR_BYTES / 2; piece > 0; piece /= 2) {
        if (bytes < piece) continue;
        memcpy(dst, src, (size_t)piece);
        memcpy(dst + bytes - piece, src + bytes - piece, (size_t)piece);
        return;
    }
}

/* No more than LANES neighbours. */
INLINE void copy_few(real *restrict dst, const real_unaligned *restrict src, int64_t count) {
    copy_near(dst, src, count * (int64_t)sizeof(real));
}

/* The first elements of a vector. */
INLINE void store_few(real *dst, vec v, int64_t count) {
#if defined(__AVX512F__) && CONV_BITS(CONV_DTYPE) == 32
    _mm512_mask_storeu_ps(dst, (__mmask16)((1u << count) - 1), (__m512)v);
#elif defined(__AVX512F__)
    _mm512_mask_storeu_pd(dst, (__mmask8)((1u << count) - 1), (__m512d)v);
#else
    copy_few(dst, (const real_unaligned *)&v, count);
#endif
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
    } else if (step == 1) {
        copy_few(dst, src, count);
    } else {
        for (int64_t i = 0; i < count; i++) dst[i] = src[step * i];
    }
}

/* The way back, to where no element overlaps another. */
INLINE void store_strided(real *restrict dst, int64_t step, int64_t count, const real *restrict src) {
    if (step == 1 && count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_store(dst + i, vec_load(src + i));
        vec_store(dst + count - LANES, vec_load(src + count - LANES));
    } else {
        for (int64_t i = 0; i < count; i++) dst[i * step] = src[i];
    }
}

/* Moves count elements of a few bytes between places that are steps of bytes apart. */
INLINE void copy_bytes(const int64_t bytes, char *dst, int64_t dst_step, const char *src, int64_t src_step,
                       int64_t count) {
    for (int64_t i = 0; i < count; i++) memcpy(dst + i * dst_step, src + i * src_step, (size_t)bytes);
}

/* Whether the lower half of a pair in memory is the first. */
#define LOWER_FIRST (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)

/* A run of one type, a constant where this is inlined. */
INLINE void load_run(const int32_t type, const char *x, int64_t step, int64_t count, real *restrict dst) {
    const int64_t bytes = element_bytes(type);
    int64_t i = 0;
    if (step == 1 && count >= LANES) {
        for (; i < count - LANES; i += LANES) vec_store(dst + i, vec_widen(type, x + i * bytes));
        vec_store(dst + count - LANES, vec_widen(type, x + (count - LANES) * bytes));
        return;
    }
    if (step == 2 && bytes == 2 && LOWER_FIRST)
        for (; i < count - LANES; i += LANES)
            vec_store(dst + i, vec_widen_evens(type, vec_load((const real *)(x + 2 * i * bytes))));
    for (; i < count; i += LANES) {
        const int64_t some = min_i64(LANES, count - i);
        char near[LANES * sizeof(real)] = {0};
        if (step == 1)
            copy_near(near, x + i * bytes, some * bytes);
        else
            copy_bytes(bytes, near, bytes, x + i * step * bytes, step * bytes, some);
        if (some == LANES)
            vec_store(dst + i, vec_widen(type, near));
        else
            store_few(dst + i, vec_widen(type, near), some);
    }
}

INLINE void store_run(const int32_t type, char *y, int64_t step, int64_t count, const real *restrict src) {
    const int64_t bytes = element_bytes(type);
    if (step == 1 && count >= LANES) {
        for (int64_t i = 0; i < count - LANES; i += LANES) vec_narrow(type, y + i * bytes, vec_load(src + i));
        vec_narrow(type, y + (count - LANES) * bytes, vec_load(src + count - LANES));
        return;
    }
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = min_i64(LANES, count - i);
        char near[LANES * sizeof(real)];
        real wide[LANES] = {0};
        copy_few(wide, (const real_unaligned *)src + i, some);
        vec_narrow(type, near, vec_load(wide));
        if (step == 1)
            copy_near(y + i * bytes, near, some * bytes);
        else
            copy_bytes(bytes, y + i * step * bytes, step * bytes, near, bytes, some);
    }
}

#if CONV_BITS(CONV_DTYPE) != 32
#define NARROW_TYPES(row)
#elif REAL_IS_INTEGER
#define NARROW_TYPES(row) row(CONV_I8) row(CONV_U8) row(CONV_I16) row(CONV_U16)
#else
#define NARROW_TYPES(row) row(CONV_F16) row(CONV_BF16)
#endif
#define LOAD_CASE(type) \
    case type: \
        return load_run(type, (const char *)x + at * element_bytes(type), step, count, dst);
#define STORE_CASE(type) \
    case type: \
        return store_run(type, (char *)y + at * element_bytes(type), step, count, src);

/* dst[i] = x[at + i * step] */
static inline void load_narrow(int32_t type, const void *x, int64_t at, int64_t step, int64_t count,
                               real *restrict dst) {
    switch (type) {
        NARROW_TYPES(LOAD_CASE)
        default:
            copy_strided(dst, (const real_unaligned *)x + at, step, count);
    }
}

/* y[at + i * step] = src[i] */
static inline void store_narrow(int32_t type, void *y, int64_t at, int64_t step, int64_t count,
                                const real *restrict src) {
    switch (type) {
        NARROW_TYPES(STORE_CASE)
        default:
            store_strided((real *)y + at, step, count, src);
    }
}

INLINE void load_elements(int32_t type, const void *x, int64_t at, int64_t step, int64_t count, real *restrict dst) {
    if (type == CONV_NATIVE)
        copy_strided(dst, (const real_unaligned *)x + at, step, count);
    else
        load_narrow(type, x, at, step, count, dst);
}

INLINE void store_elements(int32_t type, void *y, int64_t at, int64_t step, int64_t count, const real *restrict src) {
    if (type == CONV_NATIVE)
        store_strided((real *)y + at, step, count, src);
    else
        store_narrow(type, y, at, step, count, src);
}

INLINE real load_element(int32_t type, const void *x, int64_t at) {
    real value = 0;
    if (type == CONV_NATIVE) return ((const real_unaligned *)x)[at];
    load_narrow(type, x, at, 1, 1, &value);
    return value;
}

/* Half a vector of pairs or more, but less than one, as two pieces that overlap. */
INLINE void copy_few_pairs(real *restrict even, real *restrict odd, const real_unaligned *src, int64_t count) {
    enum { PIECE = LANES / 2 };
    real first[2 * LANES] = {0};
    vec a, b;
    for (int64_t i = 0; i < 2; i++) {
        const int64_t at = i ? count - PIECE : 0;
        memcpy(first, (const void *)(src + 2 * at), LANES * sizeof(real));
        vec_load_pairs(first, &a, &b);
        memcpy(even + at, &a, PIECE * sizeof(real));
        memcpy(odd + at, &b, PIECE * sizeof(real));
    }
}

/* even[i] = x[src + 2 * i], odd[i] = x[src + 2 * i + 1], i < count. */
INLINE void copy_pairs(real *restrict even, real *restrict odd, int32_t type, const void *x, int64_t src,
                       int64_t count) {
    if (type == CONV_NATIVE && count >= LANES / 2 && count < LANES) {
        copy_few_pairs(even, odd, (const real_unaligned *)x + src, count);
        return;
    }
    if (count < LANES) {
        load_elements(type, x, src, 2, count, even);
        load_elements(type, x, src + 1, 2, count, odd);
        return;
    }
    const char *from = (const char *)x + src * element_bytes(type);
    for (int64_t i = 0;; i = min_i64(i + LANES, count - LANES)) {
        vec a, b;
        if (type == CONV_NATIVE) {
            vec_load_pairs((const real *)from + 2 * i, &a, &b);
        } else {
            const vec pairs = vec_load((const real *)(from + 4 * i));
            a = vec_widen_evens(type, pairs), b = vec_widen_odds(type, pairs);
        }
        vec_store(even + i, a);
        vec_store(odd + i, b);
        if (i == count - LANES) break;
    }
}

/* LANES neighbours. */
INLINE vec load_vector(int32_t type, const void *x, int64_t at) {
    if (type == CONV_NATIVE) return vec_load((const real *)x + at);
    return vec_widen(type, (const char *)x + at * element_bytes(type));
}

INLINE void store_vector(int32_t type, void *y, int64_t at, vec v) {
    if (type == CONV_NATIVE)
        vec_store((real *)y + at, v);
    else
        vec_narrow(type, (char *)y + at * element_bytes(type), v);
}

/* dst[c * pitch + i] = x[at + c + i * step] for channels c, LANES at most, neighbours in x, and i < count: a vector of
 * channels is read at once, whatever of it is asked for. One by one, each would be a line of L1 of its own. The last
 * block overlaps the one before. */
INLINE void load_channels_of(const int32_t type, const void *x, int64_t at, int64_t step, int64_t channels,
                             int64_t count, real *restrict dst, int64_t pitch) {
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t i = max_i64(min_i64(first, count - LANES), 0);
        vec rows[LANES];
        UNROLL
        for (int j = 0; j < LANES; j++) rows[j] = load_vector(type, x, at + min_i64(i + j, count - 1) * step);
        vec_transpose(rows);
        for (int64_t c = 0; c < channels; c++) {
            if (count >= LANES)
                vec_store(dst + c * pitch + i, rows[c]);
            else
                store_few(dst + c * pitch, rows[c], count);
        }
    }
}

static inline void load_channels(int32_t type, const void *x, int64_t at, int64_t step, int64_t count,
                                 real *restrict dst, int64_t pitch) {
    if (type == CONV_NATIVE)
        load_channels_of(CONV_NATIVE, x, at, step, LANES, count, dst, pitch);
    else
        load_channels_of(type, x, at, step, LANES, count, dst, pitch);
}

#endif
