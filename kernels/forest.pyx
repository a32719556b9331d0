"""Exact forests, one bit per row; include/forest.h tells how, forest.pyi has the public API.

    predict ─ check ─ scratch ─┐ nogil, for each block of rows
    margins ─ check ─ scratch ─┤
                               └ bins ─┬ few rows: lanes, or conditions and nodes ─┬ leaf numbers, sums
                                       └ many: conditions and programs ────────────┘

Scratch is kept between calls: a call takes one from the forest's shelf, or makes one, and puts it back; so it does with
the names of slots, which a plan keeps. Both happen with the GIL held, so threads never share one.
"""

import os

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from recserve.kernels import _forest_arrays as layout
from recserve.kernels._arrays import check_array, check_rows
from recserve.kernels._cpu import choose_variant
from recserve.kernels._forest_choices import divide

cdef extern from "forest.h" nogil:
    enum:
        FOREST_BATCH
        FOREST_MAX_ROWS
        FOREST_FEW_ROWS
        FOREST_WALKED_ROWS
        FOREST_LEAVES
        FOREST_BUNDLE
        FOREST_BUNDLE_NODES
    ctypedef uint64_t forest_node_t
    ctypedef struct forest_lanes_t:
        pass
    ctypedef struct forest_t:
        ptrdiff_t columns, ranges, sets, outputs
        const int32_t* column_features
        const float* steps32
        const float* pivots32
        const double* steps64
        const double* pivots64
        const int64_t* range_bounds
        const uint8_t* range_lows
        const uint8_t* range_widths
        const int64_t* set_bounds
        const uint8_t* set_bits
        const int64_t* op_bounds
        const uint32_t* ops
        const uint32_t* planes
        const double* leaves
        const uint16_t* leaf_words
        const float* leaves32
        const uint16_t* leaf_words32
        const int64_t* output_bounds
        const double* initials
        const double* divisors
        const uint8_t* singles
        const forest_node_t* nodes
        const int64_t* bundle_bounds
        const uint32_t* joins
        ptrdiff_t joined
        const forest_lanes_t* lanes
        ptrdiff_t lane_pieces, lane_rows
        int jumps
    ctypedef struct forest_trees_t:
        forest_node_t* nodes
        int64_t* bundle_bounds
        uint32_t* joins
        ptrdiff_t joined, most_joined
    ctypedef enum forest_kind_t:
        FOREST_WHOLE
        FOREST_NARROW
        FOREST_WIDE
    ctypedef struct forest_program_t:
        forest_kind_t kind
        const int64_t* op_bounds
        const void* ops
        const int64_t* choice_bounds
        const void* choices
        const uint32_t* planes
        ptrdiff_t first_choice
    ctypedef struct forest_scratch_t:
        uint8_t* bins
        uint64_t* masks
        void* names
        uint8_t* numbers
        double* sums
        uint8_t* values
    ctypedef struct forest_variant_t:
        void (*bin32)(const forest_t*, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t, uint8_t*) noexcept nogil
        void (*bin64)(const forest_t*, ptrdiff_t, const double*, ptrdiff_t, ptrdiff_t, uint8_t*) noexcept nogil
        void (*conditions)(
            const forest_t*, const forest_scratch_t*, const int32_t*, ptrdiff_t, ptrdiff_t
        ) noexcept nogil
        void (*margins)(
            const forest_t*, const forest_program_t*, const forest_scratch_t*, ptrdiff_t, ptrdiff_t, double*
        ) noexcept nogil
        void (*margins32)(
            const forest_t*, const forest_program_t*, const forest_scratch_t*, ptrdiff_t, ptrdiff_t, double*
        ) noexcept nogil
        void (*few_conditions)(const forest_t*, const forest_scratch_t*, const int32_t*, ptrdiff_t) noexcept nogil
        void (*few_constants)(
            const forest_t*, const forest_scratch_t*, const int32_t*, ptrdiff_t, const uint8_t*
        ) noexcept nogil
        void (*few_margins)(const forest_t*, const forest_scratch_t*, ptrdiff_t, bint, double*) noexcept nogil
        void (*lane_margins)(const forest_t*, const forest_scratch_t*, ptrdiff_t, bint, double*) noexcept nogil
    const forest_variant_t* forest_variant_named(const char* name)
    ptrdiff_t forest_groups_for(const forest_variant_t* variant, ptrdiff_t n)
    ptrdiff_t forest_unfold_all(const forest_t* forest, forest_trees_t* trees)
    void forest_fix(
        const forest_t* forest, const forest_program_t* program, void* names, const int32_t* columns, ptrdiff_t count,
        const uint8_t* bins
    )
    bint forest_takes_lanes(const forest_variant_t* variant)
    ptrdiff_t forest_spread_all(forest_t* forest, ptrdiff_t nodes, forest_lanes_t* lanes)
    ptrdiff_t forest_few_rows(const forest_variant_t* variant, const forest_t* forest)
    void forest_join_masks(const forest_t* forest, const forest_scratch_t* scratch)
    void forest_walk(const forest_t* forest, const forest_scratch_t* scratch, ptrdiff_t row, bint single, double* out)
    void forest_gather(
        const uint8_t* table, const int64_t* rows, ptrdiff_t n, const int32_t* columns, ptrdiff_t count,
        uint8_t* bins, ptrdiff_t width
    )

