"""From margins to a final list: calibration, freshness, caps and diversity; see rerank.pyi for the public API.

    select ─ validate ─ order by score ─ scratch ─┐ nogil
                                                  └ for each place, until the deadline
                                                       take the best candidate that every cap admits, else the best
                                                       count it in the caps' windows

A candidate's similarity to the list only rises while the list grows, so its value with the similarity to the list's
beginning is an upper bound of its value (the lazy evaluation of Minoux, 1978). Only a candidate whose bound is above
the best value so far is compared with the members that it has not seen; most candidates see the first alone. Where it
is known how low similarities can be, the candidates whose scores are too low for any similarity see none: their vectors
are not read.

A list of thousands from thousands takes up to the square of that, so the choice looks at the clock each time that it
has read READ_BETWEEN_LOOKS numbers, and gives up once the deadline has passed.
"""

import math
import time

import numpy as np

from libc.float cimport DBL_EPSILON, DBL_MIN
from libc.math cimport INFINITY, exp, exp2, isfinite
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from recserve.kernels._arrays import check_array, check_rows
from recserve.kernels.vectors import CPU_VARIANT

include "_dot.pxi"

cdef dot_function dot = dot_variant_named(CPU_VARIANT.encode())

SIGMOID = 1
ISOTONIC = 2

cdef double LOWEST = DBL_MIN
cdef double HIGHEST = 1.0 - DBL_EPSILON / 2
cdef double DAY_US = 86400e6


def calibrate(margins, kind, x, y):
    """Turn margins into relevances; see rerank.pyi."""
    check_array("margins", margins, np.float64, (None,))
    check_array("x", x, np.float64, (None,))
    check_array("y", y, np.float64, (None,))
    if kind not in (SIGMOID, ISOTONIC):
        raise ValueError(f"kind: expected {SIGMOID} (sigmoid) or {ISOTONIC} (isotonic), found {kind!r}")
    if kind == SIGMOID and (len(x) != 2 or len(y) != 0):
        raise ValueError(f"sigmoid: expected x = [slope, intercept] and no y, found {len(x)} and {len(y)} values")
    if kind == ISOTONIC and (len(x) == 0 or len(x) != len(y)):
        raise ValueError(f"isotonic: expected as many x as y, at least one, found {len(x)} and {len(y)}")
    relevance = np.empty(len(margins), np.float64)
    cdef const double[::1] margins_view = margins, x_view = x, y_view = y
    cdef double[::1] relevance_view = relevance
    cdef bint isotonic = kind == ISOTONIC
    cdef Py_ssize_t i
    with nogil:
        for i in range(margins_view.shape[0]):
            if isotonic:
                relevance_view[i] = clip(interpolate(margins_view[i], x_view, y_view))
            else:
                relevance_view[i] = clip(1.0 / (1.0 + exp(-(x_view[0] * margins_view[i] + x_view[1]))))
    return relevance


cdef inline double clip(double value) noexcept nogil:
    """The nearest value in the open interval (0, 1); NaN stays NaN."""
    if value < LOWEST:
        return LOWEST
    return HIGHEST if value > HIGHEST else value


cdef inline double interpolate(double at, const double[::1] x, const double[::1] y) noexcept nogil:
    """The piecewise linear function through the knots, constant outside them.

    Held within its knots' values, because rounding could carry it an ulp beyond and break monotonicity.
    """
    cdef Py_ssize_t low = 0, high = x.shape[0] - 1, middle
    cdef double value
    if at != at:
        return at
    if at <= x[0]:
        return y[0]
    if at >= x[high]:
        return y[high]
    while high - low > 1:  # x[low] <= at < x[high]
        middle = (low + high) // 2
        if x[middle] <= at:
            low = middle
        else:
            high = middle
    if at == x[low]:
        return y[low]  # without the slope: infinite where knots almost meet, and 0 times it would be NaN
    value = y[low] + (at - x[low]) * ((y[high] - y[low]) / (x[high] - x[low]))
    return y[high] if value > y[high] else value


