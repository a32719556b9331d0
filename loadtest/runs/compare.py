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
from recserve.loadtest.runs.search import OK_SHARE

LOWER_IS_BETTER: Final = ("p50_ms", "p90_ms", "p99_ms", "cpu_ms_per_request")
HIGHER_IS_BETTER: Final = ("requests_per_s", "ok_share")
CONFIDENCE: Final = 0.95
OK_TOLERANCE: Final = 1 - OK_SHARE
"""Of the share of good answers, where the tolerance is not smaller: one lost answer in twenty is not "the same"."""
SAME: Final = ("workload", "scenario", "bundle")
"""What both files have to be of for their ratios to say something of the servers."""

_SHOWN: Final = 60
"""Characters of something that differs."""

Verdict = Literal["better", "worse", "same", "unsure"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of B by the same of A.

    Attributes:
        name, params: of the runs, without their repetition.
        figure: such as "p99_ms".
        a, b: geometric means over the runs.
        ratio: b / a; None where a is 0.
        low, high: its 95% interval; None where one side has a single run, or a run of 0.
        verdict: "worse" and "better" where the whole interval lies beyond the tolerance, "same" where it lies within,
            else "unsure". A side that has a run without a single good answer is worse than one that has none; of runs
            that are invalid, everything else is "unsure".
    """

    name: str
    params: str
    figure: str
    a: float
    b: float
    ratio: float | None
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
    for number, row in enumerate(content["results"], 1):
        if not isinstance(row, dict) or not isinstance(row.get("params"), dict) or "name" not in row:
            raise ResultError(f'{path}: is no result file: no. {number} of its "results" has no "name" and "params"')
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
    valid = not any(map(_is_invalid, (*a, *b)))
    for figure in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        # None: there were no latencies. A throughput of 0 is a figure like any other, and the worst there is.
        ours, theirs = ([row[figure] for row in rows if row.get(figure) is not None] for rows in (a, b))
        if ours and theirs:
            limit = min(tolerance, OK_TOLERANCE) if figure == "ok_share" else tolerance
            yield _ratio(key, figure, ours, theirs, limit, valid=valid)


def _ratio(
    key: tuple[str, str], figure: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float, *, valid: bool
) -> Ratio:
    higher = figure in HIGHER_IS_BETTER
    low = high = None
    if min(*ours, *theirs) > 0:
        low, high = interval(np.log(ours), np.log(theirs))
        verdict = ratio_verdict(low, high, tolerance, higher_is_better=higher) if valid else "unsure"
    else:
        verdict = _verdict_of_zeros(min(ours), min(theirs), higher_is_better=higher)
    a, b = _mean(ours), _mean(theirs)
    return Ratio(*key, figure, a, b, ratio=b / a if a else None, low=low, high=high, verdict=verdict)


def _verdict_of_zeros(a: float, b: float, *, higher_is_better: bool) -> Verdict:
    """Of each side's least, one of which is 0. It has no logarithm; that nothing was answered needs no interval."""
    if not higher_is_better or a == b:
        return "unsure"
    return "worse" if b == 0 else "better"


def _mean(values: Sequence[float]) -> float:
    """The geometric one."""
    return float(np.exp(np.log(values).mean())) if min(values) > 0 else 0.0


def _is_invalid(row: Mapping[str, Any]) -> bool:
    """Whether a run says that its figures do not count; kernels' rows say nothing of that."""
    return not row.get("valid", True)


def invalid_runs(content: Mapping[str, Any]) -> Iterator[str]:
    """The runs of a result file that do not count, and the first reason of each."""
    for row in filter(_is_invalid, content["results"]):
        params = ", ".join(f"{name} {value}" for name, value in row["params"].items())
        yield f"{row['name']}, {params}: {next(iter(row.get('problems', ())), 'it does not say why')}"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """In words, where the files are not of the same work: then a ratio is not the server's doing alone."""
    for name in SAME:
        ours, theirs = a.get(name), b.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            parts = [part for part in dict.fromkeys((*ours, *theirs)) if ours.get(part) != theirs.get(part)]
            if parts and (name, parts) != ("scenario", ["name"]):  # the same one, moved
                yield f"{name}: they differ in {', '.join(_side_by_side(part, ours, theirs) for part in parts)}"
        elif ours != theirs:
            yield f"{name}: A has {_short(ours)}, B has {_short(theirs)}"


def _side_by_side(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return f"{part} (A: {_short(a.get(part))}; B: {_short(b.get(part))})"


def _short(value: object) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


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
                shown(each.ratio),
                _interval(each),
                each.verdict,
            )
            for each in ratios
        ],
    )


def shown(ratio: float | None) -> str:
    """For a table; nothing is a multiple of 0."""
    return "-" if ratio is None else f"{ratio:.3f}"


def _interval(ratio: Ratio) -> str:
    if ratio.low is not None:
        return f"{ratio.low:.3f} to {ratio.high:.3f}"
    return "one run only" if ratio.a and ratio.b else "a run of 0"
