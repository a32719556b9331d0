"""RecommenderService, whatever brings the bytes: parse, validate, admit, fetch state, compute, answer.

    bytes -> message -> Job (convert) -> Ticket (admission) -> UserState (state) -> Result (batcher) -> message -> bytes

A front hands over a method's name, the bytes and the time left, and gets bytes or a status. If it cancels the call,
the call's places in the queue are given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import Settings
from recserve.server.pipeline.errors import NotReadyError, RequestError
from recserve.server.pipeline.types import Degraded, Result, UserState
from recserve.server.rpc import answers, validate
from recserve.server.rpc.admission import Admission, Ticket
from recserve.server.rpc.answers import Answer
from recserve.server.rpc.batcher import Batcher
from recserve.server.rpc.convert import Converter, Job, new_request_id, usable_request_id
from recserve.server.rpc.errors import MalformedRequestError, NotImplementedMethodError
from recserve.server.rpc.problems import Problems
from recserve.server.rpc.status import status_of
from recserve.server.state.protocol import StateStore, StateUnavailableError
from recserve.v1 import recommender_pb2 as pb

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RecommenderService"]
"""The contract, by which fronts register the methods."""


@dataclass(slots=True)
class Call:
    """One call of a method."""

    started: float
    deadline: float
    """Both `time.monotonic()` seconds."""
    request_id: str

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
        self._state = state
        self._state_deadline_s = settings.state.deadline_ms / 1000
        self._default_deadline_s = settings.server.default_deadline_ms / 1000
        self._converter = Converter(registry, settings)
        self._admission = Admission(settings.admission.max_queue, compute.threads)
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
        call = Call(now, now + (self._default_deadline_s if time_left is None else time_left), new_request_id())
        known = _METHODS[method]
        try:
            request = _parse(known.request, payload)
            call.request_id = usable_request_id(getattr(request, "request_id", "")) or call.request_id
            response = await known.answer(self, request, call)
        except Exception as error:  # the one boundary at which errors become statuses
            return status_of(error, call.request_id)
        return response.SerializeToString()

    async def drain(self) -> None:
        """Refuse new requests and return when those that were admitted have been answered."""
        self._admission.close()
        await self._admission.drained()

    async def close(self) -> None:
        """End the compute threads and finish recording; nothing may be in flight any more."""
        self._admission.close()
        await self._batcher.close()
        await asyncio.gather(*self._recording)

    # ------------------------------------------------------------------------------------------ methods

    async def _recommend(self, request: pb.RecommendRequest, call: Call) -> pb.RecommendResponse:
        job = self._converter.recommend(request, call.request_id, call.deadline)
        answer = await self._answer_one(job, call)
        return answers.recommend_response(answer, call.elapsed_us())

    async def _similar_items(self, request: pb.SimilarItemsRequest, call: Call) -> pb.SimilarItemsResponse:
        job = self._converter.similar(request, call.request_id, call.deadline)
        answer = await self._answer_one(job, call)
        return answers.similar_response(answer, call.elapsed_us())

    async def _rank_items(self, request: pb.RankItemsRequest, call: Call) -> pb.RankItemsResponse:
        job = self._converter.rank(request, call.request_id, call.deadline)
        answer = await self._answer_one(job, call)
        return answers.rank_response(answer, call.elapsed_us())

    async def _explain(self, _request: pb.ExplainRequest, _call: Call) -> pb.ExplainResponse:
        raise NotImplementedMethodError("Explain")

    async def _batch_recommend(self, request: pb.BatchRecommendRequest, call: Call) -> pb.BatchRecommendResponse:
        problems = Problems()
        validate.check_batch(request, problems)
        problems.raise_any()
        ids = [usable_request_id(each.request_id) or new_request_id() for each in request.requests]
        jobs = [self._job_or_error(each, each_id, call) for each, each_id in zip(request.requests, ids, strict=True)]
        outcomes = await self._answer_all(jobs, call)
        if all(isinstance(outcome, NotReadyError) for outcome in outcomes):
            raise NotReadyError(str(outcomes[0]))  # one status for all, so that clients turn to another replica
        finished = zip(outcomes, ids, strict=True)
        return pb.BatchRecommendResponse(answers=[_batch_answer(*each, call) for each in finished])

    def _job_or_error(self, request: pb.RecommendRequest, request_id: str, call: Call) -> Job | Exception:
        try:
            return self._converter.recommend(request, request_id, call.deadline)
        except Exception as error:  # it becomes the status of this request alone
            return error

    # ----------------------------------------------------------------------------------------- the road

    async def _answer_one(self, job: Job, call: Call) -> Answer:
        [outcome] = await self._answer_all([job], call)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _answer_all(self, jobs: Sequence[Job | Exception], call: Call) -> list[Answer | Exception]:
        """Outcomes in the order of the jobs. Each job is admitted by itself; state is fetched for all at once."""
        with ExitStack() as tickets:  # gives back what is still out where the caller leaves
            entries = [self._admit(job, call, tickets) for job in jobs]
            admitted = [entry for entry in entries if isinstance(entry, _Admitted)]
            fetched = await self._fetch([entry.job for entry in admitted], call)
            road = [self._compute(entry, mine) for entry, mine in zip(admitted, fetched, strict=True)]
            answered = iter([await road[0]] if len(road) == 1 else await asyncio.gather(*road))
        return [next(answered) if isinstance(entry, _Admitted) else entry for entry in entries]

    def _admit(self, job: Job | Exception, call: Call, tickets: ExitStack) -> _Admitted | Exception:
        if isinstance(job, Exception):
            return job
        try:
            return _Admitted(job, tickets.enter_context(self._admission.admit(call.deadline)))
        except RequestError as error:
            return error

    async def _fetch(self, jobs: Sequence[Job], call: Call) -> list[_Fetched]:
        """The state of each job's user; where the store does not answer in time, as if nobody knew the user."""
        user_ids = list(dict.fromkeys(job.query.user_id for job in jobs if job.query.user_id))
        if not user_ids:
            return [_Fetched(_unknown_user(job), 0, ()) for job in jobs]
        started = time.monotonic()
        states: dict[str, UserState] = {}
        reason = ""
        try:
            async with asyncio.timeout(min(self._state_deadline_s, call.deadline - started)):
                states = dict(zip(user_ids, await self._state.fetch(user_ids), strict=True))
        except TimeoutError:
            reason = "deadline"
        except StateUnavailableError:
            reason = "state_unavailable"
        self._note_state(reason)
        elapsed_us = round((time.monotonic() - started) * 1e6)
        degraded = (Degraded("state", reason),) if reason else ()
        return [_Fetched(states.get(job.query.user_id) or _unknown_user(job), elapsed_us, degraded) for job in jobs]

    def _note_state(self, reason: str) -> None:
        """Log when the store stops answering and when it answers again, not every request in between."""
        if bool(reason) == self._state_answers:
            self._state_answers = not reason
            if reason:
                logger.warning("the state store does not answer (%s); requests are served as of unknown users", reason)
            else:
                logger.info("the state store answers again")

    async def _compute(self, admitted: _Admitted, fetched: _Fetched) -> Answer | Exception:
        job = admitted.job
        try:
            result, queue_us = await self._batcher.submit(job.pipeline, job.query, fetched.state)
        except Exception as error:  # it becomes the status of this request alone
            return error
        finally:
            admitted.ticket.release()
        if job.record_shown:
            self._record_shown(job, result)
        return Answer(job=job, result=result, queue_us=queue_us, state_us=fetched.elapsed_us, degraded=fetched.degraded)

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
    state: UserState
    elapsed_us: int
    degraded: tuple[Degraded, ...]


class _Method(NamedTuple):
    request: type[Message]
    answer: Callable[[RecommenderService, Any, Call], Awaitable[Message]]
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


def _batch_answer(outcome: Answer | Exception, request_id: str, call: Call) -> pb.BatchAnswer:
    if isinstance(outcome, Answer):
        return pb.BatchAnswer(response=answers.recommend_response(outcome, call.elapsed_us()))
    status = status_of(outcome, request_id)
    return pb.BatchAnswer(status=pb.Status(code=status.code, message=status.message, details=status.details))