def freshness(scores, launch_us, now_us, boost, half_life_days):
    """Let new items gain; see rerank.pyi."""
    check_array("scores", scores, np.float64, (None,))
    check_array("launch_us", launch_us, np.int64, scores.shape)
    if not (np.isfinite(boost) and boost >= 0):
        raise ValueError(f"boost: expected a finite number of at least 0, found {boost}")
    if not (np.isfinite(half_life_days) and half_life_days > 0):
        raise ValueError(f"half_life_days: expected a finite number above 0, found {half_life_days}")
    fresh = np.empty(len(scores), np.float64)
    cdef const double[::1] scores_view = scores
    cdef const int64_t[::1] launch_view = launch_us
    cdef double[::1] fresh_view = fresh
    cdef double now = <int64_t>now_us, gain = boost, half_life = half_life_days, age
    cdef Py_ssize_t i
    with nogil:
        for i in range(scores_view.shape[0]):
            if launch_view[i] == INT64_MIN:
                fresh_view[i] = scores_view[i]
                continue
            age = (now - <double>launch_view[i]) / DAY_US
            fresh_view[i] = scores_view[i] * (1.0 + gain * exp2(-(age if age > 0 else 0.0) / half_life))
    return fresh


def select(
    scores, rows, k, cap_codes, cap_max, cap_window, cap_sliding, vectors=None, relevance_weight=1.0,
    lowest_similarity=-np.inf, deadline=np.inf,
):
    """Choose the final list; see rerank.pyi."""
    check_array("scores", scores, np.float64, (None,))
    check_array("rows", rows, np.int64, scores.shape)
    check_caps(len(scores), cap_codes, cap_max, cap_window, cap_sliding)
    check_finite(scores)
    if k < 0:
        raise ValueError(f"k: expected at least 0, found {k}")
    if not 0 <= relevance_weight <= 1:
        raise ValueError(f"relevance_weight: expected 0 to 1, found {relevance_weight}")
    if np.isnan(lowest_similarity):
        raise ValueError("lowest_similarity: expected a number, found nan")
    if math.isnan(deadline):
        raise ValueError("deadline: expected a number, found nan")
    if vectors is not None:
        check_array("vectors", vectors, np.float32, (None, None))
        check_rows("rows", rows, len(vectors))
    k = min(int(k), len(scores))
    seconds_left = deadline - time.monotonic()
    if k > 0 and seconds_left <= 0:
        raise TimeoutError(f"the deadline passed when 0 of {k} places were filled")
    order = best_first(scores, rows)
    if relevance_weight == 1:
        vectors = None  # similarity would be weighed by zero
    if vectors is None and len(cap_max) == 0:
        return order[:k].astype(np.int64), False
    caps = cap_codes, cap_max, cap_window, cap_sliding
    return Listing(scores, rows, order, k, caps, vectors, relevance_weight, lowest_similarity, seconds_left).fill()


def best_first(scores, rows):
    """Positions by score descending, ties by row ascending."""
    order = np.argsort(-scores)
    # The order by both keys takes several times as long.
    return np.lexsort((rows, -scores)) if has_ties(scores, order) else order


cdef bint has_ties(const double[::1] scores, const int64_t[::1] order):
    """Whether neighbours in the order have the same score."""
    cdef Py_ssize_t i
    for i in range(1, order.shape[0]):
        if scores[order[i]] == scores[order[i - 1]]:
            return True
    return False


cdef check_finite(const double[::1] scores):
    cdef Py_ssize_t i
    for i in range(scores.shape[0]):
        if not isfinite(scores[i]):
            raise ValueError(f"scores[{i}] is not finite")


def check_caps(n, cap_codes, cap_max, cap_window, cap_sliding):
    """Refuse caps that are not described by arrays of one length, or that admit nothing."""
    check_array("cap_max", cap_max, np.int32, (None,))
    check_array("cap_window", cap_window, np.int32, cap_max.shape)
    check_array("cap_sliding", cap_sliding, np.uint8, cap_max.shape)
    check_array("cap_codes", cap_codes, np.int32, (n, len(cap_max)))
    cdef const int32_t[::1] most = cap_max, window = cap_window
    cdef Py_ssize_t cap
    for cap in range(most.shape[0]):
        if most[cap] < 1:
            raise ValueError(f"cap_max: expected at least 1, found {most[cap]}")
        if window[cap] < 0:
            raise ValueError(f"cap_window: expected at least 0, found {window[cap]}")


cdef enum:
    TOGETHER = 16  # candidates that are compared with the list's first member at a time: their vectors are fetched ahead
    READ_BETWEEN_LOOKS = 1 << 20  # of vectors and caps: about a millisecond, in which a look at the clock is nothing


