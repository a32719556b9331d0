"""Metrics against hand-computed values, scikit-learn and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from recserve.exporters.evaluation import metrics
from recserve.exporters.evaluation.metrics import Relevant

FOUND = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], np.bool_)
COUNTS = np.array([2, 1, 7])
found_and_counts = st.tuples(st.integers(1, 8), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.int64, shape[0], elements=st.integers(0, 20)))
)


def relevant(*rows: list[int]) -> Relevant:
    return Relevant.join([np.array(each, np.int64) for each in rows])


# ---------------------------------------------------------------------------------------------------------- by hand


def test_hits_are_places_that_hold_relevant_items_of_the_same_user() -> None:
    lists = np.array([[5, 3, -1], [5, 3, 0], [2, -1, -1]])
    found = metrics.hits(lists, relevant([3, 9], [5, 0], [9]))
    assert found.tolist() == [[False, True, False], [True, False, True], [False, False, False]]


def test_an_empty_place_is_no_hit_of_the_user_before() -> None:
    # -1 of user 1 must not be read as the last item of user 0.
    assert not metrics.hits(np.array([[0, 1], [-1, -1]]), relevant([9], [9])).any()
    assert not metrics.hits(np.array([[-1, -1], [-1, 9]]), relevant([9], [8])).any()


def test_accuracy_by_hand() -> None:
    np.testing.assert_allclose(metrics.precision(FOUND), [2 / 4, 0, 3 / 4])
    np.testing.assert_allclose(metrics.recall(FOUND, COUNTS), [1, 0, 3 / 7])
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    third = (1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)) / sum(1 / math.log2(i + 1) for i in range(1, 5))
    np.testing.assert_allclose(metrics.ndcg(FOUND, COUNTS), [first, 0, third])
    np.testing.assert_allclose(
        metrics.average_precision(FOUND, COUNTS), [(1 + 2 / 3) / 2, 0, (1 / 2 + 2 / 3 + 3 / 4) / 4]
    )


def test_beyond_accuracy_by_hand() -> None:
    lists = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    information = metrics.self_information(np.array([1, 3, 0, 7]), 7)
    np.testing.assert_allclose(information, [2, 1, 3, 0])
    np.testing.assert_allclose(metrics.novelty(lists, information), [2, 0, np.nan])
    np.testing.assert_allclose(metrics.diversity(lists, vectors), [1 - 1 / 3, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.distinct(lists, np.array([4, 4, 0, -1], np.int32)), [2, 0, np.nan])
    assert metrics.coverage(lists, 8) == 0.5


def test_reliability_by_hand() -> None:
    probabilities = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    bins = metrics.reliability(probabilities, np.array([1, 0, 0, 0, 1, 1], np.bool_), 4)
    np.testing.assert_allclose(bins.predicted, [0.1, 0.9])
    np.testing.assert_allclose(bins.observed, [0.25, 1.0])
    assert bins.counts.tolist() == [4, 2]
    assert bins.expected_error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_without_both_kinds_there_is_no_auc() -> None:
    assert math.isnan(metrics.auc(np.array([0.1, 0.2]), np.array([True, True])))


# ------------------------------------------------------------------------------------------------- against other code


def random_case(seed: int, users: int = 40, k: int = 10, items: int = 60) -> tuple[NDArray[np.int64], Relevant]:
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(items)[:k] for _ in range(users)])
    for row in range(users):
        lists[row, rng.integers(0, k + 1) :] = -1
    return lists, relevant(*(rng.permutation(items)[: rng.integers(1, 25)].tolist() for _ in range(users)))


@pytest.mark.parametrize("seed", range(3))
def test_hits_and_diversity_equal_brute_force(seed: int) -> None:
    lists, wanted = random_case(seed)
    expected = [[row in set(wanted.of(user).tolist()) for row in mine] for user, mine in enumerate(lists)]
    np.testing.assert_array_equal(metrics.hits(lists, wanted), expected)
    vectors = np.random.default_rng(seed).normal(size=(60, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for mine, found in zip(lists, metrics.diversity(lists, vectors), strict=True):
        pairs = [float(vectors[a] @ vectors[b]) for a, b in itertools.combinations(mine[mine >= 0], 2)]
        assert found == pytest.approx(1 - np.mean(pairs) if pairs else np.nan, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_ndcg_equals_scikit_learn(seed: int) -> None:
    """scikit-learn ranks all items by score: the list's by place, the others behind."""
    lists, wanted = random_case(seed)
    ours = metrics.ndcg(metrics.hits(lists, wanted), wanted.counts)
    for user, mine in enumerate(lists):
        truth, scores = np.zeros(80), np.zeros(80)
        truth[wanted.of(user)] = 1
        # Places that stay empty are filled with items that nobody wants.
        filled = np.where(mine >= 0, mine, np.arange(60, 70))
        scores[filled] = np.arange(20, 10, -1)
        assert ours[user] == pytest.approx(ndcg_score([truth], [scores], k=10))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_its_definition(seed: int) -> None:
    lists, wanted = random_case(seed)
    found = metrics.hits(lists, wanted)
    ours = metrics.average_precision(found, wanted.counts)
    for user, mine in enumerate(found):
        total = sum(mine[: place + 1].mean() for place in np.flatnonzero(mine))
        assert ours[user] == pytest.approx(total / min(wanted.counts[user], 10))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_log_loss_equal_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(5)
    scores = rng.beta(1, 30, 3000)
    scores = np.round(scores, 2) if ties else scores
    labels = rng.random(3000) < scores
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    inside = np.clip(scores, 0.001, 0.999)
    assert metrics.log_loss(inside, labels) == pytest.approx(sklearn_log_loss(labels, inside))


