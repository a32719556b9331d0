"""The reference of every key, for `docs/configuration.md`.

`python -m recserve.server.config.reference docs/configuration.md` renews the tables between the two marks in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from recserve.server.config.keys import ANY, Key, KeyPath, all_keys
from recserve.server.text import between_marks

BEGIN = "<!-- keys: written by python -m recserve.server.config.reference -->"
END = "<!-- end of keys -->"


def render() -> str:
    """Every section as Markdown: a heading, what it is about, and a table of its keys."""
    sections = [key for key in all_keys().values() if key.path and key.kind == "table" and _settings_of(key)]
    return "\n".join(line for section in sections for line in _section(section))


def renew(document: str) -> str:
    """The document with new tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return between_marks(document, BEGIN, END, f"\n{render()}")


def _settings_of(section: Key) -> list[Key]:
    depth = len(section.path) + 1
    keys = [key for key in all_keys().values() if len(key.path) == depth and key.path[:-1] == section.path]
    return [key for key in keys if key.path[-1] != ANY]


def _section(section: Key) -> Iterator[str]:
    yield f"## {_title(section.path)}\n"
    yield f"{section.description}\n"
    yield "| key | type and range | unit | default | meaning |"
    yield "|---|---|---|---|---|"
    for key in _settings_of(section):
        default = "required" if key.required else f"`{key.default}`" if key.default else "absent"
        yield f"| `{key.path[-1]}` | {key.allowed} | {key.unit} | {default} | {key.description} |"
    yield ""


def _title(path: KeyPath) -> str:
    """As TOML writes it: `[server]`, `[[bundles]]`, `[placements.<name>]`, `[[placements.<name>.caps]]`."""
    *parents, last = path
    is_list = last == ANY and all_keys()[tuple(parents)].kind == "list"
    shown = ".".join("<name>" if part == ANY else part for part in (parents if is_list else path))
    return f"`[[{shown}]]`" if is_list else f"`[{shown}]`"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