cdef inline double steady_seconds() noexcept nogil:
    """Seconds of a clock that runs as time.monotonic does but may begin elsewhere, as on macOS."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + 1e-9 * <double>now.tv_nsec


cdef class Listing:
    """A list while it is filled, and the candidates that are left."""

    cdef double deadline                 # by `steady_seconds`
    cdef Py_ssize_t read                 # numbers since the last look at the clock, roughly
    cdef bint late                       # whether the deadline had passed when it was looked at last
    cdef const double[::1] scores
    cdef const int64_t[::1] rows
    cdef int64_t[::1] remaining          # candidates not yet chosen, by score descending and row ascending
    cdef Py_ssize_t left                 # how many of them
    cdef int64_t[::1] chosen             # candidates by place
    cdef const int32_t[:, ::1] codes     # [candidate, cap]
    cdef const int32_t[::1] cap_max
    cdef const int32_t[::1] cap_window
    cdef const uint8_t[::1] cap_sliding
    cdef int32_t[:, ::1] taken           # [candidate, cap]: places in the cap's reach that hold the candidate's value
    cdef bint diverse
    cdef double weight
    cdef const float[:, ::1] vectors
    cdef double[::1] similarity          # per candidate, the highest to the members it has seen; 0 while there are none
    cdef int32_t[::1] seen               # per candidate, how many members of the list, from the first on
    cdef double lowest                   # no similarity is below it; 0 while there are none
    cdef double lowest_known             # from the start, or -infinity
    cdef int64_t[::1] chosen_rows        # rows of `chosen`
    cdef int64_t[::1] remaining_rows     # scratch: rows of `remaining`
    cdef float[::1] padded               # scratch: a vector, zero-padded as dot.h demands
    cdef float[::1] products             # scratch: its inner products

    def __cinit__(self, scores, rows, order, k, caps, vectors, double weight, double lowest_known, double seconds_left):
        self.deadline, self.read, self.late = steady_seconds() + seconds_left, 0, False
        self.scores, self.rows, self.weight = scores, rows, weight
        self.remaining, self.left = order.astype(np.int64), len(order)
        self.chosen = np.empty(k, np.int64)
        self.codes, self.cap_max, self.cap_window, self.cap_sliding = caps
        self.taken = np.zeros(caps[0].shape, np.int32)
        self.similarity = np.zeros(len(scores), np.float64)
        self.lowest, self.lowest_known = 0.0, lowest_known
        self.diverse = vectors is not None
        if self.diverse:
            self.vectors = vectors
            self.padded = np.zeros(-(-vectors.shape[1] // DOT_LANES) * DOT_LANES, np.float32)
            self.products = np.empty(len(scores), np.float32)
            self.seen = np.zeros(len(scores), np.int32)
            self.chosen_rows, self.remaining_rows = np.empty(k, np.int64), np.empty(len(scores), np.int64)

    def fill(self):
        """Choose every place; return the candidates in the order of the list, and whether caps were relaxed."""
        cdef Py_ssize_t place = 0, best
        cdef bint relaxed = False
        with nogil:
            for place in range(self.chosen.shape[0]):
                best = self.best(place, True)
                if best < 0 and not self.late:
                    relaxed = True
                    best = self.best(place, False)
                self.read += self.left * (1 + 3 * self.cap_max.shape[0])  # to admit, to count in and to count out
                if self.given_up():
                    break
                self.take(best, place)
                if self.left > 0:
                    self.count(place)
                    if place == 0 and self.diverse:
                        self.bound()
        if self.late:
            raise TimeoutError(f"the deadline passed when {place} of {self.chosen.shape[0]} places were filled")
        return np.asarray(self.chosen), bool(relaxed)

    cdef inline bint given_up(self) noexcept nogil:
        """Whether the deadline has passed; looked at only after work beside which a look costs nothing."""
        if self.read >= READ_BETWEEN_LOOKS and not self.late:
            self.read = 0
            self.late = steady_seconds() >= self.deadline
        return self.late

    cdef Py_ssize_t best(self, Py_ssize_t place, bint capped) noexcept nogil:
        """Index in `remaining` of the candidate for this place, -1 where the caps admit none; any once given up.

        Only a strictly higher value displaces an earlier candidate, so ties go by score, then by row.
        """
        cdef Py_ssize_t found = -1, i
        cdef int64_t candidate
        cdef double highest = 0.0
        for i in range(self.left):
            candidate = self.remaining[i]
            if found >= 0 and self.value_at(candidate, self.lowest) <= highest:
                break  # the rest score less, and no similarity is lower
            if self.diverse and place > 0 and self.seen[candidate] == 0:
                self.compare(i, min(i + TOGETHER, self.left))
            if found >= 0 and self.value(candidate) <= highest:
                continue
            if capped and not self.admits(candidate, place):
                continue
            if self.diverse:
                self.catch_up(candidate, place)
                if self.given_up():
                    break
            if found < 0 or self.value(candidate) > highest:
                found, highest = i, self.value(candidate)
        return found

    cdef inline double value(self, int64_t candidate) noexcept nogil:
        """An upper bound of the candidate's value, and the value once it has seen the whole list."""
        return self.value_at(candidate, self.similarity[candidate])

    cdef inline double value_at(self, int64_t candidate, double similarity) noexcept nogil:
        """Maximal marginal relevance; the score itself without diversity (weight 1, similarity 0)."""
        return self.weight * self.scores[candidate] - (1.0 - self.weight) * similarity

    cdef inline bint admits(self, int64_t candidate, Py_ssize_t place) noexcept nogil:
        """Whether no cap forbids the candidate this place."""
        cdef Py_ssize_t cap
        for cap in range(self.cap_max.shape[0]):
            if not self.cap_sliding[cap] and 0 < self.cap_window[cap] <= place:
                continue  # behind the places that this cap governs
            if self.taken[candidate, cap] >= self.cap_max[cap]:
                return False
        return True

    cdef void take(self, Py_ssize_t index, Py_ssize_t place) noexcept nogil:
        """Move a candidate from `remaining` to its place."""
        self.chosen[place] = self.remaining[index]
        if self.diverse:
            self.chosen_rows[place] = self.rows[self.remaining[index]]
        self.left -= 1
        memmove(&self.remaining[0] + index, &self.remaining[0] + index + 1, (self.left - index) * sizeof(int64_t))

    cdef void count(self, Py_ssize_t place) noexcept nogil:
        """Bring `taken` to what the next place has to look at: all places so far, or the last window - 1."""
        cdef Py_ssize_t cap, leaving
        for cap in range(self.cap_max.shape[0]):
            self.shift(cap, self.codes[self.chosen[place], cap], 1)
            leaving = place + 1 - self.cap_window[cap]
            if self.cap_sliding[cap] and self.cap_window[cap] > 0 and leaving >= 0:
                self.shift(cap, self.codes[self.chosen[leaving], cap], -1)

    cdef void shift(self, Py_ssize_t cap, int32_t code, int32_t by) noexcept nogil:
        """Change the counts of the remaining candidates with this value; a missing value (-1) is never counted."""
        cdef Py_ssize_t i
        if code < 0:
            return
        for i in range(self.left):
            if self.codes[self.remaining[i], cap] == code:
                self.taken[self.remaining[i], cap] += by

    cdef void bound(self) noexcept nogil:
        """Find out how low similarities to a list that has begun can be, from the candidates where nothing is known."""
        cdef Py_ssize_t i
        self.lowest = self.lowest_known
        if self.lowest > -INFINITY:
            return
        self.compare(0, self.left)
        self.lowest = INFINITY
        for i in range(self.left):
            self.lowest = min(self.lowest, self.similarity[self.remaining[i]])

    cdef void compare(self, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
        """Compare remaining candidates with the list's first member, so that their bounds have something to start from."""
        cdef Py_ssize_t i, dim = self.vectors.shape[1]
        cdef int64_t candidate
        self.read += (end - first) * dim
        for i in range(first, end):
            self.remaining_rows[i] = self.rows[self.remaining[i]]
        memcpy(&self.padded[0], &self.vectors[0, 0] + self.chosen_rows[0] * dim, dim * sizeof(float))
        dot_scattered(
            dot, &self.vectors[0, 0], dim, &self.remaining_rows[first], end - first, &self.padded[0], &self.products[0]
        )
        for i in range(first, end):
            candidate = self.remaining[i]
            self.similarity[candidate], self.seen[candidate] = self.products[i - first], 1

    cdef void catch_up(self, int64_t candidate, Py_ssize_t members) noexcept nogil:
        """Compare a candidate with those of the list's first `members` that it has not seen; the first it has."""
        cdef Py_ssize_t i, first = self.seen[candidate], dim = self.vectors.shape[1]
        if first == members:
            return
        self.read += (members - first) * dim
        memcpy(&self.padded[0], &self.vectors[0, 0] + self.rows[candidate] * dim, dim * sizeof(float))
        dot(&self.vectors[0, 0], dim, &self.chosen_rows[first], members - first, &self.padded[0], &self.products[0])
        for i in range(members - first):
            self.similarity[candidate] = max(self.similarity[candidate], self.products[i])
        self.seen[candidate] = <int32_t>members
