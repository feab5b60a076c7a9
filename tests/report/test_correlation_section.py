"""The figures of correlated curves: the numbers of `correlate`, every pair drawn, what is not clear of 0 pale."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from midblock.base import LayerRow, LayerTable
from midblock.metrics.correlation import correlate
from midblock.report.figures.paper import write_figures
from midblock.report.figures.swap import correlations
from midblock.report.page import parts
from midblock.report.page.island import page_data
from midblock.report.page.shell import document
from midblock.report.read.reading import Run
from midblock.report.sections.correlation import DATA, FEW, correlation_section, most_telling, strongest

tab = importlib.util.spec_from_file_location("browser_tab", Path(__file__).with_name("test_browser.py"))
in_browser = importlib.util.module_from_spec(tab)
tab.loader.exec_module(in_browser)
browser = in_browser.browser

L = 30
FOLLOWING = {"cosine_similarity": -1, "logit_kl": 1, "mean_shift": 1, "procrustes": 1}


def needs_browser(test):
    for mark in in_browser.pytestmark:
        test = mark(test)
    return test


def rows_of(models: tuple[str, ...], noise: int = 6) -> list[LayerRow]:
    """Weight changes without a trend, metrics that follow them more and more loosely, and metrics of their own."""
    rng = np.random.default_rng(0)
    rows: list[LayerRow] = []

    def curve(model: str, metric: str, values: np.ndarray, module: str = "residual") -> None:
        rows.extend(LayerRow(model, block, L, metric, float(v), 50, module=module) for block, v in enumerate(values))

    for model in models:
        change = rng.normal(size=L)
        curve(model, "delta_rel", change, "block")
        curve(model, "delta_fro", change + rng.normal(0, 0.1, L), "block")
        for k, (metric, sign) in enumerate(FOLLOWING.items()):
            curve(model, metric, sign * change + rng.normal(0, 0.2 + 0.2 * k, L))
        for k in range(noise):
            curve(model, f"metric_of_its_own_{k}", rng.normal(size=L))
    return rows


def page(run: Run) -> str:
    section, data = correlation_section(run.table)
    whole = page_data(run, {chart.id: chart.as_spec() for chart in section.charts}) | {DATA: data}
    main = '<section class="lead"></section>' + parts.section(section)
    return document("correlations", [(section.id, section.title)], main, whole)


@pytest.fixture
def run(make_run) -> Run:
    return Run.read(make_run(rows_of(("sft",)), bare=True))


def test_the_page_holds_every_correlation(run):
    found = correlate(run.table)
    _, data = correlation_section(run.table)
    assert data["curves"] == [found.curves[curve] for curve in found.order]
    assert data["clusters"] == sorted(data["clusters"])
    pairs = data["pairs"]
    assert len(pairs["a"]) == len(found.frame) == 12 * 11 / 2
    for i, pair in enumerate(found.frame.itertuples()):
        assert (data["curves"][pairs["a"][i]], data["curves"][pairs["b"][i]]) == (pair.a, pair.b)
        for name in ("pearson", "pearson_low", "spearman", "spearman_high", "pearson_differences", "n", "n_effective"):
            assert pairs[name][i] == pytest.approx(getattr(pair, name), rel=1e-6)


def test_the_list_is_clear_of_zero_sorted_and_without_other_measures_of_weights(run):
    found = strongest(correlate(run.table))
    assert [s.curve for s in found][:2] == ["cosine_similarity", "logit_kl"]
    assert not [s for s in found if s.curve.startswith("delta_") or s.low <= 0 <= s.high]
    assert [abs(s.pearson) for s in found] == sorted([abs(s.pearson) for s in found], reverse=True)
    assert len(found) <= FEW
    assert len(strongest(correlate(run.table), most=2)) == 2


def test_each_tuned_model_beside_its_own_weights():
    found = strongest(correlate(LayerTable.from_rows(rows_of(("sft", "dpo · b")))))
    assert {s.change for s in found} == {"delta_rel · block · sft", "delta_rel · block · dpo · b"}
    for s in found:
        assert s.curve.endswith(s.change.removeprefix("delta_rel · block"))
        assert s.name in (*FOLLOWING, *(f"metric_of_its_own_{k}" for k in range(6)))


def test_no_list_where_nothing_is_clear_of_zero():
    smooth = np.linspace(0, 1, L)
    curves = {
        ("delta_rel", "block"): np.sin(2 * smooth),
        ("logit_kl", "residual"): smooth,
        ("mean_shift", "residual"): np.cos(4 * smooth),
    }
    rows = [
        LayerRow("sft", b, L, metric, float(v), 9, module=m)
        for (metric, m), y in curves.items()
        for b, v in enumerate(y)
    ]
    section, data = correlation_section(LayerTable.from_rows(rows))
    assert data["strongest"] == []
    assert [chart.kind for chart in section.charts] == ["matrix"]
    assert "no curve's correlation with the weight change" in section.intro


def test_a_single_curve_has_no_correlations(run, tmp_path):
    table = run.table.select(metric="logit_kl")
    assert correlation_section(table) is None
    assert write_figures(Run(table, {}, {}), tmp_path / "figures", {"correlations": correlations}) == {}


def test_hostile_names_stay_text(make_run, hostile):
    text = page(Run.read(make_run(rows_of(("sft", hostile)), bare=True)))
    assert hostile not in text
    assert text.count("<script") == 2


def test_figure_for_papers(run, tmp_path):
    assert set(write_figures(run, tmp_path / "figures", {"correlations": correlations})) == {"correlations"}
    assert (tmp_path / "figures" / "correlations.pdf").read_bytes().startswith(b"%PDF")


def test_paper_shows_one_curve_of_each_cluster_and_those_nearest_the_weights(run):
    found = correlate(run.table)
    assert most_telling(found, 12) == list(range(12))
    clusters = {found.clusters[curve] for curve in found.order}
    kept = most_telling(found, len(clusters) + 2)
    assert {found.clusters[found.order[row]] for row in kept} == clusters
    names = {found.curves[found.order[row]] for row in most_telling(found, len(clusters) + 4)}
    assert {"delta_rel · block", "delta_fro · block", "cosine_similarity", "logit_kl"} <= names


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page and draw all of it; what it complains about meanwhile fails the test."""

    def open_page(text: str, width: int = 1280):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        browser.events.clear()
        browser("Emulation.setDeviceMetricsOverride", width=width, height=4000, deviceScaleFactor=1, mobile=width < 600)
        browser("Page.navigate", url=(tmp_path / "page.html").as_uri())
        browser.until(
            "document.readyState === 'complete' && [...document.querySelectorAll('figure')].every(f => f.dataset.drawn)"
        )
        return browser

    yield open_page
    assert browser.run("typeof window.hacked") == "undefined"
    errors = browser.named("Runtime.exceptionThrown", "Log.entryAdded")
    assert errors + [e for e in browser.named("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")] == []


