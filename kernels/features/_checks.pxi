# What batches of a schema hold, looked at once before the kernel trusts it. Included by _program.pyx.

ctypedef fused integer:
    int32_t
    int64_t


def first_outside(const integer[::1] values, int64_t low, int64_t high):
    """Index of the first value outside [low, high), or -1."""
    return find_outside(&values[0], values.shape[0], low, high)


def first_descent(const int64_t[::1] offsets):
    """Index of the first offset below its predecessor, or -1."""
    return find_descent(&offsets[0], offsets.shape[0])


def first_bad_code(const int32_t[:, ::1] codes, const int64_t[::1] sizes):
    """(row, column) of the first code outside [-1, size of its column's vocabulary), or None."""
    cdef Py_ssize_t at = find_bad_code(&codes[0, 0], codes.shape[0], &sizes[0], codes.shape[1])
    return None if at < 0 else (at // codes.shape[1], at % codes.shape[1])


def first_bad_list_code(const int32_t[::1] codes, const int64_t[::1] offsets, const int64_t[::1] sizes):
    """Index of the first list code outside [0, size of its column's vocabulary), or -1.

    Lists go row by row, and by column within one: list l is of column l mod len(sizes). The offsets are trusted.
    """
    return find_bad_list_code(&codes[0], &offsets[0], offsets.shape[0] - 1, &sizes[0], sizes.shape[0])


cdef Py_ssize_t find_outside(const integer *values, Py_ssize_t n, int64_t low, int64_t high) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        if values[i] < low or values[i] >= high:
            return i
    return -1


cdef Py_ssize_t find_descent(const int64_t *offsets, Py_ssize_t n) noexcept:
    cdef Py_ssize_t i
    for i in range(1, n):
        if offsets[i] < offsets[i - 1]:
            return i
    return -1


cdef Py_ssize_t find_bad_code(const int32_t *codes, Py_ssize_t rows, const int64_t *sizes, Py_ssize_t width) noexcept:
    cdef Py_ssize_t row, column, at = 0
    for row in range(rows):
        for column in range(width):
            if codes[at] < -1 or codes[at] >= sizes[column]:
                return at
            at += 1
    return -1


cdef Py_ssize_t find_bad_list_code(
    const int32_t *codes, const int64_t *offsets, Py_ssize_t lists, const int64_t *sizes, Py_ssize_t width
) noexcept:
    cdef Py_ssize_t l, i
    for l in range(lists):
        for i in range(offsets[l], offsets[l + 1]):
            if codes[i] < 0 or codes[i] >= sizes[l % width]:
                return i
    return -1


cdef const int64_t *take_offsets(Buffers buffers, array, Py_ssize_t parts, Py_ssize_t total) except? NULL:
    """Hold offsets that cut an array of `total` entries into `parts`."""
    cdef const int64_t *offsets = <const int64_t *>buffers.take(array, INT64, parts + 1).buf
    if offsets[0] != 0 or offsets[parts] != total or find_descent(offsets, parts + 1) >= 0:
        raise Misfit
    return offsets


cdef const int64_t *take_rows(Buffers buffers, array, int64_t low, int64_t high, Py_ssize_t *size) except? NULL:
    """Hold rows within [low, high); `size` receives how many there are."""
    cdef Py_buffer *rows = buffers.take(array, INT64, ANY)
    size[0] = rows.shape[0]
    if find_outside(<const int64_t *>rows.buf, size[0], low, high) >= 0:
        raise Misfit
    return <const int64_t *>rows.buf


cdef class ColumnSizes:
    """What a ColumnValues of a layout holds (recserve.kernels.features.specs.ColumnSizes)."""

    cdef Py_ssize_t numbers
    cdef Py_ssize_t times
    cdef const int64_t[::1] codes
    cdef const int64_t[::1] lists

    def __init__(self, sizes):
        self.numbers = sizes.numbers
        self.times = sizes.times
        self.codes = sizes.codes
        self.lists = sizes.lists

    cdef take(self, Columns *c, Buffers buffers, values, Py_ssize_t requests):
        """Hold the columns of as many requests."""
        cdef Py_ssize_t lists = requests * self.lists.shape[0]
        cdef Py_buffer *list_codes = buffers.take(values.list_codes, INT32, ANY)
        c.number_width, c.code_width = self.numbers, self.codes.shape[0]
        c.time_width, c.list_width = self.times, self.lists.shape[0]
        c.numbers = <const double *>buffers.take(values.numbers, FLOAT64, requests, c.number_width).buf
        c.codes = <const int32_t *>buffers.take(values.codes, INT32, requests, c.code_width).buf
        c.times = <const int64_t *>buffers.take(values.times, INT64, requests, c.time_width).buf
        c.list_codes = <const int32_t *>list_codes.buf
        c.list_offsets = take_offsets(buffers, values.list_offsets, lists, list_codes.shape[0])
        if find_bad_code(c.codes, requests, &self.codes[0], c.code_width) >= 0:
            raise Misfit
        if find_bad_list_code(c.list_codes, c.list_offsets, lists, &self.lists[0], c.list_width) >= 0:
            raise Misfit
