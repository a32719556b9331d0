"""Runs a lowered feature schema over a batch: see FeatureProgram, which checks the arrays that arrive here."""

from libc.math cimport M_PI, NAN, cos, log1p, sin
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

include "_program.pxi"

cdef enum:
    LANES = 8               # of an inner product; recserve.kernels.features.operations.DOT_LANES

cdef int64_t HOUR_US = 3_600_000_000
cdef int64_t DAY_US = 86_400_000_000
cdef int64_t NO_KEY = -1

ctypedef fused integer:
    int32_t
    int64_t


def first_outside(const integer[::1] values, int64_t low, int64_t high):
    """Index of the first value outside [low, high), or -1."""
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        if values[i] < low or values[i] >= high:
            return i
    return -1


def first_descent(const int64_t[::1] offsets):
    """Index of the first offset below its predecessor, or -1."""
    cdef Py_ssize_t i
    for i in range(1, offsets.shape[0]):
        if offsets[i] < offsets[i - 1]:
            return i
    return -1


def first_bad_code(const int32_t[:, ::1] codes, const int64_t[::1] sizes):
    """(row, column) of the first code outside [-1, size of its column's vocabulary), or None."""
    cdef Py_ssize_t r, c
    for r in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            if codes[r, c] < -1 or codes[r, c] >= sizes[c]:
                return r, c
    return None


def first_bad_list_code(const int32_t[::1] codes, const int64_t[::1] offsets, const int64_t[::1] sizes):
    """Index of the first list code outside [0, size of its column's vocabulary), or -1.

    Lists go row by row, and by column within one: list l is of column l mod len(sizes). The offsets are trusted.
    """
    cdef Py_ssize_t l, i
    cdef int64_t size
    for l in range(offsets.shape[0] - 1):
        size = sizes[l % sizes.shape[0]]
        for i in range(offsets[l], offsets[l + 1]):
            if codes[i] < 0 or codes[i] >= size:
                return i
    return -1


