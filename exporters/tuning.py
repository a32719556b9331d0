"""Which setting of an index finds enough, and how fast it is.

Recall is measured on held-out queries against exact search. With per-query recalls r_1 .. r_n of mean m and standard
deviation s (n - 1 in its denominator), the lower 95% confidence bound of the mean is m - 1.645 s / sqrt(n) (one-sided,
normal approximation; n is at least `MIN_QUERIES`). A setting is good enough when that bound reaches the target, so that
queries which were not used for tuning are expected to find it as well.

Most settings are far from the target, and some of the queries tell: a setting is tried on more and more of them, and
given up or taken for good as soon as the rest could not change that (by `_SURE` standard errors). Whatever may be
chosen is measured on all of them.

Times are those of one thread that searches for one query at a time, as a server does, through the server's own code:
processor time, which other processes on the machine change least.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.writer import BundleWriter
from recserve.server.pipeline.index import NPROBE, RESCORED, Counts, Effort, Found, Index, Mask
from recserve.server.pipeline.search import EXACT_SHARE, NEAR_TIE, ExactSearcher, IndexSearcher, recall_at_k

Vectors = NDArray[np.float32]
Parameters = Mapping[str, int]

ResultT = TypeVar("ResultT")

MIN_QUERIES: Final = 64
QUERIES: Final = 1000
"""How many held-out queries measure the recall, at least where there are so many, and at most."""
ONE_SIDED_95: Final = 1.645
"""The 95% quantile of the normal distribution."""

COARSE_CODES: Final = (8.0, 6.0, 4.0, 3.0, 2.0, 1.6, 1.4, 1.25, 1.12)
FINE_CODES: Final = (1.25, 1.12)
"""Items to score exactly per item wanted, for codes of few bits and of 8 bits a dimension."""

_FIRST_QUERIES: Final = 125  # of all; then twice as many, and so on
_SURE: Final = 4.0  # standard errors
_WORTH: Final = 1.5  # times the time of the fastest setting of an index: slower ones are not measured to the end
_CHUNK: Final = 64  # queries that a thread takes
_THREADS: Final = 8  # at most

_TIMED: Final = 96  # queries
_TURN: Final = 8  # of them in a row, behind ...
_WARM_UP: Final = 2  # ... that do not count: an index has the caches to itself, as in a server
_NEAR_TIES: Final = 16  # exact neighbours behind the k-th that may nearly tie with it
_FINER: Final = 4  # steps per doubling of the effort
_MAX_EF: Final = 64  # efSearch per item scored
_CURVE: Final = (-9, -6, -3, 3, 6)
"""Steps of effort around the best setting that complete its recall/latency curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An index that can be tried.

    Attributes:
        kind: of the manifest's IndexKind.
        factory: its description; empty for exact search.
        bytes: of its files.
        rescored: items to score exactly per item wanted, to try in this order: falling.
        effort: the search parameter that it has beside `rescored`, with its largest value; None: it has no other.
        engine: the server's, with a given effort.
        write: into the bundle, under a space's name.
    """

    kind: manifest_pb2.IndexKind.ValueType
    factory: str
    bytes: int
    rescored: Sequence[float]
    effort: tuple[str, int] | None
    engine: Callable[[Effort], Index]
    write: Callable[[BundleWriter, str], None]


class ExactIndex:
    """Exact search in the place of an index.

    Args:
        vectors: float32 [items, dim].
    """

    def __init__(self, vectors: Vectors) -> None:
        self._searcher = ExactSearcher(vectors)

    def rescored(self, k: int, reach: int) -> int:  # noqa: ARG002  nothing is scored twice
        """See Index.rescored."""
        return 0

    def find(self, queries: Vectors, k: Counts, reach: Counts, masks: Sequence[Mask | None]) -> list[Found]:  # noqa: ARG002
        """See Index.find."""
        return self._searcher.search(queries, int(k.max(initial=0)), masks)


def exact_index(vectors: Vectors) -> Built:
    """No index at all."""
    return Built(
        kind=manifest_pb2.EXACT,
        factory="",
        bytes=0,
        rescored=(),
        effort=None,
        engine=lambda _: ExactIndex(vectors),
        write=lambda *_: None,
    )


class Judge:
    """Measures searches on held-out queries.

    Args:
        vectors: float32 [items, dim].
        queries: float32 [n, dim].
        k: how many are asked for.
    """

    def __init__(self, vectors: Vectors, queries: Vectors, k: int) -> None:
        self.items = len(vectors)
        self._vectors = vectors
        # Some of them have to tell of the rest, so they are in no order.
        self.queries = queries[np.random.default_rng(0).permutation(len(queries))]
        self.k = k
        self._exact: list[Found] = []
        exact = ExactSearcher(vectors)
        for found in _in_threads(len(queries), partial(self._search, exact)):
            self._exact += found

    def recall(self, engine: Index, target: float | None = None) -> tuple[float, float, float]:
        """The mean recall at k, its lower 95% confidence bound, and roughly the milliseconds of a query.

        What the engine alone finds counts.

        Args:
            engine: that searches.
            target: of the bound; as many queries are asked as it takes to tell on which side the bound is. None: all.
        """
        recalls: list[float] = []
        seconds = 0.0
        while len(recalls) < len(self.queries):
            start, more = len(recalls), max(_FIRST_QUERIES, len(recalls))
            if target is None:
                more = len(self.queries)
            stop = min(start + more, len(self.queries))
            for found, used in _in_threads(stop - start, partial(self._recalls, engine, start)):
                recalls += found
                seconds += used
            if target is not None and _tells(recalls, target, len(self.queries)):
                break
        return float(np.mean(recalls)), lower_bound(recalls), 1e3 * seconds / len(recalls)

    def _search(self, searcher: ExactSearcher, part: slice) -> list[Found]:
        queries = self.queries[part]
        return searcher.search(queries, self.k + _NEAR_TIES, [None] * len(queries))

    def _recalls(self, engine: Index, start: int, part: slice) -> tuple[list[float], float]:
        """Of some of the queries from `start` on, and the seconds that finding them took."""
        part = slice(start + part.start, start + part.stop)
        began = time.thread_time()
        queries = self.queries[part]
        k = np.full(len(queries), self.k)
        answers = engine.find(queries, k, k, [None] * len(queries))
        used = time.thread_time() - began
        pairs = zip(answers, self._exact[part], strict=True)
        return [recall_at_k(rows, *exact, NEAR_TIE, k=self.k) for (rows, _), exact in pairs], used

    def milliseconds(self, engines: Sequence[Index]) -> list[float]:
        """The median time of one search by each; they take turns, so that the machine's moods meet all of them."""
        searchers = [IndexSearcher(self._vectors, engine) for engine in engines]
        times: list[list[float]] = [[] for _ in searchers]
        for first in range(0, _TIMED, _TURN):
            for mine, searcher in zip(times, searchers, strict=True):
                for number in range(first - _WARM_UP, first + _TURN):
                    query = self.queries[number % len(self.queries)][np.newaxis]
                    start = time.thread_time_ns()
                    searcher.search(query, self.k, [None])
                    if number >= first:
                        mine.append((time.thread_time_ns() - start) / 1e6)
        return [float(np.median(mine)) for mine in times]


