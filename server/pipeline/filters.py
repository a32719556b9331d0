"""From an `ItemFilter` to a mask over item rows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import filters as kernel
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoriesColumn, CategoryColumn, FlagColumn, NumberColumn
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.types import ItemFilter, Rows, UserState, no_rows

Mask = NDArray[np.uint8]
"""1 where an item may be answered."""

ColumnT = TypeVar("ColumnT")

PURCHASE_EVENT = "purchase"
"""The event type that `exclude_purchased` refers to."""


def item_mask(
    catalogue: Catalogue,
    item_filter: ItemFilter,
    subject: Subject,
    state: UserState,
    *,
    purchase_code: int,
    rows: Rows | None = None,
) -> Mask:
    """Which items pass.

    Args:
        catalogue: the bundle's items.
        item_filter: the conditions.
        subject: whose purchases count for `exclude_purchased`.
        state: whose shown list counts for `exclude_shown`.
        purchase_code: code of PURCHASE_EVENT in the schema's event types, -1 where it has none.
        rows: the items to test; None: all.

    Returns:
        One byte per item of `rows`, or per row of the catalogue.

    Raises:
        TypeError: a condition needs a role that the catalogue does not have.
    """
    mask = np.ones(catalogue.size if rows is None else rows.size, np.uint8)
    _apply_categories(mask, catalogue, item_filter, rows)
    _apply_price(mask, catalogue, item_filter, rows)
    _apply_availability(mask, catalogue, item_filter, rows)
    excluded = _excluded_rows(catalogue, item_filter, subject, state, purchase_code)
    if excluded.size:
        kernel.drop_rows(mask, excluded, rows)
    return mask


def _role(catalogue: Catalogue, part: str, kind: type[ColumnT]) -> ColumnT:
    """The column that plays a part; whoever made the filter has checked that there is one."""
    column = catalogue.role(part)
    if not isinstance(column, kind):
        raise TypeError(f"the filter needs a {kind.__name__} in the role {part!r}; the catalogue has {column!r}")
    return column


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


def _excluded_rows(
    catalogue: Catalogue, wanted: ItemFilter, subject: Subject, state: UserState, purchase_code: int
) -> Rows:
    """Rows that are excluded one by one, ascending and distinct."""
    parts = [wanted.exclude_rows]
    if wanted.exclude_purchased:
        parts.append(subject.history_rows[subject.history.events == purchase_code])
    if wanted.exclude_shown:
        parts.append(catalogue.rows_of_keys(state.shown))
    if not any(part.size for part in parts):
        return no_rows()
    rows = np.unique(np.concatenate(parts))
    return rows[rows >= 0]


def _code_set(codes: NDArray[np.int32], cardinality: int) -> NDArray[np.uint8]:
    """Membership by code."""
    members = np.zeros(cardinality, np.uint8)
    members[codes] = 1
    return members
