"""The feature schema: which columns exist and which features the ranker reads, in order; stored as `features.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, TypeAlias

from recserve.kernels.features.document import read_schema
from recserve.kernels.features.operations import Columns, Operand, Scope, resolve, scope_of
from recserve.kernels.features.specs import ColumnLayout, ColumnSpec, FeatureSpec
from recserve.kernels.features.validation import FeatureSchemaError, cardinality_problems, schema_problems

SCHEMA_VERSION: Final = 1
"""Of the format of features.json."""

Json: TypeAlias = "str | int | Sequence[Json] | Mapping[str, Json]"


@dataclass(frozen=True)
class FeatureSchema:
    """One definition of the ranker's input, for training and for serving.

    Args:
        user: columns known of a user.
        context: columns known of a request. `context.time`, `.hour` and `.weekday` exist without being declared.
        item: columns known of an item.
        event_types: names of the history's event codes, in order.
        features: columns of the feature matrix, in order.

    Raises:
        FeatureSchemaError: with every error at once.
    """

    user: tuple[ColumnSpec, ...] = ()
    context: tuple[ColumnSpec, ...] = ()
    item: tuple[ColumnSpec, ...] = ()
    event_types: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = ()

    def __post_init__(self) -> None:
        problems = schema_problems(self)
        if problems:
            raise FeatureSchemaError(problems)

    @staticmethod
    def from_json(text: str) -> FeatureSchema:
        """Read the text of a features.json.

        Raises:
            FeatureSchemaError: with every error at once, of form and of content.
        """
        document = read_schema(text, SCHEMA_VERSION)
        if document.problems:
            raise FeatureSchemaError([*document.problems, *schema_problems(document)])
        return FeatureSchema(document.user, document.context, document.item, document.event_types, document.features)

    def to_json(self) -> str:
        """The canonical text: equal schemas have equal texts."""
        return json.dumps(self._as_json(), indent=1) + "\n"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def operands(self) -> tuple[tuple[Operand, ...], ...]:
        """The resolved inputs of each feature."""
        columns = Columns.of(self.user, self.context, self.item)
        return tuple(tuple(resolve(address, columns) for address in feature.inputs) for feature in self.features)

    @cached_property
    def scopes(self) -> tuple[Scope, ...]:
        """What each feature depends on: "item", "request" (user, context and time), or "cross"."""
        pairs = zip(self.features, self.operands, strict=True)
        return tuple(scope_of(feature.op, operands) for feature, operands in pairs)

    def select(self, columns: Iterable[int]) -> FeatureSchema:
        """The schema of some of the features: columns[i] of this one's matrix is column i of its matrix."""
        return replace(self, features=tuple(self.features[column] for column in columns))

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Candidate sources that features read, by first use."""
        return self._used("score", "rank")

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """Vector spaces that features read, by first use."""
        return self._used("space")

    @cached_property
    def dot_spaces(self) -> tuple[str, ...]:
        """Those of `spaces` in which features read the user's vector, by first use."""
        pairs = zip(self.features, self.operands, strict=True)
        return tuple(dict.fromkeys(operands[0].name for feature, operands in pairs if feature.op == "dot"))

    @cached_property
    def user_layout(self) -> ColumnLayout:
        """Where user columns lie."""
        return ColumnLayout(self.user)

    @cached_property
    def context_layout(self) -> ColumnLayout:
        """Where context columns lie."""
        return ColumnLayout(self.context)

    @cached_property
    def item_feature_columns(self) -> tuple[str, ...]:
        """Columns of `ItemArrays.features`, which is items/features.npy."""
        return tuple(column.name for column in self.item if column.type in ("number", "category"))

    @cached_property
    def item_time_columns(self) -> tuple[str, ...]:
        """Columns of `ItemArrays.times`, which is items/times.npy."""
        return tuple(column.name for column in self.item if column.type == "time")

    @cached_property
    def vocabularies(self) -> tuple[str, ...]:
        """Names of the vocabularies of all columns, by first use."""
        return _vocabularies((*self.user, *self.context, *self.item))

    def check_cardinalities(self, cardinalities: Mapping[str, int]) -> None:
        """Check that every column's vocabulary is there and that codes and their pairs are exact in float32.

        Raises:
            FeatureSchemaError: with every error at once.
        """
        problems = cardinality_problems(self, cardinalities)
        if problems:
            raise FeatureSchemaError(problems)

    def schema_hash(self, vocabularies: Mapping[str, Sequence[str]]) -> str:
        """SHA-256 (hexadecimal) of all that gives the feature matrix its meaning: the schema and its vocabularies.

        Raises:
            FeatureSchemaError: a vocabulary of the schema is missing.
        """
        return _digest(self._as_json(), self.vocabularies, vocabularies)

    def user_hash(self, vocabularies: Mapping[str, Sequence[str]]) -> str:
        """SHA-256 (hexadecimal) of what a user snapshot depends on: user columns, their vocabularies, event types.

        Raises:
            FeatureSchemaError: a vocabulary of a user column is missing.
        """
        part: Json = {"user": [_column_json(column) for column in self.user], "event_types": self.event_types}
        return _digest(part, _vocabularies(self.user), vocabularies)

    def _used(self, *origins: str) -> tuple[str, ...]:
        every = (operand for operands in self.operands for operand in operands)
        return tuple(dict.fromkeys(operand.name for operand in every if operand.origin in origins))

    def _as_json(self) -> Mapping[str, Json]:
        return {
            "schema_version": SCHEMA_VERSION,
            "user": [_column_json(column) for column in self.user],
            "context": [_column_json(column) for column in self.context],
            "item": [_column_json(column) for column in self.item],
            "event_types": self.event_types,
            "features": [_feature_json(feature) for feature in self.features],
        }


def _vocabularies(columns: Iterable[ColumnSpec]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column.vocabulary for column in columns if column.vocabulary))


def _column_json(column: ColumnSpec) -> Json:
    named = {} if column.vocabulary in ("", column.name) else {"vocabulary": column.vocabulary}
    return {"name": column.name, "type": column.type, **named}


def _feature_json(feature: FeatureSpec) -> Json:
    options: dict[str, Json] = {"event": feature.event, "last": feature.last}
    given = {key: value for key, value in options.items() if value}
    return {"name": feature.name, "op": feature.op, "inputs": feature.inputs, **given}


def _digest(part: Json, names: Sequence[str], vocabularies: Mapping[str, Sequence[str]]) -> str:
    missing = [f'vocabulary "{name}" is missing' for name in names if name not in vocabularies]
    if missing:
        raise FeatureSchemaError(missing)
    hashed = {"definition": part, "vocabularies": {name: list(vocabularies[name]) for name in names}}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
