from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from recserve.server.bundle.registry import BundleRegistry


def test_the_first_name_added_is_the_default() -> None:
    registry = BundleRegistry[str]()
    assert not registry.ready
    registry.add("stable", "bundle 1")
    registry.add("canary", "bundle 2")
    assert list(registry.ready.items()) == [("stable", "bundle 1"), ("canary", "bundle 2")]


def test_replacing_keeps_the_place_and_returns_what_was_there() -> None:
    registry = BundleRegistry[str]()
    registry.add("stable", "bundle 1")
    registry.add("canary", "bundle 2")
    assert registry.replace("stable", "bundle 3") == "bundle 1"
    assert list(registry.ready.items()) == [("stable", "bundle 3"), ("canary", "bundle 2")]


def test_removing_the_default_makes_the_next_one_it() -> None:
    registry = BundleRegistry[str]()
    registry.add("stable", "bundle 1")
    registry.add("canary", "bundle 2")
    assert registry.remove("stable") == "bundle 1"
    assert list(registry.ready.items()) == [("canary", "bundle 2")]


def test_what_was_seen_in_service_does_not_change_under_the_reader() -> None:
    registry = BundleRegistry[str]()
    registry.add("stable", "bundle 1")
    seen = registry.ready
    registry.add("canary", "bundle 2")
    registry.replace("stable", "bundle 3")
    registry.remove("stable")
    assert dict(seen) == {"stable": "bundle 1"}


def test_names_that_are_taken_empty_or_unknown_are_refused() -> None:
    registry = BundleRegistry[str]()
    registry.add("stable", "bundle 1")
    with pytest.raises(ValueError, match="is in service"):
        registry.add("stable", "bundle 2")
    with pytest.raises(ValueError, match="needs a name"):
        registry.add("", "bundle 2")
    with pytest.raises(KeyError, match="canary"):
        registry.replace("canary", "bundle 2")
    with pytest.raises(KeyError, match="canary"):
        registry.remove("canary")


def test_of_many_threads_that_add_one_name_one_succeeds() -> None:
    registry = BundleRegistry[int]()

    def add(number: int) -> bool:
        try:
            registry.add("stable", number)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(200))) == 1
