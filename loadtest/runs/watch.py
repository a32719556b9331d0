"""CPU time and memory of a server on this machine, from /proc: the process and those that it started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from recserve.loadtest.runs.errors import TargetError

MIB: Final = 2**20
PSS_SECONDS: Final = 5.0
"""Between readings of the proportional set size, for which the kernel walks the page tables while the server runs."""
ENDED: Final = (FileNotFoundError, ProcessLookupError)
"""What reading /proc raises of a process or a thread that has ended: before the file is opened, or after."""


@dataclass(slots=True)
class Usage:
    """What was read, and when, by time.monotonic.

    Attributes:
        at_s: when the next two were read.
        cpu_s: user and system time so far, with that of children that have ended.
        rss_mib: resident memory; mapped files count in full in each process.
        pss_at_s, pss_mib: proportional set size, where what is shared is divided; read less often, at these times.
    """

    at_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    pss_at_s: list[float] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)

    def cpu_between(self, start_s: float, end_s: float) -> float | None:
        """CPU seconds between two moments, by interpolation; None where nothing was read before one or after one."""
        if not self.at_s or start_s < self.at_s[0] or end_s > self.at_s[-1]:
            return None
        start, end = np.interp((start_s, end_s), self.at_s, self.cpu_s)
        return float(end - start)

    def row(self, start_s: float) -> dict[str, list[float]]:
        """As written to JSON, with times after the start of the run."""
        return {
            "at_s": [round(each - start_s, 3) for each in self.at_s],
            "cpu_s": [round(each, 3) for each in self.cpu_s],
            "rss_mib": [round(each, 1) for each in self.rss_mib],
            "pss_at_s": [round(each - start_s, 3) for each in self.pss_at_s],
            "pss_mib": [round(each, 1) for each in self.pss_mib],
        }


class Watch:
    """Reads what a process uses whenever it is asked to.

    Args:
        pid: of the server; 0: there is nothing to read, and `usage` stays empty.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.usage = Usage()

    def read(self, *, last: bool = False) -> None:
        """Read once; `last` also reads what is read less often. When the server has ended, reading ends, too."""
        if not self._pid:
            return
        usage = self.usage
        try:
            pids = _family(self._pid)
            now = time.monotonic()
            cpu, rss = _sum(_cpu_with_children, pids), _sum(_rss_bytes, pids)
            usage.at_s.append(now)
            # A child that ends in between is in neither sum. CPU time never falls: the next reading has it again.
            usage.cpu_s.append(max([cpu, *usage.cpu_s[-1:]]))
            usage.rss_mib.append(rss / MIB)
            if last or not usage.pss_at_s or now - usage.pss_at_s[-1] >= PSS_SECONDS:
                pss = _sum(pss_bytes, pids)
                usage.pss_at_s.append(now)
                usage.pss_mib.append(pss / MIB)
        except ENDED:
            self._pid = 0


def check_watchable(pid: int) -> None:
    """Read a process once, so that what is wrong with it is said before the load.

    Raises:
        TargetError: it does not exist, or this user may not read what it uses.
    """
    try:
        for read in (cpu_seconds, _rss_bytes, pss_bytes):
            read(pid)
    except ENDED:
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
    return sum(_ticks(pid)[:2]) / os.sysconf("SC_CLK_TCK")


def _cpu_with_children(pid: int) -> float:
    """The same, with the children that it has waited for: over a family, the sum stays when one of them ends."""
    return sum(_ticks(pid)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> list[int]:
    """utime, stime, cutime and cstime of proc_pid_stat(5)."""
    return list(map(int, _stat(pid)[11:15]))


def _stat(pid: int) -> list[str]:
    """The fields behind the name of the process, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rsplit(")", 1)[1].split()


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _family(pid: int) -> list[int]:
    """A process and its descendants, parents first.

    Raises:
        FileNotFoundError, ProcessLookupError: the process itself has ended, though nobody may have waited for it yet.
    """
    if _stat(pid)[0] == "Z":
        raise ProcessLookupError
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def _children(pid: int) -> Iterator[int]:
    """Of all threads. Those that end while they are gone through, as a pool's do, leave their children to others."""
    with contextlib.suppress(*ENDED):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(*ENDED):
                yield from map(int, (thread / "children").read_text("ascii").split())


def _sum(read: Callable[[int], float], family: Sequence[int]) -> float:
    """Over a process and its descendants; those that have ended since they were listed have nothing any more.

    Raises:
        FileNotFoundError, ProcessLookupError: the process itself has ended.
    """
    total = read(family[0])
    for each in family[1:]:
        with contextlib.suppress(*ENDED):
            total += read(each)
    return total
