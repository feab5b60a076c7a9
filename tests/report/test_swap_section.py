"""The figure of swapped blocks: the summary's numbers, spans where the blocks are, drawn in a browser."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from midblock.base import LayerRow
from midblock.report.figures.paper import write_figures
from midblock.report.figures.swap import swap
from midblock.report.page import parts
from midblock.report.page.island import page_data
from midblock.report.page.shell import document
from midblock.report.read.reading import Run
from midblock.report.sections.swap import swap_section, verdicts
from midblock.studies.swapped import swaps_of

tab = importlib.util.spec_from_file_location("browser_tab", Path(__file__).with_name("test_browser.py"))
in_browser = importlib.util.module_from_spec(tab)
tab.loader.exec_module(in_browser)
browser = in_browser.browser

L = 30
LEVELS = {
    ("base", "base_head"): 0.412,
    ("base", "tuned_head"): 0.431,
    ("sft", "base_head"): 0.54,
    ("sft", "tuned_head"): 0.552,
}
SPANS = {
    "segments": [(6 * k, 6 * k + 5) for k in range(5)],
    "each": [(-1, -1), *((block, block) for block in range(L))],
    "bottom": [(0, 6 * k + 5) for k in range(5)],
    "top": [(6 * k, L - 1) for k in range(5)],
}  # fmt: skip


def needs_browser(test):
    for mark in in_browser.pytestmark:
        test = mark(test)
    return test


def estimate(value: float, reference: float | None = None) -> dict[str, float]:
    found = {"value": value, "low": value - 0.02, "high": value + 0.02}
    if reference is not None:
        change = value - reference
        found |= {"change": change, "change_low": change - 0.01, "change_high": change + 0.01}
    return found


def swap_summary(mode: str, tuned: str = "sft") -> dict:
    """`summary.json` of a swap run: the middle of the tuned model carries what it gained."""
    names = {"base": "base", "sft": tuned}
    references, cells, shape = [], [], []
    for (host, head), level in LEVELS.items():
        donor = {"base": "sft", "sft": "base"}[host]
        all_of = {"accuracy": estimate(level), "nll": estimate(3 - level), "perplexity": estimate(20 - level)}
        references.append({"body": names[host], "head": head, **all_of})
        for first, last in SPANS[mode]:
            value = level + (LEVELS[donor, head] - level) * (0.1 + 0.5 * (first <= 15 <= last))
            cells.append({
                "host": names[host], "donor": names[donor], "head": head, "first": first, "last": last,
                "blocks": f"{first}-{last}", "accuracy": estimate(value, level), "nll": estimate(3 - value, 3 - level),
                "perplexity": estimate(20 - value),
            })  # fmt: skip
        verdict = "inverted U" if host == "base" else "undecided"
        contrast = {"contrast": 0.031, "low": 0.01, "high": 0.052, "verdict": verdict}
        shape.append({"host": names[host], "head": head, "metric": "accuracy", **contrast})
    return {"headline": "x", "models": [], "base": "base", "tuned": tuned, "mode": mode, "references": references,
            "cells": cells, "shape": shape}  # fmt: skip


@pytest.fixture
def swap_run(make_run):
    """A run folder as `midblock swap` leaves it."""

    def make(mode: str = "segments", tuned: str = "sft", summary: dict | None = None) -> Run:
        rows = [LayerRow(model, L - 1, L, "swap_accuracy", 0.5, 50, module="base_head") for model in ("base", tuned)]
        folder = make_run(rows, bare=True, name=mode)
        (folder / "summary.json").write_text(json.dumps(swap_summary(mode, tuned) if summary is None else summary))
        return Run.read(folder)

    return make


def page(run: Run) -> str:
    section = swap_section(run)
    assert section is not None
    main = '<section class="lead"></section>' + parts.section(section)
    data = page_data(run, {chart.id: chart.as_spec() for chart in section.charts})
    return document("swap", [(section.id, section.title)], main, data)


def test_the_page_holds_the_numbers_of_the_summary(swap_run):
    summary, section = swap_summary("segments"), swap_section(swap_run())
    chart = section.charts[0]
    assert chart.modes == ("accuracy", "nll", "perplexity")
    assert len(chart.data["cells"]) == len(summary["cells"]) == 20
    for drawn, cell in zip(chart.data["cells"], summary["cells"], strict=True):
        assert (drawn["host"], drawn["head"], drawn["blocks"]) == (
            cell["host"],
            cell["head"],
            [cell["first"], cell["last"]],
        )
        assert drawn["nll"] == pytest.approx(list(cell["nll"].values()))
        assert drawn["perplexity"][:3] == pytest.approx(list(cell["perplexity"].values()))
        assert drawn["perplexity"][3:] == [None] * 3
    assert [entry["accuracy"][0] for entry in chart.data["references"]] == pytest.approx(list(LEVELS.values()))


def test_verdicts_stand_under_the_figure(swap_run):
    section = swap_section(swap_run())
    caption = section.charts[0].caption
    said = "Accuracy by depth, base with blocks of sft: an inverted U: blocks in the middle help most (+0.031 "
    assert said + "[0.01, 0.052] with the base head, +0.031 [0.01, 0.052] with the tuned head)." in caption
    assert (
        "sft with blocks of base: undecided (+0.031 with the base head, " in caption
    )  # no interval: it is not the test
    assert "each tested separately" in caption
    assert section.intro.endswith("Measured on 50 prompts.")


@pytest.mark.parametrize(
    ("host", "verdict", "words"),
    [
        ("base", "rising", "rises with depth: upper blocks help most"),
        ("sft", "falling", "falls with depth: taking out upper blocks hurts most"),
        ("sft", "U", "a U: taking out the middle hurts most"),
        ("base", "U", "a U: blocks in the middle help least"),
    ],
)
def test_every_verdict_is_said_as_such(swap_run, host, verdict, words):
    summary = swap_summary("segments")
    for entry in summary["shape"]:
        entry.update(verdict=verdict if entry["host"] == host else "undecided", low=None, high=None)
    said = {line.split(" with blocks")[0]: line for line in verdicts(swaps_of(swap_run(summary=summary)))}
    assert f": {words} (+0.031 with the base head" in said[f"Accuracy by depth, {host}"]
    assert [line for line in said.values() if "undecided" in line] == [
        said[f"Accuracy by depth, {'sft' if host == 'base' else 'base'}"]
    ]


def test_cumulative_swaps_are_drawn_over_what_was_added_last(swap_run):
    for mode in ("bottom", "top"):
        swaps = swaps_of(swap_run(mode))
        one = [cell for cell in swaps.cells if (cell.host, cell.head) == ("base", "base_head")]
        assert [cell.added for cell in one] == SPANS["segments"]
        assert [(cell.first, cell.last) for cell in one] == SPANS[mode]
    assert [cell.added for cell in swaps_of(swap_run("each")).cells][:2] == [(-1, -1), (0, 0)]


@pytest.mark.parametrize(
    "summary", [{}, {"cells": 3}, {"cells": ["x", {"first": 0}, {"first": 3, "last": 1}]}], ids=str
)
def test_no_section_without_cells(swap_run, summary, tmp_path):
    run = swap_run(summary=summary)
    assert swap_section(run) is None
    assert write_figures(run, tmp_path / "figures", {"swap": swap}) == {}


def test_what_is_broken_is_left_out(swap_run):
    summary = swap_summary("segments")
    summary["cells"][0]["accuracy"]["value"] = None
    summary["cells"][1]["head"] = "third_head"
    summary["cells"][2]["nll"] = "much"
    summary["references"] = None
    summary["shape"] = [{"host": "base", "contrast": None}]
    swaps = swaps_of(swap_run(summary=summary))
    assert len(swaps.cells) == 19
    assert "accuracy" not in swaps.cells[0].levels
    assert "nll" not in swaps.cells[1].levels
    assert verdicts(swaps) == []


def test_hostile_names_stay_text(swap_run, hostile):
    text = page(swap_run(tuned=hostile))
    assert hostile not in text
    assert text.count("<script") == 2


@pytest.mark.parametrize("mode", ["each", "top"])
def test_figure_for_papers(swap_run, mode, tmp_path):
    run = swap_run(mode, tuned="a $name_of$ \\many")
    assert set(write_figures(run, tmp_path / "figures", {"swap": swap})) == {"swap"}
    assert (tmp_path / "figures" / "swap.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page; what it complains about meanwhile fails the test."""

    def open_page(text: str, width: int = 1280):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        browser.events.clear()
        browser("Emulation.setDeviceMetricsOverride", width=width, height=3000, deviceScaleFactor=1, mobile=width < 600)
        browser("Page.navigate", url=(tmp_path / "page.html").as_uri())
        browser.until("document.readyState === 'complete' && document.querySelectorAll('.plot svg').length > 0")
        return browser

    yield open_page
    assert browser.run("typeof window.hacked") == "undefined"
    errors = browser.named("Runtime.exceptionThrown", "Log.entryAdded")
    assert errors + [e for e in browser.named("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")] == []


