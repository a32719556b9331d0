"""Inverted lists of 4-bit codes: how `recserve.kernels.ivf` gets its arrays.

    project     onto the directions that hold most of the vectors' energy, turned at random so that each holds as much
    cluster     k-means: a list for each centroid
    quantise    what a centroid leaves of its items, part by part, to 16 codewords (again k-means)
    arrange     items by list, codes in blocks of 32 items

All of it is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.faiss_library import faiss_library
from recserve.kernels import ivf

Vectors = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

STEP: Final = 8
"""Projected dimensions come in multiples of it."""
MAX_DIMENSIONS: Final = 256
"""Most dimensions that items are projected to: a sum of more parts would not fit into 16 bits."""
ENERGY: Final = 0.95
"""Share of the vectors' energy (sum of squares) that a projection keeps at least."""

_SEED: Final = 1234
_MIN_PER_LIST: Final = 39
_TRAINING_PER_LIST: Final = 64  # FAISS wants 39 to 256 vectors per centroid
_TRAINING: Final = 65_536  # at least so many, where there are, for the projection and the codewords
_ITERATIONS: Final = 10
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class CodePlan:
    """The shape of an index.

    Attributes:
        lists: how many there are.
        dimensions: that are kept, a multiple of 4 * part.
        part: dimensions of a part, which one code of 4 bits stands for.
    """

    lists: int
    dimensions: int
    part: int

    @property
    def name(self) -> str:
        """In the manner of FAISS's factory strings."""
        lists = f"IVF{self.lists}," if self.lists > 1 else ""
        return f"PCA{self.dimensions},{lists}PQ{self.dimensions // self.part}x4"


def inverted_lists(items: int) -> int:
    """How many lists: the power of two next to 4 sqrt(items), but at least 39 items a list, as FAISS's k-means wants.

    Then looking into a list and choosing it cost about as much: a search that reads a few per cent of the lists
    compares its query with as many centroids as items.
    """
    balanced = round(math.log2(4 * math.sqrt(items)))
    most = math.floor(math.log2(max(1.0, items / _MIN_PER_LIST)))
    return 1 << max(0, min(balanced, most))


