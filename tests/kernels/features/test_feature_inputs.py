"""Arrays that do not fit are refused by name before anything is computed; the program is safe to share by threads."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

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

FEATURES = (
    FeatureSpec("price", "value", ("item.price",)),
    FeatureSpec("age", "value", ("user.age",)),
    FeatureSpec("rank", "rank_in", ("item.category", "user.top_categories")),
    FeatureSpec("ann", "value", ("source.ann.score",)),
    FeatureSpec("seen", "count", ("history.item",)),
    FeatureSpec("near", "max_similarity", ("space.ann",), last=3),
    FeatureSpec("dot", "dot", ("space.ann",)),
)


@pytest.fixture
def schema(shop) -> FeatureSchema:
    return replace(shop, features=FEATURES)


@pytest.fixture
def program(schema, cardinalities) -> FeatureProgram:
    return FeatureProgram(schema, cardinalities)


@pytest.fixture(params=["program", "reference"])
def compute(request, program, schema, cardinalities) -> Callable[[ItemArrays, FeatureBatch], np.ndarray]:
    if request.param == "program":
        return program.compute
    return partial(reference_features, schema, cardinalities)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def strided(array: np.ndarray) -> np.ndarray:
    """The same values, not C-contiguous."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


BAD_BATCH = [
    ({"rows": i64(4)}, ValueError, r"batch.rows\[0\] is 4; expected 0 <= value < 4"),
    ({"rows": i64(-1)}, ValueError, r"batch.rows\[0\] is -1"),
    ({"rows": np.array([0], np.int32)}, TypeError, "batch.rows"),
    ({"rows": [0]}, TypeError, "batch.rows"),
    ({"rows": i64(0).reshape(1, 1)}, ValueError, "batch.rows"),
    ({"rows": strided(i64(0, 1)), "offsets": i64(0, 2)}, ValueError, "batch.rows"),
    ({"offsets": i64(0, 2)}, ValueError, "batch.offsets: must run from 0 to 1, found 0 to 2"),
    ({"offsets": i64(1, 1)}, ValueError, "batch.offsets: must run from 0 to 1, found 1 to 1"),
    ({"offsets": i64(0)}, ValueError, "batch.offsets"),
    ({"time_us": i64(0, 0)}, ValueError, "batch.offsets"),
    ({"time_us": np.array([0.0])}, TypeError, "batch.time_us"),
    ({"known": np.array([1.0])}, TypeError, "batch.known"),
    ({"known": True}, TypeError, "batch.known"),
    ({"known": np.array([True, False])}, ValueError, "batch.known"),
    ({"history_offsets": i64(0, 3)}, ValueError, "batch.history_offsets: must run from 0 to 4"),
    ({"history_rows": i64(0, 0, 0, 4)}, ValueError, r"batch.history_rows\[3\] is 4; expected -1 <= value < 4"),
    ({"history_rows": i64(0, 0, -2, 0)}, ValueError, r"batch.history_rows\[2\] is -2"),
    ({"history_events": np.array([0, 0, 0, 3], np.int32)}, ValueError, r"batch.history_events\[3\] is 3"),
    ({"history_events": np.array([0, 0, 0], np.int32)}, ValueError, "batch.history_events"),
    ({"history_counts": np.ones(4, np.float32)}, TypeError, "batch.history_counts"),
    ({"history_counts": np.ones(5)}, ValueError, "batch.history_counts"),
    ({"history_last_us": np.ones(4)}, TypeError, "batch.history_last_us"),
    ({"recent_rows": i64(0, 4, 0, 0)}, ValueError, r"batch.recent_rows\[1\] is 4"),
    ({"recent_offsets": i64(0, 5)}, ValueError, "batch.recent_offsets"),
    ({"source_scores": np.ones((1, 2), np.float32)}, ValueError, "batch.source_scores"),
    ({"source_ranks": np.ones((1, 1))}, TypeError, "batch.source_ranks"),
    ({"user_vectors": {}}, ValueError, r'batch.user_vectors\["ann"\] is missing'),
    ({"user_vectors": {"ann": np.ones((1, 3), np.float32)}}, ValueError, r'batch.user_vectors\["ann"\]'),
]


@pytest.mark.parametrize("case", BAD_BATCH)
def test_bad_batch(compute, shop_items, shop_batch, case):
    change, error, message = case
    with pytest.raises(error, match=message):
        compute(shop_items, replace(shop_batch, **change))


