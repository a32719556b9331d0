"""What the documentation tells people to type is typed here.

A fenced block is run if its info string says so, behind the language:

    ```python run              executed; all Python blocks of a document share one namespace
    ```sh run                  executed by bash, which stops at the first error
    ```toml file=shop.toml     written to a file for the blocks behind it
    ```python run needs=torch  left out where that module is missing, and in the quick run of the tests

A document's blocks run in their order in an empty directory; the README's where `make run` has been. The project's
commands are on PATH. Servers that documents start listen on PORT, for which a free port is typed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from recserve.exporters.demo.build import build_demo
from recserve.exporters.demo.sizes import DemoSizes

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])]
COMPLETE = ["docs/bring-your-own.md", "docs/exporting.md"]
"""Documents that leave no block of these languages untried."""
CHECKED_LANGUAGES = {"python", "sh", "toml", "json"}
OPTIONS = {"run", "file", "needs"}
SECONDS = 120
PORT = "50077"
"""Where documents start a server; 50051 may be that of another one."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, options, text, and the line of the fence."""

    language: str
    options: dict[str, str]
    text: str
    line: int

    @property
    def acts(self) -> bool:
        return bool(self.options.keys() & {"run", "file"})


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        fence = re.fullmatch(r"(`{3,})(.*)", line)
        if fence:
            language, *options = shlex.split(fence[2]) or [""]
            content = []
            for _, inner in lines:
                if inner == fence[1]:
                    break
                content.append(inner)
            else:
                raise ValueError(f"line {number}: the block does not end")
            named = dict(option.partition("=")[::2] for option in options)
            if not named.keys() <= OPTIONS:
                raise ValueError(f"line {number}: unknown options {named.keys() - OPTIONS}")
            yield Block(language, named, "\n".join(content) + "\n", number)


class Reader:
    """Does what a document says, in the current directory."""

    def __init__(self, document: Path, path: str) -> None:
        self._document = document
        self._environment = {**os.environ, "PATH": path}
        self._names: dict[str, object] = {"__name__": "__main__"}
        self._port = str(free_port())

    def follow(self, block: Block) -> None:
        if file := block.options.get("file"):
            Path(file).write_text(block.text, encoding="utf-8")
        if "run" in block.options:
            {"python": self._python, "sh": self._shell}[block.language](block)

    def _python(self, block: Block) -> None:
        """Empty lines before the code make tracebacks show the document's lines."""
        code = compile("\n" * block.line + block.text, str(self._document), "exec", dont_inherit=True)
        exec(code, self._names)

    def _shell(self, block: Block) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text.replace(PORT, self._port)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        where = f"{self._document.name}:{block.line}"
        assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}{done.stderr}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def commands(tmp_path: Path) -> str:
    """A PATH on which the project's commands are those of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for name, entry in scripts.items():
        module, function = entry.split(":")
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def needed(found: Sequence[Block]) -> set[str]:
    return {block.options["needs"] for block in found if "needs" in block.options}


def read(document: str) -> list[Block]:
    return list(blocks((ROOT / document).read_text("utf-8")))


def follow(document: str, found: Sequence[Block], commands: str, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    os.chdir(directory)
    reader = Reader(ROOT / document, commands)
    for block in found:
        reader.follow(block)


@pytest.fixture
def made(tmp_path: Path, commands: str) -> Iterator[Path]:
    """Where a reader of the README stands after `make run`: .venv, a (small) demo, its server on the usual port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 50051)) == 0:
            pytest.skip("port 50051, which the README uses, is taken: stop that server and run again")
    directory = tmp_path / "work"
    (directory / ".venv").mkdir(parents=True)
    (directory / ".venv" / "bin").symlink_to(commands.partition(":")[0])
    sizes = DemoSizes(items=600, users=200, events=20_000, factors=12, train_requests=300, trees=20)
    demo = build_demo(directory / "build" / "demo", sizes=sizes)
    command = [directory / ".venv" / "bin" / "recserve", "serve", "--config", demo.config]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline(), "the server did not start"
            yield directory
        finally:
            server.terminate()
            server.wait(SECONDS)


@pytest.fixture(autouse=True)
def _back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_readme_runs(made: Path, commands: str) -> None:
    found = read("README.md")
    absent = {module for module in needed(found) if importlib.util.find_spec(module) is None}
    follow("README.md", [block for block in found if block.options.get("needs") not in absent], commands, made)


ELSEWHERE = [name for name in DOCUMENTS if name != "README.md"]


@pytest.mark.parametrize("document", [name for name in ELSEWHERE if any(block.acts for block in read(name))])
def test_blocks_run(document: str, commands: str, tmp_path: Path) -> None:
    follow(document, [block for block in read(document) if "needs" not in block.options], commands, tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in ELSEWHERE if needed(read(name))])
def test_blocks_run_with_what_some_need(document: str, commands: str, tmp_path: Path) -> None:
    found = read(document)
    for module in needed(found):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{document} needs {module} for some of its blocks")
    follow(document, found, commands, tmp_path / "work")


@pytest.mark.parametrize("document", COMPLETE)
def test_no_block_is_untried(document: str) -> None:
    assert [block.line for block in read(document) if block.language in CHECKED_LANGUAGES and not block.acts] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert ((ROOT / document).parent / target.partition("#")[0]).exists(), target


# ---------------------------------------------------------------------------------------------------- the tests' own


def test_blocks_are_found_with_their_options() -> None:
    text = "a\n```python run needs=torch\nx = 1\n\ny = 2\n```\n````text\n```\n````\n```\n```\n"
    assert list(blocks(text)) == [
        Block("python", {"run": "", "needs": "torch"}, "x = 1\n\ny = 2\n", 2),
        Block("text", {}, "```\n", 7),
        Block("", {}, "\n", 10),
    ]


@pytest.mark.parametrize(
    ("text", "message"), [("```sh\nls\n", "line 1: .*not end"), ("\n```sh runs\n```\n", "line 2: unknown")]
)
def test_a_malformed_block_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(blocks(text))


def test_a_failing_block_fails(tmp_path: Path, commands: str) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        follow("README.md", [Block("python", {"run": ""}, "1 / 0\n", 41)], commands, tmp_path / "python")
    assert caught.traceback[-1].lineno == 41  # counted from 0: the line behind the fence
    with pytest.raises(AssertionError, match=r"README\.md:3: exit status 1"):
        follow("README.md", [Block("sh", {"run": ""}, "false\ntrue\n", 3)], commands, tmp_path / "shell")


def test_a_documents_port_need_not_be_free(tmp_path: Path, commands: str) -> None:
    block = Block("sh", {"run": ""}, f"echo {PORT} >>ports\n", 1)
    follow("README.md", [block, block], commands, tmp_path / "work")
    first, second = Path("ports").read_text().split()
    assert first == second != PORT


def test_blocks_share_names_and_files(tmp_path: Path, commands: str) -> None:
    found = [
        Block("toml", {"file": "a.toml"}, "b = 2\n", 1),
        Block("python", {"run": ""}, "from pathlib import Path\na = Path('a.toml').read_text()\n", 5),
        Block("python", {"run": ""}, "Path('c').write_text(a.upper())\n", 9),
        Block("sh", {"run": ""}, "test \"$(cat c)\" = 'B = 2'\nrecserve --help >/dev/null\n", 12),
    ]
    follow("README.md", found, commands, tmp_path / "work")
