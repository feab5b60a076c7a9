"""The page of an evaluation: the summary's numbers, what models wrote, all of it escaped, drawn in a browser."""

import importlib.util
import json
from pathlib import Path

import pytest

from midblock.report.gather import read_joint, read_one
from midblock.report.sections.evaluate import evaluate_sections
from midblock.report.write import page_of, write_report

tab = importlib.util.spec_from_file_location("browser_tab", Path(__file__).with_name("test_browser.py"))
in_browser = importlib.util.module_from_spec(tab)
tab.loader.exec_module(in_browser)
browser = in_browser.browser

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
TUNED = f"sft {HOSTILE}"
TASKS = ("chain_sum", f"words {HOSTILE}")


def summary():
    scores = [
        {"model": model, "task": task, "metric": "exact_match", "value": 0.2 + 0.3 * place, "low": 0.1, "high": 0.6,
         "n": 200, "units": 200, "no_answer": 12, "cut": None, "failed": 0}
        for task in TASKS for place, model in enumerate(("base", TUNED))
    ]  # fmt: skip
    comparisons = [
        {"task": task, "metric": "exact_match", "first": "base", "second": TUNED, "difference": value,
         "low": value - 0.1, "high": value + 0.1, "p": 0.001, "p_holm": 0.002, "detectable": 0.08, "units": 200,
         "verdict": verdict}
        for task, value, verdict in zip(TASKS, (0.3, -0.2), ("better", "worse"), strict=True)
    ]  # fmt: skip
    names = ("gain", "loss", "kl_general", "kl_general_reverse", "kl_tasks", "kl_tasks_reverse")
    forgetting = {"model": TUNED, "drift": 0.02} | {
        f"{name}{end}": 0.2 + step for name in names for end, step in (("", 0), ("_low", -0.1), ("_high", 0.1))
    }
    tasks = [{"name": task, "rule": "first_line"} for task in TASKS]
    return {"headline": "sft is better", "reference": "base", "models": ["base", TUNED], "tasks": tasks,
            "scores": scores, "comparisons": comparisons, "forgetting": [forgetting],
            "detectable_level": 0.025}  # fmt: skip


def outputs():
    for item in range(5):
        for model in ("base", TUNED):
            yield {
                "model": model, "task": TASKS[0], "item": f"{item}", "prompt": f"1 + {item}? {HOSTILE}",
                "output": HOSTILE, "answer": None if item else HOSTILE, "expected": str(item), "value": 0.0,
                "cut": item == 1,
            }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A run folder as `midblock evaluate` leaves it."""
    place = tmp_path / "evaluated"
    place.mkdir()
    models = [{"name": "base", "role": "base", "reference": "start"}, {"name": TUNED, "role": "tuned"}]
    record = {"verb": "evaluate", "status": "done", "models": models, "data": {"tasks": ", ".join(TASKS)}}
    (place / "run.json").write_text(json.dumps(record))
    (place / "summary.json").write_text(json.dumps(summary()))
    (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in outputs()))
    return place


def test_figures_hold_the_numbers_of_the_summary(folder):
    found = {section.id: section for section in evaluate_sections(read_one(folder))}
    assert list(found) == ["scores", "comparisons", "forgetting", "outputs"]
    drawn = found["scores"].charts[0].data["rows"]
    assert [row["value"] for row in drawn] == [[0.2, 0.1, 0.6], [0.5, 0.1, 0.6]] * 2
    assert [row["look"] for row in drawn] == ["m0", "m1"] * 2
    assert [row["look"] for row in found["comparisons"].charts[0].data["rows"]] == ["m1", "m2"]
    (point,) = found["forgetting"].charts[0].data["points"]
    assert point["x"] == pytest.approx([0.2, 0.1, 0.3])
    assert "base: 1 of" not in found["outputs"].body
    assert found["outputs"].body.count("no answer") == 8
    assert "expected: 0" in found["outputs"].body


def test_nothing_that_a_model_wrote_becomes_a_part_of_the_page(folder):
    page = page_of(read_one(folder))
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    assert "blocks" not in page.partition("<h1>")[0].partition('class="eyebrow"')[2]  # an evaluation knows no depth


def test_what_is_broken_or_missing_is_left_out(folder):
    (folder / "samples.jsonl").write_text('{"model": "base", "output"\n[1]\n')
    broken = summary() | {"comparisons": "none", "forgetting": [{"model": 3, "gain": "x"}]}
    broken["scores"][0] |= {"value": None, "low": "0.1", "task": None}
    (folder / "summary.json").write_text(json.dumps(broken))
    page = page_of(read_one(folder))
    assert 'id="comparisons"' not in page
    assert 'id="outputs"' not in page
    assert 'id="figure-forgetting"' not in page
    (folder / "summary.json").unlink()
    assert "A run of midblock evaluate" in page_of(read_one(folder))


def test_it_stands_on_a_page_of_several_runs(folder, tmp_path, runs):
    page = page_of(read_joint([runs.WRITERS["merge"](tmp_path / "merged"), folder]))
    assert 'id="figure-scores"' in page
    assert "sft is better" in page


def test_figures_for_papers(folder):
    write_report(folder)
    names = {file.name for file in (folder / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("scores", "forgetting") for kind in ("png", "pdf")}


@pytest.mark.browser
@pytest.mark.skipif(in_browser.CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_figure(folder, browser, width):
    page = folder / "report.html"
    page.write_text(page_of(read_one(folder)), encoding="utf-8")
    browser.events.clear()
    browser("Emulation.setDeviceMetricsOverride", width=width, height=4000, deviceScaleFactor=1, mobile=width < 600)
    browser("Page.navigate", url=page.as_uri())
    browser.until("document.readyState === 'complete' && document.querySelectorAll('.plot svg').length === 3")
    circles = browser.run("[...document.querySelectorAll('.plot svg')].map(s => s.querySelectorAll('circle').length)")
    assert circles == [4, 2, 1]
    inside = "c => c.cx.baseVal.value > 0 && c.cy.baseVal.value > 0"
    assert browser.run(f"[...document.querySelectorAll('.plot svg circle')].every({inside})")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.named("Runtime.exceptionThrown") == []
