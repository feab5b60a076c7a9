import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics import top_singular as room
from midblock.metrics.top_singular import EXACT_UP_TO, TOLERANCE, gram_product, is_exact, leading_value, top_singular
from midblock.metrics.weights import Spaces, principal_angles

few = settings(deadline=None, max_examples=10)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def falling(m, n, power):
    """A matrix whose singular values fall as i^-power, its singular vectors anything."""
    U, V = (torch.linalg.qr(gaussian(side, min(m, n), seed=side)).Q for side in (m, n))
    return U * torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -power @ V.T


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 8)])
@pytest.mark.parametrize("exact", [True, False])
def test_triplets_are_numpys(shape, exact):
    W = gaussian(*shape)
    found = top_singular(W, 3, exact=exact)
    expected = np.linalg.svd(W.numpy(), compute_uv=False)[:3]
    assert found.S.tolist() == pytest.approx(expected.tolist())
    for Q in (found.U, found.V):
        assert torch.allclose(Q.T @ Q, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.U.T @ W @ found.V, torch.diag(found.S), atol=1e-8)


@pytest.mark.parametrize("shape", [(320, 260), (260, 320)])
@pytest.mark.parametrize("power", [0.0, 0.1, 0.5, 3.0])
def test_iterated_spaces_are_within_the_residual_that_is_stated(shape, power):
    """Slowly and steeply falling spectra, and all values equal, where any space is right."""
    W = falling(*shape, power)
    found, true = (top_singular(W, 9, exact=exact) for exact in (False, True))
    assert found.residual <= TOLERANCE
    assert true.residual == 0
    assert torch.allclose(found.S, true.S, rtol=1e-8, atol=1e-12)
    if power:
        for ours, theirs in ((found.U, true.U), (found.V, true.V)):
            assert float(principal_angles(ours, theirs).max()) <= found.residual + 1e-7


@few
@given(st.integers(0, 1000))
def test_noise_without_any_law_is_found_too(seed):
    W = gaussian(240, 200, seed=seed)
    found, true = (top_singular(W, 5, exact=exact, seed=seed) for exact in (False, True))
    assert float(principal_angles(found.V, true.V).max()) <= max(found.residual, 1e-7)
    assert found.residual <= TOLERANCE


@pytest.mark.parametrize("rank", [1, 3])
def test_fewer_directions_than_asked_for_are_found_exactly(rank):
    W = gaussian(150, rank) @ gaussian(rank, 120, seed=1)
    found = top_singular(W, 6, exact=False)
    assert torch.allclose(found.S, torch.linalg.svdvals(W)[:6], atol=1e-10)
    assert torch.allclose(found.V.T @ found.V, torch.eye(6, dtype=torch.float64), atol=1e-10)
    assert found.residual <= TOLERANCE


def test_a_matrix_of_zeros_has_some_space():
    found = top_singular(torch.zeros(100, 90), 2, exact=False)
    assert found.S.tolist() == [0, 0]
    assert found.residual == 0


def test_what_does_not_come_to_stand_says_so(monkeypatch):
    W = falling(320, 260, 0.02)
    monkeypatch.setattr(room, "RESTARTS", 1)
    found, true = (top_singular(W, 9, exact=exact) for exact in (False, True))
    assert found.residual > TOLERANCE
    assert float(principal_angles(found.V, true.V).max()) < found.residual


def test_a_value_stands_before_its_direction_does():
    W = torch.diag(torch.cat([torch.full((2,), 3.0), torch.linspace(1, 2, 298)]).double())
    W[0, 0] += 1e-9  # no iteration parts these two
    found = leading_value(gram_product(W), 300)
    assert found.residual <= TOLERANCE
    assert float(found.values[0]) == pytest.approx(9, rel=1e-8)


def test_small_matrices_and_large_shares_of_one_are_exact():
    assert is_exact(EXACT_UP_TO, 1)
    assert not is_exact(EXACT_UP_TO + 1, 64)
    assert is_exact(EXACT_UP_TO + 1, 600)


def test_the_random_block_leaves_the_global_seed_alone():
    W = gaussian(130, 120)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = top_singular(W, 2, exact=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(top_singular(W, 2, exact=False).V, first.V)
    assert not torch.equal(top_singular(W, 2, exact=False, seed=1).V, first.V)


def law(side, within):
    """A weight whose values fall as i^-½ and a change of it, the first `within` directions alike at every size."""
    W = torch.diag(torch.arange(1, side + 1, dtype=torch.float64) ** -0.5)
    tuned = W.clone()
    tuned[:within, :within] += 1e-3 * gaussian(within, within) / within**0.5
    return W, tuned


def test_one_law_gives_one_rotation_on_both_sides_of_the_exact_size(monkeypatch):
    """With 16 extra directions and four power iterations the largest angle came out threefold just beyond."""
    monkeypatch.setattr(room, "EXACT_UP_TO", 256)
    below, beyond = (Spaces.of(*law(side, 256), 8) for side in (256, 264))
    assert below.residual == 0 < beyond.residual <= TOLERANCE
    assert torch.allclose(beyond.angles, below.angles, rtol=1e-3, atol=1e-6)
    assert beyond.drift == pytest.approx(below.drift, rel=1e-6)


def test_a_planted_rotation_is_found_at_real_size():
    """Across the edge of the 64 directions, where neighbours differ by 0.8 % and iterations have most to do."""
    side, k, angle = 2112, 64, 0.01
    W = torch.diag(torch.arange(1, side + 1, dtype=torch.float64) ** -0.5)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tuned = W.clone()
    tuned[k - 1 : k + 1] = turn @ W[k - 1 : k + 1]
    assert not is_exact(side, k)
    found = Spaces.of(W, tuned, k)
    assert found.residual <= TOLERANCE
    assert float(found.angles.max()) == pytest.approx(angle, rel=1e-3)
    assert float(found.angles.sum()) == pytest.approx(angle, rel=1e-2)
