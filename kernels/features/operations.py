"""What features read (operands) and what they compute (operations).

Operands, by address:

    user.X, context.X, item.X       a column
    context.time                    the request's time
    context.hour, context.weekday   the request's hour (0 to 23) and weekday (Monday 0 to Sunday 6), UTC, as categories
    source.NAME.score, .rank        what candidate source NAME gave the item (rank 1 is best); missing: not proposed
    history.item, history.C         the user's dealings with this very item, or with items of its category C,
                                    C being an item column of type category
    space.NAME                      item vectors of vector space NAME and, for `dot`, the user's vector in it

Operations, with a and b for the operands, t for the request's time. A missing operand (NaN, a code of -1, the smallest
int64 as a time) makes the result NaN; so does an undefined result, such as a zero denominator. Arithmetic is in double,
rounded once to float32. Every NaN in the result is the same quiet NaN.

    value                           a; a category gives its code
    log1p                           ln(1 + a); NaN for a <= -1
    ratio, difference, product      a / b (NaN for b = 0), a - b, a * b
    equal                           1 if two categories of one vocabulary are the same, else 0
    pair                            a * |B| + b, the code of the pair, |B| being the size of b's vocabulary
    rank_in                         position of category a in the list b, 1 for the first; NaN where it is absent
    hour_sin, hour_cos              sine and cosine of 2 pi hour / 24, of whole hours UTC
    weekday_sin, weekday_cos        sine and cosine of 2 pi weekday / 7, Monday 0, UTC
    days_since                      (t - a) / 86,400 s; over history: since the last matching event, NaN without one
    dot                             inner product of the user's vector with the item's
    count                           over history: how many matching events
    share                           over history: count / the user's events of the selected type, NaN if there are none
    max_similarity, mean_similarity highest and mean inner product of the item's vector with those of the user's
                                    `last` most recent items; NaN without recent items

History of an unknown user is missing: every feature over it is NaN. Entries of items that this bundle does not know
match nothing, but they are events of the user, and `share` counts them in its denominator.

Sums run in a fixed order, so that results are the same bits everywhere: counts in the order of the history's entries,
means in the order of the recent items, inner products in `DOT_LANES` partial sums (term i goes to sum i mod 8, and the
sums are added from the first to the last).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from recserve.kernels.features.specs import ColumnSpec

Origin = Literal["user", "context", "item", "score", "rank", "history", "space"]
OperandType = Literal["number", "category", "categories", "time", "history", "space"]
Scope = Literal["item", "request", "cross"]
"""What a feature depends on: the item alone; the request alone (user, context, time); or on both."""

DOT_LANES: Final = 8

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""Names of columns, features, vocabularies, sources, spaces and event types: also file names and parts of addresses."""
NAME_RULE: Final = "a letter or _, then at most 63 letters, digits, _ or -"
"""`NAME` in words."""

BUILTIN_CARDINALITIES: Final[Mapping[str, int]] = MappingProxyType({"context.hour": 24, "context.weekday": 7})
"""Vocabularies of the built-in categories; the dot keeps them apart from every declared vocabulary."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of a feature, resolved against the schema's columns."""

    origin: Origin
    name: str
    """The column, source, space, or key of the history ("item" or an item column)."""
    type: OperandType
    vocabulary: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """Which operand types an operation accepts."""

    signatures: tuple[tuple[OperandType, ...], ...]
    one_vocabulary: bool = False
    """Both operands must be codes of the same vocabulary."""
    takes_last: bool = False
    """Needs `FeatureSpec.last`."""


OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "value": Operation((("number",), ("category",))),
        "log1p": Operation((("number",),)),
        "ratio": Operation((("number", "number"),)),
        "difference": Operation((("number", "number"),)),
        "product": Operation((("number", "number"),)),
        "equal": Operation((("category", "category"),), one_vocabulary=True),
        "pair": Operation((("category", "category"),)),
        "rank_in": Operation((("category", "categories"),), one_vocabulary=True),
        "hour_sin": Operation((("time",),)),
        "hour_cos": Operation((("time",),)),
        "weekday_sin": Operation((("time",),)),
        "weekday_cos": Operation((("time",),)),
        "days_since": Operation((("time",), ("history",))),
        "dot": Operation((("space",),)),
        "count": Operation((("history",),)),
        "share": Operation((("history",),)),
        "max_similarity": Operation((("space",),), takes_last=True),
        "mean_similarity": Operation((("space",),), takes_last=True),
    }
)

