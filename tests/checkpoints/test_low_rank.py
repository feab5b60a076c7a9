import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.checkpoints.low_rank import LowRankDelta


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.floats(-4, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_agrees_with_the_dense_matrix(m, n, r, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    delta = LowRankDelta(torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator), scale)
    dense = delta.dense().numpy()
    assert dense.shape == delta.shape == (m, n)
    assert delta.rank == r
    assert delta.fro() == pytest.approx(np.linalg.norm(dense), rel=1e-10, abs=1e-12)
    singular = delta.singular_values().numpy()
    assert len(singular) == min(m, n, r)
    np.testing.assert_allclose(singular, np.linalg.svd(dense, compute_uv=False)[: len(singular)], atol=1e-10)


def test_closed_form():
    delta = LowRankDelta(torch.eye(5)[:, :2] * 3, torch.eye(4)[:2], -2.0)
    assert delta.fro() == pytest.approx(6 * 2**0.5)
    assert delta.singular_values().tolist() == pytest.approx([6, 6])


def test_untrained_is_zero():
    delta = LowRankDelta(torch.zeros(5, 2), torch.randn(2, 4), 2.0)
    assert delta.fro() == 0
    assert delta.singular_values().tolist() == [0, 0]
    assert delta.dense().dtype == torch.float64