def _in_threads(count: int, work: Callable[[slice], ResultT]) -> list[ResultT]:
    """What `work` gives for each chunk of `count` queries, in order; searches leave the GIL to others."""
    parts = [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(work, parts))


def _tells(recalls: Sequence[float], target: float, queries: int) -> bool:
    """Whether some of the queries tell on which side of the target the bound of all of them is."""
    deviation = float(np.std(recalls, ddof=1)) if len(recalls) > 1 else math.inf
    needed = target + ONE_SIDED_95 * deviation / math.sqrt(queries)
    return abs(float(np.mean(recalls)) - needed) > _SURE * deviation / math.sqrt(len(recalls))


def lower_bound(recalls: Sequence[float]) -> float:
    """The lower 95% confidence bound of the mean of per-query recalls; see the module."""
    if len(recalls) < 2:
        return float(np.mean(recalls))
    return float(np.mean(recalls) - ONE_SIDED_95 * np.std(recalls, ddof=1) / math.sqrt(len(recalls)))


def settle(built: Built, judge: Judge, target: float, limit: float = math.inf) -> list[manifest_pb2.IndexTrial]:
    """The settings of an index that are worth considering.

    For each number of re-scored items, the least effort whose lower bound reaches the target.

    Args:
        built: the index.
        judge: measures it.
        target: what the lower bound of recall has to reach.
        limit: milliseconds a search; slower settings are not looked at any further.

    Returns:
        Trials with their times, the fastest first; beyond `limit` as roughly as they were found. Where no setting
        reaches the target, the one that came nearest.
    """
    if not built.factory:
        exact = manifest_pb2.IndexTrial(kind=built.kind, items=judge.items, recall=1.0, recall_low=1.0)
        return timed([built], judge, [exact])
    good: list[manifest_pb2.IndexTrial] = []
    nearest: manifest_pb2.IndexTrial | None = None
    ladder, lowest = _ladder(built, judge.k), 0
    for rescored in rescored_values(built, judge):
        tried = _least(built, judge, target, rescored, ladder[lowest:], limit)
        if tried.recall_low < target:
            nearest = nearest or tried
            if tried.p50_ms > limit:  # fewer re-scored items may be fast enough
                continue
            break
        good.append(tried)
        # Fewer re-scored items never need less effort.
        lowest = ladder.index(tried.parameters.get(_effort_name(built), ladder[0]))
    if not good:
        if nearest is None or nearest.p50_ms > limit:
            return [] if nearest is None else [nearest]
        return [_trial(built, judge, dict(nearest.parameters))]
    fastest = min(trial.p50_ms for trial in good)
    if fastest > limit:
        return sorted(good, key=lambda trial: trial.p50_ms)
    good = [_confirmed(built, judge, target, trial) for trial in good if trial.p50_ms <= _WORTH * fastest]
    return sorted(timed([built] * len(good), judge, good), key=lambda trial: trial.p50_ms)


