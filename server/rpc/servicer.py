"""RecommenderService, whatever brings the bytes: parse, validate, admit, fetch state, compute, answer.

    bytes -> message -> Job (convert) -> Ticket (admission) -> UserState (state) -> Result (batcher) -> message -> bytes
                                                                             `-> Result (answer_cache) -'

A front hands over a method's name, the bytes and the time left, and gets bytes or a status. If it cancels the call,
the call's places in the queue are given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import Settings
from recserve.server.pipeline.cache import CacheStats
from recserve.server.pipeline.errors import DeadlineExpiredError, NotReadyError
from recserve.server.pipeline.types import Degraded, Result, UserState
from recserve.server.rpc import answers, validate
from recserve.server.rpc.admission import Admission, Ticket
from recserve.server.rpc.answer_cache import AnswerCache, state_version
from recserve.server.rpc.answers import Answer
from recserve.server.rpc.batcher import Batcher
from recserve.server.rpc.convert import Converter, Job, new_id, usable_request_id
from recserve.server.rpc.errors import MalformedRequestError, NotImplementedMethodError
from recserve.server.rpc.problems import Problems
from recserve.server.rpc.status import status_of
from recserve.server.state.protocol import StateStore, StateUnavailableError
from recserve.v1 import recommender_pb2 as pb

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)

_WRITTEN_ON_THE_LOOP: Final = 2000
"""Values of an answer (`Answer.values`) that take a few milliseconds to write. Where there are more, a thread writes
them, so that other calls, health checks among them, go on in between."""

SERVICE = pb.DESCRIPTOR.services_by_name["RecommenderService"]
"""The contract, by which fronts register the methods."""


@dataclass(slots=True)
class Call:
    """One call of a method."""

    started: float
    deadline: float
    """Both `time.monotonic()` seconds."""
    request_id: str
    """Empty until the bytes are read."""

    def elapsed_us(self) -> int:
        """Microseconds since the bytes arrived."""
        return round((time.monotonic() - self.started) * 1e6)


class RecommenderService:
    """Answers the methods of recserve.v1.RecommenderService. Made and used on one event loop.

    Args:
        registry: the pipelines by bundle name; while it is empty, requests are UNAVAILABLE.
        state: where users' state comes from; closing it is the caller's.
        settings: the configuration.
    """

    def __init__(self, registry: BundleRegistry[Pipeline], state: StateStore, settings: Settings) -> None:
        compute = settings.compute
        self._registry = registry
        self._state = state
        self._state_deadline_s = settings.state.deadline_ms / 1000
        self._default_deadline_s = settings.server.default_deadline_ms / 1000
        self._converter = Converter(registry, settings)
        self._caches_answers = settings.answer_cache.entries > 0
        self._admission = Admission(settings.admission.max_queue, compute.threads)
        self._answers = AnswerCache(settings.answer_cache.limits)
        self._batcher = Batcher(compute.threads, compute.max_batch, self._admission.observe)
        self._recording: set[asyncio.Task[None]] = set()
        self._state_answers = True

    async def answer(self, method: str, payload: bytes, time_left: float | None) -> bytes | Status:
        """Answer one call.

        Args:
            method: name of a method of the service, such as "Recommend".
            payload: the request's bytes.
            time_left: seconds until the caller's deadline; None: it has none, and the configured one holds.

        Returns:
            The response's bytes, or why there is none.
        """
        now = time.monotonic()
        call = Call(now, now + (self._default_deadline_s if time_left is None else time_left), "")
        known = _METHODS[method]
        try:
            request = _parse(known.request, payload)
            call.request_id = usable_request_id(getattr(request, "request_id", "")) or new_id()
            return await known.answer(self, request, call)
        except Exception as error:  # the one boundary at which errors become statuses
            return status_of(error, call.request_id or new_id())

    async def drain(self) -> None:
        """Refuse new requests; return when admitted ones have been answered and what they showed is recorded."""
        self._admission.close()
        await self._admission.drained()
        await asyncio.gather(*self._recording)

    async def close(self) -> None:
        """Refuse new requests and end the compute threads, each after the batch that it is at."""
        self._admission.close()
        await self._batcher.close()

    def cache_stats(self) -> dict[str, CacheStats]:
        """Every cache that is in use, by what it keeps."""
        vectors = {
            f'user vectors of bundle "{bundle}", space "{space}"': stats
            for bundle, pipeline in self._registry.ready.items()
            for space, stats in pipeline.kept_vectors.items()
        }
        return vectors | ({"answers": self._answers.stats} if self._caches_answers else {})

    # ------------------------------------------------------------------------------------------ methods

    async def _recommend(self, request: pb.RecommendRequest, call: Call) -> bytes:
        job = self._converter.recommend(request, call.request_id, call.deadline)
        return await self._answer(job, call, answers.recommend)

    async def _similar_items(self, request: pb.SimilarItemsRequest, call: Call) -> bytes:
        job = self._converter.similar(request, call.request_id, call.deadline)
        return await self._answer(job, call, answers.similar)

    async def _rank_items(self, request: pb.RankItemsRequest, call: Call) -> bytes:
        job = self._converter.rank(request, call.request_id, call.deadline)
        return await self._answer(job, call, answers.rank)

    async def _explain(self, _request: pb.ExplainRequest, _call: Call) -> bytes:
        raise NotImplementedMethodError("Explain")

    async def _batch_recommend(self, request: pb.BatchRecommendRequest, call: Call) -> bytes:
        problems = Problems()
        validate.check_batch(request, problems)
        problems.raise_any()
        ids = [usable_request_id(each.request_id) or new_id() for each in request.requests]
        with ExitStack() as tickets:  # gives back what is still out where the caller leaves
            entries = await self._admit_all(zip(request.requests, ids, strict=True), call, tickets)
            if all(isinstance(entry, NotReadyError) for entry in entries):
                raise NotReadyError(str(entries[0]))  # one status for all, so that clients turn to another replica
            response = await self._answer_all(entries, ids, call)
        return response.SerializeToString()

    # ----------------------------------------------------------------------------------------- the road

    async def _answer(self, job: Job, call: Call, write: Callable[[Answer], bytes]) -> bytes:
        """The road of a single request."""
        with self._admit(job, call) as ticket:
            fetched = await self._fetch([job.query.user_id], call)
            answer = await self._finish(_Admitted(job, ticket), fetched, call)
            if answer.values <= _WRITTEN_ON_THE_LOOP:
                return write(answer)
            return await asyncio.to_thread(write, answer)

    def _admit(self, job: Job, call: Call) -> Ticket:
        """Who will probably be answered from the cache takes no place in the queue."""
        held = bool(job.cache_key) and self._answers.holds(job.cache_key)
        return self._admission.admit(call.deadline, job.query.size, queued=not held)

    async def _admit_all(
        self, requests: Iterable[tuple[pb.RecommendRequest, str]], call: Call, tickets: ExitStack
    ) -> list[_Admitted | Exception]:
        """Each request of a batch, which come with their ids, or why it is not admitted."""
        entries: list[_Admitted | Exception] = []
        for request, request_id in requests:
            try:
                job = self._converter.recommend(request, request_id, call.deadline)
                entries.append(_Admitted(job, tickets.enter_context(self._admit(job, call))))
            except Exception as error:  # it becomes the status of this request alone
                entries.append(error)
            await asyncio.sleep(0)  # other calls go on in between
        return entries

    async def _answer_all(
        self, entries: Sequence[_Admitted | Exception], ids: Sequence[str], call: Call
    ) -> pb.BatchRecommendResponse:
        """Each request's answer or status; state is fetched for all at once."""
        admitted = [entry for entry in entries if isinstance(entry, _Admitted)]
        fetched = await self._fetch([entry.job.query.user_id for entry in admitted], call)
        response = pb.BatchRecommendResponse()
        async with asyncio.TaskGroup() as group:
            road = [group.create_task(self._outcome(entry, fetched, call)) for entry in admitted]
            arriving = iter(road)
            for entry, request_id in zip(entries, ids, strict=True):
                outcome = await next(arriving) if isinstance(entry, _Admitted) else entry
                if isinstance(outcome, Answer) and outcome.values > _WRITTEN_ON_THE_LOOP:
                    await asyncio.to_thread(_add_answer, response, outcome, request_id)
                else:
                    _add_answer(response, outcome, request_id)
                    await asyncio.sleep(0)  # other calls go on in between
        return response

    async def _outcome(self, admitted: _Admitted, fetched: _Fetched, call: Call) -> Answer | Exception:
        """The road of one request of a batch, which gives its place back before the others are there."""
        with admitted.ticket:
            try:
                return await self._finish(admitted, fetched, call)
            except Exception as error:  # it becomes the status of this request alone
                return error

    async def _fetch(self, user_ids: Iterable[str], call: Call) -> _Fetched:
        """The users' states; where the store does not answer in time, none.

        Raises:
            DeadlineExpiredError: the caller's own deadline was over first, which says nothing of the store.
        """
        wanted = [user_id for user_id in dict.fromkeys(user_ids) if user_id]
        if not wanted:
            return _Fetched({}, 0, ())
        started = time.monotonic()
        time_left = call.deadline - started
        states: dict[str, UserState] = {}
        reason = ""
        try:
            states = dict(zip(wanted, await self._states(wanted, min(self._state_deadline_s, time_left)), strict=True))
        except TimeoutError:
            if time_left < self._state_deadline_s:
                raise DeadlineExpiredError("state") from None
            reason = "deadline"
        except StateUnavailableError:
            reason = "state_unavailable"
        self._note_state(reason)
        elapsed_us = round((time.monotonic() - started) * 1e6)
        return _Fetched(states, elapsed_us, (Degraded("state", reason),) if reason else ())

    async def _states(self, user_ids: Sequence[str], seconds: float) -> list[UserState]:
        """What the store says within the time; where it need not be waited for, no timer is set."""
        states = self._state.fetch(user_ids)
        if isinstance(states, list):
            return states
        async with asyncio.timeout(seconds):
            return await states

    def _note_state(self, reason: str) -> None:
        """Log when the store stops answering and when it answers again, not every request in between."""
        if bool(reason) == self._state_answers:
            self._state_answers = not reason
            if reason:
                logger.warning("the state store does not answer (%s); requests are served as of unknown users", reason)
            else:
                logger.info("the state store answers again")

    async def _finish(self, admitted: _Admitted, fetched: _Fetched, call: Call) -> Answer:
        """From the cache, or else computed."""
        job = admitted.job
        if job.needs_state and fetched.degraded:
            raise StateUnavailableError(
                "the request excludes what its user bought or was shown, and that cannot be had now: try again soon, "
                "or ask without filter.exclude_purchased and filter.exclude_shown"
            )
        state = fetched.states.get(job.query.user_id) or _unknown_user(job)
        # An answer that had to do without state is good for one moment only.
        key = b"" if fetched.degraded else job.cache_key
        version = state_version(state) if key else b""
        held = self._answers.get(key, version, job.pipeline) if key else None
        if held is not None:
            result, queue_us = held, 0
        else:
            admitted.ticket.enqueue()
            result, queue_us = await self._batcher.submit(job.pipeline, job.query, state)
        if key and held is None:
            self._answers.put(key, version, job.pipeline, result)
        if job.record_shown:
            self._record_shown(job, result)
        return Answer(
            job=job,
            result=result,
            queue_us=queue_us,
            state_us=fetched.elapsed_us,
            total_us=call.elapsed_us(),
            degraded=fetched.degraded,
            cache_hit=held is not None,
        )

    def _record_shown(self, job: Job, result: Result) -> None:
        """Remember the answer, off its road; the loop itself keeps no reference to a task."""
        keys = job.pipeline.bundle.catalogue.keys_of_rows(result.rows)
        task = asyncio.create_task(self._record(job, keys, time.time_ns() // 1000))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _record(self, job: Job, keys: NDArray[np.uint64], time_us: int) -> None:
        try:
            async with asyncio.timeout(self._default_deadline_s):  # closing waits for it
                await self._state.record_shown(job.query.user_id, keys, time_us)
        except Exception:  # the answer is on its way; nobody is left to tell
            logger.warning("request %s: what was shown could not be recorded", job.request_id, exc_info=True)


class _Admitted(NamedTuple):
    job: Job
    ticket: Ticket


class _Fetched(NamedTuple):
    states: Mapping[str, UserState]
    """By user, as far as the store answered."""
    elapsed_us: int
    degraded: tuple[Degraded, ...]


class _Method(NamedTuple):
    request: type[Message]
    answer: Callable[[RecommenderService, Any, Call], Awaitable[bytes]]
    """Any: the request type beside it."""


_METHODS: Mapping[str, _Method] = {
    "Recommend": _Method(pb.RecommendRequest, RecommenderService._recommend),
    "BatchRecommend": _Method(pb.BatchRecommendRequest, RecommenderService._batch_recommend),
    "SimilarItems": _Method(pb.SimilarItemsRequest, RecommenderService._similar_items),
    "RankItems": _Method(pb.RankItemsRequest, RecommenderService._rank_items),
    "Explain": _Method(pb.ExplainRequest, RecommenderService._explain),
}


def _parse(kind: type[Message], payload: bytes) -> Message:
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise MalformedRequestError(kind.DESCRIPTOR.full_name) from error


def _unknown_user(job: Job) -> UserState:
    return UserState(known=False, columns=ColumnValues.missing(job.pipeline.bundle.schema.user_layout, 1))


def _add_answer(response: pb.BatchRecommendResponse, outcome: Answer | Exception, request_id: str) -> None:
    target = response.answers.add()
    if isinstance(outcome, Answer):
        answers.fill_recommend(target.response, outcome)
        return
    status = status_of(outcome, request_id)
    target.status.code, target.status.message = status.code, status.message
    target.status.details.extend(status.details)
