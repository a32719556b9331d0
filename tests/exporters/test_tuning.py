"""Tuning asks as few queries as tell, and builds as little as can win."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters import indexes, tuning
from recserve.exporters.codes import CodePlan, build_codes, cluster
from recserve.exporters.spec import IndexSpec
from recserve.exporters.tuning import Built, Judge, lower_bound, settle
from recserve.kernels.vectors import search
from recserve.server.pipeline.index import Counts, Effort, Found, Mask

ITEMS, DIM, K = 12_000, 16, 20
RANDOM = np.random.default_rng(5)
VECTORS = RANDOM.normal(size=(ITEMS, DIM)).astype(np.float32)
QUERIES_ = RANDOM.normal(size=(1000, DIM)).astype(np.float32)


class Forgetful:
    """Finds each of the nearest items by chance; `asked` counts queries."""

    def __init__(self, share: float, spread: float) -> None:
        self._share, self._spread = share, spread
        self.asked = 0

    def rescored(self, k: int, reach: int) -> int:  # noqa: ARG002
        return k

    def find(self, queries: np.ndarray, k: Counts, reach: Counts, masks: list[Mask | None]) -> list[Found]:  # noqa: ARG002
        self.asked += len(queries)
        return [
            self._forget(rows, scores, query) for query, (rows, scores) in zip(queries, self._all(queries), strict=True)
        ]

    def _all(self, queries: np.ndarray) -> list[Found]:
        return search(VECTORS, queries, K, None)

    def _forget(self, rows: np.ndarray, scores: np.ndarray, query: np.ndarray) -> Found:
        random = np.random.default_rng(abs(int(query[0] * 1e6)))  # the same whoever else is asked about
        kept = random.random(len(rows)) < np.clip(self._share + self._spread * random.normal(), 0, 1)
        return rows[kept], scores[kept]


@pytest.fixture(name="judge", scope="module")
def fixture_judge() -> Judge:
    return Judge(VECTORS, QUERIES_, K)


@pytest.mark.parametrize(
    ("share", "queries"),
    [(0.5, 125), (1.0, 125), (0.93, 1000), (0.985, 125)],
    ids=["far below", "all", "close", "above"],
)
def test_as_many_queries_are_asked_as_tell(judge: Judge, share: float, queries: int) -> None:
    some, every = Forgetful(share, 0.02), Forgetful(share, 0.02)
    _, low, _ = judge.recall(some, 0.93)
    _, expected, _ = judge.recall(every)
    assert (low >= 0.93) == (expected >= 0.93)
    assert every.asked == 1000
    assert some.asked <= queries


def test_some_queries_tell_only_what_all_will_say() -> None:
    random = np.random.default_rng(1)
    told = 0
    for mean in np.linspace(0.9, 1.0, 40):
        recalls = np.clip(mean + 0.05 * random.normal(size=1000), 0, 1).tolist()
        for count in (125, 250, 500):
            if tuning._tells(recalls[:count], 0.95, 1000):
                told += 1
                assert (lower_bound(recalls[:count]) >= 0.95) == (lower_bound(recalls) >= 0.95)
    assert 60 < told < 120


def test_queries_are_spread_over_threads_in_their_order() -> None:
    found = tuning._in_threads(1000, lambda part: list(range(part.start, part.stop)))
    assert [number for part in found for number in part] == list(range(1000))


def test_what_is_chosen_was_measured_on_all_queries(judge: Judge) -> None:
    engines: list[Forgetful] = []

    def engine(effort: Effort) -> Forgetful:
        engines.append(Forgetful(min(1.0, 0.9 + 0.02 * effort.nprobe), 0.02))
        return engines[-1]

    built = Built(
        kind=manifest_pb2.IVF_SQ8,
        factory="forgetful",
        bytes=0,
        rescored=(1.25,),
        effort=("nprobe", 16),
        engine=engine,  # type: ignore[arg-type]
        write=lambda *_: None,
    )
    (trial,) = settle(built, judge, 0.93)
    recall, low, _ = judge.recall(Forgetful(min(1.0, 0.9 + 0.02 * trial.parameters["nprobe"]), 0.02))
    assert (trial.recall, trial.recall_low) == (recall, low)
    assert trial.recall_low >= 0.93


def test_kinds_of_codes_share_their_lists() -> None:
    rows = np.arange(ITEMS)
    for plan in (CodePlan(32, 8, 1), CodePlan(32, 8, 2)):
        alone = build_codes(VECTORS, rows, plan)
        shared = build_codes(VECTORS, rows, plan, clustering=cluster(VECTORS, rows, CodePlan(32, 8, 1)))
        assert {part: each.tobytes() for part, each in alone.items()} == {
            part: each.tobytes() for part, each in shared.items()
        }


@pytest.mark.parametrize(
    ("kind", "items", "dim", "tuned"),
    [
        ("auto", 16_000, 128, False),
        ("auto", 17_000, 128, True),
        ("auto", 9_000, 512, False),
        ("ivf_sq8", 16_000, 8, True),
    ],
)
def test_small_catalogues_are_not_tuned(kind: str, items: int, dim: int, tuned: bool) -> None:
    assert indexes.needs_queries(IndexSpec(kind=kind), items, dim) is tuned  # type: ignore[arg-type]


def test_the_size_of_an_index_is_found_without_a_copy_of_it(tmp_path: Path) -> None:
    many = np.tile(VECTORS, (40, 1))
    index = faiss.index_factory(DIM, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add(many)
    tracemalloc.start()
    try:
        built = indexes._built_faiss(many, index, "IVF16,SQ8", manifest_pb2.IVF_SQ8)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    faiss.write_index(index, str(tmp_path / "index"))
    assert built.bytes == (tmp_path / "index").stat().st_size > len(many) * DIM
    assert most < built.bytes / 4


def test_who_survives_a_race() -> None:
    judge = Judge(VECTORS[:2000], QUERIES_[:64], 50)

    def entrant(name: str, milliseconds: float, recall: float, growth: float, rescored: float) -> indexes._Entrant:
        build: Callable[..., Built] = lambda *_: built  # noqa: E731
        built = Built(
            kind=manifest_pb2.IVF_PQ4,
            factory=name,
            bytes=0,
            rescored=(rescored,),
            effort=None,
            engine=lambda _: Forgetful(1.0, 0.0),  # type: ignore[arg-type, return-value]
            write=lambda *_: None,
        )
        trial = manifest_pb2.IndexTrial(factory=name, p50_ms=milliseconds, recall_low=recall)
        return indexes._Entrant(
            family=indexes.Family(name=name, growth=growth, build=build), built=built, trials=[trial]
        )

    entrants = [
        entrant("scan", 0.1, 1.0, 1.0, 1.1),  # fastest now, but not with a hundred times the items
        entrant("lists", 0.2, 0.96, 0.5, 1.1),
        entrant("near", 0.3, 0.96, 0.5, 1.1),
        entrant("inexact", 0.1, 0.8, 0.5, 1.1),
        entrant("cramped", 0.1, 0.8, 0.5, 8.0),  # 2,000 items are too few to score 416 exactly
    ]
    left = indexes._survivors(entrants, 0.95, 100.0, 2.0, judge)
    assert [family.name for family in left] == ["lists", "near", "cramped"]
