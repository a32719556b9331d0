"""The command `recserve`: `serve`, `call` and `check`.

Nothing heavy is imported before a command is known: `recserve --version` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recserve.server.bundle.errors import RecserveError
from recserve.server.text import discard_output
from recserve.server.version import this_version

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from recserve.server.config import Assignment, Settings
    from recserve.v1 import recommender_pb2 as pb

_FLAGS = {
    "host": ("server", "host"),
    "port": ("server", "port"),
    "snapshot": ("state", "snapshot"),
    "device": ("compute", "device"),
    "threads": ("compute", "threads"),
    "workers": ("server", "workers"),
}
"""Flags with a name of their own, and the keys that they set."""

_MAX_INT32 = 2**31 - 1

_MAX_SECONDS = 86_400
"""Nobody waits longer for an answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 for success, 1 for an error that was reported or where nobody reads the output any more, 2 for wrong usage,
        130 after Ctrl-C.
    """
    # The C core logs to stderr by itself; what matters of it reaches us as errors. It reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, such as `head`; as Rich, which prints the tables, has it
        discard_output()
        return 1
    except RecserveError as error:
        print(f"recserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _serve(options: argparse.Namespace) -> int:
    from recserve.server.logs import configure_logging  # noqa: PLC0415

    settings = _settings(options)
    configure_logging(settings.log.level)
    if settings.server.workers > 1:
        from recserve.server.workers import serve  # noqa: PLC0415
    else:
        from recserve.server.lifecycle import serve  # noqa: PLC0415

    serve(settings)
    return 0


def _check(options: argparse.Namespace) -> int:
    from recserve.server.logs import configure_logging  # noqa: PLC0415

    settings = _settings(options)
    configure_logging("error")  # the table says the rest
    from recserve.server.check import check  # noqa: PLC0415

    return 0 if check(settings) else 1


def _call(options: argparse.Namespace) -> int:
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415

    from recserve.server import client  # noqa: PLC0415

    try:
        request: Message = options.request(options)
    except ValueError as error:  # a number that is too large for its field, or an id that is not UTF-8
        raise client.CallError(f"a value does not fit into the request: {error}") from error
    address = options.address or client.DEFAULT_ADDRESS
    if options.wait:
        client.wait_until_serving(address, options.wait)
    answer = client.call(address, request, options.timeout)
    if options.json:
        print(MessageToJson(answer, preserving_proto_field_name=True))
        return 0
    client.show(answer, options.fields)
    if options.hint is not None:
        print(f"\n{client.hint(address, options.user, answer, options.hint)}")
    return 0


# --------------------------------------------------------------------------------------------------------- settings


def _settings(options: argparse.Namespace) -> Settings:
    from recserve.server.config import load_settings  # noqa: PLC0415

    return load_settings(file=options.config, environment=os.environ, flags=list(_flags(options)))


def _flags(options: argparse.Namespace) -> Iterator[Assignment]:
    from recserve.server.config import Assignment  # noqa: PLC0415

    for text in options.set:
        key, _, value = text.partition("=")
        yield Assignment.from_text(tuple(key.split(".")), value, f"flag --set {key}")
    for name, path in _FLAGS.items():
        text = getattr(options, name)
        if text is not None:
            yield Assignment.from_text(path, text, f"flag --{name}")
    if options.bundle:
        yield Assignment(("bundles",), [_bundle(text) for text in options.bundle], "flag --bundle")
    if options.allow_native_code is not None:
        yield Assignment(("compute", "allow_native_code"), options.allow_native_code, "flag --allow-native-code")


def _bundle(text: str) -> dict[str, str]:
    """`NAME=PATH`, or a path alone; `./a=b` is a path that holds an equals sign."""
    name, separator, path = text.partition("=")
    if separator and "/" not in name:
        return {"name": name, "path": path}
    return {"path": text}


def _assignment(text: str) -> str:
    """The type of `--set`."""
    key, separator, _ = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as server.port=5000")
    return text


# --------------------------------------------------------------------------------------------------------- requests


def _recommend(options: argparse.Namespace) -> pb.RecommendRequest:
    from recserve.v1 import recommender_pb2 as pb  # noqa: PLC0415

    return pb.RecommendRequest(
        user_id=options.user,
        count=options.count,
        context=_context(options),
        filter=_filter(options),
        fields=options.fields,
        reasons=options.reasons,
        bundle=options.bundle_name,
        record_shown=options.record_shown,
    )


def _similar(options: argparse.Namespace) -> pb.SimilarItemsRequest:
    from recserve.v1 import recommender_pb2 as pb  # noqa: PLC0415

    return pb.SimilarItemsRequest(
        item_ids=options.item,
        count=options.count,
        alpha=options.alpha,
        context=_context(options),
        filter=_filter(options),
        fields=options.fields,
        bundle=options.bundle_name,
        user_id=options.user,
    )


def _rank(options: argparse.Namespace) -> pb.RankItemsRequest:
    from recserve.v1 import recommender_pb2 as pb  # noqa: PLC0415

    return pb.RankItemsRequest(
        user_id=options.user,
        item_ids=options.item,
        count=options.count,
        context=_context(options),
        filter=_filter(options),
        fields=options.fields,
        reasons=options.reasons,
        bundle=options.bundle_name,
        record_shown=options.record_shown,
    )


def _context(options: argparse.Namespace) -> pb.Context:
    from recserve.v1 import recommender_pb2 as pb  # noqa: PLC0415

    return pb.Context(
        placement=options.placement,
        country=options.country,
        device=options.device,
        language=options.language,
        session_item_ids=options.session,
    )


def _filter(options: argparse.Namespace) -> pb.Filter:
    from recserve.v1 import recommender_pb2 as pb  # noqa: PLC0415

    return pb.Filter(
        exclude_item_ids=options.exclude,
        include_categories=options.category,
        exclude_categories=options.exclude_category,
        price_min=options.price_min,
        price_max=options.price_max,
        in_stock=options.in_stock,
        in_region=options.in_region,
        exclude_purchased=options.exclude_purchased,
        exclude_shown=options.exclude_shown,
    )


# ----------------------------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("recserve", description="Serve recommendations over gRPC, and ask for them.")
    parser.add_argument("--version", action="version", version=f"recserve {this_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="load bundles and serve them in the foreground")
    _add_settings(serve)
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="validate configuration, bundles and snapshot without serving")
    _add_settings(check)
    check.set_defaults(run=_check)
    _add_call(commands.add_parser("call", help="send one request to a server and print the answer"))
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Flags win over the environment (RECSERVE_SERVER__PORT=…), which wins over the file."""
    parser.epilog = "Every key: docs/configuration.md. Flags win over RECSERVE_… variables, which win over the file."
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", help="TCP port; 0 takes a free one")
    parser.add_argument(
        "--bundle",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help='bundle to serve, under "default" where it has no name; repeat for more, the first is the default',
    )
    parser.add_argument("--snapshot", metavar="PATH", help="user snapshot")
    parser.add_argument("--device", metavar="cpu|cuda", help="where towers and search run")
    parser.add_argument("--threads", metavar="N", help="compute threads")
    parser.add_argument("--workers", metavar="N", help="processes that share the port")
    parser.add_argument(
        "--allow-native-code", action=argparse.BooleanOptionalAction, help="load shared libraries from bundles"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="any key, such as server.drain_seconds=30; lists and tables as TOML or JSON",
    )


