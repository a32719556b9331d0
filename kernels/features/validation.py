"""What makes a feature schema valid. Every rule adds its sentences to one list, so that all errors are told at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from recserve.kernels.features.operations import (
    BUILTIN_CARDINALITIES,
    NAME,
    NAME_RULE,
    OPERATIONS,
    RESERVED,
    Columns,
    Operand,
    OperandType,
    UnknownAddressError,
    resolve,
    suggest,
)
from recserve.kernels.features.specs import CATEGORY_TYPES, COLUMN_TYPES, ColumnSpec, ColumnType, FeatureSpec
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

MAX_LAST: Final = 1000

_SCOPE_TYPES: Final[Mapping[str, tuple[ColumnType, ...]]] = {
    "user": COLUMN_TYPES,
    "context": COLUMN_TYPES,
    "item": ("number", "category", "time"),
}


class FeatureSchemaError(ValueError):
    """A feature schema is invalid, or does not fit the vocabularies.

    Attributes:
        problems: one sentence for each error, beginning with the field's path.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        heading = f"{len(problems)} error{'s' if len(problems) > 1 else ''} in the feature schema:"
        super().__init__("\n  ".join([heading, *problems]))


class SchemaParts(Protocol):
    """The fields of a `FeatureSchema`."""

    @property
    def user(self) -> tuple[ColumnSpec, ...]: ...  # noqa: D102
    @property
    def context(self) -> tuple[ColumnSpec, ...]: ...  # noqa: D102
    @property
    def item(self) -> tuple[ColumnSpec, ...]: ...  # noqa: D102
    @property
    def event_types(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def features(self) -> tuple[FeatureSpec, ...]: ...  # noqa: D102


def schema_problems(schema: SchemaParts) -> list[str]:
    """Everything that is wrong with a schema; empty: nothing."""
    scopes = {"user": schema.user, "context": schema.context, "item": schema.item}
    columns = Columns.of(*scopes.values())
    problems = [problem for scope, specs in scopes.items() for problem in _column_problems(scope, specs)]
    problems += _shared_names(columns)
    problems += _name_problems("event_types", schema.event_types)
    problems += _name_problems("features", [feature.name for feature in schema.features], ".name")
    for index, feature in enumerate(schema.features):
        where = f'features[{index}] "{feature.name}"'
        problems += [f"{where}: {text}" for text in _feature_problems(feature, columns, schema.event_types)]
    return problems


def cardinality_problems(schema: SchemaParts, cardinalities: Mapping[str, int]) -> list[str]:
    """Everything that is wrong with the sizes of the vocabularies."""
    named = [*schema.user, *schema.context, *schema.item]
    problems = []
    for vocabulary in dict.fromkeys(column.vocabulary for column in named if column.vocabulary):
        size = cardinalities.get(vocabulary)
        if size is None:
            problems.append(f'vocabulary "{vocabulary}" is missing{suggest(vocabulary, list(cardinalities))}')
        elif not 0 <= size <= LARGEST_EXACT_INTEGER:
            problems.append(f'vocabulary "{vocabulary}" has {size} values; 0 to {LARGEST_EXACT_INTEGER} are possible')
    return problems or _pair_problems(schema, {**cardinalities, **BUILTIN_CARDINALITIES})


def _pair_problems(schema: SchemaParts, cardinalities: Mapping[str, int]) -> list[str]:
    columns = Columns.of(schema.user, schema.context, schema.item)
    problems = []
    for index, feature in enumerate(schema.features):
        if feature.op == "pair":
            a, b = (cardinalities[resolve(address, columns).vocabulary] for address in feature.inputs)
            if a * b > LARGEST_EXACT_INTEGER:
                problems.append(
                    f'features[{index}] "{feature.name}": {a} x {b} pairs are more than the {LARGEST_EXACT_INTEGER} '
                    "that float32 tells apart; use smaller vocabularies"
                )
    return problems


def _column_problems(scope: str, specs: Sequence[ColumnSpec]) -> Iterator[str]:
    yield from _name_problems(scope, [column.name for column in specs], ".name")
    for index, column in enumerate(specs):
        where = f'{scope}[{index}] "{column.name}"'
        if column.name in RESERVED[scope]:
            yield f"{where}: the name is taken by a built-in input"
        if column.type not in _SCOPE_TYPES[scope]:
            yield f'{where}: type "{column.type}" is not possible here{suggest(column.type, _SCOPE_TYPES[scope])}'
        elif column.type in CATEGORY_TYPES and not NAME.fullmatch(column.vocabulary):
            yield f'{where}: vocabulary "{column.vocabulary}" is not a name: {NAME_RULE}'
        elif column.type not in CATEGORY_TYPES and column.vocabulary:
            yield f"{where}: only columns of type category or categories have a vocabulary"


def _shared_names(columns: Columns) -> Iterator[str]:
    # A request overrides user and context columns by bare name.
    for name in columns.context:
        if name in columns.user:
            yield f'context column "{name}" has the name of a user column; a request could not tell which it overrides'


def _name_problems(where: str, names: Sequence[str], attribute: str = "") -> Iterator[str]:
    for index, name in enumerate(names):
        if not NAME.fullmatch(name):
            yield f'{where}[{index}]{attribute}: "{name}" is not a name: {NAME_RULE}'
    for name, times in Counter(names).items():
        if times > 1:
            yield f'{where}: "{name}" is there {times} times'


def _feature_problems(feature: FeatureSpec, columns: Columns, event_types: Sequence[str]) -> Iterator[str]:
    operands: list[Operand] = []
    for index, address in enumerate(feature.inputs):
        try:
            operands.append(resolve(address, columns))
        except UnknownAddressError as error:
            yield f"inputs[{index}]: {error}"
    if feature.op not in OPERATIONS:
        yield f'unknown op "{feature.op}"{suggest(feature.op, list(OPERATIONS))}'
        return
    yield from _option_problems(feature, event_types)
    # A column of an invalid type has been told already, and every operation would refuse it.
    resolved = len(operands) == len(feature.inputs) and all(o.type in _OPERAND_TYPES for o in operands)
    if resolved:
        yield from _operand_problems(feature.op, operands)


_OPERAND_TYPES: Final[frozenset[OperandType]] = frozenset((*COLUMN_TYPES, "history", "space"))


def _operand_problems(op: str, operands: Sequence[Operand]) -> Iterator[str]:
    operation = OPERATIONS[op]
    found = tuple(operand.type for operand in operands)
    if found not in operation.signatures:
        accepted = " or ".join(f"({', '.join(signature)})" for signature in operation.signatures)
        yield f"op {op} takes inputs of types {accepted}, not ({', '.join(found)})"
    elif operation.one_vocabulary and operands[0].vocabulary != operands[1].vocabulary:
        a, b = (operand.vocabulary for operand in operands)
        yield f'op {op} compares codes of one vocabulary, but the inputs have "{a}" and "{b}"'


def _option_problems(feature: FeatureSpec, event_types: Sequence[str]) -> Iterator[str]:
    if feature.event and feature.event not in event_types:
        yield f'event: unknown event type "{feature.event}"{suggest(feature.event, event_types)}'
    if feature.event and not any(address.startswith("history.") for address in feature.inputs):
        yield "event: only features over history select an event type"
    if OPERATIONS[feature.op].takes_last:
        if not 1 <= feature.last <= MAX_LAST:
            yield f"last: op {feature.op} looks at the last 1 to {MAX_LAST} items, not {feature.last}"
    elif feature.last:
        yield f"last: op {feature.op} does not take it"
