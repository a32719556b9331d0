"""From results to responses."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from recserve.server.bundle.columns import Value
from recserve.server.pipeline.types import Degraded, Result
from recserve.server.rpc.convert import Job, new_id
from recserve.v1 import recommender_pb2 as pb

Response: TypeAlias = pb.RecommendResponse | pb.SimilarItemsResponse | pb.RankItemsResponse


class Answer(NamedTuple):
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

    @property
    def values(self) -> int:
        """About how many have to be written: its items, and their attributes."""
        return self.result.rows.size * (1 + len(self.job.fields))


def recommend(answer: Answer) -> bytes:
    """The response to a Recommend."""
    response = pb.RecommendResponse()
    fill_recommend(response, answer)
    return response.SerializeToString()


def similar(answer: Answer) -> bytes:
    """The response to a SimilarItems."""
    response = pb.SimilarItemsResponse()
    _fill(response, answer)
    response.unknown_item_ids.extend(answer.job.unknown_item_ids)
    return response.SerializeToString()


def rank(answer: Answer) -> bytes:
    """The response to a RankItems."""
    response = pb.RankItemsResponse()
    _fill(response, answer)
    response.cold_start = answer.result.cold_start
    response.unknown_item_ids.extend(answer.job.unknown_item_ids)
    return response.SerializeToString()


def fill_recommend(response: pb.RecommendResponse, answer: Answer) -> None:
    """Write the answer to a Recommend into an empty response."""
    _fill(response, answer)
    response.cold_start = answer.result.cold_start
    response.cache_hit = answer.cache_hit


def _fill(response: Response, answer: Answer) -> None:
    """What all responses have. In place, because a message that is put into another is copied by way of its bytes."""
    job, result = answer.job, answer.result
    response.request_id = job.request_id
    bundle = response.bundle
    bundle.name, bundle.version = job.bundle, job.pipeline.bundle.version
    for each in (*answer.degraded, *result.degraded):
        response.degraded.add(stage=each.stage, reason=each.reason)
    _fill_times(response.times, answer)
    response.recommendation_id = new_id()
    _add_items(response, job, result)


def _fill_times(times: pb.StageTimes, answer: Answer) -> None:
    stages = answer.result.times
    times.queue_us, times.state_us, times.total_us = answer.queue_us, answer.state_us, answer.total_us
    times.embed_us, times.retrieve_us = stages.embed_us, stages.retrieve_us
    times.rank_us, times.rerank_us = stages.rank_us, stages.rerank_us


def _add_items(response: Response, job: Job, result: Result) -> None:
    # Field by field, and each assigned: a loop over the sources of each item, or keyword arguments, take longer than
    # what they write.
    catalogue = job.pipeline.bundle.catalogue
    add = response.items.add
    items = [add() for _ in range(result.rows.size)]
    for item, item_id, rank, score in zip(
        items, catalogue.ids_of_rows(result.rows), range(1, len(items) + 1), result.scores.tolist(), strict=True
    ):
        item.item_id, item.rank, item.score = item_id, rank, score
    if result.relevance is not None:
        for item, relevance in zip(items, result.relevance.tolist(), strict=True):
            item.relevance = relevance
    _add_sources(items, result)
    for item, reasons in zip(items, result.reasons, strict=True) if result.reasons else ():
        for reason in reasons:
            item.reasons.add(code=reason.code, parameters=reason.parameters)
    for name in job.fields:
        column = catalogue.columns[name]
        for item, row in zip(items, result.rows.tolist(), strict=True):
            if (value := column.value(row)) is not None:
                set_value(item.fields[name], value)


def _add_sources(items: Sequence[pb.Recommendation], result: Result) -> None:
    """Those that proposed an item."""
    scores, ranks = result.source_scores.T.tolist(), result.source_ranks.T.tolist()
    for name, of_source, ranks_in_source in zip(result.sources, scores, ranks, strict=True):
        for item, score, rank in zip(items, of_source, ranks_in_source, strict=True):
            if rank > 0:
                source = item.sources.add()
                source.name, source.score, source.rank = name, score, rank


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
