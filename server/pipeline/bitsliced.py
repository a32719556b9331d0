"""The bit-sliced engine: all forests of a bundle in one pass over parts that are computed as seldom as possible.

    items/bins.npy                     item features, binned at export ── gathered by row ─┐
    FeatureProgram over user, context  once a request ─────────────────────────────────────┤ RequestPlan.margins
    FeatureProgram over crosses        for each candidate ─────────────────────────────────┘

`FeatureSchema.scopes` says which feature is which. Features that no tree reads are not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest as ForestEntry
from recserve.bundle.v1.manifest_pb2 import ForestSet
from recserve.kernels.features import FeatureProgram, FeatureSchema
from recserve.kernels.forest import Forest
from recserve.server.bundle import layout
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.pipeline.inputs import RankingInputs
from recserve.server.pipeline.item_bins import check_item_bins, features_read
from recserve.server.pipeline.objectives import Objectives

if TYPE_CHECKING:
    from recserve.server.bundle.reader import Bundle


class BitslicedRanker(Objectives):
    """All forests in one pass; implements `Ranker`.

    Args:
        entries: the manifest's forests.
        forest: the same, compiled: output i is entries[i].
        item_bins: uint8 [items, columns], of the item features that the forest reads; may be mapped.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
    """

    def __init__(
        self,
        entries: Sequence[ForestEntry],
        forest: Forest,
        item_bins: NDArray[np.uint8],
        schema: FeatureSchema,
        cardinalities: Mapping[str, int],
    ) -> None:
        super().__init__(entries)
        self._forest = forest
        self._item_bins = item_bins
        request, cross = features_read(forest, schema, "request"), features_read(forest, schema, "cross")
        self._plan = forest.plan(features_read(forest, schema, "item"), request, cross)
        self._request_program = FeatureProgram(schema.select(request), cardinalities)
        self._cross_program = FeatureProgram(schema.select(cross), cardinalities)

    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Ranker`; equal to the source models' margins bit for bit. Releases the GIL."""
        return self._forest.predict(features).reshape(len(features), self._forest.outputs)

    def score(self, inputs: RankingInputs) -> NDArray[np.float64]:
        """See `Ranker`; has the bits of `margins(inputs.matrix())`."""
        request, cross = self._request_program, self._cross_program
        batch = inputs.batch(cross.schema)
        return self._plan.margins(
            self._item_bins,
            batch.rows,
            batch.offsets,
            request.of_requests(batch),
            cross.compute(inputs.items, batch),
        )


def open_bitsliced(bundle: Bundle, *, every_item: bool = False) -> BitslicedRanker:
    """The engine over a bundle's forest set, which is checked completely.

    Args:
        bundle: a verified bundle.
        every_item: recompute the bins of all items, not of a sample.

    Raises:
        BundleUnsupportedError: the bundle has no forest set.
        BundleCorruptError: its arrays are missing or are no forest.
        BundleMismatchError: they are not what the rest of the bundle was made with.
    """
    manifest = bundle.manifest
    if bundle.item_bins is None:
        raise BundleUnsupportedError(
            f'bundle {bundle.name!r} has no forests for the engine "bitsliced": export it again, or set '
            'ranker_engine = "tl2cgen" under [compute]',
            field="forest_set",
        )
    forest = _load(bundle, manifest.forest_set)
    for field, expected, found in (
        ("forest_set.set_hash", manifest.forest_set.set_hash, forest.set_hash),
        ("forests", len(manifest.forests), forest.outputs),
        ("features.count", len(bundle.schema.features), forest.features),
    ):
        _require_same(field, expected, found)
    items = features_read(forest, bundle.schema, "item")
    _require_same("forest_set.item_features", list(manifest.forest_set.item_features), items)
    _require_same("forest_set.columns", manifest.forest_set.columns, len(forest.bin_columns(items)))
    check_item_bins(bundle, forest, complete=every_item)
    return BitslicedRanker(manifest.forests, forest, bundle.item_bins, bundle.schema, bundle.cardinalities)


def _load(bundle: Bundle, entry: ForestSet) -> Forest:
    try:
        return Forest.load(bundle.path / entry.folder)
    except FileNotFoundError as error:
        raise BundleCorruptError(f"a part of the compiled forests is missing: {error}", file=entry.folder) from error
    except (TypeError, ValueError) as error:
        raise BundleCorruptError(f"the compiled forests are damaged: {error}", file=entry.folder) from error


def _require_same(field: str, expected: object, found: object) -> None:
    if expected != found:
        raise BundleMismatchError(
            "the compiled forests are not those that the rest of the bundle was made with: export it again",
            file=layout.MANIFEST,
            field=field,
            expected=expected,
            found=found,
        )
