"""The page of a study: its arms, what was gained and forgotten; broken summaries are left out, names stay text."""

import json
from pathlib import Path

import pytest

from midblock.base import Estimate
from midblock.report import write_report
from midblock.report.page.scatter import Dot, scatter
from midblock.report.read.joint import Joint
from midblock.report.read.studied import read_study, tasks_of
from midblock.report.sections.study import efficiency_dots, forgetting_dots, study_sections


def arm(name, value, chance, parameters=1000, **more):
    return {"arm": name, "value": value, "low": value - 0.1, "high": value + 0.1, "probability_best": chance,
            "parameters": parameters, "layers": "1-2", **more}  # fmt: skip


def against(name, difference):
    return {"arm": name, "difference": difference, "low": difference - 0.1, "high": difference + 0.1, "p_holm": 0.01}


def task(name, general=False, **more):
    arms = [arm("all", 0.5, 0.1), arm("<b>010</b>", 0.7, 0.9, published={"value": 0.21, "source": "P1, second-hand"})]
    base = {"value": 0.2, "low": 0.1, "high": 0.3}
    gains = [against("all", 0.3), against("<b>010</b>", 0.5)]
    return {"task": name, "metric": "exact_match", "kind": "share", "general": general, "base": base, "arms": arms,
            "comparisons": [against("<b>010</b>", 0.2)], "against_base": gains, **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    summary = {
        "headline": "010 is best.", "models": [], "reference": "all", "total_blocks": 3,
        "tasks": [task("sums"), task("other", general=True)], "selected": {"all": {"learning_rate": 0.1}},
        "halving": {"by": "seeds", "spared": 0.25, "dropped": [{"arm": "001", "learning_rate": 0.1, "rung": 0}]},
        "failed": {"100": "out of <memory>"},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "run.json").write_text(json.dumps({"verb": "study", "status": "done"}))
    return tmp_path


def test_arms_gains_and_what_failed_stand_on_the_page_as_text(folder):
    page = write_report(folder).read_text()
    for said in ("P(best)", "0.90", "&lt;b&gt;010&lt;/b&gt;", "P1, second-hand", "0.21", "spared 25% of the steps",
                 "learning_rate 0.1", "out of &lt;memory&gt;", "Gained on sums against other"):  # fmt: skip
        assert said in page, said
    assert "<b>010</b>" not in page
    assert sorted(each.name for each in (folder / "figures").iterdir()) == [
        "efficiency.pdf", "efficiency.png", "forgetting.pdf", "forgetting.png",
    ]  # fmt: skip


def test_the_dots_of_both_figures(folder):
    tasks = tasks_of(read_study(folder))
    dots, across = efficiency_dots(tasks[0])
    assert [(dot.x.value, dot.y.value) for dot in dots] == [(1.0, 0.5), (2.0, 0.7)]
    assert across.startswith("arms, each of ")
    ((aimed, other, gained),) = forgetting_dots(tasks)
    assert (aimed.name, other.name, [dot.y.value for dot in gained]) == ("sums", "other", [0.3, 0.5])


@pytest.mark.parametrize("broken", ["{", '{"tasks": 3}', '{"tasks": [{"arms": [{"arm": 1}]}, 4]}', "[]"])
def test_a_broken_summary_leaves_a_page_without_arms(folder, broken):
    (folder / "summary.json").write_text(broken)
    assert tasks_of(read_study(folder)) == []
    assert study_sections(Joint.of([read_study(folder)])) == []
    assert "midblock study" in write_report(folder).read_text()


def test_a_figure_of_nothing_is_none_and_one_of_level_points_has_an_axis():
    nan = float("nan")
    point = Dot("a", Estimate(1.0, nan, nan, 0), Estimate(0.0, nan, nan, 0))
    assert scatter([Dot("a", point.y, Estimate(nan, nan, nan, 0))], "x", "y") == ""
    drawn = scatter([point, point], "x", "y & z")
    assert drawn.count("<circle") == 2
    assert "y &amp; z" in drawn
    assert "nan" not in drawn
