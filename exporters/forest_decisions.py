"""Decisions in one form, whatever library the trees come from, and their translation to bins.

A numeric node sends a row left where `value <= threshold`; what a library compares otherwise is brought to that form
first (`x < t` is `x <= the number below t`). A category node sends it left where the value, truncated towards zero, is
in a set. Both only ask between which thresholds a value lies, and so does a library that rounds its inputs to float32:
`float32(x) <= t` is `x <= the largest double that is rounded to no more than t`.

    thresholds of a feature, sorted     -3.5    0.0    2.0
    bin = thresholds below the value  0      1      2      3          NaN: 255
    x <= 0.0 is the bins 0 … 1; category 2 is the bins between the number below 2 and the number below 3

So a column of bins serves every node of its feature, and a feature with more thresholds than a byte counts has several
columns. A condition is the set of bins that go left, equal conditions are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._forest_arrays import FIRST_CONDITION, MAX_THRESHOLDS, NAN_BIN, STEPS

ZERO_THRESHOLD: Final = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: its predictor reads what is not larger in magnitude as 0."""
BELOW_ZERO: Final = float(np.nextafter(-ZERO_THRESHOLD, -np.inf))
"""The largest number that it reads as negative."""
ZERO_AS_IS, ZERO_RIGHT, ZERO_LEFT = 0, 1, 2
"""Whether a node compares zeros as any other number, or sends them to a fixed side."""
NUMERIC: Final = -1
"""As the number of a node's category set."""

Ref = int
"""A slot; see kernels/_forest_arrays.py."""


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The nodes of all trees, end to end."""

    features: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    """Left where value <= threshold; without meaning for category nodes."""
    nan_left: NDArray[np.bool_]
    """Where NaN goes, in nodes of both kinds."""
    zero: NDArray[np.int64]
    """ZERO_AS_IS, ZERO_RIGHT or ZERO_LEFT."""
    sets: NDArray[np.int64]
    """Number of the category set that goes left, or NUMERIC."""
    categories: Sequence[NDArray[np.int64]]
    """The category sets: ascending, from 0."""
    single: NDArray[np.bool_]
    """Category nodes that round their input to float32, and to which all negative numbers are no category; the others
    truncate (-1, 0) to category 0. Thresholds have been rounded already."""


def join_nodes(parts: Sequence[Nodes]) -> Nodes:
    """The nodes of several models, end to end."""
    shifts = np.cumsum([0, *(len(part.categories) for part in parts)])
    return Nodes(
        features=np.concatenate([part.features for part in parts]),
        thresholds=np.concatenate([part.thresholds for part in parts]),
        nan_left=np.concatenate([part.nan_left for part in parts]),
        zero=np.concatenate([part.zero for part in parts]),
        sets=np.concatenate(
            [
                np.where(part.sets == NUMERIC, NUMERIC, part.sets + shift)
                for part, shift in zip(parts, shifts[:-1], strict=True)
            ]
        ),
        categories=[categories for part in parts for categories in part.categories],
        single=np.concatenate([part.single for part in parts]),
    )


def single_threshold(thresholds: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest double that rounds to no more than each float32: float32(x) <= t is x <= this.

    Half way to the next float32 it is rounded to the one whose last bit is 0. After the largest float32, the next would
    be 2**128.
    """
    with np.errstate(over="ignore"):  # infinity follows the largest float32
        following = np.nextafter(thresholds, np.float32(np.inf))
    low, high = (np.clip(each.astype(np.float64), -(2.0**128), 2.0**128) for each in (thresholds, following))
    middle = (low + high) / 2
    with np.errstate(over="ignore"):
        below = np.where(middle.astype(np.float32) <= thresholds, middle, np.nextafter(middle, -np.inf))
    return np.where(np.isposinf(thresholds), np.inf, below)


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """Columns of bins, conditions on them, and the conditions of each node."""

    column_features: NDArray[np.int32]
    threshold_bounds: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    range_bounds: NDArray[np.int64]
    range_lows: NDArray[np.uint8]
    range_widths: NDArray[np.uint8]
    set_bounds: NDArray[np.int64]
    set_bits: NDArray[np.uint8]
    nodes: Sequence[Sequence[Ref]]
    """Slots for each node; a row goes left where any of them holds."""

    @property
    def count(self) -> int:
        """How many conditions there are."""
        return len(self.range_lows) + len(self.set_bits)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    feature: int
    thresholds: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Tests:
    """Tests of bins: which nodes ask for them, their columns, and the bins that go left, bool [tests, 256]."""

    columns: NDArray[np.int64]
    left: NDArray[np.bool_]
    nodes: NDArray[np.int64]
    """Of pairs: the node …"""
    tests: NDArray[np.int64]
    """… and one of its tests."""


