"""What the rankers learn from: sessions after a cut, with features from the state at it.

Nothing that a feature counts lies after the moment that is predicted. Of each session the rankers see what was shown,
and a sample of what the candidate sources propose, with the responses that the simulated user gives to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.choice import NOTHING, Shown
from recserve.exporters.demo.known import Known
from recserve.exporters.demo.marketplace import SHELF, Marketplace
from recserve.exporters.demo.state import CART, PURCHASE, State
from recserve.exporters.demo.towers import Tower, user_inputs
from recserve.exporters.demo.words import VOCABULARIES
from recserve.exporters.demo.world import DAY_US
from recserve.kernels.features import ColumnValues, FeatureProgram, FeatureSchema, ItemArrays
from recserve.kernels.vectors import search
from recserve.server.pipeline.assemble import Candidates, Subject, assemble
from recserve.server.pipeline.candidates import extend, union
from recserve.server.pipeline.sources import AGAIN, POPULAR, Proposal

CANDIDATES = 500
SOURCE_WEIGHTS = {"ann": 0.4, "als": 0.3, POPULAR: 0.15, AGAIN: 0.15}
"""Shares of the candidates; the demo's placements configure the same."""
OBJECTIVES = ("click", "purchase")
_SAMPLED = 15  # candidates per session beside what was shown
_BATCH = 256
_WITHHELD = 0.1  # share of sessions without context, so that the rankers learn to do without

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Retrieval:
    """What proposes candidates.

    Attributes:
        vectors: float32 [items, dim] by space.
        factors: float32 [users, factors]: the users' vectors in "als".
        has_factors: bool [users]; users without events have none.
        tower: the user tower of "ann".
    """

    vectors: Mapping[str, Floats32]
    factors: Floats32
    has_factors: NDArray[np.bool_]
    tower: Tower


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows of the rankers' matrix.

    Attributes:
        features: float32 [n, features].
        labels: float64 [n] by objective, 0 or 1.
        session: int64 [n], ascending.
        shown: bool [n]; False for sampled candidates.
        proposed: bool [n]; whether any source proposed the item.
    """

    features: Floats32
    labels: Mapping[str, NDArray[np.float64]]
    session: NDArray[np.int64]
    shown: NDArray[np.bool_]
    proposed: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[np.bool_]) -> Examples:
        labels = {objective: values[rows] for objective, values in self.labels.items()}
        return Examples(self.features[rows], labels, self.session[rows], self.shown[rows], self.proposed[rows])


class ExampleMaker:
    """Makes examples from the sessions of a marketplace, given what is known at a cut before them."""

    def __init__(
        self, market: Marketplace, state: State, known: Known, schema: FeatureSchema, retrieval: Retrieval
    ) -> None:
        self._market = market
        self._state = state
        self._known = known
        self._schema = schema
        self._retrieval = retrieval
        self._basket = _basket_values(market, state.time_us)
        self._items = ItemArrays(known.features, known.times, retrieval.vectors)
        self._dims = {name: vectors.shape[1] for name, vectors in retrieval.vectors.items()}
        self._program = FeatureProgram(schema, {name: len(values) for name, values in VOCABULARIES.items()})

    def make(self, sessions: NDArray[np.int64], rng: np.random.Generator, advance: Callable[[int], None]) -> Examples:
        """The examples of the sessions (rows, ascending); `advance` is told how many are done."""
        parts = []
        for batch in np.split(sessions, range(_BATCH, sessions.size, _BATCH)):
            parts.append(self._batch(batch, rng))
            advance(batch.size)
        labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in OBJECTIVES}
        return Examples(
            np.concatenate([part.features for part in parts]),
            labels,
            np.concatenate([part.session for part in parts]),
            np.concatenate([part.shown for part in parts]),
            np.concatenate([part.proposed for part in parts]),
        )

    def _batch(self, sessions: NDArray[np.int64], rng: np.random.Generator) -> Examples:
        subjects = self._subjects(sessions, rng)
        impressions = self._market.impressions
        bounds = np.searchsorted(impressions.session, [sessions, sessions + 1])
        shown = [impressions.item[low:high].astype(np.int64) for low, high in bounds.T]
        pairs = zip(self._candidates(subjects, sessions), shown, strict=True)
        chosen = [_choose(proposed, items, rng) for proposed, items in pairs]
        batch = assemble(self._schema, subjects, chosen, self._dims)
        session = np.repeat(sessions, np.diff(batch.offsets))
        place = np.arange(session.size) - np.repeat(batch.offsets[:-1], np.diff(batch.offsets))
        was_shown = place < np.repeat([items.size for items in shown], np.diff(batch.offsets))
        labels = self._respond(session, batch.rows, place, rng)
        recorded = np.concatenate([np.arange(low, high) for low, high in bounds.T])
        labels["click"][was_shown] = impressions.clicked[recorded]
        labels["purchase"][was_shown] = impressions.purchased[recorded]
        proposed = np.concatenate([(each.ranks > 0).any(axis=1) for each in chosen])
        return Examples(self._program.compute(self._items, batch), labels, session, was_shown, proposed)

    def _subjects(self, sessions: NDArray[np.int64], rng: np.random.Generator) -> list[Subject]:
        """The requests at the sessions' beginnings."""
        users, times = self._market.sessions.user[sessions], self._market.sessions.time_us[sessions]
        context = self._context(sessions, rng)
        ann = self._retrieval.tower.vectors(
            user_inputs(
                {name: column[users] for name, column in self._state.users.items()},
                [self._known.recent[user] for user in users],
                times,
            )
        )
        return [
            self._subject(user, time_us, context.row(index), ann[index])
            for index, (user, time_us) in enumerate(zip(users.tolist(), times.tolist(), strict=True))
        ]

    def _subject(self, user: int, time_us: int, context: ColumnValues, ann: Floats32) -> Subject:
        known = self._known
        registered = bool(known.registered[user])
        vectors = {"ann": ann} if registered else {}
        if registered and self._retrieval.has_factors[user]:
            vectors["als"] = self._retrieval.factors[user]
        return Subject(
            time_us=time_us,
            known=registered,
            user=known.users.row(user) if registered else ColumnValues.missing(self._schema.user_layout, 1),
            context=context,
            history=known.histories[user],
            history_rows=known.history_rows[user],
            recent_rows=known.recent[user],
            vectors=vectors,
        )

    def _context(self, sessions: NDArray[np.int64], rng: np.random.Generator) -> ColumnValues:
        """Device, country, language and basket; all of them withheld in some sessions."""
        users = self._market.world.users
        user = self._market.sessions.user[sessions]
        values = {
            "device": self._market.sessions.device[sessions],
            "country": users.country[user],
            "language": users.language[user],
        }
        withheld = rng.random(sessions.size) < _WITHHELD
        context = ColumnValues.missing(self._schema.context_layout, sessions.size)
        for name, codes in values.items():
            context.codes[:, self._schema.context_layout[name][1]] = np.where(withheld, -1, codes)
        basket = np.where(withheld, np.nan, self._basket[user])
        context.numbers[:, self._schema.context_layout["basket_value"][1]] = basket
        return context

    def _candidates(self, subjects: list[Subject], sessions: NDArray[np.int64]) -> Iterator[Candidates]:
        """What the sources propose together, as when the bundle is served without a filter."""
        nearest = {space: self._nearest(space, subjects) for space in ("ann", "als")}
        known = self._known
        popular = known.popular[:CANDIDATES]
        favourites = Proposal(popular, known.popularity[popular])
        names, weights = list(SOURCE_WEIGHTS), list(SOURCE_WEIGHTS.values())
        for index in range(sessions.size):
            proposals = {space: found[index] for space, found in nearest.items()}
            proposals |= {POPULAR: favourites, AGAIN: _own_items(subjects[index])}
            yield union(names, [proposals[name] for name in names], weights, CANDIDATES)

    def _nearest(self, space: str, subjects: list[Subject]) -> list[Proposal]:
        proposals = [Proposal.nothing()] * len(subjects)
        able = [index for index, subject in enumerate(subjects) if space in subject.vectors]
        if able:
            queries = np.stack([subjects[index].vectors[space] for index in able])
            found = search(self._retrieval.vectors[space], queries, CANDIDATES, None)
            for index, (rows, scores) in zip(able, found, strict=True):
                proposals[index] = Proposal(rows, scores)
        return proposals

    def _respond(
        self,
        session: NDArray[np.int64],
        rows: NDArray[np.int64],
        place: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> dict[str, NDArray[np.float64]]:
        """What the simulated users do with the candidates."""
        user, item = self._market.sessions.user[session], rows.astype(np.int32)
        past, past_us = self._past(user, item)
        shown = Shown(
            user=user,
            item=item,
            device=self._market.sessions.device[session],
            time_us=self._market.sessions.time_us[session],
            position=(place % SHELF).astype(np.int32),
            past=past,
            past_us=past_us,
        )
        responses = self._market.shoppers.respond(shown, rng)
        return {"click": responses.clicked.astype(np.float64), "purchase": responses.purchased.astype(np.float64)}

    def _past(self, user: NDArray[np.int32], item: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The furthest that each user went with each item before the cut, and when."""
        history, items = self._state.history, len(self._market.world.items.ids)
        # The table is in the order of (user, item, event): the last entry of a pair is the furthest event.
        entries = history.user * items + history.item
        wanted = user.astype(np.int64) * items + item
        found = np.searchsorted(entries, wanted, side="right") - 1
        there = (found >= 0) & (entries[found] == wanted)
        past = np.where(there, history.event[found], NOTHING).astype(np.int32)
        return past, np.where(there, history.last_us[found], 0)


def _own_items(subject: Subject) -> Proposal:
    """The user's own items, most frequent first; among equals the latest, as the source "again" proposes them."""
    if subject.history_rows.size == 0:
        return Proposal.nothing()
    rows, entry = np.unique(subject.history_rows, return_inverse=True)
    counts = np.bincount(entry, weights=subject.history.counts)
    last = np.full(rows.size, np.iinfo(np.int64).min)
    np.maximum.at(last, entry, subject.history.last_us)
    order = np.lexsort((rows, -last, -counts))[:CANDIDATES]
    return Proposal(rows[order], counts[order].astype(np.float32))


def _choose(proposed: Candidates, shown: NDArray[np.int64], rng: np.random.Generator) -> Candidates:
    """What was shown, in its order, then a sample of what was proposed beside it."""
    everything = extend(
        proposed, "shown", Proposal(shown, np.zeros(shown.size, np.float32)), proposed.rows.size + SHELF
    )
    rank = everything.ranks[:, -1]
    others = np.flatnonzero(rank == 0)
    order = np.argsort(rank[rank > 0], kind="stable")
    chosen = np.concatenate(
        [np.flatnonzero(rank > 0)[order], rng.choice(others, min(_SAMPLED, others.size), replace=False)]
    )
    return Candidates(
        everything.rows[chosen], everything.sources[:-1], everything.scores[chosen, :-1], everything.ranks[chosen, :-1]
    )


def _basket_values(market: Marketplace, time_us: int) -> NDArray[np.float64]:
    """[users]: the price of what went into the cart within the last week and was not bought; NaN where nothing did."""
    events, items = market.events.before(time_us), market.world.items
    recent = events.time_us >= time_us - 7 * DAY_US
    sign = (events.type == CART).astype(np.float64) - (events.type == PURCHASE)
    value = np.bincount(
        events.user, np.where(recent, sign * items.price[events.item], 0.0), len(market.world.users.ids)
    )
    return np.where(value > 0.005, np.round(value, 2), np.nan)