@pytest.mark.parametrize("name", ["offsets", "history_offsets", "recent_offsets"])
def test_offsets_that_descend(program, shop_items, shop_batch, name):
    one = {field: getattr(shop_batch, field) for field in ("offsets", "history_offsets", "recent_offsets")}
    three = {field: i64(0, 0, offsets[-1], offsets[-1]) for field, offsets in one.items()}
    three[name] = i64(0, 9, 1, one[name][-1])
    batch = replace(shop_batch, **three, time_us=i64(0, 0, 0), known=np.ones(3, np.bool_), **columns(shop_batch, 3))
    with pytest.raises(ValueError, match=f"batch.{name}: must not descend, but \\[2\\] is 1 after 9"):
        program.compute(shop_items, batch)


def columns(batch: FeatureBatch, times: int) -> dict:
    """The request's columns and vectors, repeated."""
    return {
        "user": ColumnValues.concat([batch.user] * times),
        "context": ColumnValues.concat([batch.context] * times),
        "user_vectors": {name: np.repeat(vectors, times, axis=0) for name, vectors in batch.user_vectors.items()},
    }


BAD_COLUMNS = [
    ({"numbers": np.ones((1, 2))}, ValueError, "numbers"),
    ({"numbers": np.ones((1, 1), np.float32)}, TypeError, "numbers"),
    ({"codes": np.ones((2, 1), np.int32)}, ValueError, "codes"),
    ({"codes": np.array([[3]], np.int32)}, ValueError, r'codes\[0, 0\] of column "\w+" is 3; vocabulary'),
    ({"codes": np.array([[-2]], np.int32)}, ValueError, r"codes\[0, 0\] of column"),
    ({"times": np.ones((1, 1))}, TypeError, "times"),
    ({"list_codes": np.ones(1, np.int64)}, TypeError, "list_codes"),
    ({"list_codes": np.array([5], np.int32), "list_offsets": i64(0, 1)}, ValueError, r"list_codes\[0\] is 5"),
    ({"list_codes": np.array([-1], np.int32), "list_offsets": i64(0, 1)}, ValueError, r"list_codes\[0\] is -1"),
    ({"list_offsets": i64(0)}, ValueError, "list_offsets"),
    ({"list_offsets": i64(0, 9)}, ValueError, "list_offsets: must run from 0"),
]


def refused(compute, shop_batch, scope, case):
    change, error, message = case
    batch = replace(shop_batch, **{scope: replace(getattr(shop_batch, scope), **change)})
    with pytest.raises(error, match=f"batch.{scope}.{message}"):
        compute(batch)


@pytest.mark.parametrize("scope", ["user", "context"])
@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns(program, shop_items, shop_batch, scope, case):
    refused(lambda batch: program.compute(shop_items, batch), shop_batch, scope, case)


@pytest.mark.parametrize("scope", ["user", "context"])
@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns_of_requests(schema, cardinalities, shop_batch, scope, case):
    refused(FeatureProgram(schema.select([1]), cardinalities).of_requests, shop_batch, scope, case)


def test_features_of_candidates_are_none_of_requests(program, shop_batch):
    with pytest.raises(ValueError, match="depends on the candidate"):
        program.of_requests(shop_batch)


BAD_ITEMS = [
    ({"features": np.ones((4, 2), np.float32)}, ValueError, "items.features"),
    ({"features": np.ones((4, 3))}, TypeError, "items.features"),
    ({"features": np.ones((3, 4), np.float32).T}, ValueError, "items.features"),
    ({"times": np.ones((3, 1), np.int64)}, ValueError, "items.times"),
    ({"vectors": {}}, ValueError, r'items.vectors\["ann"\] is missing'),
    ({"vectors": {"ann": np.ones((3, 2), np.float32)}}, ValueError, r'items.vectors\["ann"\]'),
]


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_bad_items(compute, shop_items, shop_batch, case):
    change, error, message = case
    with pytest.raises(error, match=message):
        compute(replace(shop_items, **change), shop_batch)


def test_out_is_filled_and_returned(program, shop_items, shop_batch):
    out = np.full((1, len(FEATURES)), 7, np.float32)
    assert program.compute(shop_items, shop_batch, out) is out
    np.testing.assert_array_equal(out, program.compute(shop_items, shop_batch))


@pytest.mark.parametrize("shape", [(2, 7), (1, 8), (7,)])
def test_out_of_another_shape(program, shop_items, shop_batch, shape):
    with pytest.raises(ValueError, match="out"):
        program.compute(shop_items, shop_batch, np.empty(shape, np.float32))


