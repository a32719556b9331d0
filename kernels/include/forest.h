/* Forests evaluated bit-sliced: one bit per row, a whole block of rows per instruction.
 *
 *   bins        uint8 [columns, rows]    of a value: how many of the column's thresholds are below it; NaN: 255
 *   masks       bits [slots, rows]       slot 0: none, slot 1: all, then one slot for each condition, then temporaries
 *   program     of each piece: temporary i = c ? a : b, where c, a and b are earlier slots, bit by bit
 *   names       of the slots. Where c is the same for all rows, the temporary needs no mask: it becomes another name of a
 *               or of b, which is a choice between two numbers instead of 512 bits (kernels/_forest_choices.py)
 *   planes      of each piece: the slots that hold bit 0 … 5 of each row's leaf number
 *   margins     an output's initial value and its leaves' values, added in the order of the pieces, each sum rounded to
 *               double, or to float for outputs that are `singles`; the last sum is divided by the output's divisor
 *
 * A condition tells bins that go left from bins that do not, either as a range, (uint8)(bin - low) <= width, which may
 * wrap around and so include NaN, or as a set of 256 bits. A piece is a tree, or one of the parts into which a tree of
 * more than 64 leaves is cut; rows that end in another part get the value -0.0, whose addition changes no bit.
 *
 * Blocks of up to 32 rows would leave most of those bits unused. For them the programs are unfolded into trees at load:
 *
 *   masks       uint32 [conditions]      a bit a row
 *   nodes       of up to four pieces, last first: a byte a row, the left or the right child's leaf number
 *
 * and a single row goes down the trees. Numbers, values and the order of additions are the same.
 *
 * Where the CPU can look bytes up in two registers, a row meets all nodes of a piece at once, a node in each byte:
 *
 *   row         the bins of 128 columns
 *   lanes       of each node: its column, its range of bins, and its children
 *   next        the child that the row takes from each node; next[next] is two steps away, then four, then eight
 *
 * and the root's byte is the leaf's number when the steps are as many as the deepest path has. It needs no masks.
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
    FOREST_FEW_ROWS = 32,    /* blocks of so few have a byte a row, and numbers instead of planes */
    FOREST_WALKED_ROWS = 1,  /* so few go down the trees one by one */
    FOREST_BUNDLE = 4,       /* pieces whose nodes are mixed, so that they need not wait for each other */
    FOREST_BUNDLE_NODES = 128 * FOREST_BUNDLE,
    FOREST_MANY_RANGES = 24, /* of a column: above, the masks of its bins' digits pay */
    FOREST_LANES = 64,       /* bytes of a register: nodes that a row meets at once */
    FOREST_LANE_COLUMNS = 128,
    FOREST_LINE = 64,        /* bytes of a cache line */
    FOREST_AHEAD = 2048,     /* so many bytes before they are read, programs are fetched: the hardware stops at pages */
};

/* A node of a piece as a tree: the slot of its condition in the upper 32 bits, its left and its right child in 16 each,
 * packed because one load takes less than three. A child is given by where its rows' leaf numbers stand in a block of
 * few rows: those of the leaves come first, then those of the bundle's nodes. */
typedef uint64_t forest_node_t;

static inline forest_node_t forest_node(uint32_t condition, unsigned left, unsigned right) {
    return (uint64_t)condition << 32 | left << 16 | right;
}
static inline uint32_t forest_condition(forest_node_t node) { return (uint32_t)(node >> 32); }
static inline unsigned forest_left(forest_node_t node) { return (uint32_t)node >> 16; }
static inline unsigned forest_right(forest_node_t node) { return (uint16_t)node; }

/* The nodes of a piece, its root in lane 0, or of two small ones, with roots in lanes 0 and 32. A child is a leaf's number,
 * or FOREST_LEAVES and a lane. */
typedef struct {
    uint8_t columns[FOREST_LANES], lows[FOREST_LANES], widths[FOREST_LANES];
    uint8_t lefts[FOREST_LANES], rights[FOREST_LANES];
} forest_lanes_t;

