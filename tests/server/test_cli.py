"""The command line: flags to settings and requests, answers and errors as a person reads them."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from recserve.server import check, cli, client
from recserve.server.config import ServerSettings
from recserve.server.text import printable
from recserve.v1 import recommender_pb2 as pb

Run = Callable[..., Any]
Start = Callable[..., Any]
Make = Callable[..., Path]


def parse(*arguments: str) -> object:
    """The request that a command line stands for."""
    options = cli._parser().parse_args(["call", *arguments])
    return options.request(options)


def text_of(answer: client.Answer, *fields: str, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(client.render(answer, fields))
    return console.file.getvalue()  # type: ignore[attr-defined]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --------------------------------------------------------------------------------------------------------- settings


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    for name in [name for name in os.environ if name.startswith("RECSERVE_")]:
        monkeypatch.delenv(name)
    return cli._settings(cli._parser().parse_args(["serve", *arguments]))


def test_flags_set_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_of(
        monkeypatch, "--host", "::1", "--port", "0", "--snapshot", "users", "--device", "cuda", "--threads", "2",
        "--allow-native-code", "--bundle", "a", "--bundle", "canary=b=c", "--bundle", "x=./d=e",
        "--set", "server.reflection=false", "--set", 'placements.home={sources = [{name = "ann", weight = 1}]}',
    )  # fmt: skip
    assert (found.server.host, found.server.port, found.server.reflection) == ("::1", 0, False)
    assert (found.compute.device, found.compute.threads, found.compute.allow_native_code) == ("cuda", 2, True)
    assert found.state.snapshot == Path("users")
    bundles = [(bundle.name, str(bundle.path)) for bundle in found.bundles]
    assert bundles == [("default", "a"), ("canary", "b=c"), ("x", "d=e")]
    assert found.placements["home"].sources[0].name == "ann"


def test_a_path_with_an_equals_sign_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_of(monkeypatch, "--bundle", "./a=b")
    assert [(bundle.name, str(bundle.path)) for bundle in found.bundles] == [("default", "a=b")]


def test_named_flags_win_over_set(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_of(monkeypatch, "--bundle", "a", "--port", "1", "--set", "server.port=2", "--set", "server.host=h")
    assert (found.server.port, found.server.host) == (1, "h")


def test_version_and_wrong_usage(recserve: Run) -> None:
    version = recserve("--version")
    assert (version.returncode, version.stdout.startswith("recserve ")) == (0, True)
    assert recserve().returncode == 2
    wrong = recserve("serve", "--set", "port")
    assert wrong.returncode == 2
    assert "'port' is not KEY=VALUE" in wrong.stderr


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_wrong_configuration_is_refused_before_anything_is_opened(recserve: Run, command: str) -> None:
    found = recserve(command, "--port", "x", "--set", "server.prot=1", RECSERVE_COMPUTE__DEVICE="tpu")
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.splitlines() == [
        "recserve: 4 errors in the configuration:",
        '  server.port (flag --port): found "x", allowed is an integer, 0 to 65,535',
        "  server.prot (flag --set server.prot): no such key; did you mean server.port?",
        "  bundles (by default): no bundle to serve; give --bundle PATH, [[bundles]] in the file, or RECSERVE_BUNDLES",
        '  compute.device (environment RECSERVE_COMPUTE__DEVICE): found "tpu", allowed is one of "cpu", "cuda"',
    ]


# --------------------------------------------------------------------------------------------------------- requests


def test_fields_add_up_and_are_not_remembered() -> None:
    arguments = ("recommend", "--user", "u", "--fields", "price", "--fields", "category, title")
    for _ in range(2):
        assert parse(*arguments).fields == ["price", "category", "title"]
    assert parse("recommend", "--user", "u").fields == []


def test_recommend_request() -> None:
    found = parse(
        "recommend", "--user", "u", "--count", "5", "--category", "shoes", "--category", "hats", "--price-max", "9.5",
        "--in-stock", "--no-exclude-purchased", "--placement", "home", "--country", "DE", "--device", "phone",
        "--language", "de", "--session", "i1", "--session", "i2", "--exclude", "i3", "--fields", "price, category",
        "--reasons", "--bundle", "canary", "--no-record-shown",
    )  # fmt: skip
    assert found == pb.RecommendRequest(
        user_id="u",
        count=5,
        context=pb.Context(
            placement="home", country="DE", device="phone", language="de", session_item_ids=["i1", "i2"]
        ),
        filter=pb.Filter(
            include_categories=["shoes", "hats"],
            price_max=9.5,
            in_stock=True,
            exclude_purchased=False,
            exclude_item_ids=["i3"],
        ),
        fields=["price", "category"],
        reasons=True,
        bundle="canary",
        record_shown=False,
    )


def test_what_is_left_out_is_left_to_the_server() -> None:
    found = parse("recommend", "--user", "u")
    assert found == pb.RecommendRequest(user_id="u", context=pb.Context(), filter=pb.Filter())
    assert not found.HasField("count")
    assert not found.HasField("record_shown")
    assert not found.filter.HasField("in_stock")


def test_similar_and_rank_requests() -> None:
    similar = parse("similar", "--item", "a", "--item", "b", "--alpha", "0", "--count", "3")
    assert similar == pb.SimilarItemsRequest(
        item_ids=["a", "b"], alpha=0.0, count=3, context=pb.Context(), filter=pb.Filter()
    )
    rank = parse("rank", "--user", "u", "--item", "a", "--item", "b", "--record-shown")
    assert rank == pb.RankItemsRequest(
        user_id="u", item_ids=["a", "b"], record_shown=True, context=pb.Context(), filter=pb.Filter()
    )


# ---------------------------------------------------------------------------------------------------------- answers


def recommendation(rank: int = 1, **more: object) -> pb.Recommendation:
    sources = [pb.SourceScore(name="ann", score=0.5, rank=3), pb.SourceScore(name="popular", score=9, rank=1)]
    return pb.Recommendation(item_id=f"item-{rank}", rank=rank, score=1 / rank, sources=sources, **more)


def test_an_answer_as_a_table() -> None:
    answer = pb.RecommendResponse(
        items=[
            recommendation(
                relevance=0.25,
                fields={
                    "price": pb.AttributeValue(number=9.5),
                    "tags": pb.AttributeValue(texts=pb.TextList(values=["a", "b"])),
                    "new": pb.AttributeValue(flag=True),
                    "launch": pb.AttributeValue(time=Timestamp(seconds=0)),
                    "brand": pb.AttributeValue(text="Acme"),
                    "views": pb.AttributeValue(integer=7),
                },
                reasons=[pb.Reason(code="similar_to_item", parameters={"item_id": "x"})],
            ),
            recommendation(2),
        ],
        request_id="r1",
        bundle=pb.BundleRef(name="shop", version="7"),
        degraded=[pb.Degraded(stage="state", reason="deadline")],
        times=pb.StageTimes(queue_us=10, rank_us=500, total_us=1234),
    )
    lines = [line.rstrip() for line in text_of(answer, "price", "*").splitlines()]
    assert lines[0] == "bundle shop 7, known user, request r1"
    expected = "1.23 ms in the server (queue 0.01, state 0.00, embed 0.00, retrieve 0.00, rank 0.50, rerank 0.00)"
    assert lines[1] == expected
    assert lines[2] == "degraded: state (deadline)"
    headers = ["rank", "score", "relevance", "item", "sources", "price", "brand", "launch", "new", "tags", "views"]
    assert lines[4].split() == [*headers, "reasons"]
    row = ["1", "1.0000", "0.2500", "item-1", "ann", "#3,", "popular", "#1", "9.5", "Acme", "1970-01-01T00:00:00Z"]
    assert lines[5].split() == [*row, "yes", "a,", "b", "7", "similar_to_item(item_id=x)"]
    assert lines[6].split() == ["2", "0.5000", "-", "item-2", "ann", "#3,", "popular", "#1", *"------"]


def test_headlines() -> None:
    assert ", cold start," in text_of(pb.RecommendResponse(cold_start=True))
    similar = text_of(pb.SimilarItemsResponse(unknown_item_ids=["a", "b"]))
    assert "unknown items: a, b" in similar
    assert "user" not in similar.splitlines()[0]


def test_control_characters_of_ids_do_not_reach_the_terminal() -> None:
    answer = pb.RecommendResponse(items=[pb.Recommendation(item_id="[bold]\x1b[31mred\n", rank=1)], request_id="\x07")
    text = text_of(answer)
    assert "[bold]\\x1b[31mred\\n" in text
    assert "request \\x07" in text
    assert printable("Zoë 東京 🎉") == "Zoë 東京 🎉"


def test_hints_can_be_pasted_into_a_shell() -> None:
    answer = pb.RecommendResponse(items=[pb.Recommendation(item_id="it's")])
    hint = client.hint("localhost:1", "a b", answer)
    assert "recserve call recommend --user 'a b' --count 20 --fields '*' --reasons --address localhost:1" in hint
    assert "recserve call similar --item 'it'\"'\"'s' --address localhost:1" in hint
    assert "--address" not in client.hint(client.DEFAULT_ADDRESS, "", answer)


def test_words_and_numbers_are_whole_in_a_narrow_terminal() -> None:
    fields = {f"field_{number}": pb.AttributeValue(text="uninterrupted words") for number in range(6)}
    item = pb.Recommendation(item_id="item-00001", rank=1, score=0.2899, relevance=0.2597, fields=fields)
    lines = text_of(pb.RecommendResponse(items=[item]), "*", width=80).splitlines()
    assert lines[-8].rstrip() == "1. item-00001  score 0.2899, relevance 0.2597"
    assert [line.strip() for line in lines[-6:]] == [f"field_{number}: uninterrupted words" for number in range(6)]


def test_an_answer_without_items_says_why() -> None:
    text = text_of(pb.RecommendResponse())
    assert "no item came back: none passes the filter" in text
    assert "relevance" not in text


def test_a_hint_shows_the_fields_that_it_is_given() -> None:
    def options(*arguments: str) -> object:
        return cli._parser().parse_args(["call", "recommend", "--user", "u", *arguments]).hint

    assert (options(), options("--hint"), options("--hint", "title,price")) == (None, ["*"], ["title", "price"])
    hint = client.hint("localhost:1", "u", pb.RecommendResponse(), ["title", "price"])
    assert "recserve call recommend --user u --count 20 --fields title,price --reasons" in hint


def test_no_server(recserve: Run) -> None:
    address = f"127.0.0.1:{free_port()}"
    found = recserve("call", "recommend", "--user", "u", "--address", address)
    assert found.returncode == 1
    assert found.stdout == ""
    first, second = found.stderr.splitlines()
    assert first.startswith("recserve: UNAVAILABLE: ")
    assert second == f"  is a server running at {address}? `recserve serve` starts one"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(("--user", "\udcff"), "surrogates not allowed"), (("--user", "u", "--placement", "\udcff"), "surrogates")],
)
def test_a_value_that_no_message_can_hold(recserve: Run, arguments: tuple[str, ...], why: str) -> None:
    found = recserve("call", "recommend", *arguments)
    assert found.returncode == 1
    [line] = found.stderr.splitlines()
    assert line.startswith("recserve: a value does not fit into the request: ")
    assert why in line


@pytest.mark.parametrize("flag", ["--timeout", "--wait"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1", "86401", "soon"])
def test_times_that_nobody_can_wait(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("recommend", "--user", "u", f"{flag}={value}")
    assert stopped.value.code == 2
    assert f"argument {flag}: '{value}' is not a number of seconds from 0 to 86,400" in capsys.readouterr().err


def test_no_request_is_answered_in_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("recommend", "--user", "u", "--wait", "0", "--timeout", "0.01")
    with pytest.raises(SystemExit):
        parse("recommend", "--user", "u", "--timeout", "0")
    assert "within 0 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["99999999999", "9" * 20, "9" * 5000, "-2147483648", "ten", "1.5"])
def test_a_count_that_no_request_can_hold(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit):
        parse("recommend", "--user", "u", f"--count={count}")
    assert f"argument --count: {count!r} is not a whole number up to 2,147,483,647" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    ["localhost", "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:", ":50051", "h:http", "h:٣", "http://127.0.0.1:50051"],
)
def test_what_is_no_address(capsys: pytest.CaptureFixture[str], address: str) -> None:
    with pytest.raises(SystemExit):
        parse("recommend", "--user", "u", "--address", address)
    message = f"argument --address: {address!r} is not HOST:PORT, such as 127.0.0.1:50051"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"), [("localhost:1", "localhost:1"), ("[::1]:1", "[::1]:1"), ("::1:50051", "[::1]:50051")]
)
def test_addresses(text: str, address: str) -> None:
    options = cli._parser().parse_args(["call", "recommend", "--user", "u", "--address", text])
    assert options.address == address


def test_the_default_address_is_where_a_server_listens_by_default() -> None:
    server = ServerSettings()
    assert f"{server.host}:{server.port}" == client.DEFAULT_ADDRESS
    assert cli._parser().parse_args(["call", "recommend", "--user", "u"]).address is None


def test_waiting_for_a_server_ends(recserve: Run) -> None:
    address = f"127.0.0.1:{free_port()}"
    found = recserve("call", "recommend", "--user", "u", "--address", address, "--wait", "0.3")
    assert found.returncode == 1
    assert found.stderr == f"recserve: no server is ready at {address} after 0.3 s: nothing answers there\n"


# -------------------------------------------------------------------------------------------------- against a server


@pytest.fixture
def address(start_server: Start, tiny_bundle: Make, tiny_snapshot: Make) -> str:
    server = start_server("--bundle", f"{tiny_bundle()}", "--snapshot", f"{tiny_snapshot()}")
    return str(server.wait_until_ready())


def test_calls(recserve: Run, address: str) -> None:
    found = recserve(
        "call", "recommend", "--user", "user-03", "--count", "3", "--fields", "title", "--hint", "--address", address
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("bundle default 1, known user, request ")
    assert [line.split()[0] for line in lines[4:7]] == ["1", "2", "3"]
    assert all("Thing №" in line for line in lines[4:7])
    assert lines[8] == "More of it:"
    stranger = recserve("call", "recommend", "--user", "nobody", "--count", "1", "--address", address)
    assert ", cold start, " in stranger.stdout.splitlines()[0]
    similar = recserve(
        "call", "similar", "--item", "item-001", "--item", "nothing", "--count", "2", "--address", address
    )
    assert similar.returncode == 0, similar.stderr
    assert "unknown items: nothing" in similar.stdout


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_whoever_reads_may_have_seen_enough(address: str, more: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    module = (sys.executable, "-m", "recserve.server.cli")
    command = (*module, "call", "recommend", "--user", "user-03", "--address", address, *more)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_json_is_the_whole_answer(recserve: Run, address: str) -> None:
    items = ("--item", "item-005", "--item", "item-006")
    found = recserve("call", "similar", *items, "--count", "3", "--json", "--address", address, "--wait", "10")
    assert found.returncode == 0, found.stderr
    answer = Parse(found.stdout, pb.SimilarItemsResponse())
    assert len(answer.items) == 3
    assert answer.bundle.version == "1"


def test_what_the_bundle_lacks_is_printed(recserve: Run, address: str) -> None:
    found = recserve("call", "rank", "--user", "user-03", "--item", "item-005", "--address", address)
    assert found.returncode == 1
    first, second = found.stderr.splitlines()
    assert first == "recserve: FAILED_PRECONDITION: the request cannot be answered as it is:"
    assert second == "  item_ids: ranking given items needs a ranker; export the bundle with one"


def test_every_field_that_the_server_refuses_is_printed(recserve: Run, address: str) -> None:
    found = recserve(
        "call", "recommend", "--user", "u", "--count", "501", "--placement", "nowhere", "--fields", "prize",
        "--address", address,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stdout == ""
    first, *details = found.stderr.splitlines()
    assert first == "recserve: INVALID_ARGUMENT: the request cannot be answered as it is:"
    assert [line.partition(":")[0] for line in details] == ["  count", "  context.placement", "  fields[0]"]


# ------------------------------------------------------------------------------------------------------------ check


def test_check_tells_what_would_be_served(
    recserve: Run, tiny_bundle: Make, tiny_snapshot: Make, tmp_path: Path
) -> None:
    bundle, canary = tiny_bundle(), tiny_bundle(target=tmp_path / "canary", version="2")
    arguments = ("--bundle", f"{bundle}", "--bundle", f"canary={canary}", "--snapshot", f"{tiny_snapshot()}")
    found = recserve("check", *arguments)
    assert found.returncode == 0, found.stderr
    _, *rows = [line.split() for line in found.stdout.splitlines()]
    assert [row[: row.index("ok") + 1] for row in rows] == [
        ["configuration", "ok"], ["front", "ok"],
        ["bundle", "default", "ok"], ["bundle", "canary", "ok"], ["users", "ok"],
    ]  # fmt: skip
    assert "2 bundles, " in found.stdout
    assert "tiny 2" in found.stdout
    assert "50 users" in found.stdout


def test_check_looks_at_everything_even_where_a_part_fails(
    recserve: Run, tiny_bundle: Make, tiny_snapshot: Make, other_schema: dict[str, Any]
) -> None:
    bundle, snapshot = tiny_bundle(), tiny_snapshot(schema=other_schema)
    arguments = ("--bundle", "a=/none", "--bundle", f"b={bundle}", "--snapshot", f"{snapshot}")
    found = recserve("check", *arguments)
    assert found.returncode == 1
    assert "no such directory: /none" in found.stdout
    assert [line.split()[:3] for line in found.stdout.splitlines()[1:5]] == [
        ["configuration", "ok", "2"], ["front", "ok", "grpc,"], ["bundle", "a", "failed"], ["bundle", "b", "ok"],
    ]  # fmt: skip
    assert "does not fit bundle" in found.stdout
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", found.stdout))) == 2, "the two checksums that differ"


def test_nothing_of_a_check_is_cut_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(check, "stdout_console", lambda: console)
    report = check._Report()
    report.add("users", check._FAILED, "0123456789" * 6)
    report.print()
    words = console.file.getvalue().split()  # type: ignore[attr-defined]
    assert "".join(word for word in words if word.isdigit()) == "0123456789" * 6


def test_check_without_any_bundle_to_tie_users_to(recserve: Run) -> None:
    found = recserve("check", "--bundle", "/none")
    assert found.returncode == 1
    assert "skipped" in found.stdout
    assert "1 bundle, " in found.stdout
