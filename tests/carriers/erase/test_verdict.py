"""Verdicts: what is said of rates that are clear, of rates that are not, and of nulls that do as much."""

import numpy as np
import pytest

from midblock.base import Estimate
from midblock.carriers.erase.verdict import FAILS, UNSAID, WORKS, Judged, claim, coming_back, reach
from midblock.evaluation.paired import Marks


def marks(shown, n=100):
    """So many of n prompts show it."""
    values = np.zeros(n)
    values[:shown] = 1.0
    return Marks(values, np.ones(n), True)


def judged(before, after, random=None, n=100):
    return Judged.of(marks(before, n), marks(after, n), None if random is None else marks(random, n), 0)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (judged(100, 5, 98), WORKS),
        (judged(100, 5), WORKS),  # no null was asked
        (judged(100, 95, 98), FAILS),
        (judged(100, 50, 98), UNSAID),  # about half
        (judged(100, 5, 6), UNSAID),  # a random prompt does as much
        (judged(20, 0, 20), UNSAID),  # hardly there before
        (judged(10, 0, 10, n=10), WORKS),
        (judged(4, 0, 4, n=4), UNSAID),  # too few to say
    ],
)
def test_what_is_said_of_an_effect(effect, verdict):
    assert effect.verdict == verdict


def test_the_change_is_that_of_the_same_prompts():
    effect = judged(90, 10, 80)
    assert (effect.before.value, effect.after.value) == (0.9, 0.1)
    assert effect.change.value == pytest.approx(-0.8)
    assert effect.change.low < -0.8 < effect.change.high < -0.6
    assert effect.against_random.value == pytest.approx(-0.7)
    assert effect.p < 1e-6


@pytest.mark.parametrize(
    ("on_carrier", "on_sft", "said"),
    [
        (WORKS, FAILS, "holds here: the soft prompt works on the carrier and fails on plain SFT"),
        (WORKS, WORKS, "holds by half"),
        (FAILS, WORKS, "does not hold"),
        (FAILS, FAILS, "does not hold"),
        (WORKS, UNSAID, "the evidence does not say: it is open whether it works on plain SFT."),
        (UNSAID, UNSAID, "on the carrier and on plain SFT."),
        (WORKS, None, "needs both models"),
    ],
)
def test_what_is_said_of_the_claim(on_carrier, on_sft, said):
    sft = {} if on_sft is None else {"carrier": on_sft}
    assert said in claim({"carrier": on_carrier}, sft)


def test_the_claim_is_no_wider_than_the_grid():
    carrier, sft = (
        {"carrier": WORKS, "random": FAILS, "none": WORKS},
        {"carrier": FAILS, "random": FAILS, "none": FAILS},
    )
    whole = "P3's claim holds here: the soft prompt works on the carrier and fails on plain SFT."
    assert claim(carrier, sft) == whole
    assert claim(carrier, {**sft, "random": UNSAID}) == whole
    narrow = claim(carrier, {**sft, "none": WORKS})
    assert narrow.startswith("P3's claim holds for the carrier's channels alone")
    assert narrow.endswith("trained on predictions alone, it works on plain SFT, too.")
    assert "random channels or predictions alone" in claim(carrier, {**sft, "none": WORKS, "random": WORKS})
    assert claim({**carrier, "random": WORKS}, sft) == f"{whole} On the carrier it works by random channels, too."
    assert "by random channels" not in claim({**carrier, "carrier": FAILS, "random": WORKS}, sft)


def test_what_works_on_prompts_alike_may_only_hide():
    like, still, half = judged(100, 2), judged(100, 90), judged(100, 50)
    assert reach(like, {"reworded": like, "other": still}).startswith("It only hides the behaviour: on other prompts")
    assert "the evidence does not say" in reach(like, {"reworded": half})
    assert reach(like, {"reworded": like, "other": like}) == "It works on reworded and other prompts, too."
    assert reach(still, {"reworded": still}) == ""


def test_what_comes_back_sooner_was_hidden():
    assert "hidden, not removed" in coming_back(Estimate(-5, -8, -2, 32), before=0.1, never=False)
    assert "later" in coming_back(Estimate(5, 2, 8, 32), before=0.0, never=False)
    assert "does not say" in coming_back(Estimate(-1, -3, 1, 32), before=0.0, never=False)
    assert "in neither" in coming_back(Estimate(0, 0, 0, 32), before=0.0, never=True)


def test_what_never_went_cannot_come_back():
    assert "nothing that could come back" in coming_back(Estimate(-6, -7, -5, 32), before=1.0, never=False)
