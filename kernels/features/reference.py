"""The features in plain NumPy and Python, one by one: what FeatureProgram is tested against.

It shares the schema and the input checks with the compiled program, and none of its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features.batch import MISSING_TIME, ColumnValues, FeatureBatch, ItemArrays
from recserve.kernels.features.checks import InputChecks
from recserve.kernels.features.definition import FeatureSchema
from recserve.kernels.features.operations import BUILTIN_CARDINALITIES, DOT_LANES, Operand
from recserve.kernels.features.specs import ColumnLayout, FeatureSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

BINARY: Mapping[str, Callable[[F64, F64], F64]] = {
    "ratio": lambda a, b: np.where(b == 0, np.nan, a / b),
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b,
    "equal": lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, a == b),
}


def reference_features(
    schema: FeatureSchema, cardinalities: Mapping[str, int], items: ItemArrays, batch: FeatureBatch
) -> NDArray[np.float32]:
    """What `FeatureProgram(schema, cardinalities).compute(items, batch)` must return, bit for bit.

    Raises:
        FeatureSchemaError: as FeatureProgram.
        TypeError, ValueError: as FeatureProgram.compute.
    """
    schema.check_cardinalities(cardinalities)
    candidates = InputChecks(schema, cardinalities).check(items, batch)
    reference = _Reference(schema, {**cardinalities, **BUILTIN_CARDINALITIES}, items, batch)
    matrix = np.empty((candidates, len(schema.features)), np.float32)
    with np.errstate(all="ignore"):
        for column, (feature, operands) in enumerate(zip(schema.features, schema.operands, strict=True)):
            matrix[:, column] = reference.column(feature, operands)
    matrix[np.isnan(matrix)] = np.nan
    return matrix


class _Reference:
    """Computes a feature for all candidates at once; operands are arrays with one entry per candidate."""

    def __init__(
        self, schema: FeatureSchema, cardinalities: Mapping[str, int], items: ItemArrays, batch: FeatureBatch
    ) -> None:
        self.schema = schema
        self.cardinalities = cardinalities
        self.items = items
        self.batch = batch
        self.request = np.repeat(np.arange(len(batch.time_us)), np.diff(batch.offsets))
        self.now = batch.time_us[self.request]

    def column(self, feature: FeatureSpec, operands: Sequence[Operand]) -> F64:
        first = operands[0].type
        if first == "history":
            return self.over_history(feature, operands[0].name)
        if feature.op == "dot":
            return self.dot(operands[0].name)
        if first == "space":
            return self.similarity(feature, operands[0].name)
        if first == "time":
            return self.of_time(feature.op, self.time(operands[0]))
        if feature.op == "rank_in":
            return self.rank_in(*operands)
        return self.arithmetic(feature.op, operands)

    # ---- operands ----

    def number(self, operand: Operand) -> F64:
        """Numbers, and category codes as numbers; NaN is missing."""
        name = operand.name
        if operand.origin == "item":
            found = self.items.features[self.batch.rows, self.schema.item_feature_columns.index(name)]
        elif operand.origin == "score":
            found = self.batch.source_scores[:, self.schema.sources.index(name)]
        elif operand.origin == "rank":
            found = self.batch.source_ranks[:, self.schema.sources.index(name)]
        elif operand.vocabulary in BUILTIN_CARDINALITIES:
            found = hour(self.now) if name == "hour" else weekday(self.now)
        else:
            values, layout = self.values(operand)
            table = values.numbers if operand.type == "number" else np.where(values.codes < 0, np.nan, values.codes)
            found = table[self.request, layout[name][1]]
        return np.asarray(found, np.float64)

    def time(self, operand: Operand) -> I64:
        if operand.origin == "item":
            return np.asarray(self.items.times[self.batch.rows, self.schema.item_time_columns.index(operand.name)])
        if operand == Operand("context", "time", "time"):
            return self.now
        values, layout = self.values(operand)
        return np.asarray(values.times[self.request, layout[operand.name][1]])

    def values(self, operand: Operand) -> tuple[ColumnValues, ColumnLayout]:
        if operand.origin == "user":
            return self.batch.user, self.schema.user_layout
        return self.batch.context, self.schema.context_layout

    def code_list(self, operand: Operand, request: int) -> list[int]:
        values, layout = self.values(operand)
        cut = request * len(layout.lists) + layout[operand.name][1]
        codes: list[int] = values.list_codes[values.list_offsets[cut] : values.list_offsets[cut + 1]].tolist()
        return codes

    # ---- operations ----

    def arithmetic(self, op: str, operands: Sequence[Operand]) -> F64:
        a = self.number(operands[0])
        if op == "value":
            return a
        if op == "log1p":
            return each(lambda x: math.log1p(x) if x > -1 else math.nan, a)
        b = self.number(operands[1])
        if op == "pair":
            return a * self.cardinalities[operands[1].vocabulary] + b
        return BINARY[op](a, b)

    def rank_in(self, category: Operand, ranking: Operand) -> F64:
        ranks = np.full(len(self.request), np.nan)
        for i, code in enumerate(self.number(category)):
            ranked = self.code_list(ranking, self.request[i])
            if code in ranked:
                ranks[i] = ranked.index(code) + 1
        return ranks

    def of_time(self, op: str, times: I64) -> F64:
        if op == "days_since":
            return days_between(times, self.now)
        cycle, size = (hour(times), 24.0) if op.startswith("hour") else (weekday(times), 7.0)
        wave = math.sin if op.endswith("sin") else math.cos
        return each(lambda x: wave(2.0 * math.pi * x / size), cycle)

    def over_history(self, feature: FeatureSpec, key: str) -> F64:
        result = np.full(len(self.request), np.nan)
        for i, (request, row) in enumerate(zip(self.request.tolist(), self.batch.rows.tolist(), strict=True)):
            wanted = self.history_key(key, row)
            if self.batch.known[request] and wanted is not None:
                entries = self.entries(request, feature.event)
                matching = [
                    entry for entry in entries if self.history_key(key, self.batch.history_rows[entry]) == wanted
                ]
                result[i] = self.history_value(feature.op, request, entries, matching)
        return result

    def history_value(self, op: str, request: int, entries: Sequence[int], matching: Sequence[int]) -> float:
        count = self.total(matching)
        if op == "count":
            return count
        if op == "share":
            return count / self.total(entries) if self.total(entries) != 0 else math.nan
        last = max((self.batch.history_last_us[entry] for entry in matching), default=MISSING_TIME)
        return float(days_between(np.array([last]), self.batch.time_us[request : request + 1])[0])

    def history_key(self, key: str, row: int) -> float | None:
        if row < 0 or key == "item":
            return float(row) if row >= 0 else None
        code = float(self.items.features[row, self.schema.item_feature_columns.index(key)])
        return None if math.isnan(code) else code

    def entries(self, request: int, event: str) -> list[int]:
        start, end = self.batch.history_offsets[request : request + 2]
        code = self.schema.event_types.index(event) if event else None
        return [entry for entry in range(start, end) if code is None or self.batch.history_events[entry] == code]

    def total(self, entries: Sequence[int]) -> float:
        total = 0.0
        for entry in entries:
            total += float(self.batch.history_counts[entry])
        return total

    def dot(self, space: str) -> F64:
        users = self.batch.user_vectors[space][self.request]
        return inner_products(users, self.items.vectors[space][self.batch.rows])

    def similarity(self, feature: FeatureSpec, space: str) -> F64:
        vectors = self.items.vectors[space]
        result = np.full(len(self.request), np.nan)
        for i, (request, row) in enumerate(zip(self.request.tolist(), self.batch.rows.tolist(), strict=True)):
            start, end = self.batch.recent_offsets[request : request + 2]
            recent = [item for item in self.batch.recent_rows[start:end] if item >= 0][: feature.last]
            if recent:
                found = inner_products(vectors[[row] * len(recent)], vectors[recent])
                result[i] = np.max(found) if feature.op == "max_similarity" else sum(found.tolist()) / len(recent)
        return result


def each(function: Callable[[float], float], values: F64) -> F64:
    """The function of every value, NaN of NaN. Python calls the C library's functions; NumPy has its own."""
    return np.array([math.nan if math.isnan(value) else function(value) for value in values.tolist()], np.float64)


