"""Which door is meant, and what runs say: read back from folders, held against each other, written down for `auto:`."""

import json

import numpy as np
import pytest

from midblock import analyze, recommend
from midblock import swap as swapped
from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.checkpoints import Pair
from midblock.studies.recommend.ranks import with_ranks
from midblock.studies.recommend.recommendation import Recommendation, fallback
from midblock.tuning.place.auto import plan_from_run

from .conftest import PLANTED, SUMS, rows, teach, write_rows

L = 12
THIRD = np.where(np.isin(np.arange(L), range(4, 8)), 1.0, 0.1)
NOISE = 1 + 0.1 * np.random.default_rng(5).normal(size=L)


def write(folder, verb, rows=(), summary=None, log=()):
    folder.mkdir()
    LayerTable.from_rows(rows).write(folder)
    (folder / "run.json").write_text(json.dumps({"verb": verb, "status": "done"}))
    (folder / "summary.json").write_text(json.dumps({"headline": "", **(summary or {})}))
    if log:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def curve(metric, values, model="sft", module="residual", half=0.02, **more):
    at = enumerate(np.asarray(values, float).tolist())
    return [LayerRow(model, layer, L, metric, v, 8, v - half, v + half, module=module, **more) for layer, v in at]


@pytest.fixture
def analysis(tmp_path):
    return write(tmp_path / "analysis", "analyze", curve("change_own", THIRD))


