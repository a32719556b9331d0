"""From file, environment and flags to `Settings`: merged first, validated once, every error reported.

Each source becomes a list of assignments (key, value, where it was said). They are applied in order, defaults <
file < environment < flags: tables merge, everything else replaces. The merged tree is validated as a whole, and each
error is traced back to the assignment that it came from.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from recserve.server.bundle.errors import RecserveError
from recserve.server.config.keys import KeyPath, children, find, nearest
from recserve.server.config.model import Settings
from recserve.server.pipeline.settings import NAME_RULE
from recserve.server.text import printable

PREFIX = "RECSERVE_"
"""Environment variables that begin so are settings; `__` stands for the dot of a key."""

NOT_SETTINGS = frozenset({"RECSERVE_CPU", "RECSERVE_RETAIL", "RECSERVE_SANITIZE"})
"""Variables with the prefix that other parts read: RECSERVE_CPU picks the kernels' variant, RECSERVE_RETAIL names the
data of the retail example's tests, RECSERVE_SANITIZE is read by the build."""

_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
"""Kubernetes describes every Service to its pods: one called "recserve" yields RECSERVE_SERVICE_HOST and the like."""

_KUBERNETES_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""The value of RECSERVE_PORT, where Kubernetes set it."""

_UNREADABLE = "cannot be read: it is nested too deeply, not UTF-8, or a number of thousands of digits"

Value = Any
"""What TOML and JSON can say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: the dotted key, where its value came from, and what is wrong with it."""

    key: str
    origin: str
    message: str

    def __str__(self) -> str:
        """On one line: a name may hold anything, line breaks too."""
        return printable(f"{self.key or 'configuration'} ({self.origin}): {self.message}")


class ConfigError(RecserveError):
    """The configuration cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        super().__init__("\n  ".join((f"{count} in the configuration:", *map(str, self.problems))))


@dataclass(frozen=True, slots=True)
class Assignment:
    """A value for a key, and where it was said ("flag --port", "environment RECSERVE_SERVER__PORT", "file x.toml")."""

    path: KeyPath
    value: Value
    origin: str

    @classmethod
    def from_text(cls, path: KeyPath, text: str, origin: str) -> Assignment:
        """The value of an environment variable or of `--set`: read as TOML or JSON unless the key wants a text.

        What is neither stays a text, for validation to name. Bytes that are not UTF-8 become U+FFFD.
        """
        text = text.encode(errors="surrogateescape").decode(errors="replace")
        key = find(path)
        plain = key is None or key.kind in ("text", "path", "time", "choice")
        return cls(path, text if plain else _parse(text), origin)

    def leaves(self) -> Iterator[Assignment]:
        """The same as one assignment per value; an empty table stays, since it makes the section exist.

        So does a table where none belongs, for validation to name. Of an empty document nothing stays: it is no
        section.
        """
        key = find(self.path)
        if key is None or key.kind != "table" or not isinstance(self.value, dict) or not self.value:
            if self.path:
                yield self
            return
        for name, value in self.value.items():
            yield from Assignment((*self.path, name), value, self.origin).leaves()


def load_settings(
    *, file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Iterable[Assignment] = ()
) -> Settings:
    """Read, merge and validate.

    Args:
        file: TOML; relative paths in it are taken from its directory.
        environment: such as `os.environ`; other variables than settings are ignored.
        flags: in the order given on the command line; later ones win.

    Raises:
        ConfigError: with every error, or with why the file cannot be read.
    """
    merged = _Merged()
    for assignment in (*_from_file(file), *_from_environment(environment or {}), *flags):
        for leaf in assignment.leaves():
            merged.assign(leaf)
    problems = merged.problems
    try:
        # JSON, because strictness then still knows paths and lists, yet `port = true` and `port = "5000"` are errors.
        found = Settings.model_validate_json(json.dumps(merged.tree, default=str), strict=True)
    except ValidationError as error:
        problems += [_problem(details, merged) for details in error.errors() if not _follows(details)]
    if problems:
        raise ConfigError(problems)
    return found


@dataclass(slots=True)
class _Merged:
    """The tree of values, by path where each was said last, and what is wrong with those that are not in the tree."""

    tree: dict[str, Value] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def assign(self, leaf: Assignment) -> None:
        if problem := _misplaced(leaf) or _unreadable(leaf):
            self.problems.append(Problem(".".join(leaf.path), leaf.origin, problem))
            return
        *parents, name = leaf.path
        table = self.tree
        for depth, parent in enumerate(parents, 1):
            if table.get(parent) is None:  # a null stands for no section, until a stronger source has one
                table[parent] = {}
                self.origins.pop(leaf.path[:depth], None)
            table = table[parent]
            if not isinstance(table, dict):
                return  # a value where a section should be: validation will name it
        if leaf.value == {} and isinstance(table.get(name), dict):
            return
        table[name] = leaf.value
        replaced = [key for key in self.origins if key[: len(leaf.path)] == leaf.path]
        for key in replaced:
            del self.origins[key]
        self.origins[leaf.path] = leaf.origin

    def origin_of(self, path: KeyPath) -> str:
        """Where the value at `path` was said: itself, what holds it, or what it holds; else it is a default."""
        for length in range(len(path), 0, -1):
            if (origin := self.origins.get(path[:length])) is not None:
                return origin
        below = {origin: None for key, origin in self.origins.items() if key[: len(path)] == path}
        return ", ".join(below) if path and below else "by default"


