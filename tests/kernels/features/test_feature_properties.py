"""Random schemas over random batches: program and reference agree bit for bit, and no request sees its batch-mates.

Inputs that fit nowhere near: what the program refuses at a glance is what the checks refuse in words.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels.features import (
    OPERATIONS,
    ColumnSpec,
    ColumnValues,
    FeatureBatch,
    FeatureProgram,
    FeatureSchema,
    FeatureSpec,
    ItemArrays,
    recent_items,
    reference_features,
)
from recserve.kernels.features.checks import InputChecks
from recserve.kernels.features.operations import Columns, resolve
from recserve.kernels.vectors import CPU_VARIANTS

DAY_US = 86_400_000_000
VOCABULARIES = {"brand": 0, "category": 4, "color": 3}
EVENTS = ("view", "cart", "purchase")
NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, -0.5, 0.1, 3.0, 1e300, -1e300, 5e-324, 1e38]
TIMES = [-(2**63), -(2**63) + 1, 2**63 - 1, -1, 0, 1, DAY_US, -DAY_US, 1_709_251_199_999_999]
COUNTS = [1.0, 2.0, 0.1, 0.7, 0.0, 1e9]
SOURCES = ("ann", "als")
SPACES = {"ann": 8, "als": 13}


def columns_of(scope: str, types: list[str]) -> tuple[ColumnSpec, ...]:
    """Columns of the drawn types; vocabularies go round."""
    names = list(VOCABULARIES)
    return tuple(
        ColumnSpec(f"{scope}_{kind}_{i}", kind, names[i % 3] if kind.startswith("categor") else "")
        for i, kind in enumerate(types)
    )


def possible_features(columns: Columns, event: str, last: int) -> list[FeatureSpec]:
    """Every operation on every combination of operands that it accepts."""
    addresses = [f"{scope}.{name}" for scope in ("user", "context", "item") for name in getattr(columns, scope)]
    addresses += ["context.time", "context.hour", "context.weekday", "history.item"]
    addresses += [f"history.{name}" for name, column in columns.item.items() if column.type == "category"]
    addresses += [f"source.{name}.{what}" for name in SOURCES for what in ("score", "rank")]
    addresses += [f"space.{name}" for name in SPACES]
    operands = {address: resolve(address, columns) for address in addresses}
    found = []
    for op, operation in OPERATIONS.items():
        for signature in operation.signatures:
            for inputs in product(addresses, repeat=len(signature)):
                chosen = [operands[address] for address in inputs]
                same = len({operand.vocabulary for operand in chosen}) == 1
                if tuple(o.type for o in chosen) == signature and (same or not operation.one_vocabulary):
                    options = (event if signature[0] == "history" else "", last if operation.takes_last else 0)
                    found.append(FeatureSpec("", op, inputs, *options))
    return found


@st.composite
def schemas(draw) -> FeatureSchema:
    types = st.sampled_from(["number", "category", "categories", "time"])
    item_types = st.sampled_from(["number", "category", "time"])
    user = columns_of("user", draw(st.lists(types, max_size=6)))
    context = columns_of("context", draw(st.lists(types, max_size=6)))
    item = columns_of("item", draw(st.lists(item_types, max_size=6)))
    last = draw(st.integers(1, 4))
    possible = possible_features(Columns.of(user, context, item), draw(st.sampled_from(["", *EVENTS])), last)
    possible += possible_features(Columns.of((), (), item), "", 2)
    by_op = draw(st.lists(st.sampled_from(sorted({feature.op for feature in possible})), max_size=30))
    features = [draw(st.sampled_from([feature for feature in possible if feature.op == op])) for op in by_op]
    named = tuple(replace(feature, name=f"f{i}") for i, feature in enumerate(features))
    return FeatureSchema(user, context, item, EVENTS, named)


class Random:
    """Arrays that fit a schema, with many special values among them."""

    def __init__(self, schema: FeatureSchema, seed: int) -> None:
        self.schema = schema
        self.rng = np.random.default_rng(seed)

    def mixed(self, special: list, ordinary: np.ndarray) -> np.ndarray:
        chosen = self.rng.choice(np.array(special, ordinary.dtype), ordinary.shape)
        return np.where(self.rng.random(ordinary.shape) < 0.3, chosen, ordinary)

    def numbers(self, *shape: int) -> np.ndarray:
        return self.mixed(NUMBERS, self.rng.normal(size=shape) * 100)

    def times(self, *shape: int) -> np.ndarray:
        return self.mixed(TIMES, self.rng.integers(-(10**16), 2 * 10**16, shape))

    def codes(self, columns: tuple[ColumnSpec, ...], rows: int) -> np.ndarray:
        drawn = [self.rng.integers(-1, VOCABULARIES[column.vocabulary], rows) for column in columns]
        return np.array(drawn, np.int32).reshape(len(columns), rows).T.copy()

    def floats(self, *shape: int) -> np.ndarray:
        return self.mixed([np.nan, 0.0], self.rng.normal(size=shape).astype(np.float32))

    def vectors(self, count: int, dim: int, missing: float) -> np.ndarray:
        there = np.where(self.rng.random((count, 1)) < missing, np.nan, 1)
        return (self.rng.normal(size=(count, dim)) * there).astype(np.float32)

    def offsets(self, parts: int, longest: int) -> np.ndarray:
        return np.cumsum([0, *self.rng.integers(0, longest + 1, parts)], dtype=np.int64)

    def columns(self, layout, rows: int) -> ColumnValues:
        lists = [
            self.rng.permutation(VOCABULARIES[column.vocabulary])[: self.rng.integers(0, 5)]
            for _ in range(rows)
            for column in layout.lists
        ]
        return ColumnValues(
            self.numbers(rows, len(layout.numbers)),
            self.codes(layout.codes, rows),
            self.times(rows, len(layout.times)),
            np.concatenate([np.empty(0, np.int32), *lists]).astype(np.int32),
            np.cumsum([0, *(len(codes) for codes in lists)], dtype=np.int64),
        )

    def items(self, count: int) -> ItemArrays:
        features = np.empty((count, len(self.schema.item_feature_columns)), np.float32)
        by_name = {column.name: column for column in self.schema.item}
        for i, name in enumerate(self.schema.item_feature_columns):
            if by_name[name].type == "number":
                with np.errstate(over="ignore"):
                    features[:, i] = self.numbers(count).astype(np.float32)
            else:
                codes = self.codes((by_name[name],), count)[:, 0]
                features[:, i] = np.where(codes < 0, np.nan, codes)
        vectors = {name: self.vectors(count, dim, missing=0.05) for name, dim in SPACES.items()}
        return ItemArrays(features, self.times(count, len(self.schema.item_time_columns)), vectors)

    def batch(self, items: ItemArrays, requests: int) -> FeatureBatch:
        count = len(items.features)
        offsets, history, recent = (self.offsets(requests, longest) for longest in (6, 12, 6))
        n, h, s = offsets[-1], history[-1], len(self.schema.sources)
        recents = [self.recent(count, size) for size in np.diff(recent)]
        return FeatureBatch(
            offsets=offsets,
            rows=self.rng.integers(0, count, n),
            time_us=self.times(requests),
            known=self.rng.random(requests) < 0.8,
            user=self.columns(self.schema.user_layout, requests),
            context=self.columns(self.schema.context_layout, requests),
            history_offsets=history,
            history_rows=self.rng.integers(-1, count, h),
            history_events=self.rng.integers(0, len(EVENTS), h).astype(np.int32),
            history_counts=self.rng.choice(COUNTS, h),
            history_last_us=self.times(h),
            recent_offsets=np.cumsum([0, *map(len, recents)], dtype=np.int64),
            recent_rows=np.concatenate([np.empty(0, np.int64), *recents]),
            source_scores=self.floats(n, s),
            source_ranks=self.floats(n, s),
            user_vectors={name: self.vectors(requests, dim, missing=0.2) for name, dim in SPACES.items()},
        )

    def recent(self, count: int, size: int) -> np.ndarray:
        rows = recent_items(self.rng.integers(0, count, size), self.rng.integers(0, count, size))
        return np.where(self.rng.random(len(rows)) < 0.2, -1, rows)


def one_request(batch: FeatureBatch, r: int) -> FeatureBatch:
    """Request r by itself."""
    candidates = slice(batch.offsets[r], batch.offsets[r + 1])
    history = slice(batch.history_offsets[r], batch.history_offsets[r + 1])
    recent = slice(batch.recent_offsets[r], batch.recent_offsets[r + 1])
    return FeatureBatch(
        offsets=batch.offsets[r : r + 2] - batch.offsets[r],
        rows=batch.rows[candidates],
        time_us=batch.time_us[r : r + 1],
        known=batch.known[r : r + 1],
        user=batch.user.row(r),
        context=batch.context.row(r),
        history_offsets=batch.history_offsets[r : r + 2] - batch.history_offsets[r],
        history_rows=batch.history_rows[history],
        history_events=batch.history_events[history],
        history_counts=batch.history_counts[history],
        history_last_us=batch.history_last_us[history],
        recent_offsets=batch.recent_offsets[r : r + 2] - batch.recent_offsets[r],
        recent_rows=batch.recent_rows[recent],
        source_scores=batch.source_scores[candidates],
        source_ranks=batch.source_ranks[candidates],
        user_vectors={name: vectors[r : r + 1] for name, vectors in batch.user_vectors.items()},
    )


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=150, deadline=None)
@given(schema=schemas(), requests=st.integers(0, 4), items=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_program_equals_reference(schema, requests, items, seed):
    random = Random(schema, seed)
    arrays = random.items(items)
    batch = random.batch(arrays, requests)
    found = FeatureProgram(schema, VOCABULARIES).compute(arrays, batch)
    assert_same_bits(found, reference_features(schema, VOCABULARIES, arrays, batch))


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), requests=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_a_request_alone_equals_itself_in_a_batch(schema, requests, seed):
    random = Random(schema, seed)
    arrays = random.items(8)
    batch = random.batch(arrays, requests)
    program = FeatureProgram(schema, VOCABULARIES)
    together = program.compute(arrays, batch)
    for r in range(requests):
        alone = program.compute(arrays, one_request(batch, r))
        assert_same_bits(alone, together[batch.offsets[r] : batch.offsets[r + 1]])


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), requests=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_features_of_requests_are_those_of_their_candidates(schema, requests, seed):
    schema = schema.select(column for column, scope in enumerate(schema.scopes) if scope == "request")
    random = Random(schema, seed)
    arrays = random.items(8)
    batch = random.batch(arrays, requests)
    program = FeatureProgram(schema, VOCABULARIES)
    repeated = np.repeat(program.of_requests(batch), np.diff(batch.offsets), axis=0)
    assert_same_bits(repeated, program.compute(arrays, batch))


def whole_schema() -> FeatureSchema:
    """Every operation on every combination of operands."""
    user = columns_of("user", ["number", "category", "category", "time", "categories", "categories"])
    context = columns_of("context", ["number", "category", "category", "time", "categories"])
    item = columns_of("item", ["number", "category", "category", "time"])
    possible = [
        feature
        for event, last in [("", 1), ("view", 3), ("cart", 2), ("purchase", 5)]
        for feature in possible_features(Columns.of(user, context, item), event, last)
    ]
    features = tuple(replace(feature, name=f"f{i}") for i, feature in enumerate(dict.fromkeys(possible)))
    return FeatureSchema(user, context, item, EVENTS, features)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_operation_on_every_operand_in_one_schema(seed):
    schema = whole_schema()
    assert len(schema.features) > 100
    assert {feature.op for feature in schema.features} == set(OPERATIONS)
    random = Random(schema, seed)
    arrays = random.items(20)
    batch = random.batch(arrays, 5)
    found = FeatureProgram(schema, VOCABULARIES).compute(arrays, batch)
    assert_same_bits(found, reference_features(schema, VOCABULARIES, arrays, batch))


def many_candidates(seed: int) -> tuple[ItemArrays, FeatureBatch]:
    """Requests with 0, 1, 63, 64, 65 and 200 candidates: blocks of all lengths."""
    schema = whole_schema()
    random = Random(schema, seed)
    items = random.items(50)
    sizes = [0, 1, 63, 64, 65, 200]
    batch, count, sources = random.batch(items, len(sizes)), sum(sizes), len(schema.sources)
    return items, replace(
        batch,
        offsets=np.cumsum([0, *sizes]),
        rows=random.rng.integers(0, 50, count),
        source_scores=random.floats(count, sources),
        source_ranks=random.floats(count, sources),
    )


def test_more_candidates_than_a_block_holds():
    items, batch = many_candidates(4)
    schema = whole_schema()
    program = FeatureProgram(schema, VOCABULARIES)
    together = program.compute(items, batch)
    assert_same_bits(together, reference_features(schema, VOCABULARIES, items, batch))
    for r in range(len(batch.time_us)):
        alone = program.compute(items, one_request(batch, r))
        assert_same_bits(alone, together[batch.offsets[r] : batch.offsets[r + 1]])


def similarities(seed: int) -> tuple[FeatureSchema, ItemArrays, FeatureBatch]:
    """Dot products and similarities to up to 20 recent items, in spaces of many dimensions; some vectors are odd."""
    dims = (1, 2, 7, 8, 9, 15, 16, 31, 64, 100, 128)
    features = tuple(
        FeatureSpec(f"{op}_{dim}_{last}", op, (f"space.d{dim}",), last=last)
        for dim in dims
        for op, lasts in (("dot", (0,)), ("max_similarity", (1, 5, 20)), ("mean_similarity", (3, 20)))
        for last in lasts
    )
    schema = FeatureSchema(event_types=EVENTS, features=features)
    random = Random(schema, seed)
    requests = 22  # request r has r recent items and candidates, so that both are taken in groups of every size
    vectors = {f"d{dim}": random.vectors(40, dim, missing=0.05) for dim in dims}
    for array in vectors.values():  # so that the order of a sum shows: what is added between these two is lost
        for row in array[10:]:
            row[random.rng.integers(len(row), size=2)] = 2.0**60, -(2.0**60)
    vectors["d16"][:4] = np.array([np.inf, -np.inf, 3e38, 1e-45], np.float32)[:, np.newaxis]
    items = ItemArrays(np.empty((40, 0), np.float32), np.empty((40, 0), np.int64), vectors)
    batch = random.batch(items, requests)
    return (
        schema,
        items,
        replace(
            batch,
            offsets=np.cumsum([0, *range(requests)]),
            rows=random.rng.integers(0, 40, sum(range(requests))),
            source_scores=np.empty((sum(range(requests)), 0), np.float32),
            source_ranks=np.empty((sum(range(requests)), 0), np.float32),
            recent_offsets=np.cumsum([0, *range(requests)]),
            recent_rows=np.concatenate([random.rng.permutation(40)[:r] for r in range(requests)]),
            user_vectors={f"d{dim}": np.sign(random.vectors(requests, dim, missing=0.2)) for dim in dims},
        ),
    )


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_every_cpu_variant_gives_the_same_bits(tmp_path: Path, variant: str):
    """In a process of its own, because the variant is chosen at import."""
    schema, items, batch = similarities(5)
    inputs = tmp_path / "inputs"
    inputs.write_bytes(pickle.dumps((schema.to_json(), items, batch)))
    script = (
        "import pickle, sys; from recserve.kernels import vectors; "
        "from recserve.kernels.features import FeatureProgram, FeatureSchema; "
        f"assert vectors.CPU_VARIANT == {variant!r}; "
        "schema, items, batch = pickle.load(open(sys.argv[1], 'rb')); "
        "program = FeatureProgram(FeatureSchema.from_json(schema), {}); "
        "sys.stdout.buffer.write(program.compute(items, batch).tobytes())"
    )
    command = [sys.executable, "-c", script, str(inputs)]
    done = subprocess.run(command, env=os.environ | {"RECSERVE_CPU": variant}, capture_output=True, check=False)
    assert done.stderr == b""
    expected = reference_features(schema, {}, items, batch)
    assert done.stdout == expected.tobytes()


Refusal = tuple[type[Exception], str] | None


def refusal(call: Callable[[ItemArrays, FeatureBatch], object], items: ItemArrays, batch: FeatureBatch) -> Refusal:
    try:
        call(items, batch)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


def odd(array: np.ndarray) -> Iterator[object]:
    """What could stand in an array's place; some of it is as good as the array."""
    yield from (array.tolist(), array.ravel(), array[np.newaxis], array[..., np.newaxis], np.array(3, array.dtype))
    kinds = ("f4", "f8", "i4", "i8", "u8", "q", "u1", "?", "f2", "g", "c8", "M8[s]", "m8[s]", "S4", "U1", "O")
    yield from (np.zeros(array.shape, kind) for kind in kinds)
    yield from (np.zeros(array.shape, [("x", array.dtype)]), array.astype(array.dtype.newbyteorder()))
    yield from (array[1:], array[:-1], np.concatenate([array, array[:1]]), array[..., :-1])
    yield from (np.asfortranarray(array), np.repeat(array, 2, axis=-1)[..., ::2], array[::-1])
    yield np.lib.stride_tricks.as_strided(array[:1], strides=(3, *array.strides[1:]))
    unaligned = np.zeros(array.nbytes + 1, np.uint8)[1:]
    unaligned[:] = np.frombuffer(array.tobytes(), np.uint8)
    yield unaligned.view(array.dtype).reshape(array.shape)
    for value in (-2, -1, 0, 2, 3, 4, 8, 127):
        yield np.full_like(array, value)
        changed = array.copy()
        changed[-1:] = value
        yield changed
    frozen = array.copy()
    frozen.flags.writeable = False
    yield from (frozen, frozen.view(np.memmap))


