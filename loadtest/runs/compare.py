"""Two result files side by side: ratios, and how sure they are, from repeated runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from recserve.loadtest.grids import Grid
from recserve.loadtest.runs.errors import ResultError

LOWER_IS_BETTER: Final = ("p50_ms", "p90_ms", "p99_ms", "cpu_ms_per_request")
HIGHER_IS_BETTER: Final = ("requests_per_s",)
CONFIDENCE: Final = 0.95

Verdict = Literal["better", "worse", "same", "unsure"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of B by the same of A.

    Attributes:
        name, params: of the runs, without their repetition.
        figure: such as "p99_ms".
        a, b: geometric means over the runs.
        ratio: b / a.
        low, high: its 95% interval; None where one side has a single run.
        verdict: "worse" and "better" where the whole interval lies beyond the tolerance, "same" where it lies within,
            else "unsure".
    """

    name: str
    params: str
    figure: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: Verdict


def read_results(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ResultError: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as a result file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise ResultError(f'{path}: is no result file: it has no list of "results"')
    return content


def compare(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float = 0.05) -> list[Ratio]:
    """Ratios of what both files measured alike: rows of equal name and parameters, repetitions apart.

    Raises:
        ResultError: there is nothing that both measured.
    """
    ours, theirs = _by_run(a["results"]), _by_run(b["results"])
    common = [key for key in ours if key in theirs]
    if not common:
        raise ResultError("the files have no run in common: neither names nor parameters (rate, seconds, …) are equal")
    return [ratio for key in common for ratio in _ratios(key, ours[key], theirs[key], tolerance)]


def _by_run(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        params = ", ".join(f"{name} {value}" for name, value in row["params"].items() if name != "repeat")
        groups.setdefault((row["name"], params), []).append(row)
    return groups


def _ratios(
    key: tuple[str, str], a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], tolerance: float
) -> Iterator[Ratio]:
    for figure in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        ours, theirs = ([row[figure] for row in rows if row.get(figure)] for rows in (a, b))
        if ours and theirs:
            logs = np.log(ours), np.log(theirs)
            ratio = float(np.exp(logs[1].mean() - logs[0].mean()))
            low, high = interval(*logs)
            yield Ratio(
                *key,
                figure=figure,
                a=float(np.exp(logs[0].mean())),
                b=float(np.exp(logs[1].mean())),
                ratio=ratio,
                low=low,
                high=high,
                verdict=ratio_verdict(low, high, tolerance, higher_is_better=figure in HIGHER_IS_BETTER),
            )


def interval(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float | None]:
    """The ratio's 95% interval from logarithms: Welch's t interval, which takes both sides' spread as it is."""
    if len(a) < 2 or len(b) < 2:
        return None, None
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    total = sum(parts)
    difference = b.mean() - a.mean()
    if total == 0:
        return math.exp(difference), math.exp(difference)
    freedom = total**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(total)
    return math.exp(difference - half), math.exp(difference + half)


def ratio_verdict(low: float | None, high: float | None, tolerance: float, *, higher_is_better: bool) -> Verdict:
    """What an interval of b / a says, where changes within the tolerance do not matter."""
    if low is None or high is None:
        return "unsure"
    if higher_is_better:
        low, high = 1 / high, 1 / low
    if low > 1 + tolerance:
        return "worse"
    if high < 1 / (1 + tolerance):
        return "better"
    return "same" if low >= 1 / (1 + tolerance) and high <= 1 + tolerance else "unsure"


def grid(ratios: Sequence[Ratio]) -> Grid:
    """For the terminal."""
    return Grid(
        title="B by A, with 95% intervals",
        headings=("run", "figure", "A", "B", "ratio", "interval", "verdict"),
        rows=[
            (
                f"{each.name}, {each.params}",
                each.figure,
                f"{each.a:.4g}",
                f"{each.b:.4g}",
                f"{each.ratio:.3f}",
                "one run only" if each.low is None else f"{each.low:.3f} to {each.high:.3f}",
                each.verdict,
            )
            for each in ratios
        ],
    )
