from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from recserve.bundle.v1 import manifest_pb2
from recserve.bundle.v1.manifest_pb2 import (
    COLUMNS,
    FLOAT32,
    INT64,
    RECENT_COUNT,
    RECENT_ITEMS,
    RECENT_MASK,
    TowerInput,
)
from recserve.kernels.features import MISSING_TIME, ColumnLayout, ColumnSpec, ColumnValues, FeatureSchema
from recserve.kernels.ids import build_slots
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import (
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    StringColumn,
    TimeColumn,
    Vocabulary,
)
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.files import ArtifactFiles
from recserve.server.bundle.reader import Bundle, Space
from recserve.server.bundle.strings import StringTable, keys_of
from recserve.server.pipeline.cache import NOTHING_KEPT, CacheLimits
from recserve.server.pipeline.towers import (
    SHARED_ROWS,
    TowerOutputError,
    TowerUsers,
    UserTower,
    check_vectors,
    input_problems,
    item_feed,
    open_session,
    open_user_tower,
    user_feed,
)

NAN = float("nan")
DAY = 86_400_000_000
DIM = 4
SCHEMA = FeatureSchema(
    user=(
        ColumnSpec("age", "number"),
        ColumnSpec("gender", "category"),
        ColumnSpec("signup", "time"),
        ColumnSpec("likes", "categories", "category"),
        ColumnSpec("income", "number"),
    )
)
LAYOUT = SCHEMA.user_layout
VOCABULARIES = {"gender": Vocabulary("gender", "fm"), "category": Vocabulary("category", "abc")}
ITEMS: dict[str, Column] = {
    "price": NumberColumn("price", np.array([1.5, np.nan, 3.0, 4.0, 5.0])),
    "category": CategoryColumn("category", np.array([2, -1, 0, 1, 2], np.int32), Vocabulary("category", "abc")),
    "launch": TimeColumn("launch", np.array([0, DAY, MISSING_TIME, 2 * DAY, 0])),
    "number": IntegerColumn("number", np.array([10, 11, 12, 13, 14])),
    "new": FlagColumn("new", np.array([0, 1, 1, 0, 1], np.uint8)),
    "title": StringColumn("title", np.arange(6), np.full(5, 97, np.uint8)),
}


@pytest.fixture
def users() -> TowerUsers:
    """One user of whom much is known, one with gaps, one unknown."""
    return TowerUsers(
        user=ColumnValues(
            numbers=np.array([[30.0, 1e3], [np.nan, 2e3], [np.nan, np.nan]]),
            codes=np.array([[1], [-1], [-1]], np.int32),
            times=np.array([[3 * DAY], [MISSING_TIME], [MISSING_TIME]]),
            list_codes=np.array([2, 0], np.int32),
            list_offsets=np.array([0, 2, 2, 2]),
        ),
        recent_offsets=np.array([0, 4, 5, 5]),
        recent_rows=np.array([3, 1, 0, 2, 4]),
        time_us=np.array([10 * DAY, 10 * DAY, 5 * DAY]),
    )


def an_input(
    kind: int = COLUMNS, *columns: str, dtype: int = FLOAT32, rank: int = 2, missing: float = NAN, **more: int
) -> TowerInput:
    return TowerInput(name="x", kind=kind, columns=columns, dtype=dtype, rank=rank, missing=missing, **more)


def fed(spec: TowerInput, users: TowerUsers) -> np.ndarray:
    tower = manifest_pb2.Tower(inputs=[spec])
    assert input_problems(tower, ITEMS, LAYOUT) == []
    return user_feed(tower, LAYOUT, ITEMS, users)["x"]