def _add_call(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_subparsers(required=True, metavar="METHOD")
    recommend = methods.add_parser("recommend", help="items for a user")
    recommend.add_argument("--user", required=True, metavar="ID")
    recommend.add_argument("--record-shown", action=argparse.BooleanOptionalAction, help="remember the answer as shown")
    recommend.set_defaults(request=_recommend)
    similar = methods.add_parser("similar", help="items like one or several others")
    similar.add_argument("--item", required=True, action="append", metavar="ID", help="repeat for several")
    similar.add_argument("--user", default="", metavar="ID", help="for --exclude-purchased and --exclude-shown")
    similar.add_argument("--alpha", type=float, help="1: by behaviour only, 0: by content only")
    similar.set_defaults(request=_similar)
    rank = methods.add_parser("rank", help="given items in the order for a user")
    rank.add_argument("--user", required=True, metavar="ID")
    rank.add_argument("--item", required=True, action="append", metavar="ID", help="repeat for several")
    rank.add_argument("--record-shown", action=argparse.BooleanOptionalAction, help="remember the answer as shown")
    rank.set_defaults(request=_rank)
    for method in (recommend, similar, rank):
        method.set_defaults(run=_call)
        _add_request(method)
        _add_filter(method)
        _add_output(method, reasons=method is not similar)


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request")
    group.add_argument("--count", type=_count, metavar="N")
    group.add_argument("--placement", default="", metavar="NAME", help="selects configured defaults")
    group.add_argument("--country", default="", metavar="CODE", help="ISO 3166-1 alpha-2")
    group.add_argument("--device", default="", metavar="NAME", help="the user's device")
    group.add_argument("--language", default="", metavar="TAG", help="BCP 47")
    group.add_argument("--session", action="append", metavar="ID", help="item of this session, latest first; repeat")
    group.add_argument("--bundle", dest="bundle_name", default="", metavar="NAME", help="a loaded bundle")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filter", "Switches that are left out: as the server is configured.")
    group.add_argument("--category", action="append", metavar="NAME", help="only this category; repeat for several")
    group.add_argument("--exclude-category", action="append", metavar="NAME")
    group.add_argument("--exclude", action="append", metavar="ID", help="not this item; repeat for several")
    group.add_argument("--price-min", type=float, metavar="PRICE")
    group.add_argument("--price-max", type=float, metavar="PRICE")
    for name in ("in-stock", "in-region", "exclude-purchased", "exclude-shown"):
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)