_BUILTINS: Final[Mapping[str, Operand]] = MappingProxyType(
    {
        "time": Operand("context", "time", "time"),
        "hour": Operand("context", "hour", "category", "context.hour"),
        "weekday": Operand("context", "weekday", "category", "context.weekday"),
    }
)
RESERVED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {"user": frozenset(), "context": frozenset(_BUILTINS), "item": frozenset({"item"})}
)
"""Column names that would hide a built-in operand, by scope."""


def scope_of(op: str, operands: Sequence[Operand]) -> Scope:
    """What a feature depends on.

    `days_since` reads the request's time beside its operand. What sources, histories and vectors say of an item differs
    by request.
    """
    origins = {operand.origin for operand in operands}
    if origins <= {"user", "context"}:
        return "request"
    return "item" if origins == {"item"} and op != "days_since" else "cross"


class Columns(NamedTuple):
    """The schema's columns by name."""

    user: Mapping[str, ColumnSpec]
    context: Mapping[str, ColumnSpec]
    item: Mapping[str, ColumnSpec]

    @classmethod
    def of(cls, user: Iterable[ColumnSpec], context: Iterable[ColumnSpec], item: Iterable[ColumnSpec]) -> Columns:
        """By name, the last of several with one name."""
        return cls(*({column.name: column for column in columns} for columns in (user, context, item)))


class UnknownAddressError(ValueError):
    """An address that names nothing; the message says what is wrong and what would be right."""


def resolve(address: str, columns: Columns) -> Operand:
    """The operand at an address.

    Raises:
        UnknownAddressError: the address is malformed or names an unknown column.
    """
    scope, _, rest = address.partition(".")
    if scope == "user":
        return _column_operand("user", rest, columns.user)
    if scope == "item":
        return _column_operand("item", rest, columns.item)
    if scope == "context":
        return _BUILTINS.get(rest) or _column_operand("context", rest, columns.context, _BUILTINS)
    if scope == "source":
        return _source_operand(address, rest)
    if scope == "history":
        return _history_operand(rest, columns.item)
    if scope == "space":
        return _space_operand(address, rest)
    scopes = ("user", "context", "item", "source", "history", "space")
    raise UnknownAddressError(f'"{address}" starts with no known source{suggest(scope, scopes)}')


def suggest(wrong: str, valid: Collection[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one, or all of them."""
    near = difflib.get_close_matches(wrong, valid, n=1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; valid: {', '.join(valid)}" if valid else "; none is declared"


def _column_operand(
    scope: Literal["user", "context", "item"],
    name: str,
    declared: Mapping[str, ColumnSpec],
    builtin: Collection[str] = (),
) -> Operand:
    column = declared.get(name)
    if column is None:
        raise UnknownAddressError(f'unknown {scope} column "{name}"{suggest(name, [*declared, *builtin])}')
    return Operand(scope, name, column.type, column.vocabulary)


def _source_operand(address: str, rest: str) -> Operand:
    name, _, what = rest.partition(".")
    if NAME.fullmatch(name) and what == "score":
        return Operand("score", name, "number")
    if NAME.fullmatch(name) and what == "rank":
        return Operand("rank", name, "number")
    raise UnknownAddressError(f'"{address}" must read source.NAME.score or source.NAME.rank')


def _history_operand(name: str, items: Mapping[str, ColumnSpec]) -> Operand:
    keys = ["item", *(column.name for column in items.values() if column.type == "category")]
    if name not in keys:
        raise UnknownAddressError(
            f'history has no key "{name}": it is "item" or an item column of type category{suggest(name, keys)}'
        )
    return Operand("history", name, "history")


def _space_operand(address: str, name: str) -> Operand:
    if not NAME.fullmatch(name):
        raise UnknownAddressError(f'"{address}" must read space.NAME')
    return Operand("space", name, "space")
