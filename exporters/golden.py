"""Golden requests: what a bundle must answer, written from the source models and reference code.

`recserve.server.pipeline.golden` describes the stages and replays them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Golden
from recserve.exporters.errors import ExportError
from recserve.exporters.oracle import ExactSearcher, oracle_engines
from recserve.exporters.source_oracle import SourceOracle
from recserve.kernels.features import ColumnValues
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoryColumn, NumberColumn, TimeColumn
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.snapshot import Snapshot
from recserve.server.pipeline.assemble import Candidates, Subject, assemble, tower_users
from recserve.server.pipeline.golden import SOURCE_NAMES_ARRAY, item_arrays, mean_recall
from recserve.server.pipeline.golden_set import GoldenRequest, GoldenSet
from recserve.server.pipeline.pipeline import Engines, Pipeline
from recserve.server.pipeline.scoring import combine, freshen, fuse_ranks
from recserve.server.pipeline.search import open_searcher
from recserve.server.pipeline.types import History, Query, Result, UserState

CANDIDATES: Final = 50
"""Per request: enough to rank, few enough that a load replays them in milliseconds."""
RETRIEVAL_K: Final = 100
CAP: Final = 2
"""Items per category, where a request caps them: few enough to bind."""
STRANGER: Final = "golden-stranger"
"""Id of the user whom nobody knows."""
NEAR_TIES: Final = 16
"""Exact rows stored beyond the k-th: another CPU may swap the k-th with one of these."""
RECALL_SLACK: Final = 0.02
"""An index may find a little less on a CPU whose floating-point sums come in another order."""


def make_golden(bundle: Bundle, users: Sequence[tuple[str, UserState]], *, requests: int, time_us: int) -> GoldenSet:
    """Golden requests with their expectations.

    Args:
        bundle: complete but for its golden requests.
        users: ids with states; taken in turn. The last request is of a user whom nobody knows; without users, all are.
        requests: how many to make, >= 1.
        time_us: time of the requests, microseconds UTC.
    """
    engines = oracle_engines(bundle)
    oracle = Pipeline(bundle, engines)
    chosen = _with_stranger(bundle, users, requests)
    golden = GoldenSet(
        [_request(index, user, bundle, oracle, time_us) for index, (user, _) in enumerate(chosen)],
        [state for _, state in chosen],
        [_context(index, bundle, time_us) for index in range(requests)],
    )
    work = list(zip(golden.queries(bundle), golden.states, strict=True))
    retrieved = oracle.retrieve(work)
    arrays = {
        **_embed(golden, bundle, engines),
        **_retrieve(bundle, [who for who, _ in retrieved]),
        **_sources(bundle, golden),
        **_rank(oracle, retrieved, [query for query, _ in work]),
        **_lists(oracle, work),
    }
    return GoldenSet(golden.requests, golden.states, golden.contexts, arrays)


def golden_files(golden: GoldenSet) -> tuple[str, bytes, Golden]:
    """Content of `requests.json` and `stages.npz`, and the manifest's entry."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **golden.to_arrays())
    entry = Golden(requests=len(golden.requests), candidates=CANDIDATES, retrieval_k=RETRIEVAL_K)
    return golden.to_json(), buffer.getvalue(), entry


def snapshot_users(snapshot: Snapshot, user_ids: Sequence[str], count: int) -> list[tuple[str, UserState]]:
    """States of the named users, or of the snapshot's first `count`.

    Raises:
        ExportError: a named user is not in the snapshot.
    """
    rows = snapshot.rows_of(user_ids) if user_ids else np.arange(min(count, snapshot.size))
    if (rows < 0).any():
        unknown = [user for user, row in zip(user_ids, rows, strict=True) if row < 0]
        shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        raise ExportError(f"golden_user_ids: {len(unknown)} users are not in the snapshot: {shown}")
    return [(name, user_state(snapshot, int(row))) for name, row in zip(snapshot.user_ids(rows), rows, strict=True)]


def user_state(snapshot: Snapshot, row: int) -> UserState:
    """The state of the user in a row of a snapshot."""
    user = snapshot.state(row)
    history = History(user.keys, user.events, user.counts, user.last_us)
    return UserState(known=True, columns=user.columns, history=history)


def latest_event(snapshot: Snapshot) -> int:
    """Time of the snapshot's last event, microseconds UTC; 0 where it has none."""
    times = snapshot.history.last_us
    return int(times.max()) if times.size else 0


