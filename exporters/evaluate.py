"""Offline evaluation: how well a bundle recommends, measured through the pipeline that serves it.

The users of a test window are asked for at the cut-off, in micro-batches, as a server would be asked; their lists are
held against what they took afterwards, beside the lists of every source alone. See `docs/evaluation.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.evaluation import metrics
from recserve.exporters.evaluation.answers import ANY, FULL, OWN, UNION, Answers, answer
from recserve.exporters.evaluation.bootstrap import Estimate, estimates
from recserve.exporters.evaluation.metrics import Lists
from recserve.exporters.evaluation.requests import Requests, make_requests
from recserve.exporters.evaluation.results import (
    ACCURACY,
    BEYOND,
    COVERAGE,
    NDCG,
    USERS,
    Calibration,
    Evaluation,
    Figures,
    ModeResult,
    Segment,
)
from recserve.exporters.evaluation.truth import read_truth
from recserve.exporters.evaluation.users import NEW, SEGMENTS, Users, open_users, owners, purchase_code
from recserve.exporters.spec import EvaluationMode, EvaluationSpec
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline

RELIABILITY_BINS: Final = 15

Progress = Callable[[int, int], None]
"""Is told how many users are done in all modes together, and how many there are at most."""


def evaluate_bundle(
    bundle: Path, snapshot: Path, spec: EvaluationSpec, *, on_progress: Progress | None = None
) -> Evaluation:
    """Evaluate the bundle in a directory; see `evaluate`.

    Raises:
        BundleError: the bundle or the snapshot cannot be opened.
    """
    return evaluate(open_pipeline(open_bundle(bundle)), open_snapshot(snapshot), spec, on_progress=on_progress)


def evaluate(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, *, on_progress: Progress | None = None
) -> Evaluation:
    """Evaluate a bundle.

    Args:
        pipeline: over the bundle.
        snapshot: its users at the cut-off.
        spec: the test.
        on_progress: called as users are done.

    Raises:
        ExportError: the truth or the snapshot cannot be used for a test, or the bundle cannot serve the placement.
        BundleMismatchError: the snapshot is not one for this bundle.
    """
    _check_spec(spec, pipeline)
    requests = {mode: make_requests(pipeline, spec.placement, mode, spec.time_us) for mode in spec.modes}
    truth = read_truth(spec, pipeline.bundle.catalogue)
    users = open_users(truth, snapshot, pipeline.bundle, spec)
    run = _Run(
        pipeline, spec, _Measures.of(pipeline, snapshot, spec), _counter(on_progress, len(users) * len(requests))
    )
    modes = {mode: run.mode(mode, mine, users) for mode, mine in requests.items()}
    return Evaluation(
        bundle=(pipeline.bundle.name, pipeline.bundle.version),
        snapshot=snapshot.version,
        time_us=spec.time_us,
        truth=truth,
        new_users=int((users.segments == NEW).sum()),
        sampled=len(users) if len(users) < len(truth.user_ids) else None,
        candidates=spec.placement.candidates,
        power_from=users.power_from,
        inactive_days=spec.segments.inactive_days,
        trial=not any(each.diversified for each in requests.values()),
        resamples=spec.resamples,
        seed=spec.seed,
        modes=modes,
    )


def _check_spec(spec: EvaluationSpec, pipeline: Pipeline) -> None:
    if not spec.modes or len(set(spec.modes)) < len(spec.modes):
        raise ExportError(f"evaluation modes: expected 'all', 'first' or both, found {list(spec.modes)}")
    for name, value in (("max_users", spec.max_users), ("resamples", spec.resamples)):
        if value < 1:
            raise ExportError(f"evaluation {name}: expected at least 1, found {value}")
    if not 0 <= spec.segments.power_quantile <= 1 or not spec.segments.inactive_days > 0:
        raise ExportError(
            f"evaluation segments: expected inactive_days above 0 and a power_quantile of 0 to 1, found {spec.segments}"
        )
    taken = {ANY, FULL, OWN, UNION, USERS} & set(pipeline.sources)
    if taken:
        raise ExportError(f"evaluation: the source {min(taken)!r} has the name of a figure: rename it")


@dataclass(frozen=True, slots=True, eq=False)
class _Measures:
    """What lists are measured with, by item row.

    Attributes:
        information: bits.
        vectors: of length 1; None where no space has such.
        categories: codes; None where no column has that role.
    """

    information: NDArray[np.float64]
    vectors: NDArray[np.float32] | None
    categories: NDArray[np.int32] | None

    @staticmethod
    def of(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> _Measures:
        bundle, category = pipeline.bundle, pipeline.bundle.catalogue.role("category")
        spaces = [name for name in (spec.placement.diversity_space, *pipeline.similarity_spaces) if name]
        return _Measures(
            metrics.self_information(owners(snapshot, bundle), snapshot.size),
            bundle.spaces[spaces[0]].vectors if spaces else None,
            category.codes if isinstance(category, CategoryColumn) else None,
        )

    def values(self, lists: Lists, users: Users) -> NDArray[np.float64]:
        """[users, metrics] in the order of ACCURACY and BEYOND; NaN where a metric has no value."""
        found, counts = metrics.hits(lists, users.relevant), users.relevant.counts
        nothing = np.full(len(users), np.nan)
        return np.stack(
            [
                metrics.ndcg(found, counts),
                metrics.precision(found),
                metrics.recall(found, counts),
                metrics.average_precision(found, counts),
                metrics.novelty(lists, self.information),
                nothing if self.vectors is None else metrics.diversity(lists, self.vectors),
                nothing if self.categories is None else metrics.distinct(lists, self.categories),
            ],
            axis=1,
        )


class _Run:
    """One evaluation's modes."""

    def __init__(
        self, pipeline: Pipeline, spec: EvaluationSpec, measures: _Measures, on_progress: Callable[[int], None]
    ) -> None:
        self._pipeline = pipeline
        self._spec = spec
        self._measures = measures
        self._on_progress = on_progress
        self._purchase = purchase_code(pipeline.bundle)

    def mode(self, mode: EvaluationMode, requests: Requests, everybody: Users) -> ModeResult:
        """All figures of a mode."""
        users = everybody.in_mode(mode, self._pipeline.bundle.catalogue, self._purchase)
        counting = np.full(len(users), True) if self._spec.new_users else users.segments != NEW
        if not counting.any():
            raise ExportError(_nobody(mode, len(everybody), len(users)))
        answers = answer(self._pipeline, requests, users, self._purchase, self._on_progress)
        values = {name: self._measures.values(lists, users) for name, lists in answers.lists.items()}
        diversity = {name: self._measures.values(lists, users) for name, lists in answers.diversity.items()}
        return ModeResult(
            users=int(counting.sum()),
            systems=self._systems(values, answers.lists, counting),
            differences=self._differences(values, counting),
            recall=self._by_name({name: found[counting] for name, found in answers.found.items()}),
            segments=self._segments(values, users),
            diversity=self._systems(diversity, answers.diversity, counting),
            calibration=_calibration(answers),
        )

    def _systems(
        self, values: Mapping[str, NDArray[np.float64]], lists: Mapping[str, Lists], counting: NDArray[np.bool_]
    ) -> dict[str, Figures]:
        items = self._pipeline.bundle.catalogue.size
        return {
            name: {
                **self._by_name(dict(zip((*ACCURACY, *BEYOND), mine[counting].T, strict=True))),
                COVERAGE: Estimate(metrics.coverage(lists[name][counting], items)),
            }
            for name, mine in values.items()
        }

    def _differences(self, values: Mapping[str, NDArray[np.float64]], counting: NDArray[np.bool_]) -> Figures:
        ndcg = {name: mine[counting, ACCURACY.index(NDCG)] for name, mine in values.items()}
        return self._by_name({name: ndcg[FULL] - mine for name, mine in ndcg.items() if name != FULL})

    def _segments(self, values: Mapping[str, NDArray[np.float64]], users: Users) -> dict[str, Segment]:
        found = {}
        for code, name in enumerate(SEGMENTS):
            mine = users.segments == code
            if mine.any():
                ndcg = {system: each[mine, ACCURACY.index(NDCG)] for system, each in values.items()}
                found[name] = Segment(int(mine.sum()), self._by_name(ndcg))
        return found

    def _by_name(self, columns: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Means over users by name; columns without any value are left out."""
        some = {name: column for name, column in columns.items() if not np.isnan(column).all()}
        if not some:
            return {}
        found = estimates(np.stack(list(some.values()), axis=1), resamples=self._spec.resamples, seed=self._spec.seed)
        return dict(zip(some, found, strict=True))


def _calibration(answers: Answers) -> Calibration | None:
    """Over all candidates of all users, those without history included: relevance is served to everybody."""
    relevance, labels = answers.relevance, answers.labels
    if relevance is None or not labels.any() or labels.all():
        return None
    rate = float(labels.mean())
    return Calibration(
        auc=metrics.auc(relevance, labels),
        log_loss=metrics.log_loss(relevance, labels),
        base_log_loss=metrics.log_loss(np.full(labels.size, rate), labels),
        base_rate=rate,
        reliability=metrics.reliability(relevance, labels, RELIABILITY_BINS),
    )


def _nobody(mode: EvaluationMode, everybody: int, left: int) -> str:
    if left:
        return (
            f"evaluation in mode {mode!r}: none of {left:,} users has a history in the snapshot: is it the one of the "
            "cut-off, with the same user ids? `new_users` counts users without history, too"
        )
    return f"evaluation in mode {mode!r}: {everybody:,} users took nothing that they had not bought before"


def _counter(on_progress: Progress | None, total: int) -> Callable[[int], None]:
    """Adds up the steps for whoever wants to know."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, total)

    return advance
