"""The requests of a scenario for a bundle and its users, as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.json_format import MessageToJson
from numpy.typing import NDArray

from recserve.loadtest.generator.wire import Kind, Requests, header_block
from recserve.loadtest.workload.scenario import Filters, Method, Request, Scenario, ScenarioError
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.snapshot import Snapshot
from recserve.v1 import recommender_pb2 as pb

POOL: Final = 50_000
"""Distinct requests, at most; a longer run goes through them again."""

Message = pb.RecommendRequest | pb.SimilarItemsRequest | pb.RankItemsRequest

_ANSWERS: Final = {
    "Recommend": pb.RecommendResponse.DESCRIPTOR,
    "SimilarItems": pb.SimilarItemsResponse.DESCRIPTOR,
    "RankItems": pb.RankItemsResponse.DESCRIPTOR,
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where ids come from; None: there is none, and scenarios that need it are refused."""

    bundle: Bundle | None
    snapshot: Snapshot | None


def messages_of(scenario: Scenario, sources: Sources, count: int, seed: int) -> list[tuple[int, Message]]:
    """Requests in a seeded order, each with the place of its kind in `scenario.requests`.

    Raises:
        ScenarioError: the scenario needs users or items that `sources` do not have.
    """
    random = np.random.default_rng(seed)
    size = min(count, POOL)
    users = _users(scenario, sources, size, random)
    shares = np.array([each.share for each in scenario.requests])
    kinds = random.choice(len(shares), size, p=shares / shares.sum())
    makers = [_maker(each, sources, random) for each in scenario.requests]
    return [(int(kind), makers[kind](user)) for kind, user in zip(kinds, users, strict=True)]


def turned(messages: Sequence[tuple[int, Message]], places: int) -> Sequence[tuple[int, Message]]:
    """The same messages from another one on: what a run has asked already, the next one asks last."""
    first = places % len(messages)
    return [*messages[first:], *messages[:first]]


def serialise(
    scenario: Scenario, messages: Sequence[tuple[int, Message]], count: int, *, authority: str, deadlines: bool = True
) -> Requests:
    """So many requests for the generator.

    Args:
        scenario: that the messages are of.
        messages: as messages_of gives them.
        count: of requests.
        authority: host and port of the target.
        deadlines: whether requests have theirs.
    """
    kinds = [_kind(each, authority, deadlines=deadlines) for each in scenario.requests]
    return Requests.of(kinds, [(kind, message.SerializeToString()) for kind, message in messages[:count]], count)


def serialise_json(scenario: Scenario, messages: Sequence[tuple[int, Message]], count: int) -> Requests:
    """So many requests for the generator over HTTP: the same messages as proto JSON, posted to /v1/ and their method.

    Args:
        scenario: that the messages are of. Its deadlines do not go with them.
        messages: as messages_of gives them.
        count: of requests.
    """
    kinds = [
        Kind(f"/v1/{each.method}".encode(), each.least_items, degraded_field=0, times_field=0, timeout_ns=0)
        for each in scenario.requests
    ]
    bodies = ((kind, MessageToJson(each, preserving_proto_field_name=True, indent=None)) for kind, each in messages)
    return Requests.of(kinds, [(kind, body.encode()) for kind, body in itertools.islice(bodies, count)], count)


def _kind(request: Request, authority: str, *, deadlines: bool) -> Kind:
    fields = _ANSWERS[request.method].fields_by_name
    return Kind(
        headers=header_block(f"/recserve.v1.RecommenderService/{request.method}", authority),
        min_items=request.least_items,
        degraded_field=fields["degraded"].number,
        times_field=fields["times"].number,
        timeout_ns=int(request.deadline_ms * 1e6) if deadlines else 0,
    )


# ----------------------------------------------------------------------------------------------------------- users


def _users(scenario: Scenario, sources: Sources, size: int, random: np.random.Generator) -> list[str]:
    """Which user asks, by request. Who is most active has nothing to do with the order of the snapshot."""
    unknown = random.random(size) < scenario.users.unknown_share
    strangers = iter(f"stranger-{number:08x}" for number in random.integers(0, 2**32, int(unknown.sum())))
    if unknown.all():
        return list(strangers)
    if sources.snapshot is None:
        raise ScenarioError(
            "the users come from a snapshot, and there is none: give --snapshot, a --config that names one, or a "
            "scenario with users.unknown_share = 1"
        )
    known = min(sources.snapshot.size, scenario.users.limit)
    rows = random.permutation(sources.snapshot.size)[:known][zipf(known, scenario.users.zipf, size, random)]
    ids = sources.snapshot.user_ids(rows)
    return [next(strangers) if new else user for new, user in zip(unknown, ids, strict=True)]


