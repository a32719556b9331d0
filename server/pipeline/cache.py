"""A bounded cache for several threads: what was used last stays, and nothing is answered from beyond its time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is kept, and for how long."""

    entries: int
    """0: nothing is kept."""
    seconds: float
    """Since it was put in."""


NOTHING_KEPT = CacheLimits(0, 0.0)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has been asked so far, and what it holds now."""

    entries: int
    hits: int
    misses: int
    evicted: int
    """To make room for others."""


class _Entry(NamedTuple, Generic[ValueT]):
    value: ValueT
    until: float


class Cache(Generic[KeyT, ValueT]):
    """At most `limits.entries` values, each for `limits.seconds`; the one unused for longest makes room.

    Safe to use from several threads at once.

    Args:
        limits: the bounds.
        clock: seconds that only grow.
    """

    def __init__(self, limits: CacheLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[KeyT, _Entry[ValueT]] = OrderedDict()
        """The one used last is at the end."""
        self._hits = self._misses = self._evicted = 0

    @property
    def stats(self) -> CacheStats:
        """As of now."""
        with self._lock:
            return CacheStats(len(self._entries), self._hits, self._misses, self._evicted)

    def get(self, key: KeyT, fits: Callable[[ValueT], bool] = lambda _: True) -> ValueT | None:
        """The value of a key; None, which counts as a miss, where there is none.

        Args:
            key: of the value.
            fits: whether the value may still be used; one that may not is forgotten. Called under the lock: quick.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._clock() < entry.until and fits(entry.value):
                self._hits += 1
                self._entries.move_to_end(key)
                return entry.value
            self._misses += 1
            self._entries.pop(key, None)
            return None

    def holds(self, key: KeyT) -> bool:
        """Whether there is a value that `get` might answer; neither a hit nor a miss."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and self._clock() < entry.until

    def put(self, key: KeyT, value: ValueT) -> None:
        """Keep a value, in place of the key's former one."""
        if not self._limits.entries:
            return
        with self._lock:
            self._entries[key] = _Entry(value, self._clock() + self._limits.seconds)
            self._entries.move_to_end(key)
            while len(self._entries) > self._limits.entries:
                self._entries.popitem(last=False)
                self._evicted += 1