CPU_VARIANTS = tuple(name for name in ("portable", "avx2", "avx512") if forest_variant_named(name.encode()) != NULL)

CPU_VARIANT = choose_variant(os.environ.get("RECSERVE_CPU", ""), CPU_VARIANTS)
cdef const forest_variant_t* variant = forest_variant_named(CPU_VARIANT.encode())

cdef enum:
    LINE = 64
    # Rows are binned so many at a time: the lines of the input that their columns share then stay in the nearest cache.
    TILE = 64


cdef void* address(array) except? NULL:
    """Where a C-contiguous array's elements are; much quicker than array.ctypes.data."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void* start = view.buf
    PyBuffer_Release(&view)
    return start


UINT8, INT64, FLOAT32, FLOAT64 = map(np.dtype, (np.uint8, np.int64, np.float32, np.float64))


cdef void* checked(str name, array, dtype, tuple shape) except? NULL:
    """Where an array's elements are, after check_array, which is asked for its error only: it takes a microsecond."""
    if not (isinstance(array, np.ndarray) and array.dtype is dtype and has_layout(array.flags, array.shape, shape)):
        check_array(name, array, dtype, shape)
    return address(array)


cdef bint has_layout(flags, tuple found, tuple shape):
    """Whether an array is contiguous and of a shape, in which None is any length."""
    if len(found) != len(shape) or not (flags.c_contiguous and flags.aligned):
        return False
    cdef Py_ssize_t axis
    for axis in range(len(shape)):
        if shape[axis] is not None and shape[axis] != found[axis]:
            return False
    return True


def aligned(size):
    """Uninitialised bytes that start on a cache line."""
    room = np.empty(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size]


