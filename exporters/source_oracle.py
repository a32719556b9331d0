"""What each candidate source must propose, worked out item by item in plain Python and NumPy.

Nothing here reads the code of `recserve.server.pipeline.sources`: golden requests keep these expectations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import MISSING_TIME
from recserve.kernels.reference import vectors as reference_vectors
from recserve.server.bundle.columns import CategoryColumn, NumberColumn, TimeColumn
from recserve.server.bundle.lists import ItemLists
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.types import Query

Scored: TypeAlias = Mapping[int, float]
"""Scores by row."""

_DAY_US = 86_400_000_000
_LATEST_CATEGORIES = 3
_BASKET = 20


class SourceOracle:
    """Expectations of one bundle's sources; those over spaces with users are checked by the retrieval stage."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        popularity = bundle.catalogue.role("popularity")
        if not isinstance(popularity, NumberColumn):
            raise TypeError("the role 'popularity' must be a number column")
        self._popularity = popularity.values

    def expected(
        self, query: Query, subject: Subject, k: int
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """By source: the best `k` passing rows and their scores.

        Args:
            query: filtered by nothing but the highest price.
            subject: the user.
            k: how many are wanted.
        """
        passing = self._passing(query)
        found = {name: _best(scored(query, subject), passing, k) for name, scored in self._sources().items()}
        return {"again": _best(_again(subject), passing, k, _latest(subject)), **found}

    def _sources(self) -> dict[str, Callable[[Query, Subject], Scored]]:
        found: dict[str, Callable[[Query, Subject], Scored]] = {}
        if not np.isnan(self._popularity).any():  # where some are missing, their order has no score
            found["popular"] = lambda query, subject: self._popular(range(self._popularity.size))  # noqa: ARG005
        if self._bundle.manifest.HasField("candidate_sources"):
            found |= self._further()
        return found

    def _further(self) -> dict[str, Callable[[Query, Subject], Scored]]:
        spec, catalogue = self._bundle.manifest.candidate_sources, self._bundle.catalogue
        found: dict[str, Callable[[Query, Subject], Scored]] = {}
        space = self._bundle.spaces.get(spec.similar_space)
        if space is not None and space.spec.index.kind == manifest_pb2.EXACT:
            found["similar"] = self._similar
        if isinstance(catalogue.role("launch_time"), TimeColumn):
            found["new"] = self._new
        if isinstance(catalogue.role("category"), CategoryColumn) and not np.isnan(self._popularity).any():
            found["popular_in_category"] = self._popular_in_category
        for lists in self._bundle.lists.values():
            found[lists.name] = self._of_lists(lists)
        return found

    def _of_lists(self, lists: ItemLists) -> Callable[[Query, Subject], Scored]:
        match lists.spec.kind:
            case manifest_pb2.TOGETHER:
                return lambda query, subject: _together(lists, query, subject)
            case manifest_pb2.TRENDING:
                return lambda query, subject: _entries(lists, 0)  # noqa: ARG005
            case _:
                return lambda query, subject: self._popular_by(lists, query, subject)

    def _passing(self, query: Query) -> NDArray[np.bool_]:
        if query.filter.price_max is None:
            return np.ones(self._popularity.size, np.bool_)
        prices = self._bundle.catalogue.role("price")
        if not isinstance(prices, NumberColumn):
            raise TypeError("the role 'price' must be a number column")
        return np.asarray(prices.values <= query.filter.price_max)

    def _popular(self, rows: Iterable[int]) -> Scored:
        return {row: float(self._popularity[row]) for row in rows}

    def _popular_in_category(self, query: Query, subject: Subject) -> Scored:  # noqa: ARG002
        column = self._bundle.catalogue.role("category")
        if not isinstance(column, CategoryColumn):
            raise TypeError("the role 'category' must be a category column")
        codes = [code for code in dict.fromkeys(column.codes[subject.recent_rows].tolist()) if code >= 0]
        return self._popular(np.flatnonzero(np.isin(column.codes, codes[:_LATEST_CATEGORIES])).tolist())

    def _similar(self, query: Query, subject: Subject) -> Scored:  # noqa: ARG002
        spec = self._bundle.manifest.candidate_sources
        vectors = self._bundle.spaces[spec.similar_space].vectors
        seeds = subject.recent_rows[: spec.similar_items].tolist()
        rows = np.setdiff1d(np.arange(len(vectors)), seeds)
        cosines = [reference_vectors.dot_rows(vectors, vectors[seed], rows) for seed in seeds]
        return dict(zip(rows.tolist(), np.max(cosines, axis=0).tolist(), strict=True)) if cosines else {}

    def _new(self, query: Query, subject: Subject) -> Scored:  # noqa: ARG002
        launches = self._bundle.catalogue.role("launch_time")
        if not isinstance(launches, TimeColumn):
            raise TypeError("the role 'launch_time' must be a time column")
        span = self._bundle.manifest.candidate_sources.new_days * _DAY_US
        ages = {row: query.time_us - time for row, time in enumerate(launches.values.tolist()) if time != MISSING_TIME}
        return {row: -age / _DAY_US for row, age in ages.items() if 0 <= age <= span}

    def _popular_by(self, lists: ItemLists, query: Query, subject: Subject) -> Scored:
        schema, index = self._bundle.schema, 0
        for name in lists.spec.columns:
            in_context = name in schema.context_layout
            where = (schema.context_layout if in_context else schema.user_layout)[name][1]
            code = int((query.context if in_context else subject.user).codes[0, where])
            columns = schema.context_layout.codes if in_context else schema.user_layout.codes
            if code < 0:
                return _entries(lists, len(lists.offsets) - 2)
            index = index * self._bundle.cardinalities[columns[where].vocabulary] + code
        return _entries(lists, index) or _entries(lists, len(lists.offsets) - 2)


def _again(subject: Subject) -> Scored:
    counts: dict[int, float] = defaultdict(float)
    for row, count in zip(subject.history_rows.tolist(), subject.history.counts.tolist(), strict=True):
        if row >= 0:
            counts[row] += count
    return counts


def _latest(subject: Subject) -> Mapping[int, int]:
    """When the user last dealt with each item."""
    last: dict[int, int] = {}
    for row, time_us in zip(subject.history_rows.tolist(), subject.history.last_us.tolist(), strict=True):
        last[row] = max(time_us, last.get(row, time_us))
    return last


def _entries(lists: ItemLists, index: int) -> Scored:
    start, stop = lists.offsets[index], lists.offsets[index + 1]
    return dict(zip(lists.rows[start:stop].tolist(), lists.scores[start:stop].tolist(), strict=True))


def _together(lists: ItemLists, query: Query, subject: Subject) -> Scored:
    basket = (query.session_rows if query.session_rows.size else subject.recent_rows[:_BASKET]).tolist()
    total: dict[int, float] = defaultdict(float)
    for row in basket:
        for partner, score in _entries(lists, row).items():
            total[partner] += score
    return {row: score for row, score in total.items() if row not in basket}


def _best(
    scored: Scored, passing: NDArray[np.bool_], k: int, latest: Mapping[int, int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best `k` passing rows: by score in float32, then the latest where times are given, then by row."""
    rows = np.array([row for row in scored if passing[row]], np.int64)
    scores = np.array([scored[row] for row in rows.tolist()], np.float32)
    times = np.array([latest[row] if latest else 0 for row in rows.tolist()], np.int64)
    order = np.lexsort((rows, -times, -scores))[:k]
    return rows[order], scores[order]
