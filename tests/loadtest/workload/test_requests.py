from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recserve.loadtest.workload.requests import Sources, messages_of, one_of_each, serialise, zipf
from recserve.loadtest.workload.scenario import ScenarioError, load_scenario, parse_scenario
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.v1 import recommender_pb2 as pb


@pytest.fixture(name="sources")
def fixture_sources(tiny_bundle: Callable[..., Path], tiny_snapshot: Callable[..., Path]) -> Sources:
    return Sources(open_bundle(tiny_bundle(), verify=False), open_snapshot(tiny_snapshot(), verify=False))


def test_ranks_follow_zipfs_law() -> None:
    ranks = zipf(1000, 1.0, 200_000, np.random.default_rng(1))
    shares = np.bincount(ranks, minlength=1000) / len(ranks)
    expected = 1 / np.arange(1, 1001)
    expected /= expected.sum()
    assert shares[:5] == pytest.approx(expected[:5], rel=0.05)
    assert shares[100:].sum() == pytest.approx(expected[100:].sum(), rel=0.02)
    assert np.bincount(zipf(4, 0.0, 40_000, np.random.default_rng(1))) / 40_000 == pytest.approx([0.25] * 4, rel=0.05)


def test_a_mix_has_its_shares(sources: Sources) -> None:
    scenario = load_scenario("mixed")
    messages = messages_of(scenario, sources, 4000, seed=1)
    kinds = Counter(kind for kind, _ in messages)
    shares = [kinds[kind] / 4000 for kind in range(len(scenario.requests))]
    assert shares == pytest.approx([each.share for each in scenario.requests], abs=0.03)
    strangers = sum(message.user_id.startswith("stranger-") for _, message in messages)
    assert strangers / 4000 == pytest.approx(0.05, abs=0.015)
    known = {f"user-{row:02d}" for row in range(50)}
    assert {message.user_id for _, message in messages if not message.user_id.startswith("stranger-")} <= known
    similar = next(message for kind, message in messages if kind == 2)
    assert isinstance(similar, pb.SimilarItemsRequest)
    assert len(similar.item_ids) == 1
    rank = next(message for kind, message in messages if kind == 3)
    assert isinstance(rank, pb.RankItemsRequest)
    assert len(set(rank.item_ids)) == 100
    assert len(list(one_of_each(messages))) == 4


def test_requests_are_seeded(sources: Sources) -> None:
    first, again, other = (messages_of(load_scenario("mixed"), sources, 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_everything_that_a_scenario_can_say_is_in_the_request(sources: Sources) -> None:
    text = """
    [[requests]]
    placement = "home"
    device = "phone"
    countries = ["DE"]
    fields = ["price"]
    session_items = 3
    [requests.filter]
    price_min = 1.5
    price_max = 9
    in_stock = false
    in_region = true
    exclude_purchased = true
    exclude_shown = false
    exclude_items = 4
    include_categories = ["wine"]
    categories = 2
    """
    ((_, message),) = messages_of(parse_scenario(text, "x"), sources, 1, seed=1)
    assert isinstance(message, pb.RecommendRequest)
    assert (message.context.placement, message.context.device, message.context.country) == ("home", "phone", "DE")
    assert len(message.context.session_item_ids) == 3
    assert list(message.fields) == ["price"]
    wanted = message.filter
    assert (wanted.price_min, wanted.price_max) == (1.5, 9)
    assert (wanted.in_stock, wanted.in_region, wanted.exclude_purchased) == (False, True, True)
    assert wanted.HasField("exclude_shown")
    assert not wanted.exclude_shown
    assert len(set(wanted.exclude_item_ids)) == 4
    assert len(wanted.include_categories) == 3


def test_what_a_scenario_does_not_ask_for_is_not_in_the_request(sources: Sources) -> None:
    """An empty filter is work for the server that callers without a filter do not give it."""
    ((_, message),) = messages_of(parse_scenario('[[requests]]\ndevice = "phone"', "x"), sources, 1, seed=1)
    assert {field.name for field, _ in message.ListFields()} == {"user_id", "count", "context"}


def test_messages_are_framed_and_gone_through_again(sources: Sources) -> None:
    scenario = load_scenario("recommend")
    messages = messages_of(scenario, sources, 3, seed=1)
    requests = serialise(scenario, messages, 7, authority="127.0.0.1:1")
    assert requests.message.tolist() == [0, 1, 2, 0, 1, 2, 0]
    framed = requests.messages[requests.offsets[1] : requests.offsets[2]].tobytes()
    assert framed[:5] == b"\0" + (len(framed) - 5).to_bytes(4)
    assert pb.RecommendRequest.FromString(framed[5:]) == messages[1][1]
    (kind,) = requests.kinds
    assert (kind.min_items, kind.degraded_field, kind.times_field, kind.timeout_ns) == (20, 5, 6, 10**9)
    assert requests.part(1, 3).message.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[requests]]", "users come from a snapshot"),
        (
            '[users]\nunknown_share = 1\n[[requests]]\nmethod = "SimilarItems"',
            "items and categories come from a bundle",
        ),
        ("[users]\nunknown_share = 1\n[[requests]]\nfilter = {categories = 1}", "come from a bundle"),
    ],
)
def test_what_a_scenario_needs_and_lacks(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        messages_of(parse_scenario(text, "x"), Sources(None, None), 10, seed=1)


def test_strangers_need_nothing() -> None:
    messages = messages_of(load_scenario("strangers"), Sources(None, None), 10, seed=1)
    assert len({message.user_id for _, message in messages}) == 10
