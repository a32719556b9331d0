"""One run, against servers that answer at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from recserve.loadtest.runs.once import RunCutShort, Setup, run_once
from recserve.loadtest.runs.target import Target
from recserve.loadtest.runs.watch import Watch
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


def test_cpu_time_is_known_from_the_first_request_on(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it takes longer to read than the generators take to start."""

    class SlowWatch(Watch):
        def read(self, *, last: bool = False) -> None:
            time.sleep(0.2)
            super().read(last=last)

    monkeypatch.setattr("recserve.loadtest.runs.once.Watch", SlowWatch)
    watched = replace(setup, target=replace(setup.target, pid=os.getpid()), warmup_s=0)
    row = run_once(watched, 10, 1)
    assert row["server"]["at_s"][0] < 0
    assert row["cpu_ms_per_request"] > 0


def test_a_generator_that_dies_leaves_what_it_had_recorded(setup: Setup) -> None:
    killed: list[int] = []

    def kill(told: str) -> None:
        """As soon as answers are there."""
        if not killed and not told.startswith("0 of"):
            killed.append(generator_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RunCutShort, match=r"a generator broke down \(exit status -9\)") as caught:
        run_once(replace(setup, warmup_s=0), 40, 60, tell=kill)
    row = caught.value.row
    assert not caught.value.interrupted
    assert row["outcomes"]["OK"]["requests"] > 1
    assert row["offered_per_s"] == pytest.approx(40, rel=0.5)
    assert not row["valid"]
    assert row["problems"][-1] == "cut short: a generator broke down (exit status -9)"


def generator_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split()
    (found,) = (int(each) for each in children if b"generator.process" in Path(f"/proc/{each}/cmdline").read_bytes())
    return found
