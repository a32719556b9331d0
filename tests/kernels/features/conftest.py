"""A small shop with one request, and ways to compute its features by the program and by the reference at once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from recserve.kernels.features import (
    ColumnValues,
    FeatureBatch,
    FeatureProgram,
    FeatureSchema,
    FeatureSpec,
    ItemArrays,
    reference_features,
)

DAY_US = 86_400_000_000
MISSING = -(2**63)

SHOP = {
    "schema_version": 1,
    "user": [
        {"name": "age", "type": "number"},
        {"name": "gender", "type": "category"},
        {"name": "signup", "type": "time"},
        {"name": "top_categories", "type": "categories", "vocabulary": "category"},
    ],
    "context": [
        {"name": "device", "type": "category"},
        {"name": "basket_value", "type": "number"},
        {"name": "session_start", "type": "time"},
        {"name": "page_categories", "type": "categories", "vocabulary": "category"},
    ],
    "item": [
        {"name": "price", "type": "number"},
        {"name": "category", "type": "category"},
        {"name": "target_gender", "type": "category", "vocabulary": "gender"},
        {"name": "launch_time", "type": "time"},
    ],
    "event_types": ["view", "cart", "purchase"],
    "features": [],
}

CARDINALITIES = {"gender": 2, "category": 5, "device": 3}


@pytest.fixture
def shop_json() -> dict:
    """features.json of the shop, without features."""
    return json.loads(json.dumps(SHOP))


@pytest.fixture
def shop() -> FeatureSchema:
    """The shop's columns, without features."""
    return FeatureSchema.from_json(json.dumps(SHOP))


@pytest.fixture
def cardinalities() -> dict[str, int]:
    """The sizes of the shop's vocabularies."""
    return dict(CARDINALITIES)


@pytest.fixture
def shop_items() -> ItemArrays:
    """Four items: the last has nothing but vectors. Columns: price, category, target_gender; launch_time."""
    nan = np.nan
    features = np.array([[10, 0, 1], [20, 1, 0], [40, 0, nan], [nan, nan, nan]], np.float32)
    times = np.array([[0], [DAY_US], [-DAY_US], [MISSING]], np.int64)
    vectors = np.array([[1, 0], [0, 1], [0.5, 0.5], [-1, 2]], np.float32)
    return ItemArrays(features, times, {"ann": vectors})


@pytest.fixture
def shop_batch() -> FeatureBatch:
    """One request of a known user for item 0, proposed by source "ann" only. The user:

    is 30, of gender 1, signed up on 1970-01-03, likes categories 2 and then 0; viewed item 0 twice on day 5 and bought
    it on day 6, viewed item 2 (of the same category) four times on day 8 and an unknown item once on day 9; looked at
    items 2, (unknown), 1 and 0, latest first. The time is 1970-01-11, a Sunday, 06:30.
    """
    f32, i32, i64 = np.float32, np.int32, np.int64
    return FeatureBatch(
        offsets=np.array([0, 1], i64),
        rows=np.array([0], i64),
        time_us=np.array([10 * DAY_US + DAY_US // 4 + DAY_US // 48], i64),
        known=np.array([True]),
        user=ColumnValues(
            np.array([[30.0]]),
            np.array([[1]], i32),
            np.array([[2 * DAY_US]], i64),
            np.array([2, 0], i32),
            np.array([0, 2], i64),
        ),
        context=ColumnValues(
            np.array([[99.0]]),
            np.array([[2]], i32),
            np.array([[10 * DAY_US]], i64),
            np.array([0], i32),
            np.array([0, 1], i64),
        ),
        history_offsets=np.array([0, 4], i64),
        history_rows=np.array([-1, 2, 0, 0], i64),
        history_events=np.array([0, 0, 2, 0], i32),
        history_counts=np.array([1.0, 4.0, 1.0, 2.0]),
        history_last_us=np.array([9, 8, 6, 5], i64) * DAY_US,
        recent_offsets=np.array([0, 4], i64),
        recent_rows=np.array([2, -1, 1, 0], i64),
        source_scores=np.array([[0.75]], f32),
        source_ranks=np.array([[3]], f32),
        user_vectors={"ann": np.array([[2, 3]], f32)},
    )


@pytest.fixture
def both() -> Callable[..., np.ndarray]:
    """Compute a batch's features by program and reference, and check that they agree bit for bit."""

    def compute(
        schema: FeatureSchema, cardinalities: Mapping[str, int], items: ItemArrays, batch: FeatureBatch
    ) -> np.ndarray:
        found = FeatureProgram(schema, cardinalities).compute(items, batch)
        expected = reference_features(schema, cardinalities, items, batch)
        assert found.dtype == np.float32
        assert found.shape == (len(batch.rows), len(schema.features))
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
        return found

    return compute


@pytest.fixture
def value_of(shop, cardinalities, shop_items, shop_batch, both) -> Callable[..., float]:
    """Compute one feature of the shop's request: `value_of(op, *inputs, event=, last=, row=, **changed batch fields)`.

    A feature of "ann" has its source as column 0, whether it uses it or not.
    """

    def compute(op: str, *inputs: str, event: str = "", last: int = 0, row: int = 0, **changes: object) -> float:
        uses_source = FeatureSpec("source", "value", ("source.ann.score",))
        schema = replace(shop, features=(uses_source, FeatureSpec("feature", op, inputs, event, last)))
        batch = replace(shop_batch, rows=np.array([row], np.int64), **changes)
        return float(both(schema, cardinalities, shop_items, batch)[0, 1])

    return compute