def swap(folder, gains, half=0.02, width=1):
    cells = [
        {"host": "base", "donor": "sft", "head": "base_head", "first": width * n, "last": width * n + width - 1,
         "nll": {"value": 2 - g, "change": -g, "change_low": -g - half, "change_high": -g + half,
                 "change_low_of_all": -g - 2 * half, "change_high_of_all": -g + 2 * half}}
        for n, g in enumerate(np.asarray(gains, float).tolist())
    ]  # fmt: skip
    rows = curve("swap_nll_change", -np.asarray(gains), "base", "base_head")[: L // width] if width == 1 else []
    return write(folder, "swap", rows, {"mode": "each" if width == 1 else "segments", "tuned": "sft", "cells": cells})


def flow(folder, norms, steps=8):
    draw = np.random.default_rng(0)
    log = [
        {"step": step + 1, "loss": 1.0, "nll": 1.0, "tokens": 9, "seconds": 1.0, "gradient_by_part": {},
         "gradient_by_block": {str(n): v * (1 + 0.02 * draw.normal()) for n, v in enumerate(norms)}}
        for step in range(steps)
    ]  # fmt: skip
    return write(folder, "flow", curve("gradient_norm", norms, "flow", "block"), log=log)


def test_an_analysis_says_where_and_auto_reads_it(analysis, tmp_path):
    found = recommend(analysis, output_dir=tmp_path / "advice", rank_budget=20)
    assert (found.says, found.plan.blocks, found.door) == (True, (4, 5, 6, 7), "runs")
    assert found.plan.ranks == (5, 5, 5, 5)
    assert found.confidence == 0.5  # all resamples agree, and nothing was exchanged
    assert "Nothing was exchanged to see whether these blocks help" in found.reasons[-1]
    assert "Own change of sft stands out in blocks 4–7" in found.reasons[0]
    assert "(the intervals)" in found.reasons[0]
    assert plan_from_run(tmp_path / "advice", L) == found.plan
    assert recommend(analysis, output_dir=tmp_path / "advice", rank_budget=20, resume=True) == found
    with pytest.raises(MidblockError, match="is about a model of 12 blocks; this one has 6"):
        plan_from_run(tmp_path / "advice", 6)


@pytest.mark.parametrize("values", [NOISE, np.full(L, 0.3)], ids=["noise", "flat"])
def test_where_nothing_is_said_the_fallback_is_named(tmp_path, values):
    run = write(tmp_path / "run", "analyze", curve("change_own", values, half=0.1))
    found = recommend(run, output_dir=tmp_path / "advice")
    assert (found.says, found.confidence, found.plan) == (False, 0.0, fallback(L))
    assert "does not say which blocks" in found.headline
    assert "2604.11838" in found.headline
    assert "20–80 %" in found.headline
    assert found.as_record()["fallback"]
    assert plan_from_run(tmp_path / "advice", L).blocks == tuple(range(2, 10))


def test_runs_that_agree_and_runs_that_do_not(analysis, tmp_path):
    agreeing = recommend(analysis, swap(tmp_path / "swap", THIRD), flow(tmp_path / "flow", THIRD))
    assert agreeing.plan.blocks == (4, 5, 6, 7)
    assert sum(", too." in reason for reason in agreeing.reasons) == 2
    against = recommend(analysis, swap(tmp_path / "other", np.roll(THIRD, 4)))
    assert against.plan.blocks == (8, 9, 10, 11)  # what helps counts before what is seen
    assert any("The evidence disagrees: own change of sft points at blocks 4–7" in each for each in against.reasons)
    assert against.confidence < 0.6 < agreeing.confidence
    silent = recommend(analysis, swap(tmp_path / "noise", NOISE - 1, half=0.1))
    assert any("Swap gain of sft does not say where" in reason for reason in silent.reasons)


def test_a_swap_of_segments_leaves_the_blocks_to_a_curve_that_agrees(analysis, tmp_path):
    found = recommend(analysis, swap(tmp_path / "other", [0.3, 0.3, 0.0, 0.0, 0.0, 0.0], width=2))
    assert found.plan.blocks == (0, 1, 2, 3)
    found = recommend(analysis, swap(tmp_path / "wide", [0.0, 0.0, 0.3, 0.3, 0.3, 0.0], width=2))
    assert found.plan.blocks == (4, 5, 6, 7)
    assert found.reasons[0].startswith("Own change")
    assert any("Swap gain of sft points at blocks 4–9, too" in each for each in found.reasons)


def test_each_kind_of_run_finds_the_planted_third(tmp_path):
    for found in (
        recommend(swap(tmp_path / "swap", THIRD)),
        recommend(flow(tmp_path / "flow", THIRD)),
        recommend(write(tmp_path / "weights", "analyze", curve("delta_rel", THIRD, module="block"))),
    ):
        assert (found.says, found.plan.blocks) == (True, (4, 5, 6, 7)), found.reasons
    assert "(steps)" in recommend(tmp_path / "flow").reasons[0]
    assert not recommend(swap(tmp_path / "harm", THIRD - 2)).says  # where putting in does least harm is no gain


def test_a_probe_alone_has_no_curve_and_beside_an_analysis_it_is_heard(analysis, tmp_path):
    models = [{"name": name, "emergence": {"accuracy": {"layer": at, "low": at - 1, "high": at + 1}}}
              for name, at in (("base", 10), ("sft", 5))]  # fmt: skip
    probe = write(tmp_path / "probe", "probe", curve("exit_accuracy", THIRD), {"models": models})
    alone = recommend(probe)
    assert (alone.says, alone.reasons) == (False, ("No curve by depth is among what was given.",))
    assert any("The early exit of sft points at block 5, too" in each for each in recommend(analysis, probe).reasons)


def test_of_several_tuned_models_one_counts(tmp_path):
    rows = curve("change_own", THIRD) + curve("change_own", np.roll(THIRD, -4), "other")
    run = write(tmp_path / "run", "analyze", rows)
    assert recommend(run).plan.blocks == (4, 5, 6, 7)
    assert recommend(run, tuned_name="other").plan.blocks == (0, 1, 2, 3)
    with pytest.raises(MidblockError, match=r"tuned model 'othr'.*other"):
        recommend(run, tuned_name="othr")


@pytest.mark.parametrize(
    ("about", "more", "what"),
    [
        ((), {}, "nothing is given"),
        (("BASE",), {}, "no data is given"),
        (("BASE",), {"general": "g"}, "one model and general data"),
        (("BASE", "TUNED"), {"data": "d"}, "two models and no general data"),
        (("A", "B", "C"), {"data": "d"}, "3 models"),
        (("RUN",), {"data": "d"}, "take no data"),
        (("RUN", "BASE"), {}, "is no run that tells"),
    ],
)
def test_what_means_no_door_names_them(analysis, about, more, what):
    with pytest.raises(MidblockError, match=what) as caught:
        recommend(*(str(analysis) if each == "RUN" else each for each in about), **more)
    assert "BASE TUNED --general DATA" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_that_cannot_be_read_say_so(analysis, tmp_path):
    recommend(analysis, output_dir=tmp_path / "advice")
    with pytest.raises(MidblockError, match="does not tell which blocks to tune"):
        recommend(tmp_path / "advice")
    tuning = write(tmp_path / "tuning", "tune", curve("gradient_norm", THIRD))
    with pytest.raises(MidblockError, match="tuning is no run that tells about depth, and no data is given"):
        recommend(tuning)  # a model reference
    rows = [LayerRow("sft", layer, 6, "change_own", 1.0, 8) for layer in range(6)]
    with pytest.raises(MidblockError, match=r"12 blocks.*one of 6"):
        recommend(analysis, write(tmp_path / "shallow", "analyze", rows))
    (analysis / "run.json").write_text(json.dumps({"verb": "analyze", "status": "running"}))
    with pytest.raises(MidblockError, match="is not finished"):
        recommend(analysis)


@pytest.mark.parametrize(
    ("budget", "scores", "ranks"),
    [
        (6, [9, 1, 1, 1], (2, 2, 2)),
        (10, [0, 4, 2, 1], (5, 3, 2)),
        (3, [0, 5, 1, 1], (1, 1, 1)),
        (7, [0, -1, -1, 0], (3, 2, 2)),
    ],
)
def test_ranks_by_hand(budget, scores, ranks):
    plan = fallback(5).only({1, 2, 3})
    made = with_ranks(plan, [*scores, 0], budget)
    assert made.ranks == ranks
    assert sum(made.ranks) == budget
    assert with_ranks(plan, scores, None) == plan


@pytest.mark.parametrize("option", [{"budget": "5m"}, {"keep": 0.5}, {"steps": 3}, {"test": "sums.jsonl"}])
def test_an_option_of_another_door_is_refused(analysis, option):
    with pytest.raises(MidblockError, match=rf"{next(iter(option))} is about recommending from a (pilot|repair)"):
        recommend(analysis, **option)


def test_a_budget_below_rank_one_is_refused(analysis):
    with pytest.raises(MidblockError, match="rank budget of 3"):
        recommend(analysis, rank_budget=3)


@pytest.mark.parametrize(
    "change",
    [{"blocks": []}, {"blocks": [5, 4]}, {"blocks": [12]}, {"ranks": [1]}, {"ranks": [0] * 4}, {"total": None}],
)
def test_a_broken_recommendation_is_no_plan(analysis, tmp_path, change):
    recommend(analysis, output_dir=tmp_path / "advice")
    file = tmp_path / "advice" / "recommendation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MidblockError, match="is broken"):
        plan_from_run(tmp_path / "advice", L)


def test_a_record_is_read_back_as_it_was(analysis):
    found = recommend(analysis)
    assert Recommendation.of_record(json.loads(json.dumps(found.as_record())), "it") == found
    with pytest.raises(MidblockError, match="it is no recommendation"):
        Recommendation.of_record({"says": True}, "it")


def test_a_model_tuned_in_one_third_is_found_from_its_runs(deep, tokenizer, tmp_path):
    file = write_rows(tmp_path / "sums.jsonl", rows(32, SUMS))
    pair = Pair.of_models(deep, {"sft": teach(deep, tokenizer, [file], 5, PLANTED)}, tokenizer)
    seen = {"num_samples": 24, "max_length": 32}
    analyze(pair, str(file), metrics="change_own", num_token_samples=24, output_dir=tmp_path / "analysis", **seen)
    swapped(pair, str(file), segments="each", heads="base", output_dir=tmp_path / "swap", **seen)
    for runs in (("analysis",), ("swap",), ("analysis", "swap")):
        found = recommend(*(tmp_path / run for run in runs))
        assert (found.says, found.plan.blocks) == (True, tuple(PLANTED)), (runs, found.reasons)
