/* Inverted lists of 4-bit product-quantised codes: the approximate half of nearest-neighbour search.
 *
 * A vector is projected to fewer dimensions, assigned to the list of its nearest centroid, and what is left of it is
 * cut into parts, each stored as the number of one of 16 codewords. For a query:
 *
 *   project     the query, by the same matrix
 *   probe       its inner products with the centroids; the best lists are scanned, best first
 *   tabulate    its inner products with all codewords, as integers 0..127 on one scale
 *   scan        sums of table entries: an item's score is its list's + its codes' (Andre et al., 2017: registers as tables)
 *
 * Scores are integers, so every instruction set finds the same items. The scale is common to all lists of a query.
 *
 * Codes lie in blocks of 32 items: [block][pair of parts][item], a byte holding the even part in its low and the odd
 * part in its high half. Lists start at a block; the rows of a block's unused places are -1.
 */
#ifndef RECSERVE_IVF_H
#define RECSERVE_IVF_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "select.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum {
    IVF_BLOCK = 32,     /* items of a block of codes */
    IVF_WORDS = 16,     /* codewords of a part */
    IVF_GROUP = 16,     /* centroids that lie interleaved: [group][dimension][centroid] */
    IVF_TOP = 127,      /* largest table entry: two of them fit into a byte */
    IVF_LINE = 64,      /* bytes of a cache line */
    IVF_CHUNK = 16,     /* blocks between two looks at the threshold */
    IVF_SAMPLED = 4,    /* of so many places one is looked at to tell how many items pass */
    IVF_LIMIT = 1 << 28 /* scores of lists are kept within it: beyond any table entry, and far from overflow */
};

typedef struct {
    ptrdiff_t lists, dim, pairs, part; /* of the projected space: dimensions, pairs of parts, dimensions of a part */
    const float *centroids;            /* [ceil(lists / 16), dim, 16] */
    const float *codewords;            /* [2 pairs, 16, part] */
    const int64_t *starts;             /* [lists + 1] in blocks */
    const int32_t *rows;               /* [blocks, 32] */
    const uint8_t *codes;              /* [blocks, pairs, 32] */
} ivf_index;

/* scores[list] = centroid . query; `scores` has room for whole groups. */
typedef void (*ivf_probe_function)(const ivf_index *index, const float *query, float *scores);

/* Positions (0 .. 32 blocks - 1) and sums of the items whose sum is at least `least`; returns how many. Meanwhile the
 * first `ahead` of the blocks that will be scanned `next` are fetched: lists lie anywhere, and the hardware does not
 * find the next one. */
typedef ptrdiff_t (*ivf_scan_function)(const uint8_t *codes, ptrdiff_t blocks, ptrdiff_t pairs, const uint8_t *tables,
                                       uint16_t least, const uint8_t *next, ptrdiff_t ahead, uint16_t *positions,
                                       uint16_t *sums);

typedef struct {
    ivf_probe_function probe;
    ivf_scan_function scan;
} ivf_variant;

/* Fetches a block of codes, where it is one of those that lie ahead. Always inlined, as dot_prefetch is: GCC did leave
 * out its calls. */
static inline __attribute__((always_inline)) void ivf_fetch(const uint8_t *codes, ptrdiff_t block, ptrdiff_t ahead,
                                                            ptrdiff_t pairs) {
    if (block >= ahead) return;
    for (ptrdiff_t line = 0; line < pairs * IVF_BLOCK; line += IVF_LINE)
        __builtin_prefetch(codes + block * pairs * IVF_BLOCK + line);
}

#define IVF_VARIANT ivf_portable
#define IVF_WIDTH 4
#define IVF_TARGET
#include "ivf_probe.h"

