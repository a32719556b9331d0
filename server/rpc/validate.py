"""What can be said of a request without any bundle: sizes, ranges, required fields.

Every check adds to `Problems` and carries on, but nothing looks at the entries of a list that has too many: whoever
sends a million of them is told so at once. What names mean is the matter of recserve.server.rpc.resolve.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from recserve.server.bundle.layout import MAX_WEIGHT
from recserve.server.pipeline.types import DEFAULT_COUNT
from recserve.server.rpc import limits
from recserve.server.rpc.problems import Problems, quoted
from recserve.v1 import recommender_pb2 as pb


def check_recommend(request: pb.RecommendRequest, problems: Problems) -> None:
    """Everything of a RecommendRequest."""
    _check_user(request.user_id, problems)
    _check_count(request, limits.MAX_COUNT, problems)
    _check_filter(request, problems)
    _check_rerank(request, problems)
    _check_quotas(request.sources, problems)
    _check_common(request, problems)


def check_similar(request: pb.SimilarItemsRequest, problems: Problems) -> None:
    """Everything of a SimilarItemsRequest."""
    if request.user_id:
        _check_user(request.user_id, problems)
    else:
        for name in ("exclude_purchased", "exclude_shown"):
            if getattr(request.filter, name):
                problems.reject("user_id", f"required by filter.{name}")
    _check_ids("item_ids", request.item_ids, limits.MAX_SEEDS, problems, at_least=1)
    _check_count(request, limits.MAX_COUNT, problems)
    _check_filter(request, problems)
    if request.HasField("alpha"):
        _check_range("alpha", request.alpha, 0.0, 1.0, problems)
    _check_common(request, problems)


def check_rank(request: pb.RankItemsRequest, problems: Problems) -> None:
    """Everything of a RankItemsRequest."""
    _check_user(request.user_id, problems)
    if _check_ids("item_ids", request.item_ids, limits.MAX_RANKED, problems, at_least=1):
        _check_distinct("item_ids", request.item_ids, problems)
    _check_count(request, limits.MAX_RANKED, problems)
    _check_filter(request, problems)
    _check_rerank(request, problems)
    _check_common(request, problems)


def check_batch(request: pb.BatchRecommendRequest, problems: Problems) -> None:
    """A BatchRecommendRequest as a whole; its requests are checked one by one, each for itself."""
    if not _sized("requests", len(request.requests), "requests", limits.MAX_BATCH_REQUESTS, problems, at_least=1):
        return
    counts = (each.count if each.HasField("count") else DEFAULT_COUNT for each in request.requests)
    total = sum(count for count in counts if 1 <= count <= limits.MAX_COUNT)  # others are refused by themselves
    if total > limits.MAX_BATCH_ITEMS:
        problems.reject("requests", f"counts must add up to at most {limits.MAX_BATCH_ITEMS}, but they are {total}")


def _check_common(
    request: pb.RecommendRequest | pb.SimilarItemsRequest | pb.RankItemsRequest, problems: Problems
) -> None:
    _check_text("request_id", request.request_id, problems)
    _check_text("bundle", request.bundle, problems)
    _check_names("fields", request.fields, problems)
    if request.HasField("context"):
        _check_context(request.context, problems)


def _check_user(user_id: str, problems: Problems) -> None:
    size = len(user_id.encode())
    if not 1 <= size <= limits.ID_BYTES:
        problems.reject("user_id", f"must have 1 to {limits.ID_BYTES} bytes, but has {size}")


def _check_count(
    request: pb.RecommendRequest | pb.SimilarItemsRequest | pb.RankItemsRequest, most: int, problems: Problems
) -> None:
    if request.HasField("count") and not 1 <= request.count <= most:
        problems.reject("count", f"must be 1 to {most}, but is {request.count}")


def _sized(field: str, found: int, what: str, most: int, problems: Problems, *, at_least: int = 0) -> bool:
    """Whether a list has a permitted number of entries, which may then be looked at one by one."""
    if at_least <= found <= most:
        return True
    problems.reject_size(field, f"must be {at_least} to {most} {what}, but there are {found}")
    return False


def _check_ids(field: str, ids: Sequence[str], most: int, problems: Problems, *, at_least: int = 0) -> bool:
    """Whether there is a permitted number of ids."""
    if not _sized(field, len(ids), "ids", most, problems, at_least=at_least):
        return False
    for index, item_id in enumerate(ids):
        size = len(item_id.encode())
        if not 1 <= size <= limits.ID_BYTES:
            problems.reject(f"{field}[{index}]", f"must have 1 to {limits.ID_BYTES} bytes, but has {size}")
    return True


def _check_distinct(field: str, names: Collection[str], problems: Problems) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            problems.reject(f"{field}[{index}]", f"{quoted(name)} is listed before")
        seen.add(name)


def _check_text(field: str, text: str, problems: Problems) -> None:
    if len(text) * 4 > limits.TEXT_BYTES and (size := len(text.encode())) > limits.TEXT_BYTES:  # 4: the most in UTF-8
        problems.reject(field, f"must have at most {limits.TEXT_BYTES} bytes, but has {size}")


def _check_names(field: str, names: Sequence[str], problems: Problems) -> None:
    if _sized(field, len(names), "names", limits.MAX_NAMES, problems):
        for index, name in enumerate(names):
            _check_text(f"{field}[{index}]", name, problems)


def _check_range(field: str, value: float, low: float, high: float, problems: Problems) -> None:
    if not low <= value <= high:  # also true of NaN
        problems.reject(field, f"must be {low:g} to {high:g}, but is {value!r}")


def _check_weights(field: str, weights: Sequence[tuple[str, float]], problems: Problems) -> None:
    """Weights with the path of each; not all of them may be zero."""
    for path, weight in weights:
        _check_range(path, weight, 0.0, MAX_WEIGHT, problems)
    if not any(weight for _, weight in weights):
        problems.reject(field, "at least one weight must be above 0")


def _check_context(context: pb.Context, problems: Problems) -> None:
    _check_text("context.placement", context.placement, problems)
    _check_text("context.device", context.device, problems)
    _check_text("context.language", context.language, problems)
    country = context.country
    if country and not (len(country) == 2 and country.isascii() and country.isalpha()):
        problems.reject("context.country", f"must be two letters (ISO 3166-1 alpha-2), but is {quoted(country)}")
    if context.HasField("time"):
        _check_time(context, problems)
    _check_ids("context.session_item_ids", context.session_item_ids, limits.MAX_SESSION_ITEMS, problems)
    if context.features:
        _check_features(context.features, problems)


def _check_time(context: pb.Context, problems: Problems) -> None:
    if not 0 <= context.time.seconds <= limits.MAX_TIME_S:
        found = context.time.seconds
        problems.reject("context.time.seconds", f"must be within the years 1970 to 9999, but is {found}")
    if not 0 <= context.time.nanos <= 999_999_999:
        problems.reject("context.time.nanos", f"must be 0 to 999999999, but is {context.time.nanos}")


def _check_features(features: Mapping[str, pb.FeatureValue], problems: Problems) -> None:
    field = "context.features"
    if not _sized(field, len(features), "features", limits.MAX_NAMES, problems):
        return
    values = sum(len(each.categories.values) for each in features.values())
    if not _sized(field, values, "values in all category lists together", limits.MAX_NAMES, problems):
        return
    for name in sorted(features):
        _check_feature(f"{field}[{quoted(name)}]", features[name], problems)


def _check_feature(field: str, value: pb.FeatureValue, problems: Problems) -> None:
    match value.WhichOneof("kind"):
        case "number":
            if not abs(value.number) <= limits.MAX_NUMBER:  # also true of NaN
                description = (
                    f"must be finite and at most {limits.MAX_NUMBER:.5g} either way, but is {value.number!r}; "
                    "leave the feature out where it is unknown"
                )
                problems.reject(f"{field}.number", description)
        case "category":
            _check_text(f"{field}.category", value.category, problems)
        case "categories":
            _check_names(f"{field}.categories.values", value.categories.values, problems)
        case _:
            problems.reject(field, "has no value: set number, category or categories, or leave the feature out")


def _check_filter(
    request: pb.RecommendRequest | pb.SimilarItemsRequest | pb.RankItemsRequest, problems: Problems
) -> None:
    wanted = request.filter
    for descriptor, value in wanted.ListFields():  # only what is set: most filters are short
        field = f"filter.{descriptor.name}"
        match descriptor.name:
            case "exclude_item_ids":
                _check_ids(field, value, limits.MAX_EXCLUDED_ITEMS, problems)
            case "include_categories" | "exclude_categories" | "exclude_flags":
                _check_names(field, value, problems)
            case "price_min" | "price_max" if math.isnan(value):
                problems.reject(field, "must be a number, but is NaN")
    both = wanted.HasField("price_min") and wanted.HasField("price_max")
    if both and wanted.price_min > wanted.price_max:
        description = f"must not exceed price_max ({wanted.price_max!r}), but is {wanted.price_min!r}"
        problems.reject("filter.price_min", description)


def _check_rerank(request: pb.RecommendRequest | pb.RankItemsRequest, problems: Problems) -> None:
    if not request.HasField("rerank"):
        return
    rerank = request.rerank
    caps = rerank.caps.caps
    if _sized("rerank.caps.caps", len(caps), "caps", limits.MAX_CAPS, problems):
        for index, cap in enumerate(caps):
            _check_cap(f"rerank.caps.caps[{index}]", cap, problems)
    if rerank.HasField("mmr"):
        _check_range("rerank.mmr.relevance_weight", rerank.mmr.relevance_weight, 0.0, 1.0, problems)
    if rerank.HasField("dpp") and not 0 <= rerank.dpp.theta < 1:
        problems.reject("rerank.dpp.theta", f"must be at least 0 and below 1, but is {rerank.dpp.theta!r}")
    if rerank.HasField("exploration"):
        _check_range("rerank.exploration", rerank.exploration, 0.0, limits.MAX_EXPLORATION, problems)
    if rerank.objective_weights:
        _check_objective_weights(rerank.objective_weights, problems)


def _check_cap(field: str, cap: pb.Cap, problems: Problems) -> None:
    if not cap.attribute:
        problems.reject(f"{field}.attribute", "required: the item attribute to cap, such as 'category'")
    _check_text(f"{field}.attribute", cap.attribute, problems)
    if cap.max < 1:
        problems.reject(f"{field}.max", f"must be at least 1, but is {cap.max}")
    if cap.window < 0:
        problems.reject(f"{field}.window", f"must not be negative, but is {cap.window}")
    if cap.sliding and cap.window == 0:
        problems.reject(f"{field}.window", "required by sliding: how many consecutive places")


def _check_objective_weights(weights: Mapping[str, float], problems: Problems) -> None:
    field = "rerank.objective_weights"
    if _sized(field, len(weights), "weights", limits.MAX_NAMES, problems):
        _check_weights(field, [(f"{field}[{quoted(name)}]", weights[name]) for name in sorted(weights)], problems)


def _check_quotas(quotas: Sequence[pb.SourceQuota], problems: Problems) -> None:
    if not quotas or not _sized("sources", len(quotas), "sources", limits.MAX_SOURCES, problems):
        return
    for index, quota in enumerate(quotas):
        _check_text(f"sources[{index}].name", quota.name, problems)
    _check_distinct("sources", [quota.name for quota in quotas], problems)
    weights = [(f"sources[{index}].weight", quota.weight) for index, quota in enumerate(quotas)]
    _check_weights("sources", weights, problems)
