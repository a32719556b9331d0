"""The index of the straightforward service: what FAISS offers, tuned with FAISS's own tools."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.faiss_library import faiss_library

Vectors = NDArray[np.float32]

faiss: Final[Any] = faiss_library()
faiss.omp_set_num_threads(1)

CODES: Final = ("Flat", "PQ{half}x4fsr,RFlat")
"""What the inverted lists hold: vectors, or 4-bit codes whose best answers are re-scored from a copy of the vectors."""
TRAINING: Final = 256
"""Vectors for each list, as FAISS advises."""
EXACT_QUERIES: Final = 20
"""That exact search is timed with."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An index and how it is searched.

    Attributes:
        factory: FAISS's description.
        parameters: such as "nprobe=64,k_factor_rf=4".
        recall: the share of the `k` nearest items that it finds, over the queries that it was tuned with.
        k: answers a query.
        milliseconds: a query, in one thread.
    """

    factory: str
    parameters: str
    recall: float
    k: int
    milliseconds: float


def tuned_index(vectors: Vectors, queries: Vectors, nearest: NDArray[np.int64], recall: float) -> tuple[Any, Choice]:
    """The fastest of exact search and FAISS's inverted lists that reaches a recall, set to it.

    Args:
        vectors: [items, dim].
        queries: [n, dim], to tune with.
        nearest: [n, k], what exact search finds for them.
        recall: to be reached.
    """
    found = [_exact(vectors, queries, nearest.shape[1])]
    for factory in _factories(vectors):
        found += _tuned(vectors, queries, nearest, recall, factory)
    return min(found, key=lambda each: each[1].milliseconds)


def _exact(vectors: Vectors, queries: Vectors, k: int) -> tuple[Any, Choice]:
    index = exact_index(vectors)
    start = time.perf_counter()
    for query in queries[:EXACT_QUERIES]:
        index.search(query[np.newaxis], k)
    milliseconds = 1000 * (time.perf_counter() - start) / EXACT_QUERIES
    return index, Choice("Flat", "", 1.0, k, round(milliseconds, 4))


def _factories(vectors: Vectors) -> Iterator[str]:
    lists = 2 ** round(np.log2(np.sqrt(len(vectors))))
    for codes in CODES:
        yield f"IVF{lists},{codes.format(half=vectors.shape[1] // 2)}"


def _tuned(
    vectors: Vectors, queries: Vectors, nearest: NDArray[np.int64], recall: float, factory: str
) -> Iterator[tuple[Any, Choice]]:
    """The index of this kind, if it reaches the recall."""
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.extract_index_ivf(index).nlist
    index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // (TRAINING * lists))]))
    index.add(vectors)
    good = [each for each in _settings(index, queries, nearest) if each[1] >= recall]
    if good:
        parameters, reached, seconds = min(good, key=lambda each: each[2])
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        milliseconds = round(1000 * seconds / len(queries), 4)
        yield index, Choice(factory, parameters, round(reached, 4), nearest.shape[1], milliseconds)


def _settings(index: Any, queries: Vectors, nearest: NDArray[np.int64]) -> list[tuple[str, float, float]]:
    """Parameters with their recall and seconds, those that no others beat in both."""
    space = faiss.ParameterSpace()
    space.verbose = 0
    space.initialize(index)
    _refine(space, faiss.extract_index_ivf(index).nlist)
    criterion = faiss.IntersectionCriterion(len(queries), nearest.shape[1])
    criterion.set_groundtruth(None, nearest)
    explored = space.explore(index, queries, criterion)  # it owns the points, so it has to outlive them
    points = [explored.optimal_pts.at(place) for place in range(explored.optimal_pts.size())]
    return [(each.key, each.perf, each.t) for each in points]


def exact_index(vectors: Vectors) -> Any:
    """One that misses nothing."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _refine(space: Any, lists: int) -> None:
    """Try numbers of lists by steps of a fifth; FAISS's are powers of two, of which the right one may be far off."""
    for place in range(space.parameter_ranges.size()):
        tried = space.parameter_ranges.at(place)
        if tried.name == "nprobe":
            probes = np.unique(np.round(lists * 2.0 ** np.arange(-6, 0, 0.25))).clip(min=1)
            faiss.copy_array_to_vector(probes, tried.values)


def save(path: Path, index: Any, choice: Choice) -> None:
    """Keep an index; what describes it stands beside it, written last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(path))
    path.with_suffix(".json").write_text(json.dumps(asdict(choice), indent=1), "utf-8")


def choice_of(path: Path) -> Choice:
    """What a kept index is."""
    return Choice(**json.loads(path.with_suffix(".json").read_text("utf-8")))


def load(path: Path) -> tuple[Any, Choice]:
    """The index that `save` has kept."""
    choice = choice_of(path)
    index = faiss.read_index(str(path))
    faiss.ParameterSpace().set_index_parameters(index, choice.parameters)
    return index, choice
