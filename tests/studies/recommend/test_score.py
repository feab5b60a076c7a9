"""Advice scored on sweeps whose best plan is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from midblock.base import MidblockError
from midblock.studies.recommend.score import Advice, score_advice, spearman

PLANS = {"100": [0, 1], "010": [2, 3], "001": [4, 5], "all": [0, 1, 2, 3, 4, 5]}


def sweep(noise=0.0, seeds=3, items=0, **scores):
    r = np.random.default_rng(0)
    keys = [{"seed": seed, **({"item": item} if items else {})} for seed in range(seeds) for item in range(items or 1)]
    return [
        {"plan": plan.strip("_"), "score": score + noise * r.normal(), **key}
        for plan, score in scores.items()
        for key in keys
    ]


ROWS = sweep(_100=0.1, _010=0.6, _001=0.3, all=0.5)


def test_regret_and_correlation_by_hand():
    middle, last = score_advice(
        ROWS,
        PLANS,
        [Advice("middle", (0, 0, 5, 5, 1, 1)), Advice("last", (0, 0, 1, 1, 2, 2))],
        ranked=["100", "010", "001"],
    )
    assert (middle.picked, middle.regret.value, middle.correlation.value) == ("010", 0.0, pytest.approx(1.0))
    assert (last.picked, last.correlation.value) == ("001", pytest.approx(0.5))
    assert last.regret.value == pytest.approx(0.3)
    assert last.regret.low == pytest.approx(last.regret.high) == pytest.approx(0.3)  # seeds agree to the bit


def test_of_losses_the_lowest_is_best():
    (found,) = score_advice(ROWS, PLANS, [Advice("first", (9, 9, 0, 0, 0, 0))], higher_is_better=False)
    assert (found.picked, found.regret.value) == ("100", 0.0)


def test_blocks_are_matched_with_the_plan_most_like_them():
    uniform, wide = score_advice(
        ROWS, PLANS, [Advice("uniform", blocks=tuple(range(6))), Advice("wide", blocks=(2, 3, 4))]
    )
    assert (uniform.picked, uniform.regret.value) == ("all", pytest.approx(0.1))
    assert np.isnan(uniform.correlation.value)
    assert wide.picked == "010"


def test_the_interval_knows_seeds_and_items():
    advice = [Advice("last", (0, 0, 0, 0, 1, 1))]
    (quiet,) = score_advice(sweep(0.01, seeds=8, _100=0.1, _010=0.6, _001=0.3), PLANS, advice)
    (loud,) = score_advice(sweep(0.1, seeds=8, _100=0.1, _010=0.6, _001=0.3), PLANS, advice)
    assert quiet.regret.value == pytest.approx(0.3, abs=0.02)
    assert 5 * (quiet.regret.high - quiet.regret.low) < loud.regret.high - loud.regret.low
    (once,) = score_advice(sweep(seeds=1, _100=0.1, _010=0.6, _001=0.3), PLANS, advice)
    assert np.isnan(once.regret.low)
    (items,) = score_advice(sweep(0.2, seeds=1, items=50, _100=0.1, _010=0.6, _001=0.3), PLANS, advice)
    assert items.regret.low < items.regret.value < items.regret.high


def test_a_trial_that_failed_is_left_out():
    rows = [row for row in ROWS if not (row["plan"] == "010" and row["seed"] == 1)]
    assert score_advice(rows, PLANS, [Advice("last", (0, 0, 0, 0, 1, 1))])[0].regret.value == pytest.approx(0.3)


def test_ranks_as_scipy_has_them():
    r = np.random.default_rng(1)
    for _ in range(10):
        one, other = r.integers(0, 5, 8).astype(float), r.normal(size=8)
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


@pytest.mark.parametrize(
    ("rows", "plans", "advice", "what"),
    [
        ([], PLANS, Advice("a", (1.0,) * 6), "no scores"),
        (ROWS, {"100": [0]}, Advice("a", (1.0,) * 6), "has no blocks"),
        (ROWS + ROWS[:1], PLANS, Advice("a", (1.0,) * 6), "two scores"),
        (ROWS, PLANS, Advice("a", (1.0,) * 3), "advises on 3 blocks"),
    ],
)
def test_what_cannot_be_scored_says_so(rows, plans, advice, what):
    with pytest.raises(MidblockError, match=what):
        score_advice(rows, plans, [advice])
