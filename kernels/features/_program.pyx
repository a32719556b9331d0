"""Runs a lowered feature schema over a batch.

    FeatureProgram.compute ──> Kernel.compute      the arrays are looked at and held (_buffers.pxi, _checks.pxi)
                                 └─> nogil: run      for each request
                                       load_*          what its candidates share: numbers, times, history, recent items
                                       fill            for each block of candidates, instruction by instruction: an
                                                       instruction goes over a column, a loop that vectorises

`FeatureProgram.of_requests` goes the same way with what is a request's own, and has no candidates.
"""

from libc.math cimport M_PI, NAN, cos, log1p, sin
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

import numpy as np

from recserve.kernels.vectors import CPU_VARIANT

include "_program.pxi"
include "_buffers.pxi"
include "_checks.pxi"

cdef extern from "dot64.h" nogil:
    ctypedef void (*dot64_function)(
        const float *table, ptrdiff_t dim, const int64_t *rows, ptrdiff_t n, ptrdiff_t more, const double *queries,
        ptrdiff_t count, double *products, ptrdiff_t stride
    ) noexcept
    dot64_function dot64_variant_named(const char *name)
    ptrdiff_t dot64_padded(ptrdiff_t dim)
    void dot64_widen(const float *vector, ptrdiff_t dim, double *query)
    void dot64_fetch(const float *row, ptrdiff_t dim)

cdef extern from * nogil:
    void __builtin_prefetch(const void *address)

# A CPU may have AVX2 without fused multiply-add.
cdef dot64_function dot64 = dot64_variant_named(CPU_VARIANT.encode())
if dot64 == NULL:
    dot64 = dot64_variant_named(b"portable")

cdef int64_t HOUR_US = 3_600_000_000
cdef int64_t DAY_US = 86_400_000_000
cdef int64_t NO_KEY = -1


cdef class Items:
    """An ItemArrays that fits a schema: its features, its times, and its vectors by space."""

    cdef object arrays
    cdef Buffers buffers