static ptrdiff_t ivf_portable_scan(const uint8_t *codes, ptrdiff_t blocks, ptrdiff_t pairs, const uint8_t *tables,
                                   uint16_t least, const uint8_t *next, ptrdiff_t ahead, uint16_t *positions,
                                   uint16_t *sums) {
    ptrdiff_t hits = 0;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        uint16_t sum[IVF_BLOCK] = {0};
        ivf_fetch(next, block, ahead, pairs);
        for (ptrdiff_t pair = 0; pair < pairs; pair++, codes += IVF_BLOCK) {
            const uint8_t *low = tables + 2 * pair * IVF_WORDS, *high = low + IVF_WORDS;
            for (int i = 0; i < IVF_BLOCK; i++) sum[i] += (uint16_t)(low[codes[i] & 15] + high[codes[i] >> 4]);
        }
        for (int i = 0; i < IVF_BLOCK; i++) {
            positions[hits] = (uint16_t)(block * IVF_BLOCK + i);
            sums[hits] = sum[i];
            hits += sum[i] >= least;
        }
    }
    return hits;
}

#ifdef __x86_64__
#define IVF_VARIANT ivf_avx2
#define IVF_WIDTH 8
#define IVF_TARGET __attribute__((target("avx2")))
#include "ivf_probe.h"

#define IVF_VARIANT ivf_avx512
#define IVF_WIDTH 16
#define IVF_TARGET __attribute__((target("avx512f,avx512bw")))
#include "ivf_probe.h"

/* Appends the items of one mask; sum[i] belongs to position first + step * i. */
static inline ptrdiff_t ivf_append(uint32_t mask, const uint16_t *sum, ptrdiff_t first, ptrdiff_t hits,
                                   uint16_t *positions, uint16_t *sums) {
    for (; mask; mask &= mask - 1, hits++) {
        const int i = __builtin_ctz(mask);
        positions[hits] = (uint16_t)(first + 2 * i);
        sums[hits] = sum[i];
    }
    return hits;
}

/* Bytes are added as 16-bit numbers: `all` gathers even items plus 256 times odd ones, `odd` the odd ones alone. */
__attribute__((target("avx2"))) static ptrdiff_t ivf_avx2_scan(
    const uint8_t *codes, ptrdiff_t blocks, ptrdiff_t pairs, const uint8_t *tables, uint16_t least, const uint8_t *next,
    ptrdiff_t ahead, uint16_t *positions, uint16_t *sums) {
    const __m256i nibble = _mm256_set1_epi8(15), bound = _mm256_set1_epi16((short)least);
    ptrdiff_t hits = 0;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        __m256i all = _mm256_setzero_si256(), odd = all;
        ivf_fetch(next, block, ahead, pairs);
        for (ptrdiff_t pair = 0; pair < pairs; pair++, codes += IVF_BLOCK) {
            const __m256i code = _mm256_loadu_si256((const __m256i *)codes);
            const __m128i *table = (const __m128i *)(tables + 2 * pair * IVF_WORDS);
            const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
            const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128(table + 1));
            const __m256i sum =
                _mm256_add_epi8(_mm256_shuffle_epi8(low, _mm256_and_si256(code, nibble)),
                                _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(code, 4), nibble)));
            all = _mm256_add_epi16(all, sum);
            odd = _mm256_add_epi16(odd, _mm256_srli_epi16(sum, 8));
        }
        const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
        const __m256i even_hit = _mm256_cmpeq_epi16(_mm256_max_epu16(even, bound), even);
        const __m256i odd_hit = _mm256_cmpeq_epi16(_mm256_max_epu16(odd, bound), odd);
        if (_mm256_testz_si256(_mm256_or_si256(even_hit, odd_hit), _mm256_or_si256(even_hit, odd_hit))) continue;
        uint16_t sum[2][16];
        _mm256_storeu_si256((__m256i *)sum[0], even);
        _mm256_storeu_si256((__m256i *)sum[1], odd);
        /* 16-bit masks to bytes: packing takes the lanes apart, which the permutation undoes. */
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(even_hit, odd_hit), 0xd8);
        const uint32_t mask = (uint32_t)_mm256_movemask_epi8(packed);
        hits = ivf_append(mask & 0xffff, sum[0], block * IVF_BLOCK, hits, positions, sums);
        hits = ivf_append(mask >> 16, sum[1], block * IVF_BLOCK + 1, hits, positions, sums);
    }
    return hits;
}

