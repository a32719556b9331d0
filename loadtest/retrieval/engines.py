"""What `recserve-loadtest kernels retrieval` measures, each behind the same two calls.

All run in one thread and answer with rows by exact inner products. Every engine but exact search is tuned in the same
way: the least effort of a rising series whose mean recall on the tuning queries reaches the target. Ours is tuned by an
export, whose target is for the lower confidence bound.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.codes import inverted_lists
from recserve.exporters.faiss_library import faiss_library
from recserve.exporters.indexes import build_index
from recserve.exporters.spaces import Steps
from recserve.exporters.spec import IndexSpec
from recserve.exporters.writer import BundleWriter
from recserve.kernels import bitmaps, ivf
from recserve.server.bundle.layout import INDEX_PARTS, index_file, space_file
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.search import ExactSearcher, Searcher, open_searcher

Vectors = NDArray[np.float32]
Answers = Sequence[NDArray[np.int64]]

SPACE: Final = "ann"
_OTHERS_RESCORED: Final = 3.0  # vectors scored exactly for each answer, where codes of FAISS and ScaNN propose


class Engine(Protocol):
    """Finds near rows; `effort` is what tuning has to find, None where there is nothing to tune."""

    name: str
    efforts: Sequence[int]
    effort: int

    def search(self, queries: Vectors, k: int, mask: NDArray[np.uint64] | None) -> Answers:
        """Up to k passing rows for each query, best first."""

    def described(self) -> dict[str, int | str]:
        """Its settings, for the result file."""


class Ours:
    """A searcher of the server."""

    efforts: Sequence[int] = ()
    effort = 0

    def __init__(self, name: str, searcher: Searcher, settings: dict[str, int | str]) -> None:
        self.name = name
        self._searcher = searcher
        self._settings = settings

    def search(self, queries: Vectors, k: int, mask: NDArray[np.uint64] | None) -> Answers:
        """See Engine.search."""
        return [rows for rows, _ in self._searcher.search(queries, k, [mask] * len(queries))]

    def described(self) -> dict[str, int | str]:
        """See Engine.described."""
        return self._settings


class Faiss:
    """A FAISS index, filtered by its selectors; codes are re-scored by our kernel."""

    def __init__(self, name: str, index: Any, vectors: Vectors, efforts: Sequence[int], *, codes: bool) -> None:
        self.name = name
        self.efforts = efforts
        self.effort = efforts[-1]
        self._index = index
        self._vectors = vectors if codes else None

    def search(self, queries: Vectors, k: int, mask: NDArray[np.uint64] | None) -> Answers:
        """See Engine.search."""
        faiss = faiss_library()
        faiss.omp_set_num_threads(1)
        fetch = k if self._vectors is None else int(_OTHERS_RESCORED * k)
        selector = None if mask is None else faiss.IDSelectorBitmap(mask.view(np.uint8))
        # With a filter of a tenth, neighbours lie about ten times as far: as ours, the root of that more effort.
        effort = self.effort if mask is None else int(self.effort * np.sqrt(len_of(mask) / bitmaps.count(mask)))
        _, found = self._index.search(queries, fetch, params=self._parameters(effort, selector))
        rows = [each[each >= 0] for each in found]
        if self._vectors is None:
            return rows
        return [ivf.rescore(self._vectors, query, each, k)[0] for query, each in zip(queries, rows, strict=True)]

    def described(self) -> dict[str, int | str]:
        """See Engine.described."""
        return {"efSearch" if hasattr(self._index, "hnsw") else "nprobe": self.effort}

    def _parameters(self, effort: int, selector: Any) -> Any:
        faiss = faiss_library()
        faiss.omp_set_num_threads(1)
        if hasattr(self._index, "hnsw"):
            return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        return faiss.SearchParametersIVF(nprobe=min(effort, self._index.nlist), sel=selector)


class Scann:
    """ScaNN. It has no filters: ten times as many are asked for, and what does not pass is dropped."""

    name = "ScaNN"

    def __init__(self, searcher: Any, leaves: int) -> None:
        self._searcher = searcher
        self.efforts: Sequence[int] = sorted(
            {max(1, round(leaves * share)) for share in (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.4, 1.0)}
        )
        self.effort = self.efforts[-1]

    def search(self, queries: Vectors, k: int, mask: NDArray[np.uint64] | None) -> Answers:
        """See Engine.search."""
        wanted = k if mask is None else 10 * k
        settings = {
            "final_num_neighbors": wanted,
            "pre_reorder_num_neighbors": int(_OTHERS_RESCORED * wanted),
            "leaves_to_search": self.effort if mask is None else 3 * self.effort,
        }
        if len(queries) == 1:
            found = [self._searcher.search(queries[0], **settings)[0]]
        else:
            found = list(self._searcher.search_batched(queries, **settings)[0])
        rows = [each.astype(np.int64) for each in found]
        return rows if mask is None else [each[bitmaps.contains(mask, each)][:k] for each in rows]

    def described(self) -> dict[str, int | str]:
        """See Engine.described."""
        return {"leaves_to_search": self.effort}


def len_of(mask: NDArray[np.uint64]) -> int:
    """About how many rows a bitmap is over."""
    return 64 * len(mask)


def ours(vectors: Vectors, queries: Vectors, k: int, target: float, folder: Path) -> Iterator[Engine]:
    """Exact search, and what an export chooses and writes, mapped again."""
    yield Ours("recserve exact", ExactSearcher(vectors), {})
    spec = IndexSpec(recall_target=target, recall_k=k)
    with BundleWriter(folder / "bundle") as writer, Progress(console=Console(stderr=True)) as progress:
        entry = build_index(spec, vectors, queries, writer, SPACE, Steps(progress, SPACE))
        shutil.copytree(writer.root, folder / SPACE)
    settings: dict[str, int | str] = {"factory": entry.factory or "exact", **entry.parameters}
    yield Ours("recserve", open_searcher(_space(entry, vectors, folder / SPACE), "cpu"), settings)


def others(vectors: Vectors, wanted: Sequence[str]) -> Iterator[Callable[[], Engine]]:
    """Builders of the engines of those names."""
    builders = {
        "ivf-flat": lambda: _faiss_lists(vectors, "Flat"),
        "ivf-pq": lambda: _faiss_lists(vectors, f"PQ{vectors.shape[1] // 2}x4fs"),
        "hnsw": lambda: _faiss_graph(vectors),
        "scann": lambda: _scann(vectors),
    }
    yield from (builders[name] for name in wanted)


def _space(entry: manifest_pb2.Index, vectors: Vectors, folder: Path) -> Space:
    spec = manifest_pb2.Space(name=SPACE, dim=vectors.shape[1], index=entry)
    path = folder / space_file(SPACE, "index.faiss")
    arrays = None
    if entry.kind == manifest_pb2.IVF_PQ4:
        arrays = {
            part: np.load(folder / index_file(SPACE, part), mmap_mode="r").view(np.ndarray) for part in INDEX_PARTS
        }
    return Space(spec, vectors, index_path=path if path.exists() else None, index_arrays=arrays)


def _faiss_lists(vectors: Vectors, codes: str) -> Engine:
    lists = inverted_lists(len(vectors))
    faiss = faiss_library()
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},{codes}", faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // (64 * lists))]))
    index.add(np.ascontiguousarray(vectors))
    efforts = [round(lists * 2 ** (step / 4)) for step in range(-24, 1) if round(lists * 2 ** (step / 4)) >= 1]
    return Faiss(f"FAISS IVF{lists},{codes}", index, vectors, efforts, codes=codes != "Flat")


def _faiss_graph(vectors: Vectors) -> Engine:
    faiss = faiss_library()
    index = faiss.index_factory(vectors.shape[1], "HNSW32", faiss.METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(vectors))
    return Faiss("FAISS HNSW32", index, vectors, [round(500 * 2 ** (step / 4)) for step in range(9)], codes=False)


def _scann(vectors: Vectors) -> Engine:
    import scann  # noqa: PLC0415  optional, and there are not wheels for every platform

    leaves = 2 * round(np.sqrt(len(vectors)))
    builder = scann.scann_ops_pybind.builder(np.ascontiguousarray(vectors), 500, "dot_product")
    built = (
        builder.tree(
            num_leaves=leaves, num_leaves_to_search=leaves // 20, training_sample_size=min(len(vectors), 250_000)
        )
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(1500)
    )
    return Scann(built.build(), leaves)