cdef class Kernel:
    """A lowered schema (recserve.kernels.features.lowering.Plan); immutable, shared by threads."""

    cdef const Instruction[::1] per_request
    cdef const Instruction[::1] per_candidate
    cdef const int32_t[::1] history_keys
    cdef const int32_t[::1] selections
    cdef const int64_t[::1] depths
    cdef Py_ssize_t request_numbers
    cdef Py_ssize_t request_times
    cdef Py_ssize_t width

    def __init__(self, plan):
        self.per_request = plan.per_request
        self.per_candidate = plan.per_candidate
        self.history_keys = plan.history_keys
        self.selections = plan.selections
        self.depths = plan.depths
        self.request_numbers = plan.request_numbers
        self.request_times = plan.request_times
        self.width = plan.width

    def compute(self, items, batch, list vectors, float[:, ::1] out):
        """Fill `out` [n, features]. The arrays have been checked; nothing here does it again.

        Args:
            items: ItemArrays.
            batch: FeatureBatch.
            vectors: by space: the items' vectors, and the users' or None.
            out: the result.
        """
        cdef Frame frame
        # Whatever the frame points to lives until the call is over: the caller holds the arrays, `scratch` the rest.
        cdef list scratch = []
        self._point_to_program(&frame)
        self._point_to_items(&frame, items)
        self._point_to_batch(&frame, batch)
        self._make_room(&frame, scratch)
        self._make_groups(&frame, scratch)
        self._point_to_spaces(&frame, vectors, scratch)
        frame.out = &out[0, 0]
        with nogil:
            run(&frame)

    cdef void _point_to_program(self, Frame *f):
        f.per_request = &self.per_request[0]
        f.per_candidate = &self.per_candidate[0]
        f.selections = &self.selections[0]
        f.per_request_size = self.per_request.shape[0]
        f.per_candidate_size = self.per_candidate.shape[0]
        f.selection_count = self.selections.shape[0]
        f.width = self.width

    cdef _point_to_items(self, Frame *f, items):
        cdef const float[:, ::1] features = items.features
        cdef const int64_t[:, ::1] times = items.times
        f.features = &features[0, 0]
        f.times = &times[0, 0]
        f.feature_width = features.shape[1]
        f.time_width = times.shape[1]

    cdef _point_to_batch(self, Frame *f, batch):
        cdef const int64_t[::1] offsets = batch.offsets
        cdef const int64_t[::1] rows = batch.rows
        cdef const int64_t[::1] time_us = batch.time_us
        cdef const unsigned char[::1] known = batch.known.view(np.uint8)
        cdef const int64_t[::1] history_offsets = batch.history_offsets
        cdef const int64_t[::1] history_rows = batch.history_rows
        cdef const int32_t[::1] history_events = batch.history_events
        cdef const double[::1] history_counts = batch.history_counts
        cdef const int64_t[::1] history_last_us = batch.history_last_us
        cdef const int64_t[::1] recent_offsets = batch.recent_offsets
        cdef const int64_t[::1] recent_rows = batch.recent_rows
        cdef const float[:, ::1] scores = batch.source_scores
        cdef const float[:, ::1] ranks = batch.source_ranks
        f.requests = offsets.shape[0] - 1
        f.offsets = &offsets[0]
        f.rows = &rows[0]
        f.time_us = &time_us[0]
        f.known = &known[0]
        f.history_offsets = &history_offsets[0]
        f.history_rows = &history_rows[0]
        f.history_events = &history_events[0]
        f.history_counts = &history_counts[0]
        f.history_last_us = &history_last_us[0]
        f.recent_offsets = &recent_offsets[0]
        f.recent_rows = &recent_rows[0]
        f.scores = &scores[0, 0]
        f.ranks = &ranks[0, 0]
        f.source_width = scores.shape[1]
        point_to_columns(&f.user, batch.user, f.requests)
        point_to_columns(&f.context, batch.context, f.requests)

    cdef _make_room(self, Frame *f, list scratch):
        f.recent_depth = 0
        for depth in self.depths:
            f.recent_depth = max(f.recent_depth, depth)
        f.request_numbers = <double *>room(scratch, self.request_numbers * sizeof(double))
        f.request_times = <int64_t *>room(scratch, self.request_times * sizeof(int64_t))
        f.totals = <double *>room(scratch, f.selection_count * sizeof(double))
        f.recent = <int64_t *>room(scratch, f.recent_depth * sizeof(int64_t))
        f.template = <float *>room(scratch, f.width * sizeof(float))

    cdef _make_groups(self, Frame *f, list scratch):
        cdef Py_ssize_t longest = 0, r, g
        for r in range(f.requests):
            longest = max(longest, f.history_offsets[r + 1] - f.history_offsets[r])
        f.group_count = self.history_keys.shape[0]
        f.groups = <Group *>room(scratch, f.group_count * sizeof(Group))
        for g in range(f.group_count):
            f.groups[g].key = self.history_keys[g]
            f.groups[g].slots = <int32_t *>room(scratch, (<Py_ssize_t>1 << table_bits(longest)) * sizeof(int32_t))
            f.groups[g].keys = <int64_t *>room(scratch, longest * sizeof(int64_t))
            f.groups[g].counts = <double *>room(scratch, longest * f.selection_count * sizeof(double))
            f.groups[g].last_us = <int64_t *>room(scratch, longest * f.selection_count * sizeof(int64_t))

    cdef _point_to_spaces(self, Frame *f, list vectors, list scratch):
        cdef const float[:, ::1] of_items
        cdef const float[:, ::1] of_users
        cdef Py_ssize_t s
        f.space_count = len(vectors)
        f.spaces = <Space *>room(scratch, f.space_count * sizeof(Space))
        for s, (items, users) in enumerate(vectors):
            of_items = items
            f.spaces[s].items = &of_items[0, 0]
            f.spaces[s].users = NULL
            f.spaces[s].dim = of_items.shape[1]
            f.spaces[s].depth = self.depths[s]
            f.spaces[s].similarities = <double *>room(scratch, self.depths[s] * sizeof(double))
            if users is not None:
                of_users = users
                f.spaces[s].users = &of_users[0, 0]


