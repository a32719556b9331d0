"""The click and the purchase ranker: LightGBM forests over the feature program's matrix, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.examples import OBJECTIVES, Examples
from recserve.exporters.demo.features import CATEGORICAL_FEATURES
from recserve.exporters.evaluation import metrics
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.kernels.features import FeatureSchema

WEIGHTS = {"click": 0.4, "purchase": 0.6}
_FOREST = {
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.08,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_NDCG_AT = 10


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Later examples: some calibrate, others measure."""

    calibration: Examples
    test: Examples

    @staticmethod
    def split(examples: Examples) -> HeldOut:
        """Every other session."""
        sessions = np.unique(examples.session)
        first = np.isin(examples.session, sessions[::2])
        return HeldOut(examples[first], examples[~first])


def train_rankers(
    schema: FeatureSchema, examples: Examples, *, trees: int, seed: int, advance: Callable[[], None]
) -> dict[str, lightgbm.Booster]:
    """One binary forest per objective; `advance` is called after each tree, from several threads."""

    def train(objective: str) -> lightgbm.Booster:
        data = lightgbm.Dataset(
            examples.features,
            examples.labels[objective],
            feature_name=list(schema.names),
            categorical_feature=list(CATEGORICAL_FEATURES),
            params=_FOREST,
        )
        return lightgbm.train({**_FOREST, "seed": seed}, data, num_boost_round=trees, callbacks=[lambda _: advance()])

    # Side by side with one thread each: threads within a forest wait for one another at every leaf.
    with ThreadPoolExecutor(len(OBJECTIVES)) as pool:
        return dict(zip(OBJECTIVES, pool.map(train, OBJECTIVES), strict=True))


def ranker_specs(boosters: Mapping[str, lightgbm.Booster], calibration: Examples) -> list[RankerSpec]:
    """Clicks keep their model's own sigmoid; purchases, which are rare, are calibrated on held-out sessions.

    Both for either engine, so that each can be tried against the other.
    """
    data = CalibrationData(features=calibration.features, labels=calibration.labels["purchase"])
    return [
        RankerSpec(objective="click", model=boosters["click"], weight=WEIGHTS["click"], tl2cgen=True),
        RankerSpec(
            objective="purchase",
            model=boosters["purchase"],
            weight=WEIGHTS["purchase"],
            calibration="isotonic",
            calibration_data=data,
            tl2cgen=True,
        ),
    ]


def evaluate(schema: FeatureSchema, boosters: Mapping[str, lightgbm.Booster], test: Examples) -> dict[str, float]:
    """Held-out quality of each forest, and of ordering by popularity, on what was shown.

    Returns:
        Area under the ROC curve, and the mean NDCG@10 of sessions with at least one click or purchase; and the share
        of purchased items that any candidate source proposed.
    """
    shown = test[test.shown]
    popularity = shown.features[:, schema.names.index("item_popularity")].astype(np.float64)
    figures = {}
    for objective, booster in boosters.items():
        scores, labels = np.asarray(booster.predict(shown.features)), shown.labels[objective]
        figures[f"{objective}_auc"] = metrics.auc(scores, labels > 0)
        figures[f"{objective}_ndcg@{_NDCG_AT}"] = mean_ndcg(scores, labels, shown.session)
        figures[f"{objective}_ndcg@{_NDCG_AT}_by_popularity"] = mean_ndcg(popularity, labels, shown.session)
    figures["candidate_recall_of_purchases"] = float(shown.proposed[shown.labels["purchase"] > 0].mean())
    return figures


def mean_ndcg(scores: NDArray[np.float64], labels: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Mean NDCG@10 over the groups with at least one label of 1; ties by place.

    Args:
        scores: [n].
        labels: [n], 0 or 1.
        groups: [n], ascending.
    """
    _, starts, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    place = np.arange(groups.size) - np.repeat(starts, sizes)
    taken = labels > 0
    found = np.zeros((starts.size, _NDCG_AT), np.bool_)
    listed = place < _NDCG_AT
    found[group[listed], place[listed]] = taken[np.lexsort((-scores, groups))][listed]
    counts = np.bincount(group[taken], minlength=starts.size)
    some = counts > 0
    return float(metrics.ndcg(found[some], counts[some]).mean())
