"""One export: every part is validated against its source, and the bundle gets its name only when all of it holds."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from recserve.bundle.v1.manifest_pb2 import Features, IndexKind, Manifest, SourceArtifact, Space
from recserve.exporters.bitsliced import write_forest_set
from recserve.exporters.catalogue import ItemTable, read_items, write_catalogue
from recserve.exporters.consistency import check_spec, source_files
from recserve.exporters.errors import ExportError
from recserve.exporters.evaluate import evaluate
from recserve.exporters.evaluation.results import NDCG
from recserve.exporters.golden import golden_files, latest_event, make_golden, snapshot_users
from recserve.exporters.oracle import load_models
from recserve.exporters.ranker import CompiledRanker, compile_ranker
from recserve.exporters.report import Check, ExportReport
from recserve.exporters.report_page import REPORT_FILE, render_page
from recserve.exporters.snapshot import check_snapshot_spec, export_snapshot
from recserve.exporters.sources import score_columns, write_sources
from recserve.exporters.spaces import export_space
from recserve.exporters.spec import BundleSpec, EvaluationSpec, SnapshotSpec, SpaceSpec
from recserve.exporters.strings import distinct_keys
from recserve.exporters.towers import TowerContext
from recserve.exporters.writer import BundleWriter, staged_directory
from recserve.kernels import ids
from recserve.kernels.features import ColumnValues, ItemArrays, recent_items
from recserve.server.bundle import layout
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.bundle.files import file_sha256
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.golden_set import REQUESTS_FILE, STAGES_FILE, GoldenSet
from recserve.server.pipeline.host import this_host
from recserve.server.pipeline.pipeline import Pipeline, open_engines, open_pipeline
from recserve.server.pipeline.ranker import ENGINES, has_engine
from recserve.server.pipeline.towers import TowerUsers
from recserve.server.pipeline.types import UserState, no_rows

TRIAL_USERS = 1000
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
        BundleError: the snapshot is not one for this bundle, or the finished bundle does not answer as its models do;
            nothing is left under `out`.
    """
    check_spec(spec, has_snapshot=snapshot is not None)
    return _export(spec, out, snapshot, None, console)


def export_all(
    spec: BundleSpec, users: SnapshotSpec | None, out: Path, *, console: Console | None = None
) -> ExportReport:
    """Write a bundle and its user snapshot into one directory, which appears when both are complete.

    Args:
        spec: of the bundle.
        users: of the snapshot; None: the bundle goes without.
        out: the directory, which must not exist; receives `bundle`, and `snapshot` where there are users.
        console: where progress is shown; None: standard error.

    Returns:
        See `export_bundle`.

    Raises:
        ExportError, BundleError: see `export_bundle`.
    """
    check_spec(spec, has_snapshot=users is not None)
    if users is not None:
        check_snapshot_spec(users)
    snapshot = items = None
    seconds: dict[str, float] = {}
    with staged_directory(out) as directory:
        if users is not None:
            with _progress(console) as progress, _step("user snapshot", progress, seconds):
                items = _read_items(spec)
                snapshot = export_snapshot(users, spec.features, items.vocabularies, directory / "snapshot")
        report = _export(spec, directory / "bundle", snapshot, items, console)
    return replace(report, path=out / "bundle", seconds={**seconds, **report.seconds})


def _export(
    spec: BundleSpec, out: Path, snapshot: Path | None, items: ItemTable | None, console: Console | None
) -> ExportReport:
    """See `export_bundle`; `items` are those of the specification, where they have been read."""
    with BundleWriter(out) as writer, _progress(console) as progress:
        return _Export(spec, writer, progress, snapshot).run(items)


def _read_items(spec: BundleSpec) -> ItemTable:
    return read_items(spec.catalogue, spec.features, score_columns(spec.sources))