/* As with AVX2, two pairs at a time: the lower half of a register holds one, the upper half the other. */
__attribute__((target("avx512f,avx512bw"))) static ptrdiff_t ivf_avx512_scan(
    const uint8_t *codes, ptrdiff_t blocks, ptrdiff_t pairs, const uint8_t *tables, uint16_t least, const uint8_t *next,
    ptrdiff_t ahead, uint16_t *positions, uint16_t *sums) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m256i bound = _mm256_set1_epi16((short)least);
    /* 128-bit lanes of four tables a, b, c, d: the even parts' a, a, c, c and the odd parts' b, b, d, d. */
    const __m512i lanes = _mm512_set_epi64(5, 4, 5, 4, 1, 0, 1, 0), other = _mm512_set1_epi64(2);
    ptrdiff_t hits = 0;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        __m512i all = _mm512_setzero_si512(), odd = all;
        ivf_fetch(next, block, ahead, pairs);
        for (ptrdiff_t pair = 0; pair < pairs; pair += 2, codes += 2 * IVF_BLOCK) {
            const __m512i code = _mm512_loadu_si512(codes);
            const __m512i table = _mm512_loadu_si512(tables + 2 * pair * IVF_WORDS);
            const __m512i low = _mm512_permutexvar_epi64(lanes, table);
            const __m512i high = _mm512_permutexvar_epi64(_mm512_add_epi64(lanes, other), table);
            const __m512i sum =
                _mm512_add_epi8(_mm512_shuffle_epi8(low, _mm512_and_si512(code, nibble)),
                                _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16(code, 4), nibble)));
            all = _mm512_add_epi16(all, sum);
            odd = _mm512_add_epi16(odd, _mm512_srli_epi16(sum, 8));
        }
        const __m512i shifted = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
        const __m256i even = _mm256_add_epi16(_mm512_castsi512_si256(shifted), _mm512_extracti64x4_epi64(shifted, 1));
        const __m256i odds = _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odds, 1);
        const uint32_t mask = _mm512_cmpge_epu16_mask(both, _mm512_broadcast_i64x4(bound));
        if (!mask) continue;
        uint16_t sum[2][16];
        _mm512_storeu_si512(sum, both);
        hits = ivf_append(mask & 0xffff, sum[0], block * IVF_BLOCK, hits, positions, sums);
        hits = ivf_append(mask >> 16, sum[1], block * IVF_BLOCK + 1, hits, positions, sums);
    }
    return hits;
}
#endif

/* The variant of that name, or one of NULLs where this build or this CPU lacks it. */
static ivf_variant ivf_variant_named(const char *name) {
    if (strcmp(name, "portable") == 0) return (ivf_variant){ivf_portable, ivf_portable_scan};
#ifdef __x86_64__
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return (ivf_variant){ivf_avx2, ivf_avx2_scan};
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        return (ivf_variant){ivf_avx512, ivf_avx512_scan};
#endif
    return (ivf_variant){NULL, NULL};
}

/* x within +-IVF_LIMIT, as an integer; NaN is the lowest. */
static inline int32_t ivf_integer(float x) {
    if (!(x > -IVF_LIMIT)) return -IVF_LIMIT;
    return x < IVF_LIMIT ? (int32_t)lrintf(x) : IVF_LIMIT;
}

/* Fills the tables [2 pairs, 16] of a projected query and returns their scale: entry = scale * (score - least of part).
 * `scores` holds [2 pairs, 16] floats. */
