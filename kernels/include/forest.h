/* Forests evaluated bit-sliced: one bit per row, a whole block of rows per instruction.
 *
 *   bins        uint8 [columns, rows]    of a value: how many of the column's thresholds are below it; NaN: 255
 *   masks       bits [slots, rows]       slot 0: none, slot 1: all, then one slot for each condition, then temporaries
 *   program     of each piece: temporary i = c ? a : b, where c, a and b are earlier slots, bit by bit
 *   planes      of each piece: the slots that hold bit 0 … 5 of each row's leaf number
 *   margins     an output's initial value and its leaves' values, added in the order of the pieces, each sum rounded to
 *               double, or to float for outputs that are `singles`; the last sum is divided by the output's divisor
 *
 * A condition tells bins that go left from bins that do not, either as a range, (uint8)(bin - low) <= width, which may
 * wrap around and so include NaN, or as a set of 256 bits. A piece is a tree, or one of the parts into which a tree of
 * more than 64 leaves is cut; rows that end in another part get the value -0.0, whose addition changes no bit.
 */
#ifndef RECSERVE_FOREST_H
#define RECSERVE_FOREST_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifdef __FAST_MATH__
#error "forest.h defines the order of its additions: build without -ffast-math"
#endif

enum {
    FOREST_NAN_BIN = 255,
    FOREST_STEPS = 256,      /* thresholds of a column, padded with infinity */
    FOREST_PIVOTS = 16,      /* every sixteenth of them: steps 15, 31, … 255 */
    FOREST_SET_BYTES = 32,
    FOREST_PLANES = 6,
    FOREST_LEAVES = 64,
    FOREST_FIRST_CONDITION = 2,
    FOREST_BATCH = 16,       /* pieces whose leaf numbers are kept before their values are added */
    FOREST_MAX_GROUPS = 8,   /* a group is 64 rows, the widest block 512 */
    FOREST_MAX_ROWS = 64 * FOREST_MAX_GROUPS,
    FOREST_FEW_ROWS = 1,
};

typedef struct {
    ptrdiff_t columns, ranges, sets, outputs;
    int simple; /* no operation's c is a result */
    const int32_t *column_features;
    const float *steps32, *pivots32; /* thresholds rounded down to float32: x <= t is the same for every float32 x */
    const double *steps64, *pivots64;
    const int64_t *range_bounds; /* [columns + 1] into range_lows and range_widths */
    const uint8_t *range_lows, *range_widths;
    const int64_t *set_bounds; /* [columns + 1] into set_bits */
    const uint8_t *set_bits;
    const int64_t *op_bounds; /* [pieces + 1] into ops */
    const uint32_t *ops;
    const uint32_t *planes;
    const double *leaves;
    const uint16_t *leaf_words; /* [pieces, 4, 64]: the leaves' 16-bit words, lowest first */
    const float *leaves32; /* leaves rounded to float32 */
    const uint16_t *leaf_words32; /* [pieces, 2, 64]: their words */
    const int64_t *output_bounds; /* [outputs + 1] into the pieces */
    const double *initials, *divisors; /* [outputs] */
    const uint8_t *singles; /* [outputs]: whether leaves and sums are float32 */
} forest_t;


/* Scratch of one call, for blocks of up to FOREST_MAX_ROWS rows; every part starts on a cache line. */
typedef struct {
    uint8_t *bins;    /* [columns, 64 * groups] */
    uint64_t *masks;  /* [slots, groups] */
    uint8_t *numbers; /* [FOREST_BATCH, 64 * groups] leaf numbers */
    double *sums;     /* [64 * groups]; floats where sums are float32 */
} forest_scratch_t;

typedef struct {
    const char *name;
    /* Bins of one column, for `n` values that lie `stride` elements apart. */
    void (*bin32)(const forest_t *forest, ptrdiff_t column, const float *values, ptrdiff_t stride, ptrdiff_t n,
                  uint8_t *bins);
    void (*bin64)(const forest_t *forest, ptrdiff_t column, const double *values, ptrdiff_t stride, ptrdiff_t n,
                  uint8_t *bins);
    /* The masks of the listed columns' conditions, from scratch->bins. */
    void (*conditions)(const forest_t *forest, const forest_scratch_t *scratch, const int32_t *columns,
                       ptrdiff_t count, ptrdiff_t groups);
    /* The masks of columns whose bin is the same for all rows: bins[i] of columns[i]. */
    void (*constants)(const forest_t *forest, const forest_scratch_t *scratch, const int32_t *columns, ptrdiff_t count,
                      const uint8_t *bins, ptrdiff_t groups);
    /* Margins of a block from its masks: out[row * outputs + output] for n rows. */
    void (*margins)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t groups, ptrdiff_t n,
                    double *out);
    /* The same with leaves and sums in float32. */
    void (*margins32)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t groups, ptrdiff_t n,
                      double *out);
    /* Groups of 64 rows that a block may have, largest first; ends in 0. */
    ptrdiff_t groups[4];
} forest_variant_t;

