/* Bitmaps over item rows: row r is bit r & 63 of word r >> 6.
 *
 * Words are combined in pieces that stay in the first-level cache, so each bitmap is read once and the result is written
 * and counted once, however many are combined.
 */
#ifndef RECSERVE_BITS_H
#define RECSERVE_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BITS_PIECE = 512 }; /* words: 4 KiB */
enum { BITS_PLANES = 8 };  /* of a number below 256 per row */

typedef struct {
    /* out = the intersection of n >= 1 bitmaps, one of which may be out itself; returns how many bits are set. */
    int64_t (*intersect)(const uint64_t *const *bitmaps, ptrdiff_t n, ptrdiff_t words, uint64_t *out);
    /* How many bits are set. */
    int64_t (*count)(const uint64_t *bitmap, ptrdiff_t words);
    /* out = the rows whose number lies in first..last. Bit b of row r's number is row r's bit in plane b, and plane b
     * is the b-th run of `words` words. Numbers are compared bit by bit, 64 rows at a time and more: O'Neil and
     * Quass, "Improved query performance with variant indexes", SIGMOD 1997. */
    void (*between)(const uint64_t *planes, ptrdiff_t words, uint64_t first, uint64_t last, uint64_t *out);
} bits_variant_t;

#define BITS_NAME(part) bits_##part##_portable
#define BITS_TARGET
#include "bits_variant.h"

#ifdef __x86_64__
#define BITS_NAME(part) bits_##part##_avx2
#define BITS_TARGET __attribute__((target("avx2,popcnt")))
#include "bits_variant.h"

#define BITS_NAME(part) bits_##part##_avx512
#define BITS_TARGET __attribute__((target("avx512f,avx512vpopcntdq,popcnt")))
#include "bits_variant.h"
#endif

/* The variant of that name, or NULL where this build or this CPU (or its operating system) lacks it. */
static const bits_variant_t *bits_variant_named(const char *name) {
    if (strcmp(name, "portable") == 0) return &bits_variant_portable;
#ifdef __x86_64__
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return &bits_variant_avx2;
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512vpopcntdq")) return &bits_variant_avx512;
#endif
    return NULL;
}

#endif
