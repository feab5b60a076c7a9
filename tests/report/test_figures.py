"""Figures for papers: both formats, only those with data, readable whatever the names."""

import numpy as np
import pytest

from midblock.base import LayerRow, LayerTable
from midblock.report.figures.analysis import FIGURES
from midblock.report.figures.paper import write_figures
from midblock.report.figures.tune import TUNE_FIGURES
from midblock.report.page.facts import Number, Thirds, facts_of, number
from midblock.report.page.modules import heat_rows
from midblock.report.read.reading import Run
from midblock.report.read.tuning import read_tune
from midblock.report.sections.profile import hero_of

OF_DENSE = set(FIGURES) - {"experts"}


def test_each_figure_as_png_and_pdf(make_run):
    folder = make_run()
    written = write_figures(Run.read(folder), folder / "figures", FIGURES)
    assert set(written) == OF_DENSE
    for name in OF_DENSE:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert sum(file.stat().st_size for file in (folder / "figures").iterdir()) < 5e6


def test_only_figures_with_data(make_run, weights):
    folder = make_run(weights)
    assert set(write_figures(Run.read(folder), folder / "figures", FIGURES)) == {"change_by_depth", "weights_heatmap"}


def test_identical_models_can_be_drawn(make_run, residual, weights):
    """Similarity 1, change 0 everywhere: nothing for a logarithm, nothing for a colour scale."""
    rows = [
        LayerRow(
            row.model, row.layer, row.blocks, row.metric, 1.0 if "cka" in row.metric else 0.0, row.n, module=row.module
        )
        for row in residual + weights
    ]
    folder = make_run(rows)
    assert set(write_figures(Run.read(folder), folder / "figures", FIGURES)) == OF_DENSE


def test_amounts_by_block_are_bars(make_run):
    """A bar's foot is 0; a curve of nearly equal amounts fills its axis."""
    panels = hero_of(Run.read(make_run())).panels
    assert {panel.metric: (panel.mark, panel.beside) for panel in panels if panel.depth} == {
        "delta_rel": ("bars", ""),
        "change_increment": ("bars", ""),
    }


def test_facts_quote_the_table(make_run):
    run = Run.read(make_run())
    facts = {fact.label: dict(fact.answers) for fact in facts_of(run)}
    assert facts["Weights moved most in"]["sft"] == Number("block 6", "0.0015 of base norm")
    assert facts["Weight change by third"]["sft"] == Thirds((0.2, 0.5, 0.3), 0.5)
    assert len(facts["Similarity after the last block"]) == 2


def test_facts_say_what_a_number_does_not(make_run):
    folder = make_run()
    frame = LayerTable.read(folder).to_pandas()
    before = {fact.label: dict(fact.answers) for fact in facts_of(Run.read(folder))}["Similarity after the last block"]
    frame.loc[(frame.metric == "cka_debiased") & (frame.model == "sft"), "state"] = "as_null"
    LayerTable(frame).write(folder)
    after = {fact.label: dict(fact.answers) for fact in facts_of(Run.read(folder))}["Similarity after the last block"]
    said = "; no more alike than unrelated prompts"
    assert after["sft"] == Number(before["sft"].text, before["sft"].aside + said)
    assert {**after, "sft": before["sft"]} == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.97234, "0.972"), (0.99971, "0.9997"), (-0.5, "−0.5"), (1.25e-7, "1.2×10⁻⁷"), (np.nan, "–")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_heat_rows_follow_the_data_through_a_block():
    rows = heat_rows(["block", "router", "head", "q_proj", "residual", "embedding", "down_proj"])
    assert [label for label, _ in rows] == ["q_proj", "down_proj", "router", "block", "embed / head"]
    assert heat_rows(["embedding"]) == [("embedding", ("embedding",))]


@pytest.mark.parametrize("keywords", [{"method": "full"}, {"anchor": True}, {"steps": 1}, {"steps": 3000}], ids=str)
def test_figures_of_a_tuning_run(make_tune_run, keywords):
    folder = make_tune_run(**keywords)
    assert set(write_figures(read_tune(folder), folder / "figures", TUNE_FIGURES)) == set(TUNE_FIGURES)
    for name in TUNE_FIGURES:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_only_figures_that_a_killed_run_has_data_for(make_tune_run):
    folder = make_tune_run(finished=False)
    found = write_figures(read_tune(folder), folder / "figures", TUNE_FIGURES)
    assert set(found) == {"loss", "gradient_by_depth"}
    (folder / "log.jsonl").unlink()
    assert write_figures(read_tune(folder), folder / "figures", TUNE_FIGURES) == {}
