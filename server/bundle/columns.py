"""Item attributes: mapped arrays with their values as Python sees them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import MISSING_TIME

Value: TypeAlias = float | int | bool | str | datetime.datetime | tuple[str, ...]
"""An attribute's value: number, integer, flag, category or string, time (UTC), categories."""

ScalarT = TypeVar("ScalarT", bound=np.generic)

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Vocabulary:
    """Category values with their codes: a value's code is its position.

    Args:
        name: such as "category".
        values: distinct; the trained models depend on their order.
    """

    def __init__(self, name: str, values: Sequence[str]) -> None:
        self.name = name
        self.values = tuple(values)
        self._codes = {value: code for code, value in enumerate(self.values)}
        if len(self._codes) != len(self.values):
            raise ValueError(f"vocabulary {name!r} holds a value twice")

    def code(self, value: str) -> int:
        """The value's code, -1 where the vocabulary does not hold it."""
        return self._codes.get(value, -1)

    def __len__(self) -> int:
        return len(self.values)


def as_stored(values: NDArray[np.generic], dtype: np.dtype[ScalarT]) -> NDArray[ScalarT]:
    """An item column's values as `items/features.npy` and `items/times.npy` hold them.

    Args:
        values: numbers, integers, flags or times, or int32 category codes.
        dtype: of the file. In float32, numbers are rounded, those beyond it are infinite, codes are exact (there are
            not that many), and a missing category is NaN.

    Returns:
        The values in that type.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype)
    if values.dtype == np.int32:
        stored[values.astype(np.int32) < 0] = np.nan
    return stored


@dataclass(frozen=True, slots=True, eq=False)
class NumberColumn:
    """float64 [items]; missing: NaN."""

    name: str
    values: NDArray[np.float64]

    def value(self, row: int) -> float | None:
        """The row's number, None where missing."""
        number = float(self.values[row])
        return None if np.isnan(number) else number


@dataclass(frozen=True, slots=True, eq=False)
class IntegerColumn:
    """int64 [items]; never missing."""

    name: str
    values: NDArray[np.int64]

    def value(self, row: int) -> int | None:
        """The row's integer."""
        return int(self.values[row])


@dataclass(frozen=True, slots=True, eq=False)
class CategoryColumn:
    """int32 [items] codes of the vocabulary; missing: -1."""

    name: str
    codes: NDArray[np.int32]
    vocabulary: Vocabulary

    def value(self, row: int) -> str | None:
        """The row's category, None where missing."""
        code = int(self.codes[row])
        return None if code < 0 else self.vocabulary.values[code]


@dataclass(frozen=True, slots=True, eq=False)
class CategoriesColumn:
    """Lists of codes of the vocabulary: row i has codes[offsets[i]:offsets[i + 1]]; missing: empty."""

    name: str
    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    vocabulary: Vocabulary

    def value(self, row: int) -> tuple[str, ...] | None:
        """The row's categories, None where there are none."""
        codes = self.codes[self.offsets[row] : self.offsets[row + 1]].tolist()
        return tuple(self.vocabulary.values[code] for code in codes) or None


@dataclass(frozen=True, slots=True, eq=False)
class TimeColumn:
    """int64 [items] microseconds since 1970 UTC; missing: the smallest int64."""

    name: str
    values: NDArray[np.int64]

    def value(self, row: int) -> datetime.datetime | None:
        """The row's time in UTC, None where missing."""
        time_us = int(self.values[row])
        return None if time_us == MISSING_TIME else _EPOCH + datetime.timedelta(microseconds=time_us)


@dataclass(frozen=True, slots=True, eq=False)
class FlagColumn:
    """uint8 [items], 0 or 1; never missing."""

    name: str
    values: NDArray[np.uint8]

    def value(self, row: int) -> bool | None:
        """The row's flag."""
        return bool(self.values[row])


@dataclass(frozen=True, slots=True, eq=False)
class StringColumn:
    """UTF-8 strings: row i has utf8[offsets[i]:offsets[i + 1]]; missing: empty."""

    name: str
    offsets: NDArray[np.int64]
    utf8: NDArray[np.uint8]

    def value(self, row: int) -> str | None:
        """The row's string, None where missing."""
        return self.utf8[self.offsets[row] : self.offsets[row + 1]].tobytes().decode() or None


Column: TypeAlias = (
    NumberColumn | IntegerColumn | CategoryColumn | CategoriesColumn | TimeColumn | FlagColumn | StringColumn
)
