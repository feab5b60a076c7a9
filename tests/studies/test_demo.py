"""The demo on the embedded model, as small as it gets."""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest

from midblock.base import MidblockError
from midblock.runs.folder import RunFolder
from midblock.runs.record import read_record
from midblock.runs.request import Request
from midblock.runs.where import Where
from midblock.studies.demo import TUNING as FULL
from midblock.studies.demo import demo

pytestmark = pytest.mark.embedded
TUNING = replace(FULL, max_steps=2, num_samples=4, per_device_train_batch_size=2, max_length=160, learning_rate=1e-4)


class Phases:
    """Progress that remembers what was begun."""

    def __init__(self):
        self.titles = []

    def phase(self, title, total):
        self.titles.append(title)
        return lambda amount: None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("reasoning_gym")
    output = tmp_path_factory.mktemp("demo")
    phases = Phases()
    table, folder = demo(output, num_samples=4, tuning=TUNING, device="cpu", progress=phases)
    return output, table, folder, phases.titles


def test_a_tuned_partner_and_an_analysis(made):
    output, table, folder, titles = made
    assert folder == output / "analysis"
    assert sorted(path.name for path in output.iterdir()) == ["analysis", "sft"]
    assert table.models == ["base", "sft"]
    assert table.blocks == 30
    assert titles[0] == "tuning"
    losses = [json.loads(line)["loss"] for line in (output / "sft" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 5 for loss in losses)


def test_the_tuning_shows_in_every_block(made):
    table = made[1]
    weights = table.curve("delta_rel", "sft", "block")
    assert weights.layer.tolist() == list(range(30))
    assert (weights.value > 0).all()
    states = table.curve("change_intensity_relative", "sft")
    assert (states.value[1:] > 0).all()
    assert table.curve("cka_debiased", "sft").value.between(0.9, 1).all()


def test_a_second_run_uses_what_is_there(made):
    output, table, folder, _ = made
    before = {path: os.stat(path).st_mtime_ns for path in output.rglob("*") if path.is_file()}
    phases = Phases()
    again, same = demo(output, num_samples=4, tuning=TUNING, device="cpu", progress=phases)
    assert phases.titles == []
    assert same == folder
    pd.testing.assert_frame_equal(again.frame, table.frame, check_exact=True)
    assert {path: os.stat(path).st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_train_and_held_out_prompts_are_recorded_and_disjoint(made):
    output, _, folder, _ = made
    tuned = read_record(output / "sft")["data"]
    measured = read_record(folder)["data"]
    assert (tuned["split"], measured["split"]) == ("train", "test")
    assert tuned["reference"] == measured["reference"] == "builtin:gsm_symbolic"
    assert tuned["content_hash"] != measured["content_hash"]


@pytest.mark.parametrize("place", ["sft", "analysis"])
def test_other_runs_in_its_place_are_refused_before_anything_is_done(tmp_path, place):
    verb = {"sft": "tune", "analysis": "analyze"}[place]
    own = RunFolder.open(tmp_path / place, Request(verb, {"base": "mine"}), Where())
    own.finish()
    (own.path / "mine.txt").write_text("x")
    phases = Phases()
    with pytest.raises(MidblockError, match=r"holds another run|is of another tuned model") as refused:
        demo(tmp_path, num_samples=4, tuning=TUNING, device="cpu", progress=phases)
    assert "--overwrite makes the demo anew" in str(refused.value)
    assert phases.titles == []
    assert (own.path / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_files_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "mine.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(MidblockError, match=r"is no run folder|was not written by midblock"):
            demo(tmp_path, overwrite=overwrite, num_samples=4, tuning=TUNING, device="cpu")
    assert (tmp_path / "sft" / "mine.txt").exists()
