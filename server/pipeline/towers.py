"""Towers: ONNX networks from named inputs to one vector per row. Export and serving fill the inputs with this code.

What an input of kind ... holds, for R rows:

    COLUMNS       [R, columns], or [R] with rank 1: user columns in a user tower, item columns in an item tower
    RECENT_ITEMS  [R, length]: an item column of the last `length` recent items, latest first; no column: their rows
    RECENT_MASK   [R, length]: 1 where RECENT_ITEMS holds an item, 0 behind the last
    RECENT_COUNT  [R, 1], or [R] with rank 1: how many of the last `length` there are

`offset` is added to category codes, integers and item rows, never to numbers, flags and days. A missing value, and in
RECENT_ITEMS the padding, becomes `missing` as it stands: with offset 1 and missing 0, a network's embedding table can
keep entry 0 for both. Without `missing` (NaN) it is NaN in float32 inputs; an int64 input has no NaN, so it must say
what stands for values that can be missing. Times become days before the request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import MISSING_CODE, MISSING_TIME, ColumnLayout, ColumnType, ColumnValues
from recserve.server.bundle.checks import first_bad_vector
from recserve.server.bundle.columns import (
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    TimeColumn,
)
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.extras import install_hint
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.cache import NOTHING_KEPT, Cache, CacheLimits, CacheStats

TOWER_TOLERANCE: Final = 1e-5
"""Largest difference between two runs of one network, relative to the length of its vectors."""

SHARED_ROWS: Final = 32
"""Most users in one run of a network: as many as a micro-batch holds by default."""

Feed: TypeAlias = dict[str, NDArray[np.generic]]
"""A tower's inputs by name, all with R rows: float32 or int64."""
Content: TypeAlias = Literal["number", "category", "integer", "flag", "time", "row"]
"""What a value is, which decides how it enters an input."""

_MICROSECONDS_PER_DAY: Final = 86_400e6
_INT64_CONTENT: Final = ("category", "integer", "flag", "row")
_OFFSET_CONTENT: Final = ("category", "integer", "row")


class TowerOutputError(RuntimeError):
    """A network gave something that is not a vector of its space: a fault of the network, not of the request."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerUsers:
    """What user towers read of R users.

    Attributes:
        user: the user columns, R rows.
        recent_offsets: int64 [R + 1]; cuts `recent_rows` by user.
        recent_rows: int64; recent items, latest first, distinct and known (`recserve.kernels.features.recent_items`).
        time_us: int64 [R]; the requests' times, microseconds since 1970 UTC.
    """

    user: ColumnValues
    recent_offsets: NDArray[np.int64]
    recent_rows: NDArray[np.int64]
    time_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """Some rows of one column: the values, where there is none (None: there always is), and what they are."""

    values: NDArray[np.generic]
    missing: NDArray[np.bool_] | None
    content: Content


# ---------------------------------------------------------------------------------------------------- filling inputs


def user_feed(
    tower: manifest_pb2.Tower, layout: ColumnLayout, columns: Mapping[str, Column], users: TowerUsers
) -> Feed:
    """The inputs of a user tower.

    Args:
        tower: whose inputs `input_problems` has found nothing wrong with.
        layout: of the user columns.
        columns: item columns by name.
        users: R of them.
    """
    return UserFeed(tower, layout, columns).fill(users)


class UserFeed:
    """Fills the inputs of a user tower. What does not depend on the users is looked up once.

    Args:
        tower: whose inputs `input_problems` has found nothing wrong with.
        layout: of the user columns.
        columns: item columns by name.
    """

    def __init__(self, tower: manifest_pb2.Tower, layout: ColumnLayout, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._inputs = [
            (_Input.of(spec), _by_type(spec.columns, layout) if spec.kind == manifest_pb2.COLUMNS else ())
            for spec in tower.inputs
        ]

    def fill(self, users: TowerUsers) -> Feed:
        """The inputs of R users."""
        feed: Feed = {}
        for spec, groups in self._inputs:
            if groups:
                parts = [(each.places, _user_values(each, users)) for each in groups]
                feed[spec.name] = _fill_columns(spec, users.time_us.size, parts)
            else:
                feed[spec.name] = _fill_recent(spec, self._columns, users)
        return feed


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of a tower: what its message says, which to read from there takes as long as to fill it."""

    name: str
    kind: int
    columns: tuple[str, ...]
    length: int
    rank: int
    dtype: type[np.float32 | np.int64]
    offset: int
    nothing: float
    """What stands for a missing value."""

    @staticmethod
    def of(spec: manifest_pb2.TowerInput) -> _Input:
        whole = spec.dtype == manifest_pb2.INT64
        return _Input(
            name=spec.name,
            kind=spec.kind,
            columns=tuple(spec.columns),
            length=spec.length,
            rank=spec.rank,
            dtype=np.int64 if whole else np.float32,
            offset=spec.offset,
            nothing=0 if whole and math.isnan(spec.missing) else spec.missing,
        )


