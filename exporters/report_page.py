"""`report.html`: what a bundle is made of and how it answers, as one page that stands by itself."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypedDict

import lightgbm
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import CalibrationKind, ColumnType, Forest, IndexKind, Manifest, Space
from recserve.exporters.evaluation.page import environment, evaluation_context
from recserve.exporters.figures import PALETTE, REST, calibration_figure, map_figure
from recserve.exporters.inspect import human_bytes
from recserve.exporters.report import ExportReport
from recserve.kernels.features import MISSING_CODE, MISSING_TIME, FeatureSpec
from recserve.server.bundle import layout
from recserve.server.bundle.columns import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    StringColumn,
    TimeColumn,
)
from recserve.server.bundle.files import ANY, walk_files
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.golden_set import GoldenRequest, GoldenSet

REPORT_FILE: Final = "report.html"

_TOP_FEATURES: Final = 15
_MAP_ITEMS: Final = 600
"""Points of a map: more would only make the page heavy."""
_EXAMPLES: Final = 3


class Place(TypedDict):
    """One item of an example's answer."""

    item: str
    about: str
    score: str
    share: float
    """Of the best score, 0 to 1."""


class Example(TypedDict):
    """A golden request with its answer."""

    user: str
    conditions: list[str]
    places: list[Place]


class Importance(TypedDict):
    """A feature's share of each forest's gain."""

    name: str
    formula: str
    shares: list[float]
    """Per objective, in percent."""
    lengths: list[float]
    """The same in percent of the largest one, for bars."""


def render_page(
    report: ExportReport, bundle: Bundle, golden: GoldenSet, boosters: Mapping[str, lightgbm.Booster]
) -> str:
    """The page.

    Args:
        report: of an export that lacks no more than this page.
        bundle: what is exported; opened before its golden requests were written.
        golden: its golden requests.
        boosters: the rankers' source models by objective.
    """
    manifest = report.manifest
    sizes = [(name, status.st_size) for name, status in walk_files(bundle.path) if name != layout.MANIFEST]
    total = human_bytes(sum(size for _, size in sizes))
    rows = np.linspace(0, bundle.catalogue.size - 1, min(_MAP_ITEMS, bundle.catalogue.size)).astype(np.int64)
    groups = _groups(bundle, rows)
    return (
        environment()
        .get_template("report.html")
        .render(
            manifest=manifest,
            created=manifest.created.ToDatetime().strftime("%Y-%m-%d %H:%M UTC"),
            seconds=report.seconds,
            cards=[*_cards(manifest), (total, "in all")],
            examples=list(_examples(bundle, golden)),
            checks=report.checks,
            evaluation=evaluation_context(report.evaluation) if report.evaluation else None,
            metrics=list(_metrics(_given_metrics(report))),
            spaces=[_space(space) for space in manifest.spaces],
            legend=[(name, colour) for name, colour, _ in groups if name],
            maps=list(_maps(bundle, rows, [(colour, mine) for _, colour, mine in reversed(groups)])),
            forests=[_forest(forest) for forest in manifest.forests],
            objectives=list(zip(boosters, PALETTE, strict=False)),
            importances=_importances(bundle, boosters),
            calibrations=list(_calibrations(manifest, golden)),
            columns=list(_columns(bundle)),
            files=[(name, human_bytes(size)) for name, size in sizes],
            total_size=total,
        )
    )


