"""Vector spaces into a bundle: towers, item vectors, user vectors, index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.exporters.indexes import build_index, needs_queries, nonzero_rows
from recserve.exporters.report import Tell
from recserve.exporters.spec import SpaceSpec
from recserve.exporters.strings import distinct_keys
from recserve.exporters.towers import (
    ExportedTower,
    TowerContext,
    export_item_tower,
    export_user_tower,
    user_vectors,
)
from recserve.exporters.writer import BundleWriter
from recserve.server.bundle.layout import NAME_RULE, is_name, space_file
from recserve.server.pipeline.towers import TowerOutputError, check_vectors, item_feed

Vectors = NDArray[np.float32]

_BATCH: Final = 4096


def export_space(
    writer: BundleWriter,
    spec: SpaceSpec,
    context: TowerContext,
    progress: Progress,
    tell: Tell = lambda *_: None,
) -> manifest_pb2.Space:
    """Write a space: its towers, vectors and index.

    Args:
        writer: of the bundle.
        spec: the space.
        context: what its towers can read. `context.users` are also the queries that tune the index of a space with a
            user tower.
        progress: gets a bar per step that goes through all items.
        tell: is told what the export left out.

    Returns:
        The manifest's entry.

    Raises:
        ExportError: the spec contradicts itself, a tower or vectors are not what they should be, their inner products
            may overflow, or the index does not reach its recall.
    """
    what = f"space {spec.name!r}"
    _check_spec(spec, what)
    vectors, item_tower = _write_items(writer, spec, context, progress)
    dim = vectors.shape[1]
    user_tower = None
    if spec.user_tower is not None:
        user_tower = export_user_tower(writer, spec.user_tower, spec.name, normalized=spec.normalized, context=context)
        if user_tower.dim != dim:
            raise ExportError(f"{user_tower.what} gives {user_tower.dim} dimensions, the items have {dim}")
    users = _write_users(writer, spec, dim, what)
    queries = None
    if needs_queries(spec.index, *vectors.shape):
        queries = _queries(context, user_tower, users, what)
        _tell_zeros(queries, spec.name, tell)
    if not spec.normalized:
        _check_products(vectors, queries if users is None else users, what)
    index = build_index(spec.index, vectors, queries, writer, spec.name, Steps(progress, what))
    return manifest_pb2.Space(
        name=spec.name,
        dim=dim,
        metric=manifest_pb2.INNER_PRODUCT,
        normalized=spec.normalized,
        index=index,
        user_tower=user_tower.spec if user_tower else None,
        item_tower=item_tower.spec if item_tower else None,
        user_vectors=0 if users is None else len(users),
    )


def _check_spec(spec: SpaceSpec, what: str) -> None:
    problems = [] if is_name(spec.name) else [f"a space's name has {NAME_RULE}"]
    metric: str = spec.metric  # read from files as well
    if metric != "inner_product":
        problems.append(
            f"metric {metric!r} is not supported: normalise the vectors and use 'inner_product', which then orders "
            "items as cosine and Euclidean distance do"
        )
    if (spec.item_tower is None) == (spec.item_vectors is None):
        problems.append("give either item_tower or item_vectors")
    if spec.user_tower is not None and spec.user_vectors is not None:
        problems.append("give either user_tower or user_vectors, or neither for similarity only")
    if (spec.user_vectors is None) != (spec.user_ids is None):
        problems.append("user_vectors and user_ids belong together")
    if problems:
        raise ExportError(f"{what}: " + "; ".join(problems))


# --------------------------------------------------------------------------------------------------------------- items


def _write_items(
    writer: BundleWriter, spec: SpaceSpec, context: TowerContext, progress: Progress
) -> tuple[Vectors, ExportedTower | None]:
    """Write vectors.npy, and give it back mapped."""
    file = space_file(spec.name, "vectors.npy")
    if spec.item_tower is not None:
        tower = export_item_tower(writer, spec.item_tower, spec.name, normalized=spec.normalized, context=context)
        return _write(writer, file, (context.items, tower.dim), _embedded(tower, spec, context, progress)), tower
    what = f"item vectors of space {spec.name!r}"
    given = _open_vectors(spec.item_vectors, what)
    if len(given) != context.items:
        raise ExportError(f"{what}: {len(given)} rows, but the catalogue has {context.items} items")
    return _write(writer, file, given.shape, _checked(given, normalized=spec.normalized, what=what)), None


def _embedded(tower: ExportedTower, spec: SpaceSpec, context: TowerContext, progress: Progress) -> Iterator[Vectors]:
    """The items' vectors by the item tower, in batches."""
    task = progress.add_task(f"space {spec.name!r}: item vectors", total=context.items)
    for start in range(0, context.items, _BATCH):
        rows = np.arange(start, min(start + _BATCH, context.items), dtype=np.int64)
        yield tower.run(item_feed(tower.spec, context.columns, rows), normalized=spec.normalized)
        progress.advance(task, rows.size)


