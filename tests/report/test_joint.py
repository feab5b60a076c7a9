"""The page of several runs, and of one run of each verb: what stands on it, what is refused, what stays apart."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from midblock.base import LayerPlan, LayerTable, MidblockError
from midblock.report import write_report
from midblock.report.figure_files import write_joint_figures
from midblock.report.gather import read_joint, read_one
from midblock.report.read.joint import Joint, labels_of
from midblock.report.sections.flow import flow_facts
from midblock.report.story import clause, headline_of, told
from midblock.report.suggestion import agreeing, finding_rows
from midblock.report.verbs import PAGES, STEPS
from midblock.report.write import page_of
from midblock.studies.evidence import Suggestion, suggestions
from midblock.tuning.place.auto import plan_from_run, window_of


class Page(HTMLParser):
    """Ids, figures, handlers, the visible text, the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.figures: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.inside = tag
        self.handlers += [name for name in found if name.startswith("on")]
        self.ids += [found["id"]] if tag in ("section", "div", "figure") and found.get("id") else []
        self.figures += [found["data-figure"]] if tag == "figure" else []
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u2060", "").split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def page(*folders) -> Page:
    return Page(page_of(read_joint(folders) if len(folders) > 1 else read_one(folders[0])))


@pytest.fixture
def everything(runs, make_tune_run, tmp_path) -> list[Path]:
    return [*runs.write_all(tmp_path / "all"), make_tune_run("sft")]


def suggested(*folders) -> list[Suggestion]:
    return suggestions(read_joint(folders).runs)


def rows_of(*folders) -> list:
    """The rows of the first suggestion, each with whether it agrees."""
    joint = read_joint(folders)
    found = suggestions(joint.runs)[0]
    return list(zip(finding_rows(joint, found), map(found.agrees, found.findings), strict=True))


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_one_page_of_all_verbs_in_the_order_of_the_story(everything, tmp_path):
    path = write_report(*everything, output_dir=tmp_path / "joint")
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    order = ["top", "changed", "similarity", "weights", "flow", "matters", "probe", "swap", "steer", "correlations",
             "do", "next", "tuned", "merge", "numbers", "made"]  # fmt: skip
    assert [name for name in seen.ids if name in order] == order
    assert len(set(seen.figures)) == len(seen.figures)
    assert {"change_by_depth", "flow", "gradient_map", "early_exit", "swap", "steering", "merge"} <= set(seen.figures)
    assert {spec["id"] for spec in seen.data["figures"].values()} == set(seen.figures)
    assert "data:image/png" in text
    files = {file.relative_to(tmp_path / "joint").as_posix() for file in (tmp_path / "joint").rglob("*")}
    assert {"layers.parquet", "layers.csv", "correlations.csv", "figures/early_exit.pdf", "figures/swap.png"} <= files


def test_all_rows_are_joined(everything):
    joined = read_joint(everything).table.frame
    keys = ["model", "dataset", "layer", "module", "metric"]
    assert not joined.duplicated(keys).any()
    for folder in everything:
        part = LayerTable.read(folder).frame.merge(joined, on=keys, suffixes=("", "_joined"))
        own = part[part.metric != "delta_rel"]  # which another run gives for the same model, too
        np.testing.assert_array_equal(own.value, own.value_joined)


def test_the_default_folder_stands_beside_the_first_run(runs, tmp_path):
    folders = [runs.write_probe_run(tmp_path / "probe"), runs.write_merge_run(tmp_path / "merge")]
    assert write_report(*folders) == tmp_path / "report" / "report.html"
    assert not (folders[0] / "report.html").exists()


def test_the_same_page_every_time(runs, tmp_path):
    folders = [runs.write_merge_run(tmp_path / "merge"), runs.write_probe_run(tmp_path / "probe")]
    path = write_report(*folders)
    files = [path, *sorted((path.parent / "figures").iterdir()), path.parent / "layers.csv"]
    before = [file.read_bytes() for file in files]
    write_report(*folders)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("verb", ["probe", "swap", "steer", "flow", "merge"])
def test_the_page_of_one_run(runs, tmp_path, verb):
    folder = runs.WRITERS[verb](tmp_path / verb)
    seen = page(folder)
    assert [name for name in seen.ids if name in PAGES] == [verb]
    assert (
        json.loads((folder / "summary.json").read_text())["headline"]
        .replace("10-19", "10–19")
        .replace("12-17", "12–17")
        in seen.text
    )
    assert {"numbers", "made"} <= set(seen.ids)


