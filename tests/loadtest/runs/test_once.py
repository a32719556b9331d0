"""One run, against servers that answer at once."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from recserve.loadtest.runs.once import Setup, run_once
from recserve.loadtest.runs.target import Target
from recserve.loadtest.workload.requests import Sources, messages_of
from recserve.loadtest.workload.scenario import parse_scenario

STRANGERS = '[users]\nunknown_share = 1\n[arrivals]\npattern = "constant"\n[[requests]]\ndeadline_ms = 60_000\n'


@pytest.fixture(name="setup")
def fixture_setup(grpc_server: Callable[..., tuple[int, grpc.Server]], answer_of: Callable[..., bytes]) -> Setup:
    port, _ = grpc_server(lambda _, __: answer_of(20))
    scenario = parse_scenario(STRANGERS, "strangers")
    messages = messages_of(scenario, Sources(None, None), 100, seed=1)
    return Setup(name="it", target=Target("127.0.0.1", port), scenario=scenario, messages=messages, warmup_s=0.5)


def test_a_rate_of_few_requests_is_that_of_the_whole_window(setup: Setup) -> None:
    """The last of them is due half a second before the end."""
    row = run_once(setup, 2, 2)
    assert (row["runs"], row["offered_per_s"], row["requests_per_s"]) == (4, 2, 2)
