/* Inner products of float32 vectors: one definition, several instruction sets, the same bits from each.
 *
 * Floating-point addition is not associative, so the order is part of the definition. Element i of a vector belongs to
 * lane i mod 16; each lane starts at +0 and adds its products in ascending order of i, every product and every sum
 * rounded to float32. The 16 lanes then fold in halves, 16 -> 8 -> 4 -> 2 -> 1, lane l adding lane l + half.
 *
 * - Build with -ffp-contract=off: a fused multiply-add would round once instead of twice.
 * - A lane that starts at +0 never becomes -0, so padding the last chunk with zeros changes nothing.
 */
#ifndef RECSERVE_DOT_H
#define RECSERVE_DOT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "dot.h defines the order of its additions: build without -ffast-math"
#endif

enum { DOT_LANES = 16 };

typedef float dot_quad __attribute__((vector_size(16)));

/* scores[i] = table[rows[i]] . query for n rows of a [*, dim] table. `query` is zero-padded to a multiple of 16. */
typedef void (*dot_function)(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n, const float *query,
                             float *scores);

#define DOT_VARIANT dot_portable
#define DOT_WIDTH 4
#define DOT_TARGET
#include "dot_variant.h"

#ifdef __x86_64__
#define DOT_VARIANT dot_avx2
#define DOT_WIDTH 8
#define DOT_TARGET __attribute__((target("avx2")))
#include "dot_variant.h"

#define DOT_VARIANT dot_avx512
#define DOT_WIDTH 16
#define DOT_TARGET __attribute__((target("avx512f")))
#include "dot_variant.h"
#endif

/* Reads one float of every cache line in ascending order, so that the hardware prefetcher sees a plain stream. Scoring
 * then finds the lines in cache, whatever rows it skips and however far its instructions run ahead. */
static inline void dot_fetch(const float *start, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 16) (void)*(const volatile float *)(start + i);
}

/* Rows that lie anywhere in a table larger than the caches: those of the next step are fetched while this one is
 * scored. Always inlined: GCC takes a function that does nothing but fetch for one without effect, and may leave out
 * its calls. */
enum { DOT_STEP = 8, DOT_LINE = 16 };

static inline __attribute__((always_inline)) void dot_prefetch(const float *table, ptrdiff_t dim, const int64_t *rows,
                                                               ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t at = 0; at < dim; at += DOT_LINE) __builtin_prefetch(table + rows[i] * dim + at);
}

static inline void dot_scattered(dot_function dot, const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n,
                                 const float *query, float *scores) {
    dot_prefetch(table, dim, rows, n < DOT_STEP ? n : DOT_STEP);
    for (ptrdiff_t start = 0; start < n; start += DOT_STEP) {
        const ptrdiff_t next = start + DOT_STEP, end = next < n ? next : n;
        dot_prefetch(table, dim, rows + end, n - end < DOT_STEP ? n - end : DOT_STEP);
        dot(table, dim, rows + start, end - start, query, scores + start);
    }
}

/* The variant of that name, or NULL where this build or this CPU (or its operating system) lacks it. */
static dot_function dot_variant_named(const char *name) {
    if (strcmp(name, "portable") == 0) return dot_portable;
#ifdef __x86_64__
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return dot_avx2;
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f")) return dot_avx512;
#endif
    return NULL;
}

#endif
