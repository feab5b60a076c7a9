"""Folders called what tables call something else, or full of signs: by every verb, the numbers of plain names."""

import json
import shutil
import unicodedata

import pandas as pd
import pytest

from midblock.base import LayerTable
from midblock.cli.main import main
from midblock.report.gather import read_joint

CPU = ("--device", "cpu")
SEEN = ("--data", "prompts.jsonl", "--num-samples", "8", *CPU)
ANALYZE = (*SEEN, "--num-token-samples", "4", "--metrics", "p1")
STEER = ("--data", "prompts.jsonl", "--num-samples", "4", "--num-directions-samples", "6", "--max-new-tokens", "3",
         "--random-draws", "1", "--no-scan", *CPU)  # fmt: skip
STEPS = ("--data", "prompts.jsonl", "--max-steps", "2", *CPU)
ODD = "=1|2\n\x1b[31m\u202e'\"`<b>,🚀 数学"


def run(*arguments):
    assert main(list(map(str, arguments))) == 0, arguments


def rows(folder, **names):
    """The table, models called by other names; in an order that does not hang on names."""
    frame = LayerTable.read(folder).frame
    frame = frame.assign(model=frame.model.replace(names).astype("string"))
    return frame.sort_values(["model", "metric", "module", "layer"], ignore_index=True)


def assert_same(ours, theirs):
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.fixture
def named(here):
    """The tuned model again under a name of the tables', another one, and one full of signs."""
    for copy in ("base", "base, rounded", ODD):
        shutil.copytree("sft", copy)
    return here


@pytest.mark.parametrize("verb", ["analyze", "probe"])
def test_models_called_as_the_base_have_their_own_numbers(named, verb, capfd):
    options = {"analyze": ANALYZE, "probe": SEEN}[verb]
    shutil.copytree("sft", "dpo")
    run(verb, "start", "sft", "dpo", *options, "-o", "plain")
    run(verb, "start", "base", "base, rounded", *options, "-o", "odd")
    renamed = {"base (tuned)": "sft", "base, rounded (tuned)": "dpo"}
    assert_same(rows("odd", **renamed), rows("plain"))
    capfd.readouterr()
    notes = json.loads((named / "odd" / "run.json").read_text())["notes"]
    assert "base is called base (tuned) in tables and figures." in notes


@pytest.mark.parametrize(("verb", "options"), [("swap", (*SEEN, "--segments", "3")), ("steer", STEER)])
def test_one_model_called_as_the_base(named, verb, options):
    source = ("--from",) if verb == "steer" else ()
    run(verb, "start", *source, "sft", *options, "-o", "plain")
    run(verb, "start", *source, "base", *options, "-o", "odd")
    assert_same(rows("odd", **{"base (tuned)": "sft"}), rows("plain"))
    assert json.loads((named / "odd" / "summary.json").read_text())["tuned"] == "base (tuned)"


def test_runs_that_are_called_as_the_base(here):
    """What a run leaves is called by its folder, and read under that name again."""
    run("tune", "start", *STEPS, "-o", "odd/tuned/base")
    run("flow", "start", *STEPS, "-o", "odd/flow/base")
    run("merge", "start", "sft", "--alphas", "0,1", "-o", "odd/merge/base")
    run("analyze", "start", "odd/tuned/base", "--weights-only", *CPU, "-o", "odd/analysis")
    for folder, name in (
        ("tuned/base", "tuned"),
        ("flow/base", "tuned"),
        ("merge/base", "merged"),
        ("analysis", "tuned"),
    ):
        assert LayerTable.read(f"odd/{folder}").models == [f"base ({name})"], folder
    joint = read_joint(["odd/analysis", "odd/tuned/base", "odd/flow/base", "odd/merge/base"])
    assert joint.table.models[0] == "base (tuned)"
    assert len(joint.table) == sum(len(run.table) for run in joint.runs) - _shared(joint)
    run("report", "odd/analysis", "odd/tuned/base", "odd/flow/base", "odd/merge/base", "--output-dir", "page")
    assert "midblock merge start odd/tuned/base" in (here / "page" / "report.html").read_text()


def _shared(joint):
    keys = ["model", "dataset", "layer", "module", "metric"]
    return int(LayerTable.concatenate(run.table for run in joint.runs).frame.duplicated(keys).sum())


def test_a_lone_model_called_as_the_base(named):
    run("probe", "base", *SEEN, "-o", "odd")
    run("probe", "sft", *SEEN, "-o", "plain")
    assert_same(rows("odd", **{"base (alone)": "sft"}), rows("plain"))


def test_signs_in_a_name_are_shown_and_do_nothing(named, capfd):
    capfd.readouterr()
    run("analyze", "start", ODD, *ANALYZE, "-o", f"runs/{ODD}")
    said = "".join(capfd.readouterr())
    assert not [sign for sign in said if unicodedata.category(sign) in ("Cc", "Cf") and sign != "\n"]
    (name,) = LayerTable.read(f"runs/{ODD}").models[1:]
    assert name == "=1|2\\n\\x1b[31m\\u202e'\"`<b>,🚀 数学"
    assert LayerTable.read(f"runs/{ODD}/layers.csv").models == ["base", name]
    cells = pd.read_csv(f"runs/{ODD}/layers.csv", dtype=str, keep_default_na=False).model
    assert set(cells) == {"base", f"'{name}"}
    run("analyze", "start", "sft", *ANALYZE, "-o", "plain")
    assert_same(rows(f"runs/{ODD}", **{name: "sft"}), rows("plain"))


def test_an_error_is_one_line_whatever_is_in_it(here, failure):
    line = failure("analyze", "start", f"gone/{ODD}", *ANALYZE)
    assert "gone/=1|2\\n\\x1b[31m\\u202e" in line