cdef class Kernel:
    """A lowered schema (recserve.kernels.features.lowering.Plan), shared by threads."""

    cdef const Instruction[::1] per_request
    cdef const Instruction[::1] per_candidate
    cdef const int32_t[::1] history_keys
    cdef const int32_t[::1] selections
    cdef const int64_t[::1] depths
    cdef Py_ssize_t width
    cdef Py_ssize_t item_features
    cdef Py_ssize_t item_times
    cdef Py_ssize_t event_types
    cdef Py_ssize_t sources
    cdef tuple spaces
    cdef frozenset dot_spaces
    cdef ColumnSizes user
    cdef ColumnSizes context
    cdef Items last_items       # of the last call: the next one is likely to bring them again

    def __init__(self, plan):
        self.per_request = plan.per_request
        self.per_candidate = plan.per_candidate
        self.history_keys = plan.history_keys
        self.selections = plan.selections
        self.depths = plan.depths
        self.width = plan.width
        self.item_features = plan.item_features
        self.item_times = plan.item_times
        self.event_types = plan.event_types
        self.sources = plan.sources
        self.spaces = plan.spaces
        self.dot_spaces = plan.dot_spaces
        self.user = ColumnSizes(plan.user)
        self.context = ColumnSizes(plan.context)

    def compute(self, items, batch, out):
        """Fill a matrix [n, features].

        Args:
            items: ItemArrays; once they have been looked at, they are trusted from then on.
            batch: FeatureBatch.
            out: the matrix, or None for a new one.

        Returns:
            The matrix; None where an array does not fit, in which case `InputChecks` says which one.
        """
        # Whatever the frame points to lives until the call is over.
        cdef Frame frame
        cdef Items held
        cdef Buffers buffers = Buffers(BATCH_ARRAYS + len(self.dot_spaces))
        cdef Room spaces = Room(len(self.spaces) * sizeof(Space))
        cdef Room groups = Room(self.history_keys.shape[0] * sizeof(Group))
        frame.spaces = <Space *>spaces.start
        frame.groups = <Group *>groups.start
        try:
            held = self._take_items(items)
            self._point_to_program(&frame)
            self._point_to_items(&frame, held)
            self._take_batch(&frame, buffers, batch)
            self._take_user_vectors(&frame, buffers, batch)
            if out is None:
                out = np.empty((frame.candidates, self.width), np.float32)
            frame.out = take_result(buffers, out, frame.candidates, self.width)
        except Misfit:
            return None
        cdef Arena arena = Arena(NULL, 0)
        lay_out(&frame, &arena)
        cdef Room scratch = Room(arena.used + LINE)
        arena = Arena(<char *>((<uintptr_t>scratch.start + LINE - 1) // LINE * LINE), 0)
        lay_out(&frame, &arena)
        with nogil:
            run(&frame)
        return out

    def of_requests(self, batch):
        """Fill a matrix [requests, features], where no feature depends on the candidate.

        Args:
            batch: FeatureBatch; only the requests' times and columns are looked at.

        Returns:
            The matrix; None where an array does not fit.
        """
        cdef Frame frame
        cdef Buffers buffers = Buffers(BATCH_ARRAYS)
        try:
            self._point_to_program(&frame)
            self._take_requests(&frame, buffers, batch)
            out = np.empty((frame.requests, self.width), np.float32)
            frame.out = take_result(buffers, out, frame.requests, self.width)
        except Misfit:
            return None
        cdef Room numbers = Room(request_numbers(&frame) * sizeof(double))
        cdef Room times = Room(request_times(&frame) * sizeof(int64_t))
        frame.request_numbers, frame.request_times = <double *>numbers.start, <int64_t *>times.start
        with nogil:
            run_requests(&frame)
        return out

    cdef Items _take_items(self, arrays):
        cdef Items last = self.last_items, items
        cdef Py_ssize_t count
        if last is not None and last.arrays is arrays:
            return last
        items = Items()
        items.arrays = arrays
        items.buffers = Buffers(2 + len(self.spaces))
        count = items.buffers.take(arrays.features, FLOAT32, ANY, self.item_features).shape[0]
        items.buffers.take(arrays.times, INT64, count, self.item_times)
        for space in self.spaces:
            items.buffers.take(entry(arrays.vectors, space), FLOAT32, count, ANY)
        self.last_items = items  # `last` lives until the end of this function: another thread may be about to take it
        return items

    cdef void _point_to_program(self, Frame *f):
        f.per_request = &self.per_request[0]
        f.per_candidate = &self.per_candidate[0]
        f.selections = &self.selections[0]
        f.per_request_size = self.per_request.shape[0]
        f.per_candidate_size = self.per_candidate.shape[0]
        f.selection_count = self.selections.shape[0]
        f.width = self.width

    cdef void _point_to_items(self, Frame *f, Items items):
        cdef Py_buffer *held = items.buffers.held
        cdef Py_ssize_t s, g
        f.item_count = held[0].shape[0]
        f.features = <const float *>held[0].buf
        f.times = <const int64_t *>held[1].buf
        f.feature_width = self.item_features
        f.time_width = self.item_times
        f.space_count = self.depths.shape[0]
        f.recent_depth = 0
        for s in range(f.space_count):
            f.spaces[s].items = <const float *>held[2 + s].buf
            f.spaces[s].dim = held[2 + s].shape[1]
            f.spaces[s].depth = self.depths[s]
            f.recent_depth = max(f.recent_depth, self.depths[s])
        f.group_count = self.history_keys.shape[0]
        for g in range(f.group_count):
            f.groups[g].key = self.history_keys[g]

    cdef _take_requests(self, Frame *f, Buffers buffers, batch):
        cdef Py_buffer *time_us = buffers.take(batch.time_us, INT64, ANY)
        f.requests = time_us.shape[0]
        f.time_us = <const int64_t *>time_us.buf
        self.user.take(&f.user, buffers, batch.user, f.requests)
        self.context.take(&f.context, buffers, batch.context, f.requests)

    cdef _take_batch(self, Frame *f, Buffers buffers, batch):
        cdef Py_ssize_t entries, size
        self._take_requests(f, buffers, batch)
        f.rows = take_rows(buffers, batch.rows, 0, f.item_count, &f.candidates)
        f.offsets = take_offsets(buffers, batch.offsets, f.requests, f.candidates)
        f.known = <const unsigned char *>buffers.take(batch.known, FLAG, f.requests).buf
        f.history_rows = take_rows(buffers, batch.history_rows, -1, f.item_count, &entries)
        f.history_offsets = take_offsets(buffers, batch.history_offsets, f.requests, entries)
        f.history_events = <const int32_t *>buffers.take(batch.history_events, INT32, entries).buf
        if find_outside(f.history_events, entries, 0, self.event_types) >= 0:
            raise Misfit
        f.history_counts = <const double *>buffers.take(batch.history_counts, FLOAT64, entries).buf
        f.history_last_us = <const int64_t *>buffers.take(batch.history_last_us, INT64, entries).buf
        f.recent_rows = take_rows(buffers, batch.recent_rows, -1, f.item_count, &size)
        f.recent_offsets = take_offsets(buffers, batch.recent_offsets, f.requests, size)
        f.scores = <const float *>buffers.take(batch.source_scores, FLOAT32, f.candidates, self.sources).buf
        f.ranks = <const float *>buffers.take(batch.source_ranks, FLOAT32, f.candidates, self.sources).buf
        f.source_width = self.sources

    cdef _take_user_vectors(self, Frame *f, Buffers buffers, batch):
        cdef Py_ssize_t s
        cdef Space *space
        for s, name in enumerate(self.spaces):
            space = &f.spaces[s]
            space.users = NULL
            if name in self.dot_spaces:
                vectors = entry(batch.user_vectors, name)
                space.users = <const float *>buffers.take(vectors, FLOAT32, f.requests, space.dim).buf


cdef entry(vectors, name):
    if name not in vectors:
        raise Misfit
    return vectors[name]


cdef float *take_result(Buffers buffers, array, Py_ssize_t rows, Py_ssize_t columns) except? NULL:
    cdef Py_buffer *result = buffers.take(array, FLOAT32, rows, columns)
    if result.readonly:
        raise Misfit
    return <float *>result.buf


cdef void lay_out(Frame *f, Arena *arena) noexcept:
    """Give everything that a call writes its place in the arena."""
    cdef Py_ssize_t entries = FIRST_KEY + longest(f.history_offsets, f.requests)
    cdef Py_ssize_t recent = longest(f.recent_offsets, f.requests), queries, g, s
    cdef Group *group
    cdef Space *space
    f.request_numbers = <double *>carve(arena, request_numbers(f) * sizeof(double))
    f.request_times = <int64_t *>carve(arena, request_times(f) * sizeof(int64_t))
    f.totals = <double *>carve(arena, f.selection_count * sizeof(double))
    f.recent = <int64_t *>carve(arena, min(f.recent_depth, recent) * sizeof(int64_t))
    f.template = <float *>carve(arena, f.width * sizeof(float))
    for g in range(f.group_count):
        group = &f.groups[g]
        group.slots = <int32_t *>carve(arena, (<Py_ssize_t>1 << table_bits(entries)) * sizeof(int32_t))
        group.keys = <int64_t *>carve(arena, entries * sizeof(int64_t))
        group.counts = <double *>carve(arena, entries * f.selection_count * sizeof(double))
        group.last_us = <int64_t *>carve(arena, entries * f.selection_count * sizeof(int64_t))
        group.found = <int32_t *>carve(arena, BLOCK * sizeof(int32_t))
    for s in range(f.space_count):
        space = &f.spaces[s]
        queries = min(space.depth, recent) + 1
        space.queries = <double *>carve(arena, queries * dot64_padded(space.dim) * sizeof(double))
        space.products = <double *>carve(arena, queries * BLOCK * sizeof(double))


cdef Py_ssize_t longest(const int64_t *offsets, Py_ssize_t parts) noexcept:
    """The length of the longest part."""
    cdef Py_ssize_t found = 0, i
    for i in range(parts):
        found = max(found, offsets[i + 1] - offsets[i])
    return found


cdef void *carve(Arena *arena, Py_ssize_t size) noexcept:
    """The next `size` bytes, from the start of a cache line; NULL from an arena that only counts."""
    cdef void *room = NULL if arena.start == NULL else arena.start + arena.used
    arena.used += (size + LINE - 1) // LINE * LINE
    return room


# ---- From here on there is no Python: no objects, no allocation, no GIL. ----


cdef void run(Frame *f) noexcept nogil:
    cdef Py_ssize_t r, end
    for r in range(f.requests):
        f.request, f.first, end = r, f.offsets[r], f.offsets[r + 1]
        if f.first == end:
            continue
        load_request(f)
        load_history(f)
        load_recent(f)
        f.count = 1
        fill(f, f.per_request, f.per_request_size, f.template)
        while f.first < end:
            f.count = min(BLOCK, end - f.first)
            look_up_history(f)
            compare(f, end)
            copy_template(f)
            fill(f, f.per_candidate, f.per_candidate_size, f.out + f.first * f.width)
            f.first += f.count


cdef void run_requests(Frame *f) noexcept nogil:
    cdef Py_ssize_t r
    f.count = 1
    for r in range(f.requests):
        f.request = r
        load_request(f)
        fill(f, f.per_request, f.per_request_size, f.out + r * f.width)


cdef void copy_template(Frame *f) noexcept nogil:
    cdef Py_ssize_t i
    if f.per_request_size > 0:
        for i in range(f.first, f.first + f.count):
            memcpy(f.out + i * f.width, f.template, f.width * sizeof(float))


cdef void fill(Frame *f, const Instruction *steps, Py_ssize_t size, float *out) noexcept nogil:
    """Columns of the matrix for the current candidates; `out` is the first one's row."""
    cdef double[BLOCK] values
    cdef float[BLOCK] rounded
    cdef Py_ssize_t i, s
    for s in range(size):
        evaluate(f, &steps[s], values)
        for i in range(f.count):
            rounded[i] = <float>values[i]
        for i in range(f.count):  # one NaN, whatever the arithmetic left
            rounded[i] = rounded[i] if rounded[i] == rounded[i] else <float>NAN
        for i in range(f.count):
            out[i * f.width + steps[s].column] = rounded[i]


cdef void evaluate(Frame *f, const Instruction *step, double *out) noexcept nogil:
    cdef int op = step.op
    if op <= OP_PAIR:
        of_numbers(f, step, out)
    elif op == OP_RANK_IN:
        rank_in(f, step, out)
    elif op <= OP_DAYS_SINCE:
        of_time(f, step, out)
    elif op == OP_DOT:
        memcpy(out, f.spaces[step.a].products + f.spaces[step.a].recent * BLOCK, f.count * sizeof(double))
    elif op <= OP_SHARE:
        of_history(f, op, &f.groups[step.a], step.b, out)
    else:
        of_similarities(f, op, &f.spaces[step.a], min(step.parameter, f.recent_count), out)


cdef void of_numbers(Frame *f, const Instruction *step, double *out) noexcept nogil:
    cdef double[BLOCK] a, b
    cdef double quotient, same
    cdef Py_ssize_t i
    if step.op == OP_VALUE:
        load_numbers(f, step.a_place, step.a, out)
        return
    load_numbers(f, step.a_place, step.a, a)
    if step.op == OP_LOG1P:
        for i in range(f.count):
            out[i] = log1p(a[i]) if a[i] > -1 else NAN
        return
    load_numbers(f, step.b_place, step.b, b)
    if step.op == OP_RATIO:
        for i in range(f.count):
            quotient = a[i] / b[i]
            out[i] = quotient if b[i] != 0 else NAN
    elif step.op == OP_DIFFERENCE:
        for i in range(f.count):
            out[i] = a[i] - b[i]
    elif step.op == OP_PRODUCT:
        for i in range(f.count):
            out[i] = a[i] * b[i]
    elif step.op == OP_PAIR:
        for i in range(f.count):
            out[i] = a[i] * step.parameter + b[i]
    else:
        for i in range(f.count):
            same = 1.0 if a[i] == b[i] else 0.0
            out[i] = NAN if (a[i] != a[i]) | (b[i] != b[i]) else same


cdef void load_numbers(Frame *f, int place, int index, double *out) noexcept nogil:
    """An operand of the current candidates."""
    cdef const int64_t *rows = f.rows + f.first
    cdef const float *column
    cdef Py_ssize_t i
    if place == AT_REQUEST:
        for i in range(f.count):
            out[i] = f.request_numbers[index]
    elif place == AT_ITEM:
        column = f.features + index
        for i in range(f.count):
            out[i] = column[rows[i] * f.feature_width]
    else:
        column = (f.scores if place == AT_SCORE else f.ranks) + f.first * f.source_width + index
        for i in range(f.count):
            out[i] = column[i * f.source_width]


cdef void load_times(Frame *f, int place, int index, int64_t *out) noexcept nogil:
    cdef const int64_t *rows = f.rows + f.first
    cdef Py_ssize_t i
    for i in range(f.count):
        out[i] = f.request_times[index] if place == AT_REQUEST else f.times[rows[i] * f.time_width + index]


cdef void rank_in(Frame *f, const Instruction *step, double *out) noexcept nogil:
    cdef double[BLOCK] codes
    cdef const Columns *columns = &f.user if step.b_place == AT_USER_LIST else &f.context
    cdef const int64_t *ends = columns.list_offsets + f.request * columns.list_width + step.b
    cdef const int32_t *ranked = columns.list_codes + ends[0]
    cdef double code
    cdef Py_ssize_t i, rank
    load_numbers(f, step.a_place, step.a, codes)
    for i in range(f.count):
        out[i] = NAN
    for rank in range(ends[1] - ends[0], 0, -1):  # the first of equal codes counts, so it comes last
        code = ranked[rank - 1]
        for i in range(f.count):
            out[i] = <double>rank if codes[i] == code else out[i]


cdef void of_time(Frame *f, const Instruction *step, double *out) noexcept nogil:
    cdef int64_t[BLOCK] times
    cdef Py_ssize_t i
    load_times(f, step.a_place, step.a, times)
    if step.op == OP_DAYS_SINCE:
        for i in range(f.count):
            out[i] = days_until(f, times[i])
    else:
        for i in range(f.count):
            out[i] = wave(step.op, times[i])


cdef double wave(int op, int64_t time_us) noexcept nogil:
    if time_us == INT64_MIN:
        return NAN
    if op == OP_HOUR_SIN:
        return sin(2.0 * M_PI * hour_of(time_us) / 24.0)
    if op == OP_HOUR_COS:
        return cos(2.0 * M_PI * hour_of(time_us) / 24.0)
    if op == OP_WEEKDAY_SIN:
        return sin(2.0 * M_PI * weekday_of(time_us) / 7.0)
    return cos(2.0 * M_PI * weekday_of(time_us) / 7.0)


cdef inline double days_until(Frame *f, int64_t time_us) noexcept nogil:
    # As doubles, which are exact until the year 2255: the difference of two int64 could overflow.
    cdef int64_t now_us = f.time_us[f.request]
    if now_us == INT64_MIN or time_us == INT64_MIN:
        return NAN
    return (<double>now_us - <double>time_us) / <double>DAY_US


cdef inline int64_t floor_divide(int64_t a, int64_t b) noexcept nogil:
    return a // b - (a % b < 0)  # C truncates towards zero; times before 1970 are negative


cdef inline int64_t hour_of(int64_t time_us) noexcept nogil:
    return floor_divide(time_us, HOUR_US) - 24 * floor_divide(time_us, DAY_US)


cdef inline int64_t weekday_of(int64_t time_us) noexcept nogil:
    cdef int64_t day = floor_divide(time_us, DAY_US) + 3  # 1970-01-01 was a Thursday; Monday is 0
    return day - 7 * floor_divide(day, 7)


cdef void of_similarities(Frame *f, int op, const Space *space, Py_ssize_t recent, double *out) noexcept nogil:
    cdef const double *products = space.products
    cdef Py_ssize_t i, r
    for i in range(f.count):
        out[i] = NAN if recent == 0 else products[i] if op == OP_MAX_SIMILARITY else 0.0 + products[i]
    for r in range(1, recent):
        products += BLOCK
        if op == OP_MAX_SIMILARITY:
            for i in range(f.count):  # NaN is the highest
                out[i] = products[i] if (products[i] > out[i]) | (products[i] != products[i]) else out[i]
        else:
            for i in range(f.count):
                out[i] += products[i]
    if op == OP_MEAN_SIMILARITY:
        for i in range(f.count):
            out[i] /= recent


cdef void of_history(Frame *f, int op, const Group *group, Py_ssize_t selection, double *out) noexcept nogil:
    cdef const double *counts = group.counts + selection
    cdef const int64_t *last_us = group.last_us + selection
    cdef double total = f.totals[selection] if f.totals[selection] != 0 else NAN
    cdef Py_ssize_t i
    if op == OP_DAYS_SINCE_EVENT:
        for i in range(f.count):
            out[i] = days_until(f, last_us[group.found[i] * f.selection_count])
        return
    for i in range(f.count):
        out[i] = counts[group.found[i] * f.selection_count]
    if op == OP_SHARE:
        for i in range(f.count):
            out[i] /= total


cdef void load_request(Frame *f) noexcept nogil:
    """Numbers: user's, user's codes, context's, context's codes, hour, weekday. Times: user's, context's, request's."""
    cdef double *numbers = f.request_numbers
    cdef int64_t *times = f.request_times
    cdef int64_t now_us = f.time_us[f.request]
    load_columns(&f.user, f.request, &numbers, &times)
    load_columns(&f.context, f.request, &numbers, &times)
    numbers[0] = <double>hour_of(now_us) if now_us != INT64_MIN else NAN
    numbers[1] = <double>weekday_of(now_us) if now_us != INT64_MIN else NAN
    times[0] = now_us


cdef void load_columns(const Columns *c, Py_ssize_t request, double **numbers, int64_t **times) noexcept nogil:
    cdef const int32_t *codes = c.codes + request * c.code_width
    cdef Py_ssize_t i
    memcpy(numbers[0], c.numbers + request * c.number_width, c.number_width * sizeof(double))
    numbers[0] += c.number_width
    for i in range(c.code_width):
        numbers[0][i] = <double>codes[i] if codes[i] >= 0 else NAN
    numbers[0] += c.code_width
    memcpy(times[0], c.times + request * c.time_width, c.time_width * sizeof(int64_t))
    times[0] += c.time_width


cdef Py_ssize_t request_numbers(const Frame *f) noexcept nogil:
    """How many numbers a request has, with hour and weekday."""
    return f.user.number_width + f.user.code_width + f.context.number_width + f.context.code_width + 2


cdef Py_ssize_t request_times(const Frame *f) noexcept nogil:
    """How many times a request has, with its own."""
    return f.user.time_width + f.context.time_width + 1


cdef void load_recent(Frame *f) noexcept nogil:
    cdef Py_ssize_t i = f.recent_offsets[f.request], end = f.recent_offsets[f.request + 1], s
    f.recent_count = 0
    while i < end and f.recent_count < f.recent_depth:
        if f.recent_rows[i] >= 0:
            f.recent[f.recent_count] = f.recent_rows[i]
            f.recent_count += 1
        i += 1
    for s in range(f.space_count):
        load_queries(f, &f.spaces[s])


cdef void load_queries(Frame *f, Space *space) noexcept nogil:
    cdef Py_ssize_t padded = dot64_padded(space.dim), i
    space.recent = min(space.depth, f.recent_count)
    for i in range(space.recent):
        dot64_fetch(space.items + f.recent[i] * space.dim, space.dim)
    for i in range(space.recent):
        dot64_widen(space.items + f.recent[i] * space.dim, space.dim, space.queries + i * padded)
    if space.users != NULL:
        dot64_widen(space.users + f.request * space.dim, space.dim, space.queries + space.recent * padded)


cdef void compare(Frame *f, Py_ssize_t end) noexcept nogil:
    """Inner products of the current candidates, behind which the request has others up to `end`."""
    cdef Space *space
    cdef Py_ssize_t s
    for s in range(f.space_count):
        space = &f.spaces[s]
        dot64(
            space.items, space.dim, f.rows + f.first, f.count, end - f.first - f.count, space.queries,
            space.recent + (space.users != NULL), space.products, BLOCK
        )


cdef void load_history(Frame *f) noexcept nogil:
    cdef int64_t start = f.history_offsets[f.request], end = f.history_offsets[f.request + 1]
    cdef Py_ssize_t g, i, s
    memset(f.totals, 0, f.selection_count * sizeof(double))
    for i in range(start, end):
        for s in range(f.selection_count):
            if selected(f, s, i):
                f.totals[s] += f.history_counts[i]
    f.hash_shift = 64 - table_bits(end - start)
    for g in range(f.group_count):
        load_group(f, &f.groups[g], start, end)


cdef inline bint selected(Frame *f, Py_ssize_t selection, Py_ssize_t entry) noexcept nogil:
    return f.selections[selection] == ALL_EVENTS or f.selections[selection] == f.history_events[entry]


cdef void load_group(Frame *f, Group *group, int64_t start, int64_t end) noexcept nogil:
    cdef Py_ssize_t i, s, at
    cdef int64_t key
    cdef int32_t *slot
    memset(group.slots, 0, (<size_t>1 << (64 - f.hash_shift)) * sizeof(int32_t))
    group.entries = 0
    add_entry(f, group, NO_KEY, NAN)
    add_entry(f, group, NO_KEY, 0.0)
    if group.key != BY_ITEM:
        for i in range(start, end):
            __builtin_prefetch(f.features + max(f.history_rows[i], 0) * f.feature_width + group.key)
    for i in range(start, end):
        key = key_of(f, group, f.history_rows[i])
        if key == NO_KEY:
            continue
        slot = slot_of(f, group, key)
        if slot[0] == 0:
            slot[0] = add_entry(f, group, key, 0.0)
        for s in range(f.selection_count):
            if selected(f, s, i):
                at = slot[0] * f.selection_count + s
                group.counts[at] += f.history_counts[i]
                group.last_us[at] = max(group.last_us[at], f.history_last_us[i])


cdef inline int64_t key_of(Frame *f, const Group *group, int64_t row) noexcept nogil:
    cdef float code
    if row < 0 or group.key == BY_ITEM:
        return row if row >= 0 else NO_KEY
    code = f.features[row * f.feature_width + group.key]
    return <int64_t>code if code >= 0 else NO_KEY  # NaN fails the comparison


cdef int32_t add_entry(Frame *f, Group *group, int64_t key, double count) noexcept nogil:
    """A new entry, of a number of events of each kind and no time; returns which."""
    cdef int32_t entry = group.entries
    cdef Py_ssize_t first = entry * f.selection_count, s
    group.keys[entry] = key
    for s in range(f.selection_count):
        group.counts[first + s] = count
        group.last_us[first + s] = INT64_MIN
    group.entries += 1
    return entry


cdef int32_t *slot_of(Frame *f, const Group *group, int64_t key) noexcept nogil:
    # Multiplicative hashing (Knuth, TAOCP 3, 6.4) with linear probing; the table is at most half full.
    cdef uint64_t mask = (<uint64_t>1 << (64 - f.hash_shift)) - 1
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15) >> f.hash_shift
    while group.slots[at] != 0 and group.keys[group.slots[at]] != key:
        at = (at + 1) & mask
    return &group.slots[at]


cdef int table_bits(Py_ssize_t entries) noexcept nogil:
    """Binary logarithm of a table's capacity, at least twice the entries."""
    cdef int bits = 1
    while (<Py_ssize_t>1 << bits) < 2 * entries:
        bits += 1
    return bits


cdef void look_up_history(Frame *f) noexcept nogil:
    cdef const int64_t *rows = f.rows + f.first
    cdef int64_t[BLOCK] keys
    cdef Group *group
    cdef Py_ssize_t g, i
    for g in range(f.group_count):
        group = &f.groups[g]
        for i in range(f.count):  # first all keys, so that the CPU waits for many of them at once
            keys[i] = key_of(f, group, rows[i])
        for i in range(f.count):
            group.found[i] = entry_of(f, group, keys[i])


cdef inline int32_t entry_of(Frame *f, const Group *group, int64_t key) noexcept nogil:
    if key == NO_KEY or not f.known[f.request]:
        return MISSING_KEY
    return max(slot_of(f, group, key)[0], <int32_t>ABSENT_KEY)
