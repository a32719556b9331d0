"""Runs the kernels' tests with kernels built under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py [pytest arguments]

By default all of tests/kernels, in every variant that the CPU has. Needs GCC. The build goes to
build/sanitize; the first finding stops the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "build" / "sanitize" / "installed"
COMPILER = os.environ.get("CC", "gcc")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # the interpreter keeps memory until it ends
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # so that objects have borders that can be watched
}
VARIANTS = "from recserve.kernels import forest; print(forest.__file__, *forest.CPU_VARIANTS)"


def runtimes() -> list[str]:
    """The libraries that have to be loaded before Python; SystemExit where the compiler has none."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):  # the last, for exceptions of extensions in C++
        printed = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(printed.stdout.strip())
        if not path.is_absolute():
            raise SystemExit(f"{COMPILER} has no {name}: install GCC with its sanitizers, or set CC to it")
        found.append(str(path.resolve()))
    return found


def build() -> None:
    """Install the package with sanitized kernels into TARGET."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", f"--target={TARGET}", "."]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"RECSERVE_SANITIZE": "1"}, check=True)


def main(arguments: list[str]) -> None:
    """Build, then test each variant."""
    environment = os.environ | OPTIONS | {"LD_PRELOAD": ":".join(runtimes()), "PYTHONPATH": str(TARGET)}
    build()
    asked = subprocess.run(
        [sys.executable, "-c", VARIANTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    loaded, *variants = asked.stdout.split()
    if not Path(loaded).is_relative_to(TARGET):
        raise SystemExit(f"{loaded} was imported instead of the sanitized kernels in {TARGET}")
    for variant in variants:
        print(f"== {variant}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or ["tests/kernels"])]
        if subprocess.run(command, cwd=ROOT, env=environment | {"RECSERVE_CPU": variant}, check=False).returncode:
            raise SystemExit(f"the tests fail under the sanitizers with RECSERVE_CPU={variant}; findings are above")


if __name__ == "__main__":
    main(sys.argv[1:])