typedef struct {
    ptrdiff_t columns, ranges, sets, outputs;
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
    const forest_node_t *nodes; /* of bundles of up to FOREST_BUNDLE pieces of an output, roots first; may be NULL */
    const int64_t *bundle_bounds; /* [bundles + 1] into nodes */
    const uint32_t *joins; /* [joined, 2]: conditions of nodes, behind the others, that hold where either of two does */
    ptrdiff_t joined;
    const forest_lanes_t *lanes; /* of `lane_pieces` consecutive pieces of an output each; NULL where there are none */
    ptrdiff_t lane_pieces, lane_rows; /* lane_rows: blocks of so few are evaluated in lanes */
    int jumps;                        /* after so many doublings of a step, every path has ended */
} forest_t;

typedef enum { FOREST_PROGRAMS, FOREST_NODES, FOREST_IN_LANES } forest_source_t;

/* What a program consists of: operations as they were saved, or operations and choices of 16 or of 32 bits. */
typedef enum { FOREST_WHOLE, FOREST_NARROW, FOREST_WIDE } forest_kind_t;

/* The operations of all pieces, for one way of dividing columns into those that vary within a request and the others. */
typedef struct {
    forest_kind_t kind;
    const int64_t *op_bounds; /* [pieces + 1] into ops */
    const void *ops;          /* [*, 3]: c is a mask's slot, a and b are names */
    const int64_t *choice_bounds; /* [pieces + 1] into choices */
    const void *choices;          /* [*, 3] names, of which c says 0 or 1 */
    const uint32_t *planes;       /* [pieces, FOREST_PLANES] names */
    ptrdiff_t first_choice;       /* the name of a piece's first choice */
} forest_program_t;

/* Where forest_unfold writes: nodes, bounds and joins, and how many joins there are and may be. */
typedef struct {
    forest_node_t *nodes;
    int64_t *bundle_bounds;
    uint32_t *joins;
    ptrdiff_t joined, most_joined;
} forest_trees_t;

/* Scratch of one call, for blocks of up to FOREST_MAX_ROWS rows; every part starts on a cache line. */
typedef struct {
    uint8_t *bins;    /* [columns, 64 * groups] */
    uint64_t *masks;  /* [slots, groups]; for few rows uint32 [conditions and joins] */
    void *names;      /* the slot of each name: of a condition on a fixed column 0 or 1, of a choice what it took, else its */
                      /* own number */
    uint8_t *numbers; /* [FOREST_BATCH, 64 * groups] leaf numbers */
    double *sums;     /* [64 * groups]; floats where sums are float32 */
    uint8_t *values;  /* [FOREST_LEAVES + FOREST_BUNDLE_NODES, FOREST_FEW_ROWS] leaf numbers below each leaf and node, */
                      /* or, for lanes, bins [FOREST_FEW_ROWS, FOREST_LANE_COLUMNS] */
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
    /* Margins of a block from its masks: out[row * outputs + output] for n rows. */
    void (*margins)(const forest_t *forest, const forest_program_t *program, const forest_scratch_t *scratch,
                    ptrdiff_t groups, ptrdiff_t n, double *out);
    /* The same with leaves and sums in float32. */
    void (*margins32)(const forest_t *forest, const forest_program_t *program, const forest_scratch_t *scratch,
                      ptrdiff_t groups, ptrdiff_t n, double *out);
    /* For up to FOREST_FEW_ROWS rows, whose bins lie 64 apart, of a forest with nodes: masks, each a word of 32 bits, of
     * the listed columns' conditions, and of columns whose bin is the same for all rows, bins[i] of columns[i]; and, after
     * forest_join_masks, margins. The last is NULL in portable C, which has no instruction that makes bytes of bits. */
    void (*few_conditions)(const forest_t *forest, const forest_scratch_t *scratch, const int32_t *columns,
                           ptrdiff_t count);
    void (*few_constants)(const forest_t *forest, const forest_scratch_t *scratch, const int32_t *columns,
                          ptrdiff_t count, const uint8_t *bins);
    void (*few_margins)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t n, int single, double *out);
    /* Margins of up to lane_rows rows from their bins, which lie 64 apart. NULL where no CPU of the variant has the
     * instructions; forest_takes_lanes tells whether this one has. */
    void (*lane_margins)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t n, int single, double *out);
    /* Groups of 64 rows that a block may have, largest first; ends in 0. */
    ptrdiff_t groups[4];
} forest_variant_t;

