"""Golden requests: stored inputs with expectations for every stage, replayed when a bundle is loaded.

Expectations come from the source models and from reference code (onnxruntime, exact search, LightGBM, the NumPy
references), never from the code that they check. `recserve.exporters.golden` writes them:

    golden/requests.json   the requests, one object each: `GoldenRequest`
    golden/stages.npz      states, contexts and expectations, by the names below

Every stage is replayed from its stored inputs, so a difference is found where it arises:

    embed       user vectors by space                    within 1e-5 of onnxruntime's
    retrieve    exact nearest items of stored vectors    found to the recall of the export, with bit-equal scores
    sources     what each source without vectors proposes    equal
    features    matrix of the stored candidates          bit-equal
    rank        margins, and relevance                   margins bit-equal to LightGBM's, from the matrix and as served
    rerank      order of stored scores                   equal
    list        the whole answer                         bit-equal, on the class of machine that exported

Relevance is an exponential away from the margin, so it is bit-equal on the class of machine that exported, and within
`RELEVANCE_TOLERANCE` elsewhere: C libraries differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ItemArrays
from recserve.server.bundle.columns import CategoryColumn, NumberColumn, TimeColumn
from recserve.server.bundle.errors import BundleCorruptError, BundleGoldenError
from recserve.server.bundle.files import ANY
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.assemble import Candidates, Subject, tower_users
from recserve.server.pipeline.golden_set import REQUESTS_FILE, STAGES_FILE, GoldenRequest, GoldenSet
from recserve.server.pipeline.search import NEAR_TIE, recall_at_k
from recserve.server.pipeline.towers import TOWER_TOLERANCE
from recserve.server.pipeline.types import Result

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

RELEVANCE_TOLERANCE: Final = 1e-12
"""Relative; C libraries promise an exponential to about 2e-16, and a relevance is a few operations away from it."""

SOURCE_NAMES_ARRAY: Final = "sources.names"
"""Of the stored arrays; bundles of earlier exports lack it."""

Words = Callable[[Sequence[int]], str]
"""Says what is at an index of an array."""


def replay(pipeline: Pipeline, *, same_cpu: bool) -> list[str]:
    """Check every stage of a bundle against its golden requests.

    Args:
        pipeline: over the bundle's own engines.
        same_cpu: whether this machine is of the class that exported (`recserve.server.pipeline.host.this_host`); only
            then are relevances bit-equal and whole lists compared.

    Returns:
        The stages that were checked; empty where the bundle stores no golden requests.

    Raises:
        BundleGoldenError: naming the stage, the request, expected and found.
        BundleCorruptError: the stored requests are malformed.
    """
    if not pipeline.bundle.manifest.golden.requests:
        return []
    golden = GoldenSet.load(pipeline.bundle)
    _check_names(golden.requests, pipeline)
    stages = _Stages(pipeline, golden, same_cpu=same_cpu)
    wanted: dict[str, Callable[[], None]] = {"embed": stages.embed, "retrieve": stages.retrieve}
    if SOURCE_NAMES_ARRAY in golden.arrays:
        wanted["sources"] = stages.sources
    if pipeline.objectives:
        wanted |= {"features": stages.features, "rank": stages.rank}
    wanted["rerank"] = stages.rerank
    if same_cpu:
        wanted["list"] = stages.lists
    for name, check in wanted.items():
        try:
            check()
        except (ValueError, TypeError, IndexError, OverflowError) as error:  # how kernels and engines refuse inputs
            raise BundleCorruptError(
                f"golden stage {name} refuses its stored inputs: {error}", file=STAGES_FILE, field=name
            ) from error
    return list(wanted)


def _check_names(requests: Sequence[GoldenRequest], pipeline: Pipeline) -> None:
    """Stored requests name only what the bundle has."""
    catalogue = pipeline.bundle.catalogue
    roles = {part: catalogue.role(part) for part in catalogue.roles}
    categories = {name for name, column in catalogue.columns.items() if isinstance(column, CategoryColumn)}
    numbers = {part for part, column in roles.items() if isinstance(column, NumberColumn)}
    times = {part for part, column in roles.items() if isinstance(column, TimeColumn)}
    compared = {"similarity"} if pipeline.similarity_spaces else set()
    for index, each in enumerate(requests):
        asked = {
            "quotas": (set(each.quotas), set(pipeline.sources)),
            "cap_attribute": ({each.cap_attribute} - {""}, categories),
            "price_max": ({"price"} if each.price_max is not None else set(), numbers),
            "freshness_boost": ({"launch_time"} if each.freshness_boost else set(), times),
            "mmr_weight": ({"similarity"} if each.mmr_weight is not None else set(), compared),
        }
        for field, (wanted, there) in asked.items():
            if not wanted <= there:
                raise BundleCorruptError(
                    f"golden request {index} asks for what the bundle lacks",
                    file=REQUESTS_FILE,
                    field=field,
                    expected=f"of {sorted(there)}",
                    found=sorted(wanted - there),
                )


class _Stages:
    """One method a stage; each raises BundleGoldenError where the stage answers otherwise than at export."""

    def __init__(self, pipeline: Pipeline, golden: GoldenSet, *, same_cpu: bool) -> None:
        self._pipeline = pipeline
        self._bundle = pipeline.bundle
        self._golden = golden
        self._same_cpu = same_cpu
        self._count = len(golden.requests)

    def embed(self) -> None:
        subjects = self._golden.subjects(self._bundle)
        for name, tower in self._pipeline.engines.towers.items():
            space = self._bundle.spaces[name].spec
            expected = self._golden.array(f"embed.{name}", np.float32, self._count, space.dim)
            try:
                found = tower.embed(tower_users(subjects))
            except Exception as error:  # onnxruntime's errors share no narrower class
                raise BundleGoldenError(
                    f"the golden requests' users have no vectors: {error}",
                    file=space.user_tower.file,
                    field=f"embed.{name}",
                ) from error
            difference = np.abs(found - expected)
            # Other builds of onnxruntime may sum in another order, by amounts in proportion to the vectors' length.
            tolerance = TOWER_TOLERANCE * float(np.sqrt(np.mean(np.sum(expected.astype(np.float64) ** 2, axis=1))))
            if not bool(np.all(difference <= tolerance)):
                request = int(np.argmax(difference.max(axis=1)))
                raise BundleGoldenError(
                    f"golden request {request}: the user tower of space {name!r} gives another vector than at export",
                    file=space.user_tower.file,
                    field=f"embed.{name}",
                    expected=f"a difference of at most {tolerance:.3g}",
                    found=float(difference.max()),
                )

    def retrieve(self) -> None:
        for name, searcher in self._pipeline.engines.searchers.items():
            queries = self._golden.array(f"retrieve.{name}.queries", np.float32, ANY, self._bundle.spaces[name].dim)
            rows = self._golden.array(f"retrieve.{name}.rows", np.int64, len(queries), ANY)
            scores = self._golden.array(f"retrieve.{name}.scores", np.float32, *rows.shape)
            promised = float(self._golden.array(f"retrieve.{name}.recall", np.float64))
            k = min(self._bundle.manifest.golden.retrieval_k, rows.shape[1])
            found = searcher.search(queries, k, [None] * len(queries))
            self._require_scores(name, found, rows, scores)
            recall = mean_recall([mine for mine, _ in found], rows, scores, k)
            if recall < promised:
                raise BundleGoldenError(
                    f"space {name!r} finds fewer of the exact nearest items than at export",
                    file=f"spaces/{name}",
                    field=f"retrieve.{name}.rows",
                    expected=f"recall@{k} of at least {promised:.4f}",
                    found=recall,
                )

    def _require_scores(
        self,
        name: str,
        found: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> None:
        """Whatever was found, its score is that of exact search: an index proposes, the vectors decide."""
        for query, (mine, by) in enumerate(found):
            both, here, there = np.intersect1d(mine, rows[query], return_indices=True)
            words = self._query_words(query, both)
            _require_equal(scores[query][there], by[here], f"retrieve.{name}.scores", words)

    def sources(self) -> None:
        golden, pipeline = self._golden, self._pipeline
        work = list(zip(golden.queries(self._bundle), golden.states, strict=True))
        k = self._bundle.manifest.golden.candidates
        for name in golden.array(SOURCE_NAMES_ARRAY, np.str_, ANY).tolist():
            if name not in pipeline.sources:
                raise BundleCorruptError(
                    "the golden stages name a source that the bundle lacks",
                    file=STAGES_FILE,
                    field=SOURCE_NAMES_ARRAY,
                    expected=f"of {list(pipeline.sources)}",
                    found=name,
                )
            rows = golden.array(f"sources.{name}.rows", np.int64, ANY)
            scores = golden.array(f"sources.{name}.scores", np.float32, rows.size)
            parts = golden.parts(f"sources.{name}.offsets", self._count, rows.size)
            for request, found in enumerate(pipeline.proposals(work, name, k)):
                _require_equal(rows[parts[request]], found.rows, f"sources.{name}.rows", _place(request))
                _require_equal(scores[parts[request]], found.scores, f"sources.{name}.scores", _place(request))

    def features(self) -> None:
        found = self._pipeline.ranking_inputs(*self._stage_inputs()).matrix()
        _require_equal(self._matrix(len(found)), found, "features.matrix", self._cell(self._bundle.schema.names))

    def rank(self) -> None:
        ranker, objectives = self._pipeline.engines.ranker, self._pipeline.objectives
        if ranker is None:
            return
        rows = self._golden.array("features.rows", np.int64, ANY).size
        margins = ranker.margins(np.ascontiguousarray(self._matrix(rows)))
        expected = self._golden.array("rank.margins", np.float64, rows, len(objectives))
        _require_equal(expected, margins, "rank.margins", self._cell(objectives))
        cell = self._cell(objectives)
        served = ranker.score(self._pipeline.ranking_inputs(*self._stage_inputs()))
        _require_equal(expected, served, "rank.margins", lambda at: f"as served, {cell(at)}")
        expected = self._golden.array("rank.relevance", np.float64, rows, len(objectives))
        tolerance = 0.0 if self._same_cpu else RELEVANCE_TOLERANCE
        _require_equal(
            expected, ranker.relevance(margins), "rank.relevance", self._cell(objectives), tolerance=tolerance
        )

    def rerank(self) -> None:
        golden = self._golden
        rows = golden.array("features.rows", np.int64, ANY)
        scores = golden.array("rerank.scores", np.float64, rows.size)
        positions = golden.array("rerank.positions", np.int64, ANY)
        candidates = golden.parts("features.offsets", self._count, rows.size)
        places = golden.parts("rerank.offsets", self._count, positions.size)
        for request, query in enumerate(golden.queries(self._bundle)):
            mine = candidates[request]
            found, _ = self._pipeline.choose(scores[mine], rows[mine], query.count, query.rerank)
            _require_equal(positions[places[request]], found, "rerank.positions", _place(request))

    def lists(self) -> None:
        golden = self._golden
        rows = golden.array("list.rows", np.int64, ANY)
        scores = golden.array("list.scores", np.float64, rows.size)
        parts = golden.parts("list.offsets", self._count, rows.size)
        work = list(zip(golden.queries(self._bundle), golden.states, strict=True))
        for request, answer in enumerate(self._pipeline.run(work)):
            if not isinstance(answer, Result):
                raise BundleGoldenError(f"golden request {request} fails: {answer}", field="list.rows") from answer
            _require_equal(rows[parts[request]], answer.rows, "list.rows", _place(request))
            _require_equal(scores[parts[request]], answer.scores, "list.scores", _place(request))

    def _matrix(self, rows: int) -> NDArray[np.float32]:
        return self._golden.array("features.matrix", np.float32, rows, len(self._bundle.schema.features))

    def _stage_inputs(self) -> tuple[list[Subject], list[Candidates]]:
        """The stored inputs of the feature stage: subjects with their vectors, and their candidates."""
        golden, subjects = self._golden, self._golden.subjects(self._bundle)
        for name in self._bundle.schema.spaces:
            dim = self._bundle.spaces[name].dim
            vectors = golden.array(f"features.vectors.{name}", np.float32, self._count, dim)
            for who, vector in zip(subjects, vectors, strict=True):
                if not np.isnan(vector).any():
                    who.vectors[name] = vector
        sources = tuple(str(name) for name in golden.array("features.sources", np.str_, ANY))
        rows = golden.array("features.rows", np.int64, ANY)
        scores = golden.array("features.scores", np.float32, rows.size, len(sources))
        ranks = golden.array("features.ranks", np.int32, rows.size, len(sources))
        parts = golden.parts("features.offsets", self._count, rows.size)
        return subjects, [Candidates(rows[part], sources, scores[part], ranks[part]) for part in parts]

    def _cell(self, columns: Sequence[str]) -> Words:
        """Says in words which cell of a matrix over all candidates is meant."""
        offsets = self._golden.array("features.offsets", np.int64, self._count + 1)
        rows = self._golden.array("features.rows", np.int64, ANY)

        def words(at: Sequence[int]) -> str:
            request = int(np.searchsorted(offsets, at[0], side="right")) - 1
            return f"golden request {request}, {self._item(rows[at[0]])}, column {columns[at[1]]!r}"

        return words

    def _query_words(self, query: int, rows: NDArray[np.int64]) -> Words:
        return lambda at: f"query {query}, {self._item(rows[at[0]])}"

    def _item(self, row: np.int64) -> str:
        return f"item {self._bundle.catalogue.ids_of_rows(np.array([row]))[0]!r}"


def _require_equal(
    expected: NDArray[np.generic],
    found: NDArray[np.generic],
    name: str,
    words: Words,
    *,
    tolerance: float = 0.0,
) -> None:
    """Equality value by value, NaN being equal to NaN; the error names the first difference."""
    if expected.shape != found.shape:
        raise BundleGoldenError(
            f"{words((0, 0))}: another shape than at export",
            file=STAGES_FILE,
            field=name,
            expected=expected.shape,
            found=found.shape,
        )
    floating = np.issubdtype(expected.dtype, np.floating)
    same = np.isclose(found, expected, rtol=tolerance, atol=0.0, equal_nan=True) if floating else expected == found
    if not bool(np.all(same)):
        where = tuple(int(index) for index in np.argwhere(~same)[0])
        raise BundleGoldenError(
            f"{words(where)}: another value than at export",
            file=STAGES_FILE,
            field=name,
            expected=expected[where].item(),
            found=found[where].item(),
        )


def _place(request: int) -> Words:
    return lambda at: f"golden request {request}, place {at[0] + 1}"


def item_arrays(bundle: Bundle) -> ItemArrays:
    """The catalogue's side of the features."""
    catalogue, spaces = bundle.catalogue, bundle.schema.spaces
    return ItemArrays(
        features=catalogue.features,
        times=catalogue.times,
        vectors={name: bundle.spaces[name].vectors for name in spaces},
    )


def mean_recall(
    found: Sequence[NDArray[np.int64]], rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> float:
    """Mean recall@k of some searches.

    Args:
        found: the rows that each search found.
        rows: [searches, >= k], the exact ones; those behind the k-th tell near-ties.
        scores: of `rows`.
        k: how many each search was to find.
    """
    pairs = zip(found, rows, scores, strict=True)
    return float(np.mean([recall_at_k(mine, exact, by, NEAR_TIE, k=k) for mine, exact, by in pairs]))
