"""Folders called what tables call something else, or full of signs: by every verb, the numbers of plain names."""

import json
import shutil
import unicodedata

import pandas as pd
import pytest

from midblock.analysis import analyze
from midblock.base import LayerTable
from midblock.checkpoints import load_models, load_pair
from midblock.cli.main import main
from midblock.interventions import merge, probe, steer, swap
from midblock.report.gather import read_joint
from midblock.report.write import page_of
from midblock.tuning import flow, tune

SEEN = {"num_samples": 6, "max_length": 48}
STEER = {**SEEN, "num_directions_samples": 6, "max_new_tokens": 3, "random_draws": 1, "scan": False, "device": "cpu"}
ODD = "=1|2\n\x1b[31m\u202e'\"`<b>,🚀 数学"


@pytest.fixture
def named(here):
    """The tuned model again under names of the tables', under another one, and under one full of signs."""
    for copy in ("dpo", "base", "base, rounded", ODD):
        shutil.copytree("sft", copy)
    return here


def rows(table, **names):
    """The table, models called by other names; in an order that does not hang on names."""
    frame = table.frame.assign(model=table.frame.model.replace(names).astype("string"))
    return frame.sort_values(["model", "metric", "module", "layer"], ignore_index=True)


def assert_same(ours, theirs):
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.parametrize(("verb", "options"), [(analyze, {"num_token_samples": 4, "metrics": "p1"}), (probe, {})])
def test_models_called_as_the_base_have_their_own_numbers(named, verb, options):
    plain, odd = (
        verb(load_pair("start", *names, device="cpu"), "prompts.jsonl", output_dir=place, **SEEN, **options)
        for place, *names in (("plain", "sft", "dpo"), ("odd", "base", "base, rounded"))
    )
    assert_same(rows(odd, **{"base (tuned)": "sft", "base, rounded (tuned)": "dpo"}), rows(plain))
    notes = json.loads((named / "odd" / "run.json").read_text())["notes"]
    assert "base is called base (tuned) in tables and figures." in notes


def test_one_model_called_as_the_base(named):
    plain, odd = (
        swap(load_pair("start", name, device="cpu"), "prompts.jsonl", segments="3", **SEEN) for name in ("sft", "base")
    )
    assert_same(rows(odd, **{"base (tuned)": "sft"}), rows(plain))
    plain, odd = (steer("start", name, "prompts.jsonl", **STEER) for name in ("sft", "base"))
    assert_same(rows(odd, **{"base (tuned)": "sft"}), rows(plain))


def test_a_lone_model_called_as_the_base(named):
    plain, odd = (probe(load_models(name, device="cpu"), "prompts.jsonl", **SEEN) for name in ("sft", "base"))
    assert_same(rows(odd, **{"base (alone)": "sft"}), rows(plain))


def test_runs_that_are_called_as_the_base(here):
    """What a run leaves is called by its folder, read under that name again, and told apart from the base on a page."""
    tune("start", "prompts.jsonl", max_steps=2, device="cpu", output_dir="tuned/base")
    flow("start", "prompts.jsonl", max_steps=2, device="cpu", output_dir="flow/base")
    merge("start", "sft", "0,1", output_dir="merge/base")
    pair = load_pair("start", "tuned/base", device="cpu")
    analyze(pair, "prompts.jsonl", metrics="delta_rel", weights_only=True, output_dir="analysis")
    folders = {"tuned/base": "tuned", "flow/base": "tuned", "merge/base": "merged", "analysis": "tuned"}
    for folder, part in folders.items():
        assert LayerTable.read(folder).models == [f"base ({part})"], folder
        assert any(f"is called base ({part}) in" in note for note in json.loads(read(folder, "run.json"))["notes"])
    joint = read_joint(list(folders))
    assert {"base (tuned)", "base (merged)"} <= set(joint.table.models)
    assert "base" not in joint.table.models
    assert "midblock merge start tuned/base" in page_of(joint)


def read(folder, name):
    with open(f"{folder}/{name}", encoding="utf-8") as file:
        return file.read()


def test_signs_in_a_name_are_shown_and_do_nothing(named, capfd):
    options = ("--num-samples", "6", "--metrics", "cka", "--no-weights", "--device", "cpu")
    assert main(["analyze", "start", ODD, "--data", "prompts.jsonl", *options, "-o", f"runs/{ODD}"]) == 0
    said = "".join(capfd.readouterr())
    assert not [sign for sign in said if unicodedata.category(sign) in ("Cc", "Cf") and sign != "\n"]
    table = LayerTable.read(f"runs/{ODD}")
    name = "=1|2\\n\\x1b[31m\\u202e'\"`<b>,🚀 数学"
    assert table.models == ["base", name]
    assert_same(LayerTable.read(f"runs/{ODD}/layers.csv").frame, table.frame)
    cells = pd.read_csv(f"runs/{ODD}/layers.csv", dtype=str, keep_default_na=False).model
    assert set(cells) == {"base", f"'{name}"}


def test_an_error_is_one_line_whatever_is_in_it(here, failure):
    line = failure("analyze", "start", f"gone/{ODD}", "--data", "prompts.jsonl")
    assert "gone/=1|2" in line
    assert "\\x1b[31m\\u202e" in line
