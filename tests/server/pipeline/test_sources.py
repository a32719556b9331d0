from __future__ import annotations

from recserve.server.bundle.layout import SOURCE_NAMES
from recserve.server.pipeline.sources.behaviour import AgainSource
from recserve.server.pipeline.sources.new import NewSource
from recserve.server.pipeline.sources.popular import PopularInCategorySource, PopularSource
from recserve.server.pipeline.sources.spaces import SimilarSource
from recserve.server.rpc import vocabulary


def test_names_that_spaces_and_lists_cannot_take_are_those_of_the_sources_without_lists() -> None:
    sources = (AgainSource, NewSource, PopularInCategorySource, PopularSource, SimilarSource)
    assert {source.name for source in sources} == SOURCE_NAMES
    assert SOURCE_NAMES < vocabulary.SOURCES