def test_an_analysis_and_a_tuning_run_keep_their_own_pages(make_run, make_tune_run):
    assert not isinstance(read_one(make_run()), Joint)
    assert not isinstance(read_one(make_tune_run()), Joint)


def test_a_folder_given_twice_counts_once(runs, tmp_path):
    folder = runs.write_probe_run(tmp_path / "probe")
    assert write_report(folder, str(folder) + "/.") == folder / "report.html"
    assert (folder / "figures" / "early_exit.pdf").read_bytes().startswith(b"%PDF")
    other = runs.write_merge_run(tmp_path / "merge")
    assert [run.folder for run in read_joint([folder, other, folder]).runs] == [folder, other]


def test_what_cannot_be_joined_is_refused_in_one_line(runs, make_run, tmp_path):
    probe = runs.write_probe_run(tmp_path / "probe")
    with pytest.raises(MidblockError, match="no run folder is given"):
        write_report()
    (tmp_path / "other").mkdir()
    for stranger, said in ((tmp_path / "nowhere", "no run folder at {}"), (tmp_path / "other", "{} is no run folder")):
        with pytest.raises(MidblockError, match=re.escape(said.format(stranger))):
            write_report(probe, stranger)
    short = make_run(name="short")
    with pytest.raises(MidblockError) as caught:
        write_report(probe, short)
    assert str(probe) in str(caught.value)
    assert str(short) in str(caught.value)
    assert "\n" not in str(caught.value)
    edit(short / "run.json", verb="weave")
    with pytest.raises(MidblockError, match="midblock weave"):
        write_report(probe, short)


def test_a_run_folder_is_never_overwritten(runs, tmp_path):
    probe, merge = runs.write_probe_run(tmp_path / "probe"), runs.write_merge_run(tmp_path / "merge")
    before = (merge / "layers.csv").read_bytes()
    with pytest.raises(MidblockError, match="is a run folder"):
        write_report(probe, merge, output_dir=merge)
    (tmp_path / "file").write_text("")
    with pytest.raises(MidblockError, match="is a file"):
        write_report(probe, merge, output_dir=tmp_path / "file")
    assert (merge / "layers.csv").read_bytes() == before


def test_a_foreign_folder_is_refused_and_a_joint_page_drawn_again(runs, tmp_path, monkeypatch):
    probe, merge = runs.write_probe_run(tmp_path / "probe"), runs.write_merge_run(tmp_path / "merge")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "layers.csv").write_text("mine")
    with pytest.raises(MidblockError, match="holds files that are not those of a joint page"):
        write_report(probe, merge, output_dir=tmp_path / "mine")
    assert [file.read_text() for file in (tmp_path / "mine").iterdir()] == ["mine"]
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        assert write_report(probe, merge, output_dir="~/joint") == tmp_path / "joint" / "report.html"
    assert json.loads((tmp_path / "joint" / "joint.json").read_text())["verb"] == "report"


def test_unfinished_runs_are_drawn_with_a_note(runs, tmp_path):
    probe = runs.write_probe_run(tmp_path / "probe")
    swap = runs.write_swap_run(tmp_path / "swap", finished=False)
    assert "swap (swap) is not finished (status: running)" in page(probe, swap).text
    assert "is not finished" in page(swap).text
    assert "is not finished" not in page(probe, runs.write_merge_run(tmp_path / "merge")).text
    assert write_report(swap).exists()


def test_runs_about_different_bases_say_so(runs, tmp_path):
    probe = runs.write_probe_run(tmp_path / "probe")
    assert "different base" not in page(probe, runs.write_merge_run(tmp_path / "merge")).text
    other = runs.write_swap_run(tmp_path / "swap", base="org/another")
    assert "different base models (builtin:smollm2-135m-instruct and org/another)" in page(probe, other).text


def test_a_base_hashed_by_one_run_only_is_still_the_same(runs, tmp_path):
    probe, merge = runs.write_probe_run(tmp_path / "probe"), runs.write_merge_run(tmp_path / "merge")
    models = json.loads((merge / "run.json").read_text())["models"]
    edit(merge / "run.json", models=[{**model, "weight_hash": None} for model in models])
    assert "different base" not in page(probe, merge).text


