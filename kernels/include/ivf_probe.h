/* One variant of ivf_probe_function; ivf.h includes this once per instruction set, with
 *   IVF_VARIANT  the function's name,
 *   IVF_WIDTH    floats per register: 4, 8 or 16,
 *   IVF_TARGET   the attribute that allows the function that instruction set.
 *
 * A list's score adds its products in ascending order of dimensions, each rounded to float32: the lanes are lists, so
 * the width does not show.
 */
#define IVF_JOIN_(a, b) a##_##b
#define IVF_JOIN(a, b) IVF_JOIN_(a, b)
#define IVF_REGISTER IVF_JOIN(IVF_VARIANT, register)
#define IVF_REGISTERS (IVF_GROUP / IVF_WIDTH)

typedef float IVF_REGISTER __attribute__((vector_size(IVF_WIDTH * sizeof(float))));

IVF_TARGET static void IVF_VARIANT(const ivf_index *index, const float *query, float *scores) {
    const float *centroid = index->centroids;
    for (ptrdiff_t group = 0; group * IVF_GROUP < index->lists; group++, scores += IVF_GROUP) {
        IVF_REGISTER sums[IVF_REGISTERS] = {{0}};
        for (ptrdiff_t i = 0; i < index->dim; i++)
            for (int r = 0; r < IVF_REGISTERS; r++, centroid += IVF_WIDTH) {
                IVF_REGISTER values;
                memcpy(&values, centroid, sizeof values);
                sums[r] += values * query[i];
            }
        memcpy(scores, sums, sizeof sums);
    }
}

#undef IVF_JOIN_
#undef IVF_JOIN
#undef IVF_REGISTER
#undef IVF_REGISTERS
#undef IVF_VARIANT
#undef IVF_WIDTH
#undef IVF_TARGET
