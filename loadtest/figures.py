"""Result files as Markdown: the figures in the documents are written by this, never by hand.

`python -m recserve.loadtest.figures README.md docs/bench/kernels.json docs/bench/demo.json` renews README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- figures: written by python -m recserve.loadtest.figures -->"
END = "<!-- end of figures -->"

FOREST_ENGINES = ("LightGBM", "TL2cgen", "Treelite", "ONNX Runtime", "lleaves")


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables of several result files, with the machine that each was measured on."""
    return "\n".join(line for each in results for line in _LAYOUTS.get(each["workload"], _table)(each))


def renew(document: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The document with new tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs a line {BEGIN} and, after it, a line {END}")
    return f"{before}{BEGIN}\n{render(results)}\n{END}{after}"


def engine_title(row: Mapping[str, Any]) -> str:
    """How a forest engine is called in tables and pictures: ours by its path and its CPU variant."""
    params = row["params"]
    return f"{row['name']} {params['path']}, {params['cpu']}" if "path" in params else str(row["name"])


def _head(result: Mapping[str, Any], packages: Mapping[str, str]) -> Iterator[str]:
    """The machine and the versions, between empty lines."""
    host, versions = result["host"], result["versions"]
    flags = ", ".join(host["flags"])
    used = ", ".join(f"{title} {versions[name]}" for name, title in packages.items() if name in versions)
    yield ""
    yield f"*{result['workload']}* on {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB ({flags}); {used}:"
    yield ""


def _table(result: Mapping[str, Any]) -> Iterator[str]:
    yield from _head(result, {"python": "Python", "numpy": "NumPy", "grpcio": "grpcio"})
    yield "| what | size | p50 ms | p99 ms | runs | further |"
    yield "|---|---|--:|--:|--:|---|"
    for row in result["results"]:
        size = ", ".join(f"{name} {value:,}" for name, value in row["params"].items())
        known = ("name", "params", "p50_ms", "p99_ms", "runs")
        further = ", ".join(f"{name} {value:,}" for name, value in row.items() if name not in known)
        yield f"| {row['name']} | {size} | {_ms(row['p50_ms'])} | {_ms(row['p99_ms'])} | {row['runs']:,} | {further} |"


def _forest_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """For each forest, medians in milliseconds by engine and rows, ratios to LightGBM, and the equality check."""
    packages = ("lightgbm", "tl2cgen", "treelite", "onnxruntime", "lleaves")
    yield from _head(result, dict(zip(packages, FOREST_ENGINES, strict=True)))
    forests: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in result["results"]:
        forests.setdefault((row["params"]["trees"], row["params"]["leaves"]), []).append(row)
    for (trees, leaves), rows in forests.items():
        about = next(row for row in rows if "conditions" in row)
        yield (
            f"**{trees:,} trees of up to {leaves} leaves**, {about['conditions']:,} conditions, "
            f"{about['user_and_context_splits']:.0%} of the splits on user and context features, compiled in "
            f"{about['compile_s']:.2g} s; median milliseconds of a call, in brackets how many times faster than "
            "LightGBM's `predict`:"
        )
        yield ""
        yield from _forest_table([row for row in rows if row["runs"]])
        yield ""


def _forest_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sizes = sorted({row["params"]["rows"] for row in rows})
    headings = [f"{size:,} rows" if size > 1 else "1 row" for size in sizes]
    yield f"| engine | {' | '.join(headings)} | scores that differ | by at most |"
    yield f"|---|{'--:|' * len(sizes)}--:|--:|"
    for title in dict.fromkeys(engine_title(row) for row in rows):
        own = [row for row in rows if engine_title(row) == title]
        by_size = {row["params"]["rows"]: f"{_ms(row['p50_ms'])} ({row['ratio_to_lightgbm']:.3g})" for row in own}
        cells = " | ".join(by_size.get(size, "-") for size in sizes)
        differ = f"{sum(row['mismatches'] for row in own):,} of {sum(row['scores'] for row in own):,}"
        yield f"| {title} | {cells} | {differ} | {max(row['largest_difference'] for row in own):.2g} |"


_LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {"forest": _forest_tables}


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main(arguments: Sequence[str]) -> None:
    """Renew the document named first from the result files named after it."""
    document, *files = (Path(argument) for argument in arguments)
    results = [json.loads(file.read_text("utf-8")) for file in files]
    document.write_text(renew(document.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
