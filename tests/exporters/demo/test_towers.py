"""The towers as ONNX against scikit-learn, and what they are fed with against what serving feeds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from recserve.exporters.demo.factors import train_factors
from recserve.exporters.demo.features import demo_schema
from recserve.exporters.demo.known import Known, read_known
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.state import State, state_at
from recserve.exporters.demo.towers import (
    RECENT_LENGTH,
    Inputs,
    Tower,
    content_vectors,
    item_inputs,
    train_item_tower,
    train_user_tower,
    unit,
    unit_targets,
    user_inputs,
)
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.pipeline.towers import TowerUsers, item_feed, user_feed


@pytest.fixture(scope="module")
def state(market: Marketplace) -> State:
    return state_at(market, market.world.end_us)


@pytest.fixture(scope="module")
def known(market: Marketplace, state: State) -> Known:
    return read_known(market, state, demo_schema())


@pytest.fixture(scope="module")
def factors(market: Marketplace, tiny: DemoSizes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return train_factors(market.events, tiny, seed=7)


@pytest.fixture(scope="module")
def users(state: State, known: Known) -> Inputs:
    return user_inputs(state.users, known.recent, state.time_us)


@pytest.fixture(scope="module")
def towers(
    market: Marketplace,
    state: State,
    users: Inputs,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    tiny: DemoSizes,
) -> dict[str, Tower]:
    user_targets, item_targets = unit_targets(*factors)
    content = content_vectors(market.world.items, np.random.default_rng(2))
    return {
        "user": train_user_tower(users, user_targets, content, sizes=tiny, seed=7, advance=lambda: None),
        "item": train_item_tower(item_inputs(state.items), item_targets, sizes=tiny, seed=7, advance=lambda: None),
    }


def run(tower: Tower, path: Path, inputs: Inputs) -> NDArray[np.float32]:
    """The vectors that onnxruntime computes."""
    spec = tower.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    vectors: NDArray[np.float32] = session.run([spec.output], inputs.feed())[0]
    return vectors


def test_the_user_tower_as_onnx_equals_scikit_learn(towers: dict[str, Tower], users: Inputs, tmp_path: Path) -> None:
    found = run(towers["user"], tmp_path / "user.onnx", users)
    np.testing.assert_allclose(found, towers["user"].vectors(users), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)


def test_the_item_tower_as_onnx_equals_scikit_learn(towers: dict[str, Tower], state: State, tmp_path: Path) -> None:
    inputs = item_inputs(state.items)
    found = run(towers["item"], tmp_path / "item.onnx", inputs)
    np.testing.assert_allclose(found, towers["item"].vectors(inputs), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)


def test_towers_know_what_to_do_with_what_is_missing(towers: dict[str, Tower], users: Inputs, tmp_path: Path) -> None:
    nothing = Inputs(
        np.full_like(users.numbers[:1], np.nan), np.zeros_like(users.codes[:1]), np.zeros((1, RECENT_LENGTH), np.int64)
    )
    found = run(towers["user"], tmp_path / "user.onnx", nothing)
    np.testing.assert_allclose(found, towers["user"].vectors(nothing), rtol=0, atol=1e-5)
    assert np.isfinite(found).all()


def test_the_user_tower_looks_at_recent_items(towers: dict[str, Tower], users: Inputs) -> None:
    others = Inputs(users.numbers, users.codes, np.roll(users.recent, 1, axis=0) if users.recent is not None else None)
    assert np.abs(towers["user"].vectors(users) - towers["user"].vectors(others)).max() > 1e-3


def test_training_is_deterministic(
    towers: dict[str, Tower], state: State, factors: tuple[NDArray[np.float32], NDArray[np.float32]], tiny: DemoSizes
) -> None:
    inputs = item_inputs(state.items)
    epochs: list[int] = []
    again = train_item_tower(
        inputs, unit_targets(*factors)[1], sizes=tiny, seed=7, advance=lambda: epochs.append(len(epochs))
    )
    np.testing.assert_array_equal(again.vectors(inputs), towers["item"].vectors(inputs))
    assert len(epochs) == tiny.tower_epochs


def test_factors_are_deterministic_and_order_what_users_saw(
    market: Marketplace, factors: tuple[NDArray[np.float32], NDArray[np.float32]], tiny: DemoSizes
) -> None:
    again = train_factors(market.events, tiny, seed=7)
    np.testing.assert_array_equal(again[0], factors[0])
    np.testing.assert_array_equal(again[1], factors[1])
    scores = factors[0] @ factors[1].T
    seen = np.zeros(scores.shape, np.bool_)
    seen[market.events.user, market.events.item] = True
    assert scores[seen].mean() > 3 * scores[~seen].mean()


def test_targets_have_length_one_and_keep_the_order_of_inner_products(rng: np.random.Generator) -> None:
    users = rng.standard_normal((20, 6)).astype(np.float32)
    items = (rng.standard_normal((50, 6)) * rng.lognormal(size=(50, 1))).astype(np.float32)
    user_targets, item_targets = unit_targets(users, items)
    for targets in (user_targets, item_targets):
        assert targets.shape[1] == 7
        np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, rtol=0, atol=1e-5)
    expected = unit(users) @ items.T / np.linalg.norm(items, axis=1).max()
    np.testing.assert_allclose(user_targets @ item_targets.T, expected, rtol=0, atol=1e-5)


def test_serving_feeds_the_towers_what_they_were_trained_on(
    demo: object, market: Marketplace, state: State, known: Known
) -> None:
    paths = demo.paths  # type: ignore[attr-defined]
    bundle, snapshot = open_bundle(paths.bundle), open_snapshot(paths.snapshot)
    spec = bundle.spaces["ann"].spec
    recent = TowerUsers(
        user=snapshot.columns,
        recent_offsets=np.cumsum([0, *(rows.size for rows in known.recent)], dtype=np.int64),
        recent_rows=np.concatenate(known.recent),
        time_us=np.full(len(known.recent), state.time_us),
    )
    served = user_feed(spec.user_tower, bundle.schema.user_layout, bundle.catalogue.columns, recent)
    trained = user_inputs(state.users, known.recent, state.time_us).feed()
    assert served.keys() == trained.keys()
    for name, values in trained.items():
        np.testing.assert_array_equal(served[name], values, err_msg=name)
    rows = np.arange(len(market.world.items.ids))
    served = item_feed(spec.item_tower, bundle.catalogue.columns, rows)
    for name, values in item_inputs(state.items).feed().items():
        np.testing.assert_array_equal(served[name], values, err_msg=name)
