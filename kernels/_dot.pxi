# include/dot.h, for the extensions that compute inner products of float32 vectors.

cdef extern from "dot.h" nogil:
    ctypedef void (*dot_function)(
        const float* table, ptrdiff_t dim, const int64_t* rows, ptrdiff_t n, const float* query, float* scores
    ) noexcept
    dot_function dot_variant_named(const char* name)
    void dot_scattered(
        dot_function dot, const float* table, ptrdiff_t dim, const int64_t* rows, ptrdiff_t n, const float* query,
        float* scores
    )
    void dot_fetch(const float* start, ptrdiff_t n)
    enum:
        DOT_LANES
