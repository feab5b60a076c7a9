"""The pilot finds the third of a base that can learn, within its budget."""

import pytest

from midblock import recommend
from midblock.base import MidblockError

from .conftest import BLOCKS, PLANTED

FAST = {"steps": 8, "num_samples": 16, "max_length": 48, "learning_rate": 0.01, "device": "cpu"}


@pytest.fixture(scope="module")
def piloted(folder):
    told = []
    found = recommend(folder / "planted", data=str(folder / "sums.jsonl"), announce=told.append,
                      output_dir=folder / "pilot", rank_budget=64, **FAST)  # fmt: skip
    return found, told


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
    assert found.cost["seconds"] > 8 * found.cost["step_seconds"] > 0


def test_a_budget_too_small_for_one_step_is_refused_in_one_line(folder):
    with pytest.raises(
        MidblockError, match=r"a budget of 0.001s? is too small for one step: .*--budget \d+s"
    ) as caught:
        recommend(folder / "planted", data=str(folder / "sums.jsonl"), budget="0.001", output_dir=folder / "no", **FAST)
    assert "\n" not in str(caught.value)
    assert not (folder / "no").exists()