def _with_stranger(
    bundle: Bundle, users: Sequence[tuple[str, UserState]], requests: int
) -> list[tuple[str, UserState]]:
    """As many users as requests, in turn, the last of them one whom nobody knows."""
    nobody = UserState(known=False, columns=ColumnValues.missing(bundle.schema.user_layout, 1))
    known = users or [(STRANGER, nobody)]
    return [*(known[index % len(known)] for index in range(requests - 1)), (STRANGER, nobody)]


def _context(index: int, bundle: Bundle, time_us: int) -> ColumnValues:
    """A situation: every column has a value in most requests, and none in every fourth."""
    layout, random = bundle.schema.context_layout, np.random.default_rng(index)
    if index % 4 == 3:
        return ColumnValues.missing(layout, 1)
    lists = [random.permutation(bundle.cardinalities[column.vocabulary])[:3] for column in layout.lists]
    codes = [random.integers(bundle.cardinalities[column.vocabulary]) for column in layout.codes]
    return ColumnValues(
        numbers=np.round(random.gamma(2.0, 20.0, (1, len(layout.numbers))), 2),
        codes=np.array([codes], np.int32).reshape(1, len(codes)),
        times=time_us - random.integers(0, 30 * 86_400_000_000, (1, len(layout.times))),
        list_codes=np.concatenate([np.empty(0, np.int32), *lists]).astype(np.int32),
        list_offsets=np.cumsum([0, *(each.size for each in lists)], dtype=np.int64),
    )


def _request(index: int, user_id: str, bundle: Bundle, oracle: Pipeline, time_us: int) -> GoldenRequest:
    """A mix that uses every stage: sessions, price bounds, caps, diversity and freshness come and go with the index."""
    catalogue = bundle.catalogue
    with_session = index % 3 == 2 or user_id == STRANGER
    return GoldenRequest(
        user_id=user_id,
        time_us=time_us,
        count=min(10, catalogue.size),
        candidates=CANDIDATES,
        quotas=dict.fromkeys(oracle.sources, 1.0),
        session_item_ids=tuple(catalogue.ids_of_rows(_session(index, catalogue))) if with_session else (),
        price_max=_median_price(catalogue) if index % 4 == 3 else None,
        cap_attribute=_cap_attribute(bundle) if index % 2 == 1 else "",
        cap_max=CAP,
        mmr_weight=0.7 if index % 3 != 0 and oracle.similarity_spaces else None,
        freshness_boost=0.2 if index % 2 == 0 and isinstance(catalogue.role("launch_time"), TimeColumn) else 0.0,
    )


def _session(index: int, catalogue: Catalogue) -> NDArray[np.int64]:
    """Two items, other ones for every request."""
    return np.unique(np.array([7 * index + 1, 13 * index + 2], np.int64) % catalogue.size)


def _median_price(catalogue: Catalogue) -> float | None:
    column = catalogue.role("price")
    prices = column.values[~np.isnan(column.values)] if isinstance(column, NumberColumn) else np.empty(0)
    return float(np.median(prices)) if prices.size else None


def _cap_attribute(bundle: Bundle) -> str:
    is_category = isinstance(bundle.catalogue.role("category"), CategoryColumn)
    return bundle.manifest.catalogue.roles.category if is_category else ""


def _embed(golden: GoldenSet, bundle: Bundle, engines: Engines) -> dict[str, NDArray[np.generic]]:
    subjects = golden.subjects(bundle)
    return {f"embed.{name}": tower.embed(tower_users(subjects)) for name, tower in engines.towers.items()}


def _retrieve(bundle: Bundle, subjects: Sequence[Subject]) -> dict[str, NDArray[np.generic]]:
    """Exact neighbours of the users' vectors, or of items where a space knows no user."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, space in bundle.spaces.items():
        vectors = [who.vectors[name] for who in subjects if name in who.vectors]
        queries = np.stack(vectors) if vectors else np.array(space.vectors[: len(subjects)])
        k = min(RETRIEVAL_K, bundle.catalogue.size)
        nothing = [None] * len(queries)
        exact = ExactSearcher(space).search(queries, RETRIEVAL_K + NEAR_TIES, nothing)
        mine = open_searcher(space, "cpu").search(queries, k, nothing)
        rows, scores = np.stack([rows for rows, _ in exact]), np.stack([scores for _, scores in exact])
        recall = mean_recall([found for found, _ in mine], rows, scores, k)
        arrays |= {
            f"retrieve.{name}.queries": queries,
            f"retrieve.{name}.rows": rows,
            f"retrieve.{name}.scores": scores,
            f"retrieve.{name}.recall": np.array(1.0 if recall == 1.0 else recall - RECALL_SLACK),
        }
    return arrays


def _sources(bundle: Bundle, golden: GoldenSet) -> dict[str, NDArray[np.generic]]:
    """What the sources that need no user's vector propose, by source."""
    oracle = SourceOracle(bundle)
    asked = zip(golden.queries(bundle), golden.subjects(bundle), strict=True)
    expected = [oracle.expected(query, who, CANDIDATES) for query, who in asked]
    names = list(expected[0])
    arrays: dict[str, NDArray[np.generic]] = {SOURCE_NAMES_ARRAY: np.array(names)}
    for name in names:
        rows, scores = zip(*(each[name] for each in expected), strict=True)
        arrays |= {
            f"sources.{name}.offsets": np.cumsum([0, *(each.size for each in rows)], dtype=np.int64),
            f"sources.{name}.rows": np.concatenate(rows),
            f"sources.{name}.scores": np.concatenate(scores),
        }
    return arrays


