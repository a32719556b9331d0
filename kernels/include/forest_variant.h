/* One variant of the functions in forest.h, which includes this once per instruction set, with
 *   FOREST_VARIANT  the variant's name,
 *   FOREST_LEVEL    0 portable C, 1 AVX2, 2 AVX-512,
 *   FOREST_TARGET   the attribute that allows its functions those instructions,
 *   FOREST_GROUPS   the widths of its blocks, in groups of 64 rows.
 *
 * Functions take the width as an argument and are inlined where it is a constant.
 */
#define FOREST_JOIN_(a, b) forest_##a##_##b
#define FOREST_JOIN(a, b) FOREST_JOIN_(a, b)
#define FOREST_NAME(part) FOREST_JOIN(FOREST_VARIANT, part)
#define FOREST_OBJECT_(a) forest_##a
#define FOREST_OBJECT(a) FOREST_OBJECT_(a)
#define FOREST_STRING_(a) #a
#define FOREST_STRING(a) FOREST_STRING_(a)
#define FOREST_INLINE FOREST_TARGET static inline __attribute__((always_inline))

/* ---- Bins: the number of steps below a value. Sixteen pivots find the sixteen steps among which it ends. ---- */

FOREST_INLINE unsigned FOREST_NAME(below32)(const float *steps, float value) {
#if FOREST_LEVEL == 2
    return (unsigned)_mm_popcnt_u32(_mm512_cmp_ps_mask(_mm512_loadu_ps(steps), _mm512_set1_ps(value), _CMP_LT_OQ));
#elif FOREST_LEVEL == 1
    const __m256 v = _mm256_set1_ps(value);
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(steps), v, _CMP_LT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(steps + 8), v, _CMP_LT_OQ));
    return (unsigned)_mm_popcnt_u32((unsigned)(low | high << 8));
#else
    unsigned count = 0;
    for (int i = 0; i < FOREST_PIVOTS; i++) count += steps[i] < value;
    return count;
#endif
}

FOREST_INLINE unsigned FOREST_NAME(below64)(const double *steps, double value) {
#if FOREST_LEVEL == 2
    const __m512d v = _mm512_set1_pd(value);
    const unsigned low = _mm512_cmp_pd_mask(_mm512_loadu_pd(steps), v, _CMP_LT_OQ);
    const unsigned high = _mm512_cmp_pd_mask(_mm512_loadu_pd(steps + 8), v, _CMP_LT_OQ);
    return (unsigned)_mm_popcnt_u32(low | high << 8);
#elif FOREST_LEVEL == 1
    const __m256d v = _mm256_set1_pd(value);
    unsigned bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= (unsigned)_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(steps + 4 * i), v, _CMP_LT_OQ)) << 4 * i;
    return (unsigned)_mm_popcnt_u32(bits);
#else
    unsigned count = 0;
    for (int i = 0; i < FOREST_PIVOTS; i++) count += steps[i] < value;
    return count;
#endif
}

FOREST_TARGET static void FOREST_NAME(bin32)(const forest_t *forest, ptrdiff_t column, const float *values,
                                             ptrdiff_t stride, ptrdiff_t n, uint8_t *bins) {
    const float *steps = forest->steps32 + column * FOREST_STEPS;
    const float *pivots = forest->pivots32 + column * FOREST_PIVOTS;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float value = values[i * stride];
        const unsigned start = FOREST_PIVOTS * FOREST_NAME(below32)(pivots, value);
        const unsigned bin = start + FOREST_NAME(below32)(steps + start, value);
        bins[i] = (uint8_t)(value == value ? bin : FOREST_NAN_BIN);
    }
}

FOREST_TARGET static void FOREST_NAME(bin64)(const forest_t *forest, ptrdiff_t column, const double *values,
                                             ptrdiff_t stride, ptrdiff_t n, uint8_t *bins) {
    const double *steps = forest->steps64 + column * FOREST_STEPS;
    const double *pivots = forest->pivots64 + column * FOREST_PIVOTS;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double value = values[i * stride];
        const unsigned start = FOREST_PIVOTS * FOREST_NAME(below64)(pivots, value);
        const unsigned bin = start + FOREST_NAME(below64)(steps + start, value);
        bins[i] = (uint8_t)(value == value ? bin : FOREST_NAN_BIN);
    }
}

/* ---- Conditions: bins of 64 rows to 64 bits, or of 32 rows to 32 bytes of 0 or 255 ---- */

#if FOREST_LEVEL >= 1
FOREST_INLINE __m256i FOREST_NAME(in_range32)(__m256i bins, uint8_t low, uint8_t width) {
    const __m256i offset = _mm256_sub_epi8(bins, _mm256_set1_epi8((char)low));
    return _mm256_cmpeq_epi8(_mm256_min_epu8(offset, _mm256_set1_epi8((char)width)), offset);
}

FOREST_INLINE __m256i FOREST_NAME(in_set32)(__m256i bins, const uint8_t *set) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)set));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(set + 16)));
    const __m256i powers = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    const __m256i index = _mm256_and_si256(_mm256_srli_epi16(bins, 3), _mm256_set1_epi8(15));
    const __m256i bit = _mm256_shuffle_epi8(powers, _mm256_and_si256(bins, _mm256_set1_epi8(7)));
    const __m256i byte = _mm256_blendv_epi8(_mm256_shuffle_epi8(low, index), _mm256_shuffle_epi8(high, index), bins);
    return _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit);
}
#endif

#if FOREST_LEVEL == 2
typedef __m512i FOREST_NAME(bytes);

FOREST_INLINE FOREST_NAME(bytes) FOREST_NAME(load_bytes)(const uint8_t *bins) { return _mm512_loadu_si512(bins); }

FOREST_INLINE uint64_t FOREST_NAME(in_range)(FOREST_NAME(bytes) bins, uint8_t low, uint8_t width) {
    const __m512i offset = _mm512_sub_epi8(bins, _mm512_set1_epi8((char)low));
    return _mm512_cmple_epu8_mask(offset, _mm512_set1_epi8((char)width));
}

