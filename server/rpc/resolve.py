"""What the names in a request mean in one bundle: ids become rows, names become codes, absent fields defaults.

A name that nothing defines is the caller's fault; one that the product defines and this bundle or build lacks is
reported as lacking, with what to export or leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import MISSING_CODE, ColumnLayout, ColumnSpec, ColumnValues
from recserve.server.bundle.columns import CategoriesColumn, CategoryColumn
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.types import Cap, ItemFilter, Quota, RerankOptions, Rows, no_rows
from recserve.server.rpc import limits, vocabulary
from recserve.server.rpc.placements import Placement
from recserve.server.rpc.problems import Problems, listed, quoted
from recserve.v1 import recommender_pb2 as pb

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline

Request: TypeAlias = pb.RecommendRequest | pb.SimilarItemsRequest | pb.RankItemsRequest
"""Those that are resolved."""

Override = float | int | tuple[int, ...]
"""A column's value as `ColumnValues.with_overrides` takes it."""

_KIND_OF_TYPE = {"number": "number", "time": "number", "category": "category", "categories": "categories"}
"""By column type, the kind of FeatureValue that overrides it; a time is a number of seconds since 1970 UTC."""


class Resolver:
    """Resolves one request.

    Args:
        pipeline: over the request's bundle.
        placement: the request's.
        problems: where everything that is wrong goes.
    """

    def __init__(self, pipeline: Pipeline, placement: Placement, problems: Problems) -> None:
        self._pipeline = pipeline
        self._bundle = pipeline.bundle
        self._catalogue = pipeline.bundle.catalogue
        self._placement = placement
        self._problems = problems

    # ------------------------------------------------------------------------------------------ context

    def context(self, context: pb.Context) -> ColumnValues:
        """One row of the schema's context columns: the fields of Context by name, then the overrides."""
        base = self._placement.context
        missing = base.missing
        codes = missing.codes.copy()
        for name, column, vocabulary_of in base.fields:
            text = getattr(context, name)
            # A value that the models have not seen is missing to them.
            codes[0, column] = vocabulary_of.code(text.upper() if name == "country" else text)
        filled = ColumnValues(missing.numbers, codes, missing.times, missing.list_codes, missing.list_offsets)
        layout = self._bundle.schema.context_layout
        return filled.with_overrides(layout, self._overrides(layout, context.features))

    def user_overrides(self, context: pb.Context) -> dict[str, Override]:
        """Overrides of the schema's user columns."""
        return self._overrides(self._bundle.schema.user_layout, context.features)

    def check_features(self, context: pb.Context) -> None:
        """Every override must be declared somewhere."""
        if not context.features:
            return
        schema = self._bundle.schema
        declared = {column.name for column in (*schema.user, *schema.context)}
        for name in sorted(context.features):
            if name not in declared:
                description = f"no such user or context feature; there are: {listed(declared)}"
                self._problems.reject(f"context.features[{quoted(name)}]", description)

    def _overrides(self, layout: ColumnLayout, features: Mapping[str, pb.FeatureValue]) -> dict[str, Override]:
        if not features:
            return {}
        columns = {column.name: column for column in layout.columns}
        found = {}
        for name in sorted(features):
            if name in columns:
                value = self._override(f"context.features[{quoted(name)}]", columns[name], features[name])
                if value is not None:
                    found[name] = value
        return found

    def _override(self, field: str, column: ColumnSpec, value: pb.FeatureValue) -> Override | None:
        kind, given = _KIND_OF_TYPE[column.type], value.WhichOneof("kind")
        if given is None:
            return None  # validate has said so
        if given != kind:
            self._problems.reject(field, f"is declared as {column.type}: set {kind}, not {given}")
            return None
        match column.type:
            case "category":
                return self._feature_codes(f"{field}.category", column, [value.category])[0]
            case "categories":
                return self._feature_codes(f"{field}.categories.values", column, value.categories.values)
            case "number":
                return value.number
            case "time":
                return self._feature_time(f"{field}.number", value.number)

    def _feature_time(self, field: str, seconds: float) -> int | None:
        if 0 <= seconds <= limits.MAX_TIME_S:
            return round(seconds * 1e6)
        self._problems.reject(field, "a time is given as seconds since 1970 UTC, up to the year 9999")
        return None

    def _feature_codes(self, field: str, column: ColumnSpec, values: Sequence[str]) -> tuple[int, ...]:
        vocabulary_of = self._bundle.vocabularies[column.vocabulary]
        codes = tuple(vocabulary_of.code(value) for value in values)
        for value, code in zip(values, codes, strict=True):
            if code == MISSING_CODE:
                description = (
                    f"{column.name} has no category {quoted(value)}; leave the feature out where it is unknown"
                )
                self._problems.reject(field, description)
        return codes

    # -------------------------------------------------------------------------------------------- items

    def items(self, item_ids: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        """Rows of the known items and ids of the unknown ones, in their order, each once."""
        if not item_ids:
            return no_rows(), ()
        rows = self._catalogue.rows_of_ids(item_ids).tolist()
        known = dict.fromkeys(row for row in rows if row >= 0)
        unknown = dict.fromkeys(item_id for item_id, row in zip(item_ids, rows, strict=True) if row < 0)
        return np.fromiter(known, np.int64, len(known)), tuple(unknown)

    def known_rows(self, item_ids: Sequence[str]) -> Rows:
        """Rows of the known items, in their order, each once; the others are ignored."""
        return self.items(item_ids)[0]

    def fields(self, names: Iterable[str]) -> tuple[str, ...]:
        """The item attributes to return, each once."""
        columns = self._catalogue.columns
        found: dict[str, None] = {}
        for index, name in enumerate(names):
            if name == "*":
                found.update(dict.fromkeys(columns))
            elif name in columns:
                found[name] = None
            else:
                description = f"no item attribute {quoted(name)}; there are: {listed(columns)}, or '*' for all"
                self._problems.reject(f"fields[{index}]", description)
        return tuple(found)

    # ------------------------------------------------------------------------------------------- filter

    def filter(self, request: Request, *, has_user: bool) -> ItemFilter:
        """The request's filter, with the placement's conditions where the request is silent.

        Args:
            request: with its filter, if any, and its country.
            has_user: whether there is a user whose purchases and exposures could be excluded.
        """
        placement = self._placement
        asks = request.filter.ByteSize() > 0  # an empty filter is as good as none
        if asks or placement.settings.in_region or placement.problems:
            return self._filter(request.filter, request.context.country, has_user)
        own = placement.own_filters
        if has_user not in own:
            own[has_user] = self._filter(request.filter, "", has_user)
        return own[has_user]

    def _filter(self, wanted: pb.Filter, country: str, has_user: bool) -> ItemFilter:
        self._check_price(wanted)
        return ItemFilter(
            exclude_rows=np.sort(self.known_rows(wanted.exclude_item_ids)),
            include_categories=self._codes("filter.include_categories", "category", wanted.include_categories),
            exclude_categories=self._codes("filter.exclude_categories", "category", wanted.exclude_categories),
            price_min=wanted.price_min if wanted.HasField("price_min") else None,
            price_max=wanted.price_max if wanted.HasField("price_max") else None,
            in_stock=self._in_stock(wanted),
            region=self._region(wanted, country),
            exclude_purchased=self._exclude_purchased(wanted, has_user),
            exclude_shown=_asked(wanted, "exclude_shown", self._placement.settings.exclude_shown and has_user),
            exclude_flags=self._codes("filter.exclude_flags", "flags", wanted.exclude_flags),
        )

    def _check_price(self, wanted: pb.Filter) -> None:
        if self._catalogue.role("price") is None:
            for name, given in (
                ("price_min", wanted.HasField("price_min")),
                ("price_max", wanted.HasField("price_max")),
            ):
                if given:
                    self._lacks_role("price", f"filter.{name}")

    def _codes(self, field: str, role: str, names: Sequence[str]) -> NDArray[np.int32] | None:
        """Codes of category or flag names; None where there are no names."""
        if not names:
            return None
        column = self._catalogue.role(role)
        if not isinstance(column, CategoryColumn | CategoriesColumn):
            self._lacks_role(role, field)
            return None
        codes = [column.vocabulary.code(name) for name in names]
        for index, (name, code) in enumerate(zip(names, codes, strict=True)):
            if code < 0:
                self._problems.reject(f"{field}[{index}]", f"no item has {column.name} {quoted(name)}")
        return np.unique(np.array(codes, np.int32))

    def _in_stock(self, wanted: pb.Filter) -> bool:
        if not wanted.HasField("in_stock"):
            return self._placement.resolved.in_stock
        if wanted.in_stock and self._catalogue.role("in_stock") is None:
            self._lacks_role("in_stock", "filter.in_stock")
        return wanted.in_stock

    def _region(self, wanted: pb.Filter, country: str) -> int | None:
        if not _asked(wanted, "in_region", self._placement.settings.in_region):
            return None
        if not country:
            by = "filter.in_region" if wanted.in_region else "the placement, which answers items of the region only"
            self._problems.reject("context.country", f"required by {by}")
        column = self._catalogue.role("regions")
        if not isinstance(column, CategoriesColumn):
            self._lacks_role("regions", "filter.in_region")
            return None
        return column.vocabulary.code(country.upper())

    def _exclude_purchased(self, wanted: pb.Filter, has_user: bool) -> bool:
        exclude = _asked(wanted, "exclude_purchased", self._placement.settings.exclude_purchased and has_user)
        if exclude and PURCHASE_EVENT not in self._bundle.schema.event_types:
            message = f"the bundle knows no event type {PURCHASE_EVENT!r}; export it with users' purchases"
            self._problems.lacks("filter.exclude_purchased", message)
        return exclude

    def _lacks_role(self, part: str, field: str) -> None:
        message = f"the bundle's catalogue has no column in the role {part!r}; export it with one"
        self._problems.lacks(field, message)

    # ------------------------------------------------------------------------------------------- rerank

    def rerank(self, request: pb.RecommendRequest | pb.RankItemsRequest) -> RerankOptions:
        """The request's options, with the placement's where the request is silent."""
        defaults = self._placement.resolved.rerank
        if not request.HasField("rerank"):
            return defaults
        rerank = request.rerank
        self._check_buildable(rerank)
        weights, caps = defaults.objective_weights, defaults.caps
        if rerank.objective_weights:
            weights = self._objective_weights(rerank.objective_weights)
        if rerank.HasField("caps"):
            caps = self._caps(rerank.caps.caps)
        return RerankOptions(
            objective_weights=weights,
            freshness=defaults.freshness,
            caps=caps,
            mmr_weight=self._mmr_weight(rerank),
            diversity_space=defaults.diversity_space,
        )

    def by_score_alone(self) -> RerankOptions:
        """The placement's scores without caps or diversity."""
        defaults = self._placement.resolved.rerank
        return RerankOptions(objective_weights=defaults.objective_weights, freshness=defaults.freshness)

    def _check_buildable(self, rerank: pb.Rerank) -> None:
        """`seed` alone is fine: it only matters to exploration."""
        if rerank.HasField("dpp"):
            self._problems.lacks("rerank.dpp", "this build has no DPP diversity; use mmr, or none")
        if rerank.exploration > 0:
            self._problems.lacks("rerank.exploration", "this build does not explore; leave it out, or set 0")

    def _objective_weights(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        known = self._pipeline.objectives
        for name in sorted(weights):
            if name not in known:
                field = f"rerank.objective_weights[{quoted(name)}]"
                self._unknown_name(field, "objective", name, known, vocabulary.OBJECTIVES)
        return tuple(weights.get(name, 0.0) for name in known)

    def _caps(self, caps: Sequence[pb.Cap]) -> tuple[Cap, ...]:
        columns = self._catalogue.columns
        valid = [name for name, column in columns.items() if isinstance(column, CategoryColumn)]
        for index, cap in enumerate(caps):
            if cap.attribute and cap.attribute not in valid:
                what = "is not a category" if cap.attribute in columns else "does not exist"
                description = f"the item attribute {quoted(cap.attribute)} {what}; caps can be on: {listed(valid)}"
                self._problems.reject(f"rerank.caps.caps[{index}].attribute", description)
        return tuple(Cap(cap.attribute, cap.max, cap.window, cap.sliding) for cap in caps)

    def _mmr_weight(self, rerank: pb.Rerank) -> float | None:
        match rerank.WhichOneof("diversity"):
            case "mmr":
                if not self._pipeline.similarity_spaces:
                    message = "MMR needs a vector space of length 1 (normalized); export the bundle with one"
                    self._problems.lacks("rerank.mmr", message)
                return rerank.mmr.relevance_weight
            case None:
                return self._placement.resolved.rerank.mmr_weight
            case _:
                return None

    # ------------------------------------------------------------------------------------------ sources

    def quotas(self, sources: Sequence[pb.SourceQuota]) -> tuple[Quota, ...]:
        """The request's sources, or else the placement's."""
        if not sources:
            return self._placement.resolved.quotas
        known = self._pipeline.sources
        defined = vocabulary.SOURCES | set(self._bundle.spaces)
        for index, source in enumerate(sources):
            if source.name not in known:
                self._unknown_name(f"sources[{index}].name", "source", source.name, known, defined)
        return tuple(Quota(source.name, source.weight) for source in sources)

    def _unknown_name(self, field: str, what: str, name: str, known: Sequence[str], defined: Iterable[str]) -> None:
        offers = f"it offers: {listed(known)}"
        if name in defined:
            self._problems.lacks(field, f"the bundle has no {what} {name!r}; {offers}")
        else:
            self._problems.reject(field, f"no {what} is called {quoted(name)}; {offers}")


def _asked(
    wanted: pb.Filter, condition: Literal["in_region", "exclude_purchased", "exclude_shown"], configured: bool
) -> bool:
    """Whether a condition holds: as the request says, else as configured."""
    return bool(getattr(wanted, condition)) if wanted.HasField(condition) else configured
