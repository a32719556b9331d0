"""Filters over a catalogue of their own, against NumPy over plain columns."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoriesColumn, CategoryColumn, FlagColumn, NumberColumn, Vocabulary
from recserve.server.pipeline import filters as module
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.filters import Filters
from recserve.server.pipeline.orders import RowsByCode, RowsByNumber
from recserve.server.pipeline.types import History, ItemFilter, UserState, no_rows

ITEMS = 1500
CATEGORIES, REGIONS, FLAGS = 12, 5, 3
PURCHASE = 2


class Keys:
    """Items' ids whose keys are their rows."""

    def __len__(self) -> int:
        return ITEMS

    def rows_of_keys(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        rows = keys.astype(np.int64)
        return np.where(rows < ITEMS, rows, -1)


def lists(rng: np.random.Generator, most: int, values: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    sizes = rng.integers(0, most, ITEMS)
    return np.concatenate([[0], np.cumsum(sizes)]), rng.integers(0, values, sizes.sum()).astype(np.int32)


def vocabulary(name: str, size: int) -> Vocabulary:
    return Vocabulary(name, [str(code) for code in range(size)])


@pytest.fixture(name="catalogue", scope="module")
def fixture_catalogue() -> Catalogue:
    rng = np.random.default_rng(1)
    prices = np.round(rng.exponential(30, ITEMS), 0)  # with ties
    prices[::17] = np.nan
    columns = {
        "category": CategoryColumn(
            "category", rng.integers(-1, CATEGORIES, ITEMS).astype(np.int32), vocabulary("category", CATEGORIES)
        ),
        "price": NumberColumn("price", prices),
        "in_stock": FlagColumn("in_stock", (rng.random(ITEMS) < 0.7).astype(np.uint8)),
        "regions": CategoriesColumn("regions", *lists(rng, 3, REGIONS), vocabulary("region", REGIONS)),
        "flags": CategoriesColumn("flags", *lists(rng, 2, FLAGS), vocabulary("flag", FLAGS)),
    }
    empty = np.empty((ITEMS, 0))
    return Catalogue(
        Keys(),  # type: ignore[arg-type]
        empty.astype(np.float32),
        empty.astype(np.int64),
        columns,
        {name: name for name in columns},
        rng.permutation(ITEMS),
    )


def filters_of(catalogue: Catalogue, *, by_rows: bool = True) -> Filters:
    column = catalogue.columns["category"]
    assert isinstance(column, CategoryColumn)
    listed = RowsByCode(column.codes, CATEGORIES, catalogue.popular_rows) if by_rows else None
    return Filters(catalogue, PURCHASE, listed)


@pytest.fixture(name="filters")
def fixture_filters(catalogue: Catalogue) -> Filters:
    return filters_of(catalogue)


@pytest.fixture(name="shared", scope="module", params=[True, False], ids=["by rows", "by scan"])
def fixture_shared(request: pytest.FixtureRequest, catalogue: Catalogue) -> Filters:
    """Used by many requests, as in a server."""
    return filters_of(catalogue, by_rows=request.param)


def subject_of(bought: list[int]) -> Subject:
    columns = ColumnValues.missing(ColumnLayout(()), 1)
    rows = np.array([*bought, *([3] if bought else [])], np.int64)
    events = np.full(rows.size, PURCHASE, np.int32)
    events[len(bought) :] = 0  # a view of item 3
    history = History(rows.astype(np.uint64), events, np.ones(rows.size), np.zeros(rows.size, np.int64))
    return Subject(
        time_us=0, known=True, user=columns, context=columns, history=history, history_rows=rows, recent_rows=no_rows()
    )


def state_of(shown: list[int]) -> UserState:
    columns = ColumnValues.missing(ColumnLayout(()), 1)
    return UserState(known=True, columns=columns, shown=np.array(shown, np.uint64))


def codes(size: int) -> st.SearchStrategy[NDArray[np.int32] | None]:
    some = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True)
    return st.none() | some.map(lambda found: np.array(sorted(found), np.int32))


ROWS = st.lists(st.integers(0, ITEMS - 1), max_size=20, unique=True)
WANTED = st.builds(
    ItemFilter,
    exclude_rows=ROWS.map(lambda rows: np.array(sorted(rows), np.int64)),
    include_categories=codes(CATEGORIES),
    exclude_categories=codes(CATEGORIES),
    price_min=st.none() | st.integers(0, 90).map(float),
    price_max=st.none() | st.integers(0, 120).map(float),
    in_stock=st.booleans(),
    region=st.none() | st.integers(-1, REGIONS - 1),
    exclude_purchased=st.booleans(),
    exclude_shown=st.booleans(),
    exclude_flags=codes(FLAGS),
)


def expected(catalogue: Catalogue, wanted: ItemFilter, bought: list[int], shown: list[int]) -> NDArray[np.bool_]:
    """Item by item, as the contract words it."""
    columns = catalogue.columns
    passes = np.ones(ITEMS, np.bool_)
    for row in range(ITEMS):
        category, price = columns["category"].value(row), columns["price"].value(row)
        regions, flags = columns["regions"].value(row) or (), columns["flags"].value(row) or ()
        names = {name: getattr(wanted, name) for name in ("include_categories", "exclude_categories", "exclude_flags")}
        listed = {name: None if each is None else set(map(str, each.tolist())) for name, each in names.items()}
        passes[row] = not (
            (listed["include_categories"] is not None and category not in listed["include_categories"])
            or (listed["exclude_categories"] is not None and category in listed["exclude_categories"])
            or (wanted.price_min is not None and not (price is not None and price >= wanted.price_min))
            or (wanted.price_max is not None and not (price is not None and price <= wanted.price_max))
            or (wanted.in_stock and not columns["in_stock"].value(row))
            or (wanted.region is not None and regions and str(wanted.region) not in regions)
            or (listed["exclude_flags"] is not None and listed["exclude_flags"] & set(flags))
        )
    passes[wanted.exclude_rows] = False
    passes[bought if wanted.exclude_purchased else []] = False
    passes[shown if wanted.exclude_shown else []] = False
    return passes


@given(wanted=WANTED, bought=ROWS, shown=ROWS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_masks_say_what_the_contract_says(
    shared: Filters, catalogue: Catalogue, wanted: ItemFilter, bought: list[int], shown: list[int], seed: int
) -> None:
    subject, state = subject_of(bought), state_of([*shown, ITEMS + 7])
    truth = expected(catalogue, wanted, bought, shown)
    mask = shared.mask(wanted, subject, state)
    everything = np.ones(ITEMS, np.bool_) if mask is None else bitmaps.unpack(mask, ITEMS)
    assert np.array_equal(everything, truth)
    assert mask is None or bitmaps.count(mask) == truth.sum()  # no bits behind the last row
    shared.release(mask)
    rows = np.random.default_rng(seed).integers(0, ITEMS, 50)
    assert np.array_equal(shared.passing(wanted, subject, state, rows), truth[rows])


def test_no_condition_is_no_mask(filters: Filters) -> None:
    assert filters.mask(ItemFilter(exclude_purchased=True, exclude_shown=True), subject_of([]), state_of([])) is None


def test_a_mask_is_used_again_once_it_is_released(filters: Filters) -> None:
    wanted = ItemFilter(price_max=20.0, in_stock=True)
    first = filters.mask(wanted, subject_of([]), state_of([]))
    second = filters.mask(wanted, subject_of([]), state_of([]))
    assert first is not None
    assert second is not None
    assert not np.shares_memory(first, second)
    filters.release(first)
    assert filters.mask(ItemFilter(price_min=5.0), subject_of([]), state_of([])) is first


def test_a_kept_bitmap_is_never_handed_out_for_writing(filters: Filters) -> None:
    kept = filters.mask(ItemFilter(in_stock=True), subject_of([]), state_of([]))
    assert kept is not None
    assert not kept.flags.writeable
    before = kept.copy()
    filters.release(kept)
    other = filters.mask(ItemFilter(in_stock=True, exclude_rows=np.arange(ITEMS)), subject_of([]), state_of([]))
    assert other is not None
    assert bitmaps.count(other) == 0
    assert np.array_equal(kept, before)


@pytest.mark.parametrize("listed", [1, CATEGORIES - 1])
def test_kept_bitmaps_stay_within_their_budget(filters: Filters, monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    """With their keys, of 4 bytes a category, and what else an entry takes."""
    entry = 8 * bitmaps.words_of(ITEMS) + 4 * listed + module.ENTRY_BYTES
    monkeypatch.setattr(module, "CACHED_BYTES", 4 * entry - 1)
    everything = np.arange(CATEGORIES, dtype=np.int32)
    for code in range(CATEGORIES):
        chosen = np.sort(np.roll(everything, code)[:listed])
        filters.mask(ItemFilter(include_categories=chosen), subject_of([]), state_of([]))
        assert len(filters._cached) == min(code + 1, 3)


def test_kept_bitmaps_take_what_is_counted(filters: Filters) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for listed in islice(combinations(range(CATEGORIES), 4), 400):
            filters.mask(ItemFilter(exclude_categories=np.array(listed, np.int32)), subject_of([]), state_of([]))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert filters._cached_bytes == pytest.approx(taken, rel=0.1)


def test_a_condition_without_its_column_is_refused(catalogue: Catalogue) -> None:
    bare = Catalogue(catalogue.ids, catalogue.features, catalogue.times, {}, {}, catalogue.popular_rows)
    filters = Filters(bare, PURCHASE)
    for wanted in (ItemFilter(price_min=1.0), ItemFilter(in_stock=True), ItemFilter(region=1)):
        with pytest.raises(TypeError, match="role"):
            filters.mask(wanted, subject_of([]), state_of([]))


def test_threads_agree(filters: Filters) -> None:
    wanted = [ItemFilter(price_min=float(low), in_stock=True, exclude_rows=np.arange(low)) for low in range(40)]

    def counted(each: ItemFilter) -> int:
        mask = filters.mask(each, subject_of([]), state_of([]))
        assert mask is not None
        found = bitmaps.count(mask)
        filters.release(mask)
        return found

    alone = [counted(each) for each in wanted]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(counted, wanted * 5)) == alone * 5


# --------------------------------------------------------------------------------------------------------------- orders


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, np.nan, np.inf, -np.inf]), max_size=700),
    st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.2, 9.0]),
    st.sampled_from([-5.0, 0.0, 2.0, 2.5, np.inf]),
)
@settings(max_examples=60, deadline=None)
def test_ranges_of_numbers_with_ties(numbers: list[float], low: float, high: float) -> None:
    values = np.array(numbers, np.float64)
    out = np.full(bitmaps.words_of(values.size), 5, np.uint64)
    RowsByNumber(values).between(low, high, out)
    assert np.array_equal(bitmaps.unpack(out, values.size), (values >= low) & (values <= high))


def test_any_range_of_many_numbers() -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(3, 1, 20_000)
    values[::9] = np.nan
    order, out = RowsByNumber(values), np.empty(bitmaps.words_of(values.size), np.uint64)
    for low, span in zip(rng.uniform(0, 100, 200), rng.exponential(30, 200), strict=True):
        order.between(low, low + span, out)
        assert np.array_equal(bitmaps.unpack(out, values.size), (values >= low) & (values <= low + span))


def test_rows_by_code_keep_their_order() -> None:
    rng = np.random.default_rng(4)
    found, order = rng.integers(-1, 4, 500).astype(np.int32), rng.permutation(500)
    listed = RowsByCode(found, 5, order)
    for code in range(5):
        assert listed.rows(code).tolist() == [row for row in order.tolist() if found[row] == code]
