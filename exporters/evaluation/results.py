"""What an evaluation found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recserve.exporters.errors import ExportError
from recserve.exporters.evaluation.answers import ANY, FULL, OWN, TOP, UNION
from recserve.exporters.evaluation.bootstrap import Estimate
from recserve.exporters.evaluation.metrics import Reliability
from recserve.exporters.evaluation.requests import excludes_purchased
from recserve.exporters.evaluation.times import shown_time
from recserve.exporters.evaluation.truth import Truth
from recserve.exporters.spec import EvaluationMode, EvaluationSpec
from recserve.kernels.features.operations import suggest
from recserve.server.pipeline.sources import POPULAR

NDCG: Final = f"ndcg@{TOP}"
ACCURACY: Final = (NDCG, f"precision@{TOP}", f"recall@{TOP}", f"map@{TOP}")
BEYOND: Final = ("novelty", "diversity", "categories")
COVERAGE: Final = "coverage"
RELEVANCE: Final = "relevance"
FIT: Final = ("auc", "log_loss")
"""Of the calibrated relevance; attributes of Calibration."""
USERS: Final = "users"
"""How many users a segment has, beside the figures of its systems."""

Figures = Mapping[str, Estimate]
"""By metric; a metric that has no value is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How the calibrated relevance of candidates fits what happened.

    Attributes:
        auc: area under the ROC curve.
        log_loss: in nats.
        base_log_loss: of always saying the share of positives.
        base_rate: that share.
        reliability: by bin.
    """

    auc: float
    log_loss: float
    base_log_loss: float
    base_rate: float
    reliability: Reliability


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A segment's users: how many, and NDCG by system."""

    users: int
    ndcg: Figures


@dataclass(frozen=True, slots=True, eq=False)
class ModeResult:
    """Figures in one mode.

    Attributes:
        users: how many count.
        systems: figures by system; "full" is the whole pipeline.
        differences: full - system of NDCG, user by user, by system.
        recall: by source, "union" and "any"; see Answers.
        segments: by name; empty ones are left out.
        diversity: figures "before" and "after" caps and diversity.
        calibration: None without a ranker, or where nobody took a candidate.
    """

    users: int
    systems: Mapping[str, Figures]
    differences: Figures
    recall: Figures
    segments: Mapping[str, Segment]
    diversity: Mapping[str, Figures]
    calibration: Calibration | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        bundle: name and version.
        snapshot: the user snapshot's version.
        time_us: the cut-off.
        truth: what was tested against.
        new_users: users without history among those under test, who count only where the specification says so.
        sampled: users under test, where not all of the truth's.
        candidates: how many are found and ranked.
        power_from: events from which a user is of the segment "power".
        inactive_days: days without events from which one is of the segment "inactive".
        trial: whether "after" diversity is a trial, because the placement has none.
        resamples: of the bootstrap.
        seed: of the bootstrap and the sample.
        modes: figures by mode.
    """

    bundle: tuple[str, str]
    snapshot: str
    time_us: int
    truth: Truth
    new_users: int
    sampled: int | None
    candidates: int
    power_from: float
    inactive_days: float
    trial: bool
    resamples: int
    seed: int
    modes: Mapping[EvaluationMode, ModeResult]

    @property
    def recall_name(self) -> str:
        """The metric of sources."""
        return _recall_name(self.candidates)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `metrics.json` holds it; `docs/evaluation.md` describes it."""
        return {
            "bundle": dict(zip(("name", "version"), self.bundle, strict=True)),
            "snapshot": self.snapshot,
            "time": shown_time(self.time_us),
            "users": next(iter(self.modes.values())).users,
            "mode_users": {name: mode.users for name, mode in self.modes.items()},
            "truth": self._truth(),
            "modes": {name: _systems(mode.systems) for name, mode in self.modes.items()},
            "differences": {name: _intervals(NDCG, mode.differences) for name, mode in self.modes.items()},
            "sources": self._sources(),
            "segments": {name: _segments(mode) for name, mode in self.modes.items()},
            "segment_bounds": {"inactive_days": self.inactive_days, "power_from": self.power_from},
            "diversity": {
                **{name: _systems(mode.diversity) for name, mode in self.modes.items() if mode.diversity},
                "trial": self.trial,
            },
            "calibration": {
                name: _calibration(mode.calibration) for name, mode in self.modes.items() if mode.calibration
            },
            "bootstrap": {"resamples": self.resamples, "seed": self.seed},
        }

    def figures(self) -> dict[str, float]:
        """The figures by dotted name, such as "all.full.ndcg@10" and "all.union.recall@500"."""
        return dict(self._named())

    def headline(self) -> dict[str, float]:
        """The figures that a bundle's manifest keeps."""
        wanted = (NDCG, self.recall_name, *FIT)
        return {name: value for name, value in self._named() if name.endswith(wanted) or name.split(".")[1] == FULL}

    def check(self, minimum: Mapping[str, float]) -> None:
        """Hold the figures against the least that are acceptable.

        Raises:
            ExportError: naming all that fall short, and names that are not among the figures.
        """
        figures, problems = self.figures(), []
        for name, least in minimum.items():
            if name not in figures:
                problems.append(f"there is no figure {name!r}{suggest(name, figures)}")
            elif not figures[name] >= least:
                problems.append(f"{name} is {figures[name]:.4f}, the minimum {least:g}")
        if problems:
            raise ExportError("\n  ".join(["the evaluation falls short of `minimum`:", *problems]))

    def _named(self) -> Iterator[tuple[str, float]]:
        for name, mode in self.modes.items():
            for system, figures in mode.systems.items():
                yield from ((f"{name}.{system}.{metric}", each.value) for metric, each in figures.items())
            for source, found in mode.recall.items():
                yield f"{name}.{source}.{self.recall_name}", found.value
            if mode.calibration:
                yield from ((f"{name}.{RELEVANCE}.{metric}", getattr(mode.calibration, metric)) for metric in FIT)

    def _truth(self) -> dict[str, Any]:
        truth = self.truth
        return {
            "users": len(truth.user_ids),
            "events": truth.events,
            "unknown_events": truth.unknown_events,
            "unknown_items": truth.unknown_items,
            "users_of_unknown_items": truth.unknown_users,
            "new_users": self.new_users,
            "sampled": self.sampled,
            "times_checked": truth.dated,
        }

    def _sources(self) -> dict[str, Any]:
        """By source; the first mode's figures, and the others' by the name of their mode."""
        first, *others = self.modes
        found = _intervals(self.recall_name, self.modes[first].recall)
        for mode in others:
            for source, figures in _intervals(self.recall_name, self.modes[mode].recall).items():
                found[source][mode] = figures
        return found