def collect_conditions(nodes: Nodes) -> Conditions:
    """Find the columns and the distinct conditions of a forest's nodes."""
    columns: list[_Column] = []
    parts = [_numeric_tests(nodes, columns), _category_tests(nodes, columns)]
    shift = len(parts[0].columns)
    tests = _Tests(
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.nodes for part in parts]),
        np.concatenate([parts[0].tests, parts[1].tests + shift]),
    )
    return _number(columns, tests, len(nodes.features))


def _numeric_tests(nodes: Nodes, columns: list[_Column]) -> _Tests:
    """One test for each distinct numeric decision; appends the columns they need."""
    numeric = np.flatnonzero(nodes.sets == NUMERIC)
    keys = np.stack(
        (
            nodes.features[numeric],
            (nodes.thresholds[numeric] + 0.0).view(np.int64),  # -0.0 and 0.0 are one threshold
            nodes.nan_left[numeric].astype(np.int64),
            nodes.zero[numeric],
        ),
        axis=1,
    )
    distinct, tests = np.unique(keys, axis=0, return_inverse=True)
    features, nan_left, zero = distinct[:, 0], distinct[:, 2].astype(bool), distinct[:, 3]
    thresholds = np.ascontiguousarray(distinct[:, 1]).view(np.float64)
    chosen = np.zeros(len(distinct), np.int64)
    last_left = np.zeros(len(distinct), np.int64)
    zero_bins = np.zeros(len(distinct), np.int64)
    for feature in np.unique(features):
        of_feature = np.flatnonzero(features == feature)
        around_zero = [BELOW_ZERO, ZERO_THRESHOLD] if zero[of_feature].any() else []
        wanted = np.unique(thresholds[of_feature])
        room = MAX_THRESHOLDS - len(around_zero)
        for chunk in np.split(wanted, np.arange(room, len(wanted), room)):
            held = np.unique(np.concatenate((chunk, around_zero)))
            inside = of_feature[(thresholds[of_feature] >= chunk[0]) & (thresholds[of_feature] <= chunk[-1])]
            chosen[inside] = len(columns)
            last_left[inside] = np.searchsorted(held, thresholds[inside])
            zero_bins[inside] = np.searchsorted(held, 0.0)
            columns.append(_Column(int(feature), held))
    left = np.arange(STEPS) <= last_left[:, np.newaxis]
    left[:, NAN_BIN] = nan_left
    forced = np.flatnonzero(zero != ZERO_AS_IS)
    left[forced, zero_bins[forced]] = zero[forced] == ZERO_LEFT
    return _Tests(chosen, left, numeric, tests.reshape(-1))


_ONE_CATEGORY: Final = np.zeros(1, np.int64)
"""Gives a column to a feature whose sets are all empty."""