FOREST_INLINE uint64_t FOREST_NAME(in_set)(FOREST_NAME(bytes) bins, const uint8_t *set) {
    const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)set));
    const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(set + 16)));
    const __m512i powers = _mm512_set1_epi64((long long)0x8040201008040201ULL);
    const __m512i index = _mm512_and_si512(_mm512_srli_epi16(bins, 3), _mm512_set1_epi8(15));
    const __m512i bit = _mm512_shuffle_epi8(powers, _mm512_and_si512(bins, _mm512_set1_epi8(7)));
    const __m512i byte = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(low, index), _mm512_movepi8_mask(bins), high,
                                                  index);
    return _mm512_test_epi8_mask(byte, bit);
}
#elif FOREST_LEVEL == 1
typedef struct {
    __m256i half[2];
} FOREST_NAME(bytes);

FOREST_INLINE FOREST_NAME(bytes) FOREST_NAME(load_bytes)(const uint8_t *bins) {
    return (FOREST_NAME(bytes)){{_mm256_loadu_si256((const __m256i *)bins),
                                 _mm256_loadu_si256((const __m256i *)(bins + 32))}};
}

FOREST_INLINE uint64_t FOREST_NAME(in_range)(FOREST_NAME(bytes) bins, uint8_t low, uint8_t width) {
    const uint64_t first = (uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_range32)(bins.half[0], low, width));
    return first | (uint64_t)(uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_range32)(bins.half[1], low, width)) << 32;
}

FOREST_INLINE uint64_t FOREST_NAME(in_set)(FOREST_NAME(bytes) bins, const uint8_t *set) {
    const uint64_t low = (uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_set32)(bins.half[0], set));
    return low | (uint64_t)(uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_set32)(bins.half[1], set)) << 32;
}
#else
typedef const uint8_t *FOREST_NAME(bytes);

FOREST_INLINE FOREST_NAME(bytes) FOREST_NAME(load_bytes)(const uint8_t *bins) { return bins; }

/* Eight bytes that are 0 or 1, the first the lowest, to eight bits. */
FOREST_INLINE uint64_t FOREST_NAME(gather_bits)(const uint8_t *flags) {
    uint64_t bits = 0;
    for (int byte = 0; byte < 8; byte++) bits |= (uint64_t)flags[byte] << 8 * byte;
    return bits * 0x0102040810204080ULL >> 56;
}

FOREST_INLINE uint64_t FOREST_NAME(in_range)(FOREST_NAME(bytes) bins, uint8_t low, uint8_t width) {
    uint8_t flags[64];
    for (int row = 0; row < 64; row++) flags[row] = (uint8_t)(bins[row] - low) <= width;
    uint64_t bits = 0;
    for (int byte = 0; byte < 8; byte++) bits |= FOREST_NAME(gather_bits)(flags + 8 * byte) << 8 * byte;
    return bits;
}

FOREST_INLINE uint64_t FOREST_NAME(in_set)(FOREST_NAME(bytes) bins, const uint8_t *set) {
    uint64_t bits = 0;
    for (int row = 0; row < 64; row++) bits |= (uint64_t)forest_in_set(set, bins[row]) << row;
    return bits;
}
#endif

/* Plane i: bit i of each bin. */
FOREST_INLINE void FOREST_NAME(bin_planes)(const FOREST_NAME(bytes) * block, uint64_t planes[8][FOREST_MAX_GROUPS],
                                           const ptrdiff_t groups) {
    for (int i = 0; i < 8; i++)
        for (int g = 0; g < groups; g++) {
#if FOREST_LEVEL == 2
            planes[i][g] = _mm512_movepi8_mask(_mm512_sll_epi16(block[g], _mm_cvtsi32_si128(7 - i)));
#elif FOREST_LEVEL == 1
            const __m128i up = _mm_cvtsi32_si128(7 - i);
            const uint64_t low = (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(block[g].half[0], up));
            planes[i][g] = low | (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(block[g].half[1], up)) << 32;
#else
            uint8_t flags[64];
            for (int row = 0; row < 64; row++) flags[row] = block[g][row] >> i & 1;
            planes[i][g] = 0;
            for (int byte = 0; byte < 8; byte++) planes[i][g] |= FOREST_NAME(gather_bits)(flags + 8 * byte) << 8 * byte;
#endif
        }
}

/* out = c ? a : b, bit by bit */
FOREST_INLINE void FOREST_NAME(select)(uint64_t *out, const uint64_t *c, const uint64_t *a, const uint64_t *b,
                                       const ptrdiff_t groups) {
#if FOREST_LEVEL == 2
    if (groups == 8) {
        _mm512_store_si512(out, _mm512_ternarylogic_epi64(_mm512_load_si512(c), _mm512_load_si512(a),
                                                          _mm512_load_si512(b), 0xCA));
        return;
    }
#endif
#if FOREST_LEVEL >= 1
    if (groups == 4) {
        const __m256i x = _mm256_load_si256((const __m256i *)a), y = _mm256_load_si256((const __m256i *)b);
        const __m256i z = _mm256_load_si256((const __m256i *)c);
#if FOREST_LEVEL == 2
        _mm256_store_si256((__m256i *)out, _mm256_ternarylogic_epi64(z, x, y, 0xCA));
#else
        _mm256_store_si256((__m256i *)out, _mm256_or_si256(_mm256_and_si256(z, x), _mm256_andnot_si256(z, y)));
#endif
        return;
    }
#endif
    for (int g = 0; g < groups; g++) out[g] = (c[g] & a[g]) | (~c[g] & b[g]);
}

/* out = ~c & a */
FOREST_INLINE void FOREST_NAME(select_not)(uint64_t *out, const uint64_t *c, const uint64_t *a,
                                           const ptrdiff_t groups) {
#if FOREST_LEVEL == 2
    if (groups == 8) {
        _mm512_store_si512(out, _mm512_andnot_si512(_mm512_load_si512(c), _mm512_load_si512(a)));
        return;
    }
#endif
    for (int g = 0; g < groups; g++) out[g] = ~c[g] & a[g];
}