def _write(writer: BundleWriter, file: str, shape: tuple[int, ...], blocks: Iterable[Vectors]) -> Vectors:
    """Write vectors block by block, and give them back mapped."""
    with writer.rows(file, np.float32, shape) as target:
        for block in blocks:
            target.append(block)
    mapped: Vectors = np.load(writer.path(file), mmap_mode="r")
    return mapped.view(np.ndarray)


def _open_vectors(source: Vectors | Path | None, what: str) -> Vectors:
    """Given vectors, mapped where they are a file; shape and type are checked here, values as they are copied."""
    if isinstance(source, Path):
        try:
            source = np.load(source, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:  # EOFError: the file is empty
            raise ExportError(f"{what}: cannot be read as a .npy array: {error}") from error
    if not isinstance(source, np.ndarray) or source.dtype != np.float32 or source.ndim != 2 or 0 in source.shape:
        found = f"{source.dtype} {list(source.shape)}" if isinstance(source, np.ndarray) else type(source).__name__
        raise ExportError(f"{what}: expected float32 [rows, dim] with at least one of each, found {found}")
    return source


def _checked(vectors: Vectors, *, normalized: bool, what: str) -> Iterator[Vectors]:
    """Given vectors in blocks, each checked before it is handed out."""
    for start in range(0, len(vectors), _BATCH):
        block = vectors[start : start + _BATCH]
        try:
            check_vectors(block, normalized=normalized, what=what, first_row=start)
        except TowerOutputError as error:
            raise ExportError(str(error)) from error
        yield block


def _check_products(items: Vectors, users: Vectors | None, what: str) -> None:
    """Refuse vectors whose inner products may leave float32, the type of scores: infinite ones have no order.

    No inner product, nor a part of its sum, is beyond the product of the lengths. Items are queries as well: where a
    user has no vector, the mean of a session's items stands in.
    """
    item = _longest(items)
    user = 0.0 if users is None else _longest(users)
    if item * max(item, user) > float(np.finfo(np.float32).max):
        lengths = f"the longest item vector has length {item:.1e}" + (
            f", the longest user's {user:.1e}" if user else ""
        )
        raise ExportError(
            f"{what}: inner products may be beyond float32, the type of scores: {lengths}, and the product with the "
            "longest of them is above 3.4e38: scale the vectors"
        )


def _longest(vectors: Vectors) -> float:
    """Length of the longest vector, in double: squares overflow float32 sooner than products."""
    blocks = (vectors[start : start + _BATCH].astype(np.float64) for start in range(0, len(vectors), _BATCH))
    return max(float(np.sqrt(np.einsum("ij,ij->i", block, block).max())) for block in blocks)


# --------------------------------------------------------------------------------------------------------------- users


def _write_users(writer: BundleWriter, spec: SpaceSpec, dim: int, what: str) -> Vectors | None:
    """Write user_vectors.npy and user_keys.npy in the order of the keys, and give the vectors back."""
    if spec.user_vectors is None or spec.user_ids is None:
        return None
    whose = f"user vectors of {what}"
    vectors = _open_vectors(spec.user_vectors, whose)
    if vectors.shape != (len(spec.user_ids), dim):
        raise ExportError(
            f"{whose}: expected [{len(spec.user_ids)} user ids, {dim} dimensions], found {list(vectors.shape)}"
        )
    for _ in _checked(vectors, normalized=spec.normalized, what=whose):
        pass
    keys = distinct_keys(spec.user_ids, f"user ids of {what}")
    order = np.argsort(keys, kind="stable")
    writer.array(space_file(spec.name, "user_keys.npy"), keys[order])
    blocks = (vectors[order[start : start + _BATCH]] for start in range(0, len(order), _BATCH))
    return _write(writer, space_file(spec.name, "user_vectors.npy"), vectors.shape, blocks)


def _queries(context: TowerContext, tower: ExportedTower | None, users: Vectors | None, what: str) -> Vectors | None:
    """Users to tune the index on; None: the space knows none, and its queries are items."""
    if tower is None:
        return users
    if context.users is None:
        raise ExportError(
            f"{what}: the index is tuned on vectors of users, and there are none: export with a user snapshot, or use "
            "index kind 'exact'"
        )
    return user_vectors(tower, context, context.users)


def _tell_zeros(queries: Vectors | None, space: str, tell: Tell) -> None:
    if queries is None:
        return
    zeros = len(queries) - len(nonzero_rows(queries))
    if zeros:
        found = f"{zeros:,} of {len(queries):,} are zero, and left out"
        tell(f"index of {space}", "users' vectors as its queries", found)


class Steps:
    """Shows an index's steps as bars."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what

    @contextmanager
    def step(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """See indexes.Progress."""
        task = self._progress.add_task(f"  {self._what}: {what}", total=total)
        yield lambda done: self._progress.advance(task, done)
        self._progress.remove_task(task)
