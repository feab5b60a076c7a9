"""Advice held against a sweep that a study found: which arms count, and that a planted best plan costs nothing."""

import pytest

from midblock.base import MidblockError
from midblock.studies.study.advice import advice_of, plans_of, smallest
from midblock.studies.study.best import Scores
from midblock.studies.study.results import Result, scores_of
from midblock.studies.study.study import study as run_study
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import trials_of

RIGHT = {"100": 4, "010": 12, "001": 8, "111": 10}
ADVISERS = [
    {"name": "true", "scores": [1.0, 3.0, 2.0], "blocks": [1]},
    {"name": "upside down", "scores": [3.0, 1.0, 2.0], "blocks": []},
    {"name": "everywhere", "scores": [1.0, 1.0, 1.0], "blocks": [0, 1, 2]},
]


def told(right):
    return {"task": "sums", "higher_is_better": True, "values": [1.0] * right + [0.0] * (20 - right),
            "weights": [1.0] * 20, "clusters": [None] * 20}  # fmt: skip


@pytest.fixture
def study(plan):
    return StudyFile.of({**plan, "grid": {"layers": list(RIGHT), "seed": [0, 1], "lora_r": [4]}})


def results(trials):
    found = {"base": Result({"advise": {"advisers": ADVISERS}})}
    for trial in trials:
        plan = trial.options["layers"]
        blocks = [block for block, mark in enumerate(plan) if mark == "1"]
        found[trial.name] = Result(
            {"tune": {"blocks": blocks}, "evaluate": {"tasks": [told(RIGHT[plan] + trial.seed)]}}
        )
    return found


def test_the_planted_best_plan_costs_nothing_and_its_order_is_the_sweeps(study):
    trials = trials_of(study)
    found = results(trials)
    record = advice_of(study, trials, found, scores_of(trials, found, "sums"), "111")
    true, upside, everywhere = record["advisers"]
    assert record["ranked"] == ["100", "010", "001"]
    assert (true["picked"], true["regret"], true["correlation"]) == ("010", 0, 1)
    assert (upside["picked"], upside["correlation"]) == ("100", -1)
    assert upside["regret"] == pytest.approx((12 - 4) / 20)
    assert upside["regret_low"] > 0
    assert (everywhere["picked"], everywhere["regret"]) == ("111", pytest.approx(2 / 20))
    assert everywhere["correlation"] is None or everywhere["correlation"] != everywhere["correlation"]


def test_arms_that_differ_in_more_than_their_blocks_are_no_plans_of_the_sweep(plan):
    grid = {"layers": ["100", "010"], "loss": ["nll", "dft"], "learning_rate": [0.1, 0.2]}
    study = StudyFile.of({**plan, "grid": grid, "select": "learning_rate", "validate": {"num_samples": 4}})
    trials = trials_of(study)
    found = {trial.name: Result({"tune": {"blocks": [0]}}) for trial in trials}
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    assert list(plans_of(study, trials, found, arms, arms[0])) == [arm for arm in arms if "dft" not in arm]


def test_an_option_that_no_pilot_has_is_told_before_anything_runs(here, plan):
    with pytest.raises(MidblockError, match="did you mean 'steps'"):
        run_study({**plan, "advice": {"stepz": 3}}, output_dir="out", dry_run=True)
    assert not (here / "out").exists()


def test_what_cannot_be_scored_says_why(study):
    trials = trials_of(study)
    found = results(trials)
    scores = scores_of(trials, found, "sums")
    assert advice_of(study, trials, {**found, "base": Result()}, scores, "111") is None
    alone = Scores(scores.arms[:1], scores.values[:1], scores.weights, scores.clusters)
    assert "fewer than two" in advice_of(study, trials, found, alone, "111")["why_not"]
    assert smallest({"a": [0], "b": [1], "c": [0, 1, 2, 3]}) == ["a", "b", "c"]
