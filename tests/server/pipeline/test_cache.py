from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.server.pipeline.cache import NOTHING_KEPT, Cache, CacheLimits, CacheStats


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_one_unused_for_longest_makes_room(clock: Clock) -> None:
    cache: Cache[str, int] = Cache(CacheLimits(2, 10), clock)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    assert cache.stats == CacheStats(entries=2, hits=3, misses=1, evicted=1)


def test_nothing_is_answered_beyond_its_time(clock: Clock) -> None:
    cache: Cache[str, int] = Cache(CacheLimits(5, 10), clock)
    cache.put("a", 1)
    clock.now += 9.99
    assert cache.holds("a")
    assert cache.get("a") == 1  # which does not prolong it
    clock.now += 0.01
    assert not cache.holds("a")
    assert cache.get("a") is None
    assert cache.stats == CacheStats(entries=0, hits=1, misses=1, evicted=0)
    cache.put("a", 2)
    clock.now += 5
    cache.put("a", 3)
    clock.now += 9
    assert cache.get("a") == 3


def test_what_does_not_fit_is_forgotten(clock: Clock) -> None:
    cache: Cache[str, int] = Cache(CacheLimits(5, 10), clock)
    cache.put("a", 1)
    assert cache.get("a", lambda value: value == 2) is None
    assert not cache.holds("a")
    assert cache.stats == CacheStats(entries=0, hits=0, misses=1, evicted=0)


def test_without_room_nothing_is_kept() -> None:
    cache: Cache[str, int] = Cache(NOTHING_KEPT)
    cache.put("a", 1)
    assert cache.get("a") is None
    assert cache.stats == CacheStats(entries=0, hits=0, misses=1, evicted=0)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
@settings(deadline=None, max_examples=60)
def test_it_is_a_list_of_the_last_used(entries: int, steps: list[tuple[bool, int]]) -> None:
    cache: Cache[int, int] = Cache(CacheLimits(entries, 1e9))
    recent: list[int] = []
    for put, key in steps:
        if put:
            cache.put(key, -key)
        else:
            assert cache.get(key) == (-key if key in recent else None)
        if put or key in recent:
            recent = [*(each for each in recent if each != key), key][-entries:]
    assert cache.stats.entries == len(recent)


def test_threads_share_it() -> None:
    cache: Cache[int, int] = Cache(CacheLimits(16, 1e9))

    def work(seed: int) -> None:
        for step in range(2000):
            key = (seed * 7919 + step * 31) % 40
            value = cache.get(key)
            assert value in (None, -key)
            cache.put(key, -key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.stats.entries == 16
    assert cache.stats.hits + cache.stats.misses == 8000
