"""CPU time and memory of a server on this machine, from /proc: the process and those that it started."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from recserve.loadtest.runs.errors import TargetError

MIB: Final = 2**20
PSS_SECONDS: Final = 5.0
"""Between readings of the proportional set size, for which the kernel walks the page tables while the server runs."""


@dataclass(slots=True)
class Usage:
    """What was read, and when.

    Attributes:
        at_s: seconds after the start of the run.
        cpu_s: user and system time so far.
        rss_mib: resident memory; mapped files count in full in each process.
        pss_at_s, pss_mib: proportional set size, where what is shared is divided; read less often.
    """

    at_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    pss_at_s: list[float] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)

    def cpu_between(self, start_s: float, end_s: float) -> float | None:
        """CPU seconds between two moments, by interpolation; None where too little was read."""
        if len(self.at_s) < 2:
            return None
        start, end = np.interp((start_s, end_s), self.at_s, self.cpu_s)
        return float(end - start)


class Watch:
    """Reads what a process uses whenever it is asked to.

    Args:
        pid: of the server; 0: there is nothing to read, and `usage` stays empty.
        start_s: the start of the run, by time.monotonic.
    """

    def __init__(self, pid: int, start_s: float) -> None:
        self._pid = pid
        self._start_s = start_s
        self.usage = Usage()

    def read(self, *, last: bool = False) -> None:
        """Read once; `last` also reads what is read less often. A process that has ended is passed over."""
        if not self._pid:
            return
        try:
            pids = _family(self._pid)
            now = time.monotonic() - self._start_s
            cpu, rss = sum(map(cpu_seconds, pids)), sum(map(_rss_bytes, pids))
            self.usage.at_s.append(round(now, 3))
            self.usage.cpu_s.append(round(cpu, 3))
            self.usage.rss_mib.append(round(rss / MIB, 1))
            if last or not self.usage.pss_at_s or now - self.usage.pss_at_s[-1] >= PSS_SECONDS:
                pss = sum(map(pss_bytes, pids))
                self.usage.pss_at_s.append(round(now, 3))
                self.usage.pss_mib.append(round(pss / MIB, 1))
        except (FileNotFoundError, ProcessLookupError):
            self._pid = 0


def check_watchable(pid: int) -> None:
    """Read a process once, so that what is wrong with it is said before the load.

    Raises:
        TargetError: it does not exist, or this user may not read what it uses.
    """
    try:
        for read in (cpu_seconds, _rss_bytes, pss_bytes):
            read(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(
            f"there is no process {pid} on this machine: expected that of the server, for its CPU time and memory; "
            "leave out --pid where the server runs on another one"
        ) from None
    except PermissionError as error:
        raise TargetError(
            f"this user may not read {error.filename}, for the CPU time and memory of process {pid}: run as the "
            "server's user, or leave out --pid"
        ) from None


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text("ascii").split())
    return found
