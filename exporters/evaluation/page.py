"""An evaluation for people: a section of `report.html`, a page by itself, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from recserve.exporters.evaluation.answers import AFTER, BEFORE, FULL, UNION
from recserve.exporters.evaluation.bootstrap import Estimate
from recserve.exporters.evaluation.figures import (
    bars_figure,
    diversity_figure,
    reliability_figure,
    segments_figure,
    shown,
)
from recserve.exporters.evaluation.results import (
    ACCURACY,
    BEYOND,
    COVERAGE,
    NDCG,
    Calibration,
    Evaluation,
    Figures,
    ModeResult,
)
from recserve.exporters.evaluation.times import shown_time
from recserve.exporters.spec import EvaluationMode
from recserve.server.bundle.tables import Grid

TITLES: Final[Mapping[EvaluationMode, str]] = {
    "all": "everything they took counts",
    "first": "only what was new to them counts",
}
COLUMNS: Final = (*ACCURACY, *BEYOND, COVERAGE)


def environment() -> Environment:
    """For this package's templates."""
    return Environment(
        loader=PackageLoader("recserve.exporters"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_evaluation(evaluation: Evaluation) -> str:
    """The page by itself."""
    return environment().get_template("evaluation.html").render(evaluation=evaluation_context(evaluation))


def evaluation_context(evaluation: Evaluation) -> dict[str, Any]:
    """What the section's template shows."""
    truth = evaluation.truth
    return {
        "name": " ".join(evaluation.bundle),
        "time": shown_time(evaluation.time_us),
        "recall_name": evaluation.recall_name,
        "columns": COLUMNS,
        "notes": list(_notes(evaluation)),
        "events": f"{truth.events:,}",
        "trial": evaluation.trial,
        "modes": [_mode(name, mode, evaluation) for name, mode in evaluation.modes.items()],
    }


def _mode(name: EvaluationMode, mode: ModeResult, evaluation: Evaluation) -> dict[str, Any]:
    ndcg = {system: figures[NDCG] for system, figures in mode.systems.items()}
    return {
        "name": name,
        "title": TITLES[name],
        "users": f"{mode.users:,}",
        "cards": list(_cards(mode)),
        "systems_svg": bars_figure(ndcg, winner=FULL, label=NDCG.upper()),
        "recall_svg": bars_figure(mode.recall, winner=UNION, label=evaluation.recall_name),
        "segments_svg": segments_figure(mode.segments),
        "reliability_svg": reliability_figure(mode.calibration.reliability) if mode.calibration else None,
        "calibration": _calibration(mode.calibration) if mode.calibration else None,
        "diversity_svg": diversity_figure(mode.diversity[BEFORE], mode.diversity[AFTER]) if mode.diversity else None,
        "rows": [(system, [_cell(figures, column) for column in COLUMNS]) for system, figures in mode.systems.items()],
    }


def _cards(mode: ModeResult) -> Iterator[dict[str, str]]:
    """The pipeline by itself, then beside each baseline: the ratio, and the paired difference."""
    full = mode.systems[FULL][NDCG]
    yield {"value": f"{full.value:.3f}", "label": NDCG.upper(), "interval": _interval(full), "verdict": ""}
    for system, difference in mode.differences.items():
        other = mode.systems[system][NDCG].value
        low, high = difference.interval or (difference.value, difference.value)
        yield {
            "value": f"{full.value / other:.2f} x {system}" if other else f"{system}: 0",
            "label": f"difference {difference.value:+.3f}",
            "interval": _interval(difference, "+"),
            "verdict": "better" if low > 0 else "worse" if high < 0 else "",
        }


def _calibration(found: Calibration) -> str:
    return (
        f"AUC {found.auc:.3f}, expected calibration error {found.reliability.expected_error:.4f}, log loss "
        f"{found.log_loss:.4f} (saying {found.base_rate:.2%} of all: {found.base_log_loss:.4f})"
    )


def _cell(figures: Figures, column: str) -> str:
    return shown(figures[column]) if column in figures else ""


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """What was left out, and what was not checked."""
    truth = evaluation.truth
    if truth.unknown_events:
        yield (
            f"{truth.unknown_events:,} of {truth.events:,} events were of {truth.unknown_items:,} items that the "
            "catalogue does not have; nothing could have recommended them, so they do not count"
        )
    if truth.unknown_users:
        yield f"users who took nothing but such items, and are left out: {truth.unknown_users:,}"
    if evaluation.new_users:
        yield f"users without history, who are the segment “new”: {evaluation.new_users:,}"
    if evaluation.sampled:
        yield f"drawn at random: {evaluation.sampled:,} of {len(truth.user_ids):,} users"
    if not truth.dated:
        yield "the truth has no times, so nothing says that it lies after the cut-off"


# ------------------------------------------------------------------------------------------------------------- terminal


def evaluation_tables(evaluation: Evaluation) -> Iterator[Grid]:
    """For the terminal: one table a mode, and one for the sources."""
    for name, mode in evaluation.modes.items():
        title = f"{' '.join(evaluation.bundle)}, mode {name}: {mode.users:,} users, {TITLES[name]}"
        headings = ("", f"{NDCG} [95%]", *COLUMNS[1:], "full is better by")
        yield Grid(title, headings, [_row(system, mode) for system in mode.systems])
    title = f"{evaluation.recall_name} of the sources"
    sources = next(iter(evaluation.modes.values())).recall
    rows = [(each, *(_with_interval(mode.recall[each]) for mode in evaluation.modes.values())) for each in sources]
    yield Grid(title, ("", *(f"{name} [95%]" for name in evaluation.modes)), rows)


def _row(system: str, mode: ModeResult) -> list[str]:
    figures, difference = mode.systems[system], mode.differences.get(system)
    others = (_cell(figures, column) for column in COLUMNS[1:])
    return [system, _with_interval(figures[NDCG]), *others, _with_interval(difference, "+") if difference else ""]


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the figures should know of the data."""
    return list(_notes(evaluation))


def _with_interval(each: Estimate, sign: str = "") -> str:
    return f"{each.value:{sign}.3f} [{_interval(each, sign)}]"


def _interval(each: Estimate, sign: str = "") -> str:
    low, high = each.interval or (each.value, each.value)
    return f"{low:{sign}.3f} to {high:{sign}.3f}"