def _rank(
    oracle: Pipeline, retrieved: Sequence[tuple[Subject, Candidates]], queries: Sequence[Query]
) -> dict[str, NDArray[np.generic]]:
    """Inputs and expectations of features, rank and rerank for the requests' own candidates."""
    bundle, engines, candidates = oracle.bundle, oracle.engines, [each for _, each in retrieved]
    arrays = dict(_candidate_arrays(oracle, retrieved))
    if engines.ranker is None:
        scores = np.concatenate([fuse_ranks(each.ranks) for each in candidates])
    else:
        dims = {name: space.dim for name, space in bundle.spaces.items()}
        batch = assemble(bundle.schema, [who for who, _ in retrieved], candidates, dims)
        matrix = engines.features.compute(item_arrays(bundle), batch)
        margins = engines.ranker.margins(matrix)
        relevance = engines.ranker.relevance(margins)
        arrays |= {"features.matrix": matrix, "rank.margins": margins, "rank.relevance": relevance}
        scores = combine(relevance, engines.ranker.weights)
    return arrays | _rerank(oracle, candidates, scores, queries)


def _candidate_arrays(
    oracle: Pipeline, retrieved: Sequence[tuple[Subject, Candidates]]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    candidates = [each for _, each in retrieved]
    names = oracle.sources
    yield "features.sources", np.array(names)
    yield "features.offsets", np.cumsum([0, *(each.rows.size for each in candidates)], dtype=np.int64)
    yield "features.rows", np.concatenate([each.rows for each in candidates])
    yield "features.scores", np.concatenate([_columns(each.scores, each, names, np.nan) for each in candidates])
    yield "features.ranks", np.concatenate([_columns(each.ranks, each, names, 0) for each in candidates])
    for name in oracle.bundle.schema.spaces:
        missing = np.full(oracle.bundle.spaces[name].dim, np.nan, np.float32)
        yield f"features.vectors.{name}", np.stack([who.vectors.get(name, missing) for who, _ in retrieved])


def _columns(
    values: NDArray[np.generic], candidates: Candidates, names: Sequence[str], missing: float
) -> NDArray[np.generic]:
    """Columns in the order of `names`, so that requests with other sources fit into one matrix."""
    columns = np.full((values.shape[0], len(names)), missing, values.dtype)
    for column, name in enumerate(names):
        if name in candidates.sources:
            columns[:, column] = values[:, candidates.sources.index(name)]
    return columns


def _rerank(
    oracle: Pipeline, candidates: Sequence[Candidates], scores: NDArray[np.float64], queries: Sequence[Query]
) -> dict[str, NDArray[np.generic]]:
    ends = np.cumsum([each.rows.size for each in candidates])
    fresh, positions = [], []
    for query, each, mine in zip(queries, candidates, np.split(scores, ends[:-1]), strict=True):
        freshness = query.rerank.freshness
        final = mine
        if freshness is not None:
            final = freshen(mine, oracle.bundle.catalogue, each.rows, query.time_us, freshness)
        fresh.append(final)
        positions.append(oracle.choose(final, each.rows, query.count, query.rerank)[0])
    return {
        "rerank.scores": np.concatenate(fresh),
        "rerank.positions": np.concatenate(positions),
        "rerank.offsets": np.cumsum([0, *(each.size for each in positions)], dtype=np.int64),
    }


def _lists(oracle: Pipeline, work: Sequence[tuple[Query, UserState]]) -> dict[str, NDArray[np.generic]]:
    answers = []
    for answer in oracle.run(work):
        if not isinstance(answer, Result):
            raise answer
        answers.append(answer)
    return {
        "list.offsets": np.cumsum([0, *(each.rows.size for each in answers)], dtype=np.int64),
        "list.rows": np.concatenate([each.rows for each in answers]),
        "list.scores": np.concatenate([each.scores for each in answers]),
    }