/* The bit of a bin in a condition's set. */
static inline int forest_in_set(const uint8_t *set, uint8_t bin) { return set[bin >> 3] >> (bin & 7) & 1; }

#define FOREST_VARIANT portable
#define FOREST_LEVEL 0
#define FOREST_TARGET
#define FOREST_GROUPS {1, 0}
#include "forest_variant.h"

#ifdef __x86_64__
#define FOREST_VARIANT avx2
#define FOREST_LEVEL 1
#define FOREST_TARGET __attribute__((target("avx2,popcnt,bmi,bmi2")))
#define FOREST_GROUPS {4, 1, 0}
#include "forest_variant.h"

#define FOREST_VARIANT avx512
#define FOREST_LEVEL 2
#define FOREST_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,popcnt,bmi,bmi2")))
#define FOREST_GROUPS {8, 4, 1, 0}
#include "forest_variant.h"
#endif

/* The variant of that name, or NULL where this build or this CPU lacks it. */
static const forest_variant_t *forest_variant_named(const char *name) {
    if (strcmp(name, "portable") == 0) return &forest_portable;
#ifdef __x86_64__
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("popcnt"))
        return &forest_avx2;
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2"))
        return &forest_avx512;
#endif
    return NULL;
}

/* The widest block that `n` remaining rows fill, or the narrowest that holds them. */
static ptrdiff_t forest_groups_for(const forest_variant_t *variant, ptrdiff_t n) {
    const ptrdiff_t *groups = variant->groups;
    while (groups[1] != 0 && n <= 64 * groups[1]) groups++;
    return groups[0];
}

/* One row's bit of a slot, found from the top: only the operations on its way are looked at. Conditions must be given as
 * masks in groups of one, and no operation's c may be a result. Operands are earlier slots, so the way ends. */
static inline unsigned forest_bit(const uint64_t *masks, const uint32_t *ops, uint32_t first, uint32_t slot, int row) {
    while (slot >= first) {
        const uint32_t *op = ops + 3 * (ptrdiff_t)(slot - first);
        slot = masks[op[0]] >> row & 1 ? op[1] : op[2];
    }
    return (unsigned)(masks[slot] >> row & 1);
}

/* sum + a leaf of the pieces, rounded to the type of output k's sums. */
static inline double forest_add(const forest_t *forest, ptrdiff_t k, double sum, int64_t leaf) {
    return forest->singles[k] ? (double)((float)sum + forest->leaves32[leaf]) : sum + forest->leaves[leaf];
}

/* Margins of a few rows, by forest_bit: cheaper than whole programs for up to FOREST_FEW_ROWS. */
static void forest_few_margins(const forest_t *forest, const uint64_t *masks, ptrdiff_t n, double *out) {
    const uint32_t first = (uint32_t)(FOREST_FIRST_CONDITION + forest->ranges + forest->sets);
    for (int row = 0; row < n; row++)
        for (ptrdiff_t k = 0; k < forest->outputs; k++) {
            double sum = forest->initials[k];
            for (int64_t piece = forest->output_bounds[k]; piece < forest->output_bounds[k + 1]; piece++) {
                const uint32_t *ops = forest->ops + 3 * forest->op_bounds[piece];
                const uint32_t *planes = forest->planes + piece * FOREST_PLANES;
                unsigned leaf = 0;
                for (int p = 0; p < FOREST_PLANES; p++) leaf |= forest_bit(masks, ops, first, planes[p], row) << p;
                sum = forest_add(forest, k, sum, piece * FOREST_LEAVES + leaf);
            }
            out[row * forest->outputs + k] = sum / forest->divisors[k];
        }
}

/* bins[columns[i], row] = table[rows[row], i] for a block of n rows; what lies behind the last row is bin 0. */
static void forest_gather(const uint8_t *table, const int64_t *rows, ptrdiff_t n, const int32_t *columns,
                          ptrdiff_t count, uint8_t *bins, ptrdiff_t width) {
    for (ptrdiff_t row = 0; row < n; row++) {
        const uint8_t *line = table + rows[row] * count;
        if (row + 16 < n) {
            const uint8_t *ahead = table + rows[row + 16] * count;
            for (ptrdiff_t byte = 0; byte < count; byte += 64) __builtin_prefetch(ahead + byte);
        }
        for (ptrdiff_t i = 0; i < count; i++) bins[columns[i] * width + row] = line[i];
    }
}

#endif
