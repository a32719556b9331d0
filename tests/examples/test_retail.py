"""The retail example from transactions to lists over gRPC: on a made-up shop, and on the real one where it is there."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch", reason="the example's towers are PyTorch's: pip install 'recserve[torch]'")

from examples.online_retail.__main__ import main
from examples.online_retail.als import AlsSettings
from examples.online_retail.clean import clean
from examples.online_retail.moment import Settings
from examples.online_retail.run import Plan, evaluation_spec, run
from examples.online_retail.split import split
from examples.online_retail.twotower import TowerSettings
from recserve.exporters.errors import TableError
from recserve.exporters.evaluation.requests import make_requests
from recserve.exporters.evaluation.truth import read_truth
from recserve.exporters.golden import snapshot_users
from recserve.exporters.spec import EvaluationMode
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.pipeline.pipeline import open_pipeline
from recserve.server.pipeline.types import Result
from recserve.v1 import recommender_pb2 as pb
from recserve.v1 import recommender_pb2_grpc

Serve = Callable[[Path], AbstractContextManager[str]]

SMALL = Plan(
    training_windows=1,
    trees=20,
    models=Settings(als=AlsSettings(factors=8), towers=TowerSettings(dim=16, hidden=16, epochs=1, moments=4)),
)
TENTH = Plan(training_windows=1, trees=100, models=Settings(towers=TowerSettings(epochs=3, moments=13)))


@pytest.fixture(scope="module")
def small(shop: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("retail") / "small"
    run(shop, out, plan=SMALL)
    return out


def figures(out: Path) -> dict[str, object]:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def check_served_lists(source: pa.Table | Path, out: Path, serve: Serve, mode: EvaluationMode, most: int) -> None:
    """The first lists that the evaluation judged are the server's; time and placement come from recserve.toml."""
    events, _ = clean(source)
    spec = evaluation_spec(events, split(events, 1).test)
    pipeline, snapshot = open_pipeline(open_bundle(out / "bundle")), open_snapshot(out / "snapshot")
    truth = read_truth(spec, pipeline.bundle.catalogue)
    ids = [user for user in truth.user_ids if snapshot.row_of(user) >= 0][:most]
    requests = make_requests(pipeline, spec.placement, mode, spec.time_us)
    work = [(requests.served(user), state) for user, state in snapshot_users(snapshot, ids, 0)]
    placement = {"all": "default", "first": "discover"}[mode]
    with serve(out / "recserve.toml") as address, grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for user, offline in zip(ids, pipeline.run(work), strict=True):
            assert isinstance(offline, Result)
            request = pb.RecommendRequest(user_id=user, context=pb.Context(placement=placement))
            online = stub.Recommend(request, timeout=30)
            assert [item.item_id for item in online.items] == pipeline.bundle.catalogue.ids_of_rows(offline.rows)
            assert [item.score for item in online.items] == offline.scores.tolist()


@pytest.mark.timeout(600)
def test_a_made_up_shop(small: Path) -> None:
    assert {path.name for path in small.iterdir()} == {
        "bundle", "snapshot", "recserve.toml", "metrics.json", "quality.json",
    }  # fmt: skip
    found = figures(small)
    assert found["users"] > 50
    assert set(found["modes"]) == {"all", "first"}
    assert {"full", "als", "popular", "own"} <= set(found["modes"]["all"])
    assert set(found["sources"]) >= {"ann", "als", "content", "popular", "again", "union"}
    # Tastes are plain and tails are long: whatever looks at the user beats what does not.
    assert found["modes"]["all"]["full"]["ndcg@10"] > 1.5 * found["modes"]["all"]["popular"]["ndcg@10"]


@pytest.mark.parametrize("mode", ["all", "first"])
def test_lists_of_the_made_up_shop_are_served(shop: pa.Table, small: Path, serve: Serve, mode: EvaluationMode) -> None:
    check_served_lists(shop, small, serve, mode, 50)


def test_too_few_customers(shop: pa.Table, tmp_path: Path) -> None:
    one = shop.filter(pc.equal(shop.column("customer_id"), 12001))
    with pytest.raises(TableError, match="the transactions have 1 customers: expected at least 20"):
        run(one, tmp_path / "one", plan=SMALL)
    assert not list(tmp_path.iterdir())


def test_too_short_a_time(shop: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"span 36\d days: expected at least"):
        run(shop, tmp_path / "short", plan=dataclasses.replace(SMALL, training_windows=12))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "out")]) == 1
    assert "transactions: no such file" in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        (None, 0, ""),
        (TableError("the transactions have 1 customers"), 1, "have 1 customers"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_earlier_result_stays_until_there_is_a_new_one(
    ending: BaseException | None,
    status: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "retail"

    def made(_data: Path, target: Path, *, console: object) -> None:  # noqa: ARG001
        assert (out / "bundle/manifest.json").read_text() == "earlier"
        if ending is not None:
            raise ending
        (target / "bundle").mkdir(parents=True)
        (target / "bundle/manifest.json").write_text("new")

    (out / "bundle").mkdir(parents=True)
    (out / "bundle/manifest.json").write_text("earlier")
    monkeypatch.setattr("examples.online_retail.run.run", made)
    assert main(["--data", "data.parquet", "--out", str(out), "--replace"]) == status
    assert said in capsys.readouterr().err
    assert (out / "bundle/manifest.json").read_text() == ("earlier" if ending else "new")
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_earlier_result_is_not_replaced(
    shop: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    pq.write_table(shop, tmp_path / "data.parquet")
    assert main(["--data", str(tmp_path / "data.parquet"), "--out", str(tmp_path), "--replace"]) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def tenth(real_file: Path) -> pa.Table:
    """The transactions of every tenth customer."""
    table = pq.read_table(real_file)
    customer = pc.fill_null(table.column("customer_id"), 0)
    return table.filter(pc.equal(pc.subtract(customer, pc.multiply(pc.divide(customer, 10), 10)), 3))


@pytest.mark.timeout(600)
def test_a_tenth_of_the_real_shop(tenth: pa.Table, tmp_path: Path, serve: Serve) -> None:
    run(tenth, tmp_path / "retail", plan=TENTH)
    found = figures(tmp_path / "retail")
    assert found["users"] > 100
    for mode in ("all", "first"):
        assert 0 < found["modes"][mode]["full"]["ndcg@10"] < 1
    check_served_lists(tenth, tmp_path / "retail", serve, "all", 100)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_real_shop(real_file: Path, tmp_path: Path, serve: Serve) -> None:
    """The whole file, and what its figures must reach; docs/bench/retail.json has a run's."""
    run(real_file, tmp_path / "retail")
    found = figures(tmp_path / "retail")
    everything, first = (
        {name: each["ndcg@10"] for name, each in found["modes"][mode].items()} for mode in ("all", "first")
    )
    assert found["mode_users"] == {"all": 1413, "first": 1277}
    assert everything["full"] >= 1.7 * everything["als"]
    assert everything["full"] >= 2.3 * everything["popular"]
    assert everything["full"] >= 1.05 * everything["own"]
    assert found["differences"]["all"]["own"]["ci95"][0] > 0
    assert first["full"] >= 1.6 * first["als"]
    assert first["full"] >= 1.4 * first["popular"]
    recall = {name: each["recall@500"] for name, each in found["sources"].items()}
    assert recall["ann"] >= recall["popular"]
    singles = [value for name, value in recall.items() if name not in ("union", "any")]
    assert recall["union"] >= 1.1 * max(singles)
    for mode in ("all", "first"):
        check_served_lists(real_file, tmp_path / "retail", serve, mode, 200)
