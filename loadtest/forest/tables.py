"""The result of `recserve-loadtest kernels forest` as tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from recserve.loadtest.grids import Grid

Row = Mapping[str, Any]
Forest = tuple[int, int]
"""Trees and leaves."""

OWN: Final = "recserve"
SIZE: Final = ("trees", "leaves", "rows")
REFERENCE: Final[Forest] = (1000, 64)
CANDIDATES: Final = 500
"""Of the reference workload."""


def title(row: Row) -> str:
    """What tells a result from the others of its size."""
    kinds = [
        f"{name} {value}" if name == "quantize" else value for name, value in row["params"].items() if name not in SIZE
    ]
    return ", ".join((row["name"], *kinds))


def all_grids(content: Mapping[str, Any]) -> Iterator[Grid]:
    """Every result."""
    results = content["results"]
    for forest in _forests(results):
        for rows in sorted({row["params"]["rows"] for row in _timed(results) if _forest(row) == forest}):
            yield detail(results, forest, rows)
    yield from _making(results)


def document_grids(content: Mapping[str, Any]) -> Iterator[Grid]:
    """What docs/forest.md shows: the reference forest, then all forests with the reference's number of candidates."""
    results = content["results"]
    yield detail(results, REFERENCE, CANDIDATES)
    yield _medians(
        f"{_named(REFERENCE)}, median milliseconds of CPU time by number of rows",
        [row for row in _timed(results) if _forest(row) == REFERENCE],
        lambda row: (row["params"]["rows"],),
        lambda column: f"{column[0]:,}",
    )
    yield _medians(
        f"{CANDIDATES} rows, median milliseconds of CPU time by trees and leaves",
        [row for row in _timed(results) if row["params"]["rows"] == CANDIDATES],
        _forest,
        lambda column: f"{column[0]:,} x {column[1]}",
    )
    yield steps(results)
    yield from _making(results)


def detail(results: Sequence[Row], forest: Forest, rows: int) -> Grid:
    """All figures of one forest and number of rows."""
    found = [row for row in _timed(results) if _forest(row) == forest and row["params"]["rows"] == rows]
    return Grid(
        f"{_named(forest)}, {rows:,} {'rows' if rows > 1 else 'row'}, milliseconds a call",
        (
            "engine",
            "CPU p50",
            "CPU min",
            "times LightGBM",
            "clock p50",
            "clock p99",
            "runs",
            f"differ of {found[0]['scores']:,}",
        ),
        [
            (
                title(row),
                _short(row["cpu_p50_ms"]),
                _short(row["cpu_min_ms"]),
                f"{row['ratio_to_lightgbm']:.3g}",
                _short(row["p50_ms"]),
                _short(row["p99_ms"]),
                f"{row['runs']:,}",
                f"{row['mismatches']:,}",
            )
            for row in found
        ],
    )


def steps(results: Sequence[Row]) -> Grid:
    """What each step of the design gives, on the reference workload with the widest instructions."""
    own = [row for row in _timed(results) if _forest(row) == REFERENCE and row["name"] == OWN]
    median = {tuple(row["params"][name] for name in ("path", "cpu", "rows")): row["cpu_p50_ms"] for row in own}
    variants = list(dict.fromkeys(row["params"]["cpu"] for row in own))
    widest = {path: median[path, variants[-1], CANDIDATES] for path in {row["params"]["path"] for row in own}}
    made = next(row for row in results if "operations" in row and _forest(row) == REFERENCE)
    lines = [
        ("leaf numbers whose bits take few operations", made["operations_by_reach"], made["operations"]),
        *(
            (f"{wide} instead of {narrow}", median["request", narrow, CANDIDATES], median["request", wide, CANDIDATES])
            for narrow, wide in itertools.pairwise(variants)
        ),
        ("items binned at export", widest["predict"], widest["items binned"]),
        ("user and context values evaluated once a request", widest["items binned"], widest["request"]),
        ("20 rows in a narrow block", widest["request"], median["request", variants[-1], 20]),
        ("float32 sums, which are not exact", widest["request"], widest["request, float sums"]),
    ]
    return Grid(
        f"What the steps give: {_named(REFERENCE)}, {CANDIDATES} rows, operations or milliseconds of CPU time",
        ("step", "without", "with", "times"),
        [(text, _short(before), _short(after), f"{before / after:.2f}") for text, before, after in lines],
    )


def _short(value: float) -> str:
    """A count in full, a time with three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _medians(
    text: str, results: Sequence[Row], key: Callable[[Row], tuple[int, ...]], show: Callable[[tuple[int, ...]], str]
) -> Grid:
    """Medians of engines by something of their sizes."""
    columns = sorted({key(row) for row in results})
    cells = {(title(row), key(row)): _short(row["cpu_p50_ms"]) for row in results}
    engines = dict.fromkeys(title(row) for row in results)
    lines = [(engine, *(cells.get((engine, column), "-") for column in columns)) for engine in engines]
    return Grid(text, ("engine", *map(show, columns)), lines)


def _making(results: Sequence[Row]) -> Iterator[Grid]:
    """What the forests are, what compiling them took, and who did not take part."""
    own = [row for row in results if "conditions" in row]
    yield Grid(
        "The forests and what they are compiled to; by rows: operations if every node split its rows in two, and leaf "
        "numbers were gathered from the leaves' rows",
        ("forest", "splits on user and context", "conditions", "operations a tree", "by rows", "MiB", "load ms"),
        [
            (
                _named(_forest(row)),
                f"{row['request_split_share']:.1%}",
                f"{row['conditions']:,}",
                f"{row['operations'] / row['params']['trees']:.1f}",
                f"{row['operations_by_reach'] / row['params']['trees']:.1f}",
                f"{row['saved_mib']:.1f}",
                f"{row['load_ms']:.3g}",
            )
            for row in own
        ],
    )
    compiled = [row for row in results if "compile_s" in row]
    yield Grid(
        "Compilation, seconds",
        ("engine", "trees", "leaves", "by the clock", "of the CPU"),
        [
            (title(row), *(f"{n:,}" for n in _forest(row)), _short(row["compile_s"]), _short(row["compile_cpu_s"]))
            for row in compiled
        ],
    )
    skipped = [row for row in results if "skipped" in row]
    if skipped:
        lines = [(f"{row['name']}: {row['skipped']}", *(f"{n:,}" for n in _forest(row))) for row in skipped]
        yield Grid("Left out", ("engine and reason", "trees", "leaves"), lines)


def _timed(results: Sequence[Row]) -> list[Row]:
    return [row for row in results if "rows" in row["params"]]


def _forest(row: Row) -> Forest:
    return row["params"]["trees"], row["params"]["leaves"]


def _forests(results: Sequence[Row]) -> list[Forest]:
    return sorted({_forest(row) for row in results})


def _named(forest: Forest) -> str:
    return f"{forest[0]:,} trees of up to {forest[1]} leaves"
