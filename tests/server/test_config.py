"""Where settings come from, which source wins, and that every error is listed with its origin and a remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels.features import operations
from recserve.server.config import (
    DEFAULT_PLACEMENT,
    Assignment,
    ConfigError,
    FreshnessSettings,
    PlacementSettings,
    Settings,
    SourceSettings,
    load_settings,
)
from recserve.server.config.keys import ANY, all_keys, find, nearest
from recserve.server.config.reference import renew
from recserve.server.rpc import limits

ROOT = Path(__file__).parents[2]
BUNDLE = {"RECSERVE_BUNDLES": '[{path = "/srv/bundle"}]'}

TomlFile = Callable[[str], Path]


@pytest.fixture
def toml_file(tmp_path: Path) -> TomlFile:
    def write(text: str) -> Path:
        path = tmp_path / "recserve.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(**sources: Any) -> dict[str, tuple[str, str]]:
    """By key: (origin, message) of every error."""
    with pytest.raises(ConfigError) as caught:
        load_settings(**sources)
    return {problem.key: (problem.origin, problem.message) for problem in caught.value.problems}


def problem_of(text: str, toml_file: TomlFile) -> dict[str, str]:
    """By key: the message of every error of a file that has a bundle."""
    found = problems(file=toml_file(text), environment=BUNDLE)
    return {key: message for key, (_, message) in found.items()}


def test_defaults_need_only_a_bundle() -> None:
    found = load_settings(environment=BUNDLE)
    assert (found.server.host, found.server.port) == ("127.0.0.1", 50051)
    assert found.bundles[0].name == "default"
    assert found.bundles[0].path == Path("/srv/bundle")
    assert found.placements == {DEFAULT_PLACEMENT: PlacementSettings()}


def test_flags_beat_environment_beats_file_beats_defaults(toml_file: TomlFile) -> None:
    file = toml_file(
        '[server]\nport = 1\nhost = "file"\nreflection = false\n[compute]\nthreads = 3\n[[bundles]]\npath = "/b"\n'
    )
    found = load_settings(
        file=file,
        environment={"RECSERVE_SERVER__PORT": "2", "RECSERVE_SERVER__HOST": "environment"},
        flags=[Assignment.from_text(("server", "port"), "3", "flag --port")],
    )
    assert (found.server.port, found.server.host, found.server.reflection) == (3, "environment", False)
    assert (found.compute.threads, found.compute.max_batch) == (3, 32)


def test_tables_merge_and_lists_replace(toml_file: TomlFile) -> None:
    file = toml_file(
        "[placements.home]\ncandidates = 100\nsources = [{name = 'ann', weight = 1}, {name = 'als', weight = 1}]\n"
        "[placements.cart]\nin_stock = false\n"
    )
    environment = BUNDLE | {
        "RECSERVE_PLACEMENTS__HOME__SOURCES": '[{"name": "popular", "weight": 2}]',
        "RECSERVE_PLACEMENTS__CART": "{mmr_weight = 0.5}",
    }
    found = load_settings(file=file, environment=environment).placements
    assert set(found) == {DEFAULT_PLACEMENT, "home", "cart"}
    assert (found["home"].candidates, [source.name for source in found["home"].sources]) == (100, ["popular"])
    assert (found["cart"].in_stock, found["cart"].mmr_weight) == (False, 0.5)


def test_the_default_placement_can_be_changed(toml_file: TomlFile) -> None:
    found = load_settings(file=toml_file("[placements.default]\ncandidates = 7\n"), environment=BUNDLE)
    assert found.placements[DEFAULT_PLACEMENT].candidates == 7


def test_an_empty_section_makes_the_placement_exist(toml_file: TomlFile) -> None:
    assert "home" in load_settings(file=toml_file("[placements.home]\n"), environment=BUNDLE).placements


def test_paths_in_the_file_are_taken_from_its_directory(toml_file: TomlFile) -> None:
    file = toml_file(
        '[[bundles]]\npath = "bundle"\n[[bundles]]\nname = "b"\npath = "/abs"\n[state]\nsnapshot = "../users"\n'
    )
    found = load_settings(file=file)
    assert [bundle.path for bundle in found.bundles] == [file.parent / "bundle", Path("/abs")]
    assert found.state.snapshot == file.parent / "../users"
    assert load_settings(environment={"RECSERVE_BUNDLES": '[{"path": "bundle"}]'}).bundles[0].path == Path("bundle")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("server.port", "5000", 5000),
        ("server.drain_seconds", "2.5", 2.5),
        ("server.drain_seconds", "2", 2.0),
        ("server.reflection", "false", False),
        ("server.host", "127", "127"),
        ("server.host", "[::1]", "[::1]"),
        ("state.snapshot", "2026", Path("2026")),
        ("compute.max_batch", "1_0", 10),
        ("similar.behaviour_space", "", ""),
        ("similar", '{"alpha": 0.5}', 0.5),
    ],
)
def test_texts_become_what_the_key_wants(key: str, text: str, expected: object) -> None:
    assignment = Assignment.from_text(tuple(key.split(".")), text, "flag --set")
    found: object = load_settings(environment=BUNDLE, flags=[assignment])
    for part in key.split("."):
        found = getattr(found, part)
    assert getattr(found, "alpha", found) == expected


def test_every_error_is_listed_at_once_with_its_origin(toml_file: TomlFile) -> None:
    file = toml_file('[server]\nprot = 5\nport = 99999\n[log]\nlevel = "chatty"\n[placements.home]\nmmr_weight = 2\n')
    flag = Assignment.from_text(("compute", "threads"), "many", "flag --threads")
    found = problems(
        file=file, environment={"RECSERVE_SERVR__HOST": "x", "RECSERVE_COMPUTE__MAX_BATCH": "0"}, flags=[flag]
    )
    place = f"file {file}"
    assert found == {
        "server.prot": (place, "no such key; did you mean server.port?"),
        "server.port": (place, "found 99999, allowed is an integer, 0 to 65,535"),
        "log.level": (place, 'found "chatty", allowed is one of "debug", "info", "warning", "error"'),
        "placements.home.mmr_weight": (place, "found 2, allowed is a number, 0 to 1"),
        "servr": ("environment RECSERVE_SERVR__HOST", "no such key; did you mean server (RECSERVE_SERVER)?"),
        "compute.max_batch": (
            "environment RECSERVE_COMPUTE__MAX_BATCH",
            "found 0, allowed is an integer, 1 to 1,024 [requests]",
        ),
        "compute.threads": ("flag --threads", 'found "many", allowed is an integer, 1 to 1,024 [threads]'),
        "bundles": (
            "by default",
            "no bundle to serve; give --bundle PATH, [[bundles]] in the file, or RECSERVE_BUNDLES",
        ),
    }


def test_the_message_is_one_line_per_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environment={**BUNDLE, "RECSERVE_SERVER__PORT": "x", "RECSERVE_LOG_LEVEL": "info"})
    assert str(caught.value).splitlines() == [
        "2 errors in the configuration:",
        '  server.port (environment RECSERVE_SERVER__PORT): found "x", allowed is an integer, 0 to 65,535',
        "  log_level (environment RECSERVE_LOG_LEVEL): no such key; did you mean log.level (RECSERVE_LOG__LEVEL)?",
    ]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("server.prot", "server.port"),
        ("port", "server.port"),
        ("server_port", "server.port"),
        ("bundels", "bundles"),
        ("placements.home.mmr", "placements.home.mmr_weight"),
        ("placements.home.caps.0.atribute", "placements.home.caps.0.attribute"),
        ("state.threads", "compute.threads"),
        ("qqq", ""),
    ],
)
def test_nearest_key(typo: str, meant: str) -> None:
    assert nearest(tuple(typo.split("."))) == meant


def test_where_nothing_is_near_the_valid_names_are_listed(toml_file: TomlFile) -> None:
    found = problem_of("[log]\nqqq = 1\n", toml_file)
    assert found == {"log.qqq": "no such key; there are level"}


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[server]\nclock = 2011-11-11T00:00:00\n", "server.clock",
         'found "2011-11-11 00:00:00", allowed is a time with a zone, such as 2011-11-11T00:00:00Z'),
        ("[server]\nclock = 1320969600\n", "server.clock",
         "found 1320969600, allowed is a time with a zone, such as 2011-11-11T00:00:00Z"),
        ("[server]\nclock = '2011'\n", "server.clock",
         'found "2011", allowed is a time with a zone, such as 2011-11-11T00:00:00Z'),
        ("[server]\nclock = 9999-12-31T23:59:59-12:00\n", "server.clock",
         "found 9999-12-31T23:59:59-12:00, allowed are the years 1970 to 9999, as for a request's time"),
        ("[server]\nclock = 1969-12-31T23:59:59Z\n", "server.clock",
         "found 1969-12-31T23:59:59+00:00, allowed are the years 1970 to 9999, as for a request's time"),
        ("[server]\nport = true\n", "server.port", "found true, allowed is an integer, 0 to 65,535"),
        ('[server]\nport = "5000"\n', "server.port", 'found "5000", allowed is an integer, 0 to 65,535'),
        ("[server]\nport = 2026-01-01\n", "server.port", 'found "2026-01-01", allowed is an integer, 0 to 65,535'),
        ("[server]\ndrain_seconds = nan\n", "server.drain_seconds", "found NaN, allowed is a number, 0 to 3,600 [s]"),
        ("[server]\nhost = ''\n", "server.host", 'found "", allowed is a text, not empty'),
        ("server = 5\n", "server", "found 5, allowed is a table"),
        ("[placements.home]\nsources = 5\n", "placements.home.sources", "found 5, allowed is a list"),
        ("[placements.home]\nfusion = {constant = 0}\n", "placements.home.fusion.constant",
         "found 0, allowed is a number, above 0 to 1,000,000"),
        ("[placements.home.freshness]\nboost = 1\n", "placements.home.freshness.half_life_days",
         "is required: a number, above 0 to 36,500 [days]"),
        ("[placements.'a b']\n", "placements.a b",
         'found "a b", allowed is a name: a letter, digit or `_`, then at most 63 letters, digits, `_` or `-`'),
        ("[placements.home]\nobjective_weights = {click = -1}\n", "placements.home.objective_weights.click",
         "found -1, allowed is a number, 0 to 1,000,000"),
        ('[state]\nsnapshot = "users\\u0000"\n', "state.snapshot",
         "holds a NUL character (\\u0000), which no path can have: remove it"),
        ("[compute]\ndevice = 'tpu'\n", "compute.device", 'found "tpu", allowed is one of "cpu", "cuda"'),
    ],
)  # fmt: skip
def test_values_out_of_range_or_of_another_type(toml_file: TomlFile, text: str, key: str, message: str) -> None:
    assert problem_of(text, toml_file) == {key: message}


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[server]\ndrain_seconds = 0.5\n", "server.drain_seconds", "at least server.default_deadline_ms (1 s)"),
        ("[server]\ndefault_deadline_ms = 20000\n", "server.drain_seconds", "server.default_deadline_ms (20 s)"),
        ("[state]\ndeadline_ms = 1000\n", "state", "must be below server.default_deadline_ms (1000)"),
        ("[admission]\nmax_queue = 5\n", "admission", "must be at least compute.max_batch (32)"),
        ("[placements.p]\nsources = [{name='a', weight=0}]\n", "placements.p.sources", "at least one weight"),
        ("[placements.p]\nsources = [{name='a', weight=1}, {name='a', weight=2}]\n", "placements.p.sources",
         "source names must be unique; given more than once: a"),
        ("[placements.p]\nobjective_weights = {click = 0}\n", "placements.p.objective_weights", "at least one weight"),
        ("[placements.p]\ncaps = [{attribute='c', max=3, window=3}]\n", "placements.p.caps.0.window",
         "must be larger than max (3)"),
        ("[placements.p]\ncaps = [{attribute='c', max=3, sliding=true}]\n", "placements.p.caps.0.sliding",
         "needs a window"),
    ],
)  # fmt: skip
def test_checks_that_involve_several_keys(toml_file: TomlFile, text: str, key: str, message: str) -> None:
    found = problem_of(text, toml_file)
    assert set(found) == {key}
    assert message in found[key]


@given(name=st.from_regex(operations.NAME, fullmatch=True))
def test_a_source_may_be_called_as_bundles_call_theirs(name: str) -> None:
    assert SourceSettings(name=name, weight=1).name == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a.b", "ä", "a\n", "a" * 65])
def test_names_that_nothing_may_have(name: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        SourceSettings(name=name, weight=1)


def test_bundle_names_are_unique(toml_file: TomlFile) -> None:
    file = toml_file('[[bundles]]\npath = "a"\n[[bundles]]\npath = "b"\n')
    assert problems(file=file) == {
        "bundles": (f"file {file}", "bundle names must be unique; given more than once: default")
    }


def test_the_largest_batch_leaves_room_for_others() -> None:
    assert load_settings(environment=BUNDLE).admission.max_queue >= 4 * limits.MAX_BATCH_REQUESTS


def test_draining_can_be_switched_off(toml_file: TomlFile) -> None:
    assert load_settings(file=toml_file("[server]\ndrain_seconds = 0\n"), environment=BUNDLE).server.drain_seconds == 0


def test_a_file_that_cannot_be_read(tmp_path: Path, toml_file: TomlFile) -> None:
    missing = tmp_path / "none.toml"
    assert problems(file=missing) == {"": (f"file {missing}", "cannot be read: No such file or directory")}
    broken = toml_file("[server\n")
    assert "is not TOML" in problems(file=broken)[""][1]
    assert "line 1" in problems(file=broken)[""][1]
    broken.write_bytes(b"\xff")
    assert problems(file=broken)[""][1] == "cannot be read: it is not UTF-8"


@pytest.mark.parametrize(
    "environment",
    [
        {"RECSERVE_CPU": "avx2"},
        {"RECSERVE_RETAIL": "transactions.parquet"},
        {"PATH": "/bin", "RECSERVEX": "1"},
        {"RECSERVE_SERVICE_HOST": "10.0.0.1", "RECSERVE_SERVICE_PORT": "1", "RECSERVE_SERVICE_PORT_GRPC": "1"},
        {
            "RECSERVE_PORT": "tcp://10.0.0.1:50051",
            "RECSERVE_PORT_50051_TCP_ADDR": "10.0.0.1",
            "RECSERVE_PORT_50051_TCP": "tcp://",
        },
        {"RECSERVE_CANARY_SERVICE_HOST": "10.0.0.1", "RECSERVE_CANARY_PORT": "tcp://10.0.0.1:50051"},
    ],
)
def test_variables_that_are_no_settings(environment: Mapping[str, str]) -> None:
    assert load_settings(environment=BUNDLE | environment) == load_settings(environment=BUNDLE)


def test_a_port_that_kubernetes_did_not_set_is_a_typo() -> None:
    found = problems(environment=BUNDLE | {"RECSERVE_PORT": "5000"})
    assert found["port"][1] == "no such key; did you mean server.port (RECSERVE_SERVER__PORT)?"


def test_a_text_with_a_line_break_is_no_second_key() -> None:
    found = problems(environment=BUNDLE | {"RECSERVE_SERVER__PORT": "5\nhost = 'x'"})
    assert set(found) == {"server.port"}


def test_a_bundle_where_no_path_leads(toml_file: TomlFile) -> None:
    found = problems(file=toml_file('[[bundles]]\npath = "shop\\u0000"\n'))
    assert found["bundles.0.path"][1] == "holds a NUL character (\\u0000), which no path can have: remove it"


@pytest.mark.parametrize("key", ["bundles.0.path", "state.snapshot"])
def test_no_path_is_not_the_place_where_the_server_starts(toml_file: TomlFile, key: str) -> None:
    text = '[[bundles]]\npath = ""\n[state]\nsnapshot = ""\n'
    assert problems(file=toml_file(text))[key][1] == "is empty: name a directory"
    environment = {"RECSERVE_BUNDLES": '[{path = ""}]', "RECSERVE_STATE__SNAPSHOT": ""}
    assert problems(environment=environment)[key][1] == "is empty: name a directory"


def test_a_name_with_a_line_break_stays_on_its_line(toml_file: TomlFile) -> None:
    file = toml_file('[placements."ho\\nme"]\n')
    flag = Assignment.from_text(("placements", "b\n", "mmr_weight"), "2", "flag --set placements.b\n.mmr_weight")
    with pytest.raises(ConfigError) as caught:
        load_settings(file=file, environment=BUNDLE, flags=[flag])
    rule = "allowed is a name: a letter, digit or `_`, then at most 63 letters, digits, `_` or `-`"
    said = r"placements.b\n{} (flag --set placements.b\n.mmr_weight): found {}"
    assert str(caught.value).splitlines() == [
        "3 errors in the configuration:",
        rf'  placements.ho\nme (file {file}): found "ho\nme", {rule}',
        "  " + said.format("", rf'"b\n", {rule}'),
        "  " + said.format(".mmr_weight", "2, allowed is a number, 0 to 1"),
    ]


def test_bytes_that_are_not_utf8_are_shown_as_such() -> None:
    found = problems(environment=BUNDLE | {"RECSERVE_SERVER__PORT": "\udcff"})
    assert found["server.port"][1] == 'found "\\ufffd", allowed is an integer, 0 to 65,535'


def test_a_section_given_as_a_value_is_reported_and_not_overwritten() -> None:
    found = problems(environment=BUNDLE | {"RECSERVE_SERVER": "5", "RECSERVE_SERVER__PORT": "1"})
    assert found == {"server": ("environment RECSERVE_SERVER", "found 5, allowed is a table")}


@pytest.mark.parametrize("path", [path for path, key in all_keys().items() if path and key.kind != "table"])
def test_nothing_below_a_key_that_is_no_table_is_ignored(path: tuple[str, ...]) -> None:
    concrete = tuple("0" if part == ANY else part for part in path)
    flag = Assignment.from_text((*concrete, "x"), "9", "flag --set")
    found = problems(environment=BUNDLE, flags=[flag])
    assert found.keys() == {".".join(flag.path)}
    assert found[".".join(flag.path)][0] == "flag --set"


def test_what_is_set_inside_a_list_or_a_value_is_told_with_the_rest(toml_file: TomlFile) -> None:
    file = toml_file(
        '[server]\nport = 1\n[[bundles]]\npath = "b"\n[placements.home]\ncaps = [{attribute = "brand", max = 2}]\n'
    )
    environment = {"RECSERVE_BUNDLES__0__PATH": "/b", "RECSERVE_SERVER__PORT__HTTP": "2"}
    flags = [
        Assignment.from_text(("placements", "home", "caps", "0", "max"), "9", "flag --set"),
        Assignment.from_text(("compute", "threads"), "0", "flag --threads"),
    ]
    assert problems(file=file, environment=environment, flags=flags) == {
        "bundles.0.path": (
            "environment RECSERVE_BUNDLES__0__PATH",
            "cannot be set inside a list; give the whole of bundles (RECSERVE_BUNDLES)",
        ),
        "server.port.http": (
            "environment RECSERVE_SERVER__PORT__HTTP",
            "no such key; server.port (RECSERVE_SERVER__PORT) is an integer, 0 to 65,535",
        ),
        "placements.home.caps.0.max": (
            "flag --set", "cannot be set inside a list; give the whole of placements.home.caps",
        ),
        "compute.threads": ("flag --threads", "found 0, allowed is an integer, 1 to 1,024 [threads]"),
    }  # fmt: skip


def test_a_table_where_a_list_belongs_is_named_as_a_whole(toml_file: TomlFile) -> None:
    file = toml_file('[bundles]\npath = "b"\n')
    assert problems(file=file) == {"bundles": (f"file {file}", 'found {"path": "b"}, allowed is a list, not empty')}


def test_a_section_set_to_null_is_one_again_for_a_stronger_source() -> None:
    environment = BUNDLE | {"RECSERVE_PLACEMENTS__HOME": "{freshness = {boost = 1, half_life_days = 2}}"}
    environment["RECSERVE_PLACEMENTS__HOME__FRESHNESS"] = "null"
    assert load_settings(environment=environment).placements["home"].freshness is None
    for text in ("{boost = 0.5, half_life_days = 14}", '{"boost": 0.5, "half_life_days": 14}'):
        flag = Assignment.from_text(("placements", "home", "freshness"), text, "flag --set")
        found = load_settings(environment=environment, flags=[flag]).placements["home"].freshness
        assert found == FreshnessSettings(boost=0.5, half_life_days=14)
    flag = Assignment.from_text(("placements", "home", "freshness", "boost"), "0.5", "flag --set")
    assert problems(environment=environment, flags=[flag])["placements.home.freshness.half_life_days"] == (
        "flag --set", "is required: a number, above 0 to 36,500 [days]",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_a_file_that_says_nothing(toml_file: TomlFile, text: str) -> None:
    bundles = Assignment(("bundles",), [{"path": "b"}], "flag --bundle")
    assert load_settings(file=toml_file(text), flags=[bundles]).bundles[0].path == Path("b")
    with pytest.raises(ConfigError, match="no bundle to serve"):
        load_settings(file=toml_file(text))


def test_a_wrong_bundle_is_not_called_missing(toml_file: TomlFile) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(file=toml_file('[[bundles]]\nname = "a b"\npath = "b"\n'))
    assert [problem.key for problem in caught.value.problems] == ["bundles.0.name"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, ""),
        ("[compute]\nthreads = " + "1" * 5000, ""),
        ("x = " + "[" * 250 + "]" * 250, "x"),
        (".".join(["x"] * 5000) + " = 1", "x"),
        ("[compute]\nthreads = 0x" + "f" * 5000, "compute.threads"),
    ],
    ids=["lists", "digits", "fewer lists", "dots", "hexadecimal digits"],
)
def test_a_file_beyond_reading(toml_file: TomlFile, text: str, key: str) -> None:
    file = toml_file(text)
    assert problems(file=file, environment=BUNDLE) == {key: (f"file {file}", UNREADABLE)}


UNREADABLE = "cannot be read: it is nested too deeply, not UTF-8, or a number of thousands of digits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, f'found "{"[" * 78}…, allowed is an integer, 1 to 1,024 [threads]'),
        ("{a=" * 5000, f'found "{"{a=" * 26}…, allowed is an integer, 1 to 1,024 [threads]'),
        ("1" * 5000, f'found "{"1" * 78}…, allowed is an integer, 1 to 1,024 [threads]'),
        ("1" * 4000, f"found {'1' * 79}…, allowed is an integer, 1 to 1,024 [threads]"),
        ("0x" + "f" * 5000, UNREADABLE),
        ("[" * 250 + "]" * 250, UNREADABLE),
    ],
    ids=["JSON", "TOML", "digits", "fewer digits", "hexadecimal digits", "lists"],
)
def test_a_value_beyond_reading(text: str, message: str) -> None:
    name = "RECSERVE_COMPUTE__THREADS"
    assert problems(environment=BUNDLE | {name: text}) == {"compute.threads": (f"environment {name}", message)}


@pytest.mark.parametrize("path", [("server",) * 2000, ("\udcff",)], ids=["long", "not UTF-8"])
def test_a_key_beyond_reading(path: tuple[str, ...]) -> None:
    flag = Assignment.from_text(path, "1", "flag --set")
    assert problems(environment=BUNDLE, flags=[flag]) == {".".join(path): ("flag --set", UNREADABLE)}


def test_settings_cannot_be_changed() -> None:
    found = load_settings(environment=BUNDLE)
    with pytest.raises(ValueError, match="frozen"):
        found.server.port = 1  # type: ignore[misc]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PATHS = st.sampled_from([tuple("x" if part == ANY else part for part in path) for path in all_keys() if path])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PATHS, JSON), max_size=4), st.lists(st.tuples(PATHS, NAMES), max_size=2))
def test_whatever_is_said_is_either_valid_or_named(
    values: list[tuple[tuple[str, ...], object]], texts: list[tuple[tuple[str, ...], str]]
) -> None:
    flags = [Assignment(path, value, "flag --set") for path, value in values]
    flags += [Assignment.from_text(path, text, "flag --set") for path, text in texts]
    try:
        assert isinstance(load_settings(environment=BUNDLE, flags=flags), Settings)
    except ConfigError as error:
        assert all(problem.message and problem.origin for problem in error.problems)  # noqa: PT017  either outcome is right


def test_every_key_is_described_and_found() -> None:
    for path, key in all_keys().items():
        assert find(tuple("7" if part == ANY else part for part in path)) == key
        free_named = path == () or path[-1] == ANY or key.kind in ("table", "list")
        assert key.description or free_named, f"{key.dotted} lacks a description"


def test_the_reference_is_the_model() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert renew(document) == document, "run: python -m recserve.server.config.reference docs/configuration.md"


def test_the_reference_needs_its_marks() -> None:
    with pytest.raises(ValueError, match="keys: written by"):
        renew("# Configuration\n")


def test_the_documented_files_are_valid(toml_file: TomlFile) -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    whole, *parts = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    assert [bundle.name for bundle in load_settings(file=toml_file(whole)).bundles] == ["default", "canary"]
    assert set(tomllib.loads(whole)) <= set(Settings.model_fields)
    for part in parts:
        assert load_settings(file=toml_file(f'{part}\n[[bundles]]\npath = "shop"\n'))