MATRIX = "document.querySelector('#figure-correlations')"
OUTSIDE = (
    "[...document.querySelectorAll('.plot svg text')].filter(t => { const b = t.getBoundingClientRect(),"
    "s = t.closest('svg').getBoundingClientRect();"
    "return b.left < s.left - 1 || b.right > s.right + 1 || b.top < s.top - 1; })"
    ".map(t => t.textContent)"
)
WRITTEN = "[...document.querySelectorAll('.plot svg *')].flatMap(n => [...n.attributes].map(a => a.name + a.value))"


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_every_pair_is_drawn_and_nothing_overflows(opened, make_run, hostile, width):
    run = Run.read(make_run(rows_of(("sft", hostile), noise=14), bare=True))
    tab, frame = opened(page(run), width), correlate(run.table).frame
    unclear = {
        kind: int(((frame[f"{kind}_low"] <= 0) & (frame[f"{kind}_high"] >= 0)).sum())
        for kind in ("pearson", "spearman")
    }
    for button, expected in enumerate((unclear["pearson"], unclear["spearman"], 0)):
        tab.run(f"{MATRIX}.querySelectorAll('.modes button')[{button}].click()")
        cells = tab.run(f"[...{MATRIX}.querySelectorAll('.marks .cell')].map(c => c.style.fillOpacity)")
        assert len(cells) == 2 * len(frame) == 40 * 39
        assert cells.count("0.3") == 2 * expected
        dots = tab.run(f"{MATRIX}.querySelectorAll('.marks circle').length")
        assert dots == (0 if button == 2 else len(cells) - 2 * expected)
        assert tab.run(f"{WRITTEN}.filter(text => /NaN|undefined|Infinity/.test(text))") == []
        assert tab.run(OUTSIDE) == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    wider = tab.run(f"(box => box.scrollWidth > box.clientWidth)({MATRIX}.querySelector('.scroll'))")
    assert wider is (width == 390)


@needs_browser
def test_pointing_tells_interval_and_effective_blocks(opened, run):
    tab, (_, data) = opened(page(run)), correlation_section(run.table)
    pair = next(i for i in range(len(data["pairs"]["a"])) if {data["pairs"]["a"][i], data["pairs"]["b"][i]} == {0, 2})
    press = (
        "(a => { a.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
        "return a.getAttribute('aria-valuetext'); })"
    )
    said = tab.run(f"{press}({MATRIX}.querySelector('.overlay'))")
    assert said.startswith(f"{data['curves'][0]} with {data['curves'][2]}: Pearson r: ")
    found = [float(x) for x in re.findall(r"[\d.]+", said.partition("Pearson r: ")[2].replace("95 %", ""))]
    kept = [abs(data["pairs"][name][pair]) for name in ("pearson", "pearson_low", "pearson_high", "n", "n_effective")]
    assert found == pytest.approx(kept, rel=6e-3)


@needs_browser
def test_the_list_is_drawn_with_its_numbers(opened, run):
    tab, (_, data) = opened(page(run), 390), correlation_section(run.table)
    written = tab.run("[...document.querySelectorAll('#figure-with_weight_change svg text')].map(t => t.textContent)")
    assert written.count("Pearson r with delta_rel · block") == 1
    for entry in data["strongest"]:
        assert entry["name"] in written
        numbers = ["{:g}".format(float(f"{value:.3g}")).replace("-", "−") for value in entry["value"]]
        assert f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" in written


@needs_browser
def test_saved_figures_stand_alone(opened, run):
    tab = opened(page(run))
    for figure in ("correlations", "with_weight_change"):
        drawing = tab.run(f"standalone(document.querySelector('#figure-{figure}')).text")
        assert drawing.startswith("<svg")
        assert not re.search(r"var\(|color-mix|light-dark|color\(srgb|class=", drawing)
