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

/* ---- Conditions: bins of 64 rows to 64 bits ---- */

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
    const __m256i lows = _mm256_set1_epi8((char)low), widths = _mm256_set1_epi8((char)width);
    uint64_t bits[2];
    for (int h = 0; h < 2; h++) {
        const __m256i offset = _mm256_sub_epi8(bins.half[h], lows);
        bits[h] = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(offset, widths), offset));
    }
    return bits[0] | bits[1] << 32;
}

FOREST_INLINE uint64_t FOREST_NAME(in_set)(FOREST_NAME(bytes) bins, const uint8_t *set) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)set));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(set + 16)));
    const __m256i powers = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    uint64_t bits[2];
    for (int h = 0; h < 2; h++) {
        const __m256i index = _mm256_and_si256(_mm256_srli_epi16(bins.half[h], 3), _mm256_set1_epi8(15));
        const __m256i bit = _mm256_shuffle_epi8(powers, _mm256_and_si256(bins.half[h], _mm256_set1_epi8(7)));
        const __m256i byte = _mm256_blendv_epi8(_mm256_shuffle_epi8(low, index), _mm256_shuffle_epi8(high, index),
                                                bins.half[h]);
        bits[h] = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit));
    }
    return bits[0] | bits[1] << 32;
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

FOREST_INLINE void FOREST_NAME(column_conditions)(const forest_t *forest, const forest_scratch_t *scratch,
                                                  ptrdiff_t column, const ptrdiff_t groups) {
    const uint8_t *bins = scratch->bins + column * 64 * groups;
    uint64_t *ranges = scratch->masks + FOREST_FIRST_CONDITION * groups;
    uint64_t *sets = ranges + forest->ranges * groups;
    FOREST_NAME(bytes) block[FOREST_MAX_GROUPS];
    for (int g = 0; g < groups; g++) block[g] = FOREST_NAME(load_bytes)(bins + 64 * g);
    for (int64_t r = forest->range_bounds[column]; r < forest->range_bounds[column + 1]; r++) {
        /* Read once: the compiler cannot know that masks do not overlap the conditions. */
        const uint8_t low = forest->range_lows[r], width = forest->range_widths[r];
        for (int g = 0; g < groups; g++) ranges[r * groups + g] = FOREST_NAME(in_range)(block[g], low, width);
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

FOREST_INLINE void FOREST_NAME(fill)(uint64_t *mask, int left, const ptrdiff_t groups) {
    for (int g = 0; g < groups; g++) mask[g] = -(uint64_t)left;
}

FOREST_INLINE void FOREST_NAME(column_constants)(const forest_t *forest, const forest_scratch_t *scratch,
                                                 ptrdiff_t column, uint8_t bin, const ptrdiff_t groups) {
    uint64_t *ranges = scratch->masks + FOREST_FIRST_CONDITION * groups;
    uint64_t *sets = ranges + forest->ranges * groups;
    for (int64_t r = forest->range_bounds[column]; r < forest->range_bounds[column + 1]; r++)
        FOREST_NAME(fill)(ranges + r * groups, (uint8_t)(bin - forest->range_lows[r]) <= forest->range_widths[r],
                          groups);
    for (int64_t s = forest->set_bounds[column]; s < forest->set_bounds[column + 1]; s++)
        FOREST_NAME(fill)(sets + s * groups, forest_in_set(forest->set_bits + s * FOREST_SET_BYTES, bin), groups);
}

FOREST_TARGET static void FOREST_NAME(constants)(const forest_t *forest, const forest_scratch_t *scratch,
                                                 const int32_t *columns, ptrdiff_t count, const uint8_t *bins,
                                                 ptrdiff_t groups) {
    for (ptrdiff_t i = 0; i < count; i++) switch (groups) {
#if FOREST_LEVEL == 2
            case 8: FOREST_NAME(column_constants)(forest, scratch, columns[i], bins[i], 8); break;
#endif
#if FOREST_LEVEL >= 1
            case 4: FOREST_NAME(column_constants)(forest, scratch, columns[i], bins[i], 4); break;
#endif
            default: FOREST_NAME(column_constants)(forest, scratch, columns[i], bins[i], 1);
        }
}

/* ---- Programs ---- */

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
        _mm256_store_si256((__m256i *)out, _mm256_or_si256(_mm256_and_si256(z, x), _mm256_andnot_si256(z, y)));
        return;
    }
#endif
    *out = (*c & *a) | (~*c & *b);
}