def _category_tests(nodes: Nodes, columns: list[_Column]) -> _Tests:
    """One test for each category node and column that its set has categories in; appends the columns."""
    categorical = np.flatnonzero(nodes.sets != NUMERIC)
    chosen: list[int] = []
    left: list[NDArray[np.bool_]] = []
    pairs: list[tuple[int, int]] = []
    kinds = sorted(set(zip(nodes.features[categorical].tolist(), nodes.single[categorical].tolist(), strict=True)))
    for feature, single in kinds:
        of_feature = categorical[(nodes.features[categorical] == feature) & (nodes.single[categorical] == single)]
        wanted = np.unique(np.concatenate([nodes.categories[nodes.sets[node]] for node in of_feature]))
        for number, chunk in enumerate(_category_chunks(wanted if wanted.size else _ONE_CATEGORY)):
            held = np.unique(np.concatenate((_lower_ends(chunk, single), _lower_ends(chunk + 1, single))))
            bins = np.searchsorted(held, chunk.astype(np.float64))
            for node in of_feature:
                member = np.isin(chunk, nodes.categories[nodes.sets[node]], assume_unique=True)
                nan_left = nodes.nan_left[node] and number == 0  # one of the node's tests is enough to let NaN pass
                if member.any() or nan_left:
                    row = np.zeros(STEPS, np.bool_)
                    row[bins[member]] = True
                    row[NAN_BIN] = nan_left
                    pairs.append((int(node), len(chosen)))
                    chosen.append(len(columns))
                    left.append(row)
            columns.append(_Column(int(feature), held))
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return _Tests(
        np.array(chosen, np.int64),
        np.array(left, np.bool_).reshape(-1, STEPS),
        found[:, 0],
        found[:, 1],
    )


def _lower_ends(categories: NDArray[np.int64], single: bool) -> NDArray[np.float64]:
    """The largest number below each category; category 0 begins above -1, or at the numbers that round to 0."""
    if single:
        return single_threshold(np.nextafter(categories.astype(np.float32), np.float32(-np.inf)))
    return np.where(categories == 0, -1.0, np.nextafter(categories.astype(np.float64), -np.inf))


def _category_chunks(categories: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Runs of categories whose ends fit into one column; neighbours share an end."""
    ends = np.concatenate(([2], 1 + (np.diff(categories) > 1))) if categories.size else np.zeros(0, np.int64)
    start, used = 0, 0
    for position, more in enumerate(ends.tolist()):
        if used + more > MAX_THRESHOLDS:
            yield categories[start:position]
            start, used, more = position, 0, 2  # noqa: PLW2901  the first of a chunk has both ends to itself
        used += more
    if start < len(categories):
        yield categories[start:]


def _number(columns: Sequence[_Column], tests: _Tests, nodes: int) -> Conditions:
    """Merge equal tests, tell ranges from sets, and give each its slot."""
    bits = np.packbits(tests.left, axis=1, bitorder="little")
    rises = tests.left & ~np.roll(tests.left, 1, axis=1)
    constant = tests.left.all(axis=1) | ~tests.left.any(axis=1)
    is_range = rises.sum(axis=1) == 1
    keys = np.concatenate((tests.columns.astype(">u4").view(np.uint8).reshape(-1, 4), bits), axis=1)
    slots = np.where(tests.left[:, 0], 1, 0)
    found: list[NDArray[np.int64]] = []
    first = FIRST_CONDITION
    for wanted in (is_range & ~constant, ~is_range & ~constant):
        asked = np.flatnonzero(wanted)
        _, examples, numbers = np.unique(keys[asked], axis=0, return_index=True, return_inverse=True)
        slots[asked] = first + numbers.reshape(-1)
        first += len(examples)
        found.append(asked[examples])
    ranges, sets = found
    of_nodes: list[list[Ref]] = [[] for _ in range(nodes)]
    for node, slot in zip(tests.nodes.tolist(), slots[tests.tests].tolist(), strict=True):
        of_nodes[node].append(slot)
    bounds = np.arange(len(columns) + 1)
    return Conditions(
        column_features=np.array([column.feature for column in columns], np.int32),
        threshold_bounds=np.cumsum([0, *(len(column.thresholds) for column in columns)], dtype=np.int64),
        thresholds=np.concatenate([np.zeros(0), *(column.thresholds for column in columns)]),
        range_bounds=np.searchsorted(tests.columns[ranges], bounds).astype(np.int64),
        range_lows=rises[ranges].argmax(axis=1).astype(np.uint8),
        range_widths=(tests.left[ranges].sum(axis=1) - 1).astype(np.uint8),
        set_bounds=np.searchsorted(tests.columns[sets], bounds).astype(np.int64),
        set_bits=np.ascontiguousarray(bits[sets]),
        nodes=of_nodes,
    )
