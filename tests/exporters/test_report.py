"""The page and the table that tell people about an export."""

from __future__ import annotations

import html.parser
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from recserve.bundle.v1.manifest_pb2 import Calibration, CalibrationKind
from recserve.exporters.evaluate import evaluate_bundle
from recserve.exporters.evaluation.figures import reliability_figure
from recserve.exporters.evaluation.metrics import Reliability
from recserve.exporters.evaluation.page import evaluation_tables, render_evaluation
from recserve.exporters.evaluation.results import Evaluation
from recserve.exporters.export import export_bundle
from recserve.exporters.figures import calibration_figure, map_figure
from recserve.exporters.spec import EvaluationSpec
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.tables import terminal_table
from recserve.server.pipeline.golden_set import GoldenSet

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """A page's elements, its text, and whatever would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if value and name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def text(complete_bundle: Path) -> str:
    return (complete_bundle / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_stands_by_itself(text: str, page: Page) -> None:
    assert "http" not in text
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert all(target.startswith(('"#', "#")) for target in re.findall(r"url\(([^)]*)\)", text))
    assert page.open == []
    assert page.tags.count("svg") == 5


def test_the_page_shows_answers_of_golden_requests(page: Page, complete_bundle: Path) -> None:
    bundle = open_bundle(complete_bundle)
    golden = GoldenSet.load(bundle)
    rows = golden.array("list.rows", np.int64, -1)
    first = bundle.catalogue.ids_of_rows(rows[: golden.array("list.offsets", np.int64, -1)[1]])
    start = page.words.index("user-000")
    shown = [word for word in page.words[start:] if re.fullmatch(r"item-\d{3}", word)]
    assert shown[: len(first)] == first
    assert "a stranger" in page.words
    assert any(word.startswith("looks at item-") for word in page.words)


def test_the_page_says_what_the_bundle_holds(page: Page, complete: Any) -> None:
    words = set(page.words)
    assert {"400", "19", "24", "12"} <= words
    assert {"✓ equal bit for bit", "✓ 12 golden requests answered"} <= words
    assert {"click_ndcg@10", "0.4321"} <= words
    assert {"ann", "als", "content", "item tower", "user tower", "100 stored", "none: similarity only"} <= words
    assert {"click", "purchase", "sigmoid", "isotonic"} <= words
    assert {"dot(space.als)", "equal(item.audience, user.gender)", "max_similarity(space.content, last 5)"} <= words
    assert {"2023-09-16 to 2025-05-31", "f 43%, m 28%, x 28%"} <= words
    assert {"items.parquet", complete.report.manifest.made_from[0].sha256} <= words
    assert {"golden/stages.npz", "spaces/ann/user.onnx"} <= words


def test_names_from_tables_are_text_not_markup(shop: Any, tmp_path: Path, quiet: Console) -> None:
    spec = replace(shop.spec, name="<b>shop</b>", version="[red]&1", rankers=())
    report = export_bundle(spec, tmp_path / "bundle", console=quiet)
    text = (tmp_path / "bundle/report.html").read_text("utf-8")
    assert "&lt;b&gt;shop" in text
    assert "<b>shop" not in text
    out = io.StringIO()
    Console(file=out, width=160).print(report.table())
    assert "<b>shop</b> [red]&1: 400 items" in out.getvalue()


def test_the_table_names_every_check(complete: Any) -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(complete.report.table())
    for check in complete.report.checks:
        assert re.search(
            rf"{re.escape(check.part)} .*{re.escape(check.against)} .*{re.escape(check.result)}", out.getvalue()
        )


def test_figures_of_awkward_data() -> None:
    """One item, one dimension, equal margins, odd names: nothing to see, but no error."""
    one = np.ones(1, np.bool_)
    assert map_figure(np.ones((1, 1), np.float32), [("#000000", one)]).startswith("<svg")
    assert map_figure(np.zeros((5, 3), np.float32), [("#000000", np.zeros(5, np.bool_))]).startswith("<svg")
    sigmoid = Calibration(kind=CalibrationKind.SIGMOID, x=[1.0, 0.0])
    isotonic = Calibration(kind=CalibrationKind.ISOTONIC, x=[0.0, 1.0], y=[0.1, 0.9])
    for calibration in (sigmoid, isotonic):
        assert "</svg>" in calibration_figure(calibration, np.zeros(3))


def test_equal_figures_are_equal_bytes() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    groups = [("#123456", np.arange(50) % 2 == 0)]
    assert map_figure(vectors, groups) == map_figure(vectors, groups)


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(name="evaluation", scope="module")
def fixture_evaluation(complete: Any) -> Evaluation:
    """Of users who took what nobody could guess, one of them unknown, and an item that nobody sells."""
    users = [*(f"user-{row:03d}" for row in range(60)), "stranger", "stranger"]
    items = [*(f"item-{row:03d}" for row in range(61)), "item-<sold out>"]
    spec = EvaluationSpec(
        truth=pa.table({"user_id": users, "item_id": items}), time_us=1_748_779_200_000_000, resamples=20
    )
    return evaluate_bundle(complete.path, complete.snapshot, spec)


def test_the_evaluation_page_stands_by_itself(evaluation: Evaluation) -> None:
    text = render_evaluation(evaluation)
    page = Page(text)
    assert "http" not in text
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert page.open == []
    assert page.tags.count("svg") == 2 * 5


def test_the_evaluation_page_says_how_well_and_for_whom(evaluation: Evaluation) -> None:
    words = Page(render_evaluation(evaluation)).words
    text = " ".join(words)
    ndcg = evaluation.modes["all"].systems["full"]["ndcg@10"].value
    assert f"{ndcg:.3f}" in words
    assert {"full", "ann", "als", "popular", "own", "ndcg@10", "coverage"} <= set(words)
    assert "1 of 62 events were of 1 items that the catalogue does not have" in text
    assert "users without history, who are the segment “new”: 1" in text
    assert "the truth has no times" in text
    assert ", on trial: the placement has none" in text


@pytest.mark.parametrize("width", [220, 80])
def test_the_tables_show_every_system_and_source(evaluation: Evaluation, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(*map(terminal_table, evaluation_tables(evaluation)))
    printed = console.file.getvalue()
    assert "mode all: 60 users" in printed
    assert "mode first" in printed
    for name in ("full", "ann", "als", "popular", "own", "again", "union"):
        assert re.search(rf"^\W*{name} ", printed, re.MULTILINE)
    for grid in evaluation_tables(evaluation):
        for cell in (cell for row in grid.rows for cell in row[1:]):
            assert cell in printed
    assert max(map(len, printed.splitlines())) <= width


@pytest.mark.parametrize("observed", [[0.0, 0.5], [0.0, 0.0], [1.0, 1.0], [0.001, 0.2]])
def test_reliability_can_be_drawn_with_bins_of_nothing_and_of_everything(observed: list[float]) -> None:
    bins = Reliability(np.array([0.01, 0.4]), np.array(observed), np.array([100, 1]))
    assert reliability_figure(bins).startswith("<svg")
