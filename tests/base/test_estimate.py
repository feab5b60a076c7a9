import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import Estimate
from midblock.base.bootstrap import quantiles, resample


def test_an_interval_is_cut_at_the_bounds_and_the_value_stays():
    estimate = Estimate(0.9, -0.5, 1.5, 7)
    assert estimate.within((0, 1)) == Estimate(0.9, 0, 1, 7)
    assert estimate.within((None, 1)) == Estimate(0.9, -0.5, 1, 7)
    assert estimate.within((0, None)) == Estimate(0.9, 0, 1.5, 7)


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1000))
def test_a_perplexity_keeps_the_order(a, b, c):
    low, value, high = sorted([a, b, c])
    found = Estimate(value, low, high, 4).exponential()
    assert found.low <= found.value <= found.high
    assert found.n == 4
    assert found.value == (math.exp(value) if value < 700 else math.inf)


def test_draws_give_the_middle_95_percent():
    assert quantiles(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def test_no_interval_is_null_in_json():
    assert Estimate(2.0, math.nan, math.nan, 1).as_record() == {"value": 2.0, "low": None, "high": None}


def test_every_bootstrap_sample_is_as_large_as_the_sample_and_the_same_for_one_seed():
    drawn = resample(7, 3)
    assert (drawn.sum(1) == 7).all()
    assert drawn.mean() == pytest.approx(1)
    assert (resample(7, 3) == drawn).all()
    assert not (resample(7, 4) == drawn).all()