FOREST_INLINE void FOREST_NAME(run_piece)(const forest_t *forest, uint64_t *masks, ptrdiff_t piece,
                                          const ptrdiff_t groups) {
    const uint32_t *op = forest->ops + 3 * forest->op_bounds[piece];
    const uint32_t *end = forest->ops + 3 * forest->op_bounds[piece + 1];
    uint64_t *out = masks + (FOREST_FIRST_CONDITION + forest->ranges + forest->sets) * groups;
    for (; op < end; op += 3, out += groups)
        FOREST_NAME(select)(out, masks + op[0] * groups, masks + op[1] * groups, masks + op[2] * groups, groups);
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
/* Adds the values of 64 rows' leaves to eight registers of sums, which hold the rows in the order of `unravel`.
 *
 * Even and odd rows' numbers lie in the low and the high bytes of 16-bit elements, and permutations of 64 such elements
 * look up the four words of their doubles. */
FOREST_INLINE void FOREST_NAME(add64)(__m512d sums[8], __m512i numbers, const uint16_t *words) {
    for (int odd = 0; odd < 2; odd++) {
        const __m512i index = odd ? _mm512_srli_epi16(numbers, 8) : numbers;
        __m512i word[4];
        for (int w = 0; w < 4; w++)
            word[w] = _mm512_permutex2var_epi16(_mm512_load_si512(words + 64 * w), index,
                                                _mm512_load_si512(words + 64 * w + 32));
        for (int h = 0; h < 2; h++) {
            const __m512i low = h ? _mm512_unpackhi_epi16(word[0], word[1]) : _mm512_unpacklo_epi16(word[0], word[1]);
            const __m512i high = h ? _mm512_unpackhi_epi16(word[2], word[3]) : _mm512_unpacklo_epi16(word[2], word[3]);
            __m512d *sum = sums + 4 * odd + 2 * h;
            sum[0] = _mm512_add_pd(sum[0], _mm512_castsi512_pd(_mm512_unpacklo_epi32(low, high)));
            sum[1] = _mm512_add_pd(sum[1], _mm512_castsi512_pd(_mm512_unpackhi_epi32(low, high)));
        }
    }
}

/* Sums of a group in the order of add64, whose unpacking works in lanes of 128 bits, to the order of the rows. */
FOREST_INLINE void FOREST_NAME(unravel)(const double *sums, double *rows) {
    for (int odd = 0; odd < 2; odd++)
        for (int quarter = 0; quarter < 4; quarter++)
            for (int i = 0; i < 8; i++)
                rows[2 * (8 * (i / 2) + 2 * quarter + i % 2) + odd] = sums[32 * odd + 8 * quarter + i];
}

FOREST_INLINE void FOREST_NAME(add_batch)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                          ptrdiff_t count, const ptrdiff_t groups, ptrdiff_t n) {
    (void)n;
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

FOREST_INLINE void FOREST_NAME(unravel)(const double *sums, double *rows) { memcpy(rows, sums, 64 * sizeof(double)); }

FOREST_INLINE void FOREST_NAME(add_batch)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                          ptrdiff_t count, const ptrdiff_t groups, ptrdiff_t n) {
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

FOREST_INLINE void FOREST_NAME(number_batch)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t first,
                                             ptrdiff_t count, const ptrdiff_t groups) {
    for (ptrdiff_t t = 0; t < count; t++) {
        FOREST_NAME(run_piece)(forest, scratch->masks, first + t, groups);
        const uint32_t *planes = forest->planes + (first + t) * FOREST_PLANES;
        for (int g = 0; g < groups; g++) {
            uint64_t bits[FOREST_PLANES];
            for (int p = 0; p < FOREST_PLANES; p++) bits[p] = scratch->masks[planes[p] * groups + g];
            FOREST_NAME(numbers)(bits, scratch->numbers + (t * groups + g) * 64);
        }
    }
}

