"""Times the filters of requests over a catalogue that is large and otherwise empty."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.loadtest.results import Measurement, time_call
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    FlagColumn,
    NumberColumn,
    Vocabulary,
)
from recserve.server.bundle.strings import StringTable
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.filters import Filters
from recserve.server.pipeline.orders import RowsByCode
from recserve.server.pipeline.types import History, ItemFilter, UserState, no_rows

CATEGORIES, REGIONS, FLAGS = 1000, 30, 4
EXCLUDED = 200


def measure_filters(items: int, runs: int, random: np.random.Generator) -> Iterator[Measurement]:
    """Measure the mask of five conditions and 200 excluded items, and that of a category that was never asked for.

    The five are 30% of the categories, stock, a region, a flag, and a price range that no request had before.

    Args:
        items: rows of the item table.
        runs: timed calls, times ten.
        random: of the data.
    """
    filters = _filters(items, random)
    columns = ColumnValues.missing(ColumnLayout(()), 1)
    subject = Subject(
        time_us=0,
        known=True,
        user=columns,
        context=columns,
        history=History.empty(),
        history_rows=no_rows(),
        recent_rows=no_rows(),
    )
    state = UserState(known=True, columns=columns)
    wanted = iter([_wanted(items, random) for _ in range(20 * runs)])  # more than are timed: there is a warm-up
    cold = iter([ItemFilter(include_categories=np.array([code], np.int32)) for code in range(CATEGORIES)])

    def mask(requests: Iterator[ItemFilter]) -> None:
        filters.release(filters.mask(next(requests), subject, state))

    mask(wanted)  # makes the bitmaps of the conditions with few values
    times = time_call(lambda: mask(wanted), runs=10 * runs)
    yield Measurement(name="recserve filter mask", params={"items": items, "conditions": 5}, milliseconds=times)
    times = time_call(lambda: mask(cold), runs=min(10 * runs, CATEGORIES - 100))
    yield Measurement(name="recserve filter mask, a new category", params={"items": items}, milliseconds=times)


def _wanted(items: int, random: np.random.Generator) -> ItemFilter:
    low = float(random.uniform(0, 50))
    return ItemFilter(
        exclude_rows=np.unique(random.integers(0, items, EXCLUDED)),
        include_categories=np.arange(300, dtype=np.int32),
        price_min=low,
        price_max=low + float(random.uniform(5, 100)),
        in_stock=True,
        region=3,
        exclude_flags=np.array([0], np.int32),
    )


def _filters(items: int, random: np.random.Generator) -> Filters:
    codes = random.integers(-1, CATEGORIES, items).astype(np.int32)
    columns: dict[str, Column] = {
        "category": CategoryColumn("category", codes, _vocabulary("category", CATEGORIES)),
        "price": NumberColumn("price", random.exponential(50, items)),
        "in_stock": FlagColumn("in_stock", (random.random(items) < 0.9).astype(np.uint8)),
        "regions": CategoriesColumn("regions", *_lists(items, 4, REGIONS, random), _vocabulary("regions", REGIONS)),
        "flags": CategoriesColumn("flags", *_lists(items, 2, FLAGS, random), _vocabulary("flags", FLAGS)),
    }
    catalogue = Catalogue(
        ids=_nameless(items),
        features=np.empty((items, 0), np.float32),
        times=np.empty((items, 0), np.int64),
        columns=columns,
        roles={name: name for name in columns},
        popular_rows=random.permutation(items),
    )
    return Filters(catalogue, -1, RowsByCode(codes, CATEGORIES, catalogue.popular_rows))


def _nameless(items: int) -> StringTable:
    """As many empty ids: filters only count them."""
    keys, slots = np.arange(items, dtype=np.uint64), np.zeros(2, np.uint32)
    return StringTable(np.empty(0, np.uint8), np.zeros(items + 1, np.int64), keys, slots)


def _vocabulary(name: str, size: int) -> Vocabulary:
    return Vocabulary(name, [str(code) for code in range(size)])


def _lists(
    items: int, most: int, values: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets and codes of lists of 0 to `most` - 1 values."""
    sizes = random.integers(0, most, items)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return offsets, random.integers(0, values, int(offsets[-1])).astype(np.int32)
