"""The form of features.json: from text to the parts of a schema, with everything that is malformed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from recserve.kernels.features.operations import suggest
from recserve.kernels.features.specs import ColumnSpec, ColumnType, FeatureSpec
from recserve.kernels.features.validation import FeatureSchemaError

_SECTIONS: Final = ("schema_version", "user", "context", "item", "event_types", "features")
_COLUMN_KEYS: Final = ("name", "type", "vocabulary")
_FEATURE_KEYS: Final = ("name", "op", "inputs", "event", "last")

_T = TypeVar("_T")
_KINDS: Final[Mapping[type, str]] = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


@dataclass
class Document:
    """What could be read of a features.json, and what was wrong with its form."""

    user: tuple[ColumnSpec, ...] = ()
    context: tuple[ColumnSpec, ...] = ()
    item: tuple[ColumnSpec, ...] = ()
    event_types: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    problems: list[str] = field(default_factory=list)


def read_schema(text: str, version: int) -> Document:
    """Read the parts of a schema.

    Raises:
        FeatureSchemaError: not a JSON object, or of another version, so that nothing in it can be judged.
    """
    reader = _Reader()
    try:
        root = json.loads(text, object_pairs_hook=reader.mapping)
    except (ValueError, RecursionError) as error:
        raise FeatureSchemaError([f"not JSON: {error}"]) from error
    if not isinstance(root, dict):
        raise FeatureSchemaError([f"expected a JSON object, found {_describe(root)}"])
    if root.get("schema_version") != version:
        found = root.get("schema_version")
        raise FeatureSchemaError([f"schema_version: this build reads version {version}, found {json.dumps(found)}"])
    reader.check_keys("", root, _SECTIONS)
    return Document(
        reader.rows("user", root, reader.column),
        reader.rows("context", root, reader.column),
        reader.rows("item", root, reader.column),
        reader.strings("event_types", root.get("event_types", [])),
        reader.rows("features", root, reader.feature),
        reader.problems,
    )


class _Reader:
    """Reads values of expected kinds; collects what was found otherwise and goes on with an empty value."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def mapping(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """A JSON object; the standard parser would keep only the last of repeated keys."""
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            self.problems.append(f"an object has the key {', '.join(json.dumps(key) for key in repeated)} repeatedly")
        return found

    def check_keys(self, where: str, found: Mapping[str, object], valid: tuple[str, ...]) -> None:
        for key in found:
            if key not in valid:
                prefix = f"{where}: " if where else ""
                self.problems.append(f'{prefix}unknown key "{key}"{suggest(key, valid)}')

    def rows(
        self, section: str, root: Mapping[str, object], read: Callable[[str, Mapping[str, object]], _T]
    ) -> tuple[_T, ...]:
        listed = self.value(section, root.get(section, []), list)
        rows = ((f"{section}[{index}]", entry) for index, entry in enumerate(listed))
        return tuple(read(where, self.value(where, entry, dict)) for where, entry in rows)

    def column(self, where: str, row: Mapping[str, object]) -> ColumnSpec:
        self.check_keys(where, row, _COLUMN_KEYS)
        name, kind, vocabulary = (self.value(f"{where}.{key}", row.get(key, ""), str) for key in _COLUMN_KEYS)
        return ColumnSpec(name, cast(ColumnType, kind), vocabulary)

    def feature(self, where: str, row: Mapping[str, object]) -> FeatureSpec:
        self.check_keys(where, row, _FEATURE_KEYS)
        return FeatureSpec(
            self.value(f"{where}.name", row.get("name", ""), str),
            self.value(f"{where}.op", row.get("op", ""), str),
            self.strings(f"{where}.inputs", row.get("inputs", [])),
            self.value(f"{where}.event", row.get("event", ""), str),
            self.value(f"{where}.last", row.get("last", 0), int),
        )

    def strings(self, where: str, found: object) -> tuple[str, ...]:
        listed = self.value(where, found, list)
        return tuple(self.value(f"{where}[{index}]", entry, str) for index, entry in enumerate(listed))

    def value(self, where: str, found: object, kind: type[_T]) -> _T:
        if isinstance(found, kind) and not isinstance(found, bool):
            return found
        self.problems.append(f"{where}: expected {_KINDS[kind]}, found {_describe(found)}")
        return kind()


def _describe(found: object) -> str:
    text = json.dumps(found)
    return text if len(text) <= 40 else f"{text[:40]}…"
