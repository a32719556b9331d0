/* Selecting and sorting scored rows as 64-bit keys.
 *
 * A key holds the score in its upper half, mapped so that higher scores are larger numbers, and the row's complement in
 * its lower half: one unsigned comparison then says "higher score, ties by lower row", the order of every answer.
 */
#ifndef RECSERVE_SELECT_H
#define RECSERVE_SELECT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t key_join(uint32_t rank, uint32_t row) { return (uint64_t)rank << 32 | (uint32_t)~row; }
static inline uint32_t key_rank(uint64_t key) { return (uint32_t)(key >> 32); }
static inline uint32_t key_row(uint64_t key) { return ~(uint32_t)key; }

/* Floats as integers of the same order; -0 is taken as +0. The score must not be NaN. */
static inline uint32_t rank_of_score(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits ^ (-(bits >> 31) | 0x80000000u); /* without a branch, so that loops vectorise */
}

static inline float score_of_rank(uint32_t rank) {
    const uint32_t bits = rank & 0x80000000u ? rank & 0x7fffffffu : ~rank;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static inline void key_swap(uint64_t *a, uint64_t *b) {
    const uint64_t kept = *a;
    *a = *b;
    *b = kept;
}

/* Moves the median of the first, middle and last key to the end. */
static inline void key_pivot(uint64_t *keys, ptrdiff_t n) {
    uint64_t *middle = keys + n / 2, *last = keys + n - 1;
    if (*middle < keys[0]) key_swap(middle, keys);
    if (*last < keys[0]) key_swap(last, keys);
    if (*middle < *last) key_swap(middle, last);
}

/* Moves the `k` largest keys to the front, in no particular order (quickselect). The loop over the keys has no branch
 * to mispredict. */
static void key_select(uint64_t *keys, ptrdiff_t n, ptrdiff_t k) {
    while (n > 1 && k > 0 && k < n) {
        key_pivot(keys, n);
        const uint64_t pivot = keys[n - 1];
        ptrdiff_t larger = 0;
        for (ptrdiff_t i = 0; i < n - 1; i++) {
            const uint64_t key = keys[i];
            keys[i] = keys[larger];
            keys[larger] = key;
            larger += key > pivot;
        }
        key_swap(keys + larger, keys + n - 1);
        if (k <= larger) {
            n = larger;
        } else {
            keys += larger + 1;
            n -= larger + 1;
            k -= larger + 1;
        }
    }
}

/* Sorts keys in descending order, byte by byte from the lowest (radix sort). `spare` holds n keys as well. */
static void key_sort(uint64_t *keys, uint64_t *spare, ptrdiff_t n) {
    uint64_t *from = keys, *to = spare;
    for (int shift = 0; shift < 64; shift += 8) {
        ptrdiff_t starts[257] = {0};
        for (ptrdiff_t i = 0; i < n; i++) starts[256 - (from[i] >> shift & 255)]++;
        if (n > 0 && starts[256 - (from[0] >> shift & 255)] == n) continue; /* all have the same byte here */
        for (int byte = 0; byte < 256; byte++) starts[byte + 1] += starts[byte];
        for (ptrdiff_t i = 0; i < n; i++) to[starts[255 - (from[i] >> shift & 255)]++] = from[i];
        uint64_t *const kept = from;
        from = to;
        to = kept;
    }
    if (from != keys) memcpy(keys, from, (size_t)n * sizeof *keys);
}

#endif