_Places: TypeAlias = slice | list[int]
"""Columns of an array; neighbours are a slice, which NumPy takes in a tenth of the time."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The columns of one type among those of an input: where they stand there, and in `ColumnValues`."""

    type: ColumnType
    places: _Places
    columns: _Places


def _by_type(names: Sequence[str], layout: ColumnLayout) -> Sequence[_Group]:
    groups: dict[ColumnType, tuple[list[int], list[int]]] = {}
    for place, name in enumerate(names):
        kind, column = layout[name]
        places, columns = groups.setdefault(kind, ([], []))
        places.append(place)
        columns.append(column)
    return [_Group(kind, _places(places), _places(columns)) for kind, (places, columns) in groups.items()]


def _places(columns: list[int]) -> _Places:
    neighbours = range(columns[0], columns[0] + len(columns))
    return slice(neighbours.start, neighbours.stop) if columns == list(neighbours) else columns


def item_feed(tower: manifest_pb2.Tower, columns: Mapping[str, Column], rows: NDArray[np.int64]) -> Feed:
    """The inputs of an item tower.

    Args:
        tower: whose inputs `input_problems` has found nothing wrong with.
        columns: item columns by name.
        rows: int64 [R].
    """
    each = rows[:, np.newaxis]
    no_time = np.zeros(each.shape, np.int64)  # input_problems refuses times: an item's vector has no request
    return {
        spec.name: _fill_columns(
            spec,
            rows.size,
            (([at], _item_values(columns[name], each, no_time)) for at, name in enumerate(spec.columns)),
        )
        for spec in map(_Input.of, tower.inputs)
    }


def _fill_columns(spec: _Input, rows: int, parts: Iterable[tuple[_Places, _Values]]) -> NDArray[np.generic]:
    """The columns of an input, some at a time: where they stand in it, and their values, [rows, places]."""
    filled = np.empty((rows, len(spec.columns)), spec.dtype)
    for places, values in parts:
        filled[:, places] = _written(spec, values)
    return filled if spec.rank == 2 else filled[:, 0]


def _fill_recent(spec: _Input, columns: Mapping[str, Column], users: TowerUsers) -> NDArray[np.generic]:
    rows = _recent_rows(users, spec.length)
    held = rows >= 0
    if spec.kind == manifest_pb2.RECENT_ITEMS:
        filled = np.full(rows.shape, spec.nothing, spec.dtype)
        times = np.broadcast_to(users.time_us[:, np.newaxis], rows.shape)[held]
        filled[held] = _written(spec, _recent_values(spec, columns, rows[held], times))
        return filled
    if spec.kind == manifest_pb2.RECENT_MASK:
        return held.astype(spec.dtype)
    counts: NDArray[np.int64] = held.sum(axis=1, keepdims=spec.rank == 2)
    return counts.astype(spec.dtype)


def _recent_rows(users: TowerUsers, length: int) -> NDArray[np.int64]:
    """[R, length]: the last items of each user, -1 behind them."""
    rows = np.full((users.time_us.size, length), -1, np.int64)
    for user, row in enumerate(rows):
        recent = users.recent_rows[users.recent_offsets[user] : users.recent_offsets[user + 1]][:length]
        row[: recent.size] = recent
    return rows


def _recent_values(
    spec: _Input, columns: Mapping[str, Column], rows: NDArray[np.int64], times: NDArray[np.int64]
) -> _Values:
    if spec.columns:
        return _item_values(columns[spec.columns[0]], rows, times)
    return _Values(rows, None, "row")


def _user_values(group: _Group, users: TowerUsers) -> _Values:
    if group.type == "number":
        return _numbers(users.user.numbers[:, group.columns])
    if group.type == "category":
        return _codes(users.user.codes[:, group.columns])
    if group.type == "time":
        return _days(users.user.times[:, group.columns], users.time_us[:, np.newaxis])
    raise TypeError(f"user columns of type {group.type} are no input of a tower")


