"""The keys of `Settings` as data: for parsing texts, for naming what is allowed, for typos, and for the reference."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from recserve.server.config.model import Settings
from recserve.server.pipeline.settings import NAME_RULE

KeyPath = tuple[str, ...]

ANY = "*"
"""In a key's path: any element of a list, or any name of a table whose names are free."""

Kind = Literal["table", "list", "text", "path", "time", "choice", "integer", "number", "flag"]

_KINDS: Mapping[str, Kind] = {
    "object": "table", "array": "list", "string": "text", "integer": "integer", "number": "number", "boolean": "flag",
}  # fmt: skip

_FORMATS: Mapping[str, Kind] = {"path": "path", "date-time": "time"}

_WORDS: Mapping[Kind, str] = {
    "table": "a table", "list": "a list", "text": "a text", "path": "a path",
    "time": "a time with a zone, such as 2011-11-11T00:00:00Z", "choice": "one of",
    "integer": "an integer", "number": "a number", "flag": "true or false",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """One key, or one section."""

    path: KeyPath
    kind: Kind
    allowed: str
    """In words, such as "an integer, 0 to 65535"."""
    unit: str
    default: str
    """As TOML; empty for what must be given, and for what is absent by default."""
    required: bool
    description: str

    @property
    def dotted(self) -> str:
        """Such as `server.port`."""
        return ".".join(self.path)


@cache
def all_keys() -> Mapping[KeyPath, Key]:
    """Every key and section by path, in the order of the model."""
    schema = Settings.model_json_schema()
    return {key.path: key for key in _walk((), schema, schema.get("$defs", {}), required=True)}


def find(path: KeyPath) -> Key | None:
    """The key that a concrete path such as ("placements", "home", "caps", "0", "max") belongs to, if there is one."""
    keys = all_keys()
    general: KeyPath = ()
    for part in path:
        general = next((option for option in ((*general, part), (*general, ANY)) if option in keys), (*general, part))
    return keys.get(general)


def nearest(path: KeyPath) -> str:
    """The valid key that a person probably meant by an unknown path, dotted; empty: nothing is near.

    Considered are names misspelt or cut short among their siblings, the right name in the wrong section, and whatever
    is spelt alike as a whole (`server_port` for `server.port`).
    """
    *parent, name = path
    scores = {".".join((*parent, sibling)): _likeness(name, sibling) for sibling in children(tuple(parent))}
    for key in all_keys().values():
        if ANY not in key.path and key.kind != "table":
            score = _MOVED if key.path[-1] == name else _likeness(".".join(path), key.dotted)
            scores[key.dotted] = max(score, scores.get(key.dotted, 0.0))
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= _ALIKE else ""


_ALIKE = 0.6
_MOVED = 0.9
_CUT_SHORT = 0.75


def _likeness(name: str, option: str) -> float:
    """From 0 to 1; a name that was cut short counts as alike, however much is missing."""
    ratio = difflib.SequenceMatcher(None, name, option).ratio()
    return max(ratio, _CUT_SHORT) if option.startswith(name) else ratio


def children(path: KeyPath) -> list[str]:
    """The names allowed in a section; empty where names are free or there is no such section."""
    section = find(path)
    if section is None:
        return []
    depth = len(section.path)
    return [
        key[depth] for key in all_keys() if len(key) == depth + 1 and key[:depth] == section.path and key[depth] != ANY
    ]


def _walk(path: KeyPath, node: dict[str, Any], definitions: dict[str, Any], *, required: bool) -> Iterator[Key]:
    resolved = _resolve(node, definitions)
    yield _key(path, resolved, required=required)
    for name, child in resolved.get("properties", {}).items():
        yield from _walk((*path, name), child, definitions, required=name in resolved.get("required", ()))
    free_names = [resolved["items"]] if "items" in resolved else list(resolved.get("patternProperties", {}).values())
    if isinstance(resolved.get("additionalProperties"), dict):
        free_names.append(resolved["additionalProperties"])
    for child in free_names:
        yield from _walk((*path, ANY), child, definitions, required=False)


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref` and "this or null"; what stands beside the reference (description, default) wins."""
    inner = next((option for option in node.get("anyOf", ()) if option.get("type") != "null"), node)
    if "$ref" in inner:
        inner = definitions[inner["$ref"].rpartition("/")[2]]
    return inner if inner is node else {**inner, **{name: value for name, value in node.items() if name != "$ref"}}


def _key(path: KeyPath, node: dict[str, Any], *, required: bool) -> Key:
    kind = _kind(node)
    default = node.get("default")
    return Key(
        path=path,
        kind=kind,
        allowed=_allowed(kind, node),
        unit=node.get("unit", ""),
        default="" if default is None else json.dumps(default),
        required=required,
        description=node.get("description", ""),
    )


def _kind(node: dict[str, Any]) -> Kind:
    if "enum" in node:
        return "choice"
    return _FORMATS.get(node.get("format", "")) or _KINDS[node["type"]]


def _allowed(kind: Kind, node: dict[str, Any]) -> str:
    if kind == "choice":
        return "one of " + ", ".join(json.dumps(value) for value in node["enum"])
    if "pattern" in node:
        return NAME_RULE
    low = node.get("minimum", node.get("exclusiveMinimum"))
    if low is None:
        return _WORDS[kind] + (", not empty" if node.get("minLength") or node.get("minItems") else "")
    above = "above " if "exclusiveMinimum" in node else ""
    return f"{_WORDS[kind]}, {above}{low:,.12g} to {node['maximum']:,.12g}"
