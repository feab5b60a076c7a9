"""The two tables of verbs: they fit each other, and a new verb is a few files and a row in each."""

import sys
from pathlib import Path

import pytest

import midblock.cli
from midblock.base import LayerTable
from midblock.cli.main import main
from midblock.report.gather import read_joint, read_one
from midblock.report.read.reading import Traits
from midblock.report.verb_page import VerbPage
from midblock.report.verbs import PAGES, STEPS
from midblock.report.write import page_of
from midblock.runs.verbs import VERBS, Verb
from midblock.studies.evidence import WITNESSES

HOME = """
from midblock.base import LayerRow
from midblock.runs.request import Draft, Request
from midblock.runs.run import Outcome, Ready, carry_out
from midblock.runs.where import Where


def ruler(length, **options):
    request = Request("ruler", {"length": length})
    rows = [LayerRow("wood", layer, length, "ruler_height", layer / length, 1) for layer in range(length)]
    ready = Ready(request, lambda bench: Outcome(rows, {"headline": f"Wood is {length} blocks high."}))
    return carry_out(Draft(request), lambda progress: ready, Where(**options)).table
"""
DOOR = '''
from functools import partial
from typing import Annotated

from midblock.cli.life import Flat, carry_out, tell
from midblock.runs.where import Where
from ruler_home import ruler as run_ruler


def ruler(length: int, *, where: Annotated[Where | None, Flat] = None, json: bool = False) -> None:
    """Hold a ruler to a model.

    Args:
        length: blocks.
    """
    folder, _ = carry_out("ruler", [str(length)], where, partial(run_ruler, length))
    tell(folder, as_json=json)
'''
SECTION = """
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.figures.verbs import stacked

PANELS = (Panel("ruler_height"),)


def ruler_sections(run):
    chart = Chart("ruler", "Height", "By depth.", panels=PANELS)
    return [Section("ruler", "Ruler", "How high it is.", (chart,))] if run.has("ruler_height") else []


def ruler_figure(run):
    return stacked(run, PANELS)
"""


def test_a_verb_that_fills_a_folder_has_a_row_in_both_tables():
    assert set(PAGES) == {name for name, verb in VERBS.items() if verb.fills}


def test_the_ranks_of_the_table_are_clear():
    assert {page.step for page in PAGES.values()} == {step.id for step in STEPS}
    assert len({page.traits.colour for page in PAGES.values()}) == len(PAGES)
    assert len({(page.step, page.told) for page in PAGES.values()}) == len(PAGES)
    assert all(page.still in {"", *page.figures} for page in PAGES.values())
    assert {page.paper for page in PAGES.values()} == {"joined", "each", "none"}


def test_who_testifies_has_words():
    assert set(WITNESSES) == {name for name, page in PAGES.items() if page.evidence is not None}


@pytest.fixture
def ruler(tmp_path, monkeypatch):
    """The verb `ruler`: its function, its command, its section and a row in each table."""
    (tmp_path / "cli").mkdir()
    for name, text in (("ruler_home", HOME), ("cli/ruler", DOOR), ("ruler_section", SECTION)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(midblock.cli, "__path__", [*midblock.cli.__path__, str(tmp_path / "cli")])
    import ruler_section

    row = VerbPage(
        ruler_section.ruler_sections, "matters", {"ruler": ruler_section.ruler_figure}, told=3, traits=Traits(colour=7)
    )
    monkeypatch.setitem(VERBS, "ruler", Verb("Hold a ruler to a model.", "ruler_home"))
    monkeypatch.setitem(PAGES, "ruler", row)
    yield tmp_path
    for name in ("ruler_home", "ruler_section", "midblock.cli.ruler"):
        sys.modules.pop(name, None)


def test_a_new_verb_is_a_few_files_and_two_rows(ruler, runs, capfd, monkeypatch):
    monkeypatch.chdir(ruler)
    assert main(["--help"]) == 0
    assert "ruler" in capfd.readouterr().out
    assert main(["ruler", "30"]) == 0
    folder = Path("runs/ruler-30")
    assert capfd.readouterr().out.splitlines() == ["Wood is 30 blocks high.", f"Report: {folder}/report.html"]
    assert main(["ruler", "20", "-o", str(folder)]) == 2
    assert main(["ruler", "30", "-o", str(folder), "--resume"]) == 0
    assert main(["ruler", "30", "-o", str(folder), "--overwrite"]) == 0
    assert len(LayerTable.read(folder)) == 30
    assert (folder / "figures" / "ruler.pdf").exists()
    assert 'data-figure="ruler"' in page_of(read_one(folder))
    probe = runs.write_probe_run(ruler / "probe")
    joint = read_joint([folder, probe])
    assert joint.tuned == ["sft", "wood"]
    page = page_of(joint)
    assert page.index('id="matters"') < page.index('<section id="ruler"') < page.index('id="do"')
    assert 'data-figure="ruler"' in page
    assert "Wood is 30 blocks high." in page
    assert main(["report", str(folder), str(probe)]) == 0
    assert (folder.parent / "report" / "figures" / "ruler.png").exists()
