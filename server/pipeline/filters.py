"""From an `ItemFilter` to bitmaps over item rows.

A request's mask is the intersection of one bitmap per condition on items, less the rows that are excluded one by one.
Conditions with few values (categories, flags, region, stock) have their bitmaps made once and kept within a budget, the
least recently used first to go; a range of prices is made anew for every request (see `RowsByNumber`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.kernels import filters as kernel
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoriesColumn, CategoryColumn, FlagColumn, NumberColumn
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.orders import RowsByCode, RowsByNumber
from recserve.server.pipeline.types import ItemFilter, Rows, UserState, no_rows

Mask: TypeAlias = NDArray[np.uint64]
"""The bitmap of the items that may be answered; see `recserve.kernels.bitmaps`."""
ColumnT = TypeVar("ColumnT")

PURCHASE_EVENT = "purchase"
"""The event type that `exclude_purchased` refers to."""
CACHED_BYTES: Final = 64 << 20
"""Of conditions' bitmaps with their keys, per bundle: 500 at a million items, 50 at ten million."""
ENTRY_BYTES: Final = 320
"""What an entry of theirs takes beside both: measured, since in a small catalogue it is most of it."""
SCAN_SHARE: Final = 8
"""Categories that hold one in this many items are found by a scan of the column, smaller ones by their rows."""
SCRATCH_MASKS: Final = 32
"""Masks kept for the requests to come: as many as are usually under way at once."""


@dataclass(frozen=True, slots=True)
class _Condition:
    """A condition on items alone.

    Attributes:
        key: equal for conditions that the same items pass.
        apply: clears what fails, as the functions of `recserve.kernels.filters` do.
    """

    key: tuple[str, object]
    apply: Callable[[Mask, Rows | None], None]