FOREST_INLINE void FOREST_NAME(fill)(uint64_t *mask, int left, const ptrdiff_t groups) {
    for (int g = 0; g < groups; g++) mask[g] = -(uint64_t)left;
}

/* less[d]: the rows whose digit to the base sixteen, given as four planes, is less than d. */
FOREST_INLINE void FOREST_NAME(digits_below)(const uint64_t planes[4][FOREST_MAX_GROUPS],
                                             uint64_t less[17][FOREST_MAX_GROUPS], const ptrdiff_t groups) {
    FOREST_NAME(fill)(less[0], 0, groups);
    FOREST_NAME(fill)(less[16], 1, groups);
    /* With the bits below `bit` done, less[0] … less[bit - 1] hold for the numbers that they make. */
    for (int bit = 1, i = 0; bit < 16; bit *= 2, i++)
        for (int d = bit - 1; d >= 0; d--) {
            FOREST_NAME(select)(less[bit + d], planes[i], less[d], less[16], groups);
            FOREST_NAME(select_not)(less[d], planes[i], less[d], groups);
        }
}

/* Ranges from 0 or from NaN's bin, as numeric decisions have them, by the two digits of the bins to the base sixteen: a
 * bin is below an end where its high digit is, or where that is equal and its low digit is below. This takes three loads
 * and a store for a block, while the mask of a comparison is slow to leave its register. */
FOREST_INLINE void FOREST_NAME(digit_ranges)(const forest_t *forest, const FOREST_NAME(bytes) * block, uint64_t *masks,
                                             int64_t start, int64_t end, const ptrdiff_t groups) {
    _Alignas(64) uint64_t planes[8][FOREST_MAX_GROUPS], missing[FOREST_MAX_GROUPS];
    _Alignas(64) uint64_t digit[17][FOREST_MAX_GROUPS], equal[17][FOREST_MAX_GROUPS];
    _Alignas(64) uint64_t less[2][17][FOREST_MAX_GROUPS]; /* without and with NaN */
    FOREST_NAME(bin_planes)(block, planes, groups);
    FOREST_NAME(digits_below)(planes, digit, groups);
    FOREST_NAME(digits_below)(planes + 4, less[0], groups);
    for (int d = 0; d < 16; d++) FOREST_NAME(select_not)(equal[d], less[0][d], less[0][d + 1], groups);
    FOREST_NAME(fill)(equal[16], 0, groups);
    FOREST_NAME(select_not)(missing, digit[15], equal[15], groups);
    FOREST_NAME(select_not)(equal[15], missing, equal[15], groups); /* below the end 256 only: `less` alone tells */
    for (int d = 0; d <= 16; d++) FOREST_NAME(select)(less[1][d], missing, less[0][16], less[0][d], groups);
    for (int64_t r = start; r < end; r++) {
        const uint8_t low = forest->range_lows[r], width = forest->range_widths[r];
        uint64_t *out = masks + r * groups;
        if (low == 0 || low == FOREST_NAN_BIN) {
            const int below = width + (low == 0);
            FOREST_NAME(select)(out, equal[below >> 4], digit[below & 15], less[low != 0][below >> 4], groups);
        } else {
            for (int g = 0; g < groups; g++) out[g] = FOREST_NAME(in_range)(block[g], low, width);
        }
    }
}

FOREST_INLINE void FOREST_NAME(column_conditions)(const forest_t *forest, const forest_scratch_t *scratch,
                                                  ptrdiff_t column, const ptrdiff_t groups) {
    const uint8_t *bins = scratch->bins + column * 64 * groups;
    uint64_t *ranges = scratch->masks + FOREST_FIRST_CONDITION * groups;
    uint64_t *sets = ranges + forest->ranges * groups;
    const int64_t start = forest->range_bounds[column], end = forest->range_bounds[column + 1];
    FOREST_NAME(bytes) block[FOREST_MAX_GROUPS];
    for (int g = 0; g < groups; g++) block[g] = FOREST_NAME(load_bytes)(bins + 64 * g);
    if (end - start >= FOREST_MANY_RANGES && (groups > 1 || FOREST_LEVEL == 0)) {
        FOREST_NAME(digit_ranges)(forest, block, ranges, start, end, groups);
    } else {
        for (int64_t r = start; r < end; r++) {
            /* Read once: the compiler cannot know that masks do not overlap the conditions. */
            const uint8_t low = forest->range_lows[r], width = forest->range_widths[r];
            for (int g = 0; g < groups; g++) ranges[r * groups + g] = FOREST_NAME(in_range)(block[g], low, width);
        }
    }
    for (int64_t s = forest->set_bounds[column]; s < forest->set_bounds[column + 1]; s++)
        for (int g = 0; g < groups; g++)
            sets[s * groups + g] = FOREST_NAME(in_set)(block[g], forest->set_bits + s * FOREST_SET_BYTES);
}

FOREST_TARGET static void FOREST_NAME(conditions)(const forest_t *forest, const forest_scratch_t *scratch,
                                                  const int32_t *columns, ptrdiff_t count, ptrdiff_t groups) {
    memset(scratch->masks, 0, (size_t)groups * 8);
    memset(scratch->masks + groups, 255, (size_t)groups * 8);
    for (ptrdiff_t i = 0; i < count; i++) switch (groups) {
#if FOREST_LEVEL == 2
            case 8: FOREST_NAME(column_conditions)(forest, scratch, columns[i], 8); break;
#endif
#if FOREST_LEVEL >= 1
            case 4: FOREST_NAME(column_conditions)(forest, scratch, columns[i], 4); break;
#endif
            default: FOREST_NAME(column_conditions)(forest, scratch, columns[i], 1);
        }
}

FOREST_INLINE uint32_t FOREST_NAME(few_range)(const uint8_t *bins, uint8_t low, uint8_t width) {
#if FOREST_LEVEL >= 1
    const __m256i rows = _mm256_loadu_si256((const __m256i *)bins);
    return (uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_range32)(rows, low, width));
