"""What an export did: a table for the terminal, and `report.html` for the bundle."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import lightgbm
import numpy as np
from google.protobuf.json_format import MessageToDict
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.filesize import decimal
from rich.table import Table

from recserve.bundle.v1.manifest_pb2 import CalibrationKind, ColumnType, Forest, IndexKind, Manifest, Space
from recserve.kernels.reference import rerank as reference_rerank
from recserve.server.bundle import layout
from recserve.server.bundle.files import walk_files

REPORT_FILE: Final = "report.html"
TOP_FEATURES: Final = 15


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison that the export made, and what came out."""

    part: str
    against: str
    result: str


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: the bundle's directory.
        manifest: as written.
        checks: the comparisons made, in order.
        seconds: time by step.
    """

    path: Path
    manifest: Manifest = field(default_factory=Manifest)
    checks: list[Check] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> Table:
        """For the terminal."""
        manifest = self.manifest
        size = decimal(sum(file.bytes for file in manifest.files.values()))
        table = Table(title=f"{manifest.name} {manifest.version}: {manifest.catalogue.items:,} items, {size}")
        table.add_column("part")
        table.add_column("checked against")
        table.add_column("result", style="green")
        for check in self.checks:
            table.add_row(check.part, check.against, check.result)
        table.caption = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in self.seconds.items())
        return table


def render_html(report: ExportReport, root: Path, boosters: Mapping[str, lightgbm.Booster]) -> str:
    """The report as one self-contained page.

    Args:
        report: of an export that lacks no more than this page.
        root: where its files are.
        boosters: the rankers' source models by objective, for feature importance.
    """
    manifest = report.manifest
    sizes = [(name, status.st_size) for name, status in walk_files(root) if name != layout.MANIFEST]
    environment = Environment(
        loader=PackageLoader("recserve.exporters"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        manifest=manifest,
        created=manifest.created.ToDatetime().strftime("%Y-%m-%d %H:%M UTC"),
        cards=_cards(manifest, sum(size for _, size in sizes)),
        checks=report.checks,
        metrics=list(_metrics(MessageToDict(manifest.offline_metrics))),
        spaces=[_space(space) for space in manifest.spaces],
        forests=[_forest(forest) for forest in manifest.forests],
        figures=[*_importances(boosters), *_calibrations(manifest.forests)],
        columns=list(_columns(manifest)),
        files=[(name, decimal(size)) for name, size in sizes],
        total_size=decimal(sum(size for _, size in sizes)),
    )


def _cards(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    trees = sum(forest.trees for forest in manifest.forests)
    return [
        (f"{manifest.catalogue.items:,}", "items"),
        (f"{len(manifest.spaces)}", "vector spaces"),
        (f"{manifest.features.count}", "ranker features"),
        (f"{trees:,}", "trees"),
        (f"{manifest.golden.requests}", "golden requests"),
        (decimal(size), "in all"),
    ]


def _metrics(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested metrics, flattened with dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _metrics(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _space(space: Space) -> dict[str, str]:
    index = space.index
    parameters = ", ".join(f"{name} {value}" for name, value in sorted(index.parameters.items()))
    users = "user tower" if space.HasField("user_tower") else f"{space.user_vectors:,} stored"
    return {
        "name": space.name,
        "dim": f"{space.dim}",
        "normalized": "yes" if space.normalized else "no",
        "users": users if space.HasField("user_tower") or space.user_vectors else "none: similarity only",
        "search": "exact" if index.kind == IndexKind.EXACT else f"{index.factory} ({parameters})",
        "recall": "1" if index.kind == IndexKind.EXACT else f"{index.recall:.3f} @{index.recall_k}",
    }


def _forest(forest: Forest) -> dict[str, str]:
    return {
        "objective": forest.objective,
        "trees": f"{forest.trees:,}",
        "features": f"{forest.features}",
        "weight": f"{forest.weight:g}",
        "calibration": CalibrationKind.Name(forest.calibration.kind).lower(),
    }


def _columns(manifest: Manifest) -> Iterator[dict[str, str]]:
    roles = {str(name): field.name for field, name in manifest.catalogue.roles.ListFields()}
    for column in manifest.catalogue.columns:
        yield {
            "name": column.name,
            "type": ColumnType.Name(column.type).lower(),
            "role": roles.get(column.name, ""),
            "vocabulary": column.vocabulary,
        }


def _importances(boosters: Mapping[str, lightgbm.Booster]) -> Iterator[dict[str, str]]:
    for objective, booster in boosters.items():
        gain = booster.feature_importance("gain")
        top = np.argsort(-gain, kind="stable")[:TOP_FEATURES][::-1]
        names = [booster.feature_name()[index] for index in top]
        share = 100 * gain[top] / max(float(gain.sum()), np.finfo(float).tiny)
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, share, color="#2563a8")
        axes.set_xlabel("share of total gain, %")
        caption = f"{objective}: the {len(top)} features with the largest share of the forest's gain"
        yield {"svg": _svg(figure), "caption": caption}


def _calibrations(forests: Sequence[Forest]) -> Iterator[dict[str, str]]:
    for forest in forests:
        calibration = forest.calibration
        x, y = np.array(calibration.x), np.array(calibration.y)
        isotonic = calibration.kind == CalibrationKind.ISOTONIC
        low, high = (float(x.min()), float(x.max())) if isotonic else (-6.0, 6.0)
        margins = np.linspace(low - 1, high + 1, 400)
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(margins, reference_rerank.calibrate(margins, calibration.kind, x, y), color="#2563a8")
        axes.set_xlabel("margin")
        axes.set_ylabel("relevance")
        axes.set_ylim(0, 1)
        yield {"svg": _svg(figure), "caption": f"{forest.objective}: relevance by margin"}


def _svg(figure: Figure) -> str:
    """The figure as an inline element; ids are salted by a constant, so that equal figures give equal files."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "recserve", "svg.fonttype": "none"}):
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