class _Export:
    """The steps of one export, in order."""

    def __init__(self, spec: BundleSpec, writer: BundleWriter, progress: Progress, snapshot: Path | None) -> None:
        self._spec = spec
        self._writer = writer
        self._progress = progress
        self._snapshot = None if snapshot is None else open_snapshot(snapshot)
        self._time_us = spec.golden_time_us or self._latest_event() or time.time_ns() // 1000
        self._report = ExportReport(path=writer.target)

    def run(self, items: ItemTable | None) -> ExportReport:
        """All steps; the last one gives the bundle its name. None: items are read first."""
        manifest = self._begin()
        with self._step("items"):
            items = _read_items(self._spec) if items is None else items
            self._write_features(manifest, items)
            self._write_items(manifest, items)
        with self._step("vector spaces"):
            self._write_spaces(manifest, items)
        with self._step("candidate sources"):
            self._write_sources(manifest, items)
        with self._step("rankers"):
            rankers = self._compile_rankers()
            manifest.forests.extend(ranker.forest for ranker in rankers)
            if rankers:
                self._write_forest_set(manifest, items, rankers)
        with self._step("golden requests"):
            bundle, golden = self._write_golden(manifest)
        if self._spec.evaluation is not None and self._snapshot is not None:
            with self._step("evaluation"):
                self._evaluate(manifest, bundle, self._snapshot, self._spec.evaluation)
        with self._step("verification"):
            self._finish(manifest, bundle, golden)
        return self._report

    def _begin(self) -> Manifest:
        spec = self._spec
        digest = functools.cache(file_sha256)  # a table may be there in several roles
        manifest = Manifest(
            name=spec.name,
            version=spec.version,
            created_by=f"recserve {importlib.metadata.version('recserve')}",
            exporter_host=this_host(),
            made_from=[_artifact(role, source, digest) for role, source in source_files(spec)],
        )
        if self._snapshot is not None:
            manifest.made_from.append(
                _artifact("user snapshot", self._snapshot.path / layout.SNAPSHOT_MANIFEST, digest)
            )
        manifest.created.GetCurrentTime()
        manifest.created.nanos = 0
        manifest.offline_metrics.update(dict(spec.offline_metrics))
        self._report.manifest = manifest
        return manifest

    def _write_features(self, manifest: Manifest, items: ItemTable) -> None:
        schema, vocabularies = self._spec.features, {name: list(v) for name, v in items.vocabularies.items()}
        user_hash = schema.user_hash(vocabularies)
        if self._snapshot is not None and self._snapshot.user_hash != user_hash:
            raise BundleMismatchError(
                "the user snapshot was made for other feature definitions or vocabularies: export it again for these",
                field="user_hash",
                expected=user_hash,
                found=self._snapshot.user_hash,
            )
        self._writer.text(layout.FEATURES, schema.to_json())
        manifest.features.CopyFrom(
            Features(count=len(schema.features), schema_hash=schema.schema_hash(vocabularies), user_hash=user_hash)
        )

    def _write_items(self, manifest: Manifest, items: ItemTable) -> None:
        entry = write_catalogue(self._writer, self._spec.catalogue, self._spec.features, items)
        manifest.catalogue.CopyFrom(entry)
        self._check("items", "ids, keys, types and vocabularies of the table", f"{entry.items:,} items")

    def _write_spaces(self, manifest: Manifest, items: ItemTable) -> None:
        users = None if self._snapshot is None else self._trial_users(self._snapshot)
        context = TowerContext.of(self._spec.features, self._spec.catalogue, items, users)
        for spec in self._spec.spaces:
            self._check_users(spec)
            space = export_space(self._writer, spec, context, self._progress, self._check)
            manifest.spaces.append(space)
            self._check_space(spec, space)

    def _check_users(self, spec: SpaceSpec) -> None:
        """Users without vectors get no candidates of the space, and say nothing: wrong ids would not be noticed."""
        if self._snapshot is None or spec.user_ids is None:
            return
        what = f"user ids of space {spec.name!r}"
        keys = distinct_keys(spec.user_ids, what)
        users = np.load(self._snapshot.path / layout.string_table_file(layout.USER_IDS, "keys"), mmap_mode="r")
        known = int(np.isin(users, keys).sum())
        if not known:
            theirs = self._snapshot.user_ids(np.arange(min(3, self._snapshot.size)))
            raise ExportError(
                f"{what}: no user of the snapshot has a vector: the first ids are {_listed(spec.user_ids[:3])}, those "
                f"of the snapshot {_listed(theirs)}: give the ids of the users table"
            )
        self._check(f"users of {spec.name}", "the user snapshot", f"{known:,} of {len(users):,} have a vector")

    def _check_space(self, spec: SpaceSpec, space: Space) -> None:
        for kind, tower, source in (
            ("user tower", space.user_tower, spec.user_tower),
            ("item tower", space.item_tower, spec.item_tower),
        ):
            if source is not None and isinstance(source.model, Path):
                self._check(
                    f"{kind} of {spec.name}", "awkward and real rows, each alone and in batches", "same vectors"
                )
            elif source is not None:
                difference = f"largest difference {tower.max_abs_difference:.1e}"
                self._check(f"{kind} of {spec.name}", "the PyTorch module, on awkward and real rows", difference)
        if spec.item_tower is None or (spec.user_tower is None and spec.user_vectors is not None):
            length = "finite, of length 1" if space.normalized else "finite"
            self._check(f"given vectors of {spec.name}", f"shape and values: {length}", f"{space.dim} dimensions")
        if space.index.kind != IndexKind.EXACT:
            index = space.index
            found = f"recall@{index.recall_k} {index.recall:.4f}, with 95% confidence at least {index.recall_low:.4f}"
            self._check(f"index of {space.name}", f"exact search on {index.queries} held-out queries", found)

    def _write_sources(self, manifest: Manifest, items: ItemTable) -> None:
        manifest.candidate_sources.CopyFrom(write_sources(self._writer, self._spec, items, self._check))
        for each in manifest.candidate_sources.lists:
            self._check(f"source {each.name}", "its table", f"{each.entries:,} entries in {each.lists:,} lists")

    def _compile_rankers(self) -> list[CompiledRanker]:
        names = self._spec.features.names
        rankers = []
        for each in self._spec.rankers:
            task = self._progress.add_task(f"  compile ranker {each.objective}", total=None)

            def advance(done: int, total: int, task: TaskID = task) -> None:
                self._progress.update(task, completed=done, total=total)

            ranker = compile_ranker(each, names, self._writer.root / "ranker", on_progress=advance)
            self._progress.remove_task(task)
            rankers.append(ranker)
            if ranker.library:
                what = f"{ranker.source.source}'s margins on {ranker.rows_verified:,} rows"
                self._check(f"tl2cgen {each.objective}", what, "equal bit for bit")
            elif ranker.no_library:
                self._check(f"tl2cgen {each.objective}", ranker.no_library, "no library, bitsliced only")
        return rankers

    def _write_forest_set(self, manifest: Manifest, items: ItemTable, rankers: Sequence[CompiledRanker]) -> None:
        arrays = ItemArrays(features=items.features, times=items.times, vectors={})
        cardinalities = {name: len(values) for name, values in items.vocabularies.items()}
        models = {ranker.forest.objective: ranker.source for ranker in rankers}
        entry, rows = write_forest_set(self._writer, models, self._spec.features, cardinalities, arrays)
        manifest.forest_set.CopyFrom(entry)
        sources = " and ".join(dict.fromkeys(model.source for model in models.values()))
        self._check("bit-sliced forests", f"margins of {sources} on {rows:,} rows", "equal bit for bit")

    def _write_golden(self, manifest: Manifest) -> tuple[Bundle, GoldenSet]:
        """What was written, opened for the first time."""
        self._writer.seal(manifest)
        bundle = open_bundle(self._writer.root, verify=False)
        users = self._golden_users(bundle)
        golden = make_golden(bundle, users, requests=self._spec.golden_requests, time_us=self._time_us)
        requests, stages, entry = golden_files(golden)
        self._writer.text(REQUESTS_FILE, requests)
        self._writer.path(STAGES_FILE).write_bytes(stages)
        manifest.golden.CopyFrom(entry)
        return bundle, golden

    def _golden_users(self, bundle: Bundle) -> list[tuple[str, UserState]]:
        if self._snapshot is None:
            return []
        self._snapshot.check_fits(bundle)
        return snapshot_users(self._snapshot, self._spec.golden_user_ids, self._spec.golden_requests)

    def _evaluate(self, manifest: Manifest, bundle: Bundle, snapshot: Snapshot, spec: EvaluationSpec) -> None:
        """Measure what is about to be sealed; a bundle that falls short of the specification's minimum is refused."""
        task = self._progress.add_task("  users", total=None)
        evaluation = evaluate(
            Pipeline(bundle, open_engines(bundle, device="cpu")),
            snapshot,
            spec,
            on_progress=lambda done, total: self._progress.update(task, completed=done, total=total),
        )
        self._progress.remove_task(task)
        evaluation.check(spec.minimum)
        manifest.offline_metrics.update(evaluation.headline())
        self._report.evaluation = evaluation
        for name, mode in evaluation.modes.items():
            against = f"what {mode.users:,} users took after the cut-off"
            self._check(f"lists, mode {name}", against, f"{NDCG} {mode.systems['full'][NDCG].value:.4f}")

    def _finish(self, manifest: Manifest, bundle: Bundle, golden: GoldenSet) -> None:
        def check(root: Path) -> None:
            written = open_bundle(root)
            for engine in (each for each in ENGINES if has_engine(manifest, each)):
                open_pipeline(written, ranker_engine=engine, allow_native_code=True)

        against = "the source models, stage by stage, by a pipeline over reference code"
        self._check("whole bundle", against, f"{manifest.golden.requests} golden requests answered")
        models = load_models(self._writer.root, manifest.forests)
        self._writer.text(REPORT_FILE, render_page(self._report, bundle, golden, models))
        self._writer.commit(manifest, check)

    def _trial_users(self, snapshot: Snapshot) -> TowerUsers:
        """Some of a snapshot's users as towers read them."""
        chosen = np.unique(np.linspace(0, snapshot.size - 1, min(TRIAL_USERS, snapshot.size)).astype(np.int64))
        keys, slots = (np.load(self._writer.path(_ids_file(part)), mmap_mode="r") for part in ("keys", "slots"))
        recent = [_recent(snapshot, int(row), keys, slots) for row in chosen]
        return TowerUsers(
            user=ColumnValues.concat([snapshot.columns.row(int(row)) for row in chosen]),
            recent_offsets=np.cumsum([0, *(rows.size for rows in recent)], dtype=np.int64),
            recent_rows=np.concatenate(recent),
            time_us=np.full(chosen.size, self._time_us, np.int64),
        )

    def _latest_event(self) -> int:
        return 0 if self._snapshot is None else latest_event(self._snapshot)

    def _check(self, part: str, against: str, result: str) -> None:
        self._report.checks.append(Check(part, against, result))

    def _step(self, name: str) -> AbstractContextManager[None]:
        return _step(name, self._progress, self._report.seconds)


@contextmanager
def _step(name: str, progress: Progress, seconds: dict[str, float]) -> Iterator[None]:
    """Times a step, shows it while it runs, and prints a line when it is done."""
    task = progress.add_task(name, total=None)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    progress.remove_task(task)
    progress.console.print(f"{name:<34} {seconds[name]:6.1f} s", highlight=False)


def _progress(console: Console | None) -> Progress:
    """Bars while steps run; nothing of them stays."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
        transient=True,
    )


def _ids_file(part: str) -> str:
    return layout.string_table_file(layout.ITEM_IDS, part)


def _listed(ids: Iterable[object]) -> str:
    return ", ".join(repr(str(each)) for each in ids)


def _recent(snapshot: Snapshot, row: int, keys: NDArray[np.uint64], slots: NDArray[np.uint32]) -> NDArray[np.int64]:
    return recent_items(no_rows(), ids.lookup(keys, slots, np.ascontiguousarray(snapshot.state(row).keys)))


def _artifact(role: str, source: object, digest: Callable[[Path], str]) -> SourceArtifact:
    if not isinstance(source, Path):
        return SourceArtifact(role=role)
    return SourceArtifact(role=role, path=source.name, sha256=digest(source))