#else
    return (uint8_t)(bins[0] - low) <= width; /* the only row */
#endif
}

FOREST_INLINE void FOREST_NAME(few_ranges)(const uint8_t *bins, const uint8_t *lows, const uint8_t *widths,
                                           int64_t count, uint32_t *masks) {
    int64_t r = 0;
#if FOREST_LEVEL == 2
    /* Two at a time, one in each half of the register. */
    const __m512i rows = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)bins));
    const __m512i halves = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(1), 1);
    for (; r + 1 < count; r += 2) {
        uint16_t low, width;
        memcpy(&low, lows + r, 2);
        memcpy(&width, widths + r, 2);
        const __m512i start = _mm512_shuffle_epi8(_mm512_set1_epi16((short)low), halves);
        const __m512i size = _mm512_shuffle_epi8(_mm512_set1_epi16((short)width), halves);
        const uint64_t bits = _mm512_cmple_epu8_mask(_mm512_sub_epi8(rows, start), size);
        memcpy(masks + r, &bits, 8);
    }
#endif
    for (; r < count; r++) masks[r] = FOREST_NAME(few_range)(bins, lows[r], widths[r]);
}

FOREST_INLINE uint32_t FOREST_NAME(few_set)(const uint8_t *bins, const uint8_t *set) {
#if FOREST_LEVEL >= 1
    const __m256i rows = _mm256_loadu_si256((const __m256i *)bins);
    return (uint32_t)_mm256_movemask_epi8(FOREST_NAME(in_set32)(rows, set));
#else
    return (uint32_t)forest_in_set(set, bins[0]);
#endif
}

FOREST_TARGET static void FOREST_NAME(few_conditions)(const forest_t *forest, const forest_scratch_t *scratch,
                                                      const int32_t *columns, ptrdiff_t count) {
    uint32_t *const ranges = (uint32_t *)scratch->masks + FOREST_FIRST_CONDITION;
    uint32_t *const sets = ranges + forest->ranges;
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t column = columns[i];
        const uint8_t *bins = scratch->bins + column * 64;
        const int64_t start = forest->range_bounds[column], end = forest->range_bounds[column + 1];
        FOREST_NAME(few_ranges)(bins, forest->range_lows + start, forest->range_widths + start, end - start,
                                ranges + start);
        for (int64_t s = forest->set_bounds[column]; s < forest->set_bounds[column + 1]; s++)
            sets[s] = FOREST_NAME(few_set)(bins, forest->set_bits + s * FOREST_SET_BYTES);
    }
}

FOREST_TARGET static void FOREST_NAME(few_constants)(const forest_t *forest, const forest_scratch_t *scratch,
                                                     const int32_t *columns, ptrdiff_t count, const uint8_t *bins) {
    uint32_t *restrict const ranges = (uint32_t *)scratch->masks + FOREST_FIRST_CONDITION;
    uint32_t *const sets = ranges + forest->ranges;
    const uint8_t *const lows = forest->range_lows, *const widths = forest->range_widths;
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t column = columns[i];
        const uint8_t bin = bins[i];
        for (int64_t r = forest->range_bounds[column], end = forest->range_bounds[column + 1]; r < end; r++)
            ranges[r] = -(uint32_t)((uint8_t)(bin - lows[r]) <= widths[r]);
        for (int64_t s = forest->set_bounds[column]; s < forest->set_bounds[column + 1]; s++)
            sets[s] = -(uint32_t)forest_in_set(forest->set_bits + s * FOREST_SET_BYTES, bin);
    }
}

/* ---- Programs ---- */

/* What varies in a piece; its choices have been made. */
FOREST_INLINE void FOREST_NAME(run_piece)(const forest_program_t *program, const forest_kind_t kind,
                                          const forest_scratch_t *scratch, ptrdiff_t piece, uint64_t *out,
                                          const ptrdiff_t groups) {
    /* Read once: the compiler cannot know that masks do not overlap these. */
    const uint64_t *const masks = scratch->masks;
    const void *const names = scratch->names, *const ops = program->ops;
    const int64_t end = 3 * program->op_bounds[piece + 1];
    for (int64_t i = 3 * program->op_bounds[piece]; i < end; i += 3, out += groups) {
        const ptrdiff_t c = forest_number(ops, i, kind);
        const ptrdiff_t a = forest_slot(names, kind, forest_number(ops, i + 1, kind));
        const ptrdiff_t b = forest_slot(names, kind, forest_number(ops, i + 2, kind));
        FOREST_NAME(select)(out, masks + c * groups, masks + a * groups, masks + b * groups, groups);
    }
}

/* Leaf numbers of 64 rows from their planes. */
FOREST_INLINE void FOREST_NAME(numbers)(const uint64_t bits[FOREST_PLANES], uint8_t *numbers) {
#if FOREST_LEVEL == 2
    __m512i sum = _mm512_maskz_set1_epi8(bits[0], 1);
    for (int p = 1; p < FOREST_PLANES; p++) sum = _mm512_mask_add_epi8(sum, bits[p], sum, _mm512_set1_epi8(1 << p));
    _mm512_storeu_si512(numbers, sum);
#elif FOREST_LEVEL == 1
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i powers = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    for (int h = 0; h < 2; h++) {
        __m256i sum = _mm256_setzero_si256();
        for (int p = 0; p < FOREST_PLANES; p++) {
            const __m256i word = _mm256_shuffle_epi8(_mm256_set1_epi32((int)(bits[p] >> 32 * h)), spread);
            const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(word, powers), powers);
            sum = _mm256_or_si256(sum, _mm256_and_si256(set, _mm256_set1_epi8((char)(1 << p))));
        }
        _mm256_storeu_si256((__m256i *)(numbers + 32 * h), sum);
    }