/* The bit of a bin in a condition's set. */
static inline int forest_in_set(const uint8_t *set, uint8_t bin) { return set[bin >> 3] >> (bin & 7) & 1; }

/* The i-th of some numbers of slots, of 16 or 32 bits. */
static inline uint32_t forest_number(const void *numbers, ptrdiff_t i, const forest_kind_t kind) {
    return kind == FOREST_NARROW ? ((const uint16_t *)numbers)[i] : ((const uint32_t *)numbers)[i];
}
static inline void forest_set_number(void *numbers, ptrdiff_t i, uint32_t number, const forest_kind_t kind) {
    if (kind == FOREST_NARROW)
        ((uint16_t *)numbers)[i] = (uint16_t)number;
    else
        ((uint32_t *)numbers)[i] = number;
}

/* The slot of a name. */
static inline ptrdiff_t forest_slot(const void *names, const forest_kind_t kind, uint32_t name) {
    return kind == FOREST_WHOLE ? name : forest_number(names, name, kind);
}

/* Names the conditions of columns whose bin is the same for all rows, bins[i] of columns[i]: slot 1 where they hold. */
static inline void forest_fix_columns(const forest_t *forest, const forest_kind_t kind, void *names,
                                      const int32_t *columns, ptrdiff_t count, const uint8_t *bins) {
    const uint8_t *const lows = forest->range_lows, *const widths = forest->range_widths;
    const int64_t sets = FOREST_FIRST_CONDITION + forest->ranges;
    for (ptrdiff_t i = 0; i < count; i++) {
        const int64_t start = forest->range_bounds[columns[i]], end = forest->range_bounds[columns[i] + 1];
        const uint8_t bin = bins[i];
        for (int64_t r = start; r < end; r++)
            forest_set_number(names, FOREST_FIRST_CONDITION + r, (uint8_t)(bin - lows[r]) <= widths[r], kind);
        for (int64_t s = forest->set_bounds[columns[i]]; s < forest->set_bounds[columns[i] + 1]; s++)
            forest_set_number(names, sets + s, (uint32_t)forest_in_set(forest->set_bits + s * FOREST_SET_BYTES, bin),
                              kind);
    }
}

static void forest_fix(const forest_t *forest, const forest_program_t *program, void *names, const int32_t *columns,
                       ptrdiff_t count, const uint8_t *bins) {
    if (program->kind == FOREST_NARROW)
        forest_fix_columns(forest, FOREST_NARROW, names, columns, count, bins);
    else if (program->kind == FOREST_WIDE)
        forest_fix_columns(forest, FOREST_WIDE, names, columns, count, bins);
}

/* The choices of a piece: each takes the slot of one of two names. */
static inline void forest_choose(const forest_program_t *program, const forest_kind_t kind, void *names,
                                 ptrdiff_t piece) {
    const void *const choices = program->choices;
    const int64_t end = 3 * program->choice_bounds[piece + 1];
    ptrdiff_t name = program->first_choice;
    for (int64_t i = 3 * program->choice_bounds[piece]; i < end; i += 3, name++) {
        const ptrdiff_t left = forest_number(names, forest_number(choices, i, kind), kind); /* 0 or 1 */
        const uint32_t taken = forest_number(choices, i + 2 - left, kind);
        forest_set_number(names, name, forest_number(names, taken, kind), kind);
    }
}

/* Fetches what lies FOREST_AHEAD behind `count` entries, which may be beyond the last. Always inlined: GCC takes a function
 * that does nothing but fetch for one without effect, and may leave out its calls. */
static inline __attribute__((always_inline)) void forest_fetch(const void *entries, int64_t start, int64_t count,
                                                               ptrdiff_t size) {
    const uintptr_t first = (uintptr_t)entries + (uintptr_t)(start * size) + FOREST_AHEAD;
    for (ptrdiff_t at = 0; at < count * size; at += FOREST_LINE) __builtin_prefetch((const void *)(first + at));
}

