import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics.catalogue import METRICS, columns, computed_from
from midblock.metrics.predictions import Predictions

few = settings(deadline=None, max_examples=25)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def compare_predictions(base, tuned):
    """KL and agreement, a row a prompt."""
    return columns(computed_from("lens", METRICS), Predictions(base, tuned))


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 30), st.integers(0, 1000))
def test_divergence_is_scipys(B, P, V, seed):
    base, tuned = (torch.log_softmax(3 * gaussian(B, P, V, seed=seed + s), -1) for s in (0, 1))
    found = compare_predictions(base, tuned)
    divergence = scipy.stats.entropy(base.exp().numpy(), tuned.exp().numpy(), axis=-1).mean(1)
    agreement = (base.numpy().argmax(-1) == tuned.numpy().argmax(-1)).mean(1)
    assert np.allclose(found.numpy(), np.stack([divergence, agreement], axis=1), rtol=1e-9, atol=1e-12)


def test_a_model_agrees_with_itself():
    base = torch.log_softmax(gaussian(3, 4, 50), -1)
    assert compare_predictions(base, base.clone()).tolist() == [[0, 1]] * 3


def test_divergence_from_a_sure_to_an_even_guess_is_ln_v():
    sure = torch.log_softmax(torch.tensor([[[100.0, 0, 0, 0]]], dtype=torch.float64), -1)
    even = torch.log_softmax(torch.zeros(1, 1, 4, dtype=torch.float64), -1)
    assert compare_predictions(sure, even)[0].tolist() == pytest.approx([np.log(4), 1])


def test_divergence_is_the_bases_from_the_tuned_ones():
    base = torch.tensor([[[0.5, 0.5]]]).double().log()
    tuned = torch.tensor([[[0.9, 0.1]]]).double().log()
    assert float(compare_predictions(base, tuned)[0, 0]) == pytest.approx(0.5 * np.log(0.25 / 0.09))


@few
@given(st.integers(0, 1000))
def test_the_order_of_the_vocabulary_never_matters(seed):
    base, tuned = (torch.log_softmax(gaussian(2, 3, 20, seed=seed + s), -1) for s in (0, 1))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(compare_predictions(base[..., order], tuned[..., order]), compare_predictions(base, tuned))