static float ivf_tabulate(const ivf_index *index, const float *query, float *scores, uint8_t *tables) {
    float widest = 0.0f;
    const ptrdiff_t parts = 2 * index->pairs;
    const float *word = index->codewords;
    for (ptrdiff_t part = 0; part < parts; part++) {
        float least = INFINITY, most = -INFINITY;
        float *const mine = scores + part * IVF_WORDS;
        for (int w = 0; w < IVF_WORDS; w++, word += index->part) {
            float score = 0.0f;
            for (ptrdiff_t i = 0; i < index->part; i++) score += word[i] * query[part * index->part + i];
            mine[w] = score;
            least = score < least ? score : least;
            most = score > most ? score : most;
        }
        for (int w = 0; w < IVF_WORDS; w++) mine[w] -= least;
        widest = most - least > widest ? most - least : widest;
    }
    const float scale = widest > 0.0f ? IVF_TOP / widest : 1.0f;
    for (ptrdiff_t i = 0; i < parts * IVF_WORDS; i++) {
        const float entry = scale * scores[i];
        tables[i] = entry < IVF_TOP ? (uint8_t)(entry + 0.5f) : IVF_TOP;
    }
    return scale;
}

/* Memory for one search at a time. */
typedef struct {
    float *list_scores; /* whole groups of lists */
    uint64_t *lists;    /* whole groups of lists */
    uint64_t *spare;    /* lists, or fetch where that is more */
    float *table_scores;
    uint8_t *tables;
    uint64_t *found; /* 2 fetch + IVF_CHUNK * IVF_BLOCK */
} ivf_scratch;

/* Leaves in scratch->lists the best `probes` lists in order; the rank of a list is that of its score. */
static void ivf_choose(const ivf_index *index, const ivf_variant *variant, const float *query, ptrdiff_t probes,
                       ivf_scratch *scratch) {
    variant->probe(index, query, scratch->list_scores);
    for (ptrdiff_t list = 0; list < index->lists; list++) {
        const float score = scratch->list_scores[list];
        scratch->lists[list] = key_join(score == score ? rank_of_score(score) : 0, (uint32_t)list);
    }
    key_select(scratch->lists, index->lists, probes);
    key_sort(scratch->lists, scratch->spare, probes);
}

/* Whether the row's bit is set; NULL: of every row. */
static inline int ivf_passes(const uint64_t *bitmap, int32_t row) {
    return bitmap == NULL || (bitmap[row >> 6] >> (row & 63) & 1);
}

/* What the scan of a few blocks found. */
typedef struct {
    int64_t score;       /* of their list */
    const int32_t *rows; /* of their items */
    ptrdiff_t count;
    uint16_t positions[IVF_CHUNK * IVF_BLOCK], sums[IVF_CHUNK * IVF_BLOCK];
} ivf_hits;

/* Appends the keys of the hits that pass to `size` others; returns how many there are. */
static ptrdiff_t ivf_collect(const ivf_hits *hits, const uint64_t *bitmap, uint64_t *found, ptrdiff_t size) {
    for (ptrdiff_t hit = 0; hit < hits->count; hit++) {
        const int32_t row = hits->rows[hits->positions[hit]];
        if (row < 0 || !ivf_passes(bitmap, row)) continue;
        found[size++] = key_join((uint32_t)(hits->score + hits->sums[hit] + 2 * (int64_t)IVF_LIMIT), (uint32_t)row);
    }
    return size;
}

/* Fetches what ivf_passing looks at. */
static inline __attribute__((always_inline)) void ivf_fetch_rows(const int32_t *rows, ptrdiff_t blocks) {
    for (ptrdiff_t i = 0; i < blocks * IVF_BLOCK; i += IVF_LINE / 4) __builtin_prefetch(rows + i);
}

/* About how many items of some blocks pass: those in every IVF_SAMPLED-th place stand for all. */
static ptrdiff_t ivf_passing(const int32_t *rows, ptrdiff_t blocks, const uint64_t *bitmap) {
    ptrdiff_t passing = 0;
    for (ptrdiff_t i = 0; i < blocks * IVF_BLOCK; i += IVF_SAMPLED) passing += rows[i] >= 0 && ivf_passes(bitmap, rows[i]);
    return IVF_SAMPLED * passing;
}