#else
    /* Eight bits to eight bytes of 0 or 1: copies, each keeping its bit, then every kept bit moved to the top. */
    for (int byte = 0; byte < 8; byte++) {
        uint64_t sum = 0;
        for (int p = 0; p < FOREST_PLANES; p++) {
            const uint64_t kept = (bits[p] >> 8 * byte & 255) * 0x0101010101010101ULL & 0x8040201008040201ULL;
            sum |= ((kept + 0x00406070787c7e7fULL) >> 7 & 0x0101010101010101ULL) << p;
        }
        for (int row = 0; row < 8; row++) numbers[8 * byte + row] = (uint8_t)(sum >> 8 * row);
    }
#endif
}

/* ---- Sums ---- */

#if FOREST_LEVEL == 2
/* Adds the values of 32 rows' leaves to four registers of sums, which hold the rows in an order that `unravel` tells.
 * The numbers are the low bytes of 16-bit elements, and permutations of 64 such elements look up the four words of their
 * doubles. */
FOREST_INLINE void FOREST_NAME(add32)(__m512d sums[4], __m512i numbers, const uint16_t *words) {
    __m512i word[4];
    for (int w = 0; w < 4; w++)
        word[w] = _mm512_permutex2var_epi16(_mm512_load_si512(words + 64 * w), numbers,
                                            _mm512_load_si512(words + 64 * w + 32));
    for (int h = 0; h < 2; h++) {
        const __m512i low = h ? _mm512_unpackhi_epi16(word[0], word[1]) : _mm512_unpacklo_epi16(word[0], word[1]);
        const __m512i high = h ? _mm512_unpackhi_epi16(word[2], word[3]) : _mm512_unpacklo_epi16(word[2], word[3]);
        sums[2 * h] = _mm512_add_pd(sums[2 * h], _mm512_castsi512_pd(_mm512_unpacklo_epi32(low, high)));
        sums[2 * h + 1] = _mm512_add_pd(sums[2 * h + 1], _mm512_castsi512_pd(_mm512_unpackhi_epi32(low, high)));
    }
}

/* The same for 64 rows: even and odd rows' numbers lie in the low and the high bytes of 16-bit elements. */
FOREST_INLINE void FOREST_NAME(add64)(__m512d sums[8], __m512i numbers, const uint16_t *words) {
    FOREST_NAME(add32)(sums, numbers, words);
    FOREST_NAME(add32)(sums + 4, _mm512_srli_epi16(numbers, 8), words);
}

/* Sums in the order of add32, whose unpacking works in lanes of 128 bits, to the order of the rows, `stride` apart. */
FOREST_INLINE void FOREST_NAME(unravel_half)(const double *sums, double *rows, int stride) {
    for (int quarter = 0; quarter < 4; quarter++)
        for (int i = 0; i < 8; i++) rows[stride * (8 * (i / 2) + 2 * quarter + i % 2)] = sums[8 * quarter + i];
}

FOREST_INLINE void FOREST_NAME(unravel)(const double *sums, double *rows, const int few) {
    FOREST_NAME(unravel_half)(sums, rows, few ? 1 : 2);
    if (!few) FOREST_NAME(unravel_half)(sums + 32, rows + 1, 2);
}

FOREST_INLINE void FOREST_NAME(add_few)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                        ptrdiff_t count) {
    __m512d sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm512_load_pd(scratch->sums + 8 * i);
    for (ptrdiff_t t = 0; t < count; t++) {
        const __m256i numbers = _mm256_load_si256((const __m256i *)(scratch->numbers + t * 64));
        FOREST_NAME(add32)(sums, _mm512_cvtepu8_epi16(numbers), forest->leaf_words + (first + t) * 4 * FOREST_LEAVES);
    }
    for (int i = 0; i < 4; i++) _mm512_store_pd(scratch->sums + 8 * i, sums[i]);
}

FOREST_INLINE void FOREST_NAME(add_batch)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                          ptrdiff_t count, const ptrdiff_t groups, const int few, ptrdiff_t n) {
    (void)n;
    if (few) {
        FOREST_NAME(add_few)(forest, scratch, first, count);
        return;
    }
    for (int g = 0; g < groups; g++) {
        __m512d sums[8];
        for (int i = 0; i < 8; i++) sums[i] = _mm512_load_pd(scratch->sums + 64 * g + 8 * i);
        for (ptrdiff_t t = 0; t < count; t++)
            FOREST_NAME(add64)(sums, _mm512_load_si512(scratch->numbers + (t * groups + g) * 64),
                               forest->leaf_words + (first + t) * 4 * FOREST_LEAVES);
        for (int i = 0; i < 8; i++) _mm512_store_pd(scratch->sums + 64 * g + 8 * i, sums[i]);
    }
}

/* The same in float32: four registers of sums, and two words of each leaf. */
FOREST_INLINE void FOREST_NAME(add64_32)(__m512 sums[4], __m512i numbers, const uint16_t *words) {
    for (int odd = 0; odd < 2; odd++) {
        const __m512i index = odd ? _mm512_srli_epi16(numbers, 8) : numbers;
        __m512i word[2];
        for (int w = 0; w < 2; w++)
            word[w] = _mm512_permutex2var_epi16(_mm512_load_si512(words + 64 * w), index,
                                                _mm512_load_si512(words + 64 * w + 32));
        __m512 *sum = sums + 2 * odd;
        sum[0] = _mm512_add_ps(sum[0], _mm512_castsi512_ps(_mm512_unpacklo_epi16(word[0], word[1])));
        sum[1] = _mm512_add_ps(sum[1], _mm512_castsi512_ps(_mm512_unpackhi_epi16(word[0], word[1])));
    }
}

FOREST_INLINE void FOREST_NAME(unravel32)(const float *sums, double *rows) {
    for (int odd = 0; odd < 2; odd++)
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 16; i++)
                rows[2 * (8 * (i / 4) + 4 * half + i % 4) + odd] = sums[32 * odd + 16 * half + i];
}

