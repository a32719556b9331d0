"""What pyproject.toml cannot say: the folder mapping, the generated stubs and the Cython extensions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROTO = ROOT / "proto"
STUBS = ROOT / "build" / "stubs"

# The folders of the repository are installed as packages under `recserve`; plain `import kernels` would collide
# with a published package in many training environments.
FOLDERS = ("kernels", "server", "exporters", "loadtest")

# The kernels check their arguments once in Python; inside, indices are known to be in range.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
}

# For `make sanitize`: kernels that stop at the first wrong access or undefined operation, built beside the others.
SANITIZE = os.environ.get("RECSERVE_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def packages() -> dict[str, str]:
    """Every package with its folder, relative to the root: `{"recserve.kernels": "kernels", ...}`."""
    found = {}
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            relative = init.parent.relative_to(ROOT)
            found[".".join(("recserve", *relative.parts))] = str(relative)
    for proto in sorted(PROTO.rglob("*.proto")):
        relative = proto.parent.relative_to(PROTO)
        found[".".join(relative.parts)] = str((STUBS / relative).relative_to(ROOT))
    return found


def generate_stubs() -> None:
    """Compile proto/ to message classes, service stubs and their types under build/stubs."""
    from grpc_tools import protoc  # noqa: PLC0415  a build requirement, absent while metadata is read

    STUBS.mkdir(parents=True, exist_ok=True)
    scripts = Path(sys.executable).parent  # protoc looks for its mypy plugins on PATH
    os.environ["PATH"] = os.pathsep.join((str(scripts), os.environ.get("PATH", "")))
    outputs = [f"--{kind}_out={STUBS}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    bundled = Path(protoc.__file__).parent / "_proto"
    sources = [str(path) for path in sorted(PROTO.rglob("*.proto"))]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{bundled}", *outputs, *sources]) != 0:
        raise SystemExit("protoc could not compile proto/; its messages are above")
    for source in sources:
        package = STUBS / Path(source).relative_to(PROTO).parent
        (package / "__init__.py").touch()
        (package / "py.typed").touch()


class BuildWithStubs(build_py):
    """build_py that generates the stubs before it looks for modules."""

    def run(self) -> None:
        """Generate, then copy."""
        generate_stubs()
        super().run()


def extensions() -> list[Extension]:
    """One extension per .pyx under kernels/ and loadtest/, with the headers of its folder.

    No -march: what ships runs on every CPU of the architecture and picks variants at run time. Contraction of a*b+c
    is off because it would give other bits where the CPU has fused multiply-add.
    """
    found = []
    for pyx in sorted(path for folder in ("kernels", "loadtest") for path in (ROOT / folder).rglob("*.pyx")):
        relative = pyx.relative_to(ROOT)
        headers = Path(relative.parts[0]) / "include"
        found.append(
            Extension(
                ".".join(("recserve", *relative.with_suffix("").parts)),
                [str(relative)],
                include_dirs=[str(headers)],
                extra_compile_args=[
                    *("-O3", "-std=c11", "-ffp-contract=off", "-Wall", "-Wno-unused-function"),
                    *(("-O1", "-g1", *SANITIZERS) if SANITIZE else ()),
                ],
                extra_link_args=SANITIZERS if SANITIZE else [],
                depends=[str(path.relative_to(ROOT)) for path in (ROOT / headers).glob("*.h")],
                libraries=["m", "dl"],
            )
        )
    compiled: list[Extension] = cythonize(
        found, build_dir="build/cython", nthreads=os.cpu_count() or 1, compiler_directives=DIRECTIVES
    )
    return compiled


for folder in packages().values():
    (ROOT / folder).mkdir(parents=True, exist_ok=True)  # setuptools wants package folders to exist before build_py

setup(
    packages=list(packages()),
    package_dir=packages(),
    package_data={"": ["py.typed", "*.pyi", "templates/*.html", "scenarios/*.toml"]},
    ext_modules=extensions(),
    cmdclass={"build_py": BuildWithStubs},
    options={
        "build_ext": {"parallel": os.cpu_count()},
        "build": {"build_base": "build/sanitize" if SANITIZE else "build"},
    },
)
