"""Metrics of ranked lists and of probabilities: pure functions over arrays.

Lists are int64 [users, k] of item rows, best first, distinct, filled up with -1. Relevance is binary. With `hit[i]` 1
where place i (from 1) holds a relevant item, and R the number of the user's relevant items:

    precision@k  sum hit[i] / k
    recall@k     sum hit[i] / R
    NDCG@k       sum hit[i] / log2(i + 1), divided by its largest possible value, which min(R, k) hits at the top reach
                 (Järvelin & Kekäläinen, ACM TOIS 20, 2002)
    AP@k         sum hit[i] * precision@i / min(R, k); its mean over users is MAP@k (the form of trec_eval's map_cut but
                 for the denominator: R there, which k places cannot reach)
    novelty      mean of -log2 p(item), p the share of users who have the item (Zhou et al., PNAS 107, 2010)
    diversity    1 - mean cosine over the pairs of a list (Ziegler et al., WWW 2005)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.int64]
Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]

_SMALLEST = 1e-15  # keeps the logarithm of a probability that was rounded to 0 or 1 finite


@dataclass(frozen=True, slots=True, eq=False)
class Relevant:
    """Each user's relevant items: those of user u are rows[offsets[u]:offsets[u + 1]], distinct."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """[users]."""
        return np.diff(self.offsets)

    def of(self, user: int) -> NDArray[np.int64]:
        """One user's items."""
        return self.rows[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: NDArray[np.int64]) -> Relevant:
        """Some of the users, in the given order."""
        return Relevant.join([self.of(int(user)) for user in users])

    @staticmethod
    def join(parts: list[NDArray[np.int64]]) -> Relevant:
        """From one array a user."""
        offsets = np.cumsum([0, *(part.size for part in parts)], dtype=np.int64)
        return Relevant(offsets, np.concatenate([np.empty(0, np.int64), *parts]))


# ---------------------------------------------------------------------------------------------------- accuracy of lists


def hits(lists: Lists, relevant: Relevant) -> Hits:
    """[users, k]: which places hold an item that is relevant to the list's user."""
    size = 1 + max(lists.max(initial=0), relevant.rows.max(initial=0))
    users = np.arange(len(lists))
    wanted = np.repeat(users, relevant.counts) * size + relevant.rows
    return np.isin(users[:, None] * size + lists, wanted) & (lists >= 0)


def precision(found: Hits) -> Floats:
    """[users]: precision@k of hits [users, k]."""
    shares: Floats = found.mean(axis=1)
    return shares


def recall(found: Hits, counts: NDArray[np.int64]) -> Floats:
    """[users]: recall@k of hits [users, k]; `counts` [users], >= 1, says how many items are relevant."""
    shares: Floats = found.sum(axis=1) / counts
    return shares


def ndcg(found: Hits, counts: NDArray[np.int64]) -> Floats:
    """[users]: NDCG@k; arguments as for `recall`."""
    k = found.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(counts, k) - 1]
    gains: Floats = found @ discount / ideal
    return gains


def average_precision(found: Hits, counts: NDArray[np.int64]) -> Floats:
    """[users]: AP@k; arguments as for `recall`."""
    k = found.shape[1]
    precisions = np.cumsum(found, axis=1) / np.arange(1, k + 1)
    means: Floats = (found * precisions).sum(axis=1) / np.minimum(counts, k)
    return means


# ------------------------------------------------------------------------------------------------------ beyond accuracy


def coverage(lists: Lists, items: int) -> float:
    """The share of a catalogue of `items` that is in any list."""
    return np.unique(lists[lists >= 0]).size / items


def self_information(owners: NDArray[np.int64], users: int) -> Floats:
    """[items], bits: -log2 of the share of users who have the item; one more user is taken to have everything.

    Args:
        owners: [items], how many of the users have it.
        users: how many there are.
    """
    return -np.log2((owners + 1) / (users + 1))


def novelty(lists: Lists, information: Floats) -> Floats:
    """[users]: mean self-information of a list's items; NaN for an empty list."""
    filled = lists >= 0
    return _ratio((information[lists] * filled).sum(axis=1), filled.sum(axis=1))


def diversity(lists: Lists, vectors: NDArray[np.float32]) -> Floats:
    """[users]: 1 - mean cosine over a list's pairs; NaN for lists of fewer than two items.

    Args:
        lists: item rows.
        vectors: [items, dim], of length 1.
    """
    filled = lists >= 0
    size = filled.sum(axis=1)
    sums = np.einsum("ukd,uk->ud", vectors[lists], filled, dtype=np.float64)
    # The squared length of a sum of unit vectors is their number and twice the cosines of all pairs.
    return 1 - _ratio((sums**2).sum(axis=1) - size, size * (size - 1))


def distinct(lists: Lists, codes: NDArray[np.int32]) -> Floats:
    """[users]: distinct categories in a list; NaN for an empty list, and items without a category (-1) do not count."""
    found = np.where(lists >= 0, codes[lists], -1)
    found.sort(axis=1)
    new = np.diff(found, axis=1, prepend=np.int32(-1)) != 0
    return np.where((lists >= 0).any(axis=1), (new & (found >= 0)).sum(axis=1), np.nan)


def _ratio(above: NDArray[np.floating], below: NDArray[np.int64]) -> Floats:
    """NaN where `below` is 0."""
    quotient = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient


# -------------------------------------------------------------------------------------------------------- probabilities


def auc(scores: Floats, labels: Hits) -> float:
    """Area under the ROC curve: how probably a positive scores above a negative, ties half; NaN without both."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return float("nan")
    _, value, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2  # from 1; equal scores share the mean of their ranks
    ranks = float(mean_rank[value[labels]].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def log_loss(probabilities: Floats, labels: Hits) -> float:
    """Mean of -log of the probability that was given to what happened, in nats."""
    given = np.where(labels, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(given, _SMALLEST)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Predictions by bin, bins without any left out; all arrays are [bins], in the order of the predictions.

    Attributes:
        predicted: mean prediction.
        observed: share of positives.
        counts: how many predictions.
    """

    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: |predicted - observed|, weighted by counts (Naeini et al., AAAI 2015)."""
        return float(np.abs(self.predicted - self.observed) @ self.counts / self.counts.sum())


def reliability(probabilities: Floats, labels: Hits, bins: int) -> Reliability:
    """Predictions beside what happened, in bins of equal width in log-odds.

    Relevance of candidates is mostly near 0: bins of equal width in probability would put nearly all into the first.

    Args:
        probabilities: [n], n >= 1, between 0 and 1.
        labels: [n].
        bins: how many, >= 1.
    """
    inner = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    odds = np.log(inner) - np.log1p(-inner)
    edges = np.linspace(odds.min(), odds.max(), bins + 1)
    which = np.clip(np.searchsorted(edges, odds, side="right") - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    some = counts > 0
    predicted = np.bincount(which, probabilities, bins)[some] / counts[some]
    observed = np.bincount(which, labels, bins)[some] / counts[some]
    return Reliability(predicted, observed, counts[some])