/* Puts as many of the remaining lists again in order behind the first `ready`; returns how many are in order then. */
static ptrdiff_t ivf_choose_more(const ivf_index *index, ptrdiff_t ready, ivf_scratch *scratch) {
    const ptrdiff_t left = index->lists - ready, more = ready < left ? ready : left;
    key_select(scratch->lists + ready, left, more);
    key_sort(scratch->lists + ready, scratch->spare, more);
    return ready + more;
}

/* Scans the best `probes` lists, and further ones until `enough` items that pass have been seen, for the `fetch` best
 * items whose bit is set, and leaves them in scratch->found in no particular order; returns how many there are. Ties are
 * broken by row, so the answer is a function of the scores. */
static ptrdiff_t ivf_search(const ivf_index *index, const ivf_variant *variant, const float *query, ptrdiff_t probes,
                            ptrdiff_t enough, ptrdiff_t fetch, const uint64_t *bitmap, ivf_scratch *scratch) {
    ivf_hits turns[2]; /* hits are collected after the scan that follows: by then their rows have been fetched */
    int turn = 0;
    turns[1].count = 0;
    uint64_t *const found = scratch->found;
    ptrdiff_t size = 0, passing = 0, ready = probes;
    int64_t worst = INT64_MIN / 2; /* score of the last of the best `fetch`, once there are so many */
    const ptrdiff_t stride = index->pairs * IVF_BLOCK; /* bytes of a block */
    const float scale = ivf_tabulate(index, query, scratch->table_scores, scratch->tables);
    ivf_choose(index, variant, query, probes, scratch);
    for (ptrdiff_t i = 0; i < probes || (bitmap != NULL && passing < enough && i < index->lists); i++) {
        if (i == ready) ready = ivf_choose_more(index, ready, scratch);
        const uint32_t list = key_row(scratch->lists[i]);
        const int64_t score = ivf_integer(scale * scratch->list_scores[list]);
        const int64_t start = index->starts[list], end = index->starts[list + 1];
        const int64_t next = index->starts[i + 1 < ready ? key_row(scratch->lists[i + 1]) : index->lists];
        if (worst - score > UINT16_MAX) break; /* out of reach of any sum, as are all lists behind this one */
        for (int64_t block = start; block < end && worst - score <= UINT16_MAX; block += IVF_CHUNK) {
            const uint16_t least = (uint16_t)(worst > score ? worst - score : 0);
            const int64_t blocks = end - block < IVF_CHUNK ? end - block : IVF_CHUNK;
            const int64_t after = next + block - start;
            ivf_hits *const hits = &turns[turn];
            const int counted = bitmap != NULL && passing < enough;
            hits->score = score;
            hits->rows = index->rows + block * IVF_BLOCK;
            if (counted) ivf_fetch_rows(hits->rows, blocks);
            hits->count = variant->scan(index->codes + block * stride, blocks, index->pairs, scratch->tables, least,
                                        index->codes + after * stride, index->starts[index->lists] - after,
                                        hits->positions, hits->sums);
            for (ptrdiff_t hit = 0; hit < hits->count; hit++) __builtin_prefetch(hits->rows + hits->positions[hit]);
            size = ivf_collect(&turns[!turn], bitmap, found, size);
            if (counted) passing += ivf_passing(hits->rows, blocks, bitmap);
            turn = !turn;
            if (size >= 2 * fetch) {
                key_select(found, size, fetch);
                size = fetch;
                uint64_t last = found[0];
                for (ptrdiff_t j = 1; j < size; j++) last = found[j] < last ? found[j] : last;
                worst = (int64_t)key_rank(last) - 2 * (int64_t)IVF_LIMIT;
            }
        }
    }
    size = ivf_collect(&turns[!turn], bitmap, found, size);
    if (size > fetch) {
        key_select(found, size, fetch);
        size = fetch;
    }
    return size;
}

#endif