def odd_inputs(items: ItemArrays, batch: FeatureBatch) -> Iterator[tuple[ItemArrays, FeatureBatch]]:
    """The inputs with one array replaced."""
    for name in ("features", "times"):
        yield from ((replace(items, **{name: array}), batch) for array in odd(getattr(items, name)))
    for array in odd(items.vectors["als"]):
        yield replace(items, vectors=items.vectors | {"als": array}), batch
    for name in FeatureBatch.__dataclass_fields__:
        whole = getattr(batch, name)
        if isinstance(whole, ColumnValues):
            for part in ColumnValues.__dataclass_fields__:
                for array in odd(getattr(whole, part)):
                    yield items, replace(batch, **{name: replace(whole, **{part: array})})
        elif name == "user_vectors":
            yield from ((items, replace(batch, user_vectors=whole | {"als": array})) for array in odd(whole["als"]))
        else:
            yield from ((items, replace(batch, **{name: array})) for array in odd(whole))


@pytest.mark.parametrize("requests", [1, 3])
def test_the_program_refuses_what_the_checks_refuse(requests):
    schema = whole_schema()
    random = Random(schema, 6)
    items = random.items(8)
    batch = random.batch(items, requests)
    program, checks = FeatureProgram(schema, VOCABULARIES), InputChecks(schema, VOCABULARIES)
    outcomes = []
    for its, this in odd_inputs(items, batch):
        outcomes.append(refusal(checks.check, its, this))
        assert refusal(program.compute, its, this) == outcomes[-1]
    assert outcomes.count(None) > 100
    assert len(set(outcomes)) > 100


def test_items_that_came_before_are_those_of_the_call():
    """The program keeps the items of its last call: others take their place, and nobody notices."""
    schema = whole_schema()
    program, seen = FeatureProgram(schema, VOCABULARIES), []
    for seed in (7, 8, 7):
        random = Random(schema, seed)
        items = random.items(20)
        batch = random.batch(items, 3)
        seen.append((items, batch))
    for items, batch in [*seen, *seen, seen[0], seen[0]]:
        found = program.compute(items, batch)
        assert_same_bits(found, reference_features(schema, VOCABULARIES, items, batch))
