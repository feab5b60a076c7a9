"""From a file to its trials: their names, arms and options; and what cannot be one."""

import pytest

from midblock.base import MidblockError
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, check_trials, reference_arm, trials_of


def trials(plan, **changes):
    study = StudyFile.of({**plan, **changes})
    return study, trials_of(study)


def test_every_combination_once_in_order(plan):
    grid = {"layers": ["11111", "01100"], "seed": [0, 1], "learning_rate": [0.1, 0.003]}
    study, found = trials(plan, grid=grid, select="learning_rate", validate={"num_samples": 4})
    assert [trial.name for trial in found[:3]] == ["11111-seed0-lr0.1", "11111-seed0-lr0.003", "11111-seed1-lr0.1"]
    assert len(found) == 8
    assert [(trial.arm, trial.seed, trial.point) for trial in found[-2:]] == [
        ("01100", 1, (0.1,)),
        ("01100", 1, (0.003,)),
    ]
    assert found[-1].options == {**plan["tune"], "layers": "01100", "seed": 1, "learning_rate": 0.003}
    assert reference_arm(study, found) == "11111"


def test_what_does_not_vary_is_not_in_names(plan):
    _, found = trials(plan, grid={"layers": ["0-1"], "loss": ["nll"], "method": ["lora", "full"]})
    assert [trial.name for trial in found] == ["0-1-lora", "0-1-full"]


def test_further_arms_go_through_seeds_and_rates_too(plan):
    grid = {"layers": ["all"], "seed": [0, 1], "learning_rate": [0.1, 0.2]}
    more = [{"name": "held", "layers": "010", "anchor": "rpsft", "anchor_k": "4"}, {"name": "once", "seed": 7}]
    _, found = trials(plan, grid=grid, select=["learning_rate"], validate={}, trials=more)
    names = [trial.name for trial in found]
    assert names[4:8] == ["held-seed0-lr0.1", "held-seed0-lr0.2", "held-seed1-lr0.1", "held-seed1-lr0.2"]
    assert names[8:] == ["once-lr0.1", "once-lr0.2"]
    assert found[-1].seed == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"layer": ["all"]}}, "unknown key of the grid 'layer' (did you mean 'layers'?)"),
        ({"tune": {"max_step": 1}}, "unknown option 'max_step' (did you mean 'max_steps'?)"),
        ({"trials": [{"name": "a", "losss": "nll"}]}, "unknown option of a trial 'losss' (did you mean 'loss'?)"),
        ({"grid": {}}, "the study has no trials"),
        ({"grid": {"layers": ["all", "all"]}}, "all is the name of two trials"),
        ({"grid": {"layers": ["0,4,2", "0-4-2"]}}, "0-4-2 is the name of two trials"),
        ({"trials": [{"name": "ALL", "layers": "010"}]}, "ALL is the name of two trials"),
        ({"trials": [{"name": "base"}]}, "base is the base's own name"),
        ({"trials": [{"name": "../up"}]}, "a trial's name is '../up'"),
        ({"trials": [{"layers": "010"}]}, "a trial has no name"),
        ({"grid": {"push_to_hub": [True]}}, "push_to_hub is not for studies"),
        ({"grid": {"layers": ["all"], "seed": list(range(10_001))}}, "the study has 10,001 trials"),
        ({"grid": {"layers": ["all"], "seed": ["one"]}}, "seed is 'one'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(plan, changes, message):
    with pytest.raises(MidblockError) as raised:
        trials(plan, **changes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"layers": ["all", "10101010"]}}, "trial 10101010: the layer plan '10101010' has 8 segments"),
        ({"grid": {"layers": ["all"], "loss": ["nll", "nl"]}}, "trial all-nl: unknown loss 'nl'"),
        ({"grid": {"layers": ["all"], "learning_rate": [0.1, -1]}}, "trial all-lr1: learning_rate is -1"),
        ({"grid": {"layers": ["all"], "max_steps": [1, "two"]}}, "trial all-max_stepstwo: "),
    ],
)
def test_what_tune_would_refuse_is_told_before_anything_runs(here, plan, changes, message):
    study, found = trials(plan, **changes)
    with pytest.raises(MidblockError) as raised:
        check_trials(study, found)
    assert str(raised.value).startswith(message)


def test_the_reference_is_named_or_tunes_all_blocks(plan):
    study, found = trials(plan, reference="010")
    assert reference_arm(study, found) == "010"
    study, found = trials(plan, grid={"layers": ["010"]})
    assert reference_arm(study, found) == BASE
    study, found = trials(plan, reference="0100")
    with pytest.raises(MidblockError, match=r"unknown arm to refer to '0100' \(did you mean '010'\?\)"):
        reference_arm(study, found)
