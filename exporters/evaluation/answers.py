"""What the pipeline answers to every user under test, and what the baselines answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.evaluation.metrics import Hits, Lists, hits, recall
from recserve.exporters.evaluation.requests import Requests
from recserve.exporters.evaluation.users import Users, purchases
from recserve.server.pipeline.pipeline import Pipeline, Ranked
from recserve.server.pipeline.sources import AGAIN, POPULAR
from recserve.server.pipeline.types import RerankOptions, Rows, UserState

TOP: Final = 10
"""Places that count."""
BATCH: Final = 32
"""Users per micro-batch."""
FULL, OWN, UNION, ANY = "full", "own", "union", "any"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answers in one mode; all by user.

    Attributes:
        lists: by system: "full" is the whole pipeline, a space's name and "popular" are these sources alone, "own" are
            the user's most frequent purchases. [users, TOP], filled up with -1.
        diversity: lists "before" and "after" caps and diversity; empty where the bundle has no space to measure in.
        found: recall by source, each asked for as many candidates as the placement ranks; "union": of the candidates
            that it ranks, as many; "any": of all that the sources proposed, which no quotas can exceed.
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
    ranked = pipeline.rank(
        [(requests.served(user), state) for user, state in zip(users.ids, users.states, strict=True)]
    )
    lists, diversity = _pipeline_lists(pipeline, requests, ranked)
    candidates = _padded([each.candidates.rows for each in ranked], requests.base.pool)
    labels = hits(candidates, users.relevant)
    proposed = {name: _retrieve(pipeline, requests, name, users.ids, users.states) for name in pipeline.sources}
    together = [np.unique(np.concatenate(rows)) for rows in zip(*proposed.values(), strict=True)]
    found = {name: _recall(rows, users) for name, rows in {**proposed, ANY: together}.items()}
    found[UNION] = recall(labels, users.relevant.counts)
    baselines = (*pipeline.bundle.spaces, POPULAR)
    lists.update({name: _padded(rows, TOP) for name, rows in proposed.items() if name in baselines})
    if not requests.base.filter.exclude_purchased:
        bought = [purchases(state, purchase) for state in users.states]
        lists[OWN] = _padded(_retrieve(pipeline, requests, AGAIN, users.ids, bought), TOP)
    relevance = [each.relevance for each in ranked if each.relevance is not None]
    return Answers(lists, diversity, found, np.concatenate(relevance) if relevance else None, labels[candidates >= 0])


def _pipeline_lists(
    pipeline: Pipeline, requests: Requests, ranked: Sequence[Ranked]
) -> tuple[dict[str, Lists], dict[str, Lists]]:
    """The lists that are served, and those before and after diversity."""

    def chosen(options: RerankOptions) -> Lists:
        return _padded([_choose(pipeline, each, requests.base.count, options) for each in ranked], TOP)

    before = chosen(requests.plain)
    options = requests.base.rerank if requests.diversified else requests.trial
    if options is None:
        return {FULL: before}, {}
    after = chosen(options)
    return {FULL: after if requests.diversified else before}, {BEFORE: before, AFTER: after}


def _choose(pipeline: Pipeline, ranked: Ranked, count: int, options: RerankOptions) -> Rows:
    rows = ranked.candidates.rows
    places, _ = pipeline.choose(ranked.scores, rows, count, options)
    return rows[places]


def _retrieve(
    pipeline: Pipeline, requests: Requests, source: str, ids: Sequence[str], states: Sequence[UserState]
) -> list[Rows]:
    """What one source proposes, best first."""
    queries = [requests.from_source(user, source) for user in ids]
    return [found.rows for _, found in pipeline.retrieve(list(zip(queries, states, strict=True)))]


def _recall(rows: Sequence[Rows], users: Users) -> NDArray[np.float64]:
    """[users]: the share of each user's items that is among the user's rows."""
    width = max(mine.size for mine in rows)
    return recall(hits(_padded(rows, max(width, 1)), users.relevant), users.relevant.counts)


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
        found={
            name: np.concatenate([part.found[name] for part in parts]) for name in (*_sources(first.found), UNION, ANY)
        },
        relevance=np.concatenate(relevance) if relevance else None,
        labels=np.concatenate([part.labels for part in parts]),
    )


def _ordered(lists: dict[str, Lists]) -> list[str]:
    """The pipeline, the spaces, then what needs no model."""
    last = [name for name in (POPULAR, OWN) if name in lists]
    return [*(name for name in lists if name not in last), *last]


def _sources(found: dict[str, NDArray[np.float64]]) -> list[str]:
    return [name for name in found if name not in (UNION, ANY)]