FOREST_INLINE void FOREST_NAME(add_batch32)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                            ptrdiff_t count, const ptrdiff_t groups, ptrdiff_t n) {
    (void)n;
    float *all = (float *)scratch->sums;
    for (int g = 0; g < groups; g++) {
        __m512 sums[4];
        for (int i = 0; i < 4; i++) sums[i] = _mm512_load_ps(all + 64 * g + 16 * i);
        for (ptrdiff_t t = 0; t < count; t++)
            FOREST_NAME(add64_32)(sums, _mm512_load_si512(scratch->numbers + (t * groups + g) * 64),
                                  forest->leaf_words32 + (first + t) * 2 * FOREST_LEAVES);
        for (int i = 0; i < 4; i++) _mm512_store_ps(all + 64 * g + 16 * i, sums[i]);
    }
}
#else
FOREST_INLINE void FOREST_NAME(unravel32)(const float *sums, double *rows) {
    for (int row = 0; row < 64; row++) rows[row] = sums[row];
}

FOREST_INLINE void FOREST_NAME(add_batch32)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                            ptrdiff_t count, const ptrdiff_t groups, ptrdiff_t n) {
    for (ptrdiff_t row = 0; row < n; row += 16) {
        float sums[16];
        memcpy(sums, (float *)scratch->sums + row, sizeof sums);
        for (ptrdiff_t t = 0; t < count; t++) {
            const float *leaves = forest->leaves32 + (first + t) * FOREST_LEAVES;
            const uint8_t *numbers = scratch->numbers + t * 64 * groups + row;
            for (int i = 0; i < 16; i++) sums[i] += leaves[numbers[i]];
        }
        memcpy((float *)scratch->sums + row, sums, sizeof sums);
    }
}

FOREST_INLINE void FOREST_NAME(unravel)(const double *sums, double *rows, const int few) {
    (void)few;
    memcpy(rows, sums, 64 * sizeof(double));
}

FOREST_INLINE void FOREST_NAME(add_batch)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                          ptrdiff_t count, const ptrdiff_t groups, const int few, ptrdiff_t n) {
    (void)few;
    /* Sixteen rows at a time, so that their sums stay in registers while the pieces pass. */
    for (ptrdiff_t row = 0; row < n; row += 16) {
        double sums[16];
        memcpy(sums, scratch->sums + row, sizeof sums);
        for (ptrdiff_t t = 0; t < count; t++) {
            const double *leaves = forest->leaves + (first + t) * FOREST_LEAVES;
            const uint8_t *numbers = scratch->numbers + t * 64 * groups + row;
            for (int i = 0; i < 16; i++) sums[i] += leaves[numbers[i]];
        }
        memcpy(scratch->sums + row, sums, sizeof sums);
    }
}
#endif

/* Fetches the leaves of a piece that comes later, as sums of this kind read them. */
FOREST_INLINE void FOREST_NAME(fetch_leaves)(const forest_t *forest, ptrdiff_t piece, int single) {
#if FOREST_LEVEL == 2
    const void *const leaves32 = forest->leaf_words32, *const leaves = forest->leaf_words;
#else
    const void *const leaves32 = forest->leaves32, *const leaves = forest->leaves;
#endif
    if (single)
        forest_fetch(leaves32, piece, 1, FOREST_LEAVES * sizeof(float));
    else
        forest_fetch(leaves, piece, 1, FOREST_LEAVES * sizeof(double));
}

FOREST_INLINE void FOREST_NAME(number_pieces)(const forest_t *forest, const forest_program_t *program,
                                              const forest_kind_t kind, const forest_scratch_t *scratch, ptrdiff_t first,
                                              ptrdiff_t count, int single, const ptrdiff_t groups) {
    uint64_t *const results = scratch->masks + (FOREST_FIRST_CONDITION + forest->ranges + forest->sets) * groups;
    for (ptrdiff_t piece = first; piece < first + count; piece++) {
        forest_fetch_ahead(program, kind, piece);
        FOREST_NAME(fetch_leaves)(forest, piece, single);
        if (kind != FOREST_WHOLE) forest_choose(program, kind, scratch->names, piece);
        FOREST_NAME(run_piece)(program, kind, scratch, piece, results, groups);
        const uint32_t *const names = program->planes + piece * FOREST_PLANES;
        const uint64_t *planes[FOREST_PLANES];
        for (int p = 0; p < FOREST_PLANES; p++)
            planes[p] = scratch->masks + forest_slot(scratch->names, kind, names[p]) * groups;
        for (int g = 0; g < groups; g++) {
            uint64_t bits[FOREST_PLANES];
            for (int p = 0; p < FOREST_PLANES; p++) bits[p] = planes[p][g];
            FOREST_NAME(numbers)(bits, scratch->numbers + ((piece - first) * groups + g) * 64);
        }
    }
}

FOREST_INLINE void FOREST_NAME(number_kind)(const forest_t *forest, const forest_program_t *program,
                                            const forest_scratch_t *scratch, ptrdiff_t first, ptrdiff_t count,
                                            int single, const ptrdiff_t groups) {
    switch (program->kind) {
        case FOREST_NARROW:
            FOREST_NAME(number_pieces)(forest, program, FOREST_NARROW, scratch, first, count, single, groups);
            break;
        case FOREST_WIDE:
            FOREST_NAME(number_pieces)(forest, program, FOREST_WIDE, scratch, first, count, single, groups);
            break;
        default: FOREST_NAME(number_pieces)(forest, program, FOREST_WHOLE, scratch, first, count, single, groups);
    }
}

/* Leaf numbers [count, 64 groups] of a batch of pieces. Not inlined: sums of both kinds begin with it. */
FOREST_TARGET static __attribute__((noinline)) void FOREST_NAME(number_batch)(
    const forest_t *forest, const forest_program_t *program, const forest_scratch_t *scratch, ptrdiff_t first,
    ptrdiff_t count, int single, ptrdiff_t groups) {
    switch (groups) {
#if FOREST_LEVEL == 2
        case 8: FOREST_NAME(number_kind)(forest, program, scratch, first, count, single, 8); break;
#endif
#if FOREST_LEVEL >= 1
        case 4: FOREST_NAME(number_kind)(forest, program, scratch, first, count, single, 4); break;
#endif
        default: FOREST_NAME(number_kind)(forest, program, scratch, first, count, single, 1);
    }
}