def zipf(population: int, exponent: float, size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Ranks from 0, int64 [size]: rank k with probability in proportion to 1 / (k + 1) ** exponent."""
    weights = np.cumsum(np.arange(1, population + 1, dtype=np.float64) ** -exponent)
    ranks: NDArray[np.int64] = np.searchsorted(weights, random.random(size) * weights[-1], side="right")
    return ranks


# -------------------------------------------------------------------------------------------------------- requests


def _maker(request: Request, sources: Sources, random: np.random.Generator) -> Callable[[str], Message]:
    """What makes a request of this kind for a user."""
    needs_items = request.given_items or request.session_items or request.filter.exclude_items
    if (needs_items or request.filter.categories) and sources.bundle is None:
        raise ScenarioError("items and categories come from a bundle, and none is given: give --bundle or --config")
    makers: dict[Method, Callable[[Request, _Draw, str], Message]] = {
        "Recommend": _recommend,
        "SimilarItems": _similar,
        "RankItems": _rank,
    }
    draw = _Draw(sources.bundle, random)
    return lambda user: makers[request.method](request, draw, user)


class _Draw:
    """Draws items and categories of a bundle."""

    def __init__(self, bundle: Bundle | None, random: np.random.Generator) -> None:
        self._bundle = bundle
        self._random = random

    def items(self, count: int) -> list[str]:
        """So many different items, or all where there are fewer."""
        if self._bundle is None or not count:
            return []
        size = self._bundle.catalogue.size
        rows = self._random.choice(size, min(count, size), replace=False, shuffle=False)
        return self._bundle.catalogue.ids_of_rows(rows.astype(np.int64))

    def categories(self, count: int) -> list[str]:
        """So many different categories.

        Raises:
            ScenarioError: the bundle knows no categories.
        """
        if self._bundle is None or not count:
            return []
        column = self._bundle.catalogue.role("category")
        if not isinstance(column, CategoryColumn):
            raise ScenarioError(f"bundle {self._bundle.name} has no categories to draw from")
        names = column.vocabulary.values
        return [names[place] for place in self._random.choice(len(names), min(count, len(names)), replace=False)]

    def one_of(self, values: Sequence[str]) -> str:
        """One of them; of none, the empty text."""
        return values[int(self._random.integers(len(values)))] if values else ""


def _recommend(request: Request, draw: _Draw, user: str) -> Message:
    return pb.RecommendRequest(
        user_id=user,
        count=request.count,
        context=_context(request, draw),
        filter=_filter(request, draw),
        fields=request.fields,
    )


def _similar(request: Request, draw: _Draw, user: str) -> Message:
    return pb.SimilarItemsRequest(
        item_ids=draw.items(request.given_items),
        count=request.count,
        user_id=user,
        context=_context(request, draw),
        filter=_filter(request, draw),
        fields=request.fields,
    )


def _rank(request: Request, draw: _Draw, user: str) -> Message:
    return pb.RankItemsRequest(
        user_id=user,
        item_ids=draw.items(request.given_items),
        count=request.count,
        context=_context(request, draw),
        filter=_filter(request, draw),
        fields=request.fields,
    )


def _context(request: Request, draw: _Draw) -> pb.Context:
    return pb.Context(
        placement=request.placement,
        device=request.device,
        country=draw.one_of(request.countries),
        session_item_ids=draw.items(request.session_items),
    )


def _filter(request: Request, draw: _Draw) -> pb.Filter | None:
    """None where nothing is filtered: a caller who wants no filter sends none, not an empty one."""
    wanted = request.filter
    if wanted == Filters():
        return None
    given = {
        name: value
        for name in ("price_min", "price_max", "in_stock", "in_region", "exclude_purchased", "exclude_shown")
        if (value := getattr(wanted, name)) is not None
    }
    categories = [*wanted.include_categories, *draw.categories(wanted.categories)]
    return pb.Filter(exclude_item_ids=draw.items(wanted.exclude_items), include_categories=categories, **given)


def one_of_each(messages: Sequence[tuple[int, Message]]) -> Iterator[Message]:
    """The first request of every kind."""
    seen: set[int] = set()
    for kind, message in messages:
        if kind not in seen:
            seen.add(kind)
            yield message