def test_out_of_another_kind(program, shop_items, shop_batch):
    with pytest.raises(TypeError, match="out"):
        program.compute(shop_items, shop_batch, np.empty((1, 7)))
    read_only = np.empty((1, 7), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        program.compute(shop_items, shop_batch, read_only)
    with pytest.raises(ValueError, match="out"):
        program.compute(shop_items, shop_batch, np.empty((7, 2), np.float32).T[:1])


def test_mapped_read_only_items(program, shop_items, shop_batch, tmp_path):
    np.save(tmp_path / "features.npy", shop_items.features)
    np.save(tmp_path / "vectors.npy", shop_items.vectors["ann"])
    mapped = ItemArrays(
        np.load(tmp_path / "features.npy", mmap_mode="r"),
        shop_items.times,
        {"ann": np.load(tmp_path / "vectors.npy", mmap_mode="r")},
    )
    np.testing.assert_array_equal(program.compute(mapped, shop_batch), program.compute(shop_items, shop_batch))


def test_vectors_of_other_spaces_are_not_looked_at(program, shop_items, shop_batch):
    more = replace(shop_items, vectors={**shop_items.vectors, "other": np.ones(3)})
    np.testing.assert_array_equal(program.compute(more, shop_batch), program.compute(shop_items, shop_batch))


def test_requests_without_candidates(compute, shop_items, shop_batch):
    none = np.empty((0, 1), np.float32)
    batch = replace(shop_batch, rows=i64(), offsets=i64(0, 0), source_scores=none, source_ranks=none)
    assert compute(shop_items, batch).shape == (0, len(FEATURES))


def test_known_may_be_bytes(compute, shop_items, shop_batch):
    for known in (False, True):
        as_bytes = replace(shop_batch, known=np.array([known], np.uint8))
        as_bools = replace(shop_batch, known=np.array([known]))
        np.testing.assert_array_equal(compute(shop_items, as_bytes), compute(shop_items, as_bools))


def test_schema_without_features(both, shop, cardinalities, shop_items, shop_batch):
    none = np.empty((1, 0), np.float32)
    batch = replace(shop_batch, source_scores=none, source_ranks=none)
    assert both(shop, cardinalities, shop_items, batch).shape == (1, 0)


def heavy(seed: int, candidates: int) -> tuple[FeatureProgram, ItemArrays, FeatureBatch]:
    """A batch whose time goes into similarities to the last 200 items in 256 dimensions."""
    rng = np.random.default_rng(seed)
    features = (
        FeatureSpec("near", "max_similarity", ("space.ann",), last=200),
        FeatureSpec("mean", "mean_similarity", ("space.ann",), last=50),
        FeatureSpec("seen", "count", ("history.item",)),
    )
    schema = FeatureSchema(event_types=("view",), features=features)
    items = ItemArrays(
        np.empty((1000, 0), np.float32),
        np.empty((1000, 0), np.int64),
        {"ann": rng.normal(size=(1000, 256)).astype(np.float32)},
    )
    batch = FeatureBatch(
        offsets=i64(0, candidates),
        rows=rng.integers(0, 1000, candidates),
        time_us=i64(0),
        known=np.array([True]),
        user=ColumnValues.missing(schema.user_layout, 1),
        context=ColumnValues.missing(schema.context_layout, 1),
        history_offsets=i64(0, 500),
        history_rows=rng.integers(-1, 1000, 500),
        history_events=np.zeros(500, np.int32),
        history_counts=rng.random(500),
        history_last_us=np.zeros(500, np.int64),
        recent_offsets=i64(0, 200),
        recent_rows=rng.permutation(1000)[:200],
        source_scores=np.empty((candidates, 0), np.float32),
        source_ranks=np.empty((candidates, 0), np.float32),
        user_vectors={},
    )
    return FeatureProgram(schema, {}), items, batch


def test_threads_share_a_program():
    program, items, _ = heavy(0, 1)
    batches = [heavy(seed, 50)[2] for seed in range(24)]
    alone = [program.compute(items, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: program.compute(items, batch), batches))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_the_gil_is_released():
    program, items, batch = heavy(1, 50_000)
    worker = threading.Thread(target=program.compute, args=(items, batch))
    ticks = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    # Were the GIL held, this thread would wake up once, when all is over. How often it does depends on other processes.
    assert ticks > 20
