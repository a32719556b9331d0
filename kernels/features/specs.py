"""The parts of a feature schema: columns, features, and where a column's values lie in arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ColumnType = Literal["number", "category", "categories", "time"]
"""A number; a code of a vocabulary; an ordered list of codes, best first; microseconds since 1970 UTC."""

COLUMN_TYPES: Final[tuple[ColumnType, ...]] = get_args(ColumnType)
CATEGORY_TYPES: Final[tuple[ColumnType, ...]] = ("category", "categories")


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A user, context or item column that features may read.

    Columns that share a vocabulary share their codes: only those can be compared. For category and categories the
    vocabulary defaults to the column's name; other types have none.
    """

    name: str
    type: ColumnType
    vocabulary: str = ""

    def __post_init__(self) -> None:
        if self.type in CATEGORY_TYPES and not self.vocabulary:
            object.__setattr__(self, "vocabulary", self.name)


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One column of the ranker's input: an operation on sources. See recserve.kernels.features.operations."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Addresses such as "item.price", "source.ann.rank", "history.category", "space.als"."""
    event: str = ""
    """History operations: the event type to look at; empty: all of them."""
    last: int = 0
    """Similarities: how many of the most recent items to look at."""


@dataclass(frozen=True)
class ColumnLayout:
    """Where each column's values lie in a `ColumnValues`: columns of one type stand in schema order.

    Args:
        columns: the schema's user or context columns.
    """

    columns: tuple[ColumnSpec, ...]

    @cached_property
    def numbers(self) -> tuple[ColumnSpec, ...]:
        """Columns of `ColumnValues.numbers`."""
        return self._of("number")

    @cached_property
    def codes(self) -> tuple[ColumnSpec, ...]:
        """Columns of `ColumnValues.codes`."""
        return self._of("category")

    @cached_property
    def times(self) -> tuple[ColumnSpec, ...]:
        """Columns of `ColumnValues.times`."""
        return self._of("time")

    @cached_property
    def lists(self) -> tuple[ColumnSpec, ...]:
        """Columns of `ColumnValues.list_codes`."""
        return self._of("categories")

    @cached_property
    def places(self) -> dict[str, tuple[ColumnType, int]]:
        """By column name: its type, and its index among the columns of that type."""
        groups: Sequence[tuple[ColumnSpec, ...]] = (self.numbers, self.codes, self.times, self.lists)
        return {column.name: (column.type, index) for group in groups for index, column in enumerate(group)}

    def __getitem__(self, name: str) -> tuple[ColumnType, int]:
        return self.places[name]

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def _of(self, kind: ColumnType) -> tuple[ColumnSpec, ...]:
        return tuple(column for column in self.columns if column.type == kind)


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSizes:
    """What a `ColumnValues` of a layout holds.

    Attributes:
        numbers: how many number columns there are.
        codes: int64; by category column: the size of its vocabulary.
        times: how many time columns there are.
        lists: int64; by list column: the size of its vocabulary.
    """

    numbers: int
    codes: NDArray[np.int64]
    times: int
    lists: NDArray[np.int64]

    @staticmethod
    def of(layout: ColumnLayout, cardinalities: Mapping[str, int]) -> ColumnSizes:
        """The sizes of a layout's columns; every vocabulary has its cardinality."""
        codes, lists = (
            np.array([cardinalities[column.vocabulary] for column in columns], np.int64)
            for columns in (layout.codes, layout.lists)
        )
        return ColumnSizes(len(layout.numbers), codes, len(layout.times), lists)