/* Fetches as many operations as a piece has, of those that come later. */
static inline __attribute__((always_inline)) void forest_fetch_ahead(const forest_program_t *program,
                                                                     const forest_kind_t kind, ptrdiff_t piece) {
    const ptrdiff_t size = 3 * (kind == FOREST_NARROW ? sizeof(uint16_t) : sizeof(uint32_t));
    const int64_t *const ops = program->op_bounds + piece;
    forest_fetch(program->ops, ops[0], ops[1] - ops[0], size);
    if (kind == FOREST_WHOLE) return;
    const int64_t *const choices = program->choice_bounds + piece;
    forest_fetch(program->choices, choices[0], choices[1] - choices[0], size);
}

#ifdef __x86_64__
/* 16 rows of 16 bytes to columns: byte c of tile[r] goes to byte r of tile[c]. Interleaving the rows' halves rotates the
 * bits of each byte's place, 16 r + c, by one; four times exchanges r and c. */
static inline void forest_transpose(__m128i tile[16]) {
    for (int round = 0; round < 4; round++) {
        __m128i mixed[16];
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = _mm_unpacklo_epi8(tile[i], tile[i + 8]);
            mixed[2 * i + 1] = _mm_unpackhi_epi8(tile[i], tile[i + 8]);
        }
        memcpy(tile, mixed, sizeof mixed);
    }
}

/* The bins of few rows, which lie 64 apart, to scratch->values, row by row. */
static void forest_turn_bins(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t n) {
    const ptrdiff_t columns = forest->columns < FOREST_LANE_COLUMNS ? forest->columns : FOREST_LANE_COLUMNS;
    for (ptrdiff_t row = 0; row < n; row += 16)
        for (ptrdiff_t column = 0; column < columns; column += 16) {
            __m128i tile[16];
            for (ptrdiff_t c = 0; c < 16; c++) {
                const ptrdiff_t from = column + c < columns ? column + c : columns - 1;
                tile[c] = _mm_loadu_si128((const __m128i *)(scratch->bins + from * 64 + row));
            }
            forest_transpose(tile);
            for (ptrdiff_t r = 0; r < 16; r++)
                _mm_store_si128((__m128i *)(scratch->values + (row + r) * FOREST_LANE_COLUMNS + column), tile[r]);
        }
}
#endif

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

/* A slot where the condition `c` is known to be `side`. */
static uint32_t forest_decide(const uint32_t *ops, uint32_t first, uint32_t slot, uint32_t c, int side) {
    if (slot >= first && ops[3 * (size_t)(slot - first)] == c) return ops[3 * (size_t)(slot - first) + 2 - side];
    return slot == c && c > 1 ? (uint32_t)side : slot;
}

typedef struct {
    const uint32_t *ops;
    uint32_t planes[FOREST_PLANES];
} forest_state_t;

/* The child's planes; returns its number where all of them are constants, else -1. */
static int forest_child(const forest_state_t *state, uint32_t first, uint32_t c, int side, forest_state_t *child) {
    int leaf = 0, open = 0;
    child->ops = state->ops;
    for (int p = 0; p < FOREST_PLANES; p++) {
        child->planes[p] = forest_decide(state->ops, first, state->planes[p], c, side);
        open |= child->planes[p] > 1;
        leaf |= (int)(child->planes[p] & 1) << p;
    }
    return open ? -1 : leaf;
}

/* The condition that a slot stands for in a node: itself, or joins where it is a result `this ? 1 : next`, `next` being
 * a condition or another such result. 0 where it is anything else or there is no room. */
static uint32_t forest_join(forest_trees_t *trees, const uint32_t *ops, uint32_t first, uint32_t slot) {
    uint32_t joined = 0;
    while (slot >= first) {
        const uint32_t *op = ops + 3 * (size_t)(slot - first);
        if (op[0] >= first || op[1] != 1 || trees->joined == trees->most_joined) return 0;
        trees->joins[2 * trees->joined] = joined;
        trees->joins[2 * trees->joined + 1] = op[0];
        joined = first + (uint32_t)trees->joined++;
        slot = op[2];
    }
    if (joined == 0) return slot;
    if (trees->joined == trees->most_joined) return 0;
    trees->joins[2 * trees->joined] = joined;
    trees->joins[2 * trees->joined + 1] = slot;
    return first + (uint32_t)trees->joined++;
}

