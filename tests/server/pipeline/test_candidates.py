from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.server.pipeline.assemble import Candidates
from recserve.server.pipeline.candidates import extend, fuse, shares, union
from recserve.server.pipeline.sources import Proposal


def proposal(*rows: int) -> Proposal:
    """Items with descending scores 10, 9, 8, …"""
    return Proposal(np.array(rows, np.int64), np.arange(10, 10 - len(rows), -1, dtype=np.float32))


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1.0], 7, [7]),
        ([1.0, 1.0], 7, [4, 3]),  # equal remainders: the earlier source gets the odd place
        ([0.6, 0.3, 0.1], 10, [6, 3, 1]),
        ([2.0, 1.0], 10, [7, 3]),
        ([5.0, 0.0, 5.0], 4, [2, 0, 2]),
        ([1e-9, 1.0], 3, [0, 3]),
    ],
)
def test_shares(weights: list[float], total: int, expected: list[int]) -> None:
    assert shares(weights, total) == expected


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=9).filter(lambda w: sum(w) > 0),
    st.integers(0, 2000),
)
@settings(deadline=None)
def test_shares_add_up_and_are_within_one_of_exact(weights: list[float], total: int) -> None:
    places = shares(weights, total)
    assert sum(places) == total
    exact = [weight / sum(weights) * total for weight in weights]
    assert all(abs(place - each) <= 1 + 1e-6 for place, each in zip(places, exact, strict=True))


def test_every_source_gets_its_share_with_its_best() -> None:
    found = union(["ann", "popular"], [proposal(1, 2, 3, 4), proposal(7, 8, 9)], [0.5, 0.5], 4)
    assert found.rows.tolist() == [1, 2, 7, 8]
    assert found.sources == ("ann", "popular")


def test_a_duplicate_takes_one_place_and_keeps_all_its_origins() -> None:
    found = union(["ann", "popular"], [proposal(1, 2, 3, 4), proposal(2, 9)], [0.5, 0.5], 4)
    assert found.rows.tolist() == [1, 2, 9, 3]  # the place that 2 saved goes to the next best, rank by rank
    assert found.ranks.tolist() == [[1, 0], [2, 1], [0, 2], [3, 0]]
    assert found.scores[1].tolist() == [9.0, 10.0]
    assert np.isnan(found.scores[0, 1])


def test_origins_beyond_a_sources_share_are_remembered() -> None:
    found = union(["ann", "popular"], [proposal(1, 2, 3, 7), proposal(7, 8)], [0.5, 0.5], 2)
    assert found.rows.tolist() == [1, 7]
    assert found.ranks.tolist() == [[1, 0], [4, 1]]


def test_a_source_that_runs_short_leaves_its_places_to_the_others() -> None:
    found = union(["again", "ann"], [proposal(5), proposal(1, 2, 3, 4, 6)], [0.8, 0.2], 5)
    assert found.rows.tolist() == [5, 1, 2, 3, 4]


def test_sources_that_know_nothing_give_no_candidates() -> None:
    found = union(["ann", "again"], [Proposal.nothing(), Proposal.nothing()], [1.0, 1.0], 10)
    assert found.rows.size == 0
    assert found.scores.shape == (0, 2)


def test_what_several_sources_rank_well_comes_before_what_one_ranks_first() -> None:
    found = fuse(["ann", "als"], [proposal(1, 5, 2), proposal(3, 5, 4)], [1.0, 1.0], 3, 10.0)
    assert found.rows.tolist() == [5, 1, 3]  # 2 / 12, then 1 / 11 of each; among equals the smaller row
    assert found.ranks.tolist() == [[2, 2], [1, 0], [0, 1]]
    assert found.scores[0].tolist() == [9.0, 9.0]