def _misplaced(leaf: Assignment) -> str:
    """Why the leaf cannot have a place in the tree: what should hold it is known, but no table. Empty: it can."""
    for length in range(1, len(leaf.path)):
        holder = find(leaf.path[:length])
        if holder is None:
            break  # validation will name it
        if holder.kind == "list":
            return f"cannot be set inside a list; give the whole of {_spelt(leaf.path[:length], leaf.origin)}"
        if holder.kind != "table":
            return f"no such key; {_spelt(leaf.path[:length], leaf.origin)} is {holder.allowed}"
    return ""


def _unreadable(leaf: Assignment) -> str:
    """Why the document that is validated could not hold the leaf. Empty: it can."""
    alone = reduce(lambda inner, name: {name: inner}, reversed(leaf.path), leaf.value)
    try:
        from_json(json.dumps(alone, default=str))
    except (ValueError, RecursionError):
        return _UNREADABLE
    return ""


def _from_file(file: Path | None) -> list[Assignment]:
    if file is None:
        return []
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([Problem("", f"file {file}", f"cannot be read: {reason}")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem("", f"file {file}", f"is not TOML: {error}")]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem("", f"file {file}", _UNREADABLE)]) from error
    return [Assignment((), _anchored((), tree, file.parent), f"file {file}")]


def _anchored(path: KeyPath, value: Value, base: Path) -> Value:
    """The same tree with relative paths taken from the file's directory."""
    key = find(path)
    if key is None:
        return value  # nothing in it is a path, and it may be nested too deeply to look
    if isinstance(value, dict):
        return {name: _anchored((*path, name), child, base) for name, child in value.items()}
    if isinstance(value, list):
        return [_anchored((*path, str(index)), child, base) for index, child in enumerate(value)]
    # No path at all is left as it is, for validation to name.
    return str(base / value) if key.kind == "path" and isinstance(value, str) and value else value


def _from_environment(environment: Mapping[str, str]) -> list[Assignment]:
    return [
        Assignment.from_text(tuple(name.removeprefix(PREFIX).lower().split("__")), text, f"environment {name}")
        for name, text in sorted(environment.items())
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and not _from_kubernetes(name, text)
    ]


def _from_kubernetes(name: str, text: str) -> bool:
    if "__" in name:
        return False
    return bool(_KUBERNETES.search(name)) or (name.endswith("_PORT") and bool(_KUBERNETES_ADDRESS.match(text)))


def _parse(text: str) -> Value:
    """TOML's and JSON's values; anything else is the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could have begun a second key


def _follows(details: ErrorDetails) -> bool:
    """Whether a list is too short only because its wrong entries, which are named already, do not count."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


def _problem(details: ErrorDetails, merged: _Merged) -> Problem:
    path = tuple(str(part) for part in details["loc"] if part != "[key]")
    origin = merged.origin_of(path[:-1] if details["type"] == "missing" else path)
    return Problem(".".join(path), origin, _message(path, details, origin))


def _message(path: KeyPath, details: ErrorDetails, origin: str) -> str:
    if path == ("bundles",) and details["type"] in ("missing", "too_short"):
        return f"no bundle to serve; give --bundle PATH, [[bundles]] in the file, or {PREFIX}BUNDLES"
    if details["type"] == "missing":
        return f"is required: {_described(path)}"
    if details["type"] == "extra_forbidden":
        return f"no such key{_suggestion(path, origin)}"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "string_pattern_mismatch":
        return f"found {_shown(details['input'])}, allowed is {NAME_RULE}"
    return f"found {_shown(details['input'])}, allowed is {_described(path)}"


def _described(path: KeyPath) -> str:
    key = find(path)
    return "" if key is None else f"{key.allowed} [{key.unit}]" if key.unit else key.allowed


def _suggestion(path: KeyPath, origin: str) -> str:
    if meant := nearest(path):
        return f"; did you mean {_spelt(tuple(meant.split('.')), origin)}?"
    names = children(path[:-1])
    return f"; there are {', '.join(names)}" if names else ""


def _spelt(path: KeyPath, origin: str) -> str:
    """A key as its dotted name, and as the variable where the environment is spoken of."""
    variable = f" ({PREFIX}{'__'.join(path).upper()})" if origin.startswith("environment") else ""
    return ".".join(path) + variable


def _shown(value: Value) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:79] + "…"
