import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics.spectra import entropy, renyi2, subset_spectra

few = settings(deadline=None, max_examples=25)
weights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20).map(lambda w: torch.tensor(w, dtype=torch.float64))


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_entropy_of_equal_weights_is_ln_n(n):
    assert float(entropy(torch.full((n,), 3.0))) == pytest.approx(math.log(n), abs=1e-6)


def test_entropy_of_one_weight_among_zeros_is_zero():
    assert float(entropy(torch.tensor([0.0, 5.0, 0.0]))) == 0


def test_entropy_counts_eigenvalues_rounded_below_zero_as_zero():
    assert torch.equal(entropy(torch.tensor([1.0, 2.0, -1e-9])), entropy(torch.tensor([1.0, 2.0, 0.0])))


def test_entropy_of_nothing_is_undefined():
    assert entropy(torch.zeros(3)).isnan()


@few
@given(weights)
def test_entropy_is_scipys(w):
    assert float(entropy(w)) == pytest.approx(scipy.stats.entropy(w.numpy()), rel=1e-10, abs=1e-12)


@few
@given(weights, st.floats(1e-3, 1e3), st.randoms())
def test_entropy_ignores_scale_and_order(w, scale, random):
    order = random.sample(range(len(w)), len(w))
    assert float(entropy(w[order] * scale)) == pytest.approx(float(entropy(w)), rel=1e-9, abs=1e-12)


def test_entropy_takes_each_row_of_a_batch_alone():
    batch = gaussian(2, 3, 5).abs()
    alone = torch.stack([torch.stack([entropy(row) for row in rows]) for rows in batch])
    assert torch.allclose(entropy(batch), alone)


@few
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_renyi2_is_that_of_the_eigenvalues(n, d, seed):
    X = gaussian(n, d, seed=seed)
    p = np.linalg.svd(X.numpy(), compute_uv=False) ** 2
    p /= p.sum()
    assert float(renyi2(X @ X.T)) == pytest.approx(-math.log((p**2).sum()), abs=1e-10)


@few
@given(st.integers(2, 8), st.integers(1, 8), st.integers(0, 1000))
def test_renyi2_is_at_most_shannons(n, d, seed):
    X = gaussian(n, d, seed=seed)
    gram = X @ X.T
    assert float(renyi2(gram)) <= float(entropy(torch.linalg.eigvalsh(gram))) + 1e-9


@pytest.mark.parametrize(("n", "d"), [(6, 20), (20, 6), (10, 9)])
def test_subset_spectra_are_the_squared_singular_values_of_each_subset(n, d):
    X = gaussian(n, d)
    keep = torch.tensor([range(n - 1), range(1, n)])
    for rows, found in zip(keep, subset_spectra(X, keep), strict=True):
        expected = np.linalg.svd(X[rows].numpy(), compute_uv=False)[::-1] ** 2
        assert np.allclose(found.numpy()[-len(expected) :], expected, rtol=1e-10)
        assert np.allclose(found.numpy()[: -len(expected)], 0)