def figure_names(spec: EvaluationSpec, spaces: Sequence[str], sources: Sequence[str], *, ranked: bool) -> Iterator[str]:
    """The names that `Evaluation.figures` can have. Which of them have a value is known when they are computed.

    Args:
        spec: the test.
        spaces: candidate sources that are vector spaces.
        sources: all candidate sources.
        ranked: whether the bundle has rankers.
    """
    metrics = (*ACCURACY, *BEYOND, COVERAGE)
    for mode in spec.modes:
        own = () if excludes_purchased(spec.placement, mode) else (OWN,)
        for system in (FULL, *spaces, POPULAR, *own):
            yield from (f"{mode}.{system}.{metric}" for metric in metrics)
        for source in (*sources, UNION, ANY):
            yield f"{mode}.{source}.{_recall_name(spec.placement.candidates)}"
        if ranked:
            yield from (f"{mode}.{RELEVANCE}.{metric}" for metric in FIT)


def _recall_name(candidates: int) -> str:
    return f"recall@{candidates}"


def _systems(systems: Mapping[str, Figures]) -> dict[str, Any]:
    """`ci95` is the interval of NDCG; `intervals` holds the other metrics'."""
    return {
        name: {
            **{metric: each.value for metric, each in figures.items()},
            "ci95": list(figures[NDCG].interval or ()),
            "intervals": {metric: list(each.interval) for metric, each in figures.items() if each.interval},
        }
        for name, figures in systems.items()
    }


def _intervals(metric: str, figures: Figures) -> dict[str, Any]:
    return {name: {metric: each.value, "ci95": list(each.interval or ())} for name, each in figures.items()}


def _segments(mode: ModeResult) -> dict[str, Any]:
    return {name: {USERS: each.users, **_intervals(NDCG, each.ndcg)} for name, each in mode.segments.items()}


def _calibration(found: Calibration) -> dict[str, Any]:
    bins = found.reliability
    return {
        "auc": found.auc,
        "log_loss": found.log_loss,
        "base_log_loss": found.base_log_loss,
        "base_rate": found.base_rate,
        "expected_calibration_error": bins.expected_error,
        "candidates": int(bins.counts.sum()),
        "reliability": {
            "predicted": bins.predicted.tolist(),
            "observed": bins.observed.tolist(),
            "counts": bins.counts.tolist(),
        },
    }