def aligned_copy(array):
    """The same array on a cache line."""
    copy = aligned(max(array.nbytes, 1))[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


cdef struct request_t:
    # What all requests of a call share; `bins` holds the bins of the current one's constants. A plan keeps one without
    # the parts that belong to a call: item_bins, cross_stride and bins.
    const uint8_t* item_bins
    const int32_t* item_columns
    ptrdiff_t item_count
    const int32_t* request_columns
    const int32_t* request_places
    ptrdiff_t request_count
    const int32_t* cross_columns
    const int32_t* cross_places
    ptrdiff_t cross_count
    ptrdiff_t cross_stride
    const int32_t* varying_columns
    ptrdiff_t varying_count
    const forest_program_t* program
    uint8_t* bins


cdef class Scratch:
    cdef forest_scratch_t parts
    cdef uint8_t* request_bins
    cdef object memory


cdef class Forest:
    """Forests over one set of features; see forest.pyi."""

    cdef forest_t forest
    cdef forest_program_t whole
    cdef readonly int features, outputs, columns, pieces, conditions
    cdef readonly object arrays, set_hash, float_error_bounds, forest_bounds, column_features
    cdef object derived
    cdef object all_columns
    cdef list shelf
    cdef ptrdiff_t slots

    def __cinit__(self, arrays):
        layout.check_forest(arrays)
        self.arrays = dict(arrays)
        self.set_hash = layout.set_hash(arrays)
        self.float_error_bounds = layout.float_error_bounds(arrays)
        self.shelf = []
        self.column_features = arrays["column_features"]
        self.forest_bounds = arrays["forest_bounds"]
        self.features = arrays["features"][0]
        self.outputs = len(arrays["output_bounds"]) - 1
        self.columns = len(arrays["column_features"])
        self.pieces = len(arrays["planes"])
        self.conditions = len(arrays["range_lows"]) + len(arrays["set_bits"])
        self.slots = layout.FIRST_CONDITION + self.conditions + layout.max_ops(arrays)
        self.all_columns = np.arange(self.columns, dtype=np.int32)
        self.point(arrays)

    cdef point(self, arrays):
        """Point the kernel at the arrays, and at what is derived from them."""
        steps64 = layout.steps_of(arrays)
        steps32 = layout.round_down(steps64)
        words = arrays["leaves"].view(np.uint16).reshape(self.pieces, layout.LEAVES, 4).transpose(0, 2, 1)
        leaves32 = layout.to_float32(arrays["leaves"])
        words32 = leaves32.view(np.uint16).reshape(self.pieces, layout.LEAVES, 2).transpose(0, 2, 1)
        pivots = slice(layout.STEPS // 16 - 1, None, 16)
        self.derived = [
            aligned_copy(each)
            for each in (steps32, steps32[:, pivots], steps64, steps64[:, pivots], words, leaves32, words32)
        ]
        self.forest = forest_t(
            columns=self.columns,
            ranges=len(arrays["range_lows"]),
            sets=len(arrays["set_bits"]),
            outputs=self.outputs,
            column_features=<const int32_t*>address(arrays["column_features"]),
            steps32=<const float*>address(self.derived[0]),
            pivots32=<const float*>address(self.derived[1]),
            steps64=<const double*>address(self.derived[2]),
            pivots64=<const double*>address(self.derived[3]),
            range_bounds=<const int64_t*>address(arrays["range_bounds"]),
            range_lows=<const uint8_t*>address(arrays["range_lows"]),
            range_widths=<const uint8_t*>address(arrays["range_widths"]),
            set_bounds=<const int64_t*>address(arrays["set_bounds"]),
            set_bits=<const uint8_t*>address(arrays["set_bits"]),
            op_bounds=<const int64_t*>address(arrays["op_bounds"]),
            ops=<const uint32_t*>address(arrays["ops"]),
            planes=<const uint32_t*>address(arrays["planes"]),
            leaves=<const double*>address(arrays["leaves"]),
            leaf_words=<const uint16_t*>address(self.derived[4]),
            leaves32=<const float*>address(self.derived[5]),
            leaf_words32=<const uint16_t*>address(self.derived[6]),
            output_bounds=<const int64_t*>address(arrays["output_bounds"]),
            initials=<const double*>address(arrays["initials"]),
            divisors=<const double*>address(arrays["divisors"]),
            singles=<const uint8_t*>address(arrays["singles"]),
            nodes=NULL,
            bundle_bounds=NULL,
            joins=NULL,
            joined=0,
            lanes=NULL,
            lane_pieces=0,
            lane_rows=0,
            jumps=0,
        )
        self.whole = forest_program_t(
            kind=FOREST_WHOLE,
            op_bounds=self.forest.op_bounds,
            ops=self.forest.ops,
            choice_bounds=NULL,
            choices=NULL,
            planes=self.forest.planes,
            first_choice=0,
        )
        self.unfold()

    cdef unfold(self):
        """The trees of the programs, for few rows; without them these are evaluated like many."""
        bundles = sum(-(-int(count) // FOREST_BUNDLE) for count in np.diff(self.arrays["output_bounds"]))
        most_joined = min(bundles * FOREST_BUNDLE_NODES, layout.MAX_SLOTS)
        bounds = np.zeros(bundles + 1, np.int64)
        nodes = np.empty(bundles * FOREST_BUNDLE_NODES, np.uint64)
        joins = np.empty((most_joined, 2), np.uint32)
        cdef forest_trees_t trees = forest_trees_t(
            nodes=<forest_node_t*>address(nodes),
            bundle_bounds=<int64_t*>address(bounds),
            joins=<uint32_t*>address(joins),
            joined=0,
            most_joined=most_joined,
        )
        cdef ptrdiff_t count = forest_unfold_all(&self.forest, &trees)
        if count < 0:
            return
        kept = [aligned_copy(nodes[:count]), bounds, aligned_copy(joins[:trees.joined])]
        self.derived += kept
        self.forest.nodes = <const forest_node_t*>address(kept[0])
        self.forest.bundle_bounds = <const int64_t*>address(kept[1])
        self.forest.joins = <const uint32_t*>address(kept[2])
        self.forest.joined = trees.joined
        if forest_takes_lanes(variant):
            self.spread(count)

    cdef spread(self, ptrdiff_t nodes):
        """The nodes in lanes, where every piece fits into a register."""
        lanes = aligned(self.pieces * sizeof(forest_lanes_t))
        cdef ptrdiff_t count = forest_spread_all(&self.forest, nodes, <forest_lanes_t*>address(lanes))
        if count == 0:
            return
        kept = aligned_copy(lanes[: count * sizeof(forest_lanes_t)])
        self.derived.append(kept)
        self.forest.lanes = <const forest_lanes_t*>address(kept)

    cdef Scratch take(self):
        """Scratch for a call, from the shelf or new."""
        if self.shelf:
            return self.shelf.pop()
        scratch = Scratch()
        sizes = [
            self.columns * FOREST_MAX_ROWS,
            self.slots * (FOREST_MAX_ROWS // 8) + 4 * self.forest.joined,
            FOREST_BATCH * FOREST_MAX_ROWS,
            8 * FOREST_MAX_ROWS,
            (FOREST_LEAVES + FOREST_BUNDLE_NODES) * FOREST_FEW_ROWS,
            self.columns,
        ]
        # One array each, so that a sanitizer sees where they end; zeros, as bins behind the last row are read as well.
        scratch.memory = [aligned(size) for size in sizes]
        for part in scratch.memory:
            part[:] = 0
        bins, masks, numbers, sums, values, request_bins = scratch.memory
        scratch.parts.bins = <uint8_t*>address(bins)
        scratch.parts.masks = <uint64_t*>address(masks)
        scratch.parts.numbers = <uint8_t*>address(numbers)
        scratch.parts.sums = <double*>address(sums)
        scratch.parts.values = <uint8_t*>address(values)
        scratch.request_bins = <uint8_t*>address(request_bins)
        return scratch

    @staticmethod
    def load(folder):
        """Map a saved forest; see forest.pyi."""
        return Forest(layout.load_arrays(folder))

    def save(self, folder):
        """Write the forest; see forest.pyi."""
        layout.save_arrays(self.arrays, folder)

    def predict(self, rows, *, bint float_sums=False):
        """Raw margins of rows of features; see forest.pyi."""
        cdef bint single = getattr(rows, "dtype", FLOAT32) != FLOAT64
        cdef const void* values = checked("rows", rows, FLOAT32 if single else FLOAT64, (None, self.features))
        margins = np.empty((len(rows), self.outputs), np.float64)
        scratch = self.take()
        cdef double* out = <double*>address(margins)
        cdef request_t request
        memset(&request, 0, sizeof(request_t))  # nothing is constant
        request.varying_columns = <const int32_t*>address(self.all_columns)
        request.varying_count = self.columns
        request.program = &self.whole
        cdef ptrdiff_t n = len(rows), start = 0, size, groups
        with nogil:
            while start < n:
                groups = forest_groups_for(variant, n - start)
                size = min(n - start, 64 * groups)
                self.bin_block(values, single, start, size, scratch.parts.bins, 64 * groups)
                evaluate_block(&self.forest, &scratch.parts, &request, groups, size, float_sums,
                               out + start * self.outputs)
                start += size
        self.shelf.append(scratch)
        return margins if self.outputs > 1 else margins[:, 0]

    cdef void bin_block(
        self, const void* values, bint single, ptrdiff_t start, ptrdiff_t n, uint8_t* bins, ptrdiff_t width
    ) noexcept nogil:
        """Bins of rows start … start + n, column by column."""
        cdef ptrdiff_t tile = 0, column, size, at
        while tile < n:
            size = min(n - tile, <ptrdiff_t>TILE)
            for column in range(self.columns):
                at = (start + tile) * self.features + self.forest.column_features[column]
                if single:
                    variant.bin32(
                        &self.forest, column, <const float*>values + at, self.features, size,
                        bins + column * width + tile,
                    )
                else:
                    variant.bin64(
                        &self.forest, column, <const double*>values + at, self.features, size,
                        bins + column * width + tile,
                    )
            tile += size

    def bin_columns(self, features):
        """The bin columns of some features; see forest.pyi."""
        known = positions(features, self.features)
        return np.flatnonzero(known[self.column_features] >= 0).astype(np.int32)

    def bin_matrix(self, values, features):
        """Bins of some features; see forest.pyi."""
        known = positions(features, self.features)
        check_array("values", values, np.float32, (None, len(features)))
        columns = self.bin_columns(features)
        places = known[self.column_features[columns]]
        by_column = np.empty((len(columns), len(values)), np.uint8)
        cdef const float* start = <const float*>address(values)
        cdef uint8_t* bins = <uint8_t*>address(by_column)
        cdef const int32_t* column = <const int32_t*>address(columns)
        cdef const int32_t* place = <const int32_t*>address(places)
        cdef ptrdiff_t n = len(values), stride = values.shape[1], count = len(columns), i
        with nogil:
            for i in range(count):
                variant.bin32(&self.forest, column[i], start + place[i], stride, n, bins + i * n)
        return np.ascontiguousarray(by_column.T)

    def plan(self, item_features, request_features, cross_features):
        """Prepare the evaluation of requests; see forest.pyi."""
        return RequestPlan(self, item_features, request_features, cross_features)


def positions(features, count):
    """Where each of `count` features stands in a list, -1 where it does not: int32."""
    listed = np.asarray(features, np.int64).reshape(-1)
    check_rows("features", listed, count)
    if len(np.unique(listed)) != len(listed):
        raise ValueError("features: a feature is listed twice")
    found = np.full(count, -1, np.int32)
    found[listed] = np.arange(len(listed), dtype=np.int32)
    return found


cdef class RequestPlan:
    """How a forest reads requests; see forest.pyi."""

    cdef readonly Forest forest
    cdef readonly object item_features, request_features, cross_features, item_columns
    cdef object request_columns, request_places, cross_columns, cross_places, varying_columns
    cdef object divided
    cdef list shelf
    cdef forest_program_t program
    cdef request_t request

    def __cinit__(self, Forest forest, item_features, request_features, cross_features):
        self.forest = forest
        self.item_features = tuple(map(int, item_features))
        self.request_features = tuple(map(int, request_features))
        self.cross_features = tuple(map(int, cross_features))
        listed = positions([*self.item_features, *self.request_features, *self.cross_features], forest.features)
        if forest.columns and (listed[forest.column_features] < 0).any():
            lacking = np.unique(forest.column_features[listed[forest.column_features] < 0]).tolist()
            raise ValueError(f"the forest asks for features {lacking}, which are neither of items, requests nor crosses")
        self.item_columns = forest.bin_columns(self.item_features)
        self.request_columns, self.request_places = self.places(self.request_features)
        self.cross_columns, self.cross_places = self.places(self.cross_features)
        self.varying_columns = np.concatenate((self.item_columns, self.cross_columns))
        self.request = request_t(
            item_bins=NULL,
            item_columns=<const int32_t*>address(self.item_columns),
            item_count=len(self.item_columns),
            request_columns=<const int32_t*>address(self.request_columns),
            request_places=<const int32_t*>address(self.request_places),
            request_count=len(self.request_columns),
            cross_columns=<const int32_t*>address(self.cross_columns),
            cross_places=<const int32_t*>address(self.cross_places),
            cross_count=len(self.cross_columns),
            cross_stride=0,
            varying_columns=<const int32_t*>address(self.varying_columns),
            varying_count=len(self.varying_columns),
            program=&self.program,
            bins=NULL,
        )
        self.shelf = []
        self.divide()

    cdef divide(self):
        """The forest's program where the request's columns are the same for all rows."""
        program = divide(self.forest.arrays, self.request_columns)
        self.divided = program, aligned_copy(program.ops), aligned_copy(program.choices)
        _, ops, choices = self.divided
        self.program = forest_program_t(
            kind=FOREST_NARROW if ops.dtype == np.uint16 else FOREST_WIDE,
            op_bounds=<const int64_t*>address(program.op_bounds),
            ops=address(ops),
            choice_bounds=<const int64_t*>address(program.choice_bounds),
            choices=address(choices),
            planes=<const uint32_t*>address(program.planes),
            first_choice=program.first_choice,
        )

    cdef take_names(self):
        """Names for a call, which are their own slots at first, from the shelf or new."""
        if self.shelf:
            return self.shelf.pop()
        program, ops, _ = self.divided
        return aligned_copy(np.arange(program.name_count, dtype=ops.dtype))

    cdef places(self, features):
        """The columns of some features, and where each column's feature stands among them."""
        columns = self.forest.bin_columns(features)
        return columns, positions(features, self.forest.features)[self.forest.column_features[columns]]

    def margins(self, item_bins, rows, request_bounds, request_values, cross_values, *, bint float_sums=False):
        """Margins of the candidates of several requests; see forest.pyi."""
        cdef Forest forest = self.forest
        cdef const uint8_t* bins = <const uint8_t*>checked(
            "item_bins", item_bins, UINT8, (None, len(self.item_columns))
        )
        cdef const int64_t* all_rows = <const int64_t*>checked("rows", rows, INT64, (None,))
        if not all_below(all_rows, len(rows), len(item_bins)):
            check_rows("rows", rows, len(item_bins))  # says which one is not
        cdef const float* constants = <const float*>checked(
            "request_values", request_values, FLOAT32, (None, len(self.request_features))
        )
        cdef const float* crosses = <const float*>checked(
            "cross_values", cross_values, FLOAT32, (len(rows), len(self.cross_features))
        )
        cdef const int64_t* bounds = <const int64_t*>checked(
            "request_bounds", request_bounds, INT64, (len(request_values) + 1,)
        )
        if not rise(bounds, len(request_bounds), len(rows)):
            layout.check_spans("request_bounds", request_bounds, len(request_values), len(rows))
        margins = np.empty((len(rows), forest.outputs), np.float64)
        cdef Scratch scratch = forest.take()
        names = self.take_names()
        scratch.parts.names = address(names)
        cdef request_t request = self.request
        request.item_bins = bins
        request.cross_stride = cross_values.shape[1]
        request.bins = scratch.request_bins
        cdef double* out = <double*>address(margins)
        cdef ptrdiff_t requests = len(request_values), width = request_values.shape[1], i
        with nogil:
            for i in range(requests):
                evaluate_request(
                    &forest.forest, &scratch.parts, &request, constants + i * width, all_rows + bounds[i],
                    bounds[i + 1] - bounds[i], crosses + bounds[i] * request.cross_stride, float_sums,
                    out + bounds[i] * forest.forest.outputs,
                )
        scratch.parts.names = NULL
        forest.shelf.append(scratch)
        self.shelf.append(names)
        return margins

cdef bint all_below(const int64_t* rows, ptrdiff_t n, int64_t end) noexcept nogil:
    """check_rows without its error, many times quicker for a few hundred rows."""
    cdef bint good = True
    cdef ptrdiff_t i
    for i in range(n):
        good &= <uint64_t>rows[i] < <uint64_t>end
    return good


cdef bint rise(const int64_t* bounds, ptrdiff_t n, int64_t end) noexcept nogil:
    """check_spans without its error."""
    cdef bint good = bounds[0] == 0 and bounds[n - 1] == end
    cdef ptrdiff_t i
    for i in range(1, n):
        good &= bounds[i - 1] <= bounds[i]
    return good


cdef void evaluate_block(
    const forest_t* forest, const forest_scratch_t* scratch, const request_t* request, ptrdiff_t groups, ptrdiff_t n,
    bint float_sums, double* out
) noexcept nogil:
    """Margins of a block whose varying columns have been binned; the one place that chooses how."""
    if n <= forest.lane_rows:
        lane_margins(forest, scratch, request, n, float_sums, out)
    elif n <= forest_few_rows(variant, forest):
        few_margins(forest, scratch, request, n, float_sums, out)
    else:
        many_margins(forest, scratch, request, groups, n, float_sums, out)


cdef void lane_margins(
    const forest_t* forest, const forest_scratch_t* scratch, const request_t* request, ptrdiff_t n, bint float_sums,
    double* out
) noexcept nogil:
    """Margins of so few rows that each meets all nodes at once."""
    cdef ptrdiff_t i
    for i in range(request.request_count):
        memset(scratch.bins + request.request_columns[i] * 64, request.bins[i], n)
    variant.lane_margins(forest, scratch, n, float_sums, out)


cdef void few_margins(
    const forest_t* forest, const forest_scratch_t* scratch, const request_t* request, ptrdiff_t n, bint float_sums,
    double* out
) noexcept nogil:
    """Margins of few rows, from the leaves to the roots, or of one row down the trees."""
    cdef ptrdiff_t row
    variant.few_conditions(forest, scratch, request.varying_columns, request.varying_count)
    variant.few_constants(forest, scratch, request.request_columns, request.request_count, request.bins)
    forest_join_masks(forest, scratch)
    if n <= FOREST_WALKED_ROWS:
        for row in range(n):
            forest_walk(forest, scratch, row, float_sums, out + row * forest.outputs)
    else:
        variant.few_margins(forest, scratch, n, float_sums, out)


cdef void many_margins(
    const forest_t* forest, const forest_scratch_t* scratch, const request_t* request, ptrdiff_t groups, ptrdiff_t n,
    bint float_sums, double* out
) noexcept nogil:
    """Margins by the programs."""
    variant.conditions(forest, scratch, request.varying_columns, request.varying_count, groups)
    forest_fix(forest, request.program, scratch.names, request.request_columns, request.request_count, request.bins)
    if float_sums:
        variant.margins32(forest, request.program, scratch, groups, n, out)
    else:
        variant.margins(forest, request.program, scratch, groups, n, out)


cdef void evaluate_request(
    const forest_t* forest, const forest_scratch_t* scratch, const request_t* request, const float* constants,
    const int64_t* rows, ptrdiff_t n, const float* crosses, bint float_sums, double* out
) noexcept nogil:
    """Margins of one request's candidates, block by block."""
    cdef ptrdiff_t i, size, groups, width, start = 0
    for i in range(request.request_count):
        variant.bin32(forest, request.request_columns[i], constants + request.request_places[i], 1, 1,
                      request.bins + i)
    while start < n:
        groups = forest_groups_for(variant, n - start)
        width = 64 * groups
        size = min(n - start, width)
        forest_gather(request.item_bins, rows + start, size, request.item_columns, request.item_count, scratch.bins,
                      width)
        for i in range(request.cross_count):
            variant.bin32(
                forest, request.cross_columns[i], crosses + start * request.cross_stride + request.cross_places[i],
                request.cross_stride, size, scratch.bins + request.cross_columns[i] * width,
            )
        evaluate_block(forest, scratch, request, groups, size, float_sums, out + start * forest.outputs)
        start += size