#if FOREST_LEVEL >= 1
/* out = left or right, byte by byte, as the 32 bits say. */
FOREST_INLINE void FOREST_NAME(choose)(uint8_t *out, uint32_t bits, const uint8_t *left, const uint8_t *right) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i powers = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    const __m256i l = _mm256_load_si256((const __m256i *)left), r = _mm256_load_si256((const __m256i *)right);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread);
#if FOREST_LEVEL == 2
    _mm256_store_si256((__m256i *)out, _mm256_mask_blend_epi8(_mm256_test_epi8_mask(bytes, powers), r, l));
#else
    const __m256i goes_left = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, powers), powers);
    _mm256_store_si256((__m256i *)out, _mm256_blendv_epi8(r, l, goes_left));
#endif
}

/* Leaf numbers of a bundle, one byte a row: every node takes its left or its right child's, the last node first. Not
 * inlined, so that its constants stay in registers. */
FOREST_TARGET static __attribute__((noinline)) void FOREST_NAME(number_bundle)(const forest_t *forest,
                                                                               const forest_scratch_t *scratch,
                                                                               int64_t bundle) {
    const forest_node_t *const first = forest->nodes + forest->bundle_bounds[bundle];
    const forest_node_t *node = forest->nodes + forest->bundle_bounds[bundle + 1];
    const uint32_t *const masks = (const uint32_t *)scratch->masks;
    uint8_t *const values = scratch->values;
    uint8_t *out = values + (FOREST_LEAVES + (node - first)) * FOREST_FEW_ROWS;
#pragma GCC unroll 4
    while (node > first) {
        const forest_node_t each = *--node;
        out -= FOREST_FEW_ROWS;
        FOREST_NAME(choose)(out, masks[forest_condition(each)], values + forest_left(each),
                            values + forest_right(each));
    }
}

/* The same numbers as number_batch, for at most FOREST_FEW_ROWS rows and from the masks of few_conditions. */
FOREST_INLINE void FOREST_NAME(number_few)(const forest_t *forest, const forest_scratch_t *scratch, int64_t bundle,
                                           ptrdiff_t count) {
    const uint8_t *roots = scratch->values + FOREST_LEAVES * FOREST_FEW_ROWS;
    for (ptrdiff_t t = 0; t < count; t++) {
        if (t % FOREST_BUNDLE == 0) FOREST_NAME(number_bundle)(forest, scratch, bundle + t / FOREST_BUNDLE);
        memcpy(scratch->numbers + t * 64, roots + t % FOREST_BUNDLE * FOREST_FEW_ROWS, FOREST_FEW_ROWS);
    }
}
#endif

#if FOREST_LEVEL == 2
#define FOREST_LANES_TARGET \
    __attribute__((target("avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx2,popcnt,bmi,bmi2")))

/* Leaf numbers [pieces, 64] of n rows in the pieces of one register. */
FOREST_LANES_TARGET static inline __attribute__((always_inline)) void FOREST_NAME(number_lanes)(
    const forest_lanes_t *lanes, const uint8_t *rows, ptrdiff_t n, const int pieces, int jumps, uint8_t *numbers) {
    uint8_t itself[FOREST_LEAVES];
    for (int leaf = 0; leaf < FOREST_LEAVES; leaf++) itself[leaf] = (uint8_t)leaf;
    const __m512i leaves = _mm512_loadu_si512(itself), columns = _mm512_load_si512(lanes->columns);
    const __m512i lows = _mm512_load_si512(lanes->lows), widths = _mm512_load_si512(lanes->widths);
    const __m512i lefts = _mm512_load_si512(lanes->lefts), rights = _mm512_load_si512(lanes->rights);
    for (ptrdiff_t row = 0; row < n; row++, rows += FOREST_LANE_COLUMNS) {
        const __m512i bins = _mm512_permutex2var_epi8(_mm512_load_si512(rows), columns,
                                                      _mm512_load_si512(rows + FOREST_LANE_COLUMNS / 2));
        const __mmask64 goes_left = _mm512_cmple_epu8_mask(_mm512_sub_epi8(bins, lows), widths);
        __m512i next = _mm512_mask_blend_epi8(goes_left, rights, lefts);
        for (int jump = 0; jump < jumps; jump++) next = _mm512_permutex2var_epi8(leaves, next, next);
        numbers[row] = (uint8_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(next));
        if (pieces == 2) numbers[64 + row] = (uint8_t)_mm_cvtsi128_si32(_mm512_extracti32x4_epi32(next, 2));
    }
}

/* The same numbers as number_batch, from the bins of rows in scratch->values. Not inlined, as its target is another. */
FOREST_LANES_TARGET static __attribute__((noinline)) void FOREST_NAME(number_in_lanes)(
    const forest_t *forest, const forest_scratch_t *scratch, const forest_lanes_t *lanes, ptrdiff_t count,
    ptrdiff_t n) {
    if (forest->lane_pieces == 2)
        for (ptrdiff_t t = 0; t < count; t += 2)
            FOREST_NAME(number_lanes)(lanes++, scratch->values, n, 2, forest->jumps, scratch->numbers + t * 64);
    else
        for (ptrdiff_t t = 0; t < count; t++)
            FOREST_NAME(number_lanes)(lanes++, scratch->values, n, 1, forest->jumps, scratch->numbers + t * 64);
}
#undef FOREST_LANES_TARGET
#endif

FOREST_INLINE void FOREST_NAME(start_sums)(double *sums, double initial, int single, const ptrdiff_t groups) {
    for (int row = 0; row < 64 * groups; row++)
        if (single)
            ((float *)sums)[row] = (float)initial;
        else
            sums[row] = initial;
}

