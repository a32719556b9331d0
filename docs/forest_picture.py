"""Draws docs/forest.svg: the worked example of docs/forest.md, from trees to margins.

`python docs/forest_picture.py` writes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

AGES = (20, 20, 25, 25, 40, 40, 50, 50)
PRICES = (5, 15, 10, 30, 5, 20, 25, 30)
VALUES = (8, 4, 2, 1)
"""Of the leaves, by their numbers."""

WIDTH = 900
CELL = 26
LEFT = 260
TOP = 66
ON, OFF, LINE = "#2f6f9f", "#e8eef2", "#5b6770"
NUMBER = ("white", "black")
"""Of a cell that holds no bit: its colour and its text's."""

Bits = Sequence[bool]


def draw() -> str:
    """The picture as SVG."""
    young = [age <= 32.5 for age in AGES]
    middle = [age <= 45 for age in AGES]
    cheap = [price <= 12.5 for price in PRICES]
    first = select(young, cheap, [True] * 8)
    bit0, bit1 = select(middle, first, [False] * 8), select(middle, young, [False] * 8)
    numbers = [low + 2 * high for low, high in zip(bit0, bit1, strict=True)]
    rows: list[tuple[str, Sequence[int] | None]] = [
        ("bins", None),
        ("age: 0, 1 or 2", [(age > 32.5) + (age > 45) for age in AGES]),
        ("price: 0 or 1", [int(price > 12.5) for price in PRICES]),
        ("conditions", None),
        ("slot 2: age ≤ 32.5", young),
        ("slot 3: age ≤ 45", middle),
        ("slot 4: price ≤ 12.5", cheap),
        ("program", None),
        ("slot 5: 2 ? 4 : 1", first),
        ("slot 6: 3 ? 2 : 0", bit1),
        ("slot 7: 3 ? 5 : 0", bit0),
        ("leaves", None),
        ("number: bits 6, 7", numbers),
        ("value", [VALUES[number] for number in numbers]),
    ]
    height = TOP + len(rows) * (CELL + 4) + 12
    body = [*_header(), *_tree(), *(line for place, row in enumerate(rows) for line in _row(place, *row))]
    size = f'width="{WIDTH}" height="{height}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">'
    return "\n".join((opening, f'<rect {size} fill="white"/>', *body, "</svg>", ""))


def select(condition: Bits, yes: Bits, no: Bits) -> list[bool]:
    """Condition ? yes : no, bit by bit."""
    return [a if c else b for c, a, b in zip(condition, yes, no, strict=True)]


def _text(x: float, y: float, text: object, **attributes: str) -> str:
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;")
    named = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x}" y="{y}"{named}>{escaped}</text>'


def _header() -> Iterator[str]:
    for label, values, y in (("age", AGES, 26), ("price", PRICES, 48)):
        yield _text(LEFT - 14, y, label, text_anchor="end", fill=LINE)
        for column, value in enumerate(values):
            yield _text(LEFT + (column + 0.5) * CELL, y, value, text_anchor="middle")


def _row(place: int, label: str, values: Sequence[int] | None) -> Iterator[str]:
    y = TOP + place * (CELL + 4)
    if values is None:
        yield _text(20, y + 20, label, font_weight="bold")
        return
    yield _text(LEFT - 14, y + 18, label, text_anchor="end", font_family="monospace")
    for column, value in enumerate(values):
        x = LEFT + column * CELL
        fill, colour = {True: (ON, "white"), False: (OFF, "black")}[value] if isinstance(value, bool) else NUMBER
        yield f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}" stroke="{LINE}"/>'
        yield _text(x + CELL / 2 - 1, y + 17, int(value), text_anchor="middle", fill=colour)


def _tree() -> Iterator[str]:
    """The tree at the right: inner nodes with their conditions, leaves with number and value."""
    nodes = {"age ≤ 45": (760, 110), "age ≤ 32.5": (690, 200), "price ≤ 12.5": (620, 290)}
    leaves = {3: (575, 385), 2: (670, 385), 1: (755, 290), 0: (840, 200)}
    edges = (("age ≤ 45", "age ≤ 32.5"), ("age ≤ 32.5", "price ≤ 12.5"))
    places = [(nodes[parent], nodes[child]) for parent, child in edges]
    parents = {3: "price ≤ 12.5", 2: "price ≤ 12.5", 1: "age ≤ 32.5", 0: "age ≤ 45"}
    places += [(nodes[parents[number]], place) for number, place in leaves.items()]
    for (x1, y1), (x2, y2) in places:
        yield f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}"/>'
    for label, (x, y) in nodes.items():
        yield f'<rect x="{x - 56}" y="{y - 16}" width="112" height="32" rx="6" fill="{OFF}" stroke="{LINE}"/>'
        yield _text(x, y + 5, label, text_anchor="middle")
    for number, (x, y) in leaves.items():
        yield f'<circle cx="{x}" cy="{y}" r="24" fill="white" stroke="{ON}" stroke-width="1.5"/>'
        yield _text(x, y - 2, f"no. {number:02b}", text_anchor="middle", font_size="12")
        yield _text(x, y + 14, VALUES[number], text_anchor="middle", font_weight="bold")
    yield _text(700, 150, "yes", text_anchor="middle", fill=LINE, font_size="12")
    yield _text(818, 150, "no", text_anchor="middle", fill=LINE, font_size="12")


if __name__ == "__main__":
    Path(__file__).with_name("forest.svg").write_text(draw(), "utf-8")
