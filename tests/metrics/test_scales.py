"""Scales: there and back, by bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.metrics.scales import scale_of


@pytest.mark.parametrize("bounds", [(None, None), (0, None), (None, 1), (0, 1), (-1, 1), (1, None)])
@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5))
def test_there_and_back(bounds, shares):
    values = np.array(shares) * 0.9 if bounds != (1, None) else 1 + np.array(shares)
    there, back = scale_of(values, bounds)
    np.testing.assert_allclose(back(there(values)), values, rtol=1e-9)
    assert (np.diff(there(np.sort(values))) >= 0).all()


def test_by_formula():
    x = np.array([0.2, 0.5])
    np.testing.assert_allclose(scale_of(x, (0, None))[0](x), np.log(x))
    np.testing.assert_allclose(scale_of(x, (None, 1))[0](x), -np.log(1 - x))
    np.testing.assert_allclose(scale_of(x, (-1, 1))[0](x), 2 * np.arctanh(x))


@pytest.mark.parametrize(("values", "bounds"), [([0.0, 0.3], (0, None)), ([1.0, 0.4], (None, 1)), ([1.0, 0.4], (0, 1))])
def test_a_value_on_a_bound_has_no_scale(values, bounds):
    there, back = scale_of(np.array(values), bounds)
    assert there(np.array([7.0])) == back(np.array([7.0])) == 7