def test_other_numbers_under_one_name_are_told_apart(runs, tmp_path):
    first, second = (runs.write_probe_run(tmp_path / name, seed=k) for k, name in enumerate(("one", "two")))
    joint = read_joint([first, second])
    assert joint.table.models == ["base", "sft", "base (two)", "sft (two)"]
    assert len(joint.table) == 2 * len(LayerTable.read(first))
    written = page(first, second)
    assert {mark["model"] for mark in written.data["figures"]["early_exit"]["panels"][0]["marks"]} == set(
        joint.table.models
    )


def test_a_new_name_is_no_other_models(runs, tmp_path):
    """The second run has a model of the very name that telling apart would give."""
    first, second = (runs.write_probe_run(tmp_path / name, seed=k) for k, name in enumerate(("one", "two")))
    table = LayerTable.read(second).frame
    both = pd.concat([table, table[table.model == "sft"].assign(model="sft (two)")])
    LayerTable(both.astype({"model": "string"}).reset_index(drop=True)).write(second)
    joint = read_joint([first, second])
    assert joint.table.models == ["base", "sft", "base (two)", "sft (two) (2)", "sft (two)"]
    assert len(joint.table) == len(LayerTable.read(first)) + len(both)


def test_equal_numbers_are_not_told_twice(runs, tmp_path):
    first, second = (runs.write_probe_run(tmp_path / name) for name in ("one", "two"))
    joint = read_joint([first, second])
    assert joint.table.models == ["base", "sft"]
    assert len(joint.table) == len(LayerTable.read(first))


def test_two_swaps_have_a_section_each(runs, tmp_path):
    folders = [runs.write_swap_run(tmp_path / f"s{segments}", segments=segments) for segments in (5, 3)]
    seen = page(*folders)
    assert {"swap", "swap-2"} <= set(seen.ids)
    assert {"swap", "swap-2"} <= set(seen.figures)
    assert "s3" in seen.text
    assert set(write_joint_figures(read_joint(folders), tmp_path / "figures")) == {"swap", "swap-2"}


def test_labels_tell_folders_of_one_name_apart(runs, tmp_path):
    folders = [runs.write_probe_run(tmp_path / name / "probe") for name in ("a", "b")]
    assert labels_of(read_joint(folders).runs) == ["a/probe", "b/probe"]


def test_models_keep_their_colour_whatever_order_they_come_in(runs, tmp_path):
    analysis = runs.write_analysis_run(tmp_path / "analysis")
    flow, merge = runs.write_flow_run(tmp_path / "flow"), runs.write_merge_run(tmp_path / "merge")
    joint = read_joint([flow, merge, analysis])
    assert joint.tuned == ["sft", "merge", "flow"]
    assert joint.of_verb("flow").hue("flow") == 3
    assert page(flow, merge, analysis).data["figures"]["change_by_depth"]["models"] == ["sft"]


def test_the_suggestion_is_the_rule_of_auto(runs, tmp_path):
    analysis = runs.write_analysis_run(tmp_path / "analysis")
    first, last = window_of(LayerTable.read(analysis), "sft")
    assert plan_from_run(analysis, runs.L).blocks == tuple(range(first, last + 1))
    found = suggested(analysis, *runs.write_all(tmp_path / "all")[1:])
    assert [(one.model, one.window) for one in found] == [("sft", (first, last))]


def test_views_inside_and_outside_the_suggestion(runs, tmp_path):
    """Suggested are blocks of the upper third; the swap's best segment is 12–17, answers emerge at about 20."""
    folders = runs.write_all(tmp_path / "all")
    suggestion, rows = suggested(*folders)[0], rows_of(*folders)
    inside = {row.label: there for row, there in rows}
    assert inside == {"Early exit": None, "Swap": False, "Steering": False, "Gradient flow": False}
    assert agreeing(suggestion) == "0 of 3 other views point into these blocks."
    said = {row.label: row.said for row, _ in rows}
    assert "blocks 12–17 lower its NLL most: −0.0" in said["Swap"]
    assert said["Swap"].endswith("outside")
    text = page(*folders).text
    disagreeing = "Rule and swap disagree: swapped in, blocks 12–17 do most; tune both and compare."
    assert text.count(disagreeing) == 2  # in the story and on the card, ahead of the count
    assert text.index(disagreeing) < text.index(agreeing(suggestion))
    assert "--layers 12-17 --output-dir runs/tuned-12-17" in text
    assert LayerPlan.parse("12-17", runs.L).blocks == tuple(range(12, 18))