def _confirmed(built: Built, judge: Judge, target: float, trial: manifest_pb2.IndexTrial) -> manifest_pb2.IndexTrial:
    """The trial on all queries; with more effort, should they tell otherwise than some of them did."""
    name, ladder = _effort_name(built), _ladder(built, judge.k)
    step = ladder.index(trial.parameters.get(name, ladder[0]))
    parameters = dict(trial.parameters)
    while True:
        measured = _trial(built, judge, parameters)
        step += 1
        if measured.recall_low >= target or step == len(ladder):
            return measured
        parameters[name] = ladder[step]


def curve(built: Built, judge: Judge, best: manifest_pb2.IndexTrial) -> list[manifest_pb2.IndexTrial]:
    """Recall and latency with less and more effort than the best setting."""
    if not built.effort:
        return []
    ladder, name = _ladder(built, judge.k), _effort_name(built)
    at = ladder.index(best.parameters[name])
    values = [ladder[at + step] for step in _CURVE if 0 <= at + step < len(ladder)]
    trials = [_trial(built, judge, {**best.parameters, name: value}) for value in values]
    return timed([built] * len(trials), judge, trials)


def rescored_values(built: Built, judge: Judge) -> list[int]:
    """How many items to score exactly, largest first; so few that an index pays."""
    values = [math.ceil(judge.k * factor) + 16 for factor in built.rescored]
    return [value for value in values if EXACT_SHARE * value <= judge.items]


def least_items(k: int) -> int:
    """From how many items on an index can pay."""
    return EXACT_SHARE * (math.ceil(k * COARSE_CODES[-1]) + 16)


def _least(
    built: Built, judge: Judge, target: float, rescored: int, ladder: Sequence[int], limit: float
) -> manifest_pb2.IndexTrial:
    """The trial with the least effort that reaches the target; where there is none, the last that was tried.

    Effort grows faster and faster until it suffices, costs more than `limit` milliseconds a query, or ends; what lies
    before is bisected.
    """
    name = _effort_name(built)

    def at(step: int) -> manifest_pb2.IndexTrial:
        return _trial(built, judge, {RESCORED: rescored} | ({name: ladder[step]} if name else {}), target)

    low, high, stride = 0, 0, 1
    best = at(high)
    while best.recall_low < target and high < len(ladder) - 1 and best.p50_ms <= limit:
        low, high = high + 1, min(high + stride, len(ladder) - 1)
        best, stride = at(high), 2 * stride
    while low < high and best.recall_low >= target:
        middle = (low + high) // 2
        trial = at(middle)
        if trial.recall_low >= target:
            best, high = trial, middle
        else:
            low = middle + 1
    return best


def _ladder(built: Built, k: int) -> list[int]:
    """Rising values of the effort; a single one for an index that has no such parameter."""
    if not built.effort:
        return [0]
    name, most = built.effort
    first = 1 if name == NPROBE else min(most, k)
    last = most if name == NPROBE else min(most, _MAX_EF * first)
    steps = math.ceil(_FINER * math.log2(last / first))
    return sorted({min(last, round(first * 2 ** (step / _FINER))) for step in range(steps + 1)})


def _effort_name(built: Built) -> str:
    return built.effort[0] if built.effort else ""


def timed(
    indexes: Sequence[Built], judge: Judge, trials: list[manifest_pb2.IndexTrial]
) -> list[manifest_pb2.IndexTrial]:
    """The trials, one of each index, with their times measured anew and in turns."""
    efforts = [Effort(trial.parameters, judge.k) for trial in trials]
    times = judge.milliseconds([built.engine(effort) for built, effort in zip(indexes, efforts, strict=True)])
    for trial, milliseconds in zip(trials, times, strict=True):
        trial.p50_ms = milliseconds
    return trials


def _trial(built: Built, judge: Judge, parameters: Parameters, target: float | None = None) -> manifest_pb2.IndexTrial:
    recall, low, milliseconds = judge.recall(built.engine(Effort(parameters, judge.k)), target)
    return manifest_pb2.IndexTrial(
        kind=built.kind,
        factory=built.factory,
        parameters=parameters,
        items=judge.items,
        recall=recall,
        recall_low=low,
        bytes=built.bytes,
        p50_ms=milliseconds,  # roughly, until it is timed by itself
    )