def _item_values(column: Column, rows: NDArray[np.int64], times: NDArray[np.int64]) -> _Values:
    match column:
        case NumberColumn():
            return _numbers(column.values[rows])
        case CategoryColumn():
            return _codes(column.codes[rows])
        case TimeColumn():
            return _days(column.values[rows], times)
        case IntegerColumn():
            return _Values(column.values[rows], None, "integer")
        case FlagColumn():
            return _Values(column.values[rows], None, "flag")
    raise TypeError(f"item column {column.name!r} is no input of a tower: {type(column).__name__}")


def _numbers(values: NDArray[np.float64]) -> _Values:
    return _Values(values, np.isnan(values), "number")


def _codes(codes: NDArray[np.int32]) -> _Values:
    return _Values(codes, codes == MISSING_CODE, "category")


def _days(times: NDArray[np.int64], now: NDArray[np.int64]) -> _Values:
    """Days from `times` to `now`; computed in double, since the difference of extreme times overflows int64."""
    days = (now.astype(np.float64) - times.astype(np.float64)) / _MICROSECONDS_PER_DAY
    return _Values(days, times == MISSING_TIME, "time")


def _written(spec: _Input, values: _Values) -> NDArray[np.generic]:
    """Values as they stand in an input, what stands for missing ones in their places."""
    found = values.values
    if values.content in _OFFSET_CONTENT:
        found = found.astype(np.int64) + spec.offset
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite there
        written = found.astype(spec.dtype)
    if values.missing is not None:
        written[values.missing] = spec.nothing
    return written


# --------------------------------------------------------------------------------------------------- checking inputs


