"""An evaluation for people: a section of `report.html`, a page by itself, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from recserve.exporters.evaluation.answers import FULL
from recserve.exporters.evaluation.bootstrap import Estimate
from recserve.exporters.evaluation.figures import (
    bars_figure,
    diversity_figure,
    recall_figure,
    reliability_figure,
    segments_figure,
)
from recserve.exporters.evaluation.results import ACCURACY, BEYOND, COVERAGE, NDCG, Evaluation, Figures, ModeResult
from recserve.exporters.evaluation.times import shown_time

TITLES: Final = {"all": "everything they took counts", "first": "only what was new to them counts"}
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


def _mode(name: str, mode: ModeResult, evaluation: Evaluation) -> dict[str, Any]:
    found = mode.calibration
    return {
        "name": name,
        "title": TITLES[name],
        "users": f"{mode.users:,}",
        "ndcg": f"{mode.systems[FULL][NDCG].value:.3f}",
        "comparisons": list(_comparisons(mode)),
        "systems_svg": bars_figure(
            {system: figures[NDCG] for system, figures in mode.systems.items()}, winner=FULL, label=NDCG.upper()
        ),
        "recall_svg": recall_figure(mode.recall, evaluation.recall_name),
        "segments_svg": segments_figure(mode.segments),
        "reliability_svg": reliability_figure(found.reliability) if found else None,
        "calibration": None
        if not found
        else f"AUC {found.auc:.3f} · log loss {found.log_loss:.4f} (always {found.base_rate:.2%}: "
        f"{found.base_log_loss:.4f}) · expected calibration error {found.reliability.expected_error:.4f}",
        "diversity_svg": diversity_figure(mode.diversity["before"], mode.diversity["after"])
        if mode.diversity
        else None,
        "rows": [(system, [_cell(figures, column) for column in COLUMNS]) for system, figures in mode.systems.items()],
    }


def _comparisons(mode: ModeResult) -> Iterator[dict[str, Any]]:
    """The pipeline against each baseline, in words."""
    full = mode.systems[FULL][NDCG].value
    for system, difference in mode.differences.items():
        other = mode.systems[system][NDCG].value
        low, high = difference.interval or (difference.value, difference.value)
        yield {
            "system": system,
            "ratio": f"{full / other:.2f} x" if other else "",
            "difference": f"{difference.value:+.3f}",
            "interval": f"{low:+.3f} to {high:+.3f}",
            "verdict": "better" if low > 0 else "worse" if high < 0 else "not told apart",
        }


def _cell(figures: Figures, column: str) -> str:
    return shown(figures[column]) if column in figures else ""


def shown(each: Estimate) -> str:
    """Three digits behind the point, fewer where the figure is large."""
    return f"{each.value:.3f}" if each.value < 10 else f"{each.value:.1f}"


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """What was left out, and what was not checked."""
    truth = evaluation.truth
    if truth.unknown_events:
        yield (
            f"{truth.unknown_events:,} of {truth.events:,} events were of {truth.unknown_items:,} items that the "
            "catalogue does not have; nothing could have recommended them, so they do not count"
        )
    if truth.unknown_users:
        yield f"{truth.unknown_users:,} users took nothing but such items and are left out"
    if evaluation.new_users:
        yield f"{evaluation.new_users:,} users have no history; the segment “new” is theirs"
    if evaluation.sampled:
        yield f"{evaluation.sampled:,} of the {len(truth.user_ids):,} users were drawn"
    if not truth.dated:
        yield "the truth has no times, so nothing says that it lies after the cut-off"


# ------------------------------------------------------------------------------------------------------------- terminal


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table]:
    """For the terminal: one table a mode, and one for the sources."""
    for name, mode in evaluation.modes.items():
        title = f"{' '.join(evaluation.bundle)}, mode {name}: {mode.users:,} users, {TITLES[name]}"
        table = _table(title, "", f"{NDCG} [95%]", *COLUMNS[1:], "full is better by")
        for system, figures in mode.systems.items():
            cells = [_with_interval(figures[NDCG]), *(_cell(figures, column) for column in COLUMNS[1:])]
            difference = mode.differences.get(system)
            cells.append(_with_interval(difference, "+") if difference else "")
            table.add_row(Text(system), *map(Text, cells), style="bold" if system == FULL else "")
        yield table
    table = _table(f"{evaluation.recall_name} of the sources", "", *(f"{name} [95%]" for name in evaluation.modes))
    for source in next(iter(evaluation.modes.values())).recall:
        table.add_row(Text(source), *(Text(_with_interval(mode.recall[source])) for mode in evaluation.modes.values()))
    yield table


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the figures should know of the data."""
    return list(_notes(evaluation))


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column(Text(first))
    for column in columns:
        table.add_column(Text(column), justify="right")
    return table


def _with_interval(each: Estimate, sign: str = "") -> str:
    low, high = each.interval or (each.value, each.value)
    return f"{each.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
