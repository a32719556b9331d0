"""What the pipeline answers to every user under test, and what the baselines answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.evaluation.metrics import Hits, Lists, hits, recall
from recserve.exporters.evaluation.requests import Requests
from recserve.exporters.evaluation.users import Users, purchases
from recserve.server.pipeline.pipeline import Pipeline
from recserve.server.pipeline.sources import AGAIN, POPULAR
from recserve.server.pipeline.types import Query, Result, Rows, UserState

TOP: Final = 10
"""Places that count."""
BATCH: Final = 32
"""Users per micro-batch."""
FULL, OWN, UNION = "full", "own", "union"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answers in one mode; all by user.

    Attributes:
        lists: by system: "full" is the whole pipeline, a space's name and "popular" are these sources alone, "own" are
            the user's most frequent purchases. [users, TOP], filled up with -1.
        diversity: lists "before" and "after" caps and diversity; empty where the bundle has no space to measure in.
        found: by source, and "union": recall among as many candidates as the placement ranks.
        relevance: [candidates of all users], calibrated; None without a ranker.
        labels: [candidates of all users]: whether the user took the item.
    """

    lists: dict[str, Lists]
    diversity: dict[str, Lists]
    found: dict[str, NDArray[np.float64]]
    relevance: NDArray[np.float64] | None
    labels: Hits


def answer(
    pipeline: Pipeline, requests: Requests, users: Users, purchase: int, on_progress: Callable[[int], None]
) -> Answers:
    """Answer all users, in micro-batches.

    Args:
        pipeline: over the bundle.
        requests: the mode's.
        users: in that mode.
        purchase: code of the event type of purchases, -1 where there is none.
        on_progress: is told how many more users are done.
    """
    parts = []
    for start in range(0, len(users), BATCH):
        batch = users.take(np.arange(start, min(start + BATCH, len(users))))
        parts.append(_answer_batch(pipeline, requests, batch, purchase))
        on_progress(len(batch))
    return _join(parts)


def _answer_batch(pipeline: Pipeline, requests: Requests, users: Users, purchase: int) -> Answers:
    ranked = _run(pipeline, [requests.ranked(user) for user in users.ids], users.states)
    lists, diversity = _pipeline_lists(pipeline, requests, ranked)
    candidates = _padded([each.rows for each in ranked], requests.base.pool)
    labels = hits(candidates, users.relevant)
    found = {UNION: recall(labels, users.relevant.counts)}
    for source in pipeline.sources:
        rows = _retrieve(pipeline, requests, source, users.ids, users.states)
        found[source] = recall(hits(_padded(rows, requests.base.pool), users.relevant), users.relevant.counts)
        if source != AGAIN:
            lists[source] = _padded(rows, TOP)
    if not requests.base.filter.exclude_purchased:
        bought = [purchases(state, purchase) for state in users.states]
        lists[OWN] = _padded(_retrieve(pipeline, requests, AGAIN, users.ids, bought), TOP)
    relevance = [each.relevance for each in ranked if each.relevance is not None]
    return Answers(lists, diversity, found, np.concatenate(relevance) if relevance else None, labels[candidates >= 0])


def _pipeline_lists(
    pipeline: Pipeline, requests: Requests, ranked: Sequence[Result]
) -> tuple[dict[str, Lists], dict[str, Lists]]:
    """The lists that are served, and those before and after diversity.

    Diversity chooses among scored candidates, whose order does not matter to it.
    """
    before = _padded([each.rows for each in ranked], TOP)
    options = requests.base.rerank if requests.diversified else requests.trial
    if options is None:
        return {FULL: before}, {}
    chosen = [each.rows[pipeline.choose(each.scores, each.rows, requests.base.count, options)[0]] for each in ranked]
    after = _padded(chosen, TOP)
    return {FULL: after if requests.diversified else before}, {BEFORE: before, AFTER: after}


def _run(pipeline: Pipeline, queries: Sequence[Query], states: Sequence[UserState]) -> list[Result]:
    results = []
    for query, result in zip(queries, pipeline.run(list(zip(queries, states, strict=True))), strict=True):
        if not isinstance(result, Result):
            raise ExportError(f"the pipeline refused a request of user {query.user_id!r}: {result}") from result
        results.append(result)
    return results


def _retrieve(
    pipeline: Pipeline, requests: Requests, source: str, ids: Sequence[str], states: Sequence[UserState]
) -> list[Rows]:
    """What one source proposes, best first."""
    queries = [requests.from_source(user, source) for user in ids]
    return [found.rows for _, found in pipeline.retrieve(list(zip(queries, states, strict=True)))]


def _padded(rows: Sequence[Rows], width: int) -> Lists:
    """[users, width]: the first `width` of each, filled up with -1."""
    lists = np.full((len(rows), width), -1, np.int64)
    for user, mine in enumerate(rows):
        lists[user, : mine.size] = mine[:width]
    return lists


def _join(parts: Sequence[Answers]) -> Answers:
    first = parts[0]
    relevance = [part.relevance for part in parts if part.relevance is not None]
    return Answers(
        lists={name: np.concatenate([part.lists[name] for part in parts]) for name in _ordered(first.lists)},
        diversity={name: np.concatenate([part.diversity[name] for part in parts]) for name in first.diversity},
        found={name: np.concatenate([part.found[name] for part in parts]) for name in (*_sources(first.found), UNION)},
        relevance=np.concatenate(relevance) if relevance else None,
        labels=np.concatenate([part.labels for part in parts]),
    )


def _ordered(lists: dict[str, Lists]) -> list[str]:
    """The pipeline, the spaces, then what needs no model."""
    last = [name for name in (POPULAR, OWN) if name in lists]
    return [*(name for name in lists if name not in last), *last]


def _sources(found: dict[str, NDArray[np.float64]]) -> list[str]:
    return [name for name in found if name != UNION]