class Filters:
    """Tests a bundle's items against filters. Safe to use from several threads at once.

    Args:
        catalogue: the items.
        purchase_code: code of PURCHASE_EVENT in the schema's event types, -1 where it has none.
        by_category: rows by the code of the role "category", None where there is no such role.
    """

    def __init__(self, catalogue: Catalogue, purchase_code: int, by_category: RowsByCode | None = None) -> None:
        self._catalogue = catalogue
        self._purchase_code = purchase_code
        self._by_category = by_category
        price = catalogue.role("price")
        self._by_price = RowsByNumber(price.values) if isinstance(price, NumberColumn) else None
        self._cached: OrderedDict[tuple[str, object], Mask] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._scratch: list[Mask] = []

    def mask(self, wanted: ItemFilter, subject: Subject, state: UserState) -> Mask | None:
        """Which items pass, as a bitmap; None where all do. Not to be written to; `release` it after use.

        Args:
            wanted: the conditions.
            subject: whose purchases count for `exclude_purchased`.
            state: whose shown list counts for `exclude_shown`.

        Raises:
            TypeError: a condition needs a role that the catalogue does not have.
        """
        terms = [self._bitmap(each) for each in _conditions(self._catalogue, wanted)]
        bounds = _price_bounds(wanted)
        excluded = self._excluded_rows(wanted, subject, state)
        if bounds is None and not excluded.size and len(terms) < 2:
            return terms[0] if terms else None
        mask = self._take()
        if bounds is not None:
            self._prices().between(*bounds, mask)
            terms.append(mask)
        bitmaps.intersect(terms or [bitmaps.full(self._catalogue.size)], mask)
        bitmaps.drop_rows(mask, excluded)
        return mask

    def release(self, mask: Mask | None) -> None:
        """Take back a mask that nobody looks at any more, so that it need not be allocated again."""
        if mask is not None and mask.flags.writeable and len(self._scratch) < SCRATCH_MASKS:
            self._scratch.append(mask)

    def passing(self, wanted: ItemFilter, subject: Subject, state: UserState, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` pass, without looking at the rest of the catalogue; otherwise as `mask`."""
        mask = bitmaps.full(rows.size)
        for condition in _conditions(self._catalogue, wanted):
            condition.apply(mask, rows)
        bounds = _price_bounds(wanted)
        if bounds is not None:
            kernel.keep_range(mask, _role(self._catalogue, "price", NumberColumn).values, *bounds, rows)
        passing = bitmaps.unpack(mask, rows.size)
        excluded = self._excluded_rows(wanted, subject, state)
        if excluded.size:
            excluded = np.sort(excluded)
            nearest = np.minimum(np.searchsorted(excluded, rows), excluded.size - 1)
            passing &= excluded[nearest] != rows
        return passing

    def _take(self) -> Mask:
        """A mask with any contents."""
        try:
            return self._scratch.pop()
        except IndexError:
            return np.empty(bitmaps.words_of(self._catalogue.size), np.uint64)

    def _bitmap(self, condition: _Condition) -> Mask:
        """Of all items: made once for all requests that have the condition in common."""
        with self._lock:
            if condition.key in self._cached:
                self._cached.move_to_end(condition.key)
                return self._cached[condition.key]
        mask = self._make(condition)
        mask.flags.writeable = False
        with self._lock:
            if condition.key not in self._cached:  # another thread may have made it meanwhile
                self._cached[condition.key] = mask
                self._cached_bytes += _entry_bytes(condition.key, mask)
            while len(self._cached) > 1 and self._cached_bytes > CACHED_BYTES:
                self._cached_bytes -= _entry_bytes(*self._cached.popitem(last=False))
        return mask

    def _make(self, condition: _Condition) -> Mask:
        kind, codes = condition.key
        size = self._catalogue.size
        if self._by_category is not None and isinstance(codes, bytes) and kind != "flags":
            listed = np.frombuffer(codes, np.int32)
            if self._by_category.count(listed) * SCAN_SHARE < size:
                among = self._by_category.bitmap(listed, size)
                return among if kind == "include" else bitmaps.full(size) ^ among
        mask = bitmaps.full(size)
        condition.apply(mask, None)
        return mask

    def _prices(self) -> RowsByNumber:
        if self._by_price is None:
            raise TypeError("the filter has price bounds; the catalogue has no number column in the role 'price'")
        return self._by_price

    def _excluded_rows(self, wanted: ItemFilter, subject: Subject, state: UserState) -> Rows:
        """Rows that are excluded one by one, in any order, perhaps repeatedly."""
        parts = [wanted.exclude_rows] if wanted.exclude_rows.size else []
        if wanted.exclude_purchased:
            bought = subject.history_rows[subject.history.events == self._purchase_code]
            parts.append(bought[bought >= 0])
        if wanted.exclude_shown:
            shown = self._catalogue.rows_of_keys(state.shown)
            parts.append(shown[shown >= 0])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else no_rows()


def _entry_bytes(key: tuple[str, object], mask: Mask) -> int:
    """What a kept bitmap takes; its key has 4 bytes a value, of as many as a request may name."""
    _, value = key
    return mask.nbytes + (len(value) if isinstance(value, bytes) else 0) + ENTRY_BYTES


def _conditions(catalogue: Catalogue, wanted: ItemFilter) -> Iterator[_Condition]:
    """Those with few values, which are worth keeping; each needs a role, and whoever made the filter has checked it."""
    for kind, codes, apply in (
        ("include", wanted.include_categories, kernel.keep_codes),
        ("exclude", wanted.exclude_categories, kernel.drop_codes),
    ):
        if codes is not None:
            yield _category_condition(catalogue, kind, codes, apply)
    if wanted.in_stock:
        stock = _role(catalogue, "in_stock", FlagColumn)
        yield _Condition(("stock", True), lambda mask, rows: kernel.keep_flag(mask, stock.values, rows))
    if wanted.region is not None:
        yield _region_condition(catalogue, wanted.region)
    if wanted.exclude_flags is not None:
        yield _flags_condition(catalogue, wanted.exclude_flags)


def _category_condition(
    catalogue: Catalogue, kind: str, codes: NDArray[np.int32], apply: Callable[..., None]
) -> _Condition:
    column = _role(catalogue, "category", CategoryColumn)
    return _Condition(
        (kind, codes.tobytes()),
        lambda mask, rows: apply(mask, column.codes, _code_set(codes, len(column.vocabulary)), rows),
    )


def _region_condition(catalogue: Catalogue, region: int) -> _Condition:
    column = _role(catalogue, "regions", CategoriesColumn)
    return _Condition(
        ("region", region),
        lambda mask, rows: kernel.keep_listed(mask, column.offsets, column.codes, region, rows),
    )


def _flags_condition(catalogue: Catalogue, flags: NDArray[np.int32]) -> _Condition:
    column = _role(catalogue, "flags", CategoriesColumn)
    return _Condition(
        ("flags", flags.tobytes()),
        lambda mask, rows: kernel.drop_any(
            mask, column.offsets, column.codes, _code_set(flags, len(column.vocabulary)), rows
        ),
    )


def _price_bounds(wanted: ItemFilter) -> tuple[float, float] | None:
    """Inclusive; None where there are none."""
    if wanted.price_min is None and wanted.price_max is None:
        return None
    low = -np.inf if wanted.price_min is None else wanted.price_min
    return low, np.inf if wanted.price_max is None else wanted.price_max


def _role(catalogue: Catalogue, part: str, kind: type[ColumnT]) -> ColumnT:
    """The column that plays a part."""
    column = catalogue.role(part)
    if not isinstance(column, kind):
        raise TypeError(f"the filter needs a {kind.__name__} in the role {part!r}; the catalogue has {column!r}")
    return column


def _code_set(codes: NDArray[np.int32], cardinality: int) -> NDArray[np.uint8]:
    """Membership by code."""
    members = np.zeros(cardinality, np.uint8)
    members[codes] = 1
    return members
