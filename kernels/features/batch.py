"""The arrays that features are computed from. All are C-contiguous; `FeatureProgram.compute` checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features.specs import ColumnLayout, ColumnType

MISSING_CODE: Final = -1
"""A missing category."""
MISSING_TIME: Final = -(2**63)
"""A missing time."""

Override = float | int | Sequence[int]
"""A number, a category code, a time in microseconds, or a list of category codes."""


@dataclass(frozen=True, slots=True, eq=False)
class ColumnValues:
    """User or context columns of R requests, laid out by a `ColumnLayout`.

    Attributes:
        numbers: float64 [R, a]; missing: NaN.
        codes: int32 [R, b]; missing: MISSING_CODE.
        times: int64 [R, c], microseconds since 1970 UTC; missing: MISSING_TIME.
        list_codes: int32; the lists of all requests one after another: request by request, and by column within one.
        list_offsets: int64 [R * d + 1]; list l is list_codes[list_offsets[l]:list_offsets[l + 1]]; missing: empty.
    """

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    times: NDArray[np.int64]
    list_codes: NDArray[np.int32]
    list_offsets: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """R."""
        return len(self.numbers)

    @staticmethod
    def missing(layout: ColumnLayout, rows: int) -> ColumnValues:
        """Every column of every request missing."""
        return ColumnValues(
            np.full((rows, len(layout.numbers)), np.nan),
            np.full((rows, len(layout.codes)), MISSING_CODE, np.int32),
            np.full((rows, len(layout.times)), MISSING_TIME, np.int64),
            np.empty(0, np.int32),
            np.zeros(rows * len(layout.lists) + 1, np.int64),
        )

    @staticmethod
    def concat(parts: Sequence[ColumnValues]) -> ColumnValues:
        """The requests of all parts, in order. All parts have one layout.

        Raises:
            ValueError: no parts, or parts of different layouts.
        """
        if len(parts) == 1:
            return parts[0]
        list_offsets = [0]
        for part in parts:
            start = list_offsets[-1]
            list_offsets += [start + end for end in part.list_offsets[1:].tolist()]  # few: quicker than in NumPy
        return ColumnValues(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.list_codes for part in parts]),
            np.array(list_offsets, np.int64),
        )

    def row(self, index: int) -> ColumnValues:
        """One request, 0 <= index < R.

        Raises:
            IndexError: no such request.
        """
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        lists = (self.list_offsets.size - 1) // self.rows
        offsets = self.list_offsets[index * lists : (index + 1) * lists + 1]
        return ColumnValues(
            self.numbers[index : index + 1],
            self.codes[index : index + 1],
            self.times[index : index + 1],
            self.list_codes[offsets[0] : offsets[-1]],
            offsets - offsets[0],
        )

    def with_overrides(self, layout: ColumnLayout, values: Mapping[str, Override]) -> ColumnValues:
        """A copy in which the named columns have the given values in every request.

        Raises:
            KeyError: a name that the layout lacks.
            TypeError: a value of another type than its column.
        """
        if not values:
            return self
        numbers, codes, times = self.numbers.copy(), self.codes.copy(), self.times.copy()
        lists: dict[int, Sequence[int]] = {}
        for name, value in values.items():
            kind, index = layout[name]
            if kind == "categories":
                lists[index] = _code_list(name, value)
            elif kind == "number":
                numbers[:, index] = _scalar(name, kind, value)
            else:
                (codes if kind == "category" else times)[:, index] = _scalar(name, kind, value)
        return ColumnValues(numbers, codes, times, *self._replace_lists(len(layout.lists), lists))

    def _replace_lists(
        self, width: int, replaced: Mapping[int, Sequence[int]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if not replaced:
            return self.list_codes, self.list_offsets
        kept = np.split(self.list_codes, self.list_offsets[1:-1])
        lists = [np.asarray(replaced.get(i % width, old), np.int32) for i, old in enumerate(kept[: self.rows * width])]
        offsets = np.cumsum([0, *(codes.size for codes in lists)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.int32), *lists]), offsets


def _scalar(name: str, kind: ColumnType, value: Override) -> float | int:
    whole = kind != "number"
    if isinstance(value, (int, np.integer)) or (isinstance(value, (float, np.floating)) and not whole):
        return value
    raise TypeError(f'column "{name}" of type {kind} cannot be {value!r}: it takes {"an int" if whole else "a float"}')


def _code_list(name: str, value: Override) -> Sequence[int]:
    if isinstance(value, Sequence) and all(isinstance(code, (int, np.integer)) for code in value):
        return value
    raise TypeError(f'column "{name}" of type categories cannot be {value!r}: it takes a sequence of codes')


@dataclass(frozen=True, slots=True, eq=False)
class ItemArrays:
    """What features read of the N items; the arrays may be mapped files. A program that has seen them trusts them.

    Attributes:
        features: float32 [N, a]: `FeatureSchema.item_feature_columns`; category codes as floats; missing: NaN.
        times: int64 [N, b]: `FeatureSchema.item_time_columns`, microseconds since 1970 UTC; missing: MISSING_TIME.
        vectors: by space, float32 [N, dim of the space]; at least the spaces that the schema names.
    """

    features: NDArray[np.float32]
    times: NDArray[np.int64]
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureBatch:
    """R requests with n candidates in all. Offsets start at 0 and never descend; the last is the length they cut.

    Attributes:
        offsets: int64 [R + 1]; request r has candidates offsets[r]:offsets[r + 1].
        rows: int64 [n]; item rows of the candidates.
        time_us: int64 [R]; the requests' times, microseconds since 1970 UTC.
        known: bool or uint8 [R]; whether the user is known. The history of an unknown user is missing, not empty.
        user: the user columns.
        context: the context columns.
        history_offsets: int64 [R + 1]; cuts the history arrays by request.
        history_rows: int64; item row of each entry, -1 for an item that this bundle does not know.
        history_events: int32; codes of the schema's `event_types`.
        history_counts: float64; how many events of that type on that item.
        history_last_us: int64; the last of them, microseconds since 1970 UTC.
        recent_offsets: int64 [R + 1]; cuts `recent_rows` by request.
        recent_rows: int64; the users' recent items, latest first, distinct (`recent_items`); -1 is skipped.
        source_scores: float32 [n, S], in the order of `FeatureSchema.sources`; NaN: not proposed by it.
        source_ranks: float32 [n, S], 1 is the source's best; NaN likewise.
        user_vectors: by space, float32 [R, dim]; NaN: no vector. At least the spaces of the schema's `dot` features.
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    time_us: NDArray[np.int64]
    known: NDArray[np.bool_] | NDArray[np.uint8]
    user: ColumnValues
    context: ColumnValues
    history_offsets: NDArray[np.int64]
    history_rows: NDArray[np.int64]
    history_events: NDArray[np.int32]
    history_counts: NDArray[np.float64]
    history_last_us: NDArray[np.int64]
    recent_offsets: NDArray[np.int64]
    recent_rows: NDArray[np.int64]
    source_scores: NDArray[np.float32]
    source_ranks: NDArray[np.float32]
    user_vectors: Mapping[str, NDArray[np.float32]]


def recent_items(session_rows: NDArray[np.int64], history_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The user's recent items: the session's, then the history's, latest first; distinct, unknown ones (-1) left out.

    Args:
        session_rows: int64; the session's items, latest first.
        history_rows: int64; the history's items, latest first.
    """
    rows = history_rows.tolist()
    distinct = dict.fromkeys(session_rows.tolist() + rows if session_rows.size else rows)  # quicker than np.unique
    distinct.pop(-1, None)
    return np.fromiter(distinct, np.int64, len(distinct))
