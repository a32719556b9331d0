"""The ranker: what it learns from, and how its margins become relevance.

Its rows come from the pipeline that serves: an exported bundle without a ranker, the states of its snapshot, the
candidates of its sources, the feature program's matrix. Each customer of a window asks twice, as in the two modes of
the evaluation: with everything allowed, and without own purchases. One forest learns both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from examples.online_retail.clean import Events
from examples.online_retail.split import WINDOW_US
from recserve.exporters.errors import TableError
from recserve.exporters.golden import snapshot_users
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.kernels.features import ColumnValues, FeatureSchema
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.bundle.strings import key_of
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.placement import resolve
from recserve.server.pipeline.settings import FusionSettings, PlacementSettings, SourceSettings
from recserve.server.pipeline.types import ItemFilter, Query, QueryKind, UserState

PLACEMENT: Final = PlacementSettings(
    candidates=500,
    sources=(
        SourceSettings(name="ann", weight=1.0),
        SourceSettings(name="again", weight=1.0),
        SourceSettings(name="als", weight=0.8),
        SourceSettings(name="popular", weight=0.4),
        SourceSettings(name="new", weight=0.4),
        SourceSettings(name="trending", weight=0.3),
        SourceSettings(name="together", weight=0.25),
        SourceSettings(name="content", weight=0.1),
    ),
    fusion=FusionSettings(depth=2000, constant=500.0),
)
"""How candidates are chosen, in training as when evaluated and served: by the sources' ranks, weighted."""
OBJECTIVE: Final = "purchase"
_BATCH: Final = 32
_SAMPLED: Final = 120  # candidates of a request that are learned from beside those bought

_FOREST: Final = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 20,
    "num_leaves": 31,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows of the ranker's matrix, request by request.

    Attributes:
        features: float32 [n, features].
        labels: float64 [n]; 1 where the customer bought the item in the window.
        sizes: int64 [requests]; rows of each.
        customers: uint64 [requests]; key of the customer.
    """

    features: Floats32
    labels: NDArray[np.float64]
    sizes: NDArray[np.int64]
    customers: NDArray[np.uint64]

    def of(self, requests: NDArray[np.bool_]) -> Examples:
        """Those of some requests."""
        rows = np.repeat(requests, self.sizes)
        return Examples(self.features[rows], self.labels[rows], self.sizes[requests], self.customers[requests])

    def sampled(self, seed: int) -> Examples:
        """All that was bought and a sample of the rest, without requests that have no hit: they teach no order."""
        starts = np.cumsum(self.sizes) - self.sizes
        rng, hits = np.random.default_rng(seed), np.add.reduceat(self.labels, starts)
        request = np.repeat(np.arange(self.sizes.size), self.sizes)
        # A random order within each request, what was bought first: the first so many of it are the sample.
        order = np.lexsort((rng.random(request.size), -self.labels, request))
        place = np.arange(request.size) - starts[request]
        rows = np.sort(order[(place < hits[request] + _SAMPLED) & (hits[request] > 0)])
        sizes = np.bincount(request[rows], minlength=self.sizes.size)
        return Examples(self.features[rows], self.labels[rows], sizes[hits > 0], self.customers[hits > 0])

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples:
        """All of them."""
        return Examples(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.customers for part in parts]),
        )


def make_examples(directory: Path, events: Events, time_us: int, advance: Callable[[int], None]) -> Examples:
    """What the customers of the window behind a cut-off are offered, and what they took.

    Args:
        directory: with the bundle and the snapshot of the cut-off.
        events: all of them; only the window's are labels.
        time_us: the cut-off.
        advance: is told how many more requests are done.

    Raises:
        TableError: none of the customers was known before.
    """
    pipeline = open_pipeline(open_bundle(directory / "bundle"))
    snapshot = open_snapshot(directory / "snapshot")
    window = events.between(time_us, time_us + WINDOW_US)
    bought = {user: rows for user, rows in _bought(window, pipeline).items() if snapshot.row_of(user) >= 0}
    if not bought:
        raise TableError("no customer of a window had bought anything before it: there is nothing to learn from")
    work = [
        (_query(pipeline, user, time_us, first=first), state)
        for user, state in snapshot_users(snapshot, list(bought), 0)
        for first in (False, True)
    ]
    parts = []
    for start in range(0, len(work), _BATCH):
        batch = work[start : start + _BATCH]
        parts += _examples(pipeline, batch, bought)
        advance(len(batch))
    return Examples.join(parts)


def train_ranker(
    schema: FeatureSchema, examples: Examples, trees: int, seed: int, advance: Callable[[], None]
) -> lightgbm.Booster:
    """A lambdarank forest; `advance` is called after each tree."""
    data = lightgbm.Dataset(
        examples.features, examples.labels, group=examples.sizes, feature_name=list(schema.names), params=_FOREST
    )
    return lightgbm.train({**_FOREST, "seed": seed}, data, num_boost_round=trees, callbacks=[lambda _: advance()])


def ranker_spec(booster: lightgbm.Booster, held_out: Examples) -> RankerSpec:
    """The forest with its calibration, on all candidates of requests that it has not learned from."""
    data = CalibrationData(features=held_out.features, labels=held_out.labels)
    return RankerSpec(objective=OBJECTIVE, model=booster, calibration="platt", calibration_data=data)


def _bought(window: Events, pipeline: Pipeline) -> dict[str, NDArray[np.int64]]:
    """Rows of the items that each customer bought, of those that the bundle knows."""
    rows = pipeline.bundle.catalogue.rows_of_ids(list(window.items))
    count = len(window.items)
    pairs = np.unique(window.user * count + window.item)
    user, row = pairs // count, rows[pairs % count]
    user, row = user[row >= 0], row[row >= 0]
    who, starts = np.unique(user, return_index=True)
    return {window.users[each]: mine for each, mine in zip(who, np.split(row, starts[1:]), strict=True)}


def _query(pipeline: Pipeline, user: str, time_us: int, *, first: bool) -> Query:
    asked = resolve(PLACEMENT, pipeline)
    return Query(
        kind=QueryKind.RECOMMEND,
        user_id=user,
        time_us=time_us,
        context=ColumnValues.missing(pipeline.bundle.schema.context_layout, 1),
        filter=ItemFilter(exclude_purchased=first),
        candidates=PLACEMENT.candidates,
        quotas=asked.quotas,
        fusion=asked.fusion,
    )


def _examples(
    pipeline: Pipeline, work: Sequence[tuple[Query, UserState]], bought: dict[str, NDArray[np.int64]]
) -> list[Examples]:
    """The requests of those who bought anything that could have been answered."""
    subjects, candidates = zip(*pipeline.retrieve(work), strict=True)
    features = pipeline.ranking_inputs(subjects, candidates).matrix()
    ends = np.cumsum([each.rows.size for each in candidates])
    parts = []
    for (query, _), who, mine, matrix in zip(work, subjects, candidates, np.split(features, ends[:-1]), strict=True):
        wanted = bought[query.user_id]
        if query.filter.exclude_purchased:
            wanted = np.setdiff1d(wanted, who.history_rows)
        if wanted.size:
            hit = np.isin(mine.rows, wanted).astype(np.float64)
            parts.append(Examples(matrix, hit, np.array([hit.size]), np.array([key_of(query.user_id)], np.uint64)))
    return parts