def _cards(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield f"{manifest.catalogue.items:,}", "items"
    yield str(len(manifest.spaces)), "vector spaces"
    yield str(manifest.features.count), "features"
    yield f"{sum(forest.trees for forest in manifest.forests):,}", "trees"
    yield str(manifest.golden.requests), "golden requests"


# ------------------------------------------------------------------------------------------------------------- examples


def _examples(bundle: Bundle, golden: GoldenSet) -> Iterator[Example]:
    """The first requests, and the last, which is a stranger's."""
    rows = golden.array("list.rows", np.int64, ANY)
    scores = golden.array("list.scores", np.float64, rows.size)
    parts = golden.parts("list.offsets", len(golden.requests), rows.size)
    last = len(golden.requests) - 1
    for index in dict.fromkeys((*range(min(_EXAMPLES - 1, last)), last)):
        request = golden.requests[index]
        yield {
            "user": request.user_id if golden.states[index].known else "a stranger",
            "conditions": list(_conditions(request)),
            "places": _places(bundle, rows[parts[index]], scores[parts[index]]),
        }


def _conditions(request: GoldenRequest) -> Iterator[str]:
    """What is special about a request, in words."""
    if request.session_item_ids:
        yield f"looks at {', '.join(request.session_item_ids)}"
    if request.price_max is not None:
        yield f"price up to {request.price_max:,.2f}"
    if request.cap_attribute:
        yield f"at most {request.cap_max} per {request.cap_attribute}"
    if request.mmr_weight is not None:
        yield f"diversity: MMR {request.mmr_weight:g}"
    if request.freshness_boost:
        yield f"new items gain {request.freshness_boost:.0%}"


def _places(bundle: Bundle, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> list[Place]:
    best = float(scores.max(initial=0.0)) or 1.0
    names = [name for name in map(bundle.catalogue.roles.get, ("category", "price")) if name]
    titles = [name for name, column in bundle.catalogue.columns.items() if isinstance(column, StringColumn)]
    return [
        {
            "item": item,
            "about": " · ".join(map(_word, bundle.catalogue.attributes(int(row), [*titles[:1], *names]).values())),
            "score": f"{score:.3f}",
            "share": float(score) / best,
        }
        for item, row, score in zip(bundle.catalogue.ids_of_rows(rows), rows, scores, strict=True)
    ]


def _word(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------------------------- numbers


def _given_metrics(report: ExportReport) -> dict[str, object]:
    """Those of the manifest that the evaluation's own section does not show."""
    evaluated = report.evaluation.headline() if report.evaluation else {}
    given = MessageToDict(report.manifest.offline_metrics)
    return {name: value for name, value in given.items() if name not in evaluated}


def _metrics(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested metrics, flattened with dots, by name: a manifest keeps no order."""
    for name, value in sorted(values.items()):
        if isinstance(value, Mapping):
            yield from _metrics(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _space(space: Space) -> dict[str, str]:
    index = space.index
    exact = index.kind == IndexKind.EXACT
    parameters = ", ".join(f"{name} {value}" for name, value in sorted(index.parameters.items()))
    users = "user tower" if space.HasField("user_tower") else f"{space.user_vectors:,} stored"
    return {
        "name": space.name,
        "dim": str(space.dim),
        "items": "item tower" if space.HasField("item_tower") else "given",
        "users": users if space.HasField("user_tower") or space.user_vectors else "none: similarity only",
        "length": "1" if space.normalized else "any",
        "search": "exact" if exact else f"{index.factory}, {parameters}",
        "recall": "exact" if exact else f"{index.recall:.3f} @ {index.recall_k}",
    }


def _groups(bundle: Bundle, rows: NDArray[np.int64]) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Items by category: a name, a colour, and which of `rows` they are."""
    column = bundle.catalogue.role("category")
    if not isinstance(column, CategoryColumn):
        return [("", PALETTE[0], np.ones(rows.size, np.bool_))]
    codes = column.codes[rows]
    known, counts = np.unique(codes[codes != MISSING_CODE], return_counts=True)
    largest = known[np.argsort(-counts, kind="stable")][: len(PALETTE)]
    named = [
        (column.vocabulary.values[code], colour, codes == code) for code, colour in zip(largest, PALETTE, strict=False)
    ]
    return [*named, ("other", REST, ~np.isin(codes, largest))]


def _maps(
    bundle: Bundle, rows: NDArray[np.int64], groups: Sequence[tuple[str, NDArray[np.bool_]]]
) -> Iterator[dict[str, str]]:
    for space in bundle.spaces.values():
        yield {"svg": map_figure(space.vectors[rows], groups), "caption": space.name}


def _forest(forest: Forest) -> dict[str, str]:
    return {
        "objective": forest.objective,
        "trees": f"{forest.trees:,}",
        "weight": f"{forest.weight:g}",
        "calibration": CalibrationKind.Name(forest.calibration.kind).lower(),
        "machines": ", ".join(native.machine for native in forest.native),
    }


def _importances(bundle: Bundle, boosters: Mapping[str, lightgbm.Booster]) -> list[Importance]:
    """The features that matter most to any objective."""
    if not boosters:
        return []
    gains = np.stack([booster.feature_importance("gain") for booster in boosters.values()], axis=1)
    shares = 100 * gains / np.maximum(gains.sum(axis=0), np.finfo(float).tiny)
    top = np.argsort(-shares.max(axis=1), kind="stable")[:_TOP_FEATURES]
    features = bundle.schema.features
    return [
        {
            "name": features[index].name,
            "formula": _formula(features[index]),
            "shares": shares[index].tolist(),
            "lengths": (100 * shares[index] / max(shares.max(), np.finfo(float).tiny)).tolist(),
        }
        for index in top
    ]


def _formula(feature: FeatureSpec) -> str:
    options = [f"event {feature.event}"] if feature.event else [f"last {feature.last}"] if feature.last else []
    return f"{feature.op}({', '.join([*feature.inputs, *options])})"


def _calibrations(manifest: Manifest, golden: GoldenSet) -> Iterator[dict[str, str]]:
    for column, forest in enumerate(manifest.forests):
        margins = golden.array("rank.margins", np.float64, ANY, len(manifest.forests))[:, column]
        yield {"svg": calibration_figure(forest.calibration, margins), "caption": forest.objective}


def _columns(bundle: Bundle) -> Iterator[dict[str, str]]:
    roles = {name: part for part, name in bundle.catalogue.roles.items()}
    for spec in bundle.manifest.catalogue.columns:
        present, values = _summary(bundle.catalogue.columns[spec.name])
        yield {
            "name": spec.name,
            "type": ColumnType.Name(spec.type).lower(),
            "role": roles.get(spec.name, ""),
            "present": f"{present:.0%}" if present in (0.0, 1.0) else f"{present:.1%}",
            "values": values,
        }


def _summary(column: Column) -> tuple[float, str]:  # noqa: PLR0911  one line a type
    """The share of items that have a value, and what the values are like."""
    match column:
        case NumberColumn():
            return _range(column.values[~np.isnan(column.values)], column.values.size)
        case IntegerColumn():
            return _range(column.values, column.values.size)
        case CategoryColumn():
            known = column.codes[column.codes != MISSING_CODE]
            return known.size / column.codes.size, _most_frequent(known, column.vocabulary.values)
        case CategoriesColumn():
            return float((np.diff(column.offsets) > 0).mean()), _most_frequent(column.codes, column.vocabulary.values)
        case FlagColumn():
            return 1.0, f"{column.values.mean():.1%} are set"
        case TimeColumn():
            return _period(column.values[column.values != MISSING_TIME], column.values.size)
        case StringColumn():
            filled = np.diff(column.offsets) > 0
            return float(filled.mean()), str(column.value(int(np.argmax(filled))) or "")


def _range(known: NDArray[np.float64] | NDArray[np.int64], items: int) -> tuple[float, str]:
    if not known.size:
        return 0.0, ""
    return known.size / items, f"{known.min():,g} to {known.max():,g}, median {np.median(known):,g}"


def _period(known: NDArray[np.int64], items: int) -> tuple[float, str]:
    return known.size / items, f"{_day(known.min())} to {_day(known.max())}" if known.size else ""


def _most_frequent(codes: NDArray[np.int32], names: Sequence[str]) -> str:
    counts = np.bincount(codes, minlength=len(names))
    top = np.argsort(-counts, kind="stable")[:3]
    shown = ", ".join(f"{names[code]} {counts[code] / max(codes.size, 1):.0%}" for code in top if counts[code])
    return f"{shown}{', …' if np.count_nonzero(counts) > 3 else ''}"


def _day(time_us: np.int64) -> str:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (epoch + datetime.timedelta(microseconds=int(time_us))).date().isoformat()
