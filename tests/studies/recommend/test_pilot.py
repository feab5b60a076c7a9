"""The pilot finds the third of a base that can learn, within its budget."""

from dataclasses import replace

import pytest

from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings
from midblock.data import Example, ExampleSet
from midblock.studies.recommend.pilot import LEAST, Pilot
from midblock.studies.recommend.settings import RecommendSettings

from .conftest import BLOCKS, PLANTED

NOTHING = ExampleSet("nothing", "", "text", (), "")


def test_what_can_learn_is_recommended(piloted):
    found, _ = piloted
    assert found.says, found.reasons
    assert (found.plan.total, found.plan.blocks) == (BLOCKS, tuple(PLANTED))
    assert sum(found.plan.ranks) == 64
    assert len(found.evidence) == 3
    for curve in found.evidence:
        if curve["says"]:
            assert set(range(curve["blocks"][0], curve["blocks"][1] + 1)) <= set(PLANTED), curve["title"]


def test_its_cost_is_told_before(piloted):
    found, told = piloted
    assert len(told) == 1
    assert "8 steps" in told[0]
    assert "% of one tuning of 1,000 steps" in told[0]
    assert found.cost["steps"] == 8
    assert "% of one tuning of 1,000 steps" in found.reasons[-1]
    assert found.cost["seconds"] > 8 * found.cost["step_seconds"] > 0


def test_the_steps_that_a_budget_has_room_for():
    settings = RecommendSettings(steps=100)
    held = replace(NOTHING, examples=tuple(Example(f"{n}") for n in range(40)))
    pilot = Pilot("base", settings, LoadSettings(), NOTHING, held, (), step=2.0, start=10.0, group=2.0, spent=8.0)
    assert pilot.looking == 20
    assert pilot.steps == 81  # what fits into a tenth of 1,000 steps
    assert replace(pilot, group=200.0).steps == LEAST
    assert replace(pilot, settings=replace(settings, steps=5)).steps == 5
    assert replace(pilot, settings=replace(settings, budget="1m")).steps == 11
    assert "11 steps of 2 s each" in replace(pilot, settings=replace(settings, budget="60")).told
    assert "3.0% of one tuning" in replace(pilot, settings=replace(settings, budget="60")).told
    assert len(pilot.modest().held) == 40  # 100 seconds of looking are within half of the tenth
    assert len(replace(pilot, group=20.0).modest().held) == 20
    assert len(replace(pilot, group=200.0).modest().held) == 16
    assert len(replace(pilot, group=200.0, settings=replace(settings, budget="9h")).modest().held) == 40
    with pytest.raises(MidblockError, match=r"39s? is too small for one step: that takes about 40 s \(--budget 41s"):
        replace(pilot, settings=replace(settings, budget="39")).steps  # noqa: B018
