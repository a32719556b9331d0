"""The direction of dependencies: a forbidden import fails here, with the file and the line."""

from __future__ import annotations

import ast
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
    """Every imported module of a Python source, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


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
        for line, module in imports(source)
        if (within(module, ("recserve",)) and allowed is not None and not within(module, allowed))
        or within(module, outside)
    ]


@pytest.mark.parametrize("folder", ["kernels", "server", "exporters", "loadtest"])
def test_no_forbidden_import(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
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
