/* The best of some rows by their exact inner products with a query. */
#ifndef RECSERVE_RESCORE_H
#define RECSERVE_RESCORE_H

#include "dot.h"
#include "select.h"

/* Rows lie anywhere in a table larger than the caches: those of the next step are fetched while this one is scored. */
enum { RESCORE_STEP = 8, RESCORE_LINE = 16 };

static inline void rescore_fetch(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t at = 0; at < dim; at += RESCORE_LINE) __builtin_prefetch(table + rows[i] * dim + at);
}

/* Scores the rows and leaves the best `k` in order in `keys`; returns how many there are. Rows whose score is NaN are
 * left out. `keys` and `spare` hold n keys each. */
static ptrdiff_t rescore(dot_function dot, const float *table, ptrdiff_t dim, const float *query, const int64_t *rows,
                         ptrdiff_t n, ptrdiff_t k, uint64_t *keys, uint64_t *spare) {
    ptrdiff_t scored = 0;
    rescore_fetch(table, dim, rows, n < RESCORE_STEP ? n : RESCORE_STEP);
    for (ptrdiff_t start = 0; start < n; start += RESCORE_STEP) {
        float scores[RESCORE_STEP];
        const ptrdiff_t next = start + RESCORE_STEP, end = next < n ? next : n;
        const ptrdiff_t ahead = n - end < RESCORE_STEP ? n - end : RESCORE_STEP;
        rescore_fetch(table, dim, rows + end, ahead);
        dot(table, dim, rows + start, end - start, query, scores);
        for (ptrdiff_t i = start; i < end; i++) {
            keys[scored] = key_join(rank_of_score(scores[i - start]), (uint32_t)rows[i]);
            scored += scores[i - start] == scores[i - start];
        }
    }
    if (k > scored) k = scored;
    key_select(keys, scored, k);
    key_sort(keys, spare, k);
    return k;
}

#endif
