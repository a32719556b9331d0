"""What is in a bundle or a user snapshot, whether a bundle is whole, and what sets two of them apart.

Tables for the command line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.writer import AnyManifest
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.errors import BundleUnsupportedError
from recserve.server.bundle.layout import SNAPSHOT_MANIFEST
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.pipeline.pipeline import open_pipeline
from recserve.server.pipeline.ranker import ENGINES, has_engine

_SHOWN: Final = 5
_USER_PART: Final = "user part of the definitions"
"""A snapshot serves the bundles that have the same."""


def inspect_artifact(path: Path) -> RenderableType:
    """What a bundle or a user snapshot holds, whichever it is; see `inspect_bundle`."""
    return inspect_snapshot(path) if (path / SNAPSHOT_MANIFEST).is_file() else inspect_bundle(path)


def inspect_bundle(path: Path) -> RenderableType:
    """What a bundle holds. Its structure is checked, checksums are not.

    Args:
        path: the bundle's directory.

    Raises:
        BundleError: it cannot be opened.
    """
    bundle = open_bundle(path, verify=False)
    manifest = bundle.manifest
    parts = [
        _overview(bundle),
        _columns(bundle),
        _spaces(manifest.spaces),
        _sources(manifest),
        _forests(manifest),
        _metrics(manifest),
    ]
    return Group(*(part for part in parts if part is not None))


def inspect_snapshot(path: Path) -> RenderableType:
    """What a user snapshot holds. Its structure is checked, checksums are not.

    Args:
        path: the snapshot's directory.

    Raises:
        BundleError: it cannot be opened.
    """
    snapshot = open_snapshot(path, verify=False)
    manifest, columns = snapshot.manifest, snapshot.columns
    widths = {
        "number": columns.numbers.shape[1],
        "category": columns.codes.shape[1],
        "time": columns.times.shape[1],
        "categories": (columns.list_offsets.size - 1) // snapshot.size,
    }
    table = _table(f"user snapshot {snapshot.version}", "what", "value")
    rows = {
        **_origin(manifest),
        "users": f"{snapshot.size:,}",
        "columns": ", ".join(f"{width} {kind}" for kind, width in widths.items() if width) or "none",
        "history": f"{manifest.history_entries:,} entries",
        "event types": ", ".join(manifest.event_types) or "none",
        _USER_PART: snapshot.user_hash[:12],
    }
    for what, value in rows.items():
        _add(table, what, value)
    return table


def verify_bundle(path: Path, *, allow_native_code: bool) -> RenderableType:
    """Check everything about a bundle: files, contents, and that it answers its golden requests.

    Args:
        path: the bundle's directory.
        allow_native_code: also answer them with the bundle's native code, the engine "tl2cgen".

    Raises:
        BundleError: naming the first thing found wrong.
    """
    start = time.perf_counter()
    bundle = open_bundle(path, verify=True)
    allowed = ENGINES if allow_native_code else ENGINES[:1]
    engines = [engine for engine in allowed if has_engine(bundle.manifest, engine)]
    if bundle.manifest.forests and not engines:
        raise BundleUnsupportedError(
            "the bundle has forests for none of the allowed engines: allow its native code, or export it again",
            field="forest_set",
            expected=list(allowed),
        )
    engines = engines or [ENGINES[0]]
    for engine in engines:
        open_pipeline(bundle, ranker_engine=engine, allow_native_code=allow_native_code, every_item=True)
    seconds = time.perf_counter() - start
    size = sum(file.bytes for file in bundle.manifest.files.values())
    by = f" by {' and '.join(engines)}" if bundle.manifest.forests else ""
    return Text(
        f"{bundle.name} {bundle.version} is whole: {len(bundle.manifest.files)} files, {human_bytes(size)}, "
        f"checksums and contents verified and {bundle.manifest.golden.requests} golden requests answered{by} in "
        f"{seconds:.1f} s"
    )


def diff_bundles(old: Path, new: Path) -> RenderableType:
    """What sets two bundles apart, from the first to the second.

    Args:
        old: a bundle's directory.
        new: another's.

    Raises:
        BundleError: one of them cannot be opened.
    """
    a, b = open_bundle(old, verify=False), open_bundle(new, verify=False)
    table = _table(f"{a.name} {a.version} → {b.name} {b.version}", "what", "change")
    before, after = _facts(a), _facts(b)
    for what in dict.fromkeys((*before, *after)):
        if before.get(what) != after.get(what):
            _add(table, what, f"{before.get(what, '—')} → {after.get(what, '—')}")
    for what, removed, added in _set_changes(a, b):
        if removed.count or added.count:
            # Below each other: there is room for names, which break only where they are longer than a line.
            _add(table, what, "\n".join(filter(None, (removed.signed("-"), added.signed("+")))))
    return table if table.row_count else Text("the bundles do not differ but for the time of their making")


def human_bytes(size: int) -> str:
    """A size in the largest binary unit that keeps it at 1 or more, such as "4.9 GiB"."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row as it stands: names and ids may hold what would otherwise be markup."""
    table.add_row(*map(Text, cells))


