/* The transforms of F(4x4, 3x3), and moving tiles between rows of pixels and vector lanes; G is in winograd_filter.h.
 *
 *     y = A^T [ (G g G^T) . (B^T d B) ] A        d: 6x6 inputs, g: 3x3 filter, y: 4x4 outputs, . element by element
 *
 * Interpolation points 0, a, -a, b, -b and infinity; N(p) = product of (p - q) over the other finite points q:
 *
 *     A^T = 1  1   1   1   1  0     G = 1/N(0)    0       0         N(0) = a^2 b^2
 *           0  a  -a   b  -b  0         1/N(a)   a/N(a)  a^2/N(a)   N(a) = N(-a) = 2 a^2 (a^2 - b^2)
 *           0 a^2 a^2 b^2 b^2 0         1/N(a)  -a/N(a)  a^2/N(a)   N(b) = N(-b) = 2 b^2 (b^2 - a^2)
 *           0 a^3-a^3 b^3-b^3 1         1/N(b)   b/N(b)  b^2/N(b)
 *                                       1/N(b)  -b/N(b)  b^2/N(b)
 *                                        0        0       1
 *     B^T = a^2 b^2    0    -a^2-b^2    0       1   0
 *             0    -a b^2     -b^2      a       1   0
 *             0     a b^2     -b^2     -a       1   0
 *             0    -a^2 b     -a^2      b       1   0
 *             0     a^2 b     -a^2     -b       1   0
 *             0    a^2 b^2      0   -a^2-b^2    0   1
 *
 * Every entry of A and B is a binary fraction of at most 11 bits: they and their products with small integers are exact
 * in floats. The points decide the error, that of the sums over channels above all: in units of u sum |x w|, the root
 * mean square at the worst output (the corner of a padded image, where only 4 of the 9 products are not zero), for
 * 64 channels in chains of 22, simulated for normal data and for data of one sign (Lavin and Gray's points are 1, 2):
 *     a, b       3/4, 11/8    3/4, 3/2    3/4, 5/4    1/2, 3/2    1, 2    1/2, 1
 *     normal        2.0          2.3         2.3         5.4       5.3      12      (the last three in chains of 64)
 *     one sign      3.0          3.1         2.9        10.5       5.4      9.6
 * Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Barabasz et al., "Error analysis and
 * improving the accuracy of Winograd convolution for deep neural networks", ACM TOMS 46(4), 2020. */
#ifndef WINOGRAD_TRANSFORM_H
#define WINOGRAD_TRANSFORM_H

#include "epilogue.h"

#define ELEMENTS 36
#define WINOGRAD_NR (2 * LANES) /* output channels of a panel of U and M */

#define POINT_A ((real)0.75)
#define POINT_B ((real)1.375)
#define A2 (POINT_A * POINT_A)
#define B2 (POINT_B * POINT_B)

/* v = B^T d. 12 operations, 10 of them fused. Zeros give zeros: padding can be left out. */
INLINE void winograd_input_1d(const vec d[6], vec v[6]) {
    const vec even_a = d[4] - B2 * d[2], odd_a = d[3] - B2 * d[1];
    const vec even_b = d[4] - A2 * d[2], odd_b = d[3] - A2 * d[1];
    v[0] = A2 * B2 * d[0] + (d[4] - (A2 + B2) * d[2]);
    v[1] = even_a + POINT_A * odd_a;
    v[2] = even_a - POINT_A * odd_a;
    v[3] = even_b + POINT_B * odd_b;
    v[4] = even_b - POINT_B * odd_b;
    v[5] = A2 * B2 * d[1] + (d[5] - (A2 + B2) * d[3]);
}

/* y = A^T m. 12 operations. */
INLINE void winograd_output_1d(const vec m[6], vec y[4]) {
    const vec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const vec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = POINT_A * difference_a + POINT_B * difference_b;
    y[2] = A2 * sum_a + B2 * sum_b;
    y[3] = A2 * POINT_A * difference_a + (B2 * POINT_B * difference_b + m[5]);
}

/* Four neighbouring pixels of a row, of one tile. */
typedef real quad __attribute__((vector_size(CONV_BITS(CONV_DTYPE) / 2), aligned(1), may_alias));

/* load_quads: quad k of the vector = the 4 pixels at z + at[4 * k].
 * transpose_quads: lane 4 * k + j of v[i] goes to lane 4 * k + i of v[j], for every k. Its own inverse. */
