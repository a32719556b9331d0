"""The embedded store against the snapshot that it maps, and the ties between snapshots and bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from recserve.kernels.features import MISSING_CODE, MISSING_TIME
from recserve.server.bundle.errors import BundleMismatchError, BundleNotFoundError
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.bundle.strings import keys_of
from recserve.server.config import StateSettings
from recserve.server.pipeline.types import UserState
from recserve.server.state import StateStore, StateUnavailableError
from recserve.server.state.embedded import EmbeddedStore, open_users
from recserve.server.state.shown import wall_clock_us

Make = Callable[..., Path]
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def fetch(store: StateStore, user_ids: Sequence[str]) -> list[UserState]:
    states = store.fetch(user_ids)
    assert isinstance(states, list), "it has them at hand: nobody has to wait"
    return states


@pytest.fixture
def store(tiny_bundle: Make, tiny_snapshot: Make) -> StateStore:
    made = EmbeddedStore.from_settings(StateSettings())
    made.serve(open_users(tiny_snapshot(), {"default": open_bundle(tiny_bundle())}))
    return made


def same(state: UserState, other: UserState) -> bool:
    return state.known == other.known and all(
        np.array_equal(getattr(owner, name), getattr(twin, name), equal_nan=name == "numbers")
        for owner, twin, names in (
            (state.columns, other.columns, ("numbers", "codes", "times", "list_codes", "list_offsets")),
            (state.history, other.history, ("keys", "events", "counts", "last_us")),
        )
        for name in names
    )


def test_known_users_are_the_snapshots(store: StateStore, tmp_path: Path) -> None:
    snapshot = open_snapshot(tmp_path / "snapshot")
    ids = snapshot.user_ids(np.arange(snapshot.size, dtype=np.int64))
    states = fetch(store, ids)
    for row, state in enumerate(states):
        stored = snapshot.state(row)
        history = state.history
        assert state.known
        assert np.array_equal(state.columns.numbers, stored.columns.numbers, equal_nan=True)
        assert (history.keys.tolist(), history.last_us.tolist()) == (stored.keys.tolist(), stored.last_us.tolist())
        assert (history.events.tolist(), history.counts.tolist()) == (stored.events.tolist(), stored.counts.tolist())
    assert states[0].history.keys.size > 0


def test_a_batch_is_one_by_one_whatever_its_order(store: StateStore) -> None:
    ids = ["user-07", "nobody", "user-00", "user-07", "", "user-49", "user-0"]
    for user_id, state in zip(ids, fetch(store, ids), strict=True):
        assert same(state, fetch(store, [user_id])[0])
    assert [state.known for state in fetch(store, ids)] == [True, False, True, True, False, True, False]
    assert fetch(store, []) == []


def test_an_unknown_user_has_missing_columns_and_no_history(store: StateStore) -> None:
    [state] = fetch(store, ["nobody"])
    columns = state.columns
    assert not state.known
    assert np.isnan(columns.numbers).all()
    assert (columns.codes == MISSING_CODE).all()
    assert (columns.times == MISSING_TIME).all()
    assert columns.list_codes.size == 0
    assert columns.numbers.shape == (1, 1)
    assert state.history.keys.size == 0


def test_without_a_snapshot_every_user_is_unknown(tiny_bundle: Make) -> None:
    store = EmbeddedStore.from_settings(StateSettings())
    store.serve(open_users(None, {"default": open_bundle(tiny_bundle())}))
    assert [state.known for state in fetch(store, ["user-00", "x"])] == [False, False]


def test_shown_items_belong_to_known_and_unknown_users(store: StateStore) -> None:
    keys = keys_of(["item-001", "item-002"])
    for user_id in ("user-00", "nobody"):
        run(store.record_shown(user_id, keys, wall_clock_us()))
    states = fetch(store, ["user-00", "user-01", "nobody"])
    assert [state.shown.tolist() for state in states] == [keys.tolist(), [], keys.tolist()]


def test_the_configured_bounds_hold(tiny_bundle: Make) -> None:
    store = EmbeddedStore.from_settings(StateSettings(shown_per_user=1, shown_users=1, shown_seconds=1000))
    store.serve(open_users(None, {"default": open_bundle(tiny_bundle())}))
    now = wall_clock_us()
    run(store.record_shown("a", keys_of(["x", "y"]), now))
    run(store.record_shown("b", keys_of(["x", "y"]), now))
    run(store.record_shown("b", keys_of(["z"]), now - 2000 * 1_000_000))
    assert [state.shown.tolist() for state in fetch(store, ["a", "b"])] == [[], keys_of(["x"]).tolist()]


def test_before_users_are_there_the_store_is_unavailable() -> None:
    with pytest.raises(StateUnavailableError, match="still being loaded"):
        fetch(EmbeddedStore.from_settings(StateSettings()), ["u"])


def test_new_users_replace_the_old_and_what_was_shown_is_kept(
    store: EmbeddedStore, tiny_bundle: Make, tmp_path: Path
) -> None:
    run(store.record_shown("user-00", keys_of(["x"]), wall_clock_us()))
    store.serve(open_users(None, {"default": open_bundle(tiny_bundle(target=tmp_path / "next"))}))
    [state] = fetch(store, ["user-00"])
    assert (state.known, state.shown.size) == (False, 1)


# ------------------------------------------------------------------------------------------------------------- ties


def test_a_snapshot_made_for_other_users_is_refused(
    tiny_bundle: Make, tiny_snapshot: Make, other_schema: dict[str, Any]
) -> None:
    bundle, snapshot = tiny_bundle(), tiny_snapshot(schema=other_schema)
    with pytest.raises(BundleMismatchError) as caught:
        open_users(snapshot, {"shop": open_bundle(bundle)})
    assert f'user snapshot 1 ({snapshot}) does not fit bundle "shop" (tiny 1)' in str(caught.value)


def test_bundles_that_differ_in_users_cannot_share_a_store(
    tiny_bundle: Make, other_schema: dict[str, Any], tmp_path: Path
) -> None:
    bundles = {
        "a": open_bundle(tiny_bundle()),
        "b": open_bundle(tiny_bundle(target=tmp_path / "b", version="2", schema=other_schema)),
    }
    with pytest.raises(BundleMismatchError) as caught:
        open_users(None, bundles)
    assert 'bundle "a" (tiny 1) and bundle "b" (tiny 2) differ in user columns' in str(caught.value)


def test_a_missing_snapshot(tiny_bundle: Make, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        open_users(tmp_path / "none", {"default": open_bundle(tiny_bundle())})
