"""The reference workload of forests: seeded data, lambdarank models trained on it, and requests to score.

A group is what one user was shown. Labels come from linear, sine and product terms over user and context, item and
cross features. A term of the user alone cannot order a group's items: user and context features count by their products
with item features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

USER_FEATURES: Final = range(40)
"""Of user and context."""
ITEM_FEATURES: Final = range(40, 90)
CROSS_FEATURES: Final = range(90, 100)
FEATURES: Final = 100
GROUP: Final = 100
"""Rows of a training group."""
ITEMS: Final = 100_000
MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Candidates of one user: as complete rows, and as the request path takes them."""

    rows: NDArray[np.float32]
    """float32 [n, 100]"""
    rows64: NDArray[np.float64]
    """The same, for engines that take doubles."""
    item_rows: NDArray[np.int64]
    """The candidates' positions in `Marketplace.items`."""
    user: NDArray[np.float32]
    """float32 [1, 40]"""
    crosses: NDArray[np.float32]
    """float32 [n, 10]"""
    user_and_crosses: NDArray[np.float32]
    """float32 [n, 50], the user's values repeated."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What users want: linear, sine and product terms over standardised features.

    Attributes:
        linear: [100], weights.
        waves: [10], columns whose sine counts.
        partners: [40], the item feature that goes with each user or context feature.
    """

    linear: NDArray[np.float64]
    waves: NDArray[np.int64]
    partners: NDArray[np.int64]

    @staticmethod
    def draw(random: np.random.Generator) -> Truth:
        """A random one."""
        return Truth(
            0.1 * random.standard_normal(FEATURES),
            random.choice(FEATURES, 10, replace=False),
            random.choice(ITEM_FEATURES, len(USER_FEATURES)),
        )

    def labels(self, rows: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.int64]:
        """int64 [n], from 0 to 4, most of them 0, of rows [n, 100] of about standard normal features."""
        score = rows @ self.linear + np.sin(2 * rows[:, self.waves]).sum(axis=1)
        score += 3 * (rows[:, USER_FEATURES] * rows[:, self.partners]).sum(axis=1)
        score += 0.2 * score.std() * random.standard_normal(len(rows))
        labels: NDArray[np.int64] = np.digitize(score, np.quantile(score, (0.5, 0.75, 0.9, 0.97)))
        return labels


class Marketplace:
    """Items and users with standard normal features; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        random = np.random.default_rng([seed, 0])
        self.items = random.standard_normal((ITEMS, len(ITEM_FEATURES)), np.float32)
        self._truth = Truth.draw(random)

    def requests(self, rows: int, count: int) -> list[Request]:
        """Seeded requests of `rows` candidates each."""
        random = np.random.default_rng([self._seed, 1, rows])
        return [self._request(rows, random) for _ in range(count)]

    def training(self, groups: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rows in groups of 100, float32 [100 * groups, 100], and their labels from 0 to 4, most of them 0."""
        random = np.random.default_rng([self._seed, 2])
        rows = np.concatenate([self._request(GROUP, random).rows for _ in range(groups)])
        return rows, self._truth.labels(rows, random)

    def _request(self, n: int, random: np.random.Generator) -> Request:
        user = random.standard_normal((1, len(USER_FEATURES)), np.float32)
        chosen = random.integers(0, ITEMS, n)
        pairs = user[:, : len(CROSS_FEATURES)] * self.items[chosen, : len(CROSS_FEATURES)]
        crosses = pairs + random.standard_normal(pairs.shape, np.float32)
        users = np.repeat(user, n, axis=0)
        rows = np.hstack((users, self.items[chosen], crosses))
        return Request(rows, rows.astype(np.float64), chosen, user, crosses, np.hstack((users, crosses)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to train: forests of one number of leaves.

    Attributes:
        leaves: the most that a tree may have; its depth is at most 8.
        groups: of 100 rows, to train on.
        seed: of data and training.
    """

    leaves: int
    groups: int = 600
    seed: int = 1


def train(recipe: Recipe, trees: Sequence[int], folder: Path) -> Mapping[int, Path]:
    """Model files by number of trees; those that the folder does not hold yet are trained.

    A forest is the beginning of any larger one, so one training gives all.
    """
    paths = {count: folder / _file_name(recipe, count) for count in trees}
    if not all(path.exists() for path in paths.values()):
        booster = _train(recipe, max(trees))
        folder.mkdir(parents=True, exist_ok=True)
        for count, path in paths.items():
            partial = path.with_suffix(".partial")  # an interrupted run leaves no half of a model
            booster.save_model(partial, num_iteration=count)
            partial.rename(path)
    return paths


def request_split_share(booster: lightgbm.Booster) -> float:
    """The share of splits on user and context features."""
    splits = booster.feature_importance("split")
    return float(splits[USER_FEATURES].sum() / max(splits.sum(), 1))


def _file_name(recipe: Recipe, trees: int) -> str:
    data = f"{recipe.groups}x{GROUP}-seed{recipe.seed}"
    return f"lambdarank-{trees}x{recipe.leaves}-{data}-lightgbm{lightgbm.__version__}.txt"


def lambdarank(
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    trees: int,
    leaves: int,
    seed: int,
    names: Sequence[str] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> lightgbm.Booster:
    """Train a forest of the reference workload; the same for the same seed.

    Args:
        rows: float32 [100 * groups, features], in groups of 100.
        labels: of the rows, from 0 to 4.
        trees: how many.
        leaves: the most that a tree may have; its depth is at most 8.
        seed: of the features that each tree may use.
        names: of the features.
        advance: called after each tree.
    """
    parameters = {
        "objective": "lambdarank",
        "num_leaves": leaves,
        "max_depth": MAX_DEPTH,
        "learning_rate": 0.05,
        "feature_fraction": 0.8,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # the sums, and so the forest, would depend on it
        "verbose": -1,
    }
    data = lightgbm.Dataset(
        rows, labels, group=[GROUP] * (len(rows) // GROUP), feature_name="auto" if names is None else list(names)
    )
    return lightgbm.train(parameters, data, trees, callbacks=[lambda _: advance()])


def _train(recipe: Recipe, trees: int) -> lightgbm.Booster:
    rows, labels = Marketplace(recipe.seed).training(recipe.groups)
    return lambdarank(rows, labels, trees=trees, leaves=recipe.leaves, seed=recipe.seed)
