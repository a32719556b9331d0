"""Forests: the kernel against its reference, its refusals, and damaged arrays."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.exporters.forest_decisions import NUMERIC, Nodes, collect_conditions
from recserve.exporters.forest_program import Tree, compile_tree
from recserve.kernels import forest as kernel
from recserve.kernels._cpu import choose_variant
from recserve.kernels._forest_arrays import FIRST_CONDITION, NAMES
from recserve.kernels.forest import Forest
from recserve.kernels.reference.forest import Forest as Reference

FEATURES = 6
Arrays = dict[str, NDArray[Any]]


Shape = Callable[[np.random.Generator, int], tuple[list[int], list[int]]]


def random_shape(rng: np.random.Generator, nodes: int) -> tuple[list[int], list[int]]:
    """Children of a random binary tree, grown leaf by leaf as LightGBM does."""
    children = [[~0, ~0] for _ in range(nodes)]
    places: list[tuple[int, int]] = []
    for node in range(nodes):
        if node:
            parent, side = places.pop(rng.integers(len(places)))
            children[parent][side] = node
        places += [(node, 0), (node, 1)]
    for leaf, (parent, side) in enumerate(places):
        children[parent][side] = ~leaf
    return [pair[0] for pair in children], [pair[1] for pair in children]


def chain(rng: np.random.Generator, nodes: int) -> tuple[list[int], list[int]]:
    """Children of a tree in which every node but the last has a leaf on one side, always the same."""
    leaves = [~leaf for leaf in range(nodes)]
    others = [*range(1, nodes), ~nodes] if nodes else []
    return (leaves, others) if rng.random() < 0.5 else (others, leaves)


def random_forest(
    seed: int,
    trees: int = 12,
    leaves: int = 100,
    outputs: int = 2,
    thresholds: int = 300,
    categories: int = 400,
    least: int = 1,
    shape: Shape = random_shape,
) -> Arrays:
    """A forest of random trees of `least` to `leaves` leaves: numeric nodes with all rules for NaN and zero, and
    category nodes.

    Decisions over more than 254 categories take several conditions. With no categories, zero has no rule either: then
    each condition is one range of bins.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(least, leaves + 1, trees) - 1
    count = int(sizes.sum())
    grid = np.sort(rng.normal(size=thresholds)) if thresholds else np.zeros(1)
    sets = [
        np.unique(rng.integers(0, categories, rng.integers(1, categories // 2))) for _ in range(5 if categories else 0)
    ]
    nodes = Nodes(
        features=rng.integers(0, FEATURES, count),
        thresholds=rng.choice(grid, count),
        nan_left=rng.random(count) < 0.5,
        zero=rng.integers(0, 3 if sets else 1, count),
        sets=np.where(rng.random(count) < (0.2 if sets else 0), rng.integers(0, len(sets) or 1, count), NUMERIC),
        categories=sets,
        single=rng.random(count) < 0.5,
    )
    conditions = collect_conditions(nodes)
    pieces, starts = [], np.cumsum([0, *sizes])
    bounds = [0]
    for output in np.array_split(np.arange(trees), outputs):
        for tree in output:
            left, right = shape(rng, int(sizes[tree]))
            refs = conditions.nodes[starts[tree] : starts[tree + 1]]
            values = rng.normal(size=sizes[tree] + 1)
            pieces.extend(compile_tree(Tree(left, right, refs, values), FIRST_CONDITION + conditions.count))
        bounds.append(len(pieces))
    return {
        "features": np.array([FEATURES]),
        **{name: getattr(conditions, name) for name in ("column_features", "threshold_bounds", "thresholds")},
        **{name: getattr(conditions, name) for name in ("range_bounds", "range_lows", "range_widths")},
        **{name: getattr(conditions, name) for name in ("set_bounds", "set_bits")},
        "op_bounds": np.cumsum([0, *(len(piece.ops) for piece in pieces)]),
        "ops": np.array([op for piece in pieces for op in piece.ops], np.uint32).reshape(-1, 3),
        "planes": np.array([piece.planes for piece in pieces], np.uint32).reshape(-1, 6),
        "leaves": np.array([piece.values for piece in pieces]).reshape(-1, 64),
        "output_bounds": np.array(bounds),
        "forest_bounds": np.array([0, outputs]),
        "initials": rng.normal(size=outputs).astype(np.float32).astype(np.float64),
        "divisors": rng.choice([1.0, 3.0, float(trees)], outputs),
        "singles": rng.integers(0, 2, outputs, np.uint8),
    }


def random_rows(seed: int, n: int, dtype: type[np.floating] = np.float32) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(n, FEATURES)) * rng.choice([1, 0.1, 200], (n, FEATURES))
    special = rng.choice([np.nan, 0.0, -0.0, np.inf, -np.inf, -0.5, -1.0, 3.0], found.shape)
    return np.where(rng.random(found.shape) < 0.2, special, found).astype(dtype)


def same_bits(found: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    return found.shape == expected.shape and bool((found.view(np.int64) == expected.view(np.int64)).all())


@pytest.fixture(scope="module", params=[(100, 400), (60, 0)], ids=["mixed", "numeric"])
def forest(request: pytest.FixtureRequest) -> Forest:
    leaves, categories = request.param
    return Forest(random_forest(1, leaves=leaves, categories=categories))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**30),
    n=st.integers(0, 700),
    leaves=st.integers(1, 150),
    thresholds=st.integers(0, 700),
    outputs=st.integers(1, 3),
    categories=st.sampled_from([0, 60, 400]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_reference_agrees(
    seed: int, n: int, leaves: int, thresholds: int, outputs: int, categories: int, dtype: type[np.floating]
) -> None:
    arrays = random_forest(seed, 8, leaves, outputs, thresholds, categories)
    rows = random_rows(seed, n, dtype)
    assert same_bits(Forest(arrays).predict(rows), Reference(arrays).predict(rows))


@pytest.mark.parametrize("categories", [0, 60, 400])
@pytest.mark.parametrize("leaves", [1, 30, 64, 150])
@pytest.mark.parametrize("n", [1, 2, 5, 31, 32, 33])
def test_few_rows_are_rows_like_all_others(n: int, leaves: int, categories: int) -> None:
    arrays = random_forest(n, 23, leaves, 3, categories=categories)
    forest, rows = Forest(arrays), random_rows(n, 300)
    few = np.ascontiguousarray(rows[-n:])
    assert same_bits(forest.predict(few), Reference(arrays).predict(few))
    # Float sums are rounded differently from the exact ones, but always in the same way.
    assert same_bits(forest.predict(few, float_sums=True), forest.predict(rows, float_sums=True)[-n:])


@pytest.mark.parametrize("least", [2, 17, 33, 49])
def test_paths_of_every_length_end_at_their_leaves(least: int) -> None:
    for leaves in range(least, least + 16):
        arrays = random_forest(leaves, 3, leaves, 1, categories=0, least=leaves, shape=chain)
        forest, rows = Forest(arrays), random_rows(leaves, 20)
        rows[:2] = [[-np.inf], [np.inf]]  # all the way to the left, and to the right
        expected = Reference(arrays).predict(rows)
        for size in (1, 2, 20):
            parts = [forest.predict(rows[start : start + size]) for start in range(0, len(rows), size)]
            assert same_bits(np.concatenate(parts), expected)


@pytest.mark.parametrize("column", [0, 15, 16, 126, 127, 128, 199])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_few_rows_may_have_many_columns(column: int, n: int) -> None:
    features = 200
    arrays = programs([(2 + column, 3, 4), (5, 202, 2)], [203, 2 + column, 0, 0, 0, 1], features)
    rows = np.random.default_rng(column).normal(size=(n, features))
    assert same_bits(Forest(arrays).predict(rows), Reference(arrays).predict(rows))


def programs(ops: list[tuple[int, int, int]], planes: list[int], features: int = FEATURES) -> Arrays:
    """A forest of one piece; slots from 2 are "feature i is at most 0", then come the operations: from 8 for six."""
    return {
        "features": np.array([features]),
        "column_features": np.arange(features, dtype=np.int32),
        "threshold_bounds": np.arange(features + 1),
        "thresholds": np.zeros(features),
        "range_bounds": np.arange(features + 1),
        "range_lows": np.zeros(features, np.uint8),
        "range_widths": np.zeros(features, np.uint8),
        "set_bounds": np.zeros(features + 1, np.int64),
        "set_bits": np.empty((0, 32), np.uint8),
        "op_bounds": np.array([0, len(ops)]),
        "ops": np.array(ops, np.uint32).reshape(-1, 3),
        "planes": np.array([planes], np.uint32),
        "leaves": np.random.default_rng(0).normal(size=(1, 64)),
        "output_bounds": np.array([0, 1]),
        "forest_bounds": np.array([0, 1]),
        "initials": np.zeros(1),
        "divisors": np.ones(1),
        "singles": np.zeros(1, np.uint8),
    }


@pytest.mark.parametrize(
    ("ops", "planes"),
    [
        ([], [0] * 6),
        ([], [1, 0, 1, 1, 1, 1]),
        ([], [7, 6, 5, 4, 3, 2]),
        ([(2, 1, 3), (8, 4, 5)], [9, 8, 2, 0, 1, 3]),
        ([(2, 1, 3), (4, 1, 8), (5, 1, 9), (10, 6, 7)], [11, 10, 9, 8, 0, 1]),
        ([(2, 3, 0), (8, 4, 5)], [9, 8, 2, 0, 1, 3]),
        ([(2, 3, 1), (8, 0, 1), (9, 1, 8), (10, 4, 8)], [11, 10, 9, 8, 7, 0]),
    ],
    ids=["constant", "other constant", "conditions", "join", "long join", "conjunction", "deep"],
)
@pytest.mark.parametrize("n", [1, 20, 200])
def test_programs_need_not_come_from_trees(n: int, ops: list[tuple[int, int, int]], planes: list[int]) -> None:
    arrays, rows = programs(ops, planes), random_rows(n, n)
    assert same_bits(Forest(arrays).predict(rows), Reference(arrays).predict(rows))


def test_programs_may_be_trees_too_large_to_walk() -> None:
    """The sum of 40 conditions modulo 64: as a tree it would have millions of nodes."""
    plain = programs([], [0] * 6)
    thresholds, rng = np.linspace(-1, 1, 40), np.random.default_rng(3)
    column = {
        "column_features": np.zeros(1, np.int32),
        **{f"{name}_bounds": np.array([0, 40]) for name in ("threshold", "range")},
        "set_bounds": np.zeros(2, np.int64),
        "thresholds": thresholds,
        "range_lows": rng.permutation(40).astype(np.uint8),
        "range_widths": rng.integers(0, 5, 40).astype(np.uint8),
    }
    ops, planes = [], [0] * 6
    for condition in range(2, 42):
        carry = condition
        for bit in range(6):
            old, start = planes[bit], 42 + len(ops)
            ops += [(old, 0, 1), (carry, start, old), (carry, old, 0)]
            planes[bit], carry = start + 1, start + 2
    counter = {"op_bounds": np.array([0, len(ops)]), "ops": np.array(ops, np.uint32), "planes": np.uint32([planes])}
    arrays = {**plain, **column, **counter}
    for n in (1, 20, 200):
        rows = random_rows(n, n)
        assert same_bits(Forest(arrays).predict(rows), Reference(arrays).predict(rows))


def test_every_variant_gives_the_same_bits(tmp_path: Path, forest: Forest) -> None:
    rows = random_rows(2, 600)
    forest.save(tmp_path / "forest")
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import sys, numpy as np; from recserve.kernels.forest import Forest; "
        "forest, rows = Forest.load(sys.argv[1]), np.load(sys.argv[2]); "
        "sys.stdout.buffer.write(b''.join(forest.predict(rows[:n], float_sums=single).tobytes() "
        "for n in (600, 20, 1) for single in (False, True)))"
    )
    expected = b"".join(
        forest.predict(rows[:n], float_sums=single).tobytes() for n in (600, 20, 1) for single in (False, True)
    )
    command = [sys.executable, "-c", script, str(tmp_path / "forest"), str(tmp_path / "rows.npy")]
    for variant in kernel.CPU_VARIANTS:
        done = subprocess.run(command, env=os.environ | {"RECSERVE_CPU": variant}, capture_output=True, check=True)
        assert done.stdout == expected, variant


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(RuntimeError, match="RECSERVE_CPU=avx9000: expected one of portable"):
        choose_variant("avx9000", kernel.CPU_VARIANTS)


def test_order_and_company_of_rows_change_nothing(forest: Forest) -> None:
    rows = random_rows(3, 1200)
    expected = forest.predict(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    assert same_bits(forest.predict(rows[order]), expected[order])
    for size in (1, 7, 63, 64, 65, 255, 257, 513):
        parts = [forest.predict(rows[start : start + size]) for start in range(0, len(rows), size)]
        assert same_bits(np.concatenate(parts), expected)


def test_threads_change_nothing(forest: Forest) -> None:
    blocks = [random_rows(seed, 300) for seed in range(16)]
    expected = [forest.predict(block) for block in blocks]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(same_bits, pool.map(forest.predict, blocks), expected))


@pytest.mark.parametrize("sizes", [[500], [1], [0], [64, 65, 3], [20, 0, 700, 1, 9], []])
def test_requests_are_rows_put_together(forest: Forest, sizes: list[int]) -> None:
    items, crosses, requests = [4, 0], [1], [5, 2, 3]
    n, rng = sum(sizes), np.random.default_rng(4)
    item_values = np.ascontiguousarray(random_rows(5, 50)[:, items])
    request_values = np.ascontiguousarray(random_rows(6, len(sizes))[:, requests])
    cross_values = np.ascontiguousarray(random_rows(7, n)[:, crosses])
    rows = rng.integers(0, 50, n)
    whole = np.empty((n, FEATURES), np.float32)
    whole[:, items], whole[:, crosses] = item_values[rows], cross_values
    whole[:, requests] = np.repeat(request_values, sizes, axis=0)
    plan = forest.plan(items, requests, crosses)
    bins = forest.bin_matrix(item_values, items)
    found = plan.margins(bins, rows, np.cumsum([0, *sizes]), request_values, cross_values)
    assert same_bits(found, forest.predict(whole))


def margins_of_one_request(forest: Forest, values: NDArray[np.float32], items: list[int]) -> NDArray[np.float64]:
    """Margins of rows as a request's candidates, of which they differ in the features `items` only."""
    requests = [feature for feature in range(forest.features) if feature not in set(items)]
    bins = forest.bin_matrix(np.ascontiguousarray(values[:, items]), items)
    user, n = np.ascontiguousarray(values[:1, requests]), len(values)
    plan = forest.plan(items, requests, [])
    return plan.margins(bins, np.arange(n), np.array([0, n]), user, np.empty((n, 0), np.float32))


OPERATIONS = st.lists(st.tuples(*[st.integers(0, 2**16)] * 3), max_size=14)


@given(OPERATIONS, st.lists(st.integers(0, 2**16), min_size=6, max_size=6), st.sets(st.integers(0, FEATURES - 1)))
@settings(max_examples=300)
def test_whatever_is_fixed_in_a_request_the_program_stays_the_same(
    numbers: list[tuple[int, int, int]], planes: list[int], fixed: set[int]
) -> None:
    """Operations may ask results, also of operations that are choices for this request."""
    first = FIRST_CONDITION + FEATURES
    ops = [tuple(number % (first + i) for number in each) for i, each in enumerate(numbers)]
    forest = Forest(programs(ops, [plane % (first + len(ops)) for plane in planes]))
    items, requests = sorted(set(range(FEATURES)) - fixed), sorted(fixed)
    values, users = random_rows(1, 70), random_rows(2, 3)
    bins = forest.bin_matrix(np.ascontiguousarray(values[:, items]), items)
    sizes, rows = [70, 0, 40], np.arange(110) % 70
    found = forest.plan(items, requests, []).margins(
        bins, rows, np.cumsum([0, *sizes]), np.ascontiguousarray(users[:, requests]), np.empty((110, 0), np.float32)
    )
    whole = values[rows]
    whole[:, requests] = np.repeat(users[:, requests], sizes, axis=0)
    assert same_bits(found[:, 0], forest.predict(whole))
    assert same_bits(found[:, 0], Reference(forest.arrays).predict(whole))


def test_a_plan_of_a_piece_of_many_operations_is_soon_made() -> None:
    """So many that they keep their order."""
    first, count, rng = FIRST_CONDITION + FEATURES, 100_000, np.random.default_rng(2)
    slots = rng.integers(0, first + np.arange(count)[:, np.newaxis], (count, 3))
    forest = Forest(programs([tuple(op) for op in slots.tolist()], [first + count - 1 - i for i in range(6)]))
    values = random_rows(3, 40)
    values[:, 3:] = values[0, 3:]
    assert same_bits(margins_of_one_request(forest, values, [0, 1, 2])[:, 0], forest.predict(values))


@pytest.mark.parametrize("features", [2**16 - 5, 2**16 - 4, 2**16 + 9])
def test_programs_may_have_more_names_than_fit_16_bits(features: int) -> None:
    """Two slots, a condition a feature, and three results, of which an operation asks the one with the last name."""
    last, first = FIRST_CONDITION + features - 1, FIRST_CONDITION + features
    ops = [(last, 2, 3), (4, first, last), (2, first + 1, 1)]
    forest = Forest(programs(ops, [first + 2, first + 1, first, last, 2, 3], features))
    values = np.random.default_rng(features).normal(size=(40, features)).astype(np.float32)
    values[:, 1:-1] = values[0, 1:-1]
    found = margins_of_one_request(forest, values, [0, features - 1])
    assert same_bits(found[:, 0], forest.predict(values))


def test_any_number_of_item_columns_is_gathered() -> None:
    forest = Forest(random_forest(13, trees=60, leaves=200, thresholds=20_000))  # several columns a feature
    values, rng = random_rows(9, 700), np.random.default_rng(9)
    columns = []
    for count in range(1, FEATURES):
        items, crosses = list(range(count)), list(range(count, FEATURES))
        plan = forest.plan(items, [], crosses)
        columns.append(len(plan.item_columns))
        bins = forest.bin_matrix(np.ascontiguousarray(values[:, items]), items)
        for n in (1, 16, 17, 70, 600):
            rows = rng.integers(0, len(values), n)
            cross_values = np.ascontiguousarray(values[np.ix_(rows, crosses)])
            found = plan.margins(bins, rows, np.array([0, n]), np.empty((1, 0), np.float32), cross_values)
            assert same_bits(found, forest.predict(values[rows]))
    assert columns[0] < 16 < columns[-1]


@pytest.mark.parametrize("n", [1, 60, 300, 600])
def test_float_sums_keep_their_bound(n: int) -> None:
    arrays = random_forest(11, trees=200, leaves=30)
    forest = Forest({**arrays, "singles": np.array([0, 1], np.uint8), "divisors": np.ones(2)})
    rows = random_rows(n, n)
    found = forest.predict(rows, float_sums=True)
    off = np.abs(found - forest.predict(rows))
    assert (off <= forest.float_error_bounds).all()
    assert n == 1 or off[:, 0].max() > 0
    assert forest.float_error_bounds[1] == 0
    assert same_bits(found, found.astype(np.float32).astype(np.float64))


def test_bins_are_the_references(forest: Forest) -> None:
    values = np.ascontiguousarray(random_rows(8, 400)[:, [3, 1]])
    assert (forest.bin_matrix(values, [3, 1]) == Reference(forest.arrays).bin_matrix(values, [3, 1])).all()


def test_saving_and_loading_keep_everything(tmp_path: Path, forest: Forest) -> None:
    forest.save(tmp_path / "forest")
    loaded = Forest.load(tmp_path / "forest")
    assert loaded.set_hash == forest.set_hash
    assert isinstance(loaded.arrays["ops"].base, np.memmap) or isinstance(loaded.arrays["ops"], np.memmap)
    rows = random_rows(9, 100)
    assert same_bits(loaded.predict(rows), forest.predict(rows))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows[:, :5], ValueError, r"rows: expected shape \[any, 6\], found \[10, 5\]"),
        (lambda rows: rows.astype(np.float16), TypeError, "rows: expected dtype float32, found float16"),
        (lambda rows: rows.view(np.int32), TypeError, "rows: expected dtype float32, found int32"),
        (np.asfortranarray, ValueError, "rows: expected a C-contiguous"),
        (lambda rows: rows[::2], ValueError, "rows: expected a C-contiguous"),
        (lambda rows: rows[0], ValueError, r"rows: expected shape \[any, 6\], found \[6\]"),
        (lambda rows: rows.tolist(), TypeError, "rows: expected a NumPy array of float32, found list"),
        (lambda rows: rows.astype(">f4"), TypeError, "rows: expected dtype float32, found >f4"),
    ],
)
def test_wrong_rows_are_refused(
    forest: Forest, change: Callable[[NDArray[Any]], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        forest.predict(change(random_rows(1, 10)))


def test_a_plan_needs_every_feature_once(forest: Forest) -> None:
    with pytest.raises(ValueError, match=r"asks for features \[5\], which are neither"):
        forest.plan([0, 1], [2], [3, 4])
    with pytest.raises(ValueError, match="listed twice"):
        forest.plan([0, 1], [1, 2, 3], [4, 5])
    with pytest.raises(ValueError, match=r"features\[2\] is 6, outside"):
        forest.plan([0, 1, 6], [2, 3], [4, 5])


def test_rows_outside_the_items_are_refused(forest: Forest) -> None:
    plan = forest.plan(range(FEATURES), [], [])
    bins = forest.bin_matrix(random_rows(1, 5), range(FEATURES))
    nothing = np.empty((1, 0), np.float32)
    for row in (-1, 5):
        with pytest.raises(ValueError, match=rf"rows\[0\] is {row}, outside a table of 5 rows"):
            plan.margins(bins, np.array([row]), np.array([0, 1]), nothing, nothing)
    with pytest.raises(ValueError, match="request_bounds: expected bounds that rise from 0 to 1"):
        plan.margins(bins, np.array([0]), np.array([0, 2]), nothing, nothing)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("item_bins", lambda a: a[:, 1:].copy(), ValueError, r"expected shape \[any, \d+\]"),
        ("item_bins", lambda a: a.astype(np.int8), TypeError, "expected dtype uint8"),
        ("item_bins", np.asfortranarray, ValueError, "expected a C-contiguous"),
        ("rows", lambda a: a.astype(np.int32), TypeError, "expected dtype int64"),
        ("rows", lambda a: np.repeat(a, 2)[::2], ValueError, "expected a C-contiguous"),
        ("rows", lambda a: a[:, np.newaxis], ValueError, r"expected shape \[any\]"),
        ("rows", lambda a: a.tolist(), TypeError, "expected a NumPy array"),
        ("request_bounds", lambda a: a[:-1], ValueError, r"expected shape \[3\], found \[2\]"),
        ("request_bounds", lambda a: a[::-1].copy(), ValueError, "expected bounds that rise from 0 to 4"),
        ("request_values", lambda a: a.astype(np.float64), TypeError, "expected dtype float32"),
        ("request_values", lambda a: a[:, :1].copy(), ValueError, r"expected shape \[any, 2\]"),
        ("cross_values", lambda a: a[:3], ValueError, r"expected shape \[4, 1\], found \[3, 1\]"),
        ("cross_values", lambda a: a.astype(">f4"), TypeError, "expected dtype float32, found >f4"),
    ],
)
def test_wrong_requests_are_refused(
    forest: Forest, name: str, change: Callable[[NDArray[Any]], Any], error: type[Exception], message: str
) -> None:
    plan = forest.plan([0, 1, 2], [3, 4], [5])
    arguments = {
        "item_bins": forest.bin_matrix(np.ascontiguousarray(random_rows(1, 9)[:, :3]), [0, 1, 2]),
        "rows": np.arange(4),
        "request_bounds": np.array([0, 1, 4]),
        "request_values": np.zeros((2, 2), np.float32),
        "cross_values": np.zeros((4, 1), np.float32),
    }
    assert plan.margins(**arguments).shape == (4, 2)
    with pytest.raises(error, match=f"^{name}: {message}"):
        plan.margins(**{**arguments, name: change(arguments[name])})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features", lambda a: a * 0, "features: expected 1 to"),
        ("column_features", lambda a: a + 6, "column_features: expected numbers from 0 to 5"),
        ("thresholds", lambda a: a[::-1].copy(), "thresholds: expected ascending"),
        ("thresholds", lambda a: a * np.nan, "thresholds: expected ascending"),
        ("threshold_bounds", lambda a: a[:-1], r"threshold_bounds: expected \d+ bounds"),
        ("range_bounds", lambda a: a[::-1].copy(), "range_bounds: expected bounds that rise"),
        ("range_widths", lambda a: a[:-1], "range_bounds: expected bounds that rise"),
        ("set_bits", lambda a: a[:, :31].copy(), "set_bits: expected shape"),
        ("op_bounds", lambda a: a - 1, "op_bounds: expected bounds that rise"),
        ("ops", lambda a: a + np.uint32(1000), "ops: an operand is neither"),
        ("planes", lambda a: a + np.uint32(100_000), "planes: a slot is neither"),
        ("leaves", lambda a: a[:-1], r"leaves: expected \d+ pieces"),
        ("leaves", lambda a: a.astype(np.float32), "leaves: expected dtype float64"),
        ("leaves", lambda a: a * np.nan, "leaves: expected finite"),
        ("output_bounds", lambda a: a + 1, "output_bounds: expected bounds that rise"),
        ("forest_bounds", lambda a: a[:0], "forest_bounds: expected at least 1 bounds"),
        ("initials", lambda a: a[:0], "initials: expected shape"),
        ("initials", lambda a: a * np.nan, "initials: expected finite"),
        ("divisors", lambda a: a * 0, "divisors: expected finite numbers above 0"),
        ("singles", lambda a: a + np.uint8(2), "singles: expected 0 or 1"),
    ],
)
def test_malformed_arrays_are_refused(
    forest: Forest, name: str, change: Callable[[NDArray[Any]], NDArray[Any]], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Forest({**forest.arrays, name: change(forest.arrays[name])})


def test_missing_arrays_are_refused(forest: Forest) -> None:
    with pytest.raises(ValueError, match="missing or unknown: ops"):
        Forest({name: array for name, array in forest.arrays.items() if name != "ops"})


def damage_file(path: Path, rng: np.random.Generator) -> None:
    """Change some bytes of a file, more often than not in its header, or cut it, or write its middle twice."""
    content = bytearray(path.read_bytes())
    start, end = np.sort(rng.integers(len(content) + 1, size=2))
    match rng.integers(8):
        case 0:
            del content[end:]
        case 1:
            content[start:start] = content[start:end]
        case _:
            for _ in range(rng.integers(1, 4)):
                content[rng.integers(len(content) if rng.random() < 0.5 else 128)] = rng.integers(256)
    path.write_bytes(bytes(content))


def damage_array(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """The array of another length, order, shape, dtype or layout, or with values that are wrong or extreme."""
    length = rng.integers(len(array) + 1)
    misaligned = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)  # nor initialised
    changes: list[Callable[[], NDArray[Any]]] = [
        lambda: np.asfortranarray(array) if array.ndim > 1 else np.repeat(array, 2)[::2],
        lambda: array.astype(rng.choice(["f4", "f8", "i4", "u4", "i8", "u1", ">i8", "bool", "object"])),
        array[:length].copy,
        lambda: np.concatenate((array, array[: length + 1])),
        lambda: rng.permutation(array),
        lambda: array[np.newaxis],
        lambda: array.reshape(-1),
        lambda: misaligned,
        *[lambda: damage_values(array, rng)] * 6,
    ]
    return changes[rng.integers(len(changes))]()


def damage_values(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    changed = array.copy()
    flat = changed.reshape(-1)
    if flat.size:
        place = rng.integers(flat.size)
        match rng.integers(3):
            case 0:
                flat.view(np.uint8)[rng.integers(changed.nbytes, size=3)] = rng.integers(256, size=3)
            case 1:
                flat[place] += rng.choice([1, 2, 64, 255]).astype(flat.dtype)
            case _:
                real = flat.dtype.kind == "f"
                limits = np.finfo(flat.dtype) if real else np.iinfo(flat.dtype)
                flat[place] = rng.choice([0, limits.min, limits.max, *([np.nan, np.inf] if real else [])])
    return changed


def is_refused(make: Callable[[], Forest], names: set[str]) -> bool:
    """Whether the forest is refused, by an error that says one of the names; if not, it must be sound."""
    error = ""
    try:
        forest = make()
    except (OSError, TypeError, ValueError) as refusal:
        error = str(refusal)
    if error:
        assert any(name in error for name in names), error
        return True
    if forest.features <= 1000:
        for n in (1, 20, 70):
            rows = np.ascontiguousarray(np.resize(random_rows(n, n), (n, forest.features)))
            # Not the bits: NaN has many patterns, and an addition may choose among them.
            expected = Reference(forest.arrays).predict(rows).reshape(n, forest.outputs)
            np.testing.assert_array_equal(forest.predict(rows).reshape(n, forest.outputs), expected)
            found = margins_of_one_request(forest, np.repeat(rows[:1], 40, axis=0), [])
            np.testing.assert_array_equal(found, np.repeat(expected[:1], 40, axis=0))
    return False


def fuzz(attempt: Callable[[int], bool], cases: int, seconds: float) -> None:
    """Make attempts until they or the time runs out, but not before a forest was refused and one was not."""
    end = time.monotonic() + seconds
    refused: set[bool] = set()
    for case in range(cases):
        refused.add(attempt(case))
        if len(refused) == 2 and time.monotonic() > end:
            break
    assert refused == {True, False}


FUZZ = pytest.mark.parametrize(
    ("cases", "seconds"), [(200, 20), pytest.param(20_000, 120, marks=pytest.mark.slow)], ids=["some", "many"]
)


@FUZZ
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_fuzzed_arrays_are_refused_or_a_forest(cases: int, seconds: float) -> None:
    rng = np.random.default_rng(cases)
    bases = [random_forest(seed, trees=3, leaves=70, categories=(0, 60, 400)[seed % 3]) for seed in range(4)]

    def attempt(case: int) -> bool:
        base = bases[case % len(bases)]
        changed = {name: damage_array(base[name], rng) for name in rng.choice(NAMES, rng.integers(1, 3))}
        return is_refused(lambda: Forest({**base, **changed}), set(NAMES))

    fuzz(attempt, cases, seconds)


@FUZZ
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_fuzzed_files_are_refused_or_a_forest(tmp_path: Path, cases: int, seconds: float) -> None:
    rng = np.random.default_rng(cases)
    original = tmp_path / "original"
    Forest(random_forest(5, trees=3, leaves=70)).save(original)
    files = sorted(original.iterdir())

    def attempt(case: int) -> bool:
        folder = shutil.copytree(original, tmp_path / str(case))
        for place in rng.choice(len(files), rng.integers(1, 3), replace=False):
            damage_file(folder / files[place].name, rng)
        refused = is_refused(lambda: Forest.load(folder), {*NAMES, "version"})
        shutil.rmtree(folder)
        return refused

    fuzz(attempt, cases, seconds)
