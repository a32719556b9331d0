"""From results to responses."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TypeAlias

from recserve.server.bundle.columns import Value
from recserve.server.pipeline.types import Degraded, Result
from recserve.server.rpc.convert import Job, new_id
from recserve.v1 import recommender_pb2 as pb

Response: TypeAlias = pb.RecommendResponse | pb.SimilarItemsResponse | pb.RankItemsResponse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """A job's result with what happened around it. Times are microseconds."""

    job: Job
    result: Result
    queue_us: int
    state_us: int
    total_us: int
    degraded: tuple[Degraded, ...] = ()
    """What was left out before the pipeline."""
    cache_hit: bool = False
    """It was kept from an equal request."""


def fill_recommend(response: pb.RecommendResponse, answer: Answer) -> None:
    """Write the answer to a Recommend into an empty response."""
    _fill(response, answer)
    response.cold_start = answer.result.cold_start
    response.cache_hit = answer.cache_hit


def fill_similar(response: pb.SimilarItemsResponse, answer: Answer) -> None:
    """Write the answer to a SimilarItems into an empty response."""
    _fill(response, answer)
    response.unknown_item_ids.extend(answer.job.unknown_item_ids)


def fill_rank(response: pb.RankItemsResponse, answer: Answer) -> None:
    """Write the answer to a RankItems into an empty response."""
    _fill(response, answer)
    response.cold_start = answer.result.cold_start
    response.unknown_item_ids.extend(answer.job.unknown_item_ids)


def _fill(response: Response, answer: Answer) -> None:
    """What all responses have. In place, because a message that is put into another is copied by way of its bytes."""
    job = answer.job
    response.request_id = job.request_id
    response.bundle.name, response.bundle.version = job.bundle, job.pipeline.bundle.version
    for each in (*answer.degraded, *answer.result.degraded):
        response.degraded.add(stage=each.stage, reason=each.reason)
    _fill_times(response.times, answer)
    response.recommendation_id = new_id()
    _add_items(response, job, answer.result)


def _fill_times(times: pb.StageTimes, answer: Answer) -> None:
    stages = answer.result.times
    times.queue_us, times.state_us, times.total_us = answer.queue_us, answer.state_us, answer.total_us
    times.embed_us, times.retrieve_us = stages.embed_us, stages.retrieve_us
    times.rank_us, times.rerank_us = stages.rank_us, stages.rerank_us


def _add_items(response: Response, job: Job, result: Result) -> None:
    catalogue = job.pipeline.bundle.catalogue
    columns = [(name, catalogue.columns[name]) for name in job.fields]
    rows, scores = result.rows.tolist(), result.scores.tolist()
    relevance = None if result.relevance is None else result.relevance.tolist()
    source_scores, source_ranks = result.source_scores.tolist(), result.source_ranks.tolist()
    # Assigned one by one: keyword arguments of messages take several times as long.
    for place, item_id in enumerate(catalogue.ids_of_rows(result.rows)):
        item = response.items.add()
        item.item_id, item.rank, item.score = item_id, place + 1, scores[place]
        if relevance is not None:
            item.relevance = relevance[place]
        for name, score, rank in zip(result.sources, source_scores[place], source_ranks[place], strict=True):
            if rank > 0:
                source = item.sources.add()
                source.name, source.score, source.rank = name, score, rank
        for reason in result.reasons[place] if result.reasons else ():
            item.reasons.add(code=reason.code, parameters=reason.parameters)
        for name, column in columns:
            value = column.value(rows[place])
            if value is not None:
                set_value(item.fields[name], value)


def set_value(target: pb.AttributeValue, value: Value) -> None:
    """Fill in an attribute: the kind follows from the column's type, as documented in the proto."""
    match value:
        case str():
            target.text = value
        case float():
            target.number = value
        case bool():
            target.flag = value
        case int():
            target.integer = value
        case datetime.datetime():
            target.time.FromDatetime(value)
        case tuple():
            target.texts.values.extend(value)