def _overview(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    table = _table(f"bundle {bundle.name} {bundle.version}", "what", "value")
    rows = {
        **_origin(manifest),
        "made on": f"{manifest.exporter_host.machine} {manifest.exporter_host.cpu}".strip() or "unknown",
        "items": f"{bundle.catalogue.size:,}",
        "features": f"{len(bundle.schema.features)}",
        _USER_PART: manifest.features.user_hash[:12],
        "golden requests": str(manifest.golden.requests),
    }
    for source in manifest.made_from:
        rows[f"made from {source.role}"] = f"{source.path or 'memory'} {source.sha256[:12]}".strip()
    for what, value in rows.items():
        _add(table, what, value)
    return table


def _origin(manifest: AnyManifest) -> dict[str, str]:
    size = sum(file.bytes for file in manifest.files.values())
    return {
        "made": f"{manifest.created.ToJsonString()} by {manifest.created_by}",
        "format": str(manifest.schema_version),
        "files": f"{len(manifest.files)}, {human_bytes(size)}",
    }


def _columns(bundle: Bundle) -> Table:
    roles = {name: part for part, name in bundle.catalogue.roles.items()}
    table = _table("item columns", "column", "type", "vocabulary", "role")
    for column in bundle.manifest.catalogue.columns:
        values = f"{column.vocabulary} ({bundle.cardinalities[column.vocabulary]:,})" if column.vocabulary else ""
        kind = manifest_pb2.ColumnType.Name(column.type).lower()
        _add(table, column.name, kind, values, roles.get(column.name, ""))
    return table


def _spaces(spaces: Sequence[manifest_pb2.Space]) -> Table | None:
    if not spaces:
        return None
    table = _table("vector spaces", "space", "dimensions", "metric", "users", "search", "recall")
    for space in spaces:
        _add(table, space.name, str(space.dim), _metric(space), _users(space), _search(space), _recall(space))
    return table


def _sources(manifest: manifest_pb2.Manifest) -> Table | None:
    if not manifest.HasField("candidate_sources"):
        return None
    table = _table("candidate sources beside the spaces", "source", "what it proposes")
    for name, described in _source_facts(manifest).items():
        _add(table, name, described)
    return table


def _source_facts(manifest: manifest_pb2.Manifest) -> dict[str, str]:
    """What the manifest says of each source, by name."""
    sources, facts = manifest.candidate_sources, {}
    if sources.similar_space:
        facts["similar"] = f"near the {sources.similar_items} latest items in {sources.similar_space}"
    if manifest.catalogue.roles.launch_time:
        facts["new"] = f"launched in the last {sources.new_days:g} days"
    for each in sources.lists:
        kind = manifest_pb2.ListsKind.Name(each.kind).lower().replace("_", " ")
        by = f"{kind} {', '.join(each.columns)}" if each.columns else kind
        facts[each.name] = f"{by}: {each.entries:,} entries in {each.lists:,} lists"
    return facts


def _forests(manifest: manifest_pb2.Manifest) -> Table | None:
    if not manifest.forests:
        return None
    table = _table("forests", "objective", "model", "weight", "trees", "features", "calibration", "engines")
    for forest in manifest.forests:
        engines = ["bitsliced"] if manifest.HasField("forest_set") else []
        engines += [f"tl2cgen ({native.machine})" for native in forest.native]
        _add(
            table,
            forest.objective,
            forest.source,
            f"{forest.weight:g}",
            str(forest.trees),
            str(forest.features),
            manifest_pb2.CalibrationKind.Name(forest.calibration.kind).lower(),
            ", ".join(engines) or "none",
        )
    return table


def _metrics(manifest: manifest_pb2.Manifest) -> Table | None:
    if not manifest.offline_metrics.fields:
        return None
    table = _table("offline metrics", "metric", "value")
    for name, value in sorted(manifest.offline_metrics.items()):
        _add(table, name, f"{value:.6g}" if isinstance(value, float) else str(value))
    return table


def _metric(space: manifest_pb2.Space) -> str:
    name = manifest_pb2.Metric.Name(space.metric).lower().replace("_", " ")
    return f"{name}, length 1" if space.normalized else name


def _users(space: manifest_pb2.Space) -> str:
    if space.HasField("user_tower"):
        return "tower"
    return f"{space.user_vectors:,} vectors" if space.user_vectors else "none"


def _search(space: manifest_pb2.Space) -> str:
    settings = [f"{name}={value}" for name, value in sorted(space.index.parameters.items())]
    kind = manifest_pb2.IndexKind.Name(space.index.kind).lower()
    return " ".join(filter(None, (kind, space.index.factory, *settings)))


def _recall(space: manifest_pb2.Space) -> str:
    return f"{space.index.recall:.4f} @ {space.index.recall_k}" if space.index.recall_k else ""


def _facts(bundle: Bundle) -> dict[str, str]:
    """Single values of a bundle by name, for comparison."""
    manifest = bundle.manifest
    facts = {
        "name": bundle.name,
        "version": bundle.version,
        "made by": manifest.created_by,
        "made on": f"{manifest.exporter_host.machine} {manifest.exporter_host.cpu}".strip(),
        "format": str(manifest.schema_version),
        "items": f"{bundle.catalogue.size:,}",
        "feature definitions": manifest.features.schema_hash[:12],
        _USER_PART: manifest.features.user_hash[:12],
    }
    for part, name in bundle.catalogue.roles.items():
        facts[f"role {part}"] = name
    for space in manifest.spaces:
        described = (f"{space.dim} dimensions", _metric(space), f"users: {_users(space)}", _search(space))
        facts[f"space {space.name}"] = ", ".join(described)
    if manifest.HasField("candidate_sources"):
        facts |= {f"source {name}": described for name, described in _source_facts(manifest).items()}
    for forest in manifest.forests:
        facts[f"forest {forest.objective}"] = _forest_fact(forest)
    if manifest.HasField("forest_set"):
        facts["forest set"] = manifest.forest_set.set_hash[:12]
    for name, value in manifest.offline_metrics.items():
        facts[f"metric {name}"] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return facts


def _forest_fact(forest: manifest_pb2.Forest) -> str:
    return f"{forest.source}, {forest.trees} trees, {forest.features} features, {forest.weight:g}"


@dataclass(frozen=True, slots=True)
class _Names:
    """How many there are, and the first few of them."""

    count: int
    first: Sequence[str]

    def signed(self, sign: str) -> str:
        """Such as "+2: a, b"; nothing where there are none."""
        more = ", …" if self.count > len(self.first) else ""
        return f"{sign}{self.count:,}: {', '.join(self.first)}{more}" if self.count else ""


def _set_changes(a: Bundle, b: Bundle) -> Iterable[tuple[str, _Names, _Names]]:
    """By what it is: what only the first has, and what only the second has."""
    yield "items", _items_only_in(a.catalogue, b.catalogue), _items_only_in(b.catalogue, a.catalogue)
    yield _set_change("columns", a.catalogue.columns, b.catalogue.columns)
    yield _set_change("features", a.schema.names, b.schema.names)
    for name in dict.fromkeys((*a.vocabularies, *b.vocabularies)):
        yield _set_change(f"values of {name}", _values(a, name), _values(b, name))
    before, after = a.manifest.files, b.manifest.files
    yield _set_change("files", sorted(before), sorted(after))
    changed = [file for file in sorted(before) if file in after and before[file].sha256 != after[file].sha256]
    yield _set_change("files with other contents", (), changed)


def _set_change(what: str, a: Iterable[str], b: Iterable[str]) -> tuple[str, _Names, _Names]:
    before, after = dict.fromkeys(a), dict.fromkeys(b)
    removed = [name for name in before if name not in after]
    added = [name for name in after if name not in before]
    return what, _Names(len(removed), removed[:_SHOWN]), _Names(len(added), added[:_SHOWN])


def _values(bundle: Bundle, vocabulary: str) -> Sequence[str]:
    return bundle.vocabularies[vocabulary].values if vocabulary in bundle.vocabularies else ()


def _items_only_in(one: Catalogue, other: Catalogue) -> _Names:
    """Compared by key, so that no id becomes a string that is not shown."""
    keys = one.keys_of_rows(np.arange(one.size))
    rows = np.flatnonzero(other.rows_of_keys(keys) < 0)
    return _Names(len(rows), one.ids_of_rows(rows[:_SHOWN]))
