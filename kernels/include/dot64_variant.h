/* One variant of dot64_function; dot64.h includes this once per instruction set, with
 *   DOT64_VARIANT          the function's name,
 *   DOT64_WIDTH            doubles per register: 2, 4 or 8,
 *   DOT64_TILE             queries that a row meets at once: their lanes stay in registers,
 *   DOT64_TARGET           the attribute that allows the function that instruction set,
 *   DOT64_WIDEN(floats)    a register of the floats at an address,
 *   DOT64_ADD(sum, a, b)   sum + a * b in registers.
 */
#define DOT64_JOIN_(a, b) a##_##b
#define DOT64_JOIN(a, b) DOT64_JOIN_(a, b)
#define DOT64_NAME(part) DOT64_JOIN(DOT64_VARIANT, part)
#define DOT64_INLINE DOT64_TARGET static inline __attribute__((always_inline))
#define DOT64_REGISTERS (DOT64_LANES / DOT64_WIDTH)

/* The register width is spelled out because compilers keep wider vectors in memory. */
typedef double DOT64_NAME(register) __attribute__((vector_size(DOT64_WIDTH * sizeof(double))));

/* lanes[q] += row[0:8] * queries[q][0:8] */
DOT64_INLINE void DOT64_NAME(add_chunk)(DOT64_NAME(register) lanes[][DOT64_REGISTERS], const float *row,
                                        const double *queries, ptrdiff_t padded, int size) {
    for (int r = 0; r < DOT64_REGISTERS; r++) {
        const DOT64_NAME(register) wide = DOT64_WIDEN(row + r * DOT64_WIDTH);
        for (int q = 0; q < size; q++) {
            DOT64_NAME(register) query;
            memcpy(&query, queries + q * padded + r * DOT64_WIDTH, sizeof query);
            lanes[q][r] = DOT64_ADD(lanes[q][r], wide, query);
        }
    }
}

DOT64_INLINE double DOT64_NAME(fold)(const DOT64_NAME(register) lanes[DOT64_REGISTERS]) {
    double each[DOT64_LANES], total = 0.0;
    memcpy(each, lanes, sizeof each);
    for (int lane = 0; lane < DOT64_LANES; lane++) total += each[lane];
    return total;
}

/* The products of one row with `size` queries, a constant of the caller. `last` is the row's last chunk, zero-padded, or
 * NULL where the row consists of whole chunks. */
DOT64_INLINE void DOT64_NAME(tile)(const float *row, ptrdiff_t dim, const float *last, const double *queries, int size,
                                   double *products, ptrdiff_t stride) {
    DOT64_NAME(register) lanes[DOT64_TILE][DOT64_REGISTERS] = {{{0}}};
    const ptrdiff_t whole = dim - dim % DOT64_LANES, padded = dot64_padded(dim);
    for (ptrdiff_t i = 0; i < whole; i += DOT64_LANES)
        DOT64_NAME(add_chunk)(lanes, row + i, queries + i, padded, size);
    if (last != NULL) DOT64_NAME(add_chunk)(lanes, last, queries + whole, padded, size);
    for (int q = 0; q < size; q++) products[q * stride] = DOT64_NAME(fold)(lanes[q]);
}

/* The products of one row with all queries; the first row of `products` is the first query's. */
DOT64_INLINE void DOT64_NAME(row)(const float *row, ptrdiff_t dim, const double *queries, ptrdiff_t count,
                                  double *products, ptrdiff_t stride) {
    const ptrdiff_t rest = dim % DOT64_LANES;
    float padded[DOT64_LANES] = {0};
    memcpy(padded, row + dim - rest, (size_t)rest * sizeof(float));
    const float *const last = rest == 0 ? NULL : padded;
    for (; count > 0; count -= DOT64_TILE, queries += DOT64_TILE * dot64_padded(dim), products += DOT64_TILE * stride) {
        switch (count) {
#define DOT64_CASE(size) DOT64_NAME(tile)(row, dim, last, queries, size, products, stride); break;
            case 1: DOT64_CASE(1)
#if DOT64_TILE > 2
            case 2: DOT64_CASE(2)
            case 3: DOT64_CASE(3)
            case 4: DOT64_CASE(4)
            case 5: DOT64_CASE(5)
#endif
#if DOT64_TILE > 6
            case 6: DOT64_CASE(6)
            case 7: DOT64_CASE(7)
#endif
            default: DOT64_CASE(DOT64_TILE)
#undef DOT64_CASE
        }
    }
}

DOT64_TARGET static void DOT64_VARIANT(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n,
                                       ptrdiff_t more, const double *queries, ptrdiff_t count, double *products,
                                       ptrdiff_t stride) {
    for (ptrdiff_t i = 0; i < n; i++) {
        if (i + DOT64_AHEAD < n + more) dot64_fetch(table + rows[i + DOT64_AHEAD] * dim, dim);
        DOT64_NAME(row)(table + rows[i] * dim, dim, queries, count, products + i, stride);
    }
}

#undef DOT64_JOIN_
#undef DOT64_JOIN
#undef DOT64_NAME
#undef DOT64_INLINE
#undef DOT64_REGISTERS
#undef DOT64_VARIANT
#undef DOT64_WIDTH
#undef DOT64_TILE
#undef DOT64_TARGET
#undef DOT64_WIDEN
#undef DOT64_ADD