/* Turns the programs of a bundle back into trees: splits the planes of each leaf number by the condition that decides
 * the last operation, until they are constants. Gives the nodes' number, or 0 where a condition is no join or where
 * there would be more than FOREST_BUNDLE_NODES. */
static ptrdiff_t forest_unfold(const forest_t *forest, int64_t piece, ptrdiff_t count, forest_trees_t *trees,
                               forest_node_t *nodes) {
    const uint32_t first = (uint32_t)(FOREST_FIRST_CONDITION + forest->ranges + forest->sets);
    forest_state_t states[FOREST_BUNDLE_NODES];
    ptrdiff_t n = count;
    for (ptrdiff_t t = 0; t < count; t++) {
        states[t].ops = forest->ops + 3 * forest->op_bounds[piece + t];
        memcpy(states[t].planes, forest->planes + (piece + t) * FOREST_PLANES, sizeof states[t].planes);
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t last = 0;
        for (int p = 0; p < FOREST_PLANES; p++) last = states[i].planes[p] > last ? states[i].planes[p] : last;
        const uint32_t c = last >= first ? states[i].ops[3 * (size_t)(last - first)] : last;
        const uint32_t condition = forest_join(trees, states[i].ops, first, c);
        if (c >= first && condition == 0) return 0;
        unsigned children[2];
        for (int side = 0; side < 2; side++) {
            forest_state_t child;
            const int leaf = forest_child(&states[i], first, c, side, &child);
            if (leaf < 0 && n == FOREST_BUNDLE_NODES) return 0;
            children[side] = FOREST_FEW_ROWS * (unsigned)(leaf < 0 ? FOREST_LEAVES + n : leaf);
            if (leaf < 0) states[n++] = child;
        }
        nodes[i] = forest_node(condition, children[1], children[0]);
    }
    return n;
}

/* Unfolds all bundles into arrays with room for FOREST_BUNDLE_NODES nodes for each; returns how many nodes there are, or
 * -1 where a bundle cannot be unfolded. */
static ptrdiff_t forest_unfold_all(const forest_t *forest, forest_trees_t *trees) {
    int64_t *bound = trees->bundle_bounds;
    *bound = 0;
    for (ptrdiff_t k = 0; k < forest->outputs; k++)
        for (int64_t piece = forest->output_bounds[k]; piece < forest->output_bounds[k + 1]; piece += FOREST_BUNDLE) {
            const int64_t left = forest->output_bounds[k + 1] - piece;
            const ptrdiff_t size = forest_unfold(forest, piece, left < FOREST_BUNDLE ? left : FOREST_BUNDLE, trees,
                                                 trees->nodes + *bound);
            if (size == 0) return -1;
            bound[1] = bound[0] + size;
            bound++;
        }
    return *bound;
}

/* Whether this CPU has what the variant's lane_margins needs. */
static int forest_takes_lanes(const forest_variant_t *variant) {
#ifdef __x86_64__
    return variant->lane_margins != NULL && __builtin_cpu_supports("avx512vbmi");
#else
    (void)variant;
    return 0;
#endif
}

/* The column of a range. */
static ptrdiff_t forest_column_of(const forest_t *forest, int64_t range) {
    ptrdiff_t column = 0, end = forest->columns;
    while (end - column > 1) {
        const ptrdiff_t middle = (column + end) / 2;
        if (forest->range_bounds[middle] <= range)
            column = middle;
        else
            end = middle;
    }
    return column;
}

/* Puts a node's condition into a lane whose children are set; 0 where it is no range of the first columns. */
static int forest_set_lane(const forest_t *forest, uint32_t condition, forest_lanes_t *lanes, int lane) {
    const int64_t range = (int64_t)condition - FOREST_FIRST_CONDITION;
    if (range < 0) { /* slot 0 or 1 decides for all rows */
        uint8_t *const never = condition ? lanes->rights : lanes->lefts;
        never[lane] = condition ? lanes->lefts[lane] : lanes->rights[lane];
        return 1;
    }
    if (range >= forest->ranges) return 0;
    const ptrdiff_t column = forest_column_of(forest, range);
    lanes->columns[lane] = (uint8_t)column;
    lanes->lows[lane] = forest->range_lows[range];
    lanes->widths[lane] = forest->range_widths[range];
    return column < FOREST_LANE_COLUMNS;
}

