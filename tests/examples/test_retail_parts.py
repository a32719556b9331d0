"""The retail example's parts: nothing looks past its cut-off, and what trains is what serves."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from examples.online_retail.__main__ import main
from examples.online_retail.clean import Events, clean
from examples.online_retail.content import describe
from examples.online_retail.figures import BEGIN, END, renew
from examples.online_retail.items import YEAR_US, items_at
from examples.online_retail.split import DAY_US, WINDOW_US, split
from examples.online_retail.users import users_at
from recserve.exporters.errors import TableError
from recserve.kernels.features import MISSING_TIME

ROOT = Path(__file__).parents[2]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra [torch]")


@pytest.fixture(scope="module")
def events(shop: pa.Table) -> Events:
    return clean(shop)[0]


def another_future(events: Events, time_us: int) -> Events:
    """The same until a time; behind it, customers, items and prices are exchanged at random."""
    rng, later = np.random.default_rng(1), np.flatnonzero(events.time_us >= time_us)
    changed = {name: getattr(events, name).copy() for name in ("user", "item", "price")}
    for values in changed.values():
        values[later] = rng.permutation(values[later])
    return dataclasses.replace(events, **changed)


def test_windows_follow_one_another_and_end_with_the_data(events: Events) -> None:
    cuts = split(events, 2)
    starts = [*reversed(cuts.training), cuts.validation, cuts.test]
    assert np.diff(starts).tolist() == [WINDOW_US] * 3
    assert cuts.test + WINDOW_US - 1_000_000 <= events.time_us[-1] < cuts.test + WINDOW_US


def test_a_file_of_a_few_days_is_refused(events: Events) -> None:
    days = events.before(int(events.time_us[0]) + 90 * DAY_US)
    with pytest.raises(TableError, match=r"span \d\d days: expected at least 140, for 1 training windows"):
        split(days, 1)


@needs_torch
def test_nothing_at_a_cut_off_knows_the_future(events: Events) -> None:
    from examples.online_retail.als import AlsSettings  # noqa: PLC0415
    from examples.online_retail.moment import Settings, Shop, build_at  # noqa: PLC0415
    from examples.online_retail.twotower import TowerSettings  # noqa: PLC0415

    settings = Settings(als=AlsSettings(factors=4), towers=TowerSettings(dim=8, hidden=8, epochs=1, moments=3))
    cut = split(events, 1).test
    first, second = (
        build_at(Shop(each), cut, "1", settings, lambda: None) for each in (events, another_future(events, cut))
    )
    assert first.bundle.catalogue.items.equals(second.bundle.catalogue.items)
    assert first.users.users.equals(second.users.users)
    assert first.users.history.table.equals(second.users.history.table)
    assert first.bundle.sources.together.table.equals(second.bundle.sources.together.table)
    for one, other in zip(first.bundle.spaces, second.bundle.spaces, strict=True):
        for field in ("item_vectors", "user_vectors"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    for tower in ("user_tower", "item_tower"):
        one, other = (getattr(each.bundle.spaces[0], tower).model.state_dict() for each in (first, second))
        assert all(one[name].equal(other[name]) for name in one)
    changed = build_at(Shop(another_future(events, cut - WINDOW_US)), cut, "1", settings, lambda: None)
    assert not changed.users.users.equals(first.users.users)  # so the comparison can fail


def test_the_state_of_items_and_users_by_brute_force(events: Events) -> None:
    cut = split(events, 1).test
    its, theirs, past = items_at(events, cut), users_at(events, cut), events.before(cut)
    for item in (0, 17, 99):
        mine = past.item == item
        recent = mine & (past.time_us >= cut - 28 * DAY_US)
        assert its.numbers["buyers_28d"][item] == np.unique(past.user[recent]).size
        assert its.times["last_sold"][item] == past.time_us[mine].max()
        assert its.numbers["price"][item] == past.price[mine][-1]
    assert np.isnan(its.numbers["buyers_last_year"]).all()  # the data begins later
    for user in (0, 42, 149):
        mine = past.user == user
        assert theirs.numbers["orders"][user] == np.unique(past.invoice[mine]).size
        assert theirs.numbers["items"][user] == np.unique(past.item[mine]).size
        assert theirs.numbers["value"][user] == pytest.approx((past.price * past.quantity)[mine].sum())
        assert theirs.times["first_order"][user] == past.time_us[mine].min()
        history = theirs.history.user == user
        assert theirs.history.last_us[history].tolist() == sorted(theirs.history.last_us[history], reverse=True)
        for item, count in zip(theirs.history.item[history], theirs.history.count[history], strict=True):
            assert count == np.unique(past.invoice[mine & (past.item == item)]).size


def test_before_the_first_event_nothing_is_known(events: Events) -> None:
    its, theirs = items_at(events, int(events.time_us[0])), users_at(events, int(events.time_us[0]))
    assert not its.sold.any()
    assert not theirs.known.any()
    assert all(np.isnan(values).all() for values in (*its.numbers.values(), *theirs.numbers.values()))
    assert all((times == MISSING_TIME).all() for times in (*its.times.values(), *theirs.times.values()))


def test_seasons_are_those_of_a_year_ago(events: Events) -> None:
    """A second year in front of the data, with the same sales: what comes next is known from it."""
    cut = split(events, 1).test
    columns = ("user", "item", "country", "quantity", "price", "description")
    earlier = dataclasses.replace(
        events,
        **{name: np.tile(getattr(events, name), 2) for name in columns},
        invoice=np.concatenate([events.invoice, events.invoice + events.invoice.max() + 1]),
        time_us=np.concatenate([events.time_us - YEAR_US, events.time_us]),
    )  # fmt: skip
    window = events.between(cut, cut + WINDOW_US)
    expected = [np.unique(window.user[window.item == item]).size for item in range(len(events.items))]
    assert items_at(earlier, cut).numbers["buyers_last_year"].tolist() == expected


def test_descriptions_become_directions_and_categories() -> None:
    words = [f"{colour} {thing}" for thing in ("mug", "lantern", "towel") for colour in ("red", "blue", "green")] * 30
    content = describe([*words, "%%%"], seed=0)
    assert np.linalg.norm(content.vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    by_word = dict(zip(words, content.vectors, strict=False))
    assert by_word["red mug"] @ by_word["blue mug"] > by_word["red mug"] @ by_word["blue towel"]
    assert len(set(content.category)) == 4


@needs_torch
def test_towers_are_trained_on_what_they_are_served(events: Events) -> None:
    """The arrays that train the user tower hold what the exported tower's inputs are filled with."""
    from examples.online_retail.als import AlsSettings  # noqa: PLC0415
    from examples.online_retail.moment import Settings, Shop, build_at  # noqa: PLC0415
    from examples.online_retail.twotower import (  # noqa: PLC0415
        RECENT,
        USER_INPUTS,
        TowerSettings,
        item_numbers,
        recent_rows,
        user_numbers,
    )
    from recserve.exporters.catalogue import read_items  # noqa: PLC0415
    from recserve.exporters.snapshot import read_users  # noqa: PLC0415
    from recserve.kernels.features import ColumnLayout  # noqa: PLC0415

    settings = Settings(als=AlsSettings(factors=4), towers=TowerSettings(dim=8, hidden=8, epochs=1, moments=2))
    cut = split(events, 1).test
    store = Shop(events)
    built = build_at(store, cut, "1", settings, lambda: None)
    its, theirs = store.state_at(cut)
    table = read_users(
        built.users, built.bundle.features, read_items(built.bundle.catalogue, built.bundle.features).vocabularies
    )
    layout = ColumnLayout(built.bundle.features.user)
    known = np.flatnonzero(theirs.known)
    numbers = user_numbers(theirs)[known]
    for column, name in enumerate(USER_INPUTS):
        kind, index = layout[name]
        served = table.columns.numbers[:, index] if kind == "number" else (cut - table.columns.times[:, index]) / DAY_US
        np.testing.assert_array_equal(numbers[:, column], np.nan_to_num(served).astype(np.float32))
    rows = np.flatnonzero(its.sold)
    items = built.bundle.catalogue.items
    for column, name in enumerate(built.bundle.spaces[0].item_tower.inputs[1].columns):
        np.testing.assert_array_equal(
            item_numbers(its)[rows, column],
            np.nan_to_num(items.column(name).to_numpy(zero_copy_only=False)).astype(np.float32),
        )
    row_of = np.full(len(events.items), -1)
    row_of[rows] = np.arange(rows.size)
    recent = recent_rows(theirs.history, row_of, known)
    for user, mine in zip(known, recent, strict=True):
        owned = row_of[theirs.history.item[theirs.history.user == user]]
        assert owned.size > RECENT or set(mine[mine > 0] - 1) == set(owned)


def test_the_readme_shows_the_stored_figures() -> None:
    readme = (ROOT / "examples/online_retail/README.md").read_text(encoding="utf-8")
    metrics = json.loads((ROOT / "docs/bench/retail.json").read_text(encoding="utf-8"))
    assert BEGIN in readme
    assert END in readme
    assert renew(readme, metrics) == readme


def test_without_pytorch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "examples.online_retail.run", None)
    assert main(["--data", "transactions.parquet"]) == 1
    assert "pip install 'recserve[cpu,export,torch]'" in capsys.readouterr().err
