"""The direction of dependencies: a forbidden import fails here, with the file and the line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROTO = ("recserve.v1", "recserve.bundle.v1")
# Longest matching prefix wins. None: anything of ours.
ALLOWED: dict[str, tuple[str, ...] | None] = {
    "kernels": ("recserve.kernels",),
    "server/bundle": ("recserve.server.bundle", "recserve.kernels", *PROTO),
    "server/pipeline": ("recserve.server.pipeline", "recserve.server.bundle", "recserve.kernels", *PROTO),
    "server": ("recserve.server", "recserve.kernels", *PROTO),
    "exporters": (
        "recserve.exporters",
        "recserve.server.bundle",
        "recserve.server.pipeline",
        "recserve.kernels",
        *PROTO,
    ),
    "loadtest": None,
}
FORBIDDEN_OUTSIDE = {
    "server/bundle": ("grpc", "asyncio", "grpc_status", "grpc_health"),
    "server/pipeline": ("grpc", "asyncio", "grpc_status", "grpc_health"),
    # The server's run-time needs neither these nor a compiler.
    "server": ("lightgbm", "treelite", "tl2cgen", "torch", "sklearn", "pyarrow"),
}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Every imported module of a Python source, with its line; a relative import counts as one of ours by its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "recserve." + "." * node.level if node.level else node.module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def cython_imports(source: str) -> Iterator[tuple[int, str]]:
    """The same for a Cython source, whose imports and cimports stand on lines of their own."""
    for number, line in enumerate(source.splitlines(), 1):
        if found := re.match(r"\s*(?:from\s+(\S+)\s+)?c?import\s+(\w+)", line):
            yield number, ".".join(part for part in found.groups() if part)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def violations(relative: str, source: str) -> list[str]:
    """Forbidden imports of one file, as `file:line module`."""
    layers = [layer for layer in ALLOWED if relative.startswith(f"{layer}/")]
    allowed = ALLOWED[max(layers, key=len)]
    outside = tuple(
        name for layer, names in FORBIDDEN_OUTSIDE.items() if relative.startswith(f"{layer}/") for name in names
    )
    return [
        f"{relative}:{line} {module}"
        for line, module in (imports if relative.endswith(".py") else cython_imports)(source)
        if (within(module, ("recserve",)) and allowed is not None and not within(module, allowed))
        or within(module, outside)
    ]


@pytest.mark.parametrize("folder", ["kernels", "server", "exporters", "loadtest"])
def test_no_forbidden_import(folder: str) -> None:
    files = sorted(file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".pyx", ".pxi"))
    assert files
    found = [v for file in files for v in violations(str(file.relative_to(ROOT)), file.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("kernels/x.py", "from recserve.server.bundle import reader"),
        ("server/bundle/x.py", "import recserve.server.pipeline.types"),
        ("server/bundle/x.py", "import asyncio"),
        ("server/pipeline/x.py", "from grpc import aio"),
        ("server/rpc/x.py", "from recserve import exporters"),
        ("server/rpc/x.py", "def f():\n    import lightgbm"),
        ("exporters/x.py", "from recserve.server.rpc.status import TABLE"),
        ("exporters/x.py", "import recserve.loadtest"),
        ("kernels/x.py", "from ..server.bundle import reader"),
        ("kernels/x.pyx", "from recserve.server.bundle cimport reader"),
        ("kernels/x.pxi", "    cimport recserve.exporters.demo"),
    ],
)
def test_forbidden_imports_are_found(relative: str, source: str) -> None:
    assert len(violations(relative, source)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("server/pipeline/x.py", "from recserve.server.bundle.reader import Bundle"),
        ("server/rpc/x.py", "import grpc.aio\nfrom recserve.v1 import recommender_pb2"),
        ("exporters/x.py", "from recserve.server.pipeline.pipeline import Pipeline\nimport lightgbm"),
        ("loadtest/x.py", "from recserve.exporters.export import export_bundle"),
    ],
)
def test_allowed_imports_pass(relative: str, source: str) -> None:
    assert violations(relative, source) == []