# ----------------------------------------------------------------------------------------------------------- properties


@given(found_and_counts)
@settings(max_examples=80, deadline=None)
def test_accuracy_lies_between_0_and_1_and_a_perfect_list_has_1(
    case: tuple[NDArray[np.bool_], NDArray[np.int64]],
) -> None:
    found, more = case
    counts = np.maximum(found.sum(axis=1) + more, 1)
    for values in (
        metrics.precision(found),
        metrics.recall(found, counts),
        metrics.ndcg(found, counts),
        metrics.average_precision(found, counts),
    ):
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    best = np.arange(found.shape[1]) < np.minimum(counts, found.shape[1])[:, None]
    np.testing.assert_allclose(metrics.ndcg(best, counts), 1)
    np.testing.assert_allclose(metrics.average_precision(best, counts), 1)


@given(found_and_counts)
@settings(max_examples=60, deadline=None)
def test_a_hit_further_up_is_never_worse(case: tuple[NDArray[np.bool_], NDArray[np.int64]]) -> None:
    found, more = case
    counts = np.maximum(found.sum(axis=1) + more, 1)
    ordered = -np.sort(-found.astype(np.int8), axis=1) == 1
    assert (metrics.ndcg(ordered, counts) >= metrics.ndcg(found, counts) - 1e-12).all()
    assert (metrics.average_precision(ordered, counts) >= metrics.average_precision(found, counts) - 1e-12).all()
    np.testing.assert_array_equal(metrics.precision(ordered), metrics.precision(found))


@given(hnp.arrays(np.float64, st.integers(2, 60), elements=st.floats(0.001, 0.999)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_auc_does_not_change_with_order_or_scale(scores: NDArray[np.float64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random(scores.size) < 0.5
    labels[:2] = (True, False)
    order = rng.permutation(scores.size)
    found = metrics.auc(scores, labels)
    assert 0 <= found <= 1
    assert metrics.auc(scores[order], labels[order]) == pytest.approx(found)
    assert metrics.auc(-scores, labels) == pytest.approx(1 - found)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(0, 1)), st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_reliability_loses_no_candidate(probabilities: NDArray[np.float64], bins: int, seed: int) -> None:
    labels = np.random.default_rng(seed).random(probabilities.size) < 0.3
    found = metrics.reliability(probabilities, labels, bins)
    assert found.counts.sum() == probabilities.size
    assert found.counts.min() > 0
    assert found.predicted @ found.counts == pytest.approx(probabilities.sum())
    assert found.observed @ found.counts == pytest.approx(labels.sum())
    assert 0 <= found.expected_error <= 1
