from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels import bitmaps
from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.index import Found, Mask, Vectors
from recserve.server.pipeline.search import ExactSearcher
from recserve.server.pipeline.similar import Similar
from recserve.server.pipeline.types import Query, QueryKind

ITEMS = 60


def unit_vectors(seed: int, dim: int) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).standard_normal((ITEMS, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(name="spaces", scope="module")
def fixture_spaces() -> dict[str, Space]:
    return {
        name: Space(manifest_pb2.Space(name=name, dim=dim, normalized=True), unit_vectors(seed, dim))
        for seed, (name, dim) in enumerate({"ann": 8, "content": 12}.items())
    }


@pytest.fixture(name="similar", scope="module")
def fixture_similar(spaces: dict[str, Space]) -> Similar:
    return Similar(spaces, {name: ExactSearcher(space.vectors) for name, space in spaces.items()})


def query(seeds: list[int], alpha: float, count: int, content: str = "content") -> Query:
    return Query(
        kind=QueryKind.SIMILAR,
        time_us=0,
        context=ColumnValues.missing(ColumnLayout(()), 1),
        given_rows=np.array(seeds, np.int64),
        count=count,
        candidates=count,
        alpha=alpha,
        behaviour_space="ann",
        content_space=content,
    )


@given(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=4, unique=True),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, ITEMS + 5),
    st.one_of(st.none(), st.integers(0, 2**32)),
)
@settings(deadline=None, max_examples=60)
def test_the_blend_is_exact_where_every_neighbour_is_found(
    similar: Similar, spaces: dict[str, Space], seeds: list[int], alpha: float, count: int, filtered: int | None
) -> None:
    allowed = np.ones(ITEMS, bool) if filtered is None else np.random.default_rng(filtered).random(ITEMS) < 0.5
    mask = None if filtered is None else bitmaps.pack(allowed)
    found, scores = similar.find(query(seeds, alpha, count), mask)
    blend = sum(
        weight * (spaces[name].vectors.astype(np.float64) @ spaces[name].vectors[seeds].T.astype(np.float64))
        for name, weight in (("ann", alpha), ("content", 1 - alpha))
    ).max(axis=1)
    allowed[seeds] = False
    assert found.rows.size == min(count, int(allowed.sum()))
    assert allowed[found.rows].all()
    assert np.allclose(scores, blend[found.rows], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    if alpha in (0.0, 1.0):  # one space: its nearest are the answer
        assert np.allclose(scores, np.sort(blend[allowed])[::-1][: scores.size], atol=1e-6)


def test_only_spaces_that_found_an_item_are_its_sources(similar: Similar, spaces: dict[str, Space]) -> None:
    found, _ = similar.find(query([7], 0.5, 5), None)
    for name, column in zip(found.sources, range(2), strict=True):
        vectors = spaces[name].vectors
        cosines = vectors @ vectors[7]
        cosines[7] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[:5].tolist()
        for row, rank in zip(found.rows.tolist(), found.ranks[:, column].tolist(), strict=True):
            assert rank == (nearest.index(row) + 1 if row in nearest else 0)


def test_all_spaces_are_searched_with_one_mask(spaces: dict[str, Space]) -> None:
    searched: list[Mask | None] = []

    class Watched(ExactSearcher):
        def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
            searched.extend(masks)
            return super().search(queries, k, masks)

    similar = Similar(spaces, {name: Watched(space.vectors) for name, space in spaces.items()})
    similar.find(query([3, 7], 0.5, 10), bitmaps.full(ITEMS))
    assert len(searched) == 4
    assert all(mask is searched[0] for mask in searched)


def test_one_space_in_both_parts_counts_once(similar: Similar) -> None:
    twice, scores = similar.find(query([3], 0.5, 10, content="ann"), None)
    once, alone = similar.find(query([3], 1.0, 10), None)
    assert twice.rows.tolist() == once.rows.tolist()
    assert scores.tolist() == alone.tolist()
