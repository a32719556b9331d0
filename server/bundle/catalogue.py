"""The item table of a bundle, and the one place that converts between an item's id, key and row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.columns import Column, Value
from recserve.server.bundle.strings import StringTable


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Items by row.

    Attributes:
        ids: the items' ids.
        features: float32 [items, item feature columns]: numbers and category codes; missing: NaN.
        times: int64 [items, item time columns]: microseconds since 1970 UTC; missing: the smallest int64.
        columns: attributes by name.
        roles: by part (category, price, in_stock, regions, flags, launch_time, popularity): a name in `columns`;
            parts that the catalogue does not have are absent.
        popular_rows: int64 [items]: every row, by popularity descending, ties and missing ones by row ascending.
    """

    ids: StringTable
    features: NDArray[np.float32]
    times: NDArray[np.int64]
    columns: Mapping[str, Column]
    roles: Mapping[str, str]
    popular_rows: NDArray[np.int64]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    def rows_of_ids(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, -1 where unknown."""
        return self.ids.rows_of(item_ids)

    def ids_of_rows(self, rows: NDArray[np.int64]) -> list[str]:
        """The id of each row."""
        return self.ids.strings(rows)

    def rows_of_keys(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of each item key, -1 where unknown."""
        return self.ids.rows_of_keys(keys)

    def keys_of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The item key of each row."""
        return self.ids.keys(rows)

    def role(self, part: str) -> Column | None:
        """The column that plays a part, None where the catalogue has none."""
        name = self.roles.get(part)
        return None if name is None else self.columns[name]

    def attributes(self, row: int, names: Iterable[str]) -> dict[str, Value]:
        """The named attributes of an item; missing ones are left out.

        Raises:
            KeyError: no such column.
        """
        values = ((name, self.columns[name].value(row)) for name in names)
        return {name: value for name, value in values if value is not None}
