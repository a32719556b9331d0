/* One variant of dot_function; dot.h includes this once per instruction set, with
 *   DOT_VARIANT  the function's name,
 *   DOT_WIDTH    floats per register: 4, 8 or 16,
 *   DOT_TARGET   the attribute that allows the function that instruction set.
 *
 * One row at a time: a scan of a table larger than the caches is bound by memory, and reading several rows in step
 * more than doubled its time, because the hardware prefetcher follows one stream.
 */
#define DOT_JOIN_(a, b) a##_##b
#define DOT_JOIN(a, b) DOT_JOIN_(a, b)
#define DOT_NAME(part) DOT_JOIN(DOT_VARIANT, part)
#define DOT_INLINE DOT_TARGET static inline __attribute__((always_inline))
#define DOT_REGISTERS (DOT_LANES / DOT_WIDTH)

/* The register width is spelled out because compilers keep wider vectors in memory. */
typedef float DOT_NAME(register) __attribute__((vector_size(DOT_WIDTH * sizeof(float))));

/* lanes += a[0:16] * b[0:16] */
DOT_INLINE void DOT_NAME(add_chunk)(DOT_NAME(register) lanes[DOT_REGISTERS], const float *a, const float *b) {
    for (int r = 0; r < DOT_REGISTERS; r++) {
        DOT_NAME(register) x, y;
        memcpy(&x, a + r * DOT_WIDTH, sizeof x);
        memcpy(&y, b + r * DOT_WIDTH, sizeof y);
        lanes[r] += x * y;
    }
}

/* The sum of the lanes by halves: 16 -> 8 -> 4, then 4 -> 2 -> 1. */
DOT_INLINE float DOT_NAME(fold)(const DOT_NAME(register) lanes[DOT_REGISTERS]) {
    dot_quad quarter[4];
    memcpy(quarter, lanes, sizeof quarter);
    const dot_quad four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

DOT_INLINE float DOT_NAME(row)(const float *row, ptrdiff_t dim, const float *query) {
    DOT_NAME(register) lanes[DOT_REGISTERS] = {{0}};
    const ptrdiff_t whole = dim - dim % DOT_LANES;
    for (ptrdiff_t i = 0; i < whole; i += DOT_LANES) DOT_NAME(add_chunk)(lanes, row + i, query + i);
    if (whole < dim) {
        float last[DOT_LANES] = {0};
        memcpy(last, row + whole, (size_t)(dim - whole) * sizeof(float));
        DOT_NAME(add_chunk)(lanes, last, query + whole);
    }
    return DOT_NAME(fold)(lanes);
}

DOT_TARGET static void DOT_VARIANT(const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n,
                                   const float *query, float *scores) {
    for (ptrdiff_t i = 0; i < n; i++) scores[i] = DOT_NAME(row)(table + rows[i] * dim, dim, query);
}

#undef DOT_JOIN_
#undef DOT_JOIN
#undef DOT_NAME
#undef DOT_INLINE
#undef DOT_REGISTERS
#undef DOT_VARIANT
#undef DOT_WIDTH
#undef DOT_TARGET