OUTSIDE = (
    "[...document.querySelectorAll('.plot svg text')].filter(t => { const b = t.getBoundingClientRect(),"
    "s = t.closest('svg').getBoundingClientRect(); return b.left < s.left - 1 || b.right > s.right + 1; })"
    ".map(t => t.textContent)"
)
WRITTEN = "[...document.querySelectorAll('.plot svg *')].flatMap(n => [...n.attributes].map(a => a.name + a.value))"
PRESS = "(n => document.querySelectorAll('.modes button')[n].click())"


@needs_browser
@pytest.mark.parametrize(("mode", "width"), [("segments", 1280), ("each", 390), ("bottom", 390), ("top", 1280)])
def test_drawn_in_every_view_without_overflow(opened, swap_run, hostile, mode, width):
    tab = opened(page(swap_run(mode, tuned=hostile)), width)
    spans = "document.querySelectorAll('.plot .marks rect.bar').length"
    for button in (0, 1, 2, 4, 0):  # accuracy, NLL, perplexity; change to host, once more accuracy
        tab.run(f"{PRESS}({button})")
        assert tab.run(spans) == 4 * len(SPANS[mode])
        assert tab.run(f"{WRITTEN}.filter(text => /NaN|undefined|Infinity/.test(text))") == []
        assert tab.run(OUTSIDE) == []
    assert tab.run("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize(
    ("button", "outer", "middle"), [(3, 0.4248, 0.4888), (4, 0.0128, 0.0768)], ids=["value", "change"]
)
def test_spans_stand_at_their_blocks_and_heights(opened, swap_run, button, outer, middle):
    tab = opened(page(swap_run()))
    tab.run(f"{PRESS}({button})")
    bars = "[...document.querySelectorAll('.plot .marks rect.bar')]"
    boxes = tab.run(f"{bars}.map(r => [r.x, r.y, r.width, r.height].map(v => v.baseVal.value))")
    assert len({round(x) for x, *_ in boxes}) == 5
    assert len({round(width) for *_, width, _ in boxes}) == 1
    heights = [value_at(tab, y + height / 2) for _, y, _, height in boxes[:5]]  # base with its own head
    assert heights == pytest.approx([outer, outer, middle, outer, outer], abs=5e-4)