FOREST_INLINE void FOREST_NAME(start_sums)(double *sums, double initial, int single, const ptrdiff_t groups) {
    for (int row = 0; row < 64 * groups; row++)
        if (single)
            ((float *)sums)[row] = (float)initial;
        else
            sums[row] = initial;
}

FOREST_INLINE void FOREST_NAME(block_margins)(const forest_t *forest, const forest_scratch_t *scratch,
                                              const ptrdiff_t groups, ptrdiff_t n, const int all_single, double *out) {
    for (ptrdiff_t k = 0; k < forest->outputs; k++) {
        const int single = all_single || forest->singles[k];
        const double divisor = forest->divisors[k];
        FOREST_NAME(start_sums)(scratch->sums, forest->initials[k], single, groups);
        const ptrdiff_t end = forest->output_bounds[k + 1];
        for (ptrdiff_t first = forest->output_bounds[k]; first < end; first += FOREST_BATCH) {
            const ptrdiff_t count = end - first < FOREST_BATCH ? end - first : FOREST_BATCH;
            FOREST_NAME(number_batch)(forest, scratch, first, count, groups);
            if (single)
                FOREST_NAME(add_batch32)(forest, scratch, first, count, groups, n);
            else
                FOREST_NAME(add_batch)(forest, scratch, first, count, groups, n);
        }
        for (ptrdiff_t start = 0; start < n; start += 64) {
            double rows[64];
            if (single)
                FOREST_NAME(unravel32)((const float *)scratch->sums + start, rows);
            else
                FOREST_NAME(unravel)(scratch->sums + start, rows);
            const ptrdiff_t size = n - start < 64 ? n - start : 64;
            for (ptrdiff_t i = 0; i < size; i++) out[(start + i) * forest->outputs + k] = rows[i] / divisor;
        }
    }
}

FOREST_INLINE void FOREST_NAME(any_margins)(const forest_t *forest, const forest_scratch_t *scratch, ptrdiff_t groups,
                                            ptrdiff_t n, const int all_single, double *out) {
    switch (groups) {
#if FOREST_LEVEL == 2
        case 8: FOREST_NAME(block_margins)(forest, scratch, 8, n, all_single, out); break;
#endif
#if FOREST_LEVEL >= 1
        case 4: FOREST_NAME(block_margins)(forest, scratch, 4, n, all_single, out); break;
#endif
        default: FOREST_NAME(block_margins)(forest, scratch, 1, n, all_single, out);
    }
}

FOREST_TARGET static void FOREST_NAME(margins)(const forest_t *forest, const forest_scratch_t *scratch,
                                               ptrdiff_t groups, ptrdiff_t n, double *out) {
    FOREST_NAME(any_margins)(forest, scratch, groups, n, 0, out);
}

FOREST_TARGET static void FOREST_NAME(margins32)(const forest_t *forest, const forest_scratch_t *scratch,
                                                 ptrdiff_t groups, ptrdiff_t n, double *out) {
    FOREST_NAME(any_margins)(forest, scratch, groups, n, 1, out);
}

static const forest_variant_t FOREST_OBJECT(FOREST_VARIANT) = {
    .name = FOREST_STRING(FOREST_VARIANT),
    .bin32 = FOREST_NAME(bin32),
    .bin64 = FOREST_NAME(bin64),
    .conditions = FOREST_NAME(conditions),
    .constants = FOREST_NAME(constants),
    .margins = FOREST_NAME(margins),
    .margins32 = FOREST_NAME(margins32),
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
