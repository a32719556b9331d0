"""Recently shown items in this process, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MICROSECONDS = 1_000_000


def wall_clock_us() -> int:
    """Now, microseconds since 1970 UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """One user's items, distinct, latest first; never changed, so that readers need no lock."""

    keys: NDArray[np.uint64]
    times: NDArray[np.int64]

    def since(self, time_us: int) -> NDArray[np.uint64]:
        return self.keys[: np.count_nonzero(self.times >= time_us)]


_NOTHING = _Shown(np.empty(0, np.uint64), np.empty(0, np.int64))


class ShownLists:
    """Which items each user was shown lately, latest first.

    At most `per_user` items of at most `users` users are kept, 16 bytes each; the user untouched for longest goes
    first. An item shown again counts from the last time. Safe to use from several threads.

    Args:
        per_user: items per user, >= 1.
        users: users, >= 1.
        seconds: an item is forgotten this long after it was shown, > 0.
        clock: microseconds since 1970 UTC.
    """

    def __init__(self, *, per_user: int, users: int, seconds: float, clock: Callable[[], int] = wall_clock_us) -> None:
        self._per_user = per_user
        self._users = users
        self._lifetime_us = round(seconds * MICROSECONDS)
        self._clock = clock
        self._lock = threading.Lock()
        self._lists: OrderedDict[str, _Shown] = OrderedDict()
        """The user touched last is at the end."""

    def __len__(self) -> int:
        """How many users are remembered."""
        return len(self._lists)

    def record(self, user_id: str, item_keys: NDArray[np.uint64], time_us: int) -> None:
        """Remember that the items, best first, were shown at `time_us` (microseconds UTC)."""
        if not item_keys.size:
            return
        oldest = self._clock() - self._lifetime_us
        with self._lock:
            merged = self._merge(self._lists.get(user_id, _NOTHING), item_keys, time_us, oldest)
            self._lists.pop(user_id, None)
            if merged.keys.size:
                self._lists[user_id] = merged
            while len(self._lists) > self._users:
                self._lists.popitem(last=False)

    def recent(self, user_id: str) -> NDArray[np.uint64]:
        """Keys of the items shown to the user lately, latest first."""
        oldest = self._clock() - self._lifetime_us
        with self._lock:
            shown = self._lists.get(user_id)
            if shown is None:
                return _NOTHING.keys
            recent = shown.since(oldest)
            if recent.size:
                self._lists.move_to_end(user_id)
            else:
                del self._lists[user_id]
        return recent

    def _merge(self, old: _Shown, item_keys: NDArray[np.uint64], time_us: int, oldest: int) -> _Shown:
        keys = np.concatenate([item_keys.astype(np.uint64, copy=False), old.keys])
        times = np.concatenate([np.full(item_keys.size, time_us, np.int64), old.times])
        latest_first = np.argsort(-times, kind="stable")  # answers may be recorded in another order than given
        keys, times = keys[latest_first], times[latest_first]
        _, first_seen = np.unique(keys, return_index=True)
        kept = np.sort(first_seen)[: self._per_user]
        kept = kept[times[kept] >= oldest]
        return _Shown(keys[kept], times[kept])
