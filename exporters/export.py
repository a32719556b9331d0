"""One export: every part is validated against its source, and the bundle gets its name only when all of it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recserve.bundle.v1.manifest_pb2 import Features, IndexKind, Manifest, SourceArtifact
from recserve.exporters.catalogue import ItemTable, read_items, write_catalogue
from recserve.exporters.errors import ExportError
from recserve.exporters.golden import golden_files, latest_event, make_golden, snapshot_users
from recserve.exporters.oracle import load_boosters
from recserve.exporters.ranker import compile_ranker
from recserve.exporters.report import Check, ExportReport, render_html
from recserve.exporters.spaces import export_space
from recserve.exporters.spec import BundleSpec
from recserve.exporters.towers import TowerContext
from recserve.exporters.writer import BundleWriter
from recserve.kernels import ids
from recserve.kernels.features import ColumnValues, recent_items
from recserve.server.bundle import layout
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.bundle.files import file_sha256
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.golden import REQUESTS_FILE, STAGES_FILE
from recserve.server.pipeline.host import this_host
from recserve.server.pipeline.pipeline import open_pipeline
from recserve.server.pipeline.towers import TowerUsers
from recserve.server.pipeline.types import no_rows

TRIAL_USERS = 512
"""Users whose vectors try the towers and tune the indexes, spread over the snapshot."""


def export_bundle(
    spec: BundleSpec, out: Path, *, snapshot: Path | None = None, console: Console | None = None
) -> ExportReport:
    """Write a bundle.

    Args:
        spec: what it is made of.
        out: the bundle's directory, which must not exist.
        snapshot: a user snapshot for it (see `recserve.exporters.snapshot`): its users try the towers and indexes and
            become golden requests. Without one, golden requests are those of an unknown user.
        console: where progress is shown; None: standard error.

    Returns:
        What was done and checked; `report.table()` prints it.

    Raises:
        ExportError: an input cannot be used; nothing is left under `out`.
        BundleError: the finished bundle does not answer as its models do; nothing is left under `out`.
    """
    with BundleWriter(out) as writer, _progress(console) as progress:
        return _Export(spec, writer, progress, snapshot).run()


class _Export:
    """The steps of one export, in order."""

    def __init__(self, spec: BundleSpec, writer: BundleWriter, progress: Progress, snapshot: Path | None) -> None:
        self._spec = spec
        self._writer = writer
        self._progress = progress
        self._snapshot = open_snapshot(snapshot) if snapshot is not None else None
        self._report = ExportReport(path=writer.target)

    def run(self) -> ExportReport:
        """All steps; the last one gives the bundle its name."""
        manifest = self._begin()
        with self._step("items"):
            items = read_items(self._spec.catalogue, self._spec.features)
            self._write_items(manifest, items)
            self._write_features(manifest, items)
        with self._step("spaces"):
            self._write_spaces(manifest, items)
        with self._step("rankers"):
            self._write_rankers(manifest)
        with self._step("golden requests"):
            self._write_golden(manifest)
        with self._step("verification"):
            self._finish(manifest)
        return self._report

    def _begin(self) -> Manifest:
        spec = self._spec
        manifest = Manifest(
            name=spec.name,
            version=spec.version,
            exporter_host=this_host(),
            made_from=[_artifact(role, source) for role, source in _sources(spec)],
        )
        manifest.created.GetCurrentTime()
        manifest.created.nanos = 0
        manifest.offline_metrics.update(dict(spec.offline_metrics))
        self._report.manifest = manifest
        return manifest

    def _write_items(self, manifest: Manifest, items: ItemTable) -> None:
        entry = write_catalogue(self._writer, self._spec.catalogue, self._spec.features, items)
        manifest.catalogue.CopyFrom(entry)
        self._check("items", "ids, keys, types and vocabularies of the table", f"{entry.items:,} items")

    def _write_features(self, manifest: Manifest, items: ItemTable) -> None:
        schema, vocabularies = self._spec.features, {name: list(v) for name, v in items.vocabularies.items()}
        self._writer.text(layout.FEATURES, schema.to_json())
        manifest.features.CopyFrom(
            Features(
                count=len(schema.features),
                schema_hash=schema.schema_hash(vocabularies),
                user_hash=schema.user_hash(vocabularies),
            )
        )
        if self._snapshot is not None and self._snapshot.user_hash != manifest.features.user_hash:
            raise BundleMismatchError(
                "the user snapshot was made for other feature definitions or vocabularies: export it again for these",
                field="user_hash",
                expected=manifest.features.user_hash,
                found=self._snapshot.user_hash,
            )

    def _write_spaces(self, manifest: Manifest, items: ItemTable) -> None:
        spec = self._spec
        users = _trial_users(self._snapshot, items, spec.golden_time_us) if self._snapshot is not None else None
        context = TowerContext.of(spec.features, spec.catalogue, items, users)
        for each in spec.spaces:
            space = export_space(self._writer, each, context, self._progress)
            manifest.spaces.append(space)
            for tower, kind, source in (
                (space.user_tower, "user", each.user_tower),
                (space.item_tower, "item", each.item_tower),
            ):
                if source is not None:
                    against = "the ONNX file" if isinstance(source.model, Path) else "the PyTorch module"
                    difference = f"largest difference {tower.max_abs_difference:.1e}"
                    self._check(f"{kind} tower of {each.name}", f"{against}, random and golden inputs", difference)
            if space.index.kind != IndexKind.EXACT:
                recall = f"recall@{space.index.recall_k} {space.index.recall:.4f}"
                self._check(f"index of {each.name}", "exact search for held-out users", recall)

    def _write_rankers(self, manifest: Manifest) -> None:
        names = [feature.name for feature in self._spec.features.features]
        for each in self._spec.rankers:
            task = self._progress.add_task(f"ranker {each.objective!r}: compile", total=None)

            def advance(done: int, total: int, task: int = task) -> None:
                self._progress.update(task, completed=done, total=total)  # type: ignore[arg-type]  # TaskID is an int

            ranker = compile_ranker(each, names, self._writer.path("ranker/x").parent, on_progress=advance)
            manifest.forests.append(ranker.forest)
            what = f"LightGBM's margins on {ranker.rows_verified:,} rows"
            self._check(f"ranker {each.objective}", what, "equal bit for bit")

    def _write_golden(self, manifest: Manifest) -> None:
        spec = self._spec
        self._writer.seal(manifest)
        bundle = open_bundle(self._writer.root, verify=False)
        users = []
        if self._snapshot is not None:
            users = snapshot_users(self._snapshot, spec.golden_user_ids, spec.golden_requests)
        time_us = spec.golden_time_us or (latest_event(self._snapshot) if self._snapshot is not None else 0)
        golden = make_golden(bundle, users, requests=spec.golden_requests, time_us=time_us or _now_us())
        requests, stages, entry = golden_files(golden)
        self._writer.text(REQUESTS_FILE, requests)
        self._writer.path(STAGES_FILE).write_bytes(stages)
        manifest.golden.CopyFrom(entry)

    def _finish(self, manifest: Manifest) -> None:
        def check(root: Path) -> None:
            open_pipeline(open_bundle(root), allow_native_code=True)

        self._check(
            "bundle",
            "the golden requests, stage by stage, over the source models",
            f"{manifest.golden.requests} requests answered",
        )
        self._writer.seal(manifest)
        self._writer.text("report.html", render_html(self._report, load_boosters(self._writer.root, manifest.forests)))
        self._writer.commit(manifest, check)

    def _check(self, part: str, against: str, result: str) -> None:
        self._report.checks.append(Check(part, against, result))

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        task = self._progress.add_task(name, total=1)
        start = time.perf_counter()
        yield
        self._progress.update(task, completed=1)
        self._report.seconds[name] = time.perf_counter() - start


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
    )


def _trial_users(snapshot: Snapshot, items: ItemTable, time_us: int) -> TowerUsers:
    """Some of a snapshot's users as towers read them, before there is a catalogue to ask for rows."""
    chosen = np.unique(np.linspace(0, snapshot.size - 1, min(TRIAL_USERS, snapshot.size)).astype(np.int64))
    recent = [_recent(snapshot, int(row), items) for row in chosen]
    return TowerUsers(
        user=ColumnValues.concat([snapshot.columns.row(int(row)) for row in chosen]),
        recent_offsets=np.cumsum([0, *(rows.size for rows in recent)], dtype=np.int64),
        recent_rows=np.concatenate(recent),
        time_us=np.full(chosen.size, time_us or latest_event(snapshot), np.int64),
    )


def _recent(snapshot: Snapshot, row: int, items: ItemTable) -> NDArray[np.int64]:
    return recent_items(no_rows(), ids.lookup(items.ids.keys, items.ids.slots, snapshot.state(row).keys))


def _sources(spec: BundleSpec) -> Iterator[tuple[str, object]]:
    """What the bundle is made from, by part."""
    yield "items", spec.catalogue.items
    for space in spec.spaces:
        parts = {
            "item tower": space.item_tower and space.item_tower.model,
            "user tower": space.user_tower and space.user_tower.model,
            "item vectors": space.item_vectors,
            "user vectors": space.user_vectors,
        }
        yield from ((f"{part} of {space.name}", source) for part, source in parts.items() if source is not None)
    for ranker in spec.rankers:
        yield f"ranker {ranker.objective}", ranker.model


def _artifact(role: str, source: object) -> SourceArtifact:
    if not isinstance(source, Path):
        return SourceArtifact(role=role)
    if not source.is_file():
        raise ExportError(f"{role}: there is no file {source}")
    return SourceArtifact(role=role, path=source.name, sha256=file_sha256(source))


def _now_us() -> int:
    return time.time_ns() // 1000
