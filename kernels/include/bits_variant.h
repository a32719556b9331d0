/* One variant of bits_variant_t; bits.h includes this once per instruction set, with
 *   BITS_NAME(part)  the functions' names,
 *   BITS_TARGET      the attribute that allows the functions that instruction set.
 */

BITS_TARGET static int64_t BITS_NAME(count)(const uint64_t *bitmap, ptrdiff_t words) {
    int64_t set = 0;
    for (ptrdiff_t i = 0; i < words; i++) set += __builtin_popcountll(bitmap[i]);
    return set;
}

BITS_TARGET static int64_t BITS_NAME(intersect)(const uint64_t *const *bitmaps, ptrdiff_t n, ptrdiff_t words,
                                                uint64_t *out) {
    int64_t set = 0;
    uint64_t piece[BITS_PIECE];
    for (ptrdiff_t first = 0; first < words; first += BITS_PIECE) {
        const ptrdiff_t size = words - first < BITS_PIECE ? words - first : BITS_PIECE;
        memcpy(piece, bitmaps[0] + first, (size_t)size * sizeof(uint64_t));
        for (ptrdiff_t b = 1; b < n; b++) {
            const uint64_t *bits = bitmaps[b] + first;
            for (ptrdiff_t i = 0; i < size; i++) piece[i] &= bits[i];
        }
        memcpy(out + first, piece, (size_t)size * sizeof(uint64_t));
        set += BITS_NAME(count)(piece, size);
    }
    return set;
}

static const bits_variant_t BITS_NAME(variant) = {BITS_NAME(intersect), BITS_NAME(count)};

#undef BITS_NAME
#undef BITS_TARGET