/* Where leaf numbers come from: the programs, or, with one group, the nodes or the lanes. */
FOREST_INLINE void FOREST_NAME(block_margins)(const forest_t *forest, const forest_program_t *program,
                                              const forest_scratch_t *scratch, const ptrdiff_t groups,
                                              const forest_source_t source, ptrdiff_t n, const int all_single,
                                              double *out) {
    const int few = source != FOREST_PROGRAMS;
    const ptrdiff_t together = source == FOREST_IN_LANES ? forest->lane_pieces : FOREST_BUNDLE;
    int64_t place = 0; /* of the batch's first bundle or lanes */
    for (int leaf = 0; source == FOREST_NODES && leaf < FOREST_LEAVES; leaf++)
        memset(scratch->values + leaf * FOREST_FEW_ROWS, leaf, FOREST_FEW_ROWS);
    for (ptrdiff_t k = 0; k < forest->outputs; k++) {
        const int single = all_single || forest->singles[k];
        const double divisor = forest->divisors[k];
        FOREST_NAME(start_sums)(scratch->sums, forest->initials[k], single, groups);
        const ptrdiff_t end = forest->output_bounds[k + 1];
        for (ptrdiff_t first = forest->output_bounds[k]; first < end; first += FOREST_BATCH) {
            const ptrdiff_t count = end - first < FOREST_BATCH ? end - first : FOREST_BATCH;
#if FOREST_LEVEL >= 1
            if (source == FOREST_NODES) FOREST_NAME(number_few)(forest, scratch, place, count);
#endif
#if FOREST_LEVEL == 2
            if (source == FOREST_IN_LANES)
                FOREST_NAME(number_in_lanes)(forest, scratch, forest->lanes + place, count, n);
#endif
            if (source == FOREST_PROGRAMS)
                FOREST_NAME(number_batch)(forest, program, scratch, first, count, single, groups);
            place += (count + together - 1) / together;
            if (single)
                FOREST_NAME(add_batch32)(forest, scratch, first, count, groups, n);
            else
                FOREST_NAME(add_batch)(forest, scratch, first, count, groups, few, n);
        }
        for (ptrdiff_t start = 0; start < n; start += 64) {
            double rows[64];
            if (single)
                FOREST_NAME(unravel32)((const float *)scratch->sums + start, rows);
            else
                FOREST_NAME(unravel)(scratch->sums + start, rows, few);
            const ptrdiff_t size = n - start < 64 ? n - start : 64;
            for (ptrdiff_t i = 0; i < size; i++) out[(start + i) * forest->outputs + k] = rows[i] / divisor;
        }
    }
}

FOREST_INLINE void FOREST_NAME(any_margins)(const forest_t *forest, const forest_program_t *program,
                                            const forest_scratch_t *scratch, ptrdiff_t groups, ptrdiff_t n,
                                            const int all_single, double *out) {
    switch (groups) {
#if FOREST_LEVEL == 2
        case 8: FOREST_NAME(block_margins)(forest, program, scratch, 8, FOREST_PROGRAMS, n, all_single, out); break;
#endif
#if FOREST_LEVEL >= 1
        case 4: FOREST_NAME(block_margins)(forest, program, scratch, 4, FOREST_PROGRAMS, n, all_single, out); break;
#endif
        default: FOREST_NAME(block_margins)(forest, program, scratch, 1, FOREST_PROGRAMS, n, all_single, out);
    }
}

FOREST_TARGET static void FOREST_NAME(margins)(const forest_t *forest, const forest_program_t *program,
                                               const forest_scratch_t *scratch, ptrdiff_t groups, ptrdiff_t n,
                                               double *out) {
    FOREST_NAME(any_margins)(forest, program, scratch, groups, n, 0, out);
}

FOREST_TARGET static void FOREST_NAME(margins32)(const forest_t *forest, const forest_program_t *program,
                                                 const forest_scratch_t *scratch, ptrdiff_t groups, ptrdiff_t n,
                                                 double *out) {
    FOREST_NAME(any_margins)(forest, program, scratch, groups, n, 1, out);
}

#if FOREST_LEVEL >= 1
FOREST_TARGET static void FOREST_NAME(few_margins)(const forest_t *forest, const forest_scratch_t *scratch,
                                                   ptrdiff_t n, int single, double *out) {
    if (single)
        FOREST_NAME(block_margins)(forest, NULL, scratch, 1, FOREST_NODES, n, 1, out);
    else
        FOREST_NAME(block_margins)(forest, NULL, scratch, 1, FOREST_NODES, n, 0, out);
}
#endif

#if FOREST_LEVEL == 2
FOREST_TARGET static void FOREST_NAME(lane_margins)(const forest_t *forest, const forest_scratch_t *scratch,
                                                    ptrdiff_t n, int single, double *out) {
    forest_turn_bins(forest, scratch, n);
    if (single)
        FOREST_NAME(block_margins)(forest, NULL, scratch, 1, FOREST_IN_LANES, n, 1, out);
    else
        FOREST_NAME(block_margins)(forest, NULL, scratch, 1, FOREST_IN_LANES, n, 0, out);
}
#endif

static const forest_variant_t FOREST_OBJECT(FOREST_VARIANT) = {
    .name = FOREST_STRING(FOREST_VARIANT),
    .bin32 = FOREST_NAME(bin32),
    .bin64 = FOREST_NAME(bin64),
    .conditions = FOREST_NAME(conditions),
    .margins = FOREST_NAME(margins),
    .margins32 = FOREST_NAME(margins32),
    .few_conditions = FOREST_NAME(few_conditions),
    .few_constants = FOREST_NAME(few_constants),
#if FOREST_LEVEL >= 1
    .few_margins = FOREST_NAME(few_margins),
#endif
#if FOREST_LEVEL == 2
    .lane_margins = FOREST_NAME(lane_margins),
#endif
    .groups = FOREST_GROUPS,
};

#undef FOREST_JOIN_
#undef FOREST_JOIN
#undef FOREST_NAME
#undef FOREST_OBJECT_
#undef FOREST_OBJECT
#undef FOREST_STRING_
#undef FOREST_STRING
#undef FOREST_INLINE
#undef FOREST_VARIANT
#undef FOREST_LEVEL
#undef FOREST_TARGET
#undef FOREST_GROUPS
