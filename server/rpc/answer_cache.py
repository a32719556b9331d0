"""Whole answers of Recommend, kept for requests that would get the same again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.server.pipeline.cache import Cache, CacheLimits, CacheStats
from recserve.server.pipeline.types import Result, StageTimes, UserState
from recserve.v1 import recommender_pb2 as pb

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

NOT_SHAPING: Final = ("request_id", "record_shown")
"""Fields of a RecommendRequest that its answer does not depend on."""


def request_key(request: pb.RecommendRequest) -> bytes:
    """Equal only for requests of one answer, as far as they say: same user, bundle, and everything that shapes it.

    What the server is configured with is the same for all of them. A request that names no time stands for every time
    within the cache's.
    """
    shaping = pb.RecommendRequest()
    shaping.CopyFrom(request)
    for name in NOT_SHAPING:
        shaping.ClearField(name)
    return blake2b(shaping.SerializeToString(deterministic=True), digest_size=16).digest()


def state_version(state: UserState) -> bytes:
    """Equal only for equal states: events, other features and what was shown meanwhile all give another."""
    content = blake2b(bytes([state.known]), digest_size=16)
    for each in _arrays(state):
        content.update(each.size.to_bytes(8))
        content.update(each.tobytes())
    return content.digest()


def _arrays(state: UserState) -> Iterator[NDArray[np.generic]]:
    columns, history = state.columns, state.history
    yield from (columns.numbers, columns.codes, columns.times, columns.list_codes, columns.list_offsets)
    yield from (history.keys, history.events, history.counts, history.last_us)
    yield state.shown


class _Held(NamedTuple):
    pipeline: weakref.ref[Pipeline]
    """Of the answer's rows; a replaced bundle is not kept alive."""
    version: bytes
    result: Result


class AnswerCache:
    """Results by request, each good for one state of its user and one bundle. Used on the event loop.

    A request has one entry. When its user's state or its bundle is another, the entry is dropped; so whoever has none
    needs no state to know that it must be computed.

    Args:
        limits: of what is kept.
    """

    def __init__(self, limits: CacheLimits) -> None:
        self._held: Cache[bytes, _Held] = Cache(limits)

    @property
    def stats(self) -> CacheStats:
        """What has been answered from it."""
        return self._held.stats

    def holds(self, key: bytes) -> bool:
        """Whether `get` may find something."""
        return self._held.holds(key)

    def get(self, key: bytes, version: bytes, pipeline: Pipeline) -> Result | None:
        """The answer to a request, without times; None: it must be computed.

        Args:
            key: the request's `request_key`.
            version: its user's `state_version`.
            pipeline: that would compute it.
        """
        held = self._held.get(key, lambda held: held.version == version and held.pipeline() is pipeline)
        return None if held is None else held.result

    def put(self, key: bytes, version: bytes, pipeline: Pipeline, result: Result) -> None:
        """Keep what was computed; the arguments are those of `get`."""
        timeless = replace(result, times=StageTimes())
        self._held.put(key, _Held(weakref.ref(pipeline), version, timeless))
