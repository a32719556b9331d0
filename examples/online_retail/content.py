"""What descriptions say: TF-IDF, its principal directions, and clusters of them as categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

DIM: Final = 64
_ITEMS_PER_CATEGORY: Final = 60
_WORDS = r"(?u)\b[a-z]{2,}\b"


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Items by their descriptions.

    Attributes:
        vectors: float32 [items, at most DIM], of length 1.
        category: the name of each item's cluster: the words that weigh most in it.
    """

    vectors: NDArray[np.float32]
    category: list[str]


def describe(descriptions: Sequence[str], seed: int) -> Content:
    """Vectors and categories of items; a description without a known word has the mean direction of all."""
    vectorizer = TfidfVectorizer(token_pattern=_WORDS, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    weights = vectorizer.fit_transform(descriptions)
    dim = min(DIM, min(weights.shape) - 1)
    directions = TruncatedSVD(dim, random_state=seed).fit_transform(weights)
    empty = np.linalg.norm(directions, axis=1) < 1e-6
    directions[empty] = directions.mean(axis=0)
    vectors = _unit(directions)
    clusters = max(1, len(descriptions) // _ITEMS_PER_CATEGORY)
    labels = KMeans(clusters, n_init=1, random_state=seed).fit_predict(vectors)
    names = _names(weights, labels, vectorizer.get_feature_names_out())
    return Content(vectors, [names[label] for label in labels])


def _names(weights: NDArray[np.float64], labels: NDArray[np.int32], terms: NDArray[np.object_]) -> list[str]:
    """A cluster's two heaviest words, numbered where two clusters share them."""
    words = np.flatnonzero([" " not in term for term in terms])
    names, taken = [], Counter[str]()
    for cluster in range(labels.max() + 1):
        total = np.asarray(weights[labels == cluster].sum(axis=0)).ravel()[words]
        name = " ".join(terms[words[np.argsort(-total, kind="stable")[:2]]])
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name} {taken[name]}")
    return names


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    # Rounding to float32 first would leave lengths that differ from 1 by more than it must.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)