def kept_dimensions(vectors: Vectors) -> int:
    """How many dimensions keep ENERGY of some vectors, in steps that codes come in."""
    energies = np.linalg.eigvalsh(_second_moment(vectors))[::-1]
    shares = np.cumsum(energies) / max(float(energies.sum()), np.finfo(np.float64).tiny)
    needed = int(np.searchsorted(shares, ENERGY)) + 1
    return min(-(-needed // STEP) * STEP, MAX_DIMENSIONS)


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Items in lists: the part of an index that plans with as many lists and dimensions share.

    Attributes:
        training: [n, dim], vectors that train an index.
        projection: [dimensions, dim].
        centroids: [lists, dimensions].
        owner: int32 [items], the list of each.
    """

    training: Vectors
    projection: Vectors
    centroids: Vectors
    owner: NDArray[np.int32]


def cluster(vectors: Vectors, trainable: NDArray[np.int64], plan: CodePlan) -> Clustering:
    """Project items and find their lists; see `build_codes`."""
    training = np.ascontiguousarray(vectors[spread(trainable, max(_TRAINING, _TRAINING_PER_LIST * plan.lists))])
    projection = _projection(training, plan.dimensions)
    centroids = _centroids(training @ projection.T, plan.lists)
    owner = np.zeros(len(vectors), np.int32)
    if plan.lists > 1:
        for start in range(0, len(vectors), _BLOCK):
            owner[start : start + _BLOCK] = _nearest(centroids, _projected(vectors, start, projection))
    return Clustering(training, projection, centroids, owner)


def build_codes(
    vectors: Vectors,
    trainable: NDArray[np.int64],
    plan: CodePlan,
    advance: Callable[[int], None] = lambda _: None,
    clustering: Clustering | None = None,
) -> Arrays:
    """The arrays of an index, by the names of `recserve.kernels.ivf.InvertedLists`.

    Args:
        vectors: float32 [items, dim]; may be mapped.
        trainable: ascending rows that may train it, at least as many as lists.
        plan: its shape.
        advance: called with the number of items that were encoded since the last call.
        clustering: of a plan with as many lists and dimensions, over the same vectors; None: a new one.

    Raises:
        ExportError: FAISS is not installed.
    """
    found = clustering or cluster(vectors, trainable, plan)
    training = found.training @ found.projection.T
    quantiser = _quantiser(training - found.centroids[_nearest(found.centroids, training)], plan)
    codes = np.empty((len(vectors), plan.dimensions // plan.part // 2), np.uint8)
    for start in range(0, len(vectors), _BLOCK):
        block = _projected(vectors, start, found.projection)
        left = block - found.centroids[found.owner[start : start + _BLOCK]]
        codes[start : start + _BLOCK] = quantiser.compute_codes(left)
        advance(len(block))
    words = faiss_library().vector_to_array(quantiser.centroids).reshape(-1, ivf.WORDS, plan.part)
    return {
        "projection": found.projection,
        "centroids": _interleave(found.centroids),
        "codewords": np.ascontiguousarray(words, np.float32),
        **_arrange(found.owner, codes, plan.lists),
    }


def _projected(vectors: Vectors, start: int, projection: Vectors) -> Vectors:
    """A block of them."""
    block: Vectors = np.ascontiguousarray(vectors[start : start + _BLOCK]) @ projection.T
    return block


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` of some rows, evenly spread, in their order."""
    positions = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)
    return rows[positions]


def _second_moment(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    moment: NDArray[np.float64] = wide.T @ wide / max(1, len(wide))
    return moment


def _projection(vectors: Vectors, dimensions: int) -> Vectors:
    """[dimensions, dim]: orthonormal rows, or zero ones where there are more dimensions than the vectors have."""
    dim = vectors.shape[1]
    _, axes = np.linalg.eigh(_second_moment(vectors))
    principal = axes[:, ::-1].T[:dimensions]
    kept = len(principal)
    turn, _ = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((kept, kept)))
    rows = np.zeros((dimensions, dim), np.float32)
    rows[:kept] = turn @ principal
    return rows


def _centroids(vectors: Vectors, lists: int) -> Vectors:
    if lists == 1:
        mean: Vectors = vectors.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
        return mean
    faiss = faiss_library()
    means = faiss.Kmeans(
        vectors.shape[1],
        lists,
        niter=_ITERATIONS,
        seed=_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=max(_TRAINING_PER_LIST, -(-len(vectors) // lists)),
    )
    means.train(vectors)
    return np.ascontiguousarray(means.centroids, np.float32)


def _nearest(centroids: Vectors, vectors: Vectors) -> NDArray[np.int64]:
    faiss = faiss_library()
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    _, found = index.search(vectors, 1)
    nearest: NDArray[np.int64] = found[:, 0]
    return nearest


def _quantiser(residuals: Vectors, plan: CodePlan) -> Any:
    faiss = faiss_library()
    faiss.omp_set_num_threads(1)  # hundreds of small k-means: threads would mostly wait for one another
    quantiser = faiss.ProductQuantizer(plan.dimensions, plan.dimensions // plan.part, 4)
    quantiser.cp.min_points_per_centroid = 1
    quantiser.cp.seed = _SEED
    if len(residuals) < ivf.WORDS:  # k-means wants as many points as means
        residuals = np.resize(residuals, (ivf.WORDS, residuals.shape[1]))
    quantiser.train(residuals)
    return quantiser


def _interleave(centroids: Vectors) -> Vectors:
    """[lists, p] as [groups, p, 16]; places behind the last list are zero."""
    groups = -(-len(centroids) // ivf.GROUP)
    padded = np.zeros((groups * ivf.GROUP, centroids.shape[1]), np.float32)
    padded[: len(centroids)] = centroids
    return np.ascontiguousarray(padded.reshape(groups, ivf.GROUP, -1).transpose(0, 2, 1))


def _arrange(owner: NDArray[np.int32], codes: NDArray[np.uint8], lists: int) -> Arrays:
    """Items by list, then by row, each list from a new block on."""
    sizes = np.bincount(owner, minlength=lists)
    starts = np.concatenate([[0], np.cumsum(-(-sizes // ivf.BLOCK))]).astype(np.int64)
    order = np.argsort(owner, kind="stable")
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    places = np.repeat(starts[:-1] * ivf.BLOCK - before, sizes) + np.arange(len(owner))
    rows = np.full(starts[-1] * ivf.BLOCK, -1, np.int32)
    rows[places] = order
    arranged = np.zeros((len(rows), codes.shape[1]), np.uint8)
    arranged[places] = codes[order]
    blocks = arranged.reshape(-1, ivf.BLOCK, codes.shape[1])
    return {
        "starts": starts,
        "rows": rows.reshape(-1, ivf.BLOCK),
        "codes": np.ascontiguousarray(blocks.transpose(0, 2, 1)),
    }
