"""From an `ItemFilter` to masks over item rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.kernels import filters as kernel
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoriesColumn, CategoryColumn, FlagColumn, NumberColumn
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.types import ItemFilter, Rows, UserState, no_rows

Mask: TypeAlias = NDArray[np.uint64]
"""The bitmap of the items that may be answered; see `recserve.kernels.bitmaps`."""
ColumnT = TypeVar("ColumnT")

PURCHASE_EVENT = "purchase"
"""The event type that `exclude_purchased` refers to."""
CACHED_MASKS = 8
"""Masks kept of conditions on items alone, one bit an item each: placements ask for the same few again and again."""


class Filters:
    """Tests a bundle's items against filters. Safe to use from several threads at once.

    Args:
        catalogue: the items.
        purchase_code: code of PURCHASE_EVENT in the schema's event types, -1 where it has none.
    """

    def __init__(self, catalogue: Catalogue, purchase_code: int) -> None:
        self._catalogue = catalogue
        self._purchase_code = purchase_code
        self._cached: OrderedDict[tuple[object, ...], Mask] = OrderedDict()
        self._lock = threading.Lock()

    def mask(self, wanted: ItemFilter, subject: Subject, state: UserState) -> Mask | None:
        """Which items pass, as a bitmap; None where all do. Not to be written to.

        Args:
            wanted: the conditions.
            subject: whose purchases count for `exclude_purchased`.
            state: whose shown list counts for `exclude_shown`.

        Raises:
            TypeError: a condition needs a role that the catalogue does not have.
        """
        shared = self._item_mask(wanted)
        excluded = self._excluded_rows(wanted, subject, state)
        if not excluded.size:
            return shared
        mask = bitmaps.full(self._catalogue.size) if shared is None else shared.copy()
        bitmaps.drop_rows(mask, excluded)
        return mask

    def passing(self, wanted: ItemFilter, subject: Subject, state: UserState, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` pass, without looking at the rest of the catalogue; otherwise as `mask`."""
        mask = bitmaps.full(rows.size)
        _apply_conditions(mask, self._catalogue, wanted, rows)
        passing = bitmaps.unpack(mask, rows.size)
        excluded = self._excluded_rows(wanted, subject, state)
        if excluded.size:
            nearest = np.minimum(np.searchsorted(excluded, rows), excluded.size - 1)
            passing &= excluded[nearest] != rows
        return passing

    def _item_mask(self, wanted: ItemFilter) -> Mask | None:
        """The part that depends on items alone: made once for all requests that have it in common."""
        key = _conditions(wanted)
        if not any(part is not None for part in key):
            return None
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
                return self._cached[key]
        mask = bitmaps.full(self._catalogue.size)
        _apply_conditions(mask, self._catalogue, wanted, None)
        mask.flags.writeable = False
        with self._lock:
            self._cached[key] = mask
            if len(self._cached) > CACHED_MASKS:
                self._cached.popitem(last=False)
        return mask

    def _excluded_rows(self, wanted: ItemFilter, subject: Subject, state: UserState) -> Rows:
        """Rows that are excluded one by one, ascending and distinct."""
        parts = [wanted.exclude_rows]
        if wanted.exclude_purchased:
            parts.append(subject.history_rows[subject.history.events == self._purchase_code])
        if wanted.exclude_shown:
            parts.append(self._catalogue.rows_of_keys(state.shown))
        if not any(part.size for part in parts):
            return no_rows()
        rows = np.unique(np.concatenate(parts))
        return rows[rows >= 0]


def _conditions(wanted: ItemFilter) -> tuple[object, ...]:
    """The conditions on items alone as a key; None for each that is absent."""
    codes = (wanted.include_categories, wanted.exclude_categories, wanted.exclude_flags)
    return (
        *(None if each is None else each.tobytes() for each in codes),
        wanted.price_min,
        wanted.price_max,
        wanted.in_stock or None,
        wanted.region,
    )


def _apply_conditions(mask: Mask, catalogue: Catalogue, wanted: ItemFilter, rows: Rows | None) -> None:
    _apply_categories(mask, catalogue, wanted, rows)
    _apply_price(mask, catalogue, wanted, rows)
    _apply_availability(mask, catalogue, wanted, rows)


def _apply_categories(mask: Mask, catalogue: Catalogue, wanted: ItemFilter, rows: Rows | None) -> None:
    if wanted.include_categories is None and wanted.exclude_categories is None:
        return
    column = _role(catalogue, "category", CategoryColumn)
    if wanted.include_categories is not None:
        kernel.keep_codes(mask, column.codes, _code_set(wanted.include_categories, len(column.vocabulary)), rows)
    if wanted.exclude_categories is not None:
        kernel.drop_codes(mask, column.codes, _code_set(wanted.exclude_categories, len(column.vocabulary)), rows)


def _apply_price(mask: Mask, catalogue: Catalogue, wanted: ItemFilter, rows: Rows | None) -> None:
    if wanted.price_min is None and wanted.price_max is None:
        return
    low = -np.inf if wanted.price_min is None else wanted.price_min
    high = np.inf if wanted.price_max is None else wanted.price_max
    kernel.keep_range(mask, _role(catalogue, "price", NumberColumn).values, low, high, rows)


def _apply_availability(mask: Mask, catalogue: Catalogue, wanted: ItemFilter, rows: Rows | None) -> None:
    if wanted.in_stock:
        kernel.keep_flag(mask, _role(catalogue, "in_stock", FlagColumn).values, rows)
    if wanted.region is not None:
        regions = _role(catalogue, "regions", CategoriesColumn)
        kernel.keep_listed(mask, regions.offsets, regions.codes, wanted.region, rows)
    if wanted.exclude_flags is not None:
        flags = _role(catalogue, "flags", CategoriesColumn)
        forbidden = _code_set(wanted.exclude_flags, len(flags.vocabulary))
        kernel.drop_any(mask, flags.offsets, flags.codes, forbidden, rows)


def _role(catalogue: Catalogue, part: str, kind: type[ColumnT]) -> ColumnT:
    """The column that plays a part; whoever made the filter has checked that there is one."""
    column = catalogue.role(part)
    if not isinstance(column, kind):
        raise TypeError(f"the filter needs a {kind.__name__} in the role {part!r}; the catalogue has {column!r}")
    return column


def _code_set(codes: NDArray[np.int32], cardinality: int) -> NDArray[np.uint8]:
    """Membership by code."""
    members = np.zeros(cardinality, np.uint8)
    members[codes] = 1
    return members
