"""Candidate sources: each proposes items for requests, best first, all of them passing the request's filter.

    base       the protocol, and the request as sources see it
    spaces     near the user's vector in a vector space; `similar`, near the user's latest items
    behaviour  `again`, what is bought `together`, what is `trending`
    popular    `popular` with everybody, `popular_in_category`, and with users or in situations like the request's
    new        freshly launched

A bundle has the sources that it has the data for: `sources_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from recserve.bundle.v1 import manifest_pb2
from recserve.server.bundle.columns import TimeColumn
from recserve.server.bundle.layout import AGAIN, NEW, POPULAR, POPULAR_IN_CATEGORY, SIMILAR
from recserve.server.bundle.lists import ItemLists
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.orders import RowsByCode
from recserve.server.pipeline.search import Searcher
from recserve.server.pipeline.sources.base import Proposal, Request, Source
from recserve.server.pipeline.sources.behaviour import AgainSource, TogetherSource, TrendingSource
from recserve.server.pipeline.sources.new import NewSource
from recserve.server.pipeline.sources.popular import (
    PopularBySource,
    PopularInCategorySource,
    PopularSource,
)
from recserve.server.pipeline.sources.spaces import SimilarSource, SpaceSource

__all__ = [
    "AGAIN",
    "NEW",
    "POPULAR",
    "POPULAR_IN_CATEGORY",
    "SIMILAR",
    "Proposal",
    "Request",
    "Source",
    "sources_of",
]


def sources_of(bundle: Bundle, searchers: Mapping[str, Searcher], by_category: RowsByCode | None) -> dict[str, Source]:
    """A bundle's sources by name, in the order in which features and answers list them.

    Args:
        bundle: an open bundle.
        searchers: by space.
        by_category: rows by category, the most popular first; None where the catalogue has no categories.
    """
    spaces = (SpaceSource(name, searchers[name]) for name, space in bundle.spaces.items() if space.serves_users)
    found: list[Source] = [*spaces, PopularSource(bundle.catalogue), AgainSource()]
    if bundle.manifest.HasField("candidate_sources"):
        found.extend(_further(bundle, searchers, by_category))
    return {source.name: source for source in found}


def _further(bundle: Bundle, searchers: Mapping[str, Searcher], by_category: RowsByCode | None) -> Iterator[Source]:
    spec, catalogue = bundle.manifest.candidate_sources, bundle.catalogue
    if spec.similar_space:
        vectors = bundle.spaces[spec.similar_space].vectors
        yield SimilarSource(spec.similar_space, vectors, searchers[spec.similar_space], spec.similar_items)
    if by_category is not None:
        yield PopularInCategorySource(catalogue, by_category)
    launches = catalogue.role("launch_time")
    if isinstance(launches, TimeColumn):
        yield NewSource(launches.values, spec.new_days)
    for lists in bundle.lists.values():
        yield _over_lists(lists, bundle)


def _over_lists(lists: ItemLists, bundle: Bundle) -> Source:
    match lists.spec.kind:
        case manifest_pb2.TOGETHER:
            return TogetherSource(lists)
        case manifest_pb2.TRENDING:
            return TrendingSource(lists)
        case _:  # POPULAR_BY: opening the bundle has refused every other
            schema = bundle.schema
            return PopularBySource(lists, schema.user_layout, schema.context_layout, bundle.vocabularies)
