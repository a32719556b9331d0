"""Golden requests: stored inputs with expectations for every stage, replayed when a bundle is loaded.

Expectations come from the source models and from reference code (onnxruntime, exact search, LightGBM, the NumPy
references), never from the code that they check. `recserve.exporters.golden` writes them:

    golden/requests.json   the requests, one object each: `GoldenRequest`
    golden/stages.npz      states and expectations, by the names below

Every stage is replayed from its stored inputs, so a difference is found where it arises:

    embed       user vectors by space                    within 1e-5 of onnxruntime's
    retrieve    exact nearest items of stored vectors    found to the recall that the index promised at export
    features    matrix of the stored candidates          bit-equal
    rank        margins and relevance                    bit-equal to LightGBM's
    rerank      order of stored scores                   equal
    list        the whole answer                         bit-equal, on the class of CPU that exported
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues, ItemArrays
from recserve.server.bundle.errors import BundleCorruptError, BundleGoldenError
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.assemble import Candidates, Subject, assemble, subject, tower_users
from recserve.server.pipeline.search import NEAR_TIE, recall_at_k
from recserve.server.pipeline.towers import TOWER_TOLERANCE
from recserve.server.pipeline.types import (
    Cap,
    Freshness,
    History,
    ItemFilter,
    Query,
    QueryKind,
    Quota,
    RerankOptions,
    Result,
    UserState,
)

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

REQUESTS_FILE = "golden/requests.json"
STAGES_FILE = "golden/stages.npz"

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """A complete request in names and ids, as stored."""

    user_id: str
    time_us: int
    count: int
    candidates: int
    quotas: dict[str, float]
    session_item_ids: tuple[str, ...] = ()
    price_max: float | None = None
    cap_attribute: str = ""
    cap_max: int = 1
    mmr_weight: float | None = None
    freshness_boost: float = 0.0
    freshness_half_life_days: float = 30.0

    def query(self, bundle: Bundle) -> Query:
        """The request against a bundle."""
        session = bundle.catalogue.rows_of_ids(self.session_item_ids)
        caps = (Cap(self.cap_attribute, self.cap_max),) if self.cap_attribute else ()
        fresh = Freshness(self.freshness_boost, self.freshness_half_life_days) if self.freshness_boost else None
        return Query(
            kind=QueryKind.RECOMMEND,
            user_id=self.user_id,
            count=self.count,
            time_us=self.time_us,
            context=ColumnValues.missing(bundle.schema.context_layout, 1),
            session_rows=session[session >= 0],
            filter=ItemFilter(price_max=self.price_max),
            rerank=RerankOptions(caps=caps, mmr_weight=self.mmr_weight, freshness=fresh),
            candidates=self.candidates,
            quotas=tuple(Quota(name, weight) for name, weight in self.quotas.items()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class GoldenSet:
    """Requests with their users' states and the stages' arrays.

    Attributes:
        requests: as stored.
        states: one per request.
        arrays: expectations and stage inputs; the names are those that `replay` reads.
    """

    requests: Sequence[GoldenRequest]
    states: Sequence[UserState]
    arrays: Arrays = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of `requests.json`."""
        return json.dumps([asdict(each) for each in self.requests], indent=1, ensure_ascii=False)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The content of `stages.npz`."""
        return {**pack_states(self.states), **self.arrays}

    @staticmethod
    def load(bundle: Bundle) -> GoldenSet:
        """Read what the bundle stores.

        Raises:
            BundleCorruptError: a file is malformed.
        """
        try:
            stored = json.loads(bundle.file(REQUESTS_FILE).read_text("utf-8"))
            requests = [
                GoldenRequest(**{**each, "session_item_ids": tuple(each["session_item_ids"])}) for each in stored
            ]
            with np.load(bundle.file(STAGES_FILE), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return GoldenSet(requests, unpack_states(arrays, len(requests)), arrays)
        except (KeyError, TypeError, ValueError, OSError, BadZipFile) as error:
            raise BundleCorruptError(f"the golden requests cannot be read: {error}", file=STAGES_FILE) from error

    def array(self, name: str, dtype: type[ScalarT]) -> NDArray[ScalarT]:
        """A stored array.

        Raises:
            BundleCorruptError: it is missing, or of another type.
        """
        return _array(self.arrays, name, dtype)

    def subjects(self, bundle: Bundle) -> list[Subject]:
        """The requests' users in terms of the bundle's rows, without vectors."""
        queries = [each.query(bundle) for each in self.requests]
        return [
            subject(state, bundle.catalogue, context=q.context, time_us=q.time_us, session_rows=q.session_rows)
            for q, state in zip(queries, self.states, strict=True)
        ]


def pack_states(states: Sequence[UserState]) -> dict[str, NDArray[np.generic]]:
    """States as arrays: `known`, `user.*` and `history.*`."""
    users = ColumnValues.concat([state.columns for state in states])
    histories = [state.history for state in states]
    return {
        "known": np.array([state.known for state in states], np.uint8),
        "user.numbers": users.numbers,
        "user.codes": users.codes,
        "user.times": users.times,
        "user.list_codes": users.list_codes,
        "user.list_offsets": users.list_offsets,
        "history.offsets": np.cumsum([0, *(each.keys.size for each in histories)], dtype=np.int64),
        "history.keys": np.concatenate([each.keys for each in histories]),
        "history.events": np.concatenate([each.events for each in histories]),
        "history.counts": np.concatenate([each.counts for each in histories]),
        "history.last_us": np.concatenate([each.last_us for each in histories]),
    }


def unpack_states(arrays: Arrays, count: int) -> list[UserState]:
    """The inverse of `pack_states`.

    Raises:
        BundleCorruptError: an array is missing, or of another type.
    """
    users = ColumnValues(
        _array(arrays, "user.numbers", np.float64),
        _array(arrays, "user.codes", np.int32),
        _array(arrays, "user.times", np.int64),
        _array(arrays, "user.list_codes", np.int32),
        _array(arrays, "user.list_offsets", np.int64),
    )
    histories = History(
        _array(arrays, "history.keys", np.uint64),
        _array(arrays, "history.events", np.int32),
        _array(arrays, "history.counts", np.float64),
        _array(arrays, "history.last_us", np.int64),
    )
    known, parts = _array(arrays, "known", np.uint8), _parts(_array(arrays, "history.offsets", np.int64))
    return [
        UserState(known=bool(known[row]), columns=users.row(row), history=histories.slice(parts[row]))
        for row in range(count)
    ]


def replay(pipeline: Pipeline, *, same_cpu: bool) -> list[str]:
    """Check every stage of a bundle against its golden requests.

    Args:
        pipeline: over the bundle's own engines.
        same_cpu: whether this machine has the class of CPU that exported; only then are whole lists compared.

    Returns:
        The stages that were checked; empty where the bundle stores no golden requests.

    Raises:
        BundleGoldenError: naming the stage, the request, expected and found.
        BundleCorruptError: the stored requests are malformed.
    """
    if not pipeline.bundle.manifest.golden.requests:
        return []
    checks = _Checks(pipeline, GoldenSet.load(pipeline.bundle))
    stages = {"embed": checks.embed, "retrieve": checks.retrieve, "rerank": checks.rerank}
    if pipeline.objectives:
        stages |= {"features": checks.features, "rank": checks.rank}
    if same_cpu:
        stages["list"] = checks.lists
    for check in stages.values():
        check()
    return list(stages)


class _Checks:
    """One method a stage; each raises BundleGoldenError where the stage answers otherwise than at export."""

    def __init__(self, pipeline: Pipeline, golden: GoldenSet) -> None:
        self._pipeline = pipeline
        self._bundle = pipeline.bundle
        self._golden = golden

    def embed(self) -> None:
        subjects = self._golden.subjects(self._bundle)
        for name, tower in self._pipeline.engines.towers.items():
            expected = self._golden.array(f"embed.{name}", np.float32)
            difference = np.abs(tower.embed(**tower_users(subjects)) - expected)
            # Other builds of onnxruntime may sum in another order, by amounts in proportion to the vectors' length.
            tolerance = TOWER_TOLERANCE * float(np.sqrt(np.mean(np.sum(expected.astype(np.float64) ** 2, axis=1))))
            if not bool(np.all(difference <= tolerance)):
                request = int(np.argmax(difference.max(axis=1)))
                raise BundleGoldenError(
                    f"golden request {request}: the user tower of space {name!r} gives another vector than at export",
                    file=self._bundle.spaces[name].spec.user_tower.file,
                    field=f"embed.{name}",
                    expected=f"a difference of at most {tolerance:.3g}",
                    found=float(difference.max()),
                )

    def retrieve(self) -> None:
        for name, searcher in self._pipeline.engines.searchers.items():
            rows = self._golden.array(f"retrieve.{name}.rows", np.int64)
            scores = self._golden.array(f"retrieve.{name}.scores", np.float32)
            queries = self._golden.array(f"retrieve.{name}.queries", np.float32)
            promised = float(self._golden.array(f"retrieve.{name}.recall", np.float64))
            k = min(self._bundle.manifest.golden.retrieval_k, rows.shape[1])
            found = searcher.search(queries, k, [None] * len(queries))
            recall = mean_recall([mine for mine, _ in found], rows, scores, k)
            if recall < promised:
                raise BundleGoldenError(
                    f"space {name!r} finds fewer of the exact nearest items than at export",
                    file=f"spaces/{name}",
                    field=f"retrieve.{name}.rows",
                    expected=f"recall@{k} of at least {promised:.4f}",
                    found=recall,
                )

    def features(self) -> None:
        schema, spaces = self._bundle.schema, self._bundle.spaces
        subjects, candidates = self._stage_inputs()
        batch = assemble(schema, subjects, candidates, {name: space.dim for name, space in spaces.items()})
        found = self._pipeline.engines.features.compute(item_arrays(self._bundle), batch)
        names = [feature.name for feature in schema.features]
        _require_equal(self._golden.array("features.matrix", np.float32), found, "features.matrix", columns=names)

    def rank(self) -> None:
        ranker, objectives = self._pipeline.engines.ranker, self._pipeline.objectives
        if ranker is None:
            return
        margins = ranker.margins(self._golden.array("features.matrix", np.float32))
        _require_equal(self._golden.array("rank.margins", np.float64), margins, "rank.margins", columns=objectives)
        expected, found = self._golden.array("rank.relevance", np.float64), ranker.relevance(margins)
        _require_equal(expected, found, "rank.relevance", columns=objectives)

    def rerank(self) -> None:
        golden = self._golden
        candidates = _parts(golden.array("features.offsets", np.int64))
        places = _parts(golden.array("rerank.offsets", np.int64))
        scores, rows = golden.array("rerank.scores", np.float64), golden.array("features.rows", np.int64)
        positions = golden.array("rerank.positions", np.int64)
        for request, stored in enumerate(golden.requests):
            mine, options = candidates[request], stored.query(self._bundle).rerank
            found, _ = self._pipeline.choose(scores[mine], rows[mine], stored.count, options)
            _require_equal(positions[places[request]], found, "rerank.positions", request=request)

    def lists(self) -> None:
        golden = self._golden
        rows, scores = golden.array("list.rows", np.int64), golden.array("list.scores", np.float64)
        parts = _parts(golden.array("list.offsets", np.int64))
        queries = [each.query(self._bundle) for each in golden.requests]
        for request, answer in enumerate(self._pipeline.run(list(zip(queries, golden.states, strict=True)))):
            if not isinstance(answer, Result):
                raise BundleGoldenError(f"golden request {request} fails: {answer}", field="list.rows") from answer
            _require_equal(rows[parts[request]], answer.rows, "list.rows", request=request)
            _require_equal(scores[parts[request]], answer.scores, "list.scores", request=request)

    def _stage_inputs(self) -> tuple[list[Subject], list[Candidates]]:
        """The stored inputs of the feature stage: subjects with their vectors, and their candidates."""
        golden, subjects = self._golden, self._golden.subjects(self._bundle)
        for name in self._bundle.schema.spaces:
            for who, vector in zip(subjects, golden.array(f"features.vectors.{name}", np.float32), strict=True):
                if not np.isnan(vector).any():
                    who.vectors[name] = vector
        sources = tuple(str(name) for name in golden.array("features.sources", np.str_))
        rows = golden.array("features.rows", np.int64)
        scores, ranks = golden.array("features.scores", np.float32), golden.array("features.ranks", np.int32)
        parts = _parts(golden.array("features.offsets", np.int64))
        return subjects, [Candidates(rows[part], sources, scores[part], ranks[part]) for part in parts]


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


def _array(arrays: Arrays, name: str, dtype: type[ScalarT]) -> NDArray[ScalarT]:
    found = arrays.get(name)
    if found is None or not np.issubdtype(found.dtype, dtype):
        raise BundleCorruptError(
            "the golden requests are malformed",
            file=STAGES_FILE,
            field=name,
            expected=np.dtype(dtype).name,
            found=None if found is None else found.dtype.name,
        )
    return cast("NDArray[ScalarT]", found)


def _parts(offsets: NDArray[np.int64]) -> list[slice]:
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(offsets)]


def _require_equal(
    expected: NDArray[np.generic],
    found: NDArray[np.generic],
    name: str,
    *,
    request: int | None = None,
    columns: Sequence[str] = (),
) -> None:
    """Equality value by value, NaN being equal to NaN; the error names the first difference."""
    which = "" if request is None else f"golden request {request}: "
    if expected.shape != found.shape:
        raise BundleGoldenError(
            f"{which}another shape than at export",
            file=STAGES_FILE,
            field=name,
            expected=expected.shape,
            found=found.shape,
        )
    same = expected == found
    if np.issubdtype(expected.dtype, np.floating):
        same |= np.isnan(expected) & np.isnan(found)
    if not bool(np.all(same)):
        where = tuple(int(index) for index in np.argwhere(~same)[0])
        column = f", column {columns[where[1]]!r}" if columns else ""
        raise BundleGoldenError(
            f"{which}another value than at export at {list(where)}{column}",
            file=STAGES_FILE,
            field=name,
            expected=expected[where].item(),
            found=found[where].item(),
        )