# -------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (an_input(COLUMNS, "age"), [[30], [NAN], [NAN]]),
        (an_input(COLUMNS, "age", rank=1), [30, NAN, NAN]),
        (an_input(COLUMNS, "age", missing=-5), [[30], [-5], [-5]]),
        (an_input(COLUMNS, "age", missing=-5, offset=7), [[30], [-5], [-5]]),
        (an_input(COLUMNS, "income", "age"), [[1000, 30], [2000, NAN], [NAN, NAN]]),
        (an_input(COLUMNS, "signup"), [[7], [NAN], [NAN]]),
        (an_input(COLUMNS, "signup", "gender", missing=-1, offset=1), [[7, 2], [-1, -1], [-1, -1]]),
        (an_input(COLUMNS, "gender"), [[1], [NAN], [NAN]]),
        (an_input(COLUMNS, "gender", dtype=INT64, missing=0, offset=1), [[2], [0], [0]]),
        (an_input(COLUMNS, "gender", dtype=INT64, missing=9, rank=1), [1, 9, 9]),
        (
            an_input(RECENT_ITEMS, dtype=INT64, length=3, missing=0, offset=1),
            [[4, 2, 1], [5, 0, 0], [0, 0, 0]],
        ),
        (
            an_input(RECENT_ITEMS, "category", dtype=INT64, length=5, missing=0, offset=1),
            [[2, 0, 3, 1, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        ),
        (
            an_input(RECENT_ITEMS, "number", dtype=INT64, length=2, missing=-1, offset=-10),
            [[3, 1], [4, -1], [-1, -1]],
        ),
        (an_input(RECENT_ITEMS, "price", length=2, missing=0), [[4, 0], [5, 0], [0, 0]]),
        (an_input(RECENT_ITEMS, "price", length=2), [[4, NAN], [5, NAN], [NAN, NAN]]),
        (
            an_input(RECENT_ITEMS, "launch", length=4, missing=-1),
            [[8, 9, 10, -1], [10, -1, -1, -1], [-1, -1, -1, -1]],
        ),
        (an_input(RECENT_ITEMS, "new", dtype=INT64, length=2, missing=0, offset=5), [[0, 1], [1, 0], [0, 0]]),
        (an_input(RECENT_MASK, length=5), [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
        (an_input(RECENT_MASK, length=2, dtype=INT64), [[1, 1], [1, 0], [0, 0]]),
        (an_input(RECENT_COUNT, length=3), [[3], [1], [0]]),
        (an_input(RECENT_COUNT, length=9, rank=1, dtype=INT64), [4, 1, 0]),
    ],
    ids=lambda value: str(value).replace("\n", " ") if isinstance(value, TowerInput) else "",
)
def test_user_inputs(users: TowerUsers, spec: TowerInput, expected: list[object]) -> None:
    found = fed(spec, users)
    assert found.dtype == (np.float32 if spec.dtype == FLOAT32 else np.int64)
    np.testing.assert_array_equal(found, expected)


def test_item_inputs() -> None:
    tower = manifest_pb2.Tower(
        inputs=[
            TowerInput(name="numbers", kind=COLUMNS, columns=["price", "new"], dtype=FLOAT32, rank=2, missing=-1),
            TowerInput(
                name="codes", kind=COLUMNS, columns=["category", "number"], dtype=INT64, rank=2, missing=0, offset=1
            ),
        ]
    )
    assert input_problems(tower, ITEMS, None) == []
    feed = item_feed(tower, ITEMS, np.array([1, 0, 4]))
    np.testing.assert_array_equal(feed["numbers"], [[-1, 1], [1.5, 0], [5, 1]])
    np.testing.assert_array_equal(feed["codes"], [[0, 12], [3, 11], [3, 15]])


def test_numbers_beyond_float32_are_infinite(users: TowerUsers) -> None:
    users.user.numbers[0, 0] = 1e300
    assert fed(an_input(COLUMNS, "age"), users)[0, 0] == np.inf


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (an_input(COLUMNS), "names no column"),
        (
            an_input(COLUMNS, "agee"),
            "no user column 'agee' that a tower can read; there are: age, gender, income, signup",
        ),
        (an_input(COLUMNS, "likes"), "no user column 'likes' that a tower can read"),
        (an_input(COLUMNS, "age", "income", rank=1), "must have rank 2, found 1"),
        (an_input(COLUMNS, "age", rank=3), "must have rank 1 or 2, found 3"),
        (an_input(COLUMNS, "age", length=3), "`length` is for recent items only"),
        (an_input(COLUMNS, "age", dtype=INT64, missing=0), "user column 'age' is a number, which an int64 input"),
        (an_input(COLUMNS, "gender", dtype=INT64), "int64 has no NaN"),
        (an_input(COLUMNS, "gender", dtype=INT64, missing=0.5), "must be a whole number"),
        (an_input(RECENT_ITEMS, missing=0), "at least 1"),
        (an_input(RECENT_ITEMS, length=3, rank=1, missing=0), "must have rank 2, found 1"),
        (an_input(RECENT_ITEMS, "number", length=3, dtype=INT64), "int64 has no NaN"),
        (an_input(RECENT_ITEMS, "number", "price", length=3), "takes one item column or none"),
        (an_input(RECENT_ITEMS, "title", length=3), "no item column 'title' that a tower can read"),
        (an_input(RECENT_MASK, "price", length=3), "takes no columns"),
        (an_input(RECENT_COUNT, length=3, rank=0), "must have rank 1 or 2, found 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_cannot_be_filled(spec: TowerInput, problem: str) -> None:
    problems = input_problems(manifest_pb2.Tower(inputs=[spec]), ITEMS, LAYOUT)
    assert len(problems) == 1
    assert problem in problems[0]
    assert problems[0].startswith("input 'x': ")


def test_item_towers_take_neither_times_nor_recent_items() -> None:
    tower = manifest_pb2.Tower(inputs=[an_input(COLUMNS, "launch"), an_input(RECENT_COUNT, length=2)])
    problems = "; ".join(input_problems(tower, ITEMS, None))
    assert "'launch' is a time" in problems
    assert "recent items are a user's" in problems
    assert "input 'x' is described twice" in problems
    assert input_problems(manifest_pb2.Tower(), ITEMS, None) == ["a tower needs at least one input"]


# ------------------------------------------------------------------------------------------------------------- running


def network(path: Path, *, normalise: bool = True, dim: int = DIM, table: int = 6) -> Path:
    """`numbers` [B, 2], `recent` int64 [B, 3] -> weighted sums, the mean of an embedding, and length 1 if asked."""
    rng = np.random.default_rng(5)
    constants = {
        "w": rng.normal(size=(2, dim)).astype(np.float32),
        "b": rng.normal(size=dim).astype(np.float32),
        "e": rng.normal(size=(table, dim)).astype(np.float32),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("MatMul", ["numbers", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Gather", ["e", "recent"], ["g"]),
        helper.make_node("ReduceSum", ["g", "axis"], ["s"], keepdims=0),
        helper.make_node("Add", ["a", "s"], ["sum"]),
        helper.make_node("LpNormalization", ["sum"], ["out"], axis=1, p=2)
        if normalise
        else helper.make_node("Identity", ["sum"], ["out"]),
    ]
    return save_network(path, nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()])


def save_network(path: Path, nodes: list[Any], tensors: list[Any]) -> Path:
    """`numbers` [B, 2] and `recent` int64 [B, 3] -> `out` [B, dim]."""
    graph = helper.make_graph(
        nodes,
        "tower",
        [
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("recent", TensorProto.INT64, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", None])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


TOWER = manifest_pb2.Tower(
    file="spaces/ann/user.onnx",
    output="out",
    inputs=[
        TowerInput(name="numbers", kind=COLUMNS, columns=["age", "income"], dtype=FLOAT32, rank=2, missing=0),
        TowerInput(name="recent", kind=RECENT_ITEMS, dtype=INT64, rank=2, length=3, missing=0, offset=1),
    ],
)


def a_user_tower(path: Path, *, normalized: bool = True, dim: int = DIM) -> UserTower:
    session = open_session(path, "cpu")
    return UserTower(session, TOWER, layout=LAYOUT, columns=ITEMS, dim=dim, normalized=normalized, name="ann")


def test_vectors_are_onnxruntimes(tmp_path: Path, users: TowerUsers) -> None:
    path = network(tmp_path / "user.onnx")
    numbers = np.array([[30, 1e3], [0, 2e3], [0, 0]], np.float32)
    recent = np.array([[4, 2, 1], [5, 0, 0], [0, 0, 0]])
    expected = onnxruntime.InferenceSession(path).run(["out"], {"numbers": numbers, "recent": recent})[0]
    np.testing.assert_allclose(a_user_tower(path).embed(users), expected, atol=1e-6)


def random_users(count: int) -> TowerUsers:
    rng = np.random.default_rng(9)
    layout = ColumnLayout(SCHEMA.user)
    columns = ColumnValues.missing(layout, count)
    columns.numbers[:] = rng.normal(size=columns.numbers.shape)
    recent = [rng.permutation(5)[: rng.integers(0, 5)] for _ in range(count)]
    return TowerUsers(
        user=columns,
        recent_offsets=np.cumsum([0, *(rows.size for rows in recent)]),
        recent_rows=np.concatenate(recent),
        time_us=np.full(count, DAY),
    )


def alone(users: TowerUsers, user: int) -> TowerUsers:
    start, end = users.recent_offsets[user : user + 2]
    return TowerUsers(
        user=users.user.row(user),
        recent_offsets=np.array([0, end - start]),
        recent_rows=users.recent_rows[start:end],
        time_us=users.time_us[user : user + 1],
    )


def test_a_users_vector_does_not_depend_on_batch_mates_or_threads(tmp_path: Path) -> None:
    tower = a_user_tower(network(tmp_path / "user.onnx"))
    users = random_users(40)
    together = tower.embed(users)
    with ThreadPoolExecutor(4) as pool:
        one_by_one = list(pool.map(lambda user: tower.embed(alone(users, user))[0], range(40)))
    np.testing.assert_array_equal(together, one_by_one)


class Counting:
    """A session that counts its runs and the rows in them."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.heights: list[int] = []

    def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.heights.append(len(next(iter(feed.values()))))
        return self._session.run(outputs, feed)


def wide_network(path: Path, *, together: bool = True) -> Path:
    """Products over 700 numbers, which one row adds in another order than several.

    `together`: False subtracts the mean of the batch, so that rows depend on one another.
    """
    rng = np.random.default_rng(6)
    constants = {
        "w": rng.normal(size=(2, 700)).astype(np.float32),
        "e": rng.normal(size=(6, 700)).astype(np.float32),
        "v": rng.normal(size=(700, DIM)).astype(np.float32),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("MatMul", ["numbers", "w"], ["m"]),
        helper.make_node("Gather", ["e", "recent"], ["g"]),
        helper.make_node("ReduceSum", ["g", "axis"], ["s"], keepdims=0),
        helper.make_node("Add", ["m", "s"], ["a"]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["p", "mean"], ["centred"]),
        helper.make_node("LpNormalization", ["p" if together else "centred"], ["out"], axis=1, p=2),
    ]
    return save_network(path, nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()])


def counting_tower(path: Path, limits: CacheLimits = NOTHING_KEPT) -> tuple[UserTower, Counting]:
    """A tower that shares runs if it may, and its session."""
    session = Counting(open_session(path, "cpu"))
    tower = UserTower(session, TOWER, layout=LAYOUT, columns=ITEMS, dim=DIM, normalized=True, name="ann", limits=limits)
    tower.try_sharing(random_users(SHARED_ROWS))
    session.heights.clear()
    return tower, session


def test_a_micro_batch_is_one_run(tmp_path: Path) -> None:
    tower, session = counting_tower(wide_network(tmp_path / "user.onnx"))
    users = random_users(70)
    together = tower.embed(users)
    expected = [32, 32, 6] if tower.shares_runs else [1] * 70  # some processor may not allow it
    assert session.heights == expected
    with ThreadPoolExecutor(4) as pool:
        one_by_one = list(pool.map(lambda user: tower.embed(alone(users, user))[0], range(70)))
    np.testing.assert_array_equal(together, one_by_one)


def test_a_network_of_lookups_shares_its_runs_anywhere(tmp_path: Path) -> None:
    """Without a product no processor has a reason to add in another order; a single user runs as two rows."""
    table = np.random.default_rng(6).normal(size=(6, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["e", "recent"], ["g"]),
        helper.make_node("ReduceSum", ["g", "axis"], ["s"], keepdims=0),
        helper.make_node("ReduceSum", ["numbers", "axis"], ["n"], keepdims=1),
        helper.make_node("Add", ["s", "n"], ["a"]),
        helper.make_node("LpNormalization", ["a"], ["out"], axis=1, p=2),
    ]
    tensors = [numpy_helper.from_array(table, "e"), numpy_helper.from_array(np.array([1]), "axis")]
    tower, session = counting_tower(save_network(tmp_path / "user.onnx", nodes, tensors))
    assert tower.shares_runs
    tower.embed(random_users(70))
    tower.embed(random_users(1))
    assert session.heights == [32, 32, 6, 2]


def test_rows_that_depend_on_one_another_run_alone(tmp_path: Path) -> None:
    """The network's mistake, but a user's vector is the same whoever comes along."""
    session = Counting(open_session(wide_network(tmp_path / "user.onnx", together=False), "cpu"))
    tower = UserTower(session, TOWER, layout=LAYOUT, columns=ITEMS, dim=DIM, normalized=False, name="ann")
    tower.try_sharing(random_users(SHARED_ROWS))
    assert not tower.shares_runs
    session.heights.clear()
    tower.embed(random_users(5))
    assert session.heights == [1] * 5


def test_equal_users_of_a_batch_are_computed_once(tmp_path: Path) -> None:
    tower, session = counting_tower(wide_network(tmp_path / "user.onnx"))
    users = random_users(3)
    twice = TowerUsers(
        user=ColumnValues.concat([users.user, users.user]),
        recent_offsets=np.concatenate([users.recent_offsets, users.recent_offsets[1:] + users.recent_offsets[-1]]),
        recent_rows=np.tile(users.recent_rows, 2),
        time_us=np.arange(6) * DAY,
    )
    vectors = tower.embed(twice)
    assert sum(session.heights) == 3
    np.testing.assert_array_equal(vectors[:3], vectors[3:])
    np.testing.assert_array_equal(vectors[:3], tower.embed(users))


def test_what_is_kept_is_what_would_be_computed(tmp_path: Path) -> None:
    path = wide_network(tmp_path / "user.onnx")
    fresh, _ = counting_tower(path)
    keeping, session = counting_tower(path, CacheLimits(25, 1e9))
    users = random_users(40)
    rng = np.random.default_rng(4)
    for _ in range(30):
        some = [alone(users, int(user)) for user in rng.integers(0, 40, 6)]
        batch = TowerUsers(
            user=ColumnValues.concat([each.user for each in some]),
            recent_offsets=np.cumsum([0, *(each.recent_rows.size for each in some)]),
            recent_rows=np.concatenate([each.recent_rows for each in some]),
            time_us=rng.integers(0, 1 << 50, 6),
        )
        np.testing.assert_array_equal(keeping.embed(batch), fresh.embed(batch))
    assert keeping.kept.hits + keeping.kept.misses == 180
    assert keeping.kept.hits > 60
    assert keeping.kept.entries == 25
    assert len(session.heights) <= 30


def changed(users: TowerUsers, field: str, rng: np.random.Generator) -> TowerUsers:
    """The user with one value changed."""
    columns = {part.name: getattr(users.user, part.name).copy() for part in dataclasses.fields(users.user)}
    recent, time_us = users.recent_rows.copy(), users.time_us.copy()
    if field == "time_us":
        time_us += DAY
    elif field == "recent_rows":
        recent[int(rng.integers(recent.size))] += 1
    else:
        place = (0, int(rng.integers(columns[field].shape[1])))
        columns[field][place] += 1
    return TowerUsers(
        user=ColumnValues(**columns), recent_offsets=users.recent_offsets, recent_rows=recent, time_us=time_us
    )


@pytest.mark.parametrize("reads_times", [False, True])
def test_whatever_changes_the_inputs_changes_the_key(tmp_path: Path, reads_times: bool) -> None:
    """Inputs that a tower can have, of every kind; a new field of users must be dealt with here."""
    inputs = [
        an_input(COLUMNS, "age", "income", dtype=FLOAT32),
        an_input(COLUMNS, "gender", missing=0),
        an_input(RECENT_ITEMS, length=3, missing=0),
        an_input(RECENT_ITEMS, "price", dtype=FLOAT32, length=2),
        an_input(RECENT_MASK, dtype=FLOAT32, length=4),
        an_input(RECENT_COUNT, length=2),
    ]
    if reads_times:
        inputs += [
            an_input(COLUMNS, "signup", dtype=FLOAT32),
            an_input(RECENT_ITEMS, "launch", dtype=FLOAT32, length=2),
        ]
    spec = manifest_pb2.Tower(output="out", inputs=inputs)
    for number, each in enumerate(spec.inputs):
        each.name = f"input {number}"
    tower = UserTower(
        open_session(network(tmp_path / "user.onnx"), "cpu"),
        spec,
        layout=LAYOUT,
        columns=ITEMS,
        dim=DIM,
        normalized=True,
        name="ann",
        limits=CacheLimits(5, 1),
    )
    assert tower.keeps == (not reads_times)
    fields = {part.name for part in (*dataclasses.fields(TowerUsers), *dataclasses.fields(ColumnValues))}
    no_inputs = {"list_codes", "list_offsets"}  # lists of categories
    several_values = {"user", "recent_offsets"}  # recent_rows stands for the offsets
    rng = np.random.default_rng(8)
    for _ in range(20):
        one = TowerUsers(
            user=random_users(1).user,
            recent_offsets=np.array([0, 4]),
            recent_rows=rng.integers(0, 4, 4),
            time_us=rng.integers(10, 20, 1) * DAY,
        )
        for field in fields - no_inputs - several_values:
            other = changed(one, field, rng)
            feeds = [user_feed(spec, LAYOUT, ITEMS, each) for each in (one, other)]
            differ = any(feeds[0][name].tobytes() != feeds[1][name].tobytes() for name in feeds[0])
            same_key = tower._keys(one) == tower._keys(other)
            assert not (differ and same_key), field
    shorter = dataclasses.replace(one, recent_offsets=np.array([0, 3]), recent_rows=one.recent_rows[:3])
    assert tower._keys(shorter) != tower._keys(one)


def test_a_session_computes_in_the_calling_thread(tmp_path: Path) -> None:
    options = open_session(network(tmp_path / "user.onnx"), "cpu").get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_no_users(tmp_path: Path) -> None:
    none = TowerUsers(
        user=ColumnValues.missing(LAYOUT, 0),
        recent_offsets=np.zeros(1, np.int64),
        recent_rows=np.empty(0, np.int64),
        time_us=np.empty(0, np.int64),
    )
    assert a_user_tower(network(tmp_path / "user.onnx")).embed(none).shape == (0, DIM)


def test_a_vector_that_is_none_is_an_error(tmp_path: Path, users: TowerUsers) -> None:
    plain = network(tmp_path / "plain.onnx", normalise=False)
    with pytest.raises(TowerOutputError, match=r"user tower of space 'ann': row 0 has length .* declared normalised"):
        a_user_tower(plain).embed(users)
    with pytest.raises(TowerOutputError, match="gives 4 dimensions, the space has 7"):
        a_user_tower(plain, dim=7, normalized=False).embed(users)
    users.user.numbers[1] = 1e300
    with pytest.raises(TowerOutputError, match="row 1 is not finite"):
        a_user_tower(plain, normalized=False).embed(users)


def test_lengths_are_those_of_normalised_vectors() -> None:
    check_vectors(np.array([[0.6, 0.8]], np.float32), normalized=True, what="it")
    with pytest.raises(TowerOutputError, match=r"it: row 11 has length 1\.001"):
        check_vectors(np.array([[1, 0], [1.001, 0]], np.float32), normalized=True, what="it", first_row=10)


# ------------------------------------------------------------------------------------------------------------- opening


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """A bundle of five items with one space, whose user tower is the file given."""

    def make(model: Path, **space: object) -> Bundle:
        root = tmp_path / "bundle"
        (root / "spaces/ann").mkdir(parents=True)
        content = model.read_bytes()
        (root / TOWER.file).write_bytes(content)
        (root / "manifest.json").touch()
        files = ArtifactFiles(root, {TOWER.file: manifest_pb2.File(bytes=len(content))}, "manifest.json")
        keys = keys_of(list("abcde"))
        ids = StringTable(np.frombuffer(b"abcde", np.uint8), np.arange(6), keys, build_slots(keys))
        catalogue = Catalogue(ids, np.empty((5, 0), np.float32), np.empty((5, 0), np.int64), ITEMS, {}, np.arange(5))
        fields = {"name": "ann", "dim": DIM, "normalized": True, "user_tower": TOWER} | space
        spec = manifest_pb2.Space(**fields)
        spaces = {"ann": Space(spec, np.zeros((5, spec.dim), np.float32))}
        return Bundle(files, manifest_pb2.Manifest(spaces=[spec]), SCHEMA, VOCABULARIES, catalogue, spaces)

    return make


def test_open(make_bundle: Callable[..., Bundle], tmp_path: Path, users: TowerUsers) -> None:
    path = network(tmp_path / "user.onnx")
    vectors = open_user_tower(make_bundle(path), "ann", "cpu").embed(users)
    np.testing.assert_allclose(vectors, a_user_tower(path).embed(users), atol=1e-6)


def test_a_tower_of_another_dimension_is_refused(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle(network(tmp_path / "user.onnx", dim=5))
    with pytest.raises(BundleMismatchError, match=r"5 dimensions, the space has 4.*spaces/ann/user\.onnx"):
        open_user_tower(bundle, "ann", "cpu")


def test_a_tower_without_the_declared_normalisation_is_refused(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    with pytest.raises(BundleMismatchError, match="declared normalised"):
        open_user_tower(make_bundle(network(tmp_path / "user.onnx", normalise=False)), "ann", "cpu")


def test_a_tower_with_other_inputs_is_refused(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    other = manifest_pb2.Tower()
    other.CopyFrom(TOWER)
    other.inputs[0].name = "number"
    with pytest.raises(BundleMismatchError, match="does not do what the manifest says"):
        open_user_tower(make_bundle(network(tmp_path / "user.onnx"), user_tower=other), "ann", "cpu")


def test_inputs_that_the_schema_lacks_are_refused(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    other = manifest_pb2.Tower()
    other.CopyFrom(TOWER)
    other.inputs[0].columns[0] = "years"
    with pytest.raises(BundleMismatchError, match=r"no user column 'years'.*spaces\[ann\]\.user_tower"):
        open_user_tower(make_bundle(network(tmp_path / "user.onnx"), user_tower=other), "ann", "cpu")


def test_an_unreadable_network_is_corrupt(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    (tmp_path / "user.onnx").write_bytes(b"not a network")
    with pytest.raises(BundleCorruptError, match=r"spaces/ann/user\.onnx"):
        open_user_tower(make_bundle(tmp_path / "user.onnx"), "ann", "cpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_cuda_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BundleUnsupportedError, match=r"recserve\[gpu\]"):
        open_session(network(tmp_path / "user.onnx"), "cuda")