def test_a_sources_weight_and_the_constant_decide_what_agreement_is_worth() -> None:
    lists = [proposal(1, 2, 5), proposal(3, 4, 5)]
    assert fuse(["a", "b"], lists, [1.0, 1.0], 1, 10.0).rows.tolist() == [5]
    assert fuse(["a", "b"], lists, [1.0, 1.0], 1, 0.5).rows.tolist() == [1]
    assert fuse(["a", "b"], lists, [1.0, 9.0], 2, 30.0).rows.tolist() == [5, 3]
    assert fuse(["a", "b"], lists, [1.0, 9.0], 2, 0.5).rows.tolist() == [3, 4]


def test_fused_sources_that_know_nothing_give_no_candidates() -> None:
    found = fuse(["ann", "again"], [Proposal.nothing(), Proposal.nothing()], [1.0, 1.0], 10, 60.0)
    assert found.rows.size == 0
    assert found.scores.shape == (0, 2)


def test_extend_adds_behind_and_remembers_the_source() -> None:
    first = union(["again"], [proposal(5, 6)], [1.0], 10)
    found = extend(first, "popular", proposal(6, 1, 2, 3), 4)
    assert found.rows.tolist() == [5, 6, 1, 2]
    assert found.sources == ("again", "popular")
    assert found.ranks.tolist() == [[1, 0], [2, 1], [0, 2], [0, 3]]


proposals = st.lists(st.lists(st.integers(0, 40), unique=True, max_size=30), min_size=1, max_size=4)


@given(proposals, st.integers(1, 40), st.data())
@settings(deadline=None)
def test_union_holds_what_it_promises(lists: list[list[int]], total: int, data: st.DataObject) -> None:
    weight = st.floats(0.01, 10)
    weights = data.draw(st.lists(weight, min_size=len(lists), max_size=len(lists)))
    names = [f"s{index}" for index in range(len(lists))]
    found = union(names, [proposal(*rows) for rows in lists], weights, total)
    everything = set().union(*lists)
    assert len(set(found.rows.tolist())) == found.rows.size == min(total, len(everything))
    for column, (rows, share) in enumerate(zip(lists, shares(weights, total), strict=True)):
        assert set(rows[:share]) <= set(found.rows.tolist())
        for row, rank, score in zip(found.rows, found.ranks[:, column], found.scores[:, column], strict=True):
            assert rank == (rows.index(row) + 1 if row in rows else 0)
            assert np.isnan(score) if rank == 0 else score == 11 - rank


@given(proposals, st.integers(1, 40), st.sampled_from([0.5, 8.0, 64.0]), st.data())
@settings(deadline=None)
def test_fusion_takes_those_of_the_largest_merit(
    lists: list[list[int]], total: int, constant: float, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=len(lists), max_size=len(lists)))
    names = [f"s{index}" for index in range(len(lists))]
    found = fuse(names, [proposal(*rows) for rows in lists], weights, total, constant)
    merits = dict.fromkeys(set().union(*lists), 0.0)
    for rows, weight in zip(lists, weights, strict=True):
        for rank, row in enumerate(rows, start=1):
            merits[row] += weight / (constant + rank)
    assert found.rows.tolist() == sorted(merits, key=lambda row: (-merits[row], row))[:total]
    for column, rows in enumerate(lists):
        for row, rank, score in zip(found.rows, found.ranks[:, column], found.scores[:, column], strict=True):
            assert rank == (rows.index(row) + 1 if row in rows else 0)
            assert np.isnan(score) if rank == 0 else score == 11 - rank


def test_given_candidates_have_no_origins() -> None:
    given_rows = Candidates.given(np.array([3, 1], np.int64))
    assert given_rows.ranks.shape == (2, 0)


def test_what_several_searches_found_is_merged() -> None:
    """By score descending and row ascending, each row with the best of its scores."""
    found = [
        (np.array([4, 1, 7]), np.array([0.5, 0.4, 0.1], np.float32)),
        (np.array([7, 1, 9]), np.array([0.9, 0.5, 0.4], np.float32)),
    ]
    merged = Proposal.merged(found)
    assert merged.rows.tolist() == [7, 1, 4, 9]
    assert merged.scores.tolist() == np.array([0.9, 0.5, 0.5, 0.4], np.float32).tolist()
    assert Proposal.merged(found[:1]).rows.tolist() == [4, 1, 7]