/* Spreads the piece at `place` of a bundle over `room` lanes from `root` on, level by level. Gives the nodes of its
 * longest path, or 0 where it does not fit. */
static int forest_spread_piece(const forest_t *forest, const forest_node_t *nodes, ptrdiff_t place,
                               forest_lanes_t *lanes, int root, int room) {
    ptrdiff_t places[FOREST_LANES];
    int depths[FOREST_LANES], count = 1;
    places[0] = place;
    depths[0] = 1;
    for (int i = 0; i < count; i++) {
        const forest_node_t node = nodes[places[i]];
        for (int side = 0; side < 2; side++) {
            const unsigned child = (side ? forest_left(node) : forest_right(node)) / FOREST_FEW_ROWS;
            uint8_t *const out = (side ? lanes->lefts : lanes->rights) + root + i;
            if (child < FOREST_LEAVES) {
                *out = (uint8_t)child;
            } else {
                if (count == room) return 0;
                *out = (uint8_t)(FOREST_LEAVES + root + count);
                places[count] = (ptrdiff_t)child - FOREST_LEAVES;
                depths[count++] = depths[i] + 1;
            }
        }
        if (!forest_set_lane(forest, forest_condition(node), lanes, root + i)) return 0;
    }
    return depths[count - 1];
}

/* Spreads all pieces, `pieces` of an output to a register; returns how many registers that takes, or 0 where a piece
 * does not fit. `jumps` becomes what the longest path needs. */
static ptrdiff_t forest_spread(const forest_t *forest, int pieces, forest_lanes_t *lanes, int *jumps) {
    const int64_t *bundle = forest->bundle_bounds;
    const int room = FOREST_LANES / pieces;
    forest_lanes_t *next = lanes;
    *jumps = 0;
    for (ptrdiff_t k = 0; k < forest->outputs; k++) {
        const int64_t count = forest->output_bounds[k + 1] - forest->output_bounds[k];
        for (int64_t t = 0; t < count; t++) {
            const ptrdiff_t place = t % FOREST_BUNDLE;
            const int first = (int)(t % pieces);
            if (first == 0) memset(next, 0, sizeof *next);
            const int depth = forest_spread_piece(forest, forest->nodes + *bundle, place, next, first * room, room);
            if (depth == 0) return 0;
            while (1 << *jumps < depth) ++*jumps;
            bundle += place == FOREST_BUNDLE - 1 || t == count - 1;
            next += first == pieces - 1 || t == count - 1;
        }
    }
    return next - lanes;
}

/* Spreads a forest of that many nodes, two pieces to a register if they fit, and says how in its fields but `lanes`,
 * which has room for a register for each piece. Returns how many were filled: 0 where a piece does not fit. */
static ptrdiff_t forest_spread_all(forest_t *forest, ptrdiff_t nodes, forest_lanes_t *lanes) {
    forest->lane_pieces = 2;
    ptrdiff_t count = forest_spread(forest, 2, lanes, &forest->jumps);
    if (count == 0) {
        forest->lane_pieces = 1;
        count = forest_spread(forest, 1, lanes, &forest->jumps);
    }
    if (count == 0) return 0;
    /* A row takes a register's time, which is 2 + jumps; a block of few rows takes its nodes', which is 3 each. */
    const ptrdiff_t rows = 3 * nodes / (count * (2 + forest->jumps));
    forest->lane_rows = rows < FOREST_FEW_ROWS ? rows : FOREST_FEW_ROWS;
    return count;
}

/* How many rows a block of few may have; more, and all rows of a forest without nodes, are evaluated in groups. */
static ptrdiff_t forest_few_rows(const forest_variant_t *variant, const forest_t *forest) {
    if (forest->nodes == NULL) return 0;
    return variant->few_margins == NULL ? FOREST_WALKED_ROWS : FOREST_FEW_ROWS;
}

