"""The demo as a whole: built, opened, configured; refused where something stands; gone where it was broken off."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.exporters.demo import build as build_module
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.errors import ExportError
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.pipeline.pipeline import open_pipeline


def test_it_can_be_opened_and_answers_its_golden_requests(demo: Any, tiny: DemoSizes) -> None:
    bundle = open_bundle(demo.paths.bundle)
    assert bundle.catalogue.size == tiny.items
    assert set(bundle.spaces) == {"ann", "als", "content"}
    pipeline = open_pipeline(bundle, device="cpu", allow_native_code=True)
    assert pipeline.objectives == ("click", "purchase")
    assert {"ann", "als", "popular", "again"} <= set(pipeline.sources)
    metrics = dict(bundle.manifest.offline_metrics)
    assert metrics["click_ndcg@10"] > metrics["click_ndcg@10_by_popularity"]


def test_the_snapshot_holds_the_state_at_the_end(demo: Any, market: Marketplace) -> None:
    snapshot = open_snapshot(demo.paths.snapshot)
    assert snapshot.size == len(market.world.users.ids)
    history = snapshot.history
    assert history.last_us.max() == market.events.time_us.max()
    assert history.counts.sum() == market.events.user.size


def test_every_source_and_attribute_of_the_configuration_exists(demo: Any) -> None:
    config = tomllib.loads(demo.paths.config.read_text(encoding="utf-8"))
    bundle = open_bundle(demo.paths.bundle)
    sources = set(open_pipeline(bundle).sources)
    directory = demo.paths.config.parent
    assert (directory / config["bundles"][0]["path"]).resolve() == demo.paths.bundle.resolve()
    assert (directory / config["state"]["snapshot"]).resolve() == demo.paths.snapshot.resolve()
    assert "compute" not in config
    assert set(config["placements"]) == {"default", "home", "cart"}
    used = {source["name"] for placement in config["placements"].values() for source in placement["sources"]}
    assert used == sources
    for placement in config["placements"].values():
        assert {source["name"] for source in placement["sources"]} <= sources
        assert {cap["attribute"] for cap in placement["caps"]} <= set(bundle.catalogue.columns)
        assert all(cap["max"] <= 4 for cap in placement["caps"])
        assert placement["diversity_space"] in bundle.spaces
    assert config["similar"]["behaviour_space"] in bundle.spaces
    assert config["similar"]["content_space"] in bundle.spaces


def test_progress_is_told_stage_by_stage(demo: Any) -> None:
    for stage in ("simulate", "ALS", "towers", "rankers", "snapshot"):
        assert stage in demo.printed
    assert demo.printed.count(" s ") >= 7


def test_what_exists_is_refused_before_any_work(
    demo: Any, tiny: DemoSizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "simulate", lambda *_: pytest.fail("work began"))
    (tmp_path / "bundle").mkdir()
    for out in (demo.paths.config.parent, tmp_path):
        with pytest.raises(ExportError, match="exists"):
            build_module.build_demo(out, sizes=tiny)
    assert (tmp_path / "bundle").is_dir()


def test_a_build_that_is_broken_off_leaves_nothing(
    tiny: DemoSizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "export_bundle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_module.build_demo(tmp_path / "demo", sizes=tiny)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_same_seed_builds_the_same_bundle(demo: Any, build: Callable[[Path], Any], tmp_path: Path) -> None:
    again = build(tmp_path / "again").paths
    first, second = open_bundle(demo.paths.bundle), open_bundle(again.bundle)
    for name, space in first.spaces.items():
        np.testing.assert_array_equal(second.spaces[name].vectors, space.vectors, err_msg=name)
    unlike = {
        path
        for path, file in first.manifest.files.items()
        if second.manifest.files[path].sha256 != file.sha256 and not path.endswith((".so", ".html"))
    }
    assert unlike == set()


def test_the_server_accepts_the_configuration(demo: Any) -> None:
    command = [sys.executable, "-m", "recserve.server.cli", "check", "--config", str(demo.paths.config)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
