"""Times the feature program on what no export can compute: features of one request, and of its candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import (
    ColumnSpec,
    ColumnValues,
    FeatureBatch,
    FeatureProgram,
    FeatureSchema,
    FeatureSpec,
    ItemArrays,
)
from recserve.loadtest.results import Measurement, time_call

CANDIDATES, HISTORY, RECENT = 500, 60, 20
ITEM_FEATURES, USER_NUMBERS = 50, 34
CATEGORIES = 1000
NOW_US, YEAR_US = 1_700_000_000_000_000, 31_536_000_000_000

_COLUMNS: Final = FeatureSchema(
    user=(
        *(ColumnSpec(f"user_{i}", "number") for i in range(USER_NUMBERS)),
        ColumnSpec("favourite", "category", "category"),
        ColumnSpec("favourites", "categories", "category"),
    ),
    item=(
        *(ColumnSpec(f"item_{i}", "number") for i in range(ITEM_FEATURES - 1)),
        ColumnSpec("category", "category"),
        ColumnSpec("launch", "time"),
    ),
    event_types=("view", "purchase"),
)
_OF_THE_REQUEST: Final = (
    *(FeatureSpec(f"user_{i}", "value", (f"user.user_{i}",)) for i in range(USER_NUMBERS)),
    FeatureSpec("favourite", "value", ("user.favourite",)),
    FeatureSpec("day", "pair", ("context.weekday", "context.hour")),
    *(FeatureSpec(op, op, ("context.time",)) for op in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")),
)
_OF_CANDIDATES: Final = (
    FeatureSpec("score", "value", ("source.ann.score",)),
    FeatureSpec("rank", "value", ("source.ann.rank",)),
    FeatureSpec("dot", "dot", ("space.ann",)),
    FeatureSpec("ratio", "ratio", ("item.item_0", "user.user_0")),
    FeatureSpec("difference", "difference", ("item.item_1", "user.user_1")),
    FeatureSpec("equal", "equal", ("item.category", "user.favourite")),
    FeatureSpec("category_rank", "rank_in", ("item.category", "user.favourites")),
    FeatureSpec("age", "days_since", ("item.launch",)),
    FeatureSpec("views", "count", ("history.category",), event="view"),
    FeatureSpec("since", "days_since", ("history.category",)),
    FeatureSpec("share", "share", ("history.category",)),
    FeatureSpec("nearest", "max_similarity", ("space.ann",), last=5),
    FeatureSpec("near", "mean_similarity", ("space.ann",), last=5),
)


def measure_features(table: NDArray[np.float32], runs: int, random: np.random.Generator) -> Iterator[Measurement]:
    """Measure the features of 500 candidates that lie anywhere in the item table, and of a request.

    Args:
        table: float32 [items, dim]: the items' vectors.
        runs: timed calls, times ten.
        random: of the data.
    """
    items = _items(table, random)
    for name, features, candidates in (
        ("recserve features of candidates", _OF_CANDIDATES, CANDIDATES),
        ("recserve features of a request", _OF_THE_REQUEST, 1),
    ):
        schema = FeatureSchema(_COLUMNS.user, (), _COLUMNS.item, _COLUMNS.event_types, features)
        program = FeatureProgram(schema, {"category": CATEGORIES})
        requests = iter([_request(schema, table, candidates, random) for _ in range(20 * runs)])  # there is a warm-up
        times = time_call(lambda: program.compute(items, next(requests)), runs=10 * runs)  # noqa: B023  called here
        params = {"items": len(table), "candidates": candidates, "features": len(features), "dim": table.shape[1]}
        yield Measurement(name=name, params=params, milliseconds=times)


def _items(table: NDArray[np.float32], random: np.random.Generator) -> ItemArrays:
    features = random.random((len(table), ITEM_FEATURES), np.float32)
    features[:, -1] = random.integers(0, CATEGORIES, len(table))
    return ItemArrays(features, NOW_US - random.integers(0, YEAR_US, (len(table), 1)), {"ann": table})


def _request(
    schema: FeatureSchema, table: NDArray[np.float32], candidates: int, random: np.random.Generator
) -> FeatureBatch:
    sources = (candidates, len(schema.sources))
    return FeatureBatch(
        offsets=np.array([0, candidates]),
        rows=random.integers(0, len(table), candidates),
        time_us=np.array([NOW_US]),
        known=np.ones(1, np.bool_),
        user=ColumnValues.missing(schema.user_layout, 1).with_overrides(
            schema.user_layout,
            {
                **{f"user_{i}": random.random() for i in range(USER_NUMBERS)},
                "favourite": 0,
                "favourites": random.permutation(CATEGORIES)[:10].tolist(),
            },
        ),
        context=ColumnValues.missing(schema.context_layout, 1),
        history_offsets=np.array([0, HISTORY]),
        history_rows=random.integers(0, len(table), HISTORY),
        history_events=random.integers(0, len(schema.event_types), HISTORY, np.int32),
        history_counts=np.ones(HISTORY),
        history_last_us=NOW_US - random.integers(0, YEAR_US, HISTORY),
        recent_offsets=np.array([0, RECENT]),
        recent_rows=random.integers(0, len(table), RECENT),
        source_scores=random.random(sources, np.float32),
        source_ranks=random.random(sources, np.float32),
        user_vectors={"ann": table[random.integers(0, len(table), 1)]},
    )
