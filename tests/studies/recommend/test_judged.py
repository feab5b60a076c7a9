"""Curves made by hand: a stretch that stands out is found, and noise says nothing."""

import sys

import numpy as np
import pytest

from midblock.base import Estimate, MidblockError
from midblock.studies.recommend.change_points import as_alike, levels_of, raised
from midblock.studies.recommend.curve import Curve, over_intervals, over_units
from midblock.studies.recommend.judged import judge, judge_all


def curve(values, sd=None, seed=0, **more):
    values = np.asarray(values, float)
    draws, resampled = None, ""
    if sd is not None:
        ends = [Estimate(value, value - 1.96 * sd, value + 1.96 * sd, 8) for value in values.tolist()]
        draws, resampled = over_intervals(ends, seed)
    spans = tuple((block, block) for block in range(len(values)))
    return Curve("analyze", "Own change", "sft", spans, values, draws, resampled, **more)


def third(blocks, low=0.1, high=1.0):
    values = np.full(blocks, low)
    values[blocks // 3 : 2 * blocks // 3] = high
    return values


STEPS = np.repeat([0.1, 1.0, 2.0], 4)
SPIKE = np.where(np.arange(24) == 7, 5.0, 1.0) + 0.1 * np.sin(7.0 * np.arange(24) ** 2)


@pytest.mark.parametrize(
    ("values", "window", "cuts"),
    [
        (third(6), (2, 3), (2, 4)),
        (third(12), (4, 7), (4, 8)),
        (third(32), (10, 20), (10, 21)),
        (np.where(np.isin(np.arange(32), (8, 9, 10, 11)), 1.0, 0.5), (8, 11), (8, 12)),
        (STEPS, (8, 11), (4, 8)),
        (np.exp(np.linspace(0, 3, 24)), (15, 23), None),
        (np.exp(np.linspace(0, 3, 12)), (8, 11), None),
        (SPIKE, (7, 7), (7, 8)),
        (third(12)[::-1] * [1] * 12, (4, 7), (4, 8)),
    ],
)
def test_what_stands_out_is_found(values, window, cuts):
    for sd in (None, 0.02):
        found = judge(curve(values, sd))
        assert found.says, found.why_not
        assert found.window == window
        assert cuts is None or found.cuts == cuts
        assert found.stability is None if sd is None else found.stability >= 0.8


def test_a_flat_curve_has_one_level():
    found = judge(curve(np.full(24, 0.3), 0.05))
    assert (found.says, found.window, found.chance) == (False, None, 1.0)
    assert "one level" in found.why_not
    assert not judge(curve(np.zeros(12))).says
    assert not judge(curve([1.0, 2.0])).says  # two parts have no shape


NOISES = {
    "normal": lambda draw, blocks: 1 + 0.1 * draw.normal(size=blocks),
    "skewed": lambda draw, blocks: draw.exponential(size=blocks),
    "signed": lambda draw, blocks: draw.normal(size=blocks),
}


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("blocks", [6, 12, 24, 32])
def test_noise_says_nothing(kind, blocks):
    draw = np.random.default_rng(blocks)
    said = sum(judge(curve(NOISES[kind](draw, blocks))).says for _ in range(150))
    assert said <= 0.05 * 150 + 2 * (150 * 0.05 * 0.95) ** 0.5


def test_noise_with_its_intervals_says_nothing():
    draw = np.random.default_rng(0)
    said = sum(judge(curve(NOISES["normal"](draw, 24), 0.1, seed)).says for seed in range(30))
    assert said <= 3


def test_several_curves_of_noise_do_not_say_more_than_one():
    draw = np.random.default_rng(1)
    trials = [[curve(NOISES["normal"](draw, 16)) for _ in range(3)] for _ in range(100)]
    assert sum(any(found.says for found in judge_all(each)) for each in trials) <= 0.05 * 100 + 4


def test_what_other_resamples_place_elsewhere_is_not_said():
    values = third(12, 0.5, 1.0)
    assert judge(curve(values, 0.05)).says
    found = judge(curve(values, 1.0))
    assert not found.says
    assert "resampled (the intervals)" in found.why_not


def test_a_loss_is_no_gain():
    low = judge(curve(third(12, -2.0, -1.0), 0.02, gain=True))
    assert (low.window, low.says) == ((4, 7), False)
    assert "no gain" in low.why_not
    assert judge(curve(third(12, -1.0, 1.0), 0.02, gain=True)).says


def test_a_runs_own_doubt_counts():
    found = judge(curve(third(12), 0.02, doubt="no third leads"))
    assert (found.says, found.why_not) == (False, "no third leads")


def test_segments_are_told_as_blocks():
    spans = ((0, 4), (5, 9), (10, 14), (15, 19), (20, 24), (25, 29))
    values = np.array([0.1, 0.1, 1.0, 1.0, 0.1, 0.1])
    found = judge(Curve("swap", "Swap gain", "sft", spans, values))
    assert (found.window, found.cuts) == ((10, 19), (10, 20))
    assert found.curve.by_block(31)[9:11] == [0.1, 1.0]
    assert np.isnan(found.curve.by_block(31)[30])


def test_the_unit_and_the_zero_do_not_matter():
    values = third(24) + 0.1 * np.random.default_rng(0).normal(size=24)
    first = levels_of(values)
    for other in (levels_of(1000 * values), levels_of(values - 50)):
        assert other.window == first.window
        assert other.clearness(values) > 0


def test_without_ruptures_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(MidblockError, match=r"pip install 'midblock\[recommend\]'"):
        judge(curve(third(12)))


def test_neighbours_alike_by_hand():
    assert as_alike(np.arange(12.0)) == 0.001
    assert as_alike(np.array([0.0, 1, 0, 1, 0, 1, 0, 1])) > 0.9


def test_units_are_resampled_whole():
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    drawn = over_units(rows, np.ones(3), 0)
    assert drawn.shape == (200, 2)
    assert np.allclose(drawn[:, 1] - drawn[:, 0], 1)
    assert over_units(rows[:2], np.ones(2), 0) is None


def test_intervals_that_are_missing_are_not_made_up():
    ends = [Estimate(1.0, float("nan"), float("nan"), 3)] * 4
    assert over_intervals(ends, 0) == (None, "")


@pytest.mark.parametrize(
    ("over", "window"),
    [
        ([-1, 2, 2, -1], (1, 2)),
        ([2, -1, -1, 0.5], (0, 0)),
        ([-1, 2, -0.5, 2, -3], (1, 3)),  # a dip is bridged where that pays
        ([0, 1, 0, -1], (1, 1)),  # of equals the shortest
        ([1, -5, 1], (0, 0)),  # of those the first
    ],
)
def test_the_raised_stretch_by_hand(over, window):
    assert raised(np.array(over, float)) == window
