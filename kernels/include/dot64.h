/* Inner products of float32 vectors in double: one definition, several instruction sets, the same bits from each.
 *
 * Products of two floats are exact in double: only the order of the additions decides the bits, and a fused multiply-add
 * has those of a multiplication and an addition. Element i of a vector belongs to lane i mod 8; each lane starts at +0
 * and adds its products in ascending order of i; the lanes are then added to +0 from the first to the last.
 *
 * A lane that starts at +0 never becomes -0, so padding the last chunk with zeros changes nothing.
 */
#ifndef RECSERVE_DOT64_H
#define RECSERVE_DOT64_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifdef __FAST_MATH__
#error "dot64.h defines the order of its additions: build without -ffast-math"
#endif

enum {
    DOT64_LANES = 8,
    DOT64_AHEAD = 8, /* rows between the one that is read and the one that is fetched */
    DOT64_LINE = 16  /* floats of a cache line */
};

/* products[q * stride + i] = table[rows[i]] . queries[q] for n rows of a [*, dim] table. Each of the `count` queries is
 * zero-padded to a multiple of 8. Behind the n rows stand `more` that will be asked for next: they are fetched. */
typedef void (*dot64_function)(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n, ptrdiff_t more,
                               const double *queries, ptrdiff_t count, double *products, ptrdiff_t stride);

/* How many doubles a padded vector has. */
static inline ptrdiff_t dot64_padded(ptrdiff_t dim) { return (dim + DOT64_LANES - 1) / DOT64_LANES * DOT64_LANES; }

/* A vector as a query. */
static inline void dot64_widen(const float *vector, ptrdiff_t dim, double *query) {
    for (ptrdiff_t i = 0; i < dim; i++) query[i] = vector[i];
    for (ptrdiff_t i = dim; i < dot64_padded(dim); i++) query[i] = 0.0;
}

/* Rows lie anywhere in a table larger than the caches. Always inlined: GCC takes a function that does nothing but fetch
 * for one without effect, and may leave out its calls. */
static inline __attribute__((always_inline)) void dot64_fetch(const float *row, ptrdiff_t dim) {
    for (ptrdiff_t i = 0; i < dim; i += DOT64_LINE) __builtin_prefetch(row + i);
}

typedef double dot64_pair __attribute__((vector_size(16)));

/* Turns a square: element j of register i becomes element i of register j. */
static inline void dot64_portable_transpose(dot64_pair square[2]) {
    const dot64_pair first = {square[0][0], square[1][0]}, second = {square[0][1], square[1][1]};
    square[0] = first;
    square[1] = second;
}

#define DOT64_VARIANT dot64_portable
#define DOT64_WIDTH 2
#define DOT64_TILE 3
#define DOT64_TARGET
#define DOT64_WIDEN(floats) ((dot64_portable_register){(floats)[0], (floats)[1]})
#define DOT64_ADD(sum, a, b) ((sum) + (a) * (b))
#include "dot64_variant.h"

#ifdef __x86_64__
__attribute__((target("avx2"))) static inline void dot64_avx2_transpose(__m256d square[4]) {
    __m256d pairs[2][2]; /* [odd]: the even or the odd columns of rows 0 and 1, and of rows 2 and 3 */
    for (int i = 0; i < 2; i++) {
        pairs[0][i] = _mm256_unpacklo_pd(square[2 * i], square[2 * i + 1]);
        pairs[1][i] = _mm256_unpackhi_pd(square[2 * i], square[2 * i + 1]);
    }
    for (int odd = 0; odd < 2; odd++) {
        square[odd] = _mm256_permute2f128_pd(pairs[odd][0], pairs[odd][1], 0x20);
        square[odd + 2] = _mm256_permute2f128_pd(pairs[odd][0], pairs[odd][1], 0x31);
    }
}

#define DOT64_VARIANT dot64_avx2
#define DOT64_WIDTH 4
#define DOT64_TILE 2
#define DOT64_TARGET __attribute__((target("avx2,fma")))
#define DOT64_WIDEN(floats) _mm256_cvtps_pd(_mm_loadu_ps(floats))
#define DOT64_ADD(sum, a, b) _mm256_fmadd_pd(a, b, sum)
#include "dot64_variant.h"

__attribute__((target("avx512f"))) static inline void dot64_avx512_transpose(__m512d square[8]) {
    __m512d pairs[2][4]; /* [odd]: the even or the odd columns of rows 0 and 1, of 2 and 3, of 4 and 5, of 6 and 7 */
    for (int i = 0; i < 4; i++) {
        pairs[0][i] = _mm512_unpacklo_pd(square[2 * i], square[2 * i + 1]);
        pairs[1][i] = _mm512_unpackhi_pd(square[2 * i], square[2 * i + 1]);
    }
    for (int odd = 0; odd < 2; odd++) {
        __m512d columns[2][2]; /* 0 and 4, then 2 and 6, plus `odd`, of rows 0 to 3 and of rows 4 to 7 */
        for (int i = 0; i < 2; i++) {
            columns[0][i] = _mm512_shuffle_f64x2(pairs[odd][2 * i], pairs[odd][2 * i + 1], 0x88);
            columns[1][i] = _mm512_shuffle_f64x2(pairs[odd][2 * i], pairs[odd][2 * i + 1], 0xdd);
        }
        for (int i = 0; i < 2; i++) {
            square[odd + 2 * i] = _mm512_shuffle_f64x2(columns[i][0], columns[i][1], 0x88);
            square[odd + 2 * i + 4] = _mm512_shuffle_f64x2(columns[i][0], columns[i][1], 0xdd);
        }
    }
}

#define DOT64_VARIANT dot64_avx512
#define DOT64_WIDTH 8
#define DOT64_TILE 3
#define DOT64_TARGET __attribute__((target("avx512f")))
#define DOT64_WIDEN(floats) _mm512_cvtps_pd(_mm256_loadu_ps(floats))
#define DOT64_ADD(sum, a, b) _mm512_fmadd_pd(a, b, sum)
#include "dot64_variant.h"
#endif

/* The variant of that name, or NULL where this build or this CPU (or its operating system) lacks it. */
static dot64_function dot64_variant_named(const char *name) {
    if (strcmp(name, "portable") == 0) return dot64_portable;
#ifdef __x86_64__
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return dot64_avx2;
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f")) return dot64_avx512;
#endif
    return NULL;
}

#endif
