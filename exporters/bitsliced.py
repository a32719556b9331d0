"""The forest set of a bundle: all its rankers, compiled together and checked, and the items' bins for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.exporters.forest import compile_sources
from recserve.exporters.forest_parity import SEED, require_parity, verification_rows
from recserve.exporters.forest_source import SourceForest
from recserve.exporters.source_models import SourceModel
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import FeatureProgram, FeatureSchema, ItemArrays
from recserve.kernels.forest import Forest
from recserve.server.bundle import layout
from recserve.server.pipeline.assemble import Candidates, assemble
from recserve.server.pipeline.item_bins import features_read, item_bins, nobody

REAL_ITEMS: Final = 4096
"""Items of the catalogue, spread over it, with whose features the forests are verified."""


def write_forest_set(
    writer: BundleWriter,
    models: Mapping[str, SourceModel],
    schema: FeatureSchema,
    cardinalities: Mapping[str, int],
    items: ItemArrays,
) -> tuple[manifest_pb2.ForestSet, int]:
    """Compile and verify the forests together, and bin the items for them.

    Args:
        writer: of the bundle. Receives ranker/forest/ and items/bins.npy.
        models: by objective, at least one; each has one margin that ranks.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
        items: the catalogue's side of the features; vectors are not read.

    Returns:
        The manifest's entry, and how many rows were compared with the source models, all equal.

    Raises:
        ExportError: a forest cannot be followed exactly, or answers otherwise than its source model.
    """
    forest = compile_rankers(models.values())
    verified = 0
    for model in models.values():
        tried = verification_rows(model.forest)
        for rows in (tried, real_rows(forest, schema, cardinalities, items, tried)):
            require_same_margins(models, forest, rows)
            verified += len(rows)
    forest.save(writer.path(layout.FOREST_SET))
    features = features_read(forest, schema, "item")
    columns = len(forest.bin_columns(features))
    with writer.rows(layout.ITEM_BINS, np.uint8, (len(items.features), columns)) as file:
        for bins in item_bins(forest, schema, cardinalities, items):
            file.append(bins)
    entry = manifest_pb2.ForestSet(
        folder=layout.FOREST_SET, set_hash=forest.set_hash, item_features=features, columns=columns
    )
    return entry, verified


def compile_rankers(models: Iterable[SourceModel]) -> Forest:
    """Compile what ranks of each model: output i is that of the i-th."""
    return compile_sources([_ranking_forest(model) for model in models])


def real_rows(
    forest: Forest,
    schema: FeatureSchema,
    cardinalities: Mapping[str, int],
    items: ItemArrays,
    others: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Rows with the catalogue's own values in the item features that the forest reads: float32 [n, features].

    Args:
        forest: reads the schema's features.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
        items: the catalogue's side of the features; vectors are not read.
        others: verification rows, which lend the other features their values; at least one.
    """
    size = len(items.features)
    chosen = np.unique(np.linspace(0, size - 1, min(REAL_ITEMS, size)).astype(np.int64))
    rows = others[np.random.default_rng(SEED).integers(0, len(others), len(chosen))]
    features = features_read(forest, schema, "item")
    part = schema.select(features)
    batch = assemble(part, [nobody(schema)], [Candidates.given(chosen)], {})
    rows[:, features] = FeatureProgram(part, cardinalities).compute(items, batch)
    return rows


def require_same_margins(models: Mapping[str, SourceModel], forest: Forest, rows: NDArray[np.float32]) -> None:
    """Compare the margins of all forests bit for bit.

    Args:
        models: the oracles by objective, in the order of the forest's outputs.
        forest: under test.
        rows: float32 [n, features].

    Raises:
        ExportError: margins differ; the message names the objective and shows the first row that does.
    """

    def margins_of(output: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        return lambda block: forest.predict(block).reshape(len(block), forest.outputs)[:, output]

    for output, (objective, model) in enumerate(models.items()):
        try:
            require_parity(model, margins_of(output), rows, engine="the bit-sliced forest")
        except ExportError as error:
            raise ExportError(f"ranker {objective!r}: {error}") from error


def _ranking_forest(model: SourceModel) -> SourceForest:
    return replace(model.forest, outputs=[model.forest.outputs[model.ranking_output]])
