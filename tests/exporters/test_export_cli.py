"""`recserve-export` on real files: what it prints, where, and its exit status."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from recserve.exporters.cli import main
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command: exit status, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def write_csv(table: pa.Table, path: Path) -> None:
    """Lists joined by |, as the reader expects them."""
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            joined = pc.binary_join(table.column(index), "|")
            table = table.set_column(index, field.name, joined)
    pyarrow.csv.write_csv(table, path)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "csv": write_csv,
    "arrow": lambda table, path: pyarrow.feather.write_feather(table, path, compression="uncompressed"),
}


def test_build_from_parquet(run: Run, shop: Any, tmp_path: Path) -> None:
    status, out, err = run("build", shop.root / "shop.toml", "--out", tmp_path / "out")
    assert status == 0
    assert "shop 2025-06-01: 400 items" in out
    assert "equal bit for bit" in out
    for step in ("user snapshot", "items", "vector spaces", "rankers", "golden requests", "verification"):
        assert f"\n{step} " in f"\n{err}"
    assert err.endswith(f"wrote {tmp_path / 'out'}\n")
    bundle = open_bundle(tmp_path / "out/bundle")
    open_snapshot(tmp_path / "out/snapshot").check_fits(bundle)


@pytest.mark.parametrize("kind", ["csv", "arrow"])
def test_build_from_other_tables_gives_the_same_files(run: Run, complete: Any, tmp_path: Path, kind: str) -> None:
    """A CSV file has no types; those of the specification make the same arrays of it."""
    root = shutil.copytree(complete.shop.root, tmp_path / "shop", ignore=shutil.ignore_patterns("untrained"))
    for name in ("items", "users", "history", "events", "baskets"):
        WRITERS[kind](pyarrow.parquet.read_table(root / f"{name}.parquet"), root / f"{name}.{kind}")
    text = (root / "shop.toml").read_text().replace(".parquet", f".{kind}")
    (root / "shop.toml").write_text(text)
    status, _, err = run("build", root / "shop.toml", "--out", tmp_path / "out")
    assert status == 0, err
    ours = {name: file.sha256 for name, file in open_bundle(tmp_path / "out/bundle").manifest.files.items()}
    theirs = {name: file.sha256 for name, file in open_bundle(complete.path).manifest.files.items()}
    same = {name for name in theirs if not name.endswith((".so", "report.html"))}
    assert {name for name in same if ours[name] != theirs[name]} == set()
    ours = {name: file.sha256 for name, file in open_snapshot(tmp_path / "out/snapshot").manifest.files.items()}
    assert ours == {name: file.sha256 for name, file in open_snapshot(complete.snapshot).manifest.files.items()}


def test_inspect(run: Run, complete_bundle: Path) -> None:
    status, out, err = run("inspect", complete_bundle)
    assert (status, err) == (0, "")
    for told in (
        "bundle shop 2025-06-01",
        "400",
        "items.parquet",
        "inner product, length 1",
        "isotonic",
        "near the 3 latest items in content",
        "popular by gender, device",
        "bitsliced",
        "0.4321",
    ):
        assert told in out


def test_verify(run: Run, complete_bundle: Path) -> None:
    status, out, err = run("verify", complete_bundle)
    assert (status, err) == (0, "")
    assert "is whole" in out
    assert "12 golden requests answered by bitsliced in" in out


def test_verify_runs_native_code_only_with_leave(run: Run, complete_bundle: Path) -> None:
    status, out, err = run("verify", complete_bundle, "--allow-native-code")
    assert (status, err) == (0, "")
    assert "12 golden requests answered by bitsliced and tl2cgen in" in out


def test_verify_a_damaged_bundle(run: Run, complete_copy: Path) -> None:
    path = complete_copy / "spaces/als/vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, out, err = run("verify", complete_copy, "--allow-native-code")
    assert (status, out) == (1, "")
    assert "spaces/als/vectors.npy" in err
    assert "Traceback" not in err


def test_diff(run: Run, complete_bundle: Path, shop: Any) -> None:
    status, out, err = run("diff", shop.root / "untrained/bundle", complete_bundle)
    assert (status, err) == (0, "")
    assert "forest purchase" in out
    assert "items/bins.npy, ranker/forest/" in out
    status, out, _ = run("diff", complete_bundle, complete_bundle)
    assert status == 0
    assert "do not differ" in out


def evaluate(bundle: Path, *options: object) -> tuple[object, ...]:
    """The command, which refuses its options before it looks for a file."""
    files = ("--snapshot", "no-snapshot", "--truth", "no-truth.parquet", "--time", "2025-06-01")
    return ("evaluate", bundle, *files, *options)


def test_evaluate_a_placement_of_no_configuration(run: Run, complete_bundle: Path) -> None:
    status, out, err = run(*evaluate(complete_bundle, "--placement", "home"))
    assert (status, out) == (1, "")
    assert "--placement home is one of a server's configuration: add --config" in err


@pytest.mark.parametrize("option", ["--out", "--report"])
@pytest.mark.parametrize(
    ("place", "problem"), [("no/dir/x", "there is no directory"), (".", "is a directory: name a file in it")]
)
def test_evaluate_to_where_nothing_can_be_written(
    run: Run, complete_bundle: Path, tmp_path: Path, option: str, place: str, problem: str
) -> None:
    status, out, err = run(*evaluate(complete_bundle, option, tmp_path / place))
    assert (status, out) == (1, "")
    assert problem in err
    assert "no-snapshot" not in err  # was not looked for
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_demo_with_a_seed_that_is_none(run: Run, tmp_path: Path, seed: int) -> None:
    status, out, err = run("demo", "--out", tmp_path / "demo", "--seed", seed)
    assert (status, out) == (1, "")
    assert err == f"recserve-export: the seed must be 0 to 2147483647, found {seed}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_interrupts_ends_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    """The specification is a pipe that nobody writes to: once it is open, the command waits for its text."""
    os.mkfifo(tmp_path / "shop.toml")
    command = [sys.executable, "-m", "recserve.exporters.cli", "build", tmp_path / "shop.toml", "--out", tmp_path / "o"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, (tmp_path / "shop.toml").open("w"):
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == "recserve-export: interrupted; nothing is left of what was not complete\n"


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_bundle(run: Run, tmp_path: Path, command: str) -> None:
    status, out, err = run(command, tmp_path / "nothing")
    assert (status, out) == (1, "")
    assert err.startswith("recserve-export: no such directory")


def test_build_with_mistakes(run: Run, shop: Any, tmp_path: Path) -> None:
    path = shop.root / "mistakes.toml"
    path.write_text(
        (shop.root / "shop.toml").read_text().replace("rankers", "ranker").replace("items.parq", "item.parq")
    )
    status, out, err = run("build", path, "--out", tmp_path / "out")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"recserve-export: {path} is not a valid export:",
        f"  catalogue.items: there is no file {shop.root / 'item.parquet'}",
        '  ranker: unknown key; did you mean "rankers"?',
    ]
    assert list(tmp_path.iterdir()) == []


def test_build_into_an_existing_directory(run: Run, shop: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    status, out, err = run("build", shop.root / "shop.toml", "--out", tmp_path / "out")
    assert (status, out) == (1, "")
    assert f"{tmp_path / 'out'} exists" in err


def test_build_that_fails_leaves_nothing(run: Run, shop: Any, tmp_path: Path) -> None:
    path = shop.root / "failing.toml"
    path.write_text((shop.root / "shop.toml").read_text().replace("als_items.npy", "content.npy"))
    status, _, err = run("build", path, "--out", tmp_path / "out")
    assert status == 1
    assert "user vectors of space 'als': expected [100 user ids, 12 dimensions], found [100, 8]" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["bild"], ["build"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: recserve-export" in capsys.readouterr().err


def test_inspect_does_not_load_what_only_exports_need(complete_bundle: Path) -> None:
    code = (
        "import sys; from recserve.exporters.cli import main; "
        f"status = main(['inspect', {str(complete_bundle)!r}]); "
        "loaded = {'lightgbm', 'onnx', 'torch', 'matplotlib', 'sklearn', 'pyarrow'} & set(sys.modules); "
        "sys.exit(status or (repr(loaded) if loaded else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import signal
from pathlib import Path
from recserve.exporters import cli, export, specfile, writer

def export_all(spec, users, out, console):
    with writer.BundleWriter(out) as opened:
        opened.text("features.json", "")
        signal.raise_signal(signal.SIGTERM)

specfile.read_spec = lambda path: (None, None)
export.export_all = export_all
raise SystemExit(cli.main(["build", "shop.toml", "--out", "out"]))
"""


def test_sigterm_leaves_nothing_of_an_export(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