#if LANES >= 4 && defined(VEC_CAN_SHUFFLE)
INLINE vec load_quads(const real *z, const int32_t *at) {
#if LANES == 4
    return *(const quad *)(z + at[0]);
#else
    typedef real half __attribute__((vector_size(CONV_BITS(CONV_DTYPE))));
    const quad a = *(const quad *)(z + at[0]), b = *(const quad *)(z + at[4]);
    const half low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#if LANES == 8
    return low;
#else
    const quad c = *(const quad *)(z + at[8]), d = *(const quad *)(z + at[12]);
    const half high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

INLINE void transpose_quads(vec v[4]) {
    const vec a = vec_upper_1(v[0], v[1]), b = vec_lower_1(v[0], v[1]);
    const vec c = vec_upper_1(v[2], v[3]), d = vec_lower_1(v[2], v[3]);
    v[0] = vec_upper_2(a, c);
    v[1] = vec_upper_2(b, d);
    v[2] = vec_lower_2(a, c);
    v[3] = vec_lower_2(b, d);
}
#else
INLINE vec load_quads(const real *z, const int32_t *at) {
    vec v = vec_zero();
    for (int i = 0; i < LANES; i++) v[i] = z[at[i / 4 * 4] + i % 4];
    return v;
}

INLINE void transpose_quads(vec v[4]) {
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < LANES; k += 4)
            for (int j = 0; j < i; j++) {
                const real s = v[i][k + j];
                v[i][k + j] = v[j][k + i];
                v[j][k + i] = s;
            }
}
#endif

/* z = B^T d for `columns` columns of 6 rows, LANES or more; the last vector overlaps the one before. `ahead`: how far
 * what is read next lies. */
INLINE void winograd_columns(const real_unaligned *const row[6], int64_t columns, int64_t ahead, real *z,
                             int64_t pitch) {
    for (int64_t i = 0; i < columns; i += LANES) {
        vec d[6], v[6];
        i = min_i64(i, columns - LANES);
        UNROLL
        for (int j = 0; j < 6; j++) {
            d[j] = vec_load((const real *)row[j] + i);
            __builtin_prefetch(row[j] + i + ahead);
        }
        winograd_input_1d(d, v);
        UNROLL
        for (int j = 0; j < 6; j++) vec_store(z + j * pitch + i, v[j]);
    }
}

/* v[6][element], LANES tiles: d B, from a row d in which the tiles begin at `at`. Reads two pixels beyond a tile's 6.
 */
INLINE void winograd_input_row(const real *row, const int32_t *at, real *v, int64_t element) {
    vec d[8], u[6];
    UNROLL
    for (int k = 0; k < 4; k++) {
        d[k] = load_quads(row, at + k);
        d[4 + k] = load_quads(row + 4, at + k);
    }
    transpose_quads(d);
    transpose_quads(d + 4);
    winograd_input_1d(d, u);
    UNROLL
    for (int j = 0; j < 6; j++) vec_store(v + j * element, u[j]);
}

/* v[36][element], LANES tiles: B^T d B, from 6 rows z of B^T d in which the tiles begin at `at`. */
INLINE void winograd_input_tiles(const real *z, int64_t pitch, const int32_t *at, real *v, int64_t element) {
    for (int i = 0; i < 6; i++) winograd_input_row(z + i * pitch, at, v + 6 * i * element, element);
}

/* sums[4 rows][pitch pixels][LANES] = A^T M A of a tile, m[36][NR], but for its first columns. */
INLINE void winograd_output_tile(const real *m, int64_t skip_columns, real *sums, int64_t pitch) {
    vec columns[6][4];
    UNROLL
    for (int j = 0; j < 6; j++) {
        vec d[6];
        UNROLL
        for (int i = 0; i < 6; i++) d[i] = vec_load(m + (6 * i + j) * WINOGRAD_NR);
        winograd_output_1d(d, columns[j]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        vec d[6], v[4];
        UNROLL
        for (int j = 0; j < 6; j++) d[j] = columns[j][i];
        winograd_output_1d(d, v);
        UNROLL
        for (int j = 0; j < 4; j++)
            if (j >= skip_columns) vec_store(sums + (i * pitch + j) * LANES, v[j]);
    }
}

#endif