def value_at(tab, y: float) -> float:
    """The value at a height of the first panel, read off its ticks."""
    ticks = tab.run(
        "[...document.querySelectorAll('.plot .axis')[0].querySelectorAll('text:not(.y-title)')]"
        ".map(t => [parseFloat(t.textContent.replace('−', '-')), t.y.baseVal[0].value - 3.5])"
    )
    (low, foot), (high, top) = ticks[0], ticks[-1]
    return low + (foot - y) / (foot - top) * (high - low)


@needs_browser
def test_arrow_keys_tell_values_and_changes(opened, swap_run):
    tab = opened(page(swap_run()))
    key = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
    press = f"(a => {{ a.dispatchEvent({key}); a.dispatchEvent({key}); return a.getAttribute('aria-valuetext'); }})"
    said = tab.run(f"{press}(document.querySelector('.plot .overlay'))")
    assert said.startswith(
        "Blocks 12–17 swapped · Accuracy: base with blocks of sft; base head: 0.4888 [0.4688, 0.5088]"
    )
    assert "change to host: +0.0768 [0.0668, 0.0868]" in said
    assert tab.run("document.querySelectorAll('#tip .row').length") == 8
    tab.run(f"{PRESS}(2)")
    assert tab.run("document.querySelector('[data-view=change]').disabled")


@needs_browser
def test_saved_figures_stand_alone(opened, swap_run):
    tab = opened(page(swap_run()))
    drawing = tab.run("standalone(document.querySelector('figure')).text")
    assert drawing.startswith("<svg")
    assert not re.search(r"var\(|color-mix|light-dark|color\(srgb|class=", drawing)