@pytest.mark.parametrize(("low", "high", "counts"), [(26, 27, True), (21, 23, None), (None, None, None)])
def test_early_exit_counts_only_apart_from_the_base(runs, tmp_path, low, high, counts):
    folders = [runs.write_analysis_run(tmp_path / "analysis"), runs.write_probe_run(tmp_path / "probe")]
    summary = json.loads((folders[1] / "summary.json").read_text())
    for entry, ends in zip(summary["models"], ((low, high), (22, 24)), strict=True):
        entry["emergence"]["accuracy"].update(layer=24, low=ends[0], high=ends[1])
    edit(folders[1] / "summary.json", models=summary["models"])
    ((row, inside),) = rows_of(*folders)
    assert inside is counts
    assert ("so not counted" in row.said) is (counts is None)


def test_folders_to_write_are_none_of_the_page(runs, tmp_path):
    analysis = runs.write_analysis_run(tmp_path / "analysis")
    assert "--output-dir runs/merged-22-29 " in page(analysis, runs.write_merge_run(tmp_path / "merged")).text + " "
    assert "--output-dir runs/merged-22-29-2" in page(analysis, runs.write_merge_run(tmp_path / "merged-22-29")).text


def test_a_story_names_every_verb_once_before_it_repeats_one(runs, tmp_path):
    swaps = [runs.write_swap_run(tmp_path / f"s{k}", segments=k) for k in (3, 5)]
    edit(swaps[1] / "summary.json", headline="Another swap.")
    rest = [runs.write_steer_run(tmp_path / "steer"), runs.write_probe_run(tmp_path / "probe")]
    matters = next(step for step in STEPS if step.id == "matters")
    said = told(read_joint([*swaps, *rest]), matters)
    assert [line.split()[0] for line in said] == ["Blocks", "Answers", "Adding", "Another"]
    shown = page(*swaps, *rest).text
    assert "Adding sft's mean shift" in shown.split("Early exit")[0]


def test_steering_without_a_scan_claims_none(runs, tmp_path):
    folder = runs.write_steer_run(tmp_path / "steer")
    assert "Steering one block at a time" in page(folder).text
    table = LayerTable.read(folder).frame
    LayerTable(table[~table.metric.str.startswith("steer_nll_change")].reset_index(drop=True)).write(folder)
    alphas = json.loads((folder / "summary.json").read_text())["alphas"]
    alphas[0] |= {"gap_closed": -0.001, "gap_closed_interval": [-0.05, 0.04]}
    edit(folder / "summary.json", alphas=alphas)
    text = page(folder).text
    assert "one block at a time" not in text
    assert "steered alone, at" not in text
    assert "0 % [−5, 4]" in text.replace("\u00a0", " ")
    assert "−0 %" not in text


def test_no_tile_crowns_a_block_that_does_not_stand_out(runs, tmp_path):
    folder = runs.write_flow_run(tmp_path / "flow")
    assert {"Pulled hardest", "Pulled most steadily"} <= {fact.label for fact in flow_facts(read_one(folder))}
    assert "Moved furthest" not in {fact.label for fact in flow_facts(read_one(folder))}
    frame = LayerTable.read(folder).frame
    frame.loc[frame.metric == "gradient_agreement", ["low", "high"]] = [-1.0, 1.0]
    LayerTable(frame).write(folder)
    assert "Pulled most steadily" not in {fact.label for fact in flow_facts(read_one(folder))}


@pytest.mark.parametrize("steps", [2, 3])
def test_two_steps_give_no_interval(runs, tmp_path, steps):
    seen = page(runs.write_flow_run(tmp_path / "flow", steps=steps))
    assert ("are 95 % intervals over steps" in seen.text) is (steps == 3)
    assert (seen.data["figures"]["flow"]["data"]["band"] == "95 % interval") is (steps == 3)


@pytest.mark.parametrize(("first", "inside", "words"), [(20, True, "4 of 6 blocks"), (18, False, "2 of 6 blocks")])
def test_half_of_its_blocks_make_a_view_agree(runs, tmp_path, first, inside, words):
    analysis, swap = runs.write_analysis_run(tmp_path / "analysis"), runs.write_swap_run(tmp_path / "swap")
    summary = json.loads((swap / "summary.json").read_text())
    for cell in summary["cells"]:
        if cell["first"] == 12:
            cell.update(first=first, last=first + 5)
    edit(swap / "summary.json", cells=summary["cells"])
    assert suggested(analysis, swap)[0].window == (22, 29)
    ((row, agrees),) = rows_of(analysis, swap)
    assert agrees is inside
    assert words in row.said


