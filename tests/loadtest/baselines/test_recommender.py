"""The straightforward service gives our lists, where both look at the same candidates."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from recserve.kernels.reference import rerank as reference
from recserve.loadtest.baselines.data import Data, load_data
from recserve.loadtest.baselines.features import Asked, Features
from recserve.loadtest.baselines.index import exact_index, load, save, tuned_index
from recserve.loadtest.baselines.recommender import Recommender
from recserve.loadtest.baselines.rerank import choose
from recserve.loadtest.clusters import clustered_vectors
from recserve.loadtest.reference.build import Workload
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import Settings, load_settings
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import Query, Result, UserState
from recserve.server.rpc.convert import Converter
from recserve.server.state.embedded import Users, open_users
from recserve.server.state.shown import ShownLists
from recserve.v1 import recommender_pb2 as pb

STRANGER = "nobody"


class Own:
    """Our pipeline, asked as the server asks it."""

    def __init__(self, settings: Settings) -> None:
        bundle = open_bundle(settings.bundles[0].path)
        self.pipeline: Pipeline = open_pipeline(bundle)
        registry: BundleRegistry[Pipeline] = BundleRegistry()
        registry.add("tiny", self.pipeline)
        self._converter = Converter(registry, settings)
        self._users: Users = open_users(settings.state.snapshot, {"tiny": bundle})

    def work(self, user: str, device: str, country: str) -> tuple[Query, UserState]:
        request = pb.RecommendRequest(user_id=user, context=pb.Context(device=device, country=country))
        query = self._converter.recommend(request, "", time.monotonic() + 60).query
        return query, self._users.states([user], ShownLists(per_user=1, users=1, seconds=1))[0]

    def list(self, user: str, device: str, country: str) -> list[tuple[str, float]]:
        (found,) = self.pipeline.run([self.work(user, device, country)])
        assert isinstance(found, Result)
        return list(zip(self.pipeline.bundle.catalogue.ids_of_rows(found.rows), found.scores.tolist(), strict=True))


@pytest.fixture(name="settings", scope="module")
def fixture_settings(tiny_workload: Workload) -> Settings:
    return load_settings(file=tiny_workload.config)


@pytest.fixture(name="data", scope="module")
def fixture_data(settings: Settings) -> Data:
    return load_data(settings)


@pytest.fixture(name="own", scope="module")
def fixture_own(settings: Settings) -> Own:
    return Own(settings)


def asked(data: Data) -> Sequence[tuple[str, str, str]]:
    """Users, one of them unknown, each with a device and a country that are known, or unknown, or not given."""
    users = [*list(data.users.rows)[:150], STRANGER]
    devices, countries = ("phone", "", "abacus", "desktop"), ("AT", "DE", "", "ZZ", "FR")
    return [(user, devices[place % 4], countries[place % 5]) for place, user in enumerate(users)]


def test_lists_are_ours_when_both_search_exactly(data: Data, own: Own) -> None:
    """Items, their order, and scores to the last bit.

    Of a list in a hundred scores may differ: FAISS adds the terms of an inner product in another order than our search,
    and where the last bit of `ann_score` decides on which side of a threshold it lies, another leaf is reached.
    """
    theirs = Recommender(data, exact_index(data.items.vectors))
    requests = asked(data)
    lists = [(own.list(*each), theirs.recommend(each[0], 20, device=each[1], country=each[2])) for each in requests]
    assert all(len(mine) == 20 for mine, _ in lists)
    assert sum(mine == other for mine, other in lists) >= 0.99 * len(lists)
    assert lists[-1][0] == lists[-1][1]  # the unknown user's


def test_features_have_the_bits_of_the_definitions(data: Data, own: Own) -> None:
    features = Features(data)
    for user, device, country in (*asked(data)[:10], *asked(data)[-1:]):
        ((subject, candidates),) = own.pipeline.retrieve([own.work(user, device, country)])
        expected = own.pipeline.ranking_inputs([subject], [candidates]).matrix()
        row = data.users.rows.get(user, -1)
        found = features.matrix(
            Asked(row, data.devices.get(device, -1), data.countries.get(country, -1), subject.time_us),
            candidates.rows,
            data.items.vectors[candidates.rows],
            subject.vectors.get("ann", np.full(data.items.vectors.shape[1], np.nan, np.float32)),
            candidates.scores[:, candidates.sources.index("ann")],
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("cap", "categories"), [(3, 200), (1, 7), (2, 3), (20, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.8, 1.0])
def test_lists_are_chosen_as_the_reference_chooses_them(cap: int, categories: int, weight: float) -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = -np.sort(-np.round(random.random(60), 1))  # with ties, the first row first
    codes = random.integers(-1, categories, 60).astype(np.int32)
    expected, _ = reference.select(
        scores,
        np.arange(60),
        20,
        codes[:, np.newaxis],
        np.array([cap], np.int32),
        np.zeros(1, np.int32),
        np.zeros(1, np.uint8),
        vectors,
        weight,
    )
    assert choose(scores, codes, vectors, 20, cap, weight) == expected.tolist()


def test_the_index_reaches_its_recall_and_is_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    vectors, queries = clustered_vectors(20_000, 40, np.random.default_rng(1))
    _, nearest = exact_index(vectors).search(queries, 50)
    index, choice = tuned_index(vectors, queries, nearest, 0.9)
    assert 0.9 <= choice.recall <= 1
    path = tmp_path_factory.mktemp("index") / "of" / "vectors.index"
    save(path, index, choice)
    again, kept = load(path)
    assert kept == choice
    found = again.search(queries, 50)[1]
    recall = np.mean([np.isin(mine, exact).mean() for mine, exact in zip(found, nearest, strict=True)])
    assert recall == pytest.approx(choice.recall, abs=1e-3)


def test_a_recall_that_no_inverted_lists_reach_takes_exact_search() -> None:
    vectors, queries = clustered_vectors(2000, 20, np.random.default_rng(1))
    nearest = np.zeros((20, 10), np.int64)  # the same item ten times: nothing finds that
    index, choice = tuned_index(vectors, queries, nearest, 0.95)
    assert (choice.factory, choice.recall) == ("Flat", 1.0)
    assert index.search(vectors[:5], 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