/* Completes the masks of few rows by slots 0 and 1 and the joins. */
static void forest_join_masks(const forest_t *forest, const forest_scratch_t *scratch) {
    uint32_t *const masks = (uint32_t *)scratch->masks;
    uint32_t *const joins = masks + FOREST_FIRST_CONDITION + forest->ranges + forest->sets;
    masks[0] = 0;
    masks[1] = ~(uint32_t)0;
    for (ptrdiff_t i = 0; i < forest->joined; i++)
        joins[i] = masks[forest->joins[2 * i]] | masks[forest->joins[2 * i + 1]];
}

/* The number of one row's leaf in the piece at `place` of a bundle, from the masks of few_conditions. */
static inline unsigned forest_leaf(const forest_node_t *nodes, ptrdiff_t place, const uint32_t *masks, ptrdiff_t row) {
    unsigned at = FOREST_LEAVES + (unsigned)place;
    do {
        const forest_node_t node = nodes[at - FOREST_LEAVES];
        const int left = masks[forest_condition(node)] >> row & 1;
        at = (left ? forest_left(node) : forest_right(node)) / FOREST_FEW_ROWS;
    } while (at >= FOREST_LEAVES);
    return at;
}

/* Margins of one row of a block of few, down the trees; `single`: with leaves and sums in float32. */
static void forest_walk(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t row, int single,
                        double *out) {
    const int64_t *bundle = forest->bundle_bounds;
    for (ptrdiff_t k = 0; k < forest->outputs; k++) {
        const int narrow = single || forest->singles[k];
        double sum = narrow ? (float)forest->initials[k] : forest->initials[k];
        const int64_t start = forest->output_bounds[k], end = forest->output_bounds[k + 1];
        for (int64_t piece = start; piece < end; piece++) {
            const ptrdiff_t place = (piece - start) % FOREST_BUNDLE;
            const unsigned leaf = forest_leaf(forest->nodes + *bundle, place, (const uint32_t *)scratch->masks, row);
            if (narrow)
                sum = (float)sum + forest->leaves32[piece * FOREST_LEAVES + leaf];
            else
                sum += forest->leaves[piece * FOREST_LEAVES + leaf];
            bundle += place == FOREST_BUNDLE - 1 || piece == end - 1;
        }
        out[k] = sum / forest->divisors[k];
    }
}

/* bins[columns[i], row] = lines[row][i] for 16 rows. */
static void forest_gather_lines(const uint8_t *const lines[16], const int32_t *columns, ptrdiff_t count, uint8_t *bins,
                                ptrdiff_t width) {
    ptrdiff_t i = 0;
#ifdef __x86_64__
    for (; count >= 16 && i < count; i += 16) {
        const ptrdiff_t first = i < count - 16 ? i : count - 16; /* the last tile overlaps the one before */
        __m128i tile[16];
        for (int row = 0; row < 16; row++) tile[row] = _mm_loadu_si128((const __m128i *)(lines[row] + first));
        forest_transpose(tile);
        for (int c = 0; c < 16; c++) _mm_store_si128((__m128i *)(bins + columns[first + c] * width), tile[c]);
    }
#endif
    for (; i < count; i++)
        for (int row = 0; row < 16; row++) bins[columns[i] * width + row] = lines[row][i];
}

/* bins[columns[i], row] = table[rows[row], i] for a block of n rows; what lies behind the last row is any bin. */
static void forest_gather(const uint8_t *table, const int64_t *rows, ptrdiff_t n, const int32_t *columns,
                          ptrdiff_t count, uint8_t *bins, ptrdiff_t width) {
    for (ptrdiff_t start = 0; start < n; start += 16) {
        const uint8_t *lines[16];
        for (ptrdiff_t i = 0; i < 16; i++) {
            const ptrdiff_t row = start + i < n ? start + i : n - 1, ahead = row + 16 < n ? row + 16 : row;
            lines[i] = table + rows[row] * count;
            for (ptrdiff_t byte = 0; byte < count; byte += 64) __builtin_prefetch(table + rows[ahead] * count + byte);
        }
        forest_gather_lines(lines, columns, count, bins + start, width);
    }
}

#endif
