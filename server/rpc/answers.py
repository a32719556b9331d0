"""From results to responses."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recserve.server.bundle.columns import Value
from recserve.server.pipeline.types import Degraded, Result
from recserve.server.rpc.convert import Job
from recserve.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """A job's result with what happened around it. Times are microseconds."""

    job: Job
    result: Result
    queue_us: int
    state_us: int
    degraded: tuple[Degraded, ...] = ()
    """What was left out before the pipeline."""


def recommend_response(answer: Answer, total_us: int) -> pb.RecommendResponse:
    """The response to a Recommend."""
    return pb.RecommendResponse(
        items=_items(answer.job, answer.result),
        request_id=answer.job.request_id,
        bundle=_bundle(answer.job),
        cold_start=answer.result.cold_start,
        degraded=_degraded(answer),
        times=_times(answer, total_us),
        recommendation_id=_new_recommendation_id(),
    )


def similar_response(answer: Answer, total_us: int) -> pb.SimilarItemsResponse:
    """The response to a SimilarItems."""
    return pb.SimilarItemsResponse(
        items=_items(answer.job, answer.result),
        unknown_item_ids=answer.job.unknown_item_ids,
        request_id=answer.job.request_id,
        bundle=_bundle(answer.job),
        degraded=_degraded(answer),
        times=_times(answer, total_us),
        recommendation_id=_new_recommendation_id(),
    )


def rank_response(answer: Answer, total_us: int) -> pb.RankItemsResponse:
    """The response to a RankItems."""
    return pb.RankItemsResponse(
        items=_items(answer.job, answer.result),
        unknown_item_ids=answer.job.unknown_item_ids,
        request_id=answer.job.request_id,
        bundle=_bundle(answer.job),
        cold_start=answer.result.cold_start,
        degraded=_degraded(answer),
        times=_times(answer, total_us),
        recommendation_id=_new_recommendation_id(),
    )


def _items(job: Job, result: Result) -> Iterator[pb.Recommendation]:
    catalogue = job.pipeline.bundle.catalogue
    rows, scores = result.rows.tolist(), result.scores.tolist()
    relevance = None if result.relevance is None else result.relevance.tolist()
    source_scores, source_ranks = result.source_scores.tolist(), result.source_ranks.tolist()
    for place, item_id in enumerate(catalogue.ids_of_rows(result.rows)):
        item = pb.Recommendation(
            item_id=item_id,
            rank=place + 1,
            score=scores[place],
            sources=_sources(result.sources, source_scores[place], source_ranks[place]),
        )
        if relevance is not None:
            item.relevance = relevance[place]
        for reason in result.reasons[place] if result.reasons else ():
            item.reasons.add(code=reason.code, parameters=reason.parameters)
        if job.fields:
            for name, value in catalogue.attributes(rows[place], job.fields).items():
                set_value(item.fields[name], value)
        yield item


def _sources(names: Sequence[str], scores: Sequence[float], ranks: Sequence[int]) -> Iterator[pb.SourceScore]:
    for name, score, rank in zip(names, scores, ranks, strict=True):
        if rank > 0:
            yield pb.SourceScore(name=name, score=score, rank=rank)


def set_value(target: pb.AttributeValue, value: Value) -> None:
    """Fill in an attribute: the kind follows from the column's type, as documented in the proto."""
    match value:
        case bool():
            target.flag = value
        case int():
            target.integer = value
        case float():
            target.number = value
        case str():
            target.text = value
        case datetime.datetime():
            target.time.FromDatetime(value)
        case tuple():
            target.texts.values.extend(value)


def _bundle(job: Job) -> pb.BundleRef:
    return pb.BundleRef(name=job.bundle, version=job.pipeline.bundle.version)


def _degraded(answer: Answer) -> Iterator[pb.Degraded]:
    for each in (*answer.degraded, *answer.result.degraded):
        yield pb.Degraded(stage=each.stage, reason=each.reason)


def _times(answer: Answer, total_us: int) -> pb.StageTimes:
    times = answer.result.times
    return pb.StageTimes(
        queue_us=answer.queue_us,
        state_us=answer.state_us,
        embed_us=times.embed_us,
        retrieve_us=times.retrieve_us,
        rank_us=times.rank_us,
        rerank_us=times.rerank_us,
        total_us=total_us,
    )


def _new_recommendation_id() -> str:
    return uuid.uuid4().hex