cdef void *room(list scratch, Py_ssize_t size):
    """Uninitialised memory that `scratch` keeps."""
    cdef double[::1] block = np.empty(size // 8 + 1, np.float64)
    scratch.append(block)
    return &block[0]


cdef point_to_columns(Columns *c, values, Py_ssize_t requests):
    cdef const double[:, ::1] numbers = values.numbers
    cdef const int32_t[:, ::1] codes = values.codes
    cdef const int64_t[:, ::1] times = values.times
    cdef const int32_t[::1] list_codes = values.list_codes
    cdef const int64_t[::1] list_offsets = values.list_offsets
    c.numbers = &numbers[0, 0]
    c.codes = &codes[0, 0]
    c.times = &times[0, 0]
    c.list_codes = &list_codes[0]
    c.list_offsets = &list_offsets[0]
    c.number_width = numbers.shape[1]
    c.code_width = codes.shape[1]
    c.time_width = times.shape[1]
    c.list_width = (list_offsets.shape[0] - 1) // requests if requests else 0


# ---- From here on there is no Python: no objects, no allocation, no GIL. ----


cdef void run(Frame *f) noexcept nogil:
    cdef Py_ssize_t r, i
    for r in range(f.requests):
        if f.offsets[r] == f.offsets[r + 1]:
            continue
        f.request = r
        load_request(f)
        load_history(f)
        load_recent(f)
        fill(f, f.per_request, f.per_request_size, f.template)
        for i in range(f.offsets[r], f.offsets[r + 1]):
            f.candidate = i
            f.row = f.rows[i]
            look_up_history(f)
            compare_with_recent(f)
            memcpy(f.out + i * f.width, f.template, f.width * sizeof(float))
            fill(f, f.per_candidate, f.per_candidate_size, f.out + i * f.width)


cdef void fill(Frame *f, const Instruction *steps, Py_ssize_t size, float *out) noexcept nogil:
    cdef Py_ssize_t i
    cdef double value
    for i in range(size):
        value = evaluate(f, &steps[i])
        out[steps[i].column] = <float>value if value == value else <float>NAN  # one NaN, whatever the arithmetic left


cdef double evaluate(Frame *f, const Instruction *step) noexcept nogil:
    cdef double a, b
    cdef int op = step.op
    if op <= OP_PAIR:
        a = number(f, step.a_place, step.a)
        if op == OP_VALUE:
            return a
        if op == OP_LOG1P:
            return log1p(a) if a > -1 else NAN
        b = number(f, step.b_place, step.b)
        if op == OP_RATIO:
            return a / b if b != 0 else NAN
        if op == OP_DIFFERENCE:
            return a - b
        if op == OP_PRODUCT:
            return a * b
        if op == OP_PAIR:
            return a * step.parameter + b
        return <double>(a == b) if a == a and b == b else NAN
    if op == OP_RANK_IN:
        return rank_in(f, number(f, step.a_place, step.a), step)
    if op <= OP_DAYS_SINCE:
        return of_time(f, op, time_operand(f, step))
    if op == OP_DOT:
        return dot_with_user(f, &f.spaces[step.a])
    if op <= OP_SHARE:
        return of_history(f, op, &f.groups[step.a], step.b)
    return of_similarities(op, &f.spaces[step.a], min(step.parameter, f.recent_count))


cdef inline double number(Frame *f, int place, int index) noexcept nogil:
    if place == AT_REQUEST:
        return f.request_numbers[index]
    if place == AT_ITEM:
        return f.features[f.row * f.feature_width + index]
    if place == AT_SCORE:
        return f.scores[f.candidate * f.source_width + index]
    return f.ranks[f.candidate * f.source_width + index]


cdef inline int64_t time_operand(Frame *f, const Instruction *step) noexcept nogil:
    if step.a_place == AT_REQUEST:
        return f.request_times[step.a]
    return f.times[f.row * f.time_width + step.a]


cdef double rank_in(Frame *f, double code, const Instruction *step) noexcept nogil:
    cdef Columns *columns = &f.user if step.b_place == AT_USER_LIST else &f.context
    cdef const int64_t *ends = columns.list_offsets + f.request * columns.list_width + step.b
    cdef int64_t i
    for i in range(ends[0], ends[1]):
        if columns.list_codes[i] == code:  # false for NaN
            return i - ends[0] + 1
    return NAN


cdef double of_time(Frame *f, int op, int64_t time_us) noexcept nogil:
    if time_us == INT64_MIN:
        return NAN
    if op == OP_HOUR_SIN:
        return sin(2.0 * M_PI * hour_of(time_us) / 24.0)
    if op == OP_HOUR_COS:
        return cos(2.0 * M_PI * hour_of(time_us) / 24.0)
    if op == OP_WEEKDAY_SIN:
        return sin(2.0 * M_PI * weekday_of(time_us) / 7.0)
    if op == OP_WEEKDAY_COS:
        return cos(2.0 * M_PI * weekday_of(time_us) / 7.0)
    return days_until(f, time_us)


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


cdef double dot(const float *a, const float *b, Py_ssize_t dim) noexcept nogil:
    # Products of two floats are exact in double, so that only the order of the additions decides the bits.
    cdef double lanes[LANES]
    cdef double total = 0.0
    cdef Py_ssize_t i = 0, lane
    memset(lanes, 0, sizeof(lanes))
    while i + LANES <= dim:
        for lane in range(LANES):
            lanes[lane] += <double>a[i + lane] * <double>b[i + lane]
        i += LANES
    for lane in range(dim - i):
        lanes[lane] += <double>a[i + lane] * <double>b[i + lane]
    for lane in range(LANES):
        total += lanes[lane]
    return total


cdef double dot_with_user(Frame *f, const Space *space) noexcept nogil:
    return dot(space.items + f.row * space.dim, space.users + f.request * space.dim, space.dim)


cdef double of_similarities(int op, const Space *space, Py_ssize_t count) noexcept nogil:
    cdef double best, total = 0.0
    cdef Py_ssize_t i
    if count == 0:
        return NAN
    best = space.similarities[0]
    for i in range(count):
        total += space.similarities[i]
        if space.similarities[i] > best or space.similarities[i] != space.similarities[i]:
            best = space.similarities[i]
    return best if op == OP_MAX_SIMILARITY else total / count


cdef double of_history(Frame *f, int op, const Group *group, Py_ssize_t selection) noexcept nogil:
    cdef double count = 0.0
    cdef int64_t last_us = INT64_MIN
    if not f.known[f.request] or group.found < 0:
        return NAN
    if group.found > 0:
        count = group.counts[(group.found - 1) * f.selection_count + selection]
        last_us = group.last_us[(group.found - 1) * f.selection_count + selection]
    if op == OP_COUNT:
        return count
    if op == OP_DAYS_SINCE_EVENT:
        return days_until(f, last_us)
    return count / f.totals[selection] if f.totals[selection] != 0 else NAN


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


cdef void load_recent(Frame *f) noexcept nogil:
    cdef Py_ssize_t i = f.recent_offsets[f.request], end = f.recent_offsets[f.request + 1]
    f.recent_count = 0
    while i < end and f.recent_count < f.recent_depth:
        if f.recent_rows[i] >= 0:
            f.recent[f.recent_count] = f.recent_rows[i]
            f.recent_count += 1
        i += 1


cdef void compare_with_recent(Frame *f) noexcept nogil:
    cdef Space *space
    cdef Py_ssize_t s, i
    for s in range(f.space_count):
        space = &f.spaces[s]
        for i in range(min(space.depth, f.recent_count)):
            space.similarities[i] = dot(
                space.items + f.row * space.dim, space.items + f.recent[i] * space.dim, space.dim
            )


cdef void load_history(Frame *f) noexcept nogil:
    cdef int64_t start = f.history_offsets[f.request], end = f.history_offsets[f.request + 1]
    cdef Py_ssize_t g, i, s
    if not f.known[f.request] or f.group_count == 0:
        return
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
    group.distinct = 0
    for i in range(start, end):
        key = key_of(f, group, f.history_rows[i])
        if key == NO_KEY:
            continue
        slot = slot_of(f, group, key)
        if slot[0] == 0:
            slot[0] = add_key(f, group, key)
        for s in range(f.selection_count):
            if selected(f, s, i):
                at = (slot[0] - 1) * f.selection_count + s
                group.counts[at] += f.history_counts[i]
                group.last_us[at] = max(group.last_us[at], f.history_last_us[i])


cdef inline int64_t key_of(Frame *f, const Group *group, int64_t row) noexcept nogil:
    cdef float code
    if row < 0 or group.key == BY_ITEM:
        return row if row >= 0 else NO_KEY
    code = f.features[row * f.feature_width + group.key]
    return <int64_t>code if code >= 0 else NO_KEY  # NaN fails the comparison


cdef int32_t add_key(Frame *f, Group *group, int64_t key) noexcept nogil:
    cdef Py_ssize_t first = group.distinct * f.selection_count, s
    group.keys[group.distinct] = key
    for s in range(f.selection_count):
        group.counts[first + s] = 0.0
        group.last_us[first + s] = INT64_MIN
    group.distinct += 1
    return group.distinct


cdef int32_t *slot_of(Frame *f, const Group *group, int64_t key) noexcept nogil:
    # Multiplicative hashing (Knuth, TAOCP 3, 6.4) with linear probing; the table is at most half full.
    cdef uint64_t mask = (<uint64_t>1 << (64 - f.hash_shift)) - 1
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15) >> f.hash_shift
    while group.slots[at] != 0 and group.keys[group.slots[at] - 1] != key:
        at = (at + 1) & mask
    return &group.slots[at]


cdef int table_bits(Py_ssize_t entries) noexcept nogil:
    """Binary logarithm of a table's capacity, at least twice the entries."""
    cdef int bits = 1
    while (<Py_ssize_t>1 << bits) < 2 * entries:
        bits += 1
    return bits


cdef void look_up_history(Frame *f) noexcept nogil:
    cdef Py_ssize_t g
    cdef int64_t key
    if not f.known[f.request]:
        return
    for g in range(f.group_count):
        key = key_of(f, &f.groups[g], f.row)
        f.groups[g].found = slot_of(f, &f.groups[g], key)[0] if key != NO_KEY else -1
