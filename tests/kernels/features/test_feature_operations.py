"""Every operation against values worked out by hand; program and reference must both give them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recserve.kernels.features import MISSING_TIME, ColumnValues

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
NAN = math.nan
SQRT_HALF = math.sqrt(0.5)

# op, inputs, options, expected; the request and its items are described in conftest.py
EXAMPLES = [
    ("value", ["user.age"], {}, 30.0),
    ("value", ["user.gender"], {}, 1.0),
    ("value", ["context.basket_value"], {}, 99.0),
    ("value", ["context.device"], {}, 2.0),
    ("value", ["context.hour"], {}, 6.0),
    ("value", ["context.weekday"], {}, 6.0),
    ("value", ["item.price"], {"row": 1}, 20.0),
    ("value", ["item.category"], {"row": 1}, 1.0),
    ("value", ["item.price"], {"row": 3}, NAN),
    ("value", ["source.ann.score"], {}, 0.75),
    ("value", ["source.ann.rank"], {}, 3.0),
    ("log1p", ["item.price"], {}, math.log(11)),
    ("log1p", ["item.price"], {"row": 3}, NAN),
    ("ratio", ["item.price", "user.age"], {}, 1 / 3),
    ("difference", ["item.price", "context.basket_value"], {}, -89.0),
    ("product", ["item.price", "source.ann.score"], {}, 7.5),
    ("product", ["item.price", "user.age"], {"row": 3}, NAN),
    ("equal", ["item.target_gender", "user.gender"], {}, 1.0),
    ("equal", ["item.target_gender", "user.gender"], {"row": 1}, 0.0),
    ("equal", ["item.target_gender", "user.gender"], {"row": 2}, NAN),
    ("pair", ["context.device", "context.weekday"], {}, 2 * 7 + 6),
    ("pair", ["context.hour", "context.device"], {}, 6 * 3 + 2),
    ("pair", ["item.category", "user.gender"], {"row": 1}, 1 * 2 + 1),
    ("pair", ["item.category", "user.gender"], {"row": 3}, NAN),
    ("rank_in", ["item.category", "user.top_categories"], {}, 2.0),
    ("rank_in", ["item.category", "context.page_categories"], {}, 1.0),
    ("rank_in", ["item.category", "user.top_categories"], {"row": 1}, NAN),
    ("rank_in", ["item.category", "user.top_categories"], {"row": 3}, NAN),
    ("hour_sin", ["context.time"], {}, 1.0),
    ("hour_cos", ["context.time"], {}, 0.0),
    ("hour_sin", ["item.launch_time"], {}, 0.0),
    ("hour_cos", ["item.launch_time"], {}, 1.0),
    ("hour_cos", ["item.launch_time"], {"row": 3}, NAN),
    ("weekday_sin", ["context.time"], {}, math.sin(2 * math.pi * 6 / 7)),
    ("weekday_cos", ["user.signup"], {}, math.cos(2 * math.pi * 5 / 7)),
    ("weekday_cos", ["item.launch_time"], {"row": 3}, NAN),
    ("days_since", ["item.launch_time"], {"row": 1}, 9 + 13 / 48),
    ("days_since", ["item.launch_time"], {"row": 3}, NAN),
    ("days_since", ["user.signup"], {}, 8 + 13 / 48),
    ("days_since", ["context.session_start"], {}, 13 / 48),
    ("days_since", ["context.time"], {}, 0.0),
    ("dot", ["space.ann"], {"row": 3}, -2.0 + 6.0),
    ("count", ["history.item"], {}, 3.0),
    ("count", ["history.item"], {"event": "view"}, 2.0),
    ("count", ["history.item"], {"event": "cart"}, 0.0),
    ("count", ["history.item"], {"row": 1}, 0.0),
    ("count", ["history.category"], {}, 7.0),
    ("count", ["history.category"], {"event": "view", "row": 2}, 6.0),
    ("count", ["history.category"], {"row": 1}, 0.0),
    ("count", ["history.category"], {"row": 3}, NAN),
    ("days_since", ["history.item"], {}, 4 + 13 / 48),
    ("days_since", ["history.item"], {"event": "view"}, 5 + 13 / 48),
    ("days_since", ["history.item"], {"event": "cart"}, NAN),
    ("days_since", ["history.category"], {}, 2 + 13 / 48),
    ("days_since", ["history.category"], {"row": 3}, NAN),
    ("share", ["history.item"], {}, 3 / 8),
    ("share", ["history.item"], {"event": "view"}, 2 / 7),
    ("share", ["history.item"], {"event": "purchase", "row": 2}, 0.0),
    ("share", ["history.item"], {"event": "cart"}, NAN),
    ("share", ["history.category"], {}, 7 / 8),
    ("share", ["history.category"], {"row": 3}, NAN),
    ("max_similarity", ["space.ann"], {"last": 1}, 0.5),
    ("max_similarity", ["space.ann"], {"last": 2}, 0.5),
    ("max_similarity", ["space.ann"], {"last": 3}, 1.0),
    ("max_similarity", ["space.ann"], {"last": 100}, 1.0),
    ("mean_similarity", ["space.ann"], {"last": 2}, 0.25),
    ("mean_similarity", ["space.ann"], {"last": 3}, 0.5),
    ("mean_similarity", ["space.ann"], {"last": 3, "row": 3}, (0.5 + 2.0 - 1.0) / 3),
]


@pytest.mark.parametrize(("op", "inputs", "options", "expected"), EXAMPLES)
def test_operation_by_hand(value_of, op, inputs, options, expected):
    assert value_of(op, *inputs, **options) == pytest.approx(expected, rel=1e-7, abs=1e-7, nan_ok=True)


@pytest.mark.parametrize("op", ["count", "days_since", "share"])
@pytest.mark.parametrize("key", ["history.item", "history.category"])
def test_history_of_an_unknown_user_is_missing_not_empty(value_of, op, key):
    assert math.isnan(value_of(op, key, known=np.array([False])))


def no_history():
    return {
        "history_offsets": np.zeros(2, np.int64),
        "history_rows": np.empty(0, np.int64),
        "history_events": np.empty(0, np.int32),
        "history_counts": np.empty(0),
        "history_last_us": np.empty(0, np.int64),
    }


@pytest.mark.parametrize("key", ["history.item", "history.category"])
def test_empty_history_of_a_known_user(value_of, key):
    assert value_of("count", key, **no_history()) == 0
    assert math.isnan(value_of("days_since", key, **no_history()))
    assert math.isnan(value_of("share", key, **no_history()))


def test_share_of_events_that_count_zero(value_of):
    assert math.isnan(value_of("share", "history.item", history_counts=np.zeros(4)))


def test_history_entry_without_a_time_counts_but_is_not_the_last(value_of):
    times = np.array([MISSING_TIME] * 3 + [5 * DAY_US], np.int64)
    assert value_of("count", "history.item", history_last_us=times) == 3
    assert value_of("days_since", "history.item", history_last_us=times) == pytest.approx(5 + 13 / 48)
    assert math.isnan(value_of("days_since", "history.item", history_last_us=np.full(4, MISSING_TIME)))


def test_similarity_without_recent_items(value_of):
    for recent in ([], [-1, -1]):
        changes = {
            "recent_rows": np.array(recent, np.int64),
            "recent_offsets": np.array([0, len(recent)], np.int64),
        }
        assert math.isnan(value_of("max_similarity", "space.ann", last=5, **changes))
        assert math.isnan(value_of("mean_similarity", "space.ann", last=5, **changes))


def test_recent_items_of_an_unknown_user_are_compared(value_of):
    assert value_of("max_similarity", "space.ann", last=1, known=np.array([False])) == 0.5


def test_dot_with_a_missing_user_vector(value_of):
    assert math.isnan(value_of("dot", "space.ann", user_vectors={"ann": np.full((1, 2), NAN, np.float32)}))


def test_source_that_did_not_propose_the_item(value_of):
    missing = np.full((1, 1), NAN, np.float32)
    assert math.isnan(value_of("value", "source.ann.score", source_scores=missing))
    assert math.isnan(value_of("value", "source.ann.rank", source_ranks=missing))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_denominator(value_of, shop_batch, zero):
    user = replace(shop_batch.user, numbers=np.array([[zero]]))
    assert math.isnan(value_of("ratio", "item.price", "user.age", user=user))


@pytest.mark.parametrize(
    ("a", "expected"),
    [(0.0, 0.0), (-0.0, -0.0), (1e-20, 1e-20), (-0.5, math.log(0.5)), (-1.0, NAN), (-5.0, NAN), (math.inf, math.inf)],
)
def test_log1p_at_its_edges(value_of, shop_batch, a, expected):
    found = value_of("log1p", "user.age", user=replace(shop_batch.user, numbers=np.array([[a]])))
    assert found == pytest.approx(expected, nan_ok=True)
    assert math.copysign(1, found) == math.copysign(1, expected) or math.isnan(expected)


@pytest.mark.parametrize(
    ("a", "expected"), [(1e300, math.inf), (-1e300, -math.inf), (1e-300, 0.0), (math.inf, math.inf)]
)
def test_values_beyond_float32(value_of, shop_batch, a, expected):
    assert value_of("value", "user.age", user=replace(shop_batch.user, numbers=np.array([[a]]))) == expected


def test_infinity_minus_infinity_is_the_one_nan(value_of, shop_batch):
    user = replace(shop_batch.user, numbers=np.array([[math.inf]]))
    assert math.isnan(value_of("difference", "user.age", "user.age", user=user))


def test_arithmetic_is_in_double(value_of, shop_batch):
    user = replace(shop_batch.user, numbers=np.array([[1e8 + 1]]))
    context = replace(shop_batch.context, numbers=np.array([[1e8]]))
    assert value_of("difference", "user.age", "context.basket_value", user=user, context=context) == 1.0


# microseconds since 1970 UTC, hour, weekday (Monday 0)
CLOCK = [
    (0, 0, 3),
    (-1, 23, 2),
    (DAY_US - 1, 23, 3),
    (DAY_US, 0, 4),
    (HOUR_US - 1, 0, 3),
    (HOUR_US, 1, 3),
    (-DAY_US, 0, 2),
    (-DAY_US - 1, 23, 1),
    (-3 * DAY_US, 0, 0),
    (-3 * DAY_US - 1, 23, 6),
    (1_709_251_199_999_999, 23, 3),  # 2024-02-29 23:59:59.999999, a Thursday
    (1_709_251_200_000_000, 0, 4),
    (-11_644_473_600_000_000, 0, 0),  # 1601-01-01, a Monday
]


@pytest.mark.parametrize(("time_us", "hour", "weekday"), CLOCK)
def test_hour_and_weekday(value_of, time_us, hour, weekday):
    now = {"time_us": np.array([time_us], np.int64)}
    assert value_of("value", "context.hour", **now) == hour
    assert value_of("value", "context.weekday", **now) == weekday
    assert value_of("hour_sin", "context.time", **now) == pytest.approx(math.sin(2 * math.pi * hour / 24), abs=1e-7)
    assert value_of("hour_cos", "context.time", **now) == pytest.approx(math.cos(2 * math.pi * hour / 24), abs=1e-7)
    assert value_of("weekday_sin", "context.time", **now) == pytest.approx(
        math.sin(2 * math.pi * weekday / 7), abs=1e-7
    )
    assert value_of("weekday_cos", "context.time", **now) == pytest.approx(
        math.cos(2 * math.pi * weekday / 7), abs=1e-7
    )


def test_days_since_a_later_time_is_negative(value_of):
    assert value_of("days_since", "item.launch_time", row=1, time_us=np.array([0], np.int64)) == -1.0


def test_days_between_the_ends_of_time_do_not_overflow(value_of, shop_batch):
    user = replace(shop_batch.user, times=np.array([[MISSING_TIME + 1]], np.int64))
    found = value_of("days_since", "user.signup", user=user, time_us=np.array([2**63 - 1], np.int64))
    assert found == pytest.approx(2**64 / DAY_US)


def test_missing_request_time(value_of):
    now = {"time_us": np.array([MISSING_TIME], np.int64)}
    features = [
        ("value", "context.hour"),
        ("value", "context.weekday"),
        ("hour_sin", "context.time"),
        ("weekday_cos", "context.time"),
        ("days_since", "item.launch_time"),
        ("days_since", "history.item"),
    ]
    for op, address in features:
        assert math.isnan(value_of(op, address, **now))
    assert value_of("count", "history.item", **now) == 3


def test_missing_everywhere(value_of, shop):
    changes = {
        "known": np.array([False]),
        "user": ColumnValues.missing(shop.user_layout, 1),
        "context": ColumnValues.missing(shop.context_layout, 1),
        "source_scores": np.full((1, 1), NAN, np.float32),
        "source_ranks": np.full((1, 1), NAN, np.float32),
        "user_vectors": {"ann": np.full((1, 2), NAN, np.float32)},
        "recent_rows": np.empty(0, np.int64),
        "recent_offsets": np.zeros(2, np.int64),
    } | no_history()
    # Of the request only its time is left, of item 3 only its vector.
    always_there = {"context.hour", "context.weekday", "context.time"}
    for op, inputs, options, _ in EXAMPLES:
        found = value_of(op, *inputs, **{**options, "row": 3}, **changes)
        assert math.isnan(found) == (not always_there.issuperset(inputs)), (op, inputs)
