"""A small shop in the schema of the retail example, runs of the example, and servers of what they leave."""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

REAL_FILE = "RECSERVE_RETAIL"
_SECONDS = 60
_KINDS = ("RED MUG", "BLUE MUG", "GLASS JAR", "PAPER LANTERN", "TEA TOWEL", "PHOTO FRAME", "GIFT BAG", "WALL CLOCK")


@pytest.fixture(scope="session")
def shop() -> pa.Table:
    """A year of orders: 150 customers with a taste for some kinds of goods, who buy some of them again."""
    rng = np.random.default_rng(3)
    kinds = np.arange(160) % len(_KINDS)
    lines: dict[str, list[object]] = {name: [] for name in ("invoice", "item", "day", "customer")}
    for customer in range(150):
        taste = rng.choice(len(_KINDS), 2, replace=False)
        own: list[int] = []
        for day in np.sort(rng.choice(364, rng.integers(6, 20), replace=False)).tolist():
            fresh = rng.choice(np.flatnonzero(np.isin(kinds, taste)), 4, replace=False).tolist()
            basket = {*fresh, *(rng.choice(own, min(3, len(own)), replace=False).tolist() if own else [])}
            own.extend(fresh)
            for item in sorted(basket):
                for name, value in zip(
                    lines, (f"{500000 + customer * 400 + day}", item, day, 12000 + customer), strict=True
                ):
                    lines[name].append(value)
    items = np.array(lines["item"])
    start = datetime.datetime(2021, 1, 4, 9)
    return pa.table(
        {
            "invoice": lines["invoice"],
            "stock_code": [f"{20000 + item}" for item in items],
            "description": [
                f"{_KINDS[kinds[item]]} NO {'ABCDEFGHIJKLMNOPQRST'[item // len(_KINDS)] * 2}" for item in items
            ],
            "quantity": pa.array(1 + items % 5, pa.int32()),
            "invoice_date": pa.array(
                [start + datetime.timedelta(days=int(str(day))) for day in lines["day"]], pa.timestamp("s")
            ),
            "unit_price": 0.5 + (items % 40) / 4,
            "customer_id": pa.array(lines["customer"], pa.int32()),
            "country": ["France" if int(str(each)) % 5 == 0 else "United Kingdom" for each in lines["customer"]],
        }
    )


@pytest.fixture(scope="session")
def real_file() -> Path:
    """The real transactions; without them the test is skipped."""
    if REAL_FILE not in os.environ:
        pytest.skip(f"{REAL_FILE} does not name the file of transactions")
    return Path(os.environ[REAL_FILE])


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], object]:
    """Serves a configuration on a free port of 127.0.0.1 while its context lasts; gives the address."""

    @contextmanager
    def serving(config: Path) -> Iterator[str]:
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-m", "recserve.server.cli", "serve", "--port", "0", "--config", str(config)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECSERVE_")}
        with log.open("w") as file:
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)
        try:
            yield _address(server, log)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(_SECONDS)

    return serving


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and server.poll() is None:
        text = log.read_text(encoding="utf-8")
        found = re.search(r"listening on (\S+)", text)
        if found and "serving on" in text:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server does not serve:\n{log.read_text(encoding='utf-8')}")
