from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.loadtest.cli import main
from recserve.loadtest.figures import renew
from recserve.loadtest.retrieval.measure import Filter
from recserve.loadtest.retrieval.plot import plot_retrieval
from recserve.loadtest.retrieval.tables import all_grids

ROOT = Path(__file__).parents[2]


def row(name: str, batch: int, which: Filter, recall: float, **settings: object) -> dict[str, Any]:
    size = {"items": 1000, "dim": 8, "k": 50, "batch": batch, "filter": which.share, "spread": which.spread}
    times = {"p50_ms": 0.5 * batch, "p99_ms": 1.0 * batch, "runs": 9, "cpu_p50_ms": 0.4 * batch}
    return {"name": name, "params": {**size, **settings}, "recall": recall, **times}


RESULTS = [
    row(name, batch, which, recall, **settings)
    for which in (Filter(1.0), Filter(0.1), Filter(0.1, "region"))
    for batch in (1, 8)
    for name, recall, settings in (("recserve", 0.96, {"factory": "PQ8", "nprobe": 4}), ("FAISS", 0.9, {"nprobe": 7}))
]


def test_a_table_for_each_filter() -> None:
    everything, filtered, region = all_grids({"results": RESULTS})
    assert everything.title == "1,000 x 8, k = 50, one thread, no filter"
    assert filtered.title.endswith("one thread, 10% of the items")
    assert region.title.endswith("one thread, 10% of the items in one region")
    assert everything.headings[:5] == ["engine", "recall@50", "1 query: p50 ms", "CPU", "p99 ms"]
    assert everything.rows[0] == ["recserve, PQ8, nprobe 4", "0.960", "0.5", "0.4", "1", "4", "3.2", "8"]
    assert [each[0] for each in everything.rows] == ["recserve, PQ8, nprobe 4", "FAISS, nprobe 7"]


def test_the_picture_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        plot_retrieval({"results": RESULTS}, tmp_path / name)
    picture = (tmp_path / "one.svg").read_text()
    assert picture == (tmp_path / "two.svg").read_text()
    assert all(word in picture for word in ("recserve", "FAISS", "10% of the items in one region", "recall@50"))


@pytest.mark.slow
def test_every_engine_is_built_tuned_and_timed(tmp_path: Path) -> None:
    out = tmp_path / "retrieval.json"
    size = ["--items", "2500", "--k", "20", "--runs", "3", "--batches", "1", "8"]
    assert main(["kernels", "retrieval", *size, "--engines", "ivf-flat", "ivf-pq", "hnsw", "--out", str(out)]) == 0
    content = json.loads(out.read_text("utf-8"))
    assert content["workload"] == "retrieval"
    rows = content["results"]
    assert {(each["params"]["batch"], each["params"]["filter"], each["params"]["spread"]) for each in rows} == {
        (batch, *which) for batch in (1, 8) for which in ((1.0, "even"), (0.1, "even"), (0.1, "region"))
    }
    assert len(rows) == 6 * len({each["name"] for each in rows}) == 6 * 5
    assert all(each["recall"] > 0.9 for each in rows if each["name"].startswith("recserve"))
    assert out.with_suffix(".svg").exists()


def test_a_filter_in_a_region_goes_with_the_vectors() -> None:
    vectors = np.random.default_rng(2).standard_normal((5000, 8)).astype(np.float32)
    means = {}
    for which in (Filter(0.1), Filter(0.1, "region")):
        mask = which.mask(vectors, seed=3)
        assert mask is not None
        passing = vectors[np.unpackbits(mask.view(np.uint8), count=5000, bitorder="little").astype(bool)]
        assert len(passing) == pytest.approx(500, abs=90 if which.spread == "even" else 1)  # four deviations
        means[which.spread] = float(np.linalg.norm(passing.mean(axis=0)))
    # A tenth of a normal distribution, cut off at its quantile, has its mean at 1.755 deviations.
    assert means["region"] == pytest.approx(1.755, abs=0.3)
    assert means["even"] < 0.3
    assert Filter(1.0).mask(vectors, seed=3) is None


@pytest.mark.parametrize("given", ["0", "-0.1", "1.5", "nan", "half"])
def test_shares_that_no_filter_has_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["kernels", "retrieval", "--filters", given])
    assert "expected a" in capsys.readouterr().err


def test_the_documents_figures_are_those_of_the_stored_results() -> None:
    stored = ROOT / "docs" / "bench" / "retrieval.json"
    document = (ROOT / "docs" / "retrieval.md").read_text("utf-8")
    assert renew(document, [json.loads(stored.read_text("utf-8"))]) == document
