/* One variant of dot64_function; dot64.h includes this once per instruction set, with
 *   DOT64_VARIANT          the function's name; before, <name>_transpose was defined for WIDTH registers,
 *   DOT64_WIDTH            doubles per register: 2, 4 or 8,
 *   DOT64_TILE             queries, 2 or 3, that WIDTH rows meet at once: their lanes stay in registers,
 *   DOT64_TARGET           the attribute that allows the function that instruction set,
 *   DOT64_WIDEN(floats)    a register of the floats at an address,
 *   DOT64_ADD(sum, a, b)   sum + a * b in registers.
 *
 * As many rows go together as a register has doubles: once turned, their lanes add up for all of them at once.
 */
#define DOT64_JOIN_(a, b) a##_##b
#define DOT64_JOIN(a, b) DOT64_JOIN_(a, b)
#define DOT64_NAME(part) DOT64_JOIN(DOT64_VARIANT, part)
#define DOT64_INLINE DOT64_TARGET static inline __attribute__((always_inline))

/* The register width is spelled out because compilers keep wider vectors in memory. */
typedef double DOT64_NAME(register) __attribute__((vector_size(DOT64_WIDTH * sizeof(double))));

/* lanes[q][i] += rows[i][at:at + WIDTH] * queries[q][0:WIDTH] */
DOT64_INLINE void DOT64_NAME(add)(DOT64_NAME(register) lanes[DOT64_TILE][DOT64_WIDTH],
                                  const float *const rows[DOT64_WIDTH], ptrdiff_t at, const double *queries,
                                  ptrdiff_t padded, int size) {
    DOT64_NAME(register) query[DOT64_TILE];
    for (int q = 0; q < size; q++) memcpy(&query[q], queries + q * padded, sizeof query[q]);
#pragma GCC unroll 8
    for (int i = 0; i < DOT64_WIDTH; i++) {
        const DOT64_NAME(register) wide = DOT64_WIDEN(rows[i] + at);
#pragma GCC unroll 3
        for (int q = 0; q < size; q++) lanes[q][i] = DOT64_ADD(lanes[q][i], wide, query[q]);
    }
}

/* The products of WIDTH rows with `size` queries, a constant of the caller; the first `n` of each query are wanted.
 * `last` has the rows' last chunks, zero-padded, where rows do not consist of whole chunks. */
DOT64_INLINE void DOT64_NAME(tile)(const float *const rows[DOT64_WIDTH], ptrdiff_t dim,
                                   const float *const last[DOT64_WIDTH], const double *queries, int size,
                                   double *products, ptrdiff_t stride, ptrdiff_t n) {
    const ptrdiff_t whole = dim - dim % DOT64_LANES, padded = dot64_padded(dim);
    DOT64_NAME(register) totals[DOT64_TILE] = {{0}};
    for (int part = 0; part < DOT64_LANES; part += DOT64_WIDTH, queries += DOT64_WIDTH) {
        DOT64_NAME(register) lanes[DOT64_TILE][DOT64_WIDTH] = {{{0}}};
        for (ptrdiff_t at = 0; at < whole; at += DOT64_LANES)
            DOT64_NAME(add)(lanes, rows, at + part, queries + at, padded, size);
        if (whole < dim) DOT64_NAME(add)(lanes, last, part, queries + whole, padded, size);
#pragma GCC unroll 3
        for (int q = 0; q < size; q++) {
            DOT64_NAME(transpose)(lanes[q]);
#pragma GCC unroll 8
            for (int lane = 0; lane < DOT64_WIDTH; lane++) totals[q] += lanes[q][lane];
        }
    }
    for (int q = 0; q < size; q++) memcpy(products + q * stride, &totals[q], (size_t)n * sizeof(double));
}

/* The products of WIDTH rows with all queries; the first row of `products` is the first query's. */
DOT64_INLINE void DOT64_NAME(rows)(const float *const rows[DOT64_WIDTH], ptrdiff_t dim, const double *queries,
                                   ptrdiff_t count, double *products, ptrdiff_t stride, ptrdiff_t n) {
    const ptrdiff_t rest = dim % DOT64_LANES;
    float padded[DOT64_WIDTH][DOT64_LANES] = {{0}};
    const float *last[DOT64_WIDTH];
    for (int i = 0; i < DOT64_WIDTH; i++) {
        if (rest > 0) memcpy(padded[i], rows[i] + dim - rest, (size_t)rest * sizeof(float));
        last[i] = padded[i];
    }
    for (; count > 0; count -= DOT64_TILE, queries += DOT64_TILE * dot64_padded(dim), products += DOT64_TILE * stride) {
        switch (count) {
#define DOT64_CASE(size) DOT64_NAME(tile)(rows, dim, last, queries, size, products, stride, n); break;
            case 1: DOT64_CASE(1)
#if DOT64_TILE > 2
            case 2: DOT64_CASE(2)
#endif
            default: DOT64_CASE(DOT64_TILE)
#undef DOT64_CASE
        }
    }
}

DOT64_TARGET static void DOT64_VARIANT(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n,
                                       ptrdiff_t more, const double *queries, ptrdiff_t count, double *products,
                                       ptrdiff_t stride) {
    for (ptrdiff_t first = 0; first < n; first += DOT64_WIDTH) {
        const ptrdiff_t size = n - first < DOT64_WIDTH ? n - first : DOT64_WIDTH;
        const float *together[DOT64_WIDTH];
        for (ptrdiff_t i = 0; i < DOT64_WIDTH; i++) {
            together[i] = table + rows[first + (i < size ? i : size - 1)] * dim; /* in the places left: the last one */
            if (first + i + DOT64_AHEAD < n + more) dot64_fetch(table + rows[first + i + DOT64_AHEAD] * dim, dim);
        }
        DOT64_NAME(rows)(together, dim, queries, count, products + first, stride, size);
    }
}

#undef DOT64_JOIN_
#undef DOT64_JOIN
#undef DOT64_NAME
#undef DOT64_INLINE
#undef DOT64_VARIANT
#undef DOT64_WIDTH
#undef DOT64_TILE
#undef DOT64_TARGET
#undef DOT64_WIDEN
#undef DOT64_ADD
