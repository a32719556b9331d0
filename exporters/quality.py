"""A gate for tables of events: checked, cleaned by named rules, counted, and refused if too little is left.

    gate = Gate(
        columns={"user": "string", "item": "string", "time": "time", "quantity": "integer"},
        rules=[
            MissingKey(("user", "item", "time")),
            InFuture("time", latest=now),
            OutOfRange("quantity", least=1, most=1_000),
            Matching("item", r"^(POST|DOT)$", name="no goods", description="postage and the like"),
            Duplicate(("user", "item", "time")),
            ImplausibleVolume("user", "time", most=500),
        ],
        least_quality=0.8,
    )
    checked = gate.check(Path("events.parquet"), "events")
    console.print(checked.report.table())

Columns are taken by name and cast to one type per kind, others are left out: the order of a file's columns, its width
and the sizes of its integers change nothing. A column that is not there, or that holds something else, is an error for
the whole table (TableError), not a matter of rows. Rules run in the order given, each over what those before it left,
so a row that several would drop is counted once, with the first of them: put what is certain (nulls, codes) before what
depends on the company of other rows (duplicates, volume).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich import table as rich_table
from rich.text import Text

from recserve.exporters.errors import ExportError, QualityError, TableError
from recserve.exporters.spec import TableSource
from recserve.exporters.strings import shown_rows
from recserve.exporters.tables import Table, TableColumn, read_table

EventKind = Literal["string", "number", "integer", "time", "flag"]
"""What a column holds. Out of the gate come large_string, float64, int64, timestamp[us] (UTC, no zone), bool."""

_CLEAN: Final[dict[EventKind, pa.DataType]] = {
    "string": pa.large_string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "time": pa.timestamp("us"),
    "flag": pa.bool_(),
}
_EXPECTED: Final[dict[EventKind, str]] = {
    "string": "strings",
    "number": "numbers",
    "integer": "integers",
    "time": "timestamps or dates",
    "flag": "booleans",
}
_EXAMPLES: Final = 5


class Rule(Protocol):
    """Finds rows that are not to be learned from. Rules are values: name them, put them in lists, share them."""

    @property
    def name(self) -> str:
        """Short, and the only one of its name in a gate."""

    @property
    def description(self) -> str:
        """What the rows are that it drops, for the report."""

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """Booleans [rows], true for the rows to drop; null counts as false."""


@dataclass(frozen=True, slots=True)
class MissingKey:
    """Rows with a null, or an empty string, in one of some columns."""

    columns: Sequence[str]
    name: str = "missing key"

    @property
    def description(self) -> str:
        """See Rule."""
        return f"null or empty in {_either(self.columns)}"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        found = [_is_missing(events.column(name).data) for name in self.columns]
        return _any_of(found)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Rows that are equal to an earlier one in some columns; the first of them stays. Nulls are equal to each other."""

    columns: Sequence[str]
    name: str = "duplicate"

    @property
    def description(self) -> str:
        """See Rule."""
        return f"equal to an earlier row in {', '.join(self.columns)}"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        codes = np.zeros(len(events), np.int64)
        for name in self.columns:
            codes = _paired(codes, events.column(name).data)
        again = np.ones(len(events), np.bool_)
        again[np.unique(codes, return_index=True)[1]] = False
        return pa.array(again)


@dataclass(frozen=True, slots=True)
class TooOld:
    """Rows of before a time, which needs a zone."""

    column: str
    earliest: datetime.datetime
    name: str = "too old"

    def __post_init__(self) -> None:
        _utc(self.earliest)

    @property
    def description(self) -> str:
        """See Rule."""
        return f"{self.column} before {_utc(self.earliest):%Y-%m-%d %H:%M} UTC"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        return pc.less(events.column(self.column).data, _instant(self.earliest))


