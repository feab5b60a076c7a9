"""The page of a recommendation: the plan, the curves with their change points, the front; whatever its files hold."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from midblock import recommend
from midblock.base import LayerRow, LayerTable
from midblock.report.figures.recommend import asked_curves, repair_front
from midblock.report.gather import read_one
from midblock.report.page.still import Dot, level_plot, trade_plot
from midblock.report.read.joint import Joint
from midblock.report.sections.recommend import recommend_sections
from midblock.report.write import page_of, write_report

L = 12
THIRD = np.where(np.isin(np.arange(L), range(4, 8)), 1.0, 0.1)


@pytest.fixture
def advice(tmp_path):
    """A recommendation from an analysis."""
    run = tmp_path / "analysis"
    run.mkdir()
    rows = [LayerRow("sft", n, L, "change_own", v, 8, v - 0.02, v + 0.02) for n, v in enumerate(THIRD.tolist())]
    LayerTable.from_rows(rows).write(run)
    (run / "run.json").write_text(json.dumps({"verb": "analyze", "status": "done"}))
    recommend(run, output_dir=tmp_path / "advice")
    return tmp_path / "advice"


def joined(folder):
    run = read_one(folder)
    return run if isinstance(run, Joint) else Joint.of([run])


def changed(folder, **more):
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return page_of(read_one(folder))


FRONT = {
    "alphas": [0.0] * 4 + [1.0] * 8,
    "front": [
        {"family": "uniform", "alphas": [0.5] * L, "gain": 0.2, "forgotten": 0.1},
        {"family": "by depth", "alphas": [0.0] * 4 + [1.0] * 8, "gain": 0.3, "forgotten": 0.01},
    ],
    "tested": [
        {"name": "by depth", "alphas": [0.0] * 4 + [1.0] * 8, "chosen": True, "gain": 0.25, "gain_low": 0.2,
         "gain_high": 0.3, "forgotten": 0.02, "forgotten_low": 0.01, "forgotten_high": 0.03}
    ],
}  # fmt: skip


class Outline(HTMLParser):
    """Elements by name, and those left open."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.open = {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.open += [] if tag in ("meta", "br", "link", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_plan_curve_and_change_points(advice):
    (section,) = recommend_sections(joined(advice))
    seen = Outline(section.body)
    assert not seen.open
    assert seen.counts["svg"] == 1
    assert section.body.count('class="epoch"') == 2  # change points
    assert section.body.count('fill-opacity=".15"') == 4  # recommended blocks
    assert section.body.count('fill-opacity=".55"') == L
    assert section.body.count('class="m0 line"') == 3  # levels
    assert "confidence" in section.body
    assert "Own change of sft stands out in blocks" in section.body
    page = write_report(advice).read_text()
    assert "Tune blocks" in page
    assert {file.name for file in (advice / "figures").iterdir()} == {"curves.png", "curves.pdf"}


def test_the_front_and_what_was_tested(advice):
    page = changed(advice, **FRONT)
    assert page.count("<circle") == 2
    assert "by depth: gain 0.3, forgotten 0.01" in page
    assert "0.25 [0.2, 0.3]" in page
    assert "α of each block" in page
    run = joined(advice)
    (ax,) = repair_front(run).axes
    assert [len(each.get_offsets()) for each in ax.collections] == [1, 0, 1]
    (ax,) = asked_curves(run).axes
    assert len(ax.lines) == 2


def test_where_nothing_is_said_the_page_says_so(advice):
    entries = [{"title": "Own change", "why_not": "noise", "blocks": [1, 2]}]
    page = changed(advice, says=False, fallback=True, evidence=entries)
    assert "20\u2060–\u206080" in page
    assert "not counted: noise" in page


@pytest.mark.parametrize(
    "more",
    [
        {"blocks": "4"}, {"blocks": [99, -1, "x", None]}, {"blocks": []}, {"evidence": [{"scores": [None] * L}]},
        {"evidence": [{"scores": ["<b>"] * L, "change_points": [99, -5, "x"], "blocks": [9, 2]}]}, {"evidence": 3},
        {"reasons": {"a": 1}}, {"reasons": [["<script>window.hacked=1</script>"]]}, {"confidence": "high"},
        {"front": [{"gain": "x"}], "tested": [{"name": "<img src=x>", "gain": None}]}, {"alphas": ["x"] * L},
        {"door": ["runs"]}, {"headline": "<script>window.hacked=1</script>"},
    ],
)  # fmt: skip
def test_no_file_breaks_the_page_or_becomes_a_part_of_it(advice, more):
    page = changed(advice, **more)
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    run = joined(advice)
    asked_curves(run)
    repair_front(run)


def test_drawings_take_what_there_is():
    assert "<svg" in level_plot([float("nan")] * 3, (1,), (), "m1", "nothing")
    assert "<svg" in level_plot([1.0], (), (0,), "m1", "one block")
    assert trade_plot([Dot(float("nan"), 1.0, "m1", "lost")], "x", "y", "none") == ""
    assert trade_plot([Dot(1.0, 1.0, "m1", "<b>alone</b>")], "x", "y", "one").count("<circle") == 1
    assert "<b>" not in trade_plot([Dot(1.0, 1.0, "m1", "<b>alone</b>")], "x", "y", "one")
