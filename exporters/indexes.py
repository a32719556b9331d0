"""The index of a vector space: built, tuned to a recall target, and chosen by speed.

families    exact search; our inverted lists of 4-bit codes; FAISS's lists and graphs of 8-bit codes
races       on samples of a large catalogue: what cannot win is not built in full
build       those that can, over all items
choose      the simplest of those that are within noise of the fastest
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.codes import (
    MAX_DIMENSIONS,
    STEP,
    Arrays,
    Clustering,
    CodePlan,
    build_codes,
    cluster,
    inverted_lists,
    kept_dimensions,
    spread,
)
from recserve.exporters.errors import ExportError
from recserve.exporters.faiss_library import faiss_library
from recserve.exporters.spec import IndexSpec
from recserve.exporters.tuning import (
    COARSE_CODES,
    FINE_CODES,
    MIN_QUERIES,
    QUERIES,
    Built,
    Judge,
    curve,
    exact_index,
    least_items,
    rescored_values,
    settle,
    timed,
)
from recserve.exporters.writer import BundleWriter
from recserve.kernels import ivf
from recserve.server.bundle.layout import index_file, space_file
from recserve.server.pipeline.index import (
    EF_SEARCH,
    FACTORY_CLASSES,
    NPROBE,
    FaissIndex,
    ListIndex,
    inner_index,
    search_parameters,
)

Vectors = NDArray[np.float32]

QUICK: Final = 1 << 21
"""Numbers (items x dimensions) that exact search reads in about 0.3 ms: an index could save some 0.2 ms of that, costs
recall, and would take far longer to tune than all the rest of an export. `auto` does not look for one."""
RACES: Final = ((12_500, 3.0), (100_000, 1.5))
"""Catalogues of more than twice as many items race on samples of these sizes first, if an index of so few can pay; in a
smaller one there is nothing to race. What is expected to take more than so many times the best time over all items is
out: the smaller the sample, the less is known."""
SAMPLE: Final = 100_000
"""Items that tell how many dimensions hold the vectors."""

_FAISS_NAMES: Final[dict[int, str]] = {
    manifest_pb2.IVF_SQ8: "FAISS's lists of 8-bit codes",
    manifest_pb2.HNSW_SQ8: "FAISS's graph of 8-bit codes",
    manifest_pb2.FAISS: "the given FAISS index",
}
_HNSW_LINKS: Final = 32
_TRAINING: Final = 100_000  # 8-bit codes need no more than the range of each dimension
_TRAINING_PER_LIST: Final = 64  # FAISS wants 39 to 256 vectors per centroid
_BLOCK: Final = 1 << 16
_HOPELESS: Final = 5.0  # times the best time so far
_LISTS_GROWTH: Final = 0.35  # 0.15, 0.18 and 0.37 ms with 10,000, 100,000 and 1,000,000 items of 128 dimensions
_GRAPH_GROWTH: Final = 0.2  # more effort beside more hops: 1.2, 1.8 and 4.8 ms
_NOISE: Final = 1.1  # times that differ by less are equal


class Progress(Protocol):
    """Where the long steps are shown."""

    def step(self, what: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """A step of `total` parts, or of unknown length; what it gives is called with how many more are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of index that can be built over any number of items.

    Attributes:
        name: for people.
        growth: its search time grows with the items to this power, about.
        build: over some vectors, trained on some of their rows; called back with how many items were added.
    """

    name: str
    growth: float
    build: Callable[[Vectors, NDArray[np.int64], Callable[[int], None]], Built]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrant:
    """A family, what was built of it, and its trials, the fastest first."""

    family: Family
    built: Built
    trials: Sequence[manifest_pb2.IndexTrial]


def build_index(
    spec: IndexSpec, vectors: Vectors, queries: Vectors | None, writer: BundleWriter, space: str, progress: Progress
) -> manifest_pb2.Index:
    """Choose, build, tune and write the index of a space.

    Args:
        spec: what is wanted.
        vectors: float32 [items, dim]; may be mapped.
        queries: float32 [n, dim], vectors of users; None: items that do not train the index stand in for them, as they
            join users who are too few. Zero vectors are left out.
        writer: of the bundle.
        space: the space's name.
        progress: shows what is going on.

    Returns:
        The manifest's entry.

    Raises:
        ExportError: the wishes make no sense, the catalogue is too small for the kind, the factory string is not one of
            an index of codes, FAISS is not installed, all vectors to search for are zero, or no setting reaches the
            target.
    """
    _check_spec(spec, len(vectors))
    if not needs_queries(spec, *vectors.shape):
        return manifest_pb2.Index(kind=manifest_pb2.EXACT, recall=1.0, recall_low=1.0, recall_k=spec.recall_k)
    rows = np.arange(len(vectors))
    held_out = spread(rows, min(QUERIES, len(vectors) // 4))
    asked = _held_out_queries(vectors, queries, held_out)
    families = list(_families(spec, vectors))
    raced: list[manifest_pb2.IndexTrial] = []
    for size, margin in RACES:
        if len(vectors) > 2 * size and size >= least_items(spec.recall_k) and len(families) > 1:
            sample = np.ascontiguousarray(vectors[spread(rows, size)])
            judge = Judge(sample, asked, spec.recall_k)
            entrants = list(_enter(families, spec, sample, np.arange(size), judge, progress))
            families = _survivors(entrants, spec.recall_target, len(vectors) / size, margin, judge)
            raced += [entrant.trials[0] for entrant in entrants]
    with progress.step("exact search for comparison", None):
        judge = Judge(vectors, asked, spec.recall_k)
    entrants = list(_enter(families, spec, vectors, np.setdiff1d(rows, held_out), judge, progress))
    winner = _choose(entrants, spec, judge)
    winner.built.write(writer, space)
    trials = [*(trial for each in entrants for trial in each.trials), *curve(winner.built, judge, winner.trials[0])]
    return _entry(spec, winner.trials[0], len(asked), [*raced, *trials])


def needs_queries(spec: IndexSpec, items: int, dim: int) -> bool:
    """Whether an index is tuned at all: exact search is not, and small catalogues are searched exactly; see QUICK."""
    if spec.kind != "auto":
        return spec.kind != "exact"
    return items >= least_items(spec.recall_k) and items * dim > QUICK


def _check_spec(spec: IndexSpec, items: int) -> None:
    if not 0.0 < spec.recall_target <= 1.0:
        raise ExportError(f"recall_target must be above 0 and at most 1, found {spec.recall_target}")
    if spec.recall_k < 1:
        raise ExportError(f"recall_k must be at least 1, found {spec.recall_k}")
    if (spec.kind == "faiss") != bool(spec.factory):
        raise ExportError(f"factory goes with kind 'faiss' and no other, found kind {spec.kind!r} and {spec.factory!r}")
    needed = least_items(spec.recall_k)
    if spec.kind not in ("auto", "exact") and items < needed:
        raise ExportError(
            f"{items:,} items are too few for an index of kind {spec.kind} at recall_k = {spec.recall_k}, which pays "
            f"from {needed:,} on; use kind 'auto' or 'exact', or a smaller recall_k"
        )


def nonzero_rows(vectors: Vectors) -> NDArray[np.int64]:
    """Rows of the vectors that an index is asked for: a server answers a zero query, for which all tie, exactly."""
    blocks = (vectors[start : start + _BLOCK].any(axis=1) for start in range(0, len(vectors), _BLOCK))
    return np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *blocks]))


def _held_out_queries(vectors: Vectors, users: Vectors | None, held_out: NDArray[np.int64]) -> Vectors:
    items = held_out[nonzero_rows(vectors[held_out])]
    chosen = vectors[:0] if users is None else users[spread(nonzero_rows(users), QUERIES)]
    wanted = QUERIES if users is None else MIN_QUERIES
    missing = min(max(0, wanted - len(chosen)), len(items))
    asked = np.concatenate([chosen, vectors[spread(items, missing)]])
    if not len(asked):
        raise ExportError(
            "the index cannot be tuned: the vectors of the users and of the items to search for are all zero; give the "
            "vectors of a trained model, or use index kind 'exact'"
        )
    return np.ascontiguousarray(asked)


# ------------------------------------------------------------------------------------------------------------- the race


def _enter(
    families: Sequence[Family],
    spec: IndexSpec,
    vectors: Vectors,
    trainable: NDArray[np.int64],
    judge: Judge,
    progress: Progress,
) -> Iterator[_Entrant]:
    """Build and tune each family; what is far slower than another is not tuned to the end."""
    fastest = math.inf
    for family in families:
        with progress.step(f"{family.name}, {len(vectors):,} items", len(vectors)) as advance:
            built = family.build(vectors, trainable, advance)
        with progress.step(f"{family.name}: recall and time", None):
            trials = settle(built, judge, spec.recall_target, _HOPELESS * fastest)
        if trials:
            if trials[0].recall_low >= spec.recall_target:
                fastest = min(fastest, trials[0].p50_ms)
            yield _Entrant(family=family, built=built, trials=trials)


def _survivors(entrants: Sequence[_Entrant], target: float, growth: float, margin: float, judge: Judge) -> list[Family]:
    """Those that may be among the fastest with `growth` times as many items; see RACES.

    So are those that miss the target here, where they may not re-score as many items as among more of them.
    """
    able = [each for each in entrants if each.trials[0].recall_low >= target]
    cramped = [
        each
        for each in entrants
        if each not in able and len(rescored_values(each.built, judge)) < len(each.built.rescored)
    ]
    expected = {each.family: each.trials[0].p50_ms * growth**each.family.growth for each in able or entrants}
    least = margin * min(expected.values())
    return [each.family for each in entrants if each in cramped or expected.get(each.family, math.inf) <= least]


def _choose(entrants: Sequence[_Entrant], spec: IndexSpec, judge: Judge) -> _Entrant:
    """The simplest of those whose times, measured side by side, are within noise of the fastest."""
    able = [each for each in entrants if each.trials[0].recall_low >= spec.recall_target]
    if not able:
        raise ExportError(_out_of_reach(entrants, spec))
    timed([each.built for each in able], judge, [each.trials[0] for each in able])
    fastest = min(each.trials[0].p50_ms for each in able)
    return next(each for each in able if each.trials[0].p50_ms <= _NOISE * fastest)


def _out_of_reach(entrants: Sequence[_Entrant], spec: IndexSpec) -> str:
    best = max((each.trials[0] for each in entrants), key=lambda trial: trial.recall_low)
    tried = " or ".join(each.built.factory for each in entrants)
    return (
        f"no setting of {tried} reaches recall@{spec.recall_k} of {spec.recall_target:g} with its lower 95% bound; the "
        f"best was {best.recall:.4f}, bound {best.recall_low:.4f}: lower recall_target, or use kind 'auto' or 'exact'"
    )


def _entry(
    spec: IndexSpec, best: manifest_pb2.IndexTrial, queries: int, trials: Sequence[manifest_pb2.IndexTrial]
) -> manifest_pb2.Index:
    exact = best.kind == manifest_pb2.EXACT
    return manifest_pb2.Index(
        kind=best.kind,
        factory=best.factory,
        parameters=best.parameters,
        recall=best.recall,
        recall_k=spec.recall_k,
        recall_target=0.0 if exact else spec.recall_target,
        recall_low=best.recall_low,
        queries=queries,
        bytes=best.bytes,
        p50_ms=best.p50_ms,
        trials=trials,
    )


# ------------------------------------------------------------------------------------------------------------ families


def _families(spec: IndexSpec, vectors: Vectors) -> Iterator[Family]:
    """What is tried, simplest first."""
    if spec.kind == "auto":
        yield Family(name="exact search", growth=1.0, build=lambda given, *_: exact_index(given))
    if spec.kind in ("auto", "ivf_pq4"):
        kept = kept_dimensions(np.ascontiguousarray(vectors[spread(np.arange(len(vectors)), SAMPLE)]))
        whole = min(-(-vectors.shape[1] // STEP) * STEP, MAX_DIMENSIONS)
        shared = _Clusterings()
        yield _codes_family(kept, 1, shared, one_list=True)
        for dimensions, part in dict.fromkeys(((kept, 1), (kept, 2), (whole, 2))):
            yield _codes_family(dimensions, part, shared, one_list=False)
    if spec.kind in ("auto", "ivf_sq8"):
        yield _faiss_family(manifest_pb2.IVF_SQ8, lambda items: f"IVF{inverted_lists(items)},SQ8", _LISTS_GROWTH)
    if spec.kind in ("auto", "hnsw_sq8"):
        yield _faiss_family(manifest_pb2.HNSW_SQ8, lambda _: f"HNSW{_HNSW_LINKS},SQ8", _GRAPH_GROWTH)
    if spec.kind == "faiss":
        yield _faiss_family(manifest_pb2.FAISS, lambda _: spec.factory, 1.0)


class _Clusterings:
    """Remembers the last clustering, which the next family may share."""

    def __init__(self) -> None:
        self._last: tuple[Vectors, int, int, Clustering] | None = None

    def of(self, vectors: Vectors, trainable: NDArray[np.int64], plan: CodePlan) -> Clustering:
        """As `cluster`."""
        last = self._last
        if last is None or last[0] is not vectors or last[1:3] != (plan.lists, plan.dimensions):
            last = self._last = (vectors, plan.lists, plan.dimensions, cluster(vectors, trainable, plan))
        return last[3]


def _codes_family(dimensions: int, part: int, shared: _Clusterings, *, one_list: bool) -> Family:
    def build(vectors: Vectors, trainable: NDArray[np.int64], advance: Callable[[int], None]) -> Built:
        plan = CodePlan(1 if one_list else inverted_lists(len(trainable)), dimensions, part)
        arrays = build_codes(vectors, trainable, plan, advance, shared.of(vectors, trainable, plan))
        return _built_codes(vectors, arrays, plan)

    lists = "one list" if one_list else "lists"
    return Family(name=f"{lists} of {dimensions // part} codes", growth=1.0 if one_list else _LISTS_GROWTH, build=build)


def _built_codes(vectors: Vectors, arrays: Arrays, plan: CodePlan) -> Built:
    lists = ivf.InvertedLists(len(vectors), **arrays)

    def write(writer: BundleWriter, space: str) -> None:
        for part, array in arrays.items():
            writer.array(index_file(space, part), array)

    return Built(
        kind=manifest_pb2.IVF_PQ4,
        factory=plan.name,
        bytes=sum(array.nbytes for array in arrays.values()),
        rescored=COARSE_CODES,
        effort=(NPROBE, plan.lists),
        engine=lambda effort: ListIndex(vectors, lists, effort),
        write=write,
    )


def _faiss_family(kind: manifest_pb2.IndexKind.ValueType, factory: Callable[[int], str], growth: float) -> Family:
    def build(vectors: Vectors, trainable: NDArray[np.int64], advance: Callable[[int], None]) -> Built:
        name = factory(len(trainable))
        index = _empty_index(name, vectors.shape[1], kind)
        try:
            index.train(np.ascontiguousarray(vectors[spread(trainable, _training(index))]))
        except RuntimeError as error:
            raise ExportError(f"FAISS cannot train {name!r} on {len(trainable):,} items: {error}") from error
        for start in range(0, len(vectors), _BLOCK):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK])
            index.add(block)
            advance(len(block))
        return _built_faiss(vectors, index, name, kind)

    return Family(name=_FAISS_NAMES[kind], growth=growth, build=build)


def _built_faiss(vectors: Vectors, index: Any, factory: str, kind: manifest_pb2.IndexKind.ValueType) -> Built:
    faiss = faiss_library()
    inner = inner_index(index)
    most = {NPROBE: getattr(inner, "nlist", 0), EF_SEARCH: index.ntotal}
    return Built(
        kind=kind,
        factory=factory,
        bytes=_file_size(index),
        rescored=COARSE_CODES if kind == manifest_pb2.FAISS else FINE_CODES,
        effort=next(((name, most[name]) for name in search_parameters(index)), None),
        engine=lambda effort: FaissIndex(vectors, index, effort),
        write=lambda writer, space: faiss.write_index(index, str(writer.path(space_file(space, "index.faiss")))),
    )


def _file_size(index: Any) -> int:
    """Bytes of a FAISS index's file, counted block by block: serialised, a large index would be twice in memory."""
    faiss = faiss_library()
    blocks: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda block: blocks.append(len(block))))
    return sum(blocks)


def _empty_index(factory: str, dim: int, kind: manifest_pb2.IndexKind.ValueType) -> Any:
    """An untrained index of codes.

    Raises:
        ExportError: FAISS does not know the factory string, builds it for another metric, or it is one of an index that
            copies the vectors.
    """
    faiss = faiss_library()
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ExportError(f"FAISS does not know the index {factory!r} for {dim} dimensions: {error}") from error
    inner = inner_index(index)
    usable = f'use one of {", ".join(FACTORY_CLASSES[kind])}, such as "IVF1024,PQ64x4fs", without RFlat or Flat codes'
    if inner.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ExportError(
            f"FAISS has the index {factory!r} for Euclidean distance only, and spaces are searched by inner product; "
            f"{usable}"
        )
    name = type(inner).__name__
    if name not in FACTORY_CLASSES[kind]:
        raise ExportError(
            f"the index {factory!r} is of class {name}, which is not one of codes only: exact scores come from the "
            f"space's own vectors, which are not stored twice; {usable}"
        )
    return index


def _training(index: Any) -> int:
    """How many vectors train an index."""
    inner = inner_index(index)
    return max(_TRAINING, _TRAINING_PER_LIST * getattr(inner, "nlist", 0))
