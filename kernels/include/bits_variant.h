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

BITS_TARGET static void BITS_NAME(between)(const uint64_t *planes, ptrdiff_t words, uint64_t first, uint64_t last,
                                           uint64_t *out) {
    uint64_t under[BITS_PLANES], upto[BITS_PLANES]; /* bits of first - 1 and of last, each spread over a word */
    for (int b = 0; b < BITS_PLANES; b++) {
        under[b] = -((first - 1) >> b & 1);
        upto[b] = -(last >> b & 1);
    }
    const uint64_t any = first == 0 ? 0 : ~(uint64_t)0; /* whether a number can be under `first` */
    for (ptrdiff_t i = 0; i < words; i++) {
        /* From the lowest bit up: x <= bound in the bits so far where the bound's bit is 1 and x's is 0, or where one of
         * these holds and it was so before: the majority of the three. */
        uint64_t out_low = ~(uint64_t)0, in_high = ~(uint64_t)0;
        for (int b = 0; b < BITS_PLANES; b++) {
            const uint64_t zero = ~planes[b * words + i];
            out_low = (zero & out_low) | (under[b] & (zero | out_low));
            in_high = (zero & in_high) | (upto[b] & (zero | in_high));
        }
        out[i] = in_high & ~(out_low & any);
    }
}

static const bits_variant_t BITS_NAME(variant) = {BITS_NAME(intersect), BITS_NAME(count), BITS_NAME(between)};

#undef BITS_NAME
#undef BITS_TARGET