@dataclass(frozen=True, slots=True)
class InFuture:
    """Rows of after a time, which needs a zone."""

    column: str
    latest: datetime.datetime
    name: str = "in the future"

    def __post_init__(self) -> None:
        _utc(self.latest)

    @property
    def description(self) -> str:
        """See Rule."""
        return f"{self.column} after {_utc(self.latest):%Y-%m-%d %H:%M} UTC"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        return pc.greater(events.column(self.column).data, _instant(self.latest))


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """Rows whose number is not in [least, most]; NaN and infinities are in no range."""

    column: str
    least: float = float("-inf")
    most: float = float("inf")
    name: str = "out of range"

    @property
    def description(self) -> str:
        """See Rule."""
        return f"{self.column} not in [{self.least:,}, {self.most:,}]"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        values = events.column(self.column).data
        inside = pc.and_(pc.greater_equal(values, self.least), pc.less_equal(values, self.most))
        return pc.invert(pc.and_(inside, pc.is_finite(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Rows with a string in which a regular expression (RE2) is found: codes that are no goods, cancellations."""

    column: str
    pattern: str
    name: str
    description: str

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        return pc.match_substring_regex(events.column(self.column).data, self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMatching:
    """Rows with a string in which a regular expression (RE2) is not found: codes of an unknown form."""

    column: str
    pattern: str
    name: str
    description: str

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        return pc.invert(pc.match_substring_regex(events.column(self.column).data, self.pattern))


@dataclass(frozen=True, slots=True)
class ImplausibleVolume:
    """All rows of a key (a user) that has more than `most` rows on any one day (UTC): bots, tests, shared accounts."""

    key: str
    time: str
    most: int
    name: str = "implausible volume"

    @property
    def description(self) -> str:
        """See Rule."""
        return f"{self.key} with more than {self.most:,} rows on a day"

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        keys = events.column(self.key).data
        days = pc.floor_temporal(events.column(self.time).data, unit="day")
        counts = pa.table({"key": keys, "day": days}).group_by(["key", "day"]).aggregate([([], "count_all")])
        loud = counts.filter(pc.greater(counts.column("count_all"), self.most)).column("key")
        return pc.is_in(keys, value_set=pc.unique(loud), skip_nulls=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Any other rows: `test` gets the cleaned columns and returns booleans, as `Rule.finds` does."""

    test: Callable[[pa.Table], pa.Array | pa.ChunkedArray]
    name: str
    description: str

    def finds(self, events: Table) -> pa.Array | pa.ChunkedArray:
        """See Rule."""
        return self.test(events.data)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a rule did.

    Attributes:
        rule: its name.
        description: its description.
        rows: how many it dropped.
        examples: the first few of them, counted from 0 in the table as it came.
    """

    rule: str
    description: str
    rows: int
    examples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What went in, what each rule dropped, what came out."""

    table_name: str
    rows: int
    dropped: tuple[Dropped, ...]

    @property
    def kept(self) -> int:
        """Rows that came out."""
        return self.rows - sum(each.rows for each in self.dropped)

    @property
    def rate(self) -> float:
        """The quality rate: the share of the rows that came out, 0 to 1."""
        return self.kept / self.rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        dropped = [
            {"rule": each.rule, "description": each.description, "rows": each.rows, "examples": list(each.examples)}
            for each in self.dropped
        ]
        return {"table": self.table_name, "rows": self.rows, "kept": self.kept, "rate": self.rate, "dropped": dropped}

    def table(self) -> rich_table.Table:
        """For the terminal."""
        title = f"{self.table_name}: {self.kept:,} of {self.rows:,} rows kept, quality {self.rate:.1%}"
        table = rich_table.Table(title=Text(title), title_justify="left")
        table.add_column("rule")
        table.add_column("drops")
        table.add_column("rows", justify="right")
        table.add_column("share", justify="right")
        for each in self.dropped:
            style = "" if each.rows else "dim"
            cells = (each.rule, each.description, f"{each.rows:,}", f"{each.rows / self.rows:.2%}")
            table.add_row(*map(Text, cells), style=style)
        return table


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """Events that passed a gate.

    Attributes:
        events: the gate's columns in the gate's order, rows in the order in which they came.
        report: what was dropped, by rule.
    """

    events: pa.Table
    report: QualityReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a table of events has to hold, and which of its rows are dropped; see the module.

    Attributes:
        columns: the kind of every column that is needed.
        rules: in the order in which they get to drop rows.
        least_quality: in (0, 1]; a table of which less is left is refused.
    """

    columns: Mapping[str, EventKind]
    rules: Sequence[Rule] = ()
    least_quality: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.least_quality <= 1:
            raise ExportError(f"least_quality is {self.least_quality}: expected a number over 0 and up to 1")
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise ExportError(f"the rules are called {', '.join(names)}: each needs a name of its own")

    def check(self, source: TableSource, name: str = "events") -> Checked:
        """Check and clean a table.

        Args:
            source: a file, or a table.
            name: what messages call it.

        Raises:
            TableError: there is no such file, no row, a column missing, or one that does not hold its kind.
            QualityError: less than `least_quality` of the rows is left.
            ExportError: a rule asks a column for what its kind does not have.
        """
        texts = [column for column, kind in self.columns.items() if kind == "string"]
        events = self._columns_of(read_table(source, name, text=texts))
        rows = np.arange(len(events))
        dropped = []
        for rule in self.rules:
            bad = _found_by(rule, events)
            gone = rows[bad]
            dropped.append(Dropped(rule.name, rule.description, len(gone), tuple(gone[:_EXAMPLES].tolist())))
            if len(gone):
                events, rows = Table(events.name, events.data.filter(pa.array(~bad))), rows[~bad]
        report = QualityReport(name, len(rows) + sum(each.rows for each in dropped), tuple(dropped))
        self._refuse_poor(report)
        return Checked(events.data, report)

    def _columns_of(self, table: Table) -> Table:
        """The gate's columns by their kinds; all that is wrong with them is told at once."""
        clean, problems = {}, []
        for name, kind in self.columns.items():
            try:
                clean[name] = _cleaned(table.column(name), kind)
            except TableError as error:
                problems.append(str(error))
        if problems:
            raise TableError("; ".join(problems))
        return Table(table.name, pa.table(clean))

    def _refuse_poor(self, report: QualityReport) -> None:
        if report.rate >= self.least_quality:
            return
        counts = [f"{each.rows:,} by {each.rule!r} ({each.description})" for each in report.dropped if each.rows]
        raise QualityError(
            f"{report.table_name}: the quality rate is {report.rate:.1%}, expected at least {self.least_quality:.1%}: "
            f"{report.kept:,} of {report.rows:,} rows are left; dropped were {', '.join(counts)}: "
            "mend the source of the table, or change the rules or the threshold",
            report,
        )


def _cleaned(column: TableColumn, kind: EventKind) -> pa.ChunkedArray:
    """The column in its kind's type, nulls kept.

    Raises:
        TableError: it holds something else.
    """
    if kind == "string":
        return pa.chunked_array([column.strings()])
    if not (_holds(column.data.type, kind) or pa.types.is_null(column.data.type)):
        raise TableError(
            f"{column.what}: expected {_EXPECTED[kind]}, found {column.data.type}{_culprits(column, kind)}"
        )
    try:
        # From nanoseconds and decimals digits may be lost; nothing else can lose any.
        lossy = kind == "number" or (pa.types.is_timestamp(column.data.type) and column.data.type.unit == "ns")
        return column.data.cast(_CLEAN[kind], safe=not lossy)
    except pa.ArrowInvalid as error:
        raise TableError(f"{column.what}: {error}") from error


def _holds(found: pa.DataType, kind: EventKind) -> bool:
    types = pa.types
    holds: dict[EventKind, bool] = {
        "integer": types.is_integer(found),
        "number": types.is_integer(found) or types.is_floating(found) or types.is_decimal(found),
        "time": types.is_timestamp(found) or types.is_date(found),
        "flag": types.is_boolean(found),
    }
    return holds[kind]


def _culprits(column: TableColumn, kind: EventKind) -> str:
    """Which strings stand where numbers belong; where all of them spell numbers, what to do."""
    found = column.data.type
    if kind not in ("integer", "number") or not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        return ""
    spelled = r"^\s*[-+]?\d+\s*$" if kind == "integer" else r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
    bad = np.flatnonzero(_as_mask(pc.invert(pc.match_substring_regex(column.data, spelled))))
    if not len(bad):
        return "; they spell numbers: cast the column"
    shown = ", ".join(repr(column.data[row].as_py()) for row in bad[:_EXAMPLES].tolist())
    return f"; {len(bad)} are no {_EXPECTED[kind]}: {shown}{', …' if len(bad) > _EXAMPLES else ''} in {shown_rows(bad)}"


def _found_by(rule: Rule, events: Table) -> NDArray[np.bool_]:
    try:
        return _as_mask(rule.finds(events))
    except pa.ArrowException as error:
        raise ExportError(f"{events.name}: the rule {rule.name!r} cannot be applied: {error}") from error


def _as_mask(found: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(found.fill_null(fill_value=False), np.bool_)


def _is_missing(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_large_string(values.type):
        return values.is_null()
    return pc.equal(pc.binary_length(values.fill_null("")), 0)


def _paired(codes: NDArray[np.int64], column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number, less than that of the rows, for each distinct pair of a code and a value; null is a value of its own.

    Arrow's own grouping by several columns takes ten times as long.
    """
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    pairs = codes * len(values.dictionary) + values.indices.to_numpy()
    return np.asarray(pa.array(pairs).dictionary_encode().indices, np.int64)


def _any_of(found: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    result = found[0]
    for each in found[1:]:
        result = pc.or_(result, each)
    return result


def _either(columns: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))


def _instant(time: datetime.datetime) -> pa.Scalar:
    """As the gate's times are stored."""
    return pa.scalar(_utc(time).replace(tzinfo=None), _CLEAN["time"])


def _utc(time: datetime.datetime) -> datetime.datetime:
    if time.tzinfo is None:
        raise ExportError(f"the time {time} has no zone: add one, such as datetime.UTC")
    return time.astimezone(datetime.UTC)
