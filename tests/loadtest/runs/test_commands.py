"""The commands, with a real server behind them."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.loadtest.cli import main
from recserve.loadtest.report.page import focus_of, headline, render_page
from recserve.loadtest.runs.watch import cpu_seconds


@pytest.fixture(name="config", scope="module")
def fixture_config(tiny_originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("load") / "server.toml"
    sources = '[{name = "als", weight = 0.7}, {name = "popular", weight = 0.3}]'
    bundle, snapshot = tiny_originals / "bundle", tiny_originals / "snapshot"
    lines = ("[[bundles]]", f'path = "{bundle}"', "[state]", f'snapshot = "{snapshot}"', "[placements.default]")
    config.write_text("\n".join((*lines, f"sources = {sources}")), "utf-8")
    return config


@pytest.fixture(name="running", scope="module")
def fixture_running(config: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a server."""
    command = (sys.executable, "-m", "recserve.server.cli", "serve", "--config", str(config), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split("is ready on ")[1].split(": ")[0]
        yield address, server.pid
        server.terminate()


def load(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_run_starts_a_server_and_tells_everything(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench" / "run.json"
    options = ("--rate", 40, "--seconds", 1.5, "--warmup", 0.5, "--repeat", 2, "--processes", 2)
    assert load("run", "--config", config, *options, "--out", out, "--server-cores", min(os.sched_getaffinity(0))) == 0
    content = json.loads(out.read_text("utf-8"))
    assert {"workload", "host", "commit", "versions", "results", "scenario", "bundle", "config"} <= set(content)
    assert content["bundle"]["items"] == 200
    assert [row["params"]["repeat"] for row in content["results"]] == [1, 2]
    row = content["results"][0]
    assert set(row["outcomes"]) == {"OK"}
    assert row["requests_per_s"] == pytest.approx(40, rel=0.5)
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]
    assert row["cpu_ms_per_request"] > 0
    assert row["server"]["pss_mib"][0] > 1
    assert row["stages"]["total"]["p50_ms"] < row["p99_ms"]
    page = out.with_suffix(".html").read_text("utf-8")
    assert page.count("<svg") >= 5
    assert "<script" not in page
    printed = capsys.readouterr()
    assert str(out) in printed.out
    assert "good answers/s" in printed.out


@pytest.fixture(name="content_of")
def fixture_content_of(config: Path, running: tuple[str, int], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command on the running server; gives the result file's content."""
    address, pid = running
    common = ("--target", address, "--pid", pid, "--config", config, "--warmup", 0, "--seconds", 0.7)

    def result(workload: str, *options: object) -> dict[str, Any]:
        out = tmp_path / f"{workload}.json"
        assert load(workload, *common, *options, "--out", out) == 0
        content: dict[str, Any] = json.loads(out.read_text("utf-8"))
        assert "<svg" in out.with_suffix(".html").read_text("utf-8")
        return content

    return result


def test_sweep_and_saturate(content_of: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    scenario = tmp_path / "filtered.toml"
    scenario.write_text("[users]\nunknown_share = 0.5\n[[requests]]\nfilter = { in_stock = true }\n[[requests]]\n")
    sweep = content_of("sweep", "--rates", 30, 20, "--budget-ms", 2000, "--scenario", scenario)
    assert [row["params"]["rate"] for row in sweep["results"]] == [20, 30]
    assert sweep["knee"] == 30
    (row,) = content_of("saturate", "--outstanding", 2)["results"]
    assert row["p99_ms"] is None
    assert row["requests_per_s"] > 10


def test_rates_that_are_given_are_all_held(content_of: Callable[..., dict[str, Any]]) -> None:
    sweep = content_of("sweep", "--rates", 20, 30, 40, "--past", 1, "--budget-ms", 0.001)
    assert [row["params"]["rate"] for row in sweep["results"]] == [20, 30, 40]
    assert sweep["knee"] is None


@pytest.mark.parametrize(
    ("command", "sizes"),
    [(("run", "--rate", 20, "--repeat", 3), (20, 20, 20)), (("sweep", "--rates", 10, 20), (10, 20))],
    ids=str,
)
def test_a_run_asks_what_none_before_it_has_asked(
    command: tuple[object, ...],
    sizes: tuple[int, ...],
    grpc_server: Callable[..., tuple[int, grpc.Server]],
    answer_of: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    asked: list[bytes] = []

    def recommend(request: bytes, _: grpc.ServicerContext) -> bytes:
        asked.append(request)
        return answer_of(20)

    scenario = tmp_path / "constant.toml"
    scenario.write_text(
        '[users]\nunknown_share = 1\n[arrivals]\npattern = "constant"\n[[requests]]\ndeadline_ms = 60_000\n'
    )
    target = ("--target", f"127.0.0.1:{grpc_server(recommend)[0]}", "--scenario", scenario, "--no-report")
    out = tmp_path / "out.json"
    budget = ("--budget-ms", 60_000) if command[0] == "sweep" else ()
    assert load(*command, *target, *budget, "--seconds", 0.75, "--warmup", 0.25, "--out", out) == 0
    assert [row["generator"]["requests"] for row in json.loads(out.read_text("utf-8"))["results"]] == list(sizes)
    probed, *sent = asked
    assert len(sent) == len(set(sent)) == sum(sizes)
    assert probed in sent[: sizes[0]]


@pytest.mark.slow
def test_capacity_and_soak(content_of: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    search = ("--budget-ms", 3000, "--start", 20, "--most", 40, "--confirm-seconds", 0.7)
    found = content_of("capacity", *search)
    assert found["capacity"] == {"rate": 40, "confirmed": True, "at_least": True}
    assert headline(found, focus_of(found)).startswith("Capacity: at least 40 requests a second within 3000 ms")
    assert "capacity: at least 40 requests/s" in capsys.readouterr().out
    assert "memory: too few readings" in content_of("soak", "--rate", 20)["trend"]["words"][0]


def test_a_report_is_drawn_again(config: Path, running: tuple[str, int], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    options = ("--rate", 20, "--seconds", 0.6, "--warmup", 0, "--no-report", "--out", out)
    assert load("run", "--target", running[0], "--config", config, *options) == 0
    page = out.with_suffix(".html")
    assert not page.exists()
    assert load("report", out) == 0
    assert page.exists()


def test_a_run_without_good_answers_has_no_good_verdict(
    grpc_server: Callable[..., tuple[int, grpc.Server]], answer_of: Callable[..., bytes], tmp_path: Path
) -> None:
    asked = itertools.count()

    def mostly_refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        if next(asked) % 4:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return answer_of(20)

    port, _ = grpc_server(mostly_refuse)
    out = tmp_path / "run.json"
    options = ("--rate", 60, "--seconds", 1, "--warmup", 0, "--scenario", "strangers", "--out", out)
    assert load("run", "--target", f"127.0.0.1:{port}", *options) == 0
    content = json.loads(out.read_text("utf-8"))
    verdict = out.with_suffix(".html").read_text("utf-8").partition('<div class="verdict bad">')[2].strip()
    assert verdict.startswith(f"Failed: {1 - content['results'][0]['ok_share']:.2%} of the requests got no good answer")


def test_the_worst_of_repeated_runs_decides_and_a_search_may_pass_the_knee() -> None:
    def row(ok_share: float, rate: float) -> dict[str, Any]:
        figures = {"p50_ms": 1.0, "p99_ms": 2.0, "requests_per_s": rate, "ok_share": ok_share}
        return {"params": {"rate": rate}, **figures}

    good, bad = row(1.0, 10), row(0.9, 20)
    assert headline({"results": [good]}, good).startswith("At 10 requests a second")
    runs = headline({"results": [good, bad]}, good)
    assert runs.startswith("Failed: 10.00% of the requests got no good answer in the worst run. At 10 requests")
    sweep = {"results": [good, bad], "budget_ms": 50, "knee": 10}
    assert headline(sweep, good).startswith("The knee is at 10")
    assert headline({**sweep, "knee": None}, bad).startswith("Failed: 10.00% of the requests got no good answer. At 20")


def test_a_page_that_a_later_run_does_not_draw_is_said_to_be_old(
    config: Path, running: tuple[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    options = ("--rate", 20, "--seconds", 0.6, "--warmup", 0, "--out", out)
    command = ("run", "--target", running[0], "--config", config, *options)
    assert load(*command) == 0
    assert "earlier run" not in capsys.readouterr().out
    assert load(*command, "--no-report") == 0
    assert f"{tmp_path / 'run.html'} is still of an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_keeps_what_was_measured(
    config: Path, running: tuple[str, int], tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "run.json"
    command = (sys.executable, "-m", "recserve.loadtest.cli", "run", "--target", running[0], "--config", str(config))
    options = ("--rate", "50", "--seconds", "60", "--warmup", "0", "--repeat", "3", "--out", str(out))
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen((*command, *options), **pipes, text=True, env=environment) as process:
        _wait_for_load(running[1])
        process.send_signal(sent)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cut short: interrupted" in printed
    assert said.strip().endswith("interrupted")
    content = json.loads(out.read_text("utf-8"))
    (row,) = content["results"]
    assert row["runs"] > 5
    assert row["offered_per_s"] < 100, "what was due after Ctrl-C was not offered"
    assert not row["valid"]
    assert content["cut_short"] == "interrupted"
    assert "Cut short: interrupted" in out.with_suffix(".html").read_text("utf-8")


def _wait_for_load(pid: int) -> None:
    """Until requests have kept a server busy for a while."""
    before, end = cpu_seconds(pid), time.monotonic() + 40
    while cpu_seconds(pid) < before + 0.15:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def dying_target(
    grpc_server: Callable[..., tuple[int, grpc.Server]], answer_of: Callable[..., bytes]
) -> Callable[[int], str]:
    """Starts a server that stops after so many answers; gives its address."""

    def start(answers: int) -> str:
        asked, enough = itertools.count(), threading.Event()

        def recommend(_: bytes, __: grpc.ServicerContext) -> bytes:
            if next(asked) == answers:
                enough.set()
            return answer_of(20)

        port, server = grpc_server(recommend)
        threading.Thread(target=lambda: enough.wait(60) and server.stop(0)).start()
        return f"127.0.0.1:{port}"

    return start


def test_a_target_that_dies_keeps_what_was_measured(
    dying_target: Callable[[int], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    target = ("--target", dying_target(60), "--scenario", "strangers")
    assert load("run", *target, "--rate", 40, "--seconds", 60, "--warmup", 0, "--out", out) == 1
    assert "the target went away: cannot connect to the target" in capsys.readouterr().err
    (row,) = json.loads(out.read_text("utf-8"))["results"]
    assert row["outcomes"]["OK"]["requests"] > 10
    assert "connection lost" in row["outcomes"]
    assert not row["valid"]


@pytest.mark.slow
def test_a_sweep_keeps_the_rates_before_the_target_died(
    dying_target: Callable[[int], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    target = ("--target", dying_target(80), "--scenario", "strangers", "--no-report")  # the first rate sends about 45
    options = ("--rates", 10, 60, "--seconds", 4.5, "--warmup", 0, "--budget-ms", 60_000, "--out", out)
    assert load("sweep", *target, *options) == 1
    assert "the target went away" in capsys.readouterr().err
    first, second = json.loads(out.read_text("utf-8"))["results"]
    assert first["ok_share"] == 1
    assert first["params"]["rate"] == 10
    assert not second["valid"]


def test_a_target_that_is_not_there_leaves_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert load("run", "--target", address, "--rate", 10, "--scenario", "strangers", "--out", out) == 1
    assert f"nothing can be reached at {address}" in capsys.readouterr().err
    assert not out.exists()


def test_another_service_leaves_no_result(
    grpc_server: Callable[..., tuple[int, grpc.Server]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "saturate.json"
    port, _ = grpc_server(lambda request, _: request, method="Other")
    assert load("saturate", "--target", f"127.0.0.1:{port}", "--scenario", "strangers", "--out", out) == 1
    assert "it is another service, or another version of the proto" in capsys.readouterr().err
    assert not out.exists()


def test_a_server_without_its_bundle_leaves_no_result(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking, out = tmp_path / "server.toml", tmp_path / "run.json"
    lines = [line for line in config.read_text("utf-8").splitlines() if "sources" not in line]
    lacking.write_text("\n".join(lines).replace('/bundle"', '/absent"'), "utf-8")
    assert load("run", "--config", lacking, "--rate", 10, "--out", out) == 1
    assert "absent" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_server_starts_ends_both(config: Path, tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "run.json"
    command = (sys.executable, "-m", "recserve.loadtest.cli", "run", "--config", str(config))
    options = ("--rate", "50", "--seconds", "60", "--out", str(out))
    with subprocess.Popen((*command, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server = _first_child(process.pid)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "recserve-loadtest: interrupted"
    assert not Path(f"/proc/{server}").exists()
    assert not out.exists()


def _first_child(pid: int) -> str:
    end = time.monotonic() + 40
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found[0]


@pytest.mark.parametrize(
    "command", [("run", "--rate", "1"), ("kernels", "basics"), ("kernels", "forest"), ("versus",)], ids=" ".join
)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q.html", "results are JSON, and .html is their picture's"),
        ("file/q.json", "q.json cannot be written: "),
        ("folder", "folder cannot be written: Is a directory"),
    ],
)
def test_a_result_that_cannot_be_written_is_told_before_the_run(
    command: tuple[str, ...], name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    assert load(*command, "--out", tmp_path / name) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_page_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.html").mkdir()
    out = tmp_path / "run.json"
    assert load("run", "--rate", 1, "--out", out) == 1
    assert "run.html cannot be written: Is a directory" in capsys.readouterr().err
    assert load("run", "--rate", 1, "--out", out, "--no-report") == 1
    assert "the users come from a snapshot" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_there_is_kept_until_there_is_something_new(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    out.write_text("of yesterday")
    assert load("run", "--rate", 1, "--out", out) == 1
    assert out.read_text() == "of yesterday"


class Full(io.StringIO):
    """A standard output like /dev/full, or like a pipe whose reader has gone."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_measured_outlives_who_no_longer_reads_it(
    grpc_server: Callable[..., tuple[int, grpc.Server]],
    answer_of: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port, _ = grpc_server(lambda _, __: answer_of(20))
    target = ("--target", f"127.0.0.1:{port}", "--scenario", "strangers", "--warmup", 0, "--seconds", 0.5)
    run, kernels, ratios = (tmp_path / f"{name}.json" for name in ("run", "kernels", "ratios"))
    commands: dict[Path, tuple[object, ...]] = {
        run: ("run", *target, "--rate", 20, "--repeat", 2),
        kernels: ("kernels", "basics", "--items", 500, "--runs", 1),
        ratios: ("compare", run, run),
    }
    monkeypatch.setattr(sys, "stdout", Full())
    for out, command in commands.items():
        assert load(*command, "--out", out) == 1
        assert "No space left on device" in capsys.readouterr().err
        assert json.loads(out.read_text("utf-8"))
    assert "<svg" in run.with_suffix(".html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--rate", "1"), "the users come from a snapshot"),
        (("run", "--rate", "1", "--scenario", "strangers"), "give --target HOST:PORT, or --config FILE"),
        (("run", "--rate", "1", "--scenario", "absent"), "neither a scenario"),
        (("run", "--rate", "1", "--scenario", "strangers", "--target", "nowhere"), "is not HOST:PORT"),
        (("run", "--rate", "1", "--scenario", "strangers", "--target", "h:1", "--server-cores", "0"), "--server-cores"),
        (("run", "--rate", "1", "--config", "absent.toml"), "absent.toml"),
        (("report", "absent.json"), "absent.json"),
    ],
)
def test_errors_are_told(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_budget_that_no_rate_holds_is_told(
    grpc_server: Callable[..., tuple[int, grpc.Server]],
    answer_of: Callable[..., bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slowly(_: bytes, __: grpc.ServicerContext) -> bytes:
        time.sleep(0.3)  # so long that lateness on a busy machine is little beside it
        return answer_of(20)

    address = f"127.0.0.1:{grpc_server(slowly)[0]}"
    target = ("--target", address, "--scenario", "strangers", "--no-report", "--out", tmp_path / "capacity.json")
    options = ("--budget-ms", 0.01, "--start", 12, "--seconds", 0.7, "--warmup", 0)
    assert load("capacity", *target, *options) == 1
    said = capsys.readouterr().err
    assert "on holds a p99 of 0.01 ms" in said
    assert "no rate from" in said


@pytest.mark.parametrize("precision", ["0", "1", "2", "nan", "-0.1"])
def test_a_precision_is_a_share(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["capacity", f"--precision={precision}"])
    assert f"expected a share above 0 and below 1, found '{precision}'" in capsys.readouterr().err


def test_a_precision_is_not_finer_than_rates_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["capacity", "--precision", "0.0009"])
    assert "expected a share from 0.001, as rates have four digits, found '0.0009'" in capsys.readouterr().err


@pytest.fixture(name="replay")
def fixture_replay(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recording and the scenario that replays it; gives the scenario."""

    def written(times: str) -> Path:
        (tmp_path / "monday.txt").write_text(times, "utf-8")
        path = tmp_path / "replay.toml"
        path.write_text(
            '[users]\nunknown_share = 1\n[arrivals]\npattern = "replay"\ntimes = "monday.txt"\n[[requests]]\n', "utf-8"
        )
        return path

    return written


def test_a_recording_is_replayed_as_recorded(
    replay: Callable[[str], Path],
    grpc_server: Callable[..., tuple[int, grpc.Server]],
    answer_of: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    at: list[float] = []

    def recommend(_: bytes, __: grpc.ServicerContext) -> bytes:
        at.append(time.monotonic())
        return answer_of(20)

    target = ("--target", f"127.0.0.1:{grpc_server(recommend)[0]}", "--scenario", replay("100\n100.1\n101.2\n101.25\n"))
    out = tmp_path / "run.json"
    assert load("run", *target, "--seconds", 5, "--warmup", 0, "--out", out) == 0
    assert [late - early for early, late in itertools.pairwise(at[1:])] == pytest.approx([0.1, 1.1, 0.05], abs=0.09)
    (row,) = json.loads(out.read_text("utf-8"))["results"]
    assert row["params"]["rate"] == 2.4
    assert row["offered_per_s"] == 2.4, "over the 1.25 s that it took, and one more gap"
    assert "At 2.4 requests a second" in out.with_suffix(".html").read_text("utf-8")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("", "monday.txt: has no times; expected seconds at which requests came in, one a line"),
        ("# of Monday\n0\nnan\n", "monday.txt: time no. 2 is nan; expected seconds"),
        ("0\n1\ninf\n", "monday.txt: time no. 3 is inf; expected seconds"),
        ("0\n2\n1.5\n", "monday.txt: time no. 3, 1.5 s, is before no. 2, 2 s; expected them ascending"),
        ("0\nsoon\n", "monday.txt:2: expected seconds, found 'soon'"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("soak", "--rate", 5), ("sweep",)], ids=str)
def test_a_recording_that_cannot_be_replayed_is_told_before_a_server_starts(
    replay: Callable[[str], Path],
    command: tuple[object, ...],
    times: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = tmp_path / "absent.toml"  # that it cannot be read would be told instead
    assert load(*command, "--scenario", replay(times), "--config", server, "--out", tmp_path / "run.json") == 1
    assert message in capsys.readouterr().err


def test_who_knows_no_rate_is_asked_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("run", "--scenario", "strangers") == 2
    expected = "--rate is missing: the arrivals of scenario strangers are poisson, and only a replay has a rate"
    assert expected in capsys.readouterr().err


def test_a_capacity_below_every_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("capacity", "--most", 0.5) == 2
    assert "--most 0.5: expected a rate from 1" in capsys.readouterr().err


def test_a_sweep_without_a_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    target = ("--scenario", "strangers", "--target", "127.0.0.1:1")
    assert load("sweep", *target, "--start", 500, "--most", 100) == 2
    assert "there is no rate to try: the first, --start 500, is above --most 100" in capsys.readouterr().err
    assert load("sweep", *target, "--start", 500, "--most", 100, "--rates", 10) == 1
    assert "nothing can be reached" in capsys.readouterr().err


@pytest.mark.parametrize("factor", ["1", "0.5", "1.001", "-2", "nan", "inf"])
def test_rates_of_a_sweep_rise(factor: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", f"--factor={factor}"])
    assert f"expected a factor from 1.01, so that rates rise, found '{factor}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("run", "--rate", "0"), ("run", "--rate", "x"), ("soak", "--rate", "1", "--seconds", "-1"),
     ("saturate", "--outstanding", "0"), ("run", "--rate", "1", "--server-cores", "a"),
     ("run", "--rate", "1", "--warmup", "nan"), ("run", "--rate", "1", "--seed", "-1"),
     ("run", "--rate", "1", "--seed", "x")],
)  # fmt: skip
def test_wrong_usage_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_cores_that_the_generator_cannot_have_are_told_before_a_server_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert load("run", "--rate", 1, "--config", "absent.toml", "--generator-cores", "0,4095") == 2
    assert "--generator-cores 0,4095: this process may use [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"workload": "kernels", "results": []}, "no page for results of 'kernels', only for those of run, sweep,"),
        ({"workload": "versus", "results": [{"name": "x", "params": {}}]}, "no page for results of 'versus'"),
        ({"results": []}, "no page for results of None"),
        ({"workload": "run", "results": []}, "has no runs, so that there is nothing to draw"),
        ({"workload": "run", "time": "", "results": [{"name": "x", "params": {}}]}, "lacks target, scenario, "),
        ({"workload": "run", "results": [{"name": "x"}]}, 'no. 1 of its "results" has no "name" and "params"'),
        ({"workload": "run", "results": [3]}, "no. 1 of its"),
    ],
)
def test_a_file_that_has_no_page_is_told(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content), "utf-8")
    assert load("report", path) == 1
    said = capsys.readouterr().err
    assert f"{path}: " in said
    assert message in said
    assert not path.with_suffix(".html").exists()


def test_names_in_a_page_are_escaped(config: Path, running: tuple[str, int], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    options = ("--rate", 20, "--seconds", 0.5, "--warmup", 0, "--name", "<b>x", "--no-report", "--out", out)
    assert load("run", "--target", running[0], "--config", config, *options) == 0
    page = render_page(json.loads(out.read_text("utf-8")))
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