def input_problems(
    tower: manifest_pb2.Tower, columns: Mapping[str, Column], user_layout: ColumnLayout | None
) -> list[str]:
    """Everything that is wrong with how a tower's inputs are to be filled; empty: nothing.

    Args:
        tower: with its inputs.
        columns: item columns by name.
        user_layout: of the user columns, for a user tower; None: an item tower.
    """
    items = {name: _ITEM_CONTENT.get(type(column)) for name, column in columns.items()}
    problems = [] if tower.inputs else ["a tower needs at least one input"]
    names = [spec.name for spec in tower.inputs]
    problems += [f"input {name!r} is described twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for spec in tower.inputs:
        if spec.kind == manifest_pb2.COLUMNS:
            readable = items if user_layout is None else _user_content(user_layout)
            found = _column_problems(spec, readable, is_item=user_layout is None)
        elif user_layout is None:
            found = ["recent items are a user's; an item tower takes columns alone"]
        else:
            found = _recent_problems(spec, items)
        problems += [f"input {spec.name!r}: {problem}" for problem in found]
    return problems


_ITEM_CONTENT: Final[Mapping[type, Content]] = {
    NumberColumn: "number",
    CategoryColumn: "category",
    IntegerColumn: "integer",
    FlagColumn: "flag",
    TimeColumn: "time",
}


def _user_content(layout: ColumnLayout) -> dict[str, Content | None]:
    return {c.name: None if c.type == "categories" else c.type for c in layout.columns}


def _column_problems(
    spec: manifest_pb2.TowerInput, readable: Mapping[str, Content | None], *, is_item: bool
) -> list[str]:
    problems = [] if spec.columns else ["names no column"]
    problems += _rank_problems(spec, (1, 2) if len(spec.columns) == 1 else (2,))
    if spec.length:
        problems.append("`length` is for recent items only")
    for name in spec.columns:
        problems += _content_problems(spec, name, readable, "item" if is_item else "user")
        if is_item and readable.get(name) == "time":
            problems.append(f"item column {name!r} is a time, and the days since it change after the export")
    return problems


def _recent_problems(spec: manifest_pb2.TowerInput, items: Mapping[str, Content | None]) -> list[str]:
    problems = [] if spec.length >= 1 else ["`length` must say how many recent items, at least 1"]
    if spec.kind != manifest_pb2.RECENT_ITEMS:
        ranks = (2,) if spec.kind == manifest_pb2.RECENT_MASK else (1, 2)
        return problems + _rank_problems(spec, ranks) + (["takes no columns"] if spec.columns else [])
    problems += _rank_problems(spec, (2,))
    if len(spec.columns) > 1:
        problems.append(f"takes one item column or none, found {list(spec.columns)}")
    for name in spec.columns:
        problems += _content_problems(spec, name, items, "item")
    return problems + _missing_problems(spec, "padding")


def _rank_problems(spec: manifest_pb2.TowerInput, ranks: tuple[int, ...]) -> list[str]:
    if spec.rank in ranks:
        return []
    return [f"must have rank {' or '.join(map(str, ranks))}, found {spec.rank}"]


def _content_problems(
    spec: manifest_pb2.TowerInput, name: str, readable: Mapping[str, Content | None], whose: str
) -> list[str]:
    content = readable.get(name)
    if content is None:
        usable = ", ".join(sorted(n for n, c in readable.items() if c is not None)) or "none"
        return [f"no {whose} column {name!r} that a tower can read; there are: {usable}"]
    if spec.dtype == manifest_pb2.INT64 and content not in _INT64_CONTENT:
        return [f"{whose} column {name!r} is a {content}, which an int64 input cannot hold; declare it float32"]
    return _missing_problems(spec, f"{whose} column {name!r}") if content == "category" else []


def _missing_problems(spec: manifest_pb2.TowerInput, what: str) -> list[str]:
    if spec.dtype == manifest_pb2.FLOAT32 or (math.isfinite(spec.missing) and spec.missing.is_integer()):
        return []
    return [f"int64 has no NaN, so `missing` must be a whole number that stands for missing values ({what})"]


# ------------------------------------------------------------------------------------------------------------ running


def open_session(model: Path, device: str, name: str = "") -> Any:
    """An onnxruntime session that computes in the calling thread.

    Args:
        model: the ONNX file.
        device: "cpu" or "cuda".
        name: of the file, for messages.

    Raises:
        BundleUnsupportedError: onnxruntime is not installed, or cannot use CUDA.
        BundleCorruptError: onnxruntime cannot load the file.
    """
    onnxruntime = _onnxruntime()
    wanted = _provider(onnxruntime, device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=[wanted])
    except Exception as error:  # onnxruntime's errors share no narrower class
        raise BundleCorruptError(f"onnxruntime cannot load the network: {error}", file=name or model.name) from error
    if wanted not in session.get_providers():  # onnxruntime falls back to the CPU with no more than a message
        raise BundleUnsupportedError(
            "device 'cuda': onnxruntime cannot start CUDA; install the CUDA version that it was built for, "
            "or serve with device 'cpu'",
            expected=wanted,
            found=session.get_providers(),
        )
    return session


def run_tower(session: Any, output: str, feed: Feed) -> NDArray[np.float32]:
    """The network's vectors, [R, dim].

    Raises:
        TowerOutputError: the output is not float32 [R, dim].
    """
    vectors = np.asarray(session.run([output], feed)[0])
    rows = len(next(iter(feed.values())))
    if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[0] != rows:
        raise TowerOutputError(
            f"output {output!r} must be float32 [{rows}, dim], found {vectors.dtype} {list(vectors.shape)}"
        )
    return vectors


def check_vectors(vectors: NDArray[np.float32], *, normalized: bool, what: str, first_row: int = 0) -> None:
    """Refuse vectors that are not finite, or not of length 1 where they should be.

    Args:
        vectors: [R, dim].
        normalized: whether the space's vectors have length 1.
        what: they are, for the message, such as "user tower of space 'ann'".
        first_row: number of the first of them, for the message.

    Raises:
        TowerOutputError: names the first such row.
    """
    bad = first_bad_vector(vectors, normalized=normalized)
    if bad is not None:
        row, problem = bad
        raise TowerOutputError(f"{what}: row {first_row + row} {problem}")


class UserTower:
    """Turns users into vectors of one space. Safe to use from several threads at once.

    A vector is kept under everything that the network reads of its user: the user columns as the request has them
    (overrides applied), the latest items, and the time if the network reads times. What is found is therefore bit-equal
    to what would be computed. Where the network reads times nothing is kept: no two requests have the same time.

    Args:
        session: of the network, from `open_session`.
        tower: its inputs and output.
        layout: of the user columns.
        columns: item columns by name.
        dim: length of the space's vectors.
        normalized: whether they have length 1.
        name: of the space, for messages.
        limits: of the vectors that are kept.

    Attributes:
        keeps: whether vectors are kept.
        shares_runs: whether several users share a run of the network, see `try_sharing`.
    """

    def __init__(
        self,
        session: Any,
        tower: manifest_pb2.Tower,
        *,
        layout: ColumnLayout,
        columns: Mapping[str, Column],
        dim: int,
        normalized: bool,
        name: str,
        limits: CacheLimits = NOTHING_KEPT,
    ) -> None:
        self._session = session
        self._output = tower.output
        self._feed = UserFeed(tower, layout, columns)
        self._dim = dim
        self._normalized = normalized
        self._what = f"user tower of space {name!r}"
        self._recent = max((spec.length for spec in tower.inputs), default=0)
        self.shares_runs = False
        self._reads_times = _reads_times(tower, layout, columns)
        self.keeps = limits.entries > 0 and not self._reads_times
        self._kept: Cache[bytes, NDArray[np.float32]] = Cache(limits if self.keeps else NOTHING_KEPT)

    @property
    def kept(self) -> CacheStats:
        """The vectors that are kept, and how often they were asked for."""
        return self._kept.stats

    def embed(self, users: TowerUsers) -> NDArray[np.float32]:
        """The users' vectors, [R, dim].

        The network runs for users that are not in the cache, each distinct one taken once. A user's vector does not
        depend on who shares a run: see `try_sharing`.

        Raises:
            TowerOutputError: a vector has another length than the space's, is not finite, or is not normalised.
        """
        count = users.time_us.size
        if count == 1 and not self.keeps:
            return self._run(self._feed.fill(users), range(1))
        vectors = np.empty((count, self._dim), np.float32)
        missing: dict[bytes, list[int]] = {}
        for row, key in enumerate(self._keys(users)):
            held = self._kept.get(key)
            if held is None:
                missing.setdefault(key, []).append(row)
            else:
                vectors[row] = held
        if missing:
            distinct = [rows[0] for rows in missing.values()]
            fresh = self._run(self._feed.fill(users), distinct)
            if len(distinct) == count and not self.keeps:
                return fresh
            for (key, rows), vector in zip(missing.items(), fresh, strict=True):
                self._kept.put(key, vector.copy())  # not a view: it would keep the whole batch
                vectors[rows] = vector
        return vectors

    def _keys(self, users: TowerUsers) -> list[bytes]:
        """Of each user: equal only where the network's inputs are. Lists of categories are no inputs of towers."""
        parts: list[NDArray[Any]] = [users.user.numbers, users.user.codes, users.user.times]
        if self._reads_times:
            parts.append(users.time_us)
        keys = []
        for row, (start, end) in enumerate(pairwise(users.recent_offsets.tolist())):
            recent = users.recent_rows[start : min(end, start + self._recent)]
            content = b"".join([*(part[row].tobytes() for part in parts), recent.tobytes()])
            keys.append(blake2b(content, digest_size=16).digest() if self.keeps else content)
        return keys

    def _run(self, feed: Feed, rows: Sequence[int]) -> NDArray[np.float32]:
        """[len(rows), dim]: the vectors of some rows of a feed."""
        most = SHARED_ROWS if self.shares_runs else 1
        parts = (rows[start : start + most] for start in range(0, len(rows), most))
        runs = [self._run_once(feed, part, shared=self.shares_runs) for part in parts]
        vectors = runs[0] if len(runs) == 1 else np.concatenate(runs)
        bad = first_bad_vector(vectors, normalized=self._normalized)
        if bad is not None:
            raise TowerOutputError(f"{self._what}: row {rows[bad[0]]} {bad[1]}")
        return vectors

    def _run_once(self, feed: Feed, rows: Sequence[int], *, shared: bool) -> NDArray[np.float32]:
        # The product of a single row takes another algorithm than that of several: a single row runs as two.
        taken = [rows[0], rows[0]] if shared and len(rows) == 1 else rows
        taken_feed = {name: values.take(taken, axis=0) for name, values in feed.items()}
        vectors = run_tower(self._session, self._output, taken_feed)
        if vectors.shape[1] != self._dim:
            raise TowerOutputError(f"{self._what} gives {vectors.shape[1]} dimensions, the space has {self._dim}")
        return vectors[: len(rows)]

    def try_sharing(self, users: TowerUsers) -> None:
        """Find out whether users may share a run: whether a user's bits are the same whoever else is in it.

        It depends on the network, on onnxruntime and on the machine, but not on values: the order in which a matrix
        product adds follows from its height. So all heights up to `SHARED_ROWS` are tried, each with two sets of users
        that stand in other places. Until this has been called, each user has a run of its own.

        Args:
            users: `SHARED_ROWS` of them, all different.
        """
        feed = self._feed.fill(users)
        rows = range(SHARED_ROWS)
        alone = np.concatenate([self._run_once(feed, [row], shared=True) for row in rows])
        parts = [part for height in range(2, SHARED_ROWS + 1) for part in (rows[:height], rows[-height:])]
        self.shares_runs = all(np.array_equal(self._run_once(feed, part, shared=True), alone[part]) for part in parts)


def open_user_tower(bundle: Bundle, space: str, device: str, limits: CacheLimits = NOTHING_KEPT) -> UserTower:
    """The user tower of a space, tried on a user of whom nothing is known, and on others together.

    Args:
        bundle: an open bundle.
        space: name of one of its spaces that has a user tower.
        device: "cpu" or "cuda".
        limits: of the vectors that are kept.

    Raises:
        BundleUnsupportedError: onnxruntime is not installed, or cannot use CUDA.
        BundleCorruptError: onnxruntime cannot load the network.
        BundleMismatchError: the network contradicts the manifest: its inputs, its output, or the space's dimension or
            normalisation.
    """
    spec = bundle.space(space).spec
    tower, layout, columns = spec.user_tower, bundle.schema.user_layout, bundle.catalogue.columns
    problems = input_problems(tower, columns, layout)
    if problems:
        raise BundleMismatchError(
            f"the user tower's inputs cannot be filled: {'; '.join(problems)}", field=f"spaces[{space}].user_tower"
        )
    opened = UserTower(
        open_session(bundle.file(tower.file), device, tower.file),
        tower,
        layout=layout,
        columns=columns,
        dim=spec.dim,
        normalized=spec.normalized,
        name=space,
        limits=limits,
    )
    # In this order: what is kept of a user has to have the bits of the way that is then taken.
    _try_on(tower.file, lambda: opened.try_sharing(_anybody(bundle, SHARED_ROWS)))
    _try_on(tower.file, lambda: opened.embed(_nobody(layout)))
    return opened


def _nobody(layout: ColumnLayout) -> TowerUsers:
    """One user of whom nothing is known."""
    return TowerUsers(
        user=ColumnValues.missing(layout, 1),
        recent_offsets=np.zeros(2, np.int64),
        recent_rows=np.empty(0, np.int64),
        time_us=np.zeros(1, np.int64),
    )


def _anybody(bundle: Bundle, count: int) -> TowerUsers:
    """Users as they could be, all different."""
    rng = np.random.default_rng(0)
    layout, items, recent = bundle.schema.user_layout, bundle.catalogue.size, 100
    cardinalities = [bundle.cardinalities[column.vocabulary] for column in layout.codes]
    user = ColumnValues(
        numbers=rng.standard_normal((count, len(layout.numbers))),
        codes=rng.integers(MISSING_CODE, cardinalities, (count, len(cardinalities)), np.int32),
        times=rng.integers(0, 1 << 50, (count, len(layout.times))),
        list_codes=np.empty(0, np.int32),
        list_offsets=np.zeros(count * len(layout.lists) + 1, np.int64),
    )
    sizes = rng.integers(0, recent if items else 0, count, endpoint=True)
    return TowerUsers(
        user=user,
        recent_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        recent_rows=rng.integers(0, max(items, 1), int(sizes.sum())),
        time_us=rng.integers(1 << 50, 1 << 51, count),
    )


def _reads_times(tower: manifest_pb2.Tower, layout: ColumnLayout, columns: Mapping[str, Column]) -> bool:
    """Whether any input is a time, which a tower sees as days before the request."""
    return any(
        isinstance(columns[name], TimeColumn) if spec.kind == manifest_pb2.RECENT_ITEMS else layout[name][0] == "time"
        for spec in tower.inputs
        for name in spec.columns
    )


def _try_on(file: str, run: Callable[[], object]) -> None:
    try:
        run()
    except Exception as error:  # onnxruntime's errors share no narrower class
        raise BundleMismatchError(
            f"the network does not do what the manifest says: {error}; export it again", file=file
        ) from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  optional: bundles without towers do not need it
    except ImportError as error:
        raise BundleUnsupportedError(
            f"a tower needs onnxruntime (for CUDA the extra gpu): {install_hint('cpu')}", found=str(error)
        ) from error
    return onnxruntime


def _provider(onnxruntime: Any, device: str) -> str:
    if device == "cpu":
        return "CPUExecutionProvider"
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise BundleUnsupportedError(
            "device 'cuda' needs an onnxruntime with CUDA: pip uninstall onnxruntime faiss-cpu, then "
            f"{install_hint('gpu')}; or serve with device 'cpu'",
            expected="CUDAExecutionProvider",
            found=available,
        )
    return "CUDAExecutionProvider"