def test_a_gain_that_is_not_clear_of_zero_says_so(runs, tmp_path):
    analysis, swap = runs.write_analysis_run(tmp_path / "analysis"), runs.write_swap_run(tmp_path / "swap")
    summary = json.loads((swap / "summary.json").read_text())
    for cell in summary["cells"]:
        cell["nll"]["change_high"] = 0.1
    edit(swap / "summary.json", cells=summary["cells"])
    assert "not clear of zero" in page(analysis, swap).text
    for cell in summary["cells"]:
        cell["nll"]["change"] = 0.2
    edit(swap / "summary.json", cells=summary["cells"])
    assert suggested(analysis, swap)[0].findings == ()


def test_the_words_are_honest_and_the_commands_complete(everything):
    text = page(*everything).text
    assert "provisional" in text
    assert "not proof" in text
    assert f"--layers auto:{everything[0]}" in text
    assert re.search(r"midblock merge builtin:smollm2-135m-instruct runs/sft --alphas (0,|1,){29}[01] ", text)


def test_without_an_analysis_the_page_says_what_is_missing(runs, tmp_path):
    text = page(runs.write_probe_run(tmp_path / "probe"), runs.write_swap_run(tmp_path / "swap")).text
    assert "No analysis is among these runs" in text
    assert "midblock analyze builtin:smollm2-135m-instruct runs/sft --data builtin:gsm_symbolic" in text
    assert "midblock probe builtin" not in text.split("How this was made")[0].split("Not looked at yet")[1]


def test_the_headline_joins_what_changed_and_where_it_matters(runs, tmp_path):
    joint = read_joint([runs.write_swap_run(tmp_path / "swap"), runs.write_analysis_run(tmp_path / "analysis")])
    assert headline_of(joint) == (
        "sft changes states most in the upper third (60 %); blocks 12-17 of sft carry most of the gain: put into the "
        "base they raise accuracy by 0.04."
    )
    assert clause("A; b.") == "A"


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"models": 3, "alphas": 1, "cells": {}, "peak": [], "texts": 0}'])
def test_broken_files_beside_the_tables_do_not_matter(runs, tmp_path, broken):
    folders = runs.write_all(tmp_path / "all")
    for folder in folders:
        for name in ("summary.json", "texts.json", "log.jsonl"):
            (folder / name).write_text(broken)
    assert {"early_exit", "steering", "flow", "merge"} <= set(page(*folders).figures)
    for folder in folders:
        assert page(folder)


def test_hostile_text_stays_text(runs, make_tune_run, tmp_path, hostile):
    folders = runs.write_all(tmp_path / "all", text=hostile, tuned=f"sft {hostile}", base=f"hub/{hostile}")
    folders.append(make_tune_run("sft", text=hostile))
    for some in (folders, *[[folder] for folder in folders]):
        text = page_of(read_joint(some) if len(some) > 1 else read_one(some[0]))
        assert hostile not in text
        seen = Page(text)
        assert seen.handlers == []
        assert len(seen.scripts) == 2
    assert "<script>window.hacked=1</script>" in page(*folders).text


def test_references_on_paper(runs, tmp_path):
    """Controls, ranges over samples and emergence depths are in the figures, each once in the legend."""
    analysis = runs.write_analysis_run(tmp_path / "analysis", seeds=4)
    joint = read_joint([analysis, runs.write_probe_run(tmp_path / "probe"), runs.write_steer_run(tmp_path / "steer")])

    def labels(verb, name):
        figure = PAGES[verb].figures[name](joint.of_verb(verb))
        return [text.get_text() for legend in figure.legends for text in legend.get_texts()]

    assert labels("analyze", "change_by_depth").count("range over 4 samples") == 1
    assert labels("steer", "steering").count("random directions of the same norm") == 1
    axes = PAGES["probe"].figures["early_exit"](joint.of_verb("probe")).axes[0]
    triangles = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "^"]
    emergence = [entry["emergence"]["accuracy"]["layer"] for entry in joint.of_verb("probe").runs[0].summary["models"]]
    assert triangles == emergence


def test_single_samples_are_left_out_of_the_page_but_not_of_the_table(runs, tmp_path):
    analysis = runs.write_analysis_run(tmp_path / "analysis", seeds=3)
    metrics = {series["metric"] for series in page(analysis).data["series"]}
    assert "cka_debiased.seeds" in metrics
    assert not [metric for metric in metrics if ".seed1" in metric]
    assert "cka_debiased.seed1" in set(pd.read_csv(analysis / "layers.csv").metric)
