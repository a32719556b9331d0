"""From a schema to the flat instructions that the compiled kernel runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features._program import ALL_EVENTS, BY_ITEM, Op, Place
from recserve.kernels.features.definition import FeatureSchema
from recserve.kernels.features.operations import BUILTIN_CARDINALITIES, Operand, Scope
from recserve.kernels.features.specs import ColumnSizes, ColumnSpec, FeatureSpec

INSTRUCTION: Final = np.dtype(
    [(name, np.int32) for name in ("column", "op", "a_place", "a", "b_place", "b", "parameter")]
)
"""The kernel's struct Instruction."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A lowered schema.

    Attributes:
        per_request: INSTRUCTIONs of the features that all candidates of a request share.
        per_candidate: INSTRUCTIONs of the others.
        history_keys: int32; by history group: column of `ItemArrays.features`, or BY_ITEM.
        selections: int32; event codes that history features look at, or ALL_EVENTS.
        depths: int64; by space: how many recent items similarities look at.
        width: how many features there are.
        item_features: columns of `ItemArrays.features`.
        item_times: columns of `ItemArrays.times`.
        event_types: how many event codes there are.
        sources: columns of `FeatureBatch.source_scores` and `.source_ranks`.
        spaces: names of the vector spaces.
        dot_spaces: those in which users have vectors.
        user: what `FeatureBatch.user` holds.
        context: what `FeatureBatch.context` holds.
    """

    per_request: NDArray[np.void]
    per_candidate: NDArray[np.void]
    history_keys: NDArray[np.int32]
    selections: NDArray[np.int32]
    depths: NDArray[np.int64]
    width: int
    item_features: int
    item_times: int
    event_types: int
    sources: int
    spaces: tuple[str, ...]
    dot_spaces: frozenset[str]
    user: ColumnSizes
    context: ColumnSizes


class _At(NamedTuple):
    """Where an operand lies; history and spaces are indexed without a place."""

    place: int = 0
    position: int = 0


def lower(schema: FeatureSchema, cardinalities: Mapping[str, int]) -> Plan:
    """Lower a schema whose cardinalities have been checked."""
    return _Lowering(schema, cardinalities).plan()


class _Lowering:
    def __init__(self, schema: FeatureSchema, cardinalities: Mapping[str, int]) -> None:
        self.schema = schema
        self.cardinalities = {**cardinalities, **BUILTIN_CARDINALITIES}
        self.features = list(zip(schema.features, schema.operands, strict=True))
        history = [(operands[0].name, feature.event) for feature, operands in self.features if _reads_history(operands)]
        self.history_keys = list(dict.fromkeys(key for key, _ in history))
        self.events = list(dict.fromkeys(event for _, event in history))
        self.numbers, self.times = _request_places(schema)

    def plan(self) -> Plan:
        return Plan(
            per_request=self._instructions("request"),
            per_candidate=self._instructions("item", "cross"),
            history_keys=np.array([self._history_key(name) for name in self.history_keys], np.int32),
            selections=np.array([self._selection(event) for event in self.events], np.int32),
            depths=np.array([self._depth(space) for space in self.schema.spaces], np.int64),
            width=len(self.features),
            item_features=len(self.schema.item_feature_columns),
            item_times=len(self.schema.item_time_columns),
            event_types=len(self.schema.event_types),
            sources=len(self.schema.sources),
            spaces=self.schema.spaces,
            dot_spaces=frozenset(self.schema.dot_spaces),
            user=ColumnSizes.of(self.schema.user_layout, self.cardinalities),
            context=ColumnSizes.of(self.schema.context_layout, self.cardinalities),
        )

    def _instructions(self, *scopes: Scope) -> NDArray[np.void]:
        chosen = [
            self._instruction(column, feature, operands)
            for column, (feature, operands) in enumerate(self.features)
            if self.schema.scopes[column] in scopes
        ]
        return np.array(chosen, INSTRUCTION)

    def _instruction(self, column: int, feature: FeatureSpec, operands: Sequence[Operand]) -> tuple[int, ...]:
        places = [self._find(operand) for operand in operands]
        if _reads_history(operands):
            places.append(_At(position=self.events.index(feature.event)))
        a, b = places if len(places) == 2 else (places[0], _At())
        parameter = self.cardinalities[operands[1].vocabulary] if feature.op == "pair" else feature.last
        return (column, _op(feature, operands), *a, *b, parameter)

    def _find(self, operand: Operand) -> _At:
        schema, name = self.schema, operand.name
        match operand.origin:
            case "user" | "context":
                return self._find_in_request(operand)
            case "item" if operand.type == "time":
                at = _At(Place.AT_ITEM, schema.item_time_columns.index(name))
            case "item":
                at = _At(Place.AT_ITEM, schema.item_feature_columns.index(name))
            case "score":
                at = _At(Place.AT_SCORE, schema.sources.index(name))
            case "rank":
                at = _At(Place.AT_RANK, schema.sources.index(name))
            case "space":
                at = _At(position=schema.spaces.index(name))
            case "history":
                at = _At(position=self.history_keys.index(name))
        return at

    def _find_in_request(self, operand: Operand) -> _At:
        if operand.type == "categories" and operand.origin == "user":
            return _At(Place.AT_USER_LIST, self.schema.user_layout[operand.name][1])
        if operand.type == "categories":
            return _At(Place.AT_CONTEXT_LIST, self.schema.context_layout[operand.name][1])
        held = self.times if operand.type == "time" else self.numbers
        return _At(Place.AT_REQUEST, held.index((operand.origin, operand.name)))

    def _history_key(self, name: str) -> int:
        return BY_ITEM if name == "item" else self.schema.item_feature_columns.index(name)

    def _selection(self, event: str) -> int:
        return self.schema.event_types.index(event) if event else ALL_EVENTS

    def _depth(self, space: str) -> int:
        return max(
            feature.last for feature, operands in self.features if operands[0] == Operand("space", space, "space")
        )


def _reads_history(operands: Sequence[Operand]) -> bool:
    return operands[0].type == "history"


def _op(feature: FeatureSpec, operands: Sequence[Operand]) -> Op:
    if feature.op == "days_since" and _reads_history(operands):
        return Op.OP_DAYS_SINCE_EVENT
    return Op[f"OP_{feature.op.upper()}"]


def _request_places(schema: FeatureSchema) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(origin, name) of the request's numbers and of its times, in the order in which load_request writes them."""
    user, context = schema.user_layout, schema.context_layout

    def named(origin: str, columns: Iterable[ColumnSpec]) -> list[tuple[str, str]]:
        return [(origin, column.name) for column in columns]

    numbers = named("user", (*user.numbers, *user.codes)) + named("context", (*context.numbers, *context.codes))
    times = named("user", user.times) + named("context", context.times)
    return [*numbers, ("context", "hour"), ("context", "weekday")], [*times, ("context", "time")]