def hour(times: I64) -> F64:
    """Whole hours of the day, UTC; `//` and `%` round down, also before 1970."""
    return np.where(times == MISSING_TIME, np.nan, times // HOUR_US % 24)


def weekday(times: I64) -> F64:
    """0 is Monday; 1970-01-01 was a Thursday."""
    return np.where(times == MISSING_TIME, np.nan, (times // DAY_US + 3) % 7)


def days_between(earlier: I64, later: I64) -> F64:
    """Days, NaN where one of the times is missing."""
    missing = (earlier == MISSING_TIME) | (later == MISSING_TIME)
    return np.where(missing, np.nan, (later.astype(np.float64) - earlier.astype(np.float64)) / DAY_US)


def inner_products(a: NDArray[np.float32], b: NDArray[np.float32]) -> F64:
    """Row by row, in DOT_LANES partial sums."""
    products = a.astype(np.float64) * b.astype(np.float64)
    padded = np.pad(products, ((0, 0), (0, -products.shape[1] % DOT_LANES)))
    lanes = np.zeros((len(products), DOT_LANES))
    for start in range(0, padded.shape[1], DOT_LANES):
        lanes += padded[:, start : start + DOT_LANES]
    total = np.zeros(len(products))
    for lane in range(DOT_LANES):
        total += lanes[:, lane]
    return total
