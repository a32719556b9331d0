"""The reference workloads' vectors: clustered, as two-tower models make them, and seeded.

There are 3,000 Gaussian centres in 32 dimensions. An item is a centre with noise of 0.7; a user mixes two centres by
0.6 each, with the same noise. A random matrix takes both to 128 dimensions, where noise of standard deviation 1 is
added, and they get length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DIM: Final = 128
CENTRES: Final = 3000
INNER_DIM: Final = 32
NOISE: Final = 0.7
"""Around centres, in the inner dimensions."""
SHARE: Final = 0.6
"""Of each of the two centres that a user mixes."""

_BLOCK: Final = 100_000  # ten million vectors in double would not fit into memory


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Where vectors come from.

    Attributes:
        centres: float64 [3000, 32].
        projection: float64 [32, 128].
    """

    centres: NDArray[np.float64]
    projection: NDArray[np.float64]

    @staticmethod
    def draw(random: np.random.Generator) -> Clusters:
        """Random ones."""
        return Clusters(random.standard_normal((CENTRES, INNER_DIM)), random.standard_normal((INNER_DIM, DIM)))

    def mixtures(self, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n, 32]: of the centres in each row of `pairs` [n, 2]."""
        return SHARE * self.centres[pairs[:, 0]] + SHARE * self.centres[pairs[:, 1]]

    def vectors(self, inner: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float32]:
        """float32 [n, 128] of length 1: around inner vectors [n, 32], with both kinds of noise."""
        noisy = around(inner, random) @ self.projection
        noisy += random.standard_normal(noisy.shape)
        unit: NDArray[np.float32] = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        return unit


def around(inner: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """[n, 32]: inner vectors with their noise."""
    noisy: NDArray[np.float64] = inner + NOISE * random.standard_normal(inner.shape)
    return noisy


def clustered_vectors(
    items: int, users: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of items, float32 [items, 128], and of users, float32 [users, 128]."""
    clusters = Clusters.draw(random)
    of_items = clusters.centres[random.integers(0, CENTRES, items)]
    of_users = clusters.mixtures(random.integers(0, CENTRES, (users, 2)))
    return _in_blocks(clusters, of_items, random), _in_blocks(clusters, of_users, random)


def _in_blocks(clusters: Clusters, inner: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float32]:
    vectors = np.empty((len(inner), DIM), np.float32)
    for start in range(0, len(inner), _BLOCK):
        vectors[start : start + _BLOCK] = clusters.vectors(inner[start : start + _BLOCK], random)
    return vectors
