"""The forest set of a bundle: all its rankers compiled together, checked against LightGBM, with the items' bins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.exporters.forest import compile_texts
from recserve.exporters.forest_parity import verification_rows
from recserve.exporters.lightgbm_text import ForestText, parse_forest
from recserve.exporters.oracle import load_boosters
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import ColumnValues, FeatureProgram, FeatureSchema, ItemArrays
from recserve.kernels.forest import Forest
from recserve.server.bundle import layout
from recserve.server.pipeline.assemble import Candidates, Subject, assemble
from recserve.server.pipeline.bitsliced import features_read
from recserve.server.pipeline.types import History, no_rows

if TYPE_CHECKING:
    import lightgbm

BLOCK: Final = 4096
"""Rows that are verified at once."""
ITEM_BLOCK: Final = 65_536
"""Items that are binned at once."""


def write_forest_set(
    writer: BundleWriter,
    forests: Sequence[manifest_pb2.Forest],
    schema: FeatureSchema,
    cardinalities: Mapping[str, int],
    items: ItemArrays,
) -> tuple[manifest_pb2.ForestSet, int]:
    """Compile and verify the forests together, and bin the items for them.

    Args:
        writer: of the bundle; holds the source models already. Receives ranker/forest/ and items/bins.npy.
        forests: the manifest's entries, at least one.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
        items: the catalogue's side of the features; vectors are not read.

    Returns:
        The manifest's entry, and how many rows were compared with LightGBM, all equal.

    Raises:
        ExportError: a forest cannot be followed exactly, or answers otherwise than LightGBM.
    """
    texts = [parse_forest((writer.root / entry.model).read_text(encoding="utf-8")) for entry in forests]
    forest = compile_texts(texts)
    boosters = load_boosters(writer.root, forests)
    verified = 0
    for rows in _verification_blocks(texts):
        require_same_margins(boosters, forest, rows)
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


def item_bins(
    forest: Forest, schema: FeatureSchema, cardinalities: Mapping[str, int], items: ItemArrays
) -> Iterator[NDArray[np.uint8]]:
    """The bins of all items, block by block: uint8 [n, columns], of the item features that the forest reads.

    Args:
        forest: reads the schema's features.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
        items: the catalogue's side of the features; vectors are not read.
    """
    features = features_read(forest, schema, "item")
    part = schema.select(features)
    program = FeatureProgram(part, cardinalities)
    nobody = Subject(
        time_us=0,
        known=False,
        user=ColumnValues.missing(schema.user_layout, 1),
        context=ColumnValues.missing(schema.context_layout, 1),
        history=History.empty(),
        history_rows=no_rows(),
        recent_rows=no_rows(),
    )
    for start in range(0, len(items.features), ITEM_BLOCK):
        rows = np.arange(start, min(start + ITEM_BLOCK, len(items.features)))
        values = program.compute(items, assemble(part, [nobody], [Candidates.given(rows)], {}))
        yield forest.bin_matrix(values, features)


def _verification_blocks(texts: Sequence[ForestText]) -> Iterator[NDArray[np.float32]]:
    for text in texts:
        rows = verification_rows(text)
        for start in range(0, len(rows), BLOCK):
            yield np.ascontiguousarray(rows[start : start + BLOCK])


def require_same_margins(boosters: Mapping[str, lightgbm.Booster], forest: Forest, rows: NDArray[np.float32]) -> None:
    """Compare the margins of all forests bit for bit.

    Args:
        boosters: the oracles by objective, in the order of the forest's outputs.
        forest: under test.
        rows: float32 [n, features].

    Raises:
        ExportError: margins differ; the message shows the first that does.
    """
    found = forest.predict(rows).reshape(len(rows), forest.outputs)
    for output, (objective, booster) in enumerate(boosters.items()):
        expected, mine = np.asarray(booster.predict(rows, raw_score=True), np.float64), found[:, output]
        differing = np.flatnonzero(expected.view(np.int64) != np.ascontiguousarray(mine).view(np.int64))
        if len(differing):
            first = differing[0]
            raise ExportError(
                f"ranker {objective!r}: the bit-sliced forest does not answer as LightGBM does: {len(differing)} of "
                f"{len(rows)} verification rows differ, for the first LightGBM's raw score is {expected[first]} and "
                f"the forest's {mine[first]}, features {rows[first].tolist()}"
            )
