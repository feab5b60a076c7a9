"""What is due next follows from what was found: selection, both kinds of halving, failures; the same when resumed."""

from typing import Any

import pytest

from midblock.studies.study.rounds import Seen, next_round
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial, trials_of


def play(study: StudyFile, scores: dict[str, float | None], reference: str = "all") -> tuple[list[list[str]], Any]:
    """Carry out rounds with these validation scores (None: it fails); the works of each round, and the last round."""
    trials, seen, played = trials_of(study), dict[str, Seen](), []
    while True:
        now = next_round(study, trials, reference, seen)
        if not now.due:
            return played, now
        played.append([f"{trial.name if trial else BASE}:{'+'.join(stages)}" for trial, stages in now.due])
        for trial, stages in now.due:
            seen[trial.name if trial else BASE] = found(trial, stages, scores, seen)


def found(trial: Trial | None, stages: tuple[str, ...], scores: dict[str, float | None], seen: Any) -> Seen:
    name = trial.name if trial else BASE
    if trial is not None and scores.get(name, 0.0) is None:
        return Seen(failed="out of memory")
    known = seen.get(name, Seen())
    score = scores.get(name, 0.0) if "validate" in stages else known.score
    return Seen(known.stages | set(stages), score)


def study(plan, **changes):
    return StudyFile.of({**plan, **changes})


def test_without_a_choice_each_trial_goes_through_at_once(plan):
    played, last = play(study(plan, analyze={}), {})
    assert played == [["base:evaluate", "all:tune+evaluate+analyze", "010:tune+evaluate+analyze"]]
    assert last.chosen == ("all", "010")


def test_each_arms_best_rate_is_tested_and_no_other(plan):
    grid = {"layers": ["all", "010"], "seed": [0, 1], "learning_rate": [0.1, 0.2]}
    chosen_by = study(plan, grid=grid, select="learning_rate", validate={"num_samples": 4})
    # the higher rate is better for `all` on average, though not with seed 0; of `010` both are alike: the first
    scores = {"all-seed0-lr0.1": 0.5, "all-seed0-lr0.2": 0.4, "all-seed1-lr0.1": 0.1, "all-seed1-lr0.2": 0.6}
    played, last = play(chosen_by, scores)
    assert len(played[0]) == 9
    assert all(each.endswith(":tune+validate") for each in played[0][1:])
    assert played[1:] == [[f"{name}:evaluate" for name in last.chosen]]
    assert last.chosen == ("all-seed0-lr0.2", "all-seed1-lr0.2", "010-seed0-lr0.1", "010-seed1-lr0.1")


def test_a_rate_of_which_a_trial_failed_is_not_chosen(plan):
    grid = {"layers": ["all"], "seed": [0, 1], "learning_rate": [0.1, 0.2]}
    chosen_by = study(plan, grid=grid, select="learning_rate", validate={})
    _, last = play(chosen_by, {"all-seed0-lr0.1": None, "all-seed1-lr0.1": 0.9, "all-seed0-lr0.2": 0.1})
    assert last.chosen == ("all-seed0-lr0.2", "all-seed1-lr0.2")


def test_halving_by_seeds_keeps_the_better_half_and_the_reference(plan):
    layers = ["all", "100", "010", "001"]
    halved = study(plan, grid={"layers": layers, "seed": [0, 1, 2]}, halving="seeds", validate={})
    scores = {"100-seed0": 0.5, "010-seed0": 0.7, "001-seed0": 0.1, "010-seed1": 0.0, "100-seed1": 0.4}
    played, last = play(halved, scores)
    assert [len(each) for each in played] == [5, 3, 9]  # four and the base; two and the reference; all their seeds
    assert played[1] == ["all-seed1:tune+validate", "100-seed1:tune+validate", "010-seed1:tune+validate"]
    assert played[2].count("100-seed2:tune+validate+evaluate") == 1
    assert last.dropped == {("001", ()): 0}
    assert set(last.chosen) == {f"{arm}-seed{seed}" for arm in ("all", "100", "010") for seed in range(3)}


def test_halving_that_keeps_arms_narrows_each_arms_points(plan):
    grid = {"layers": ["all", "010"], "seed": [0, 1, 2], "learning_rate": [0.1, 0.2, 0.3]}
    halved = study(plan, grid=grid, select="learning_rate", halving="seeds", keep_arms=True, validate={})
    scores = {"all-seed0-lr0.3": 0.9, "all-seed0-lr0.2": 0.8, "010-seed0-lr0.1": 0.9, "010-seed0-lr0.3": 0.1}
    played, last = play(halved, scores)
    assert [len(each) - (place == 0) for place, each in enumerate(played[:2])] == [6, 4]
    assert ("all", (0.1,)) in last.dropped
    assert ("010", (0.2,)) in last.dropped
    assert {trial.split("-")[0] for trial in last.chosen} == {"all", "010"}
    assert len(last.chosen) == 6


def test_halving_by_steps_scouts_with_a_quarter_and_a_half(plan):
    halved = study(plan, grid={"layers": ["all", "100", "010", "001"]}, halving="steps", validate={})
    scores = {"100-at0.25": 0.5, "010-at0.25": 0.7, "010-at0.5": 0.9, "all-at0.5": 0.1}
    played, last = play(halved, scores)
    assert [each.split(":")[0] for each in played[0][1:]] == ["all-at0.25", "100-at0.25", "010-at0.25", "001-at0.25"]
    assert [each.split(":")[0] for each in played[1]] == ["all-at0.5", "100-at0.5", "010-at0.5"]
    assert [each.split(":")[0] for each in played[2]] == ["all", "010"]
    assert last.dropped == {("001", ()): 0, ("100", ()): 1}
    assert last.chosen == ("all", "010")


@pytest.mark.parametrize("failing", [None, "100-seed0"])
def test_a_study_resumed_anywhere_decides_the_same(plan, failing):
    """Every trial of every round may have been the last before a kill: the rest, done later, comes to the same."""
    grid = {"layers": ["all", "100", "010"], "seed": [0, 1], "learning_rate": [0.1, 0.2]}
    halved = study(plan, grid=grid, select="learning_rate", halving="seeds", validate={})
    trials = trials_of(halved)
    scores: dict[str, float | None] = {trial.name: (hash_of(trial.name) % 97) / 97 for trial in trials}
    if failing:
        scores[f"{failing}-lr0.1"] = None
    whole = play(halved, scores)[1]
    seen: dict[str, Seen] = {}
    for _ in range(200):  # one work at a time: the round is worked out anew behind each
        now = next_round(halved, trials, "all", seen)
        if not now.due:
            break
        trial, stages = now.due[-1]
        seen[trial.name if trial else BASE] = found(trial, stages, scores, seen)
    assert now == whole


def hash_of(name: str) -> int:
    return sum((place + 1) * ord(letter) for place, letter in enumerate(name))
