from __future__ import annotations

from pathlib import Path

import pytest

from recserve.loadtest.workload.scenario import (
    DEFAULT,
    Request,
    ScenarioError,
    load_scenario,
    parse_scenario,
    shipped_scenarios,
)


def test_the_shipped_scenarios_can_be_read() -> None:
    assert DEFAULT in shipped_scenarios()
    for name, description in shipped_scenarios().items():
        assert description.endswith(".")
        assert load_scenario(name).requests


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["requests: is required"]),
        ("requests = []", ["requests: found []"]),
        ("x = [", ["is not TOML"]),
        ("[[requests]]\ncuont = 3", ["requests.0.cuont: no such key; did you mean count?"]),
        ("[[requests]]\n[user]\nzipf = 1", ["user: no such key; did you mean users?"]),
        ("[[requests]]\n[users]\nxyz = 1", ["users.xyz: no such key; there are zipf, unknown_share, limit"]),
        (
            "[[requests]]\nfilter = { in_stok = true }",
            ["requests.0.filter.in_stok: no such key; did you mean in_stock?"],
        ),
        ('[[requests]]\ncount = "20"', ['requests.0.count: found "20": input should be a valid integer']),
        ("[[requests]]\ncount = 501", ["requests.0.count: is at most 500 but for RankItems"]),
        ("[[requests]]\nitems = 3", ["requests.0.items: is for SimilarItems and RankItems"]),
        ('[[requests]]\nmethod = "SimilarItems"\nitems = 21', ["at most 20 for SimilarItems"]),
        ('[[requests]]\nmethod = "Explain"', ["requests.0.method: found \"Explain\": input should be 'Recommend'"]),
        ("[[requests]]\nshare = 0", ["requests.0.share: found 0"]),
        ("[[requests]]\ndeadline_ms = 1e9", ["requests.0.deadline_ms"]),
        ("[[requests]]\n[users]\nzipf = nan", ["users.zipf"]),
        ('[[requests]]\n[arrivals]\ntimes = "x"', ['arrivals.times: is for pattern = "replay" only']),
        ('[[requests]]\n[arrivals]\npattern = "replay"', ['arrivals: pattern = "replay" needs times = "FILE"']),
        ("[[requests]]\ncount = 0\nshare = -1", ["2 errors", "requests.0.count", "requests.0.share"]),
    ],
)
def test_every_error_is_named(text: str, problems: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "shop.toml")
    assert "shop.toml" in str(caught.value)
    for problem in problems:
        assert problem in str(caught.value)


def test_an_unknown_scenario_names_those_that_there_are() -> None:
    with pytest.raises(ScenarioError, match=r"nowhere is neither a scenario \(mixed, .*recommend.*\) nor a file"):
        load_scenario("nowhere")


def test_a_recording_is_found_beside_the_scenario(tmp_path: Path) -> None:
    path = tmp_path / "replayed.toml"
    path.write_text('[arrivals]\npattern = "replay"\ntimes = "monday.txt"\n[[requests]]\n')
    assert load_scenario(str(path)).arrivals.times == tmp_path / "monday.txt"


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"count": 7}, 7),
        ({"count": 7, "filter": {"in_stock": True}}, 1),
        ({"count": 7, "min_items": 3}, 3),
        ({"method": "RankItems", "count": 7}, 1),
        ({"method": "SimilarItems", "count": 7}, 7),
    ],
)
def test_how_many_items_a_good_answer_has(fields: dict[str, object], least: int) -> None:
    assert Request.model_validate(fields).least_items == least
