"""Recently shown lists against a plain model, and their bounds."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.server.state.shown import MICROSECONDS, ShownLists


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000 * MICROSECONDS

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * MICROSECONDS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def lists(clock: Clock, *, per_user: int = 5, users: int = 3, seconds: float = 60) -> ShownLists:
    return ShownLists(per_user=per_user, users=users, seconds=seconds, clock=clock)


def test_latest_answer_comes_first_and_a_repeated_item_moves_to_the_front(clock: Clock) -> None:
    shown = lists(clock)
    shown.record("u", keys(1, 2, 3), clock.now)
    clock.advance(1)
    shown.record("u", keys(4, 2), clock.now)
    assert shown.recent("u").tolist() == [4, 2, 1, 3]
    assert shown.recent("u").dtype == np.uint64


def test_an_answer_recorded_late_keeps_its_place_in_time(clock: Clock) -> None:
    shown = lists(clock)
    shown.record("u", keys(4), clock.now)
    shown.record("u", keys(1), clock.now - 5 * MICROSECONDS)
    assert shown.recent("u").tolist() == [4, 1]


def test_an_unknown_user_was_shown_nothing(clock: Clock) -> None:
    shown = lists(clock)
    shown.record("v", keys(), clock.now)
    assert shown.recent("u").size == 0
    assert len(shown) == 0


def test_only_the_latest_items_of_a_user_are_kept(clock: Clock) -> None:
    shown = lists(clock, per_user=3)
    shown.record("u", keys(1, 2), clock.now)
    clock.advance(1)
    shown.record("u", keys(3, 4), clock.now)
    assert shown.recent("u").tolist() == [3, 4, 1]


def test_the_user_untouched_for_longest_is_forgotten_first(clock: Clock) -> None:
    shown = lists(clock, users=2)
    shown.record("a", keys(1), clock.now)
    shown.record("b", keys(2), clock.now)
    shown.recent("a")
    shown.record("c", keys(3), clock.now)
    assert [shown.recent(user).tolist() for user in "abc"] == [[1], [], [3]]
    assert len(shown) == 2


def test_items_expire_one_by_one_and_an_expired_user_takes_no_room(clock: Clock) -> None:
    shown = lists(clock, seconds=60)
    shown.record("u", keys(1), clock.now)
    clock.advance(40)
    shown.record("u", keys(2), clock.now)
    clock.advance(20)
    assert shown.recent("u").tolist() == [2, 1]
    clock.advance(0.000_001)
    assert shown.recent("u").tolist() == [2]
    clock.advance(60)
    assert shown.recent("u").tolist() == []
    assert len(shown) == 0


def test_what_is_expired_when_it_is_recorded_takes_no_room(clock: Clock) -> None:
    shown = lists(clock, seconds=60)
    shown.record("u", keys(1), clock.now - 61 * MICROSECONDS)
    assert len(shown) == 0


def test_what_was_read_does_not_change_when_more_is_recorded(clock: Clock) -> None:
    shown = lists(clock)
    shown.record("u", keys(1, 2), clock.now)
    before = shown.recent("u")
    shown.record("u", keys(3, 1), clock.now)
    assert before.tolist() == [1, 2]


Event = tuple[str, list[int], int]
EVENTS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 6), max_size=4, unique=True), st.integers(1, 30)),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_equal_to_a_plain_model(events: list[Event]) -> None:
    clock = Clock()
    shown = lists(clock, per_user=4, users=10, seconds=60)
    model: dict[str, dict[int, int]] = {}
    for user, items, pause in events:
        shown.record(user, keys(*items), clock.now)
        old = {item: at for item, at in model.get(user, {}).items() if item not in items}
        model[user] = dict(list((dict.fromkeys(items, clock.now) | old).items())[:4])
        clock.advance(pause)
        fresh = {
            name: [i for i, at in kept.items() if at >= clock.now - 60 * MICROSECONDS] for name, kept in model.items()
        }
        assert {name: shown.recent(name).tolist() for name in model} == fresh


def test_threads_lose_nothing(clock: Clock) -> None:
    shown = lists(clock, per_user=1000, users=8)

    def show(start: int) -> None:
        for item in range(start, start + 50):
            shown.record("u", keys(item), clock.now)
            shown.recent("u")

    threads = [threading.Thread(target=show, args=(start,)) for start in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shown.recent("u").tolist()) == list(range(400))