def _add_output(parser: argparse.ArgumentParser, *, reasons: bool) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--fields",
        action="extend",
        type=_names,
        default=[],
        metavar="NAME,…",
        help="item attributes to show; repeat for more; '*' for all",
    )
    if reasons:
        group.add_argument("--reasons", action="store_true", help="why each item was recommended")
    group.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    group.add_argument(
        "--hint",
        nargs="?",
        type=_names,
        const=["*"],
        metavar="NAME,…",
        help="print further commands to try, which show these item attributes; left out: all",
    )
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address", type=_address, metavar="HOST:PORT", help="of the server; left out: where one listens by default"
    )
    group.add_argument("--timeout", type=_timeout, default=5.0, metavar="SECONDS", help="the request's deadline")
    group.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="first wait until the server is ready"
    )


def _address(text: str) -> str:
    """The type of `--address`."""
    from recserve.server.address import host_and_port, joined  # noqa: PLC0415

    try:
        return joined(*host_and_port(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    """The type of `--count`: what a request can hold; which of them are answered the server says."""
    try:
        count = int(text)
    except ValueError:
        count = _MAX_INT32 + 1
    if not -_MAX_INT32 <= count <= _MAX_INT32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number up to {_MAX_INT32:,}")
    return count


def _seconds(text: str) -> float:
    """The type of `--wait`."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _MAX_SECONDS:  # also true of NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {_MAX_SECONDS:,}")
    return seconds


def _timeout(text: str) -> float:
    """The type of `--timeout`."""
    seconds = _seconds(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("a request cannot be answered within 0 seconds")
    return seconds


def _names(text: str) -> list[str]:
    """The type of `--fields` and `--hint`."""
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
