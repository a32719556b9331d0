"""What the rankers learn from, and whether they have learnt."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from recserve.exporters.demo.build import LABEL_DAYS
from recserve.exporters.demo.examples import ExampleMaker, Examples, Retrieval
from recserve.exporters.demo.factors import train_factors
from recserve.exporters.demo.features import demo_schema
from recserve.exporters.demo.known import read_known
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.rankers import HeldOut, evaluate, mean_ndcg, ranker_specs, train_rankers
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.state import state_at
from recserve.exporters.demo.towers import (
    content_vectors,
    item_inputs,
    train_item_tower,
    train_user_tower,
    unit_targets,
    user_inputs,
)
from recserve.exporters.demo.world import DAY_US
from recserve.kernels.features import FeatureSchema


@pytest.fixture(scope="module")
def schema() -> FeatureSchema:
    return demo_schema()


@pytest.fixture(scope="module")
def maker(market: Marketplace, tiny: DemoSizes, schema: FeatureSchema) -> ExampleMaker:
    state = state_at(market, market.world.end_us - LABEL_DAYS * DAY_US)
    known = read_known(market, state, schema)
    users, items = train_factors(market.events.before(state.time_us), tiny, seed=7)
    content = content_vectors(market.world.items, np.random.default_rng(2))
    targets = unit_targets(users, items)
    of_users, of_items = user_inputs(state.users, known.recent, state.time_us), item_inputs(state.items)
    user_tower = train_user_tower(of_users, targets[0], content, sizes=tiny, seed=7, advance=lambda: None)
    item_tower = train_item_tower(of_items, targets[1], sizes=tiny, seed=7, advance=lambda: None)
    vectors = {"ann": item_tower.vectors(of_items), "als": items, "content": content}
    has_factors = np.array([rows.size > 0 for rows in known.recent])
    return ExampleMaker(market, state, known, schema, Retrieval(vectors, users, has_factors, user_tower))


@pytest.fixture(scope="module")
def sessions(market: Marketplace) -> np.ndarray:
    first = np.searchsorted(market.sessions.time_us, market.world.end_us - LABEL_DAYS * DAY_US)
    return np.arange(first, market.sessions.user.size)


@pytest.fixture(scope="module")
def examples(maker: ExampleMaker, sessions: np.ndarray) -> Examples:
    return maker.make(sessions, np.random.default_rng(1), lambda _: None)


def test_what_was_shown_has_its_recorded_labels(market: Marketplace, examples: Examples, sessions: np.ndarray) -> None:
    impressions = market.impressions
    recorded = np.isin(impressions.session, sessions)
    np.testing.assert_array_equal(examples.session[examples.shown], impressions.session[recorded])
    np.testing.assert_array_equal(examples.labels["click"][examples.shown], impressions.clicked[recorded])
    np.testing.assert_array_equal(examples.labels["purchase"][examples.shown], impressions.purchased[recorded])


def test_candidates_are_sampled_beside_it(examples: Examples) -> None:
    sampled = ~examples.shown
    assert (np.unique(examples.session[sampled], return_counts=True)[1] == 15).all()
    assert examples.proposed[sampled].all()
    assert 0.02 < examples.labels["click"][sampled].mean() < 0.6


def test_features_count_nothing_after_the_cut(examples: Examples, schema: FeatureSchema) -> None:
    for name in schema.names:
        if name.endswith("_days_since") or name in ("user_last_seen", "user_last_order", "item_last_sold"):
            days = examples.features[:, schema.names.index(name)]
            assert np.nanmin(days) >= 0, name


def test_strangers_have_missing_columns(market: Marketplace, examples: Examples, schema: FeatureSchema) -> None:
    cut_us = market.world.end_us - LABEL_DAYS * DAY_US
    user = market.sessions.user[examples.session]
    stranger = market.world.users.signup_us[user] >= cut_us
    assert 0 < stranger.sum() < stranger.size
    for name in ("user_mean_price", "item_view_count", "als_dot", "ann_score"):
        assert np.isnan(examples.features[stranger, schema.names.index(name)]).all(), name


def test_examples_do_not_depend_on_how_they_are_batched(
    maker: ExampleMaker, sessions: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of what was shown; the sample and its labels are drawn batch by batch."""
    monkeypatch.setattr("recserve.exporters.demo.examples._BATCH", 7)
    monkeypatch.setattr("recserve.exporters.demo.examples._WITHHELD", 0.0)
    small = maker.make(sessions[:40], np.random.default_rng(1), lambda _: None)
    monkeypatch.setattr("recserve.exporters.demo.examples._BATCH", 1_000)
    large = maker.make(sessions[:40], np.random.default_rng(2), lambda _: None)
    np.testing.assert_array_equal(small.features[small.shown], large.features[large.shown])
    np.testing.assert_array_equal(small.session[small.shown], large.session[large.shown])


def test_rankers_order_better_than_popularity(
    examples: Examples, schema: FeatureSchema, market: Marketplace, tiny: DemoSizes
) -> None:
    later = market.sessions.time_us[examples.session] >= market.world.end_us - 5 * DAY_US
    held_out = HeldOut.split(examples[later])
    boosters = train_rankers(schema, examples[~later], trees=tiny.trees, seed=7, advance=lambda: None)
    again = train_rankers(schema, examples[~later], trees=tiny.trees, seed=7, advance=lambda: None)
    assert {name: each.model_to_string() for name, each in boosters.items()} == {
        name: each.model_to_string() for name, each in again.items()
    }
    metrics = evaluate(schema, boosters, held_out.test)
    assert metrics["click_ndcg@10"] > metrics["click_ndcg@10_by_popularity"]
    assert metrics["click_auc"] > 0.6
    specs = {spec.objective: spec for spec in ranker_specs(boosters, held_out.calibration)}
    assert specs["click"].calibration == "model"
    assert specs["purchase"].calibration == "isotonic"
    assert not np.isin(held_out.calibration.session, held_out.test.session).any()


def test_ndcg_equals_scikit_learns(rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(30), rng.integers(2, 25, 30))
    labels = (rng.random(groups.size) < 0.2).astype(np.float64)
    scores = rng.standard_normal(groups.size)
    expected = [
        ndcg_score(labels[groups == group][None], scores[groups == group][None], k=10)
        for group in range(30)
        if labels[groups == group].any()
    ]
    assert mean_ndcg(scores, labels, groups) == pytest.approx(np.mean(expected), abs=1e-12)
