/* The best of some rows by their exact inner products with a query. */
#ifndef RECSERVE_RESCORE_H
#define RECSERVE_RESCORE_H

#include "dot.h"
#include "select.h"

/* Scores the rows and leaves the best `k` in order in `keys`; returns how many there are. Rows whose score is NaN are
 * left out. `keys` and `spare` hold n keys each. */
static ptrdiff_t rescore(dot_function dot, const float *table, ptrdiff_t dim, const float *query, const int64_t *rows,
                         ptrdiff_t n, ptrdiff_t k, uint64_t *keys, uint64_t *spare) {
    ptrdiff_t scored = 0;
    dot_prefetch(table, dim, rows, n < DOT_STEP ? n : DOT_STEP);
    for (ptrdiff_t start = 0; start < n; start += DOT_STEP) {
        float scores[DOT_STEP];
        const ptrdiff_t next = start + DOT_STEP, end = next < n ? next : n;
        const ptrdiff_t ahead = n - end < DOT_STEP ? n - end : DOT_STEP;
        dot_prefetch(table, dim, rows + end, ahead);
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
