"""The README's results from metrics.json: `python -m examples.online_retail.figures README.md metrics.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from recserve.server.text import between_marks

BEGIN: Final = "<!-- results: written by python -m examples.online_retail.figures -->"
END: Final = "<!-- end of results -->"

_NDCG, _RECALL = "ndcg@10", "recall@500"
_SYSTEMS: Final = {
    "full": "**the full pipeline**",
    "ann": "two-tower alone",
    "als": "ALS alone",
    "content": "descriptions alone",
    "popular": "popularity of the last 14 days",
    "own": "the user's own most frequent purchases",
}
_SOURCES: Final = ("ann", "als", "content", "popular", "again", "new", "trending", "together", "union", "any")


def render(metrics: Mapping[str, Any]) -> str:
    """Tables of the lists and of the sources."""
    return "\n".join([*_lists(metrics), *_sources(metrics)])


def renew(document: str, metrics: Mapping[str, Any]) -> str:
    """The document with new tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return between_marks(document, BEGIN, END, render(metrics))


def _lists(metrics: Mapping[str, Any]) -> Iterator[str]:
    users, modes = metrics["mode_users"], metrics["modes"]
    yield ""
    columns = [f"`{mode}`, {users[mode]:,} users | full is times" for mode in ("all", "first")]
    yield f"| NDCG@10 (95% interval) | {' | '.join(columns)} |"
    yield "|---|--:|--:|--:|--:|"
    for name, title in _SYSTEMS.items():
        cells = [cell for mode in ("all", "first") for cell in _cells(modes[mode], name)]
        yield f"| {title} | {' | '.join(cells)} |"


def _cells(systems: Mapping[str, Any], name: str) -> Sequence[str]:
    if name not in systems:
        return "", ""
    found = systems[name]
    low, high = found["ci95"]
    times = "" if name == "full" else f"{systems['full'][_NDCG] / found[_NDCG]:.2f}"
    return f"{found[_NDCG]:.3f} ({low:.3f} to {high:.3f})", times


def _sources(metrics: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"| {_RECALL} | {' | '.join(f'`{name}`' for name in _SOURCES)} |"
    yield "|---" + "|--:" * len(_SOURCES) + "|"
    found = metrics["sources"]
    yield f"| `all` | {' | '.join(f'{found[name][_RECALL]:.3f}' for name in _SOURCES)} |"
    yield f"| `first` | {' | '.join(_first(found[name]) for name in _SOURCES)} |"


def _first(source: Mapping[str, Any]) -> str:
    return f"{source['first'][_RECALL]:.3f}"


def main(arguments: Sequence[str]) -> None:
    """Renew the document named first from the metrics named second."""
    document, metrics = (Path(argument) for argument in arguments)
    text = renew(document.read_text(encoding="utf-8"), json.loads(metrics.read_text(encoding="utf-8")))
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
