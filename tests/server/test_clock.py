"""A server whose clock is pinned answers as of then, and says so."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

NOW = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
"""The tiny items were launched in the 700 days before it."""
NOTE = "the clock is pinned: requests without a time are answered as of 2025-06-01T12:00:00Z (server.clock)"
FRESH = "[placements.default]\nfreshness = { boost = 5, half_life_days = 30 }\n"

Run = Callable[..., Any]


def config(directory: Path, originals: Path, clock: str) -> Path:
    path = directory / "recserve.toml"
    path.write_text(
        f'{clock}[[bundles]]\npath = "{originals / "bundle"}"\n[state]\nsnapshot = "{originals / "snapshot"}"\n{FRESH}',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def pinned(tiny_originals: Path, tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., Any]) -> Iterator[Any]:
    """A server whose clock says 2025-06-01 12:00 UTC, written in another zone."""
    directory = tmp_path_factory.mktemp("pinned")
    clock = "[server]\nclock = 2025-06-01T14:00:00+02:00\n"
    server = launch("--config", f"{config(directory, tiny_originals, clock)}")
    server.wait_until_ready()
    yield server
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def ask(server: Any, time: datetime.datetime | None = None, **fields: Any) -> list[tuple[str, float]]:
    """Items and scores."""
    request = pb.RecommendRequest(user_id="user-01", count=20, **fields)
    if time is not None:
        request.context.time.FromDatetime(time)
    with grpc.insecure_channel(server.address) as channel:
        response = RecommenderServiceStub(channel).Recommend(request, timeout=10)
    return [(item.item_id, item.score) for item in response.items]


def test_requests_without_a_time_are_answered_as_of_the_clock(pinned: Any) -> None:
    assert ask(pinned) == ask(pinned, NOW)
    assert ask(pinned) != ask(pinned, NOW + datetime.timedelta(days=500))


def test_shown_items_are_remembered_in_real_time(pinned: Any) -> None:
    """Stamped with the pinned clock they would be years old, and forgotten at once."""
    shown = {item for item, _ in ask(pinned, record_shown=True)}
    assert shown.isdisjoint(item for item, _ in ask(pinned, filter=pb.Filter(exclude_shown=True)))


def test_the_log_and_the_announcement_say_so(pinned: Any) -> None:
    assert [line.partition(": ")[2] for line in pinned.log.splitlines() if "clock" in line] == [NOTE]
    assert "WARNING recserve.server.lifecycle" in next(line for line in pinned.log.splitlines() if "clock" in line)
    assert pinned.stdout.splitlines()[1] == f"Note: {NOTE}"


def test_check_says_so(recserve: Run, tiny_originals: Path, tmp_path: Path) -> None:
    clock = "[server]\nclock = 2025-06-01T12:00:00Z\n"
    found = recserve("check", "--config", f"{config(tmp_path, tiny_originals, clock)}", COLUMNS="300")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[2].rstrip().split(maxsplit=2) == ["clock", "pinned", NOTE]


def test_the_environment_can_pin_it(recserve: Run, tiny_originals: Path, tmp_path: Path) -> None:
    path = config(tmp_path, tiny_originals, "")
    found = recserve("check", "--config", f"{path}", COLUMNS="300", RECSERVE_SERVER__CLOCK="2025-06-01T12:00:00Z")
    assert NOTE in found.stdout
    assert "clock" not in recserve("check", "--config", f"{path}", COLUMNS="300").stdout
