import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.metrics.top_singular import TOLERANCE
from midblock.metrics.weights import Spaces
from midblock.tuning.anchor.factors import block, factorize, full_rank_names, resolve_k, unsettled

SHAPES = [(40, 24), (24, 40), (32, 32), (200, 16)]


def matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def falling(m: int, n: int, power: float = 0.5) -> torch.Tensor:
    """A matrix whose singular values fall as i^-power, slowly as pretrained ones do."""
    U = torch.linalg.qr(matrix(m, m, seed=1, dtype=torch.float64)).Q
    V = torch.linalg.qr(matrix(n, n, seed=2, dtype=torch.float64)).Q
    size = min(m, n)
    S = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return (U[:, :size] * S) @ V[:, :size].T


@pytest.mark.parametrize(("text", "expected"), [("64", 64), ("0.25", 25), ("0.001", 1), ("1.0", 100), ("500", 100)])
def test_k_is_a_number_or_a_share(text, expected):
    assert resolve_k(text, 100, 300) == resolve_k(text, 300, 100) == expected


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "0.0", "many", "nan", ""])
def test_other_k_are_refused(text):
    with pytest.raises(MidblockError, match="share of min"):
        resolve_k(text, 100, 300)


@given(st.floats(1e-3, 1.0), st.integers(1, 50), st.integers(1, 50))
def test_a_share_never_leaves_the_range(share, m, n):
    assert 1 <= resolve_k(f"{share:.6f}", m, n) <= min(m, n)


def test_which_weights_k_covers_whole():
    shapes = {"q": (576, 576), "k": (192, 576), "experts": (4, 100, 300)}
    assert full_rank_names(shapes, "192") == ("k", "experts")
    assert full_rank_names(shapes, "0.5") == ()
    assert full_rank_names(shapes, "1.0") == ("q", "k", "experts")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 5, 16])
def test_exact_factors_agree_with_svd(shape, k):
    weight = matrix(*shape, dtype=torch.float64)
    factors = factorize(weight, k, seed=0, dtype=torch.float64, exact=True)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(factors.S, S[:k], rtol=1e-10, atol=0)
    torch.testing.assert_close(factors.U @ factors.U.T, U[:, :k] @ U[:, :k].T, rtol=0, atol=1e-9)
    torch.testing.assert_close(factors.V @ factors.V.T, Vh[:k].T @ Vh[:k], rtol=0, atol=1e-9)
    torch.testing.assert_close(factors.core, torch.diag(S[:k]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_factors_are_orthonormal_and_diagonal(shape):
    factors = factorize(matrix(*shape), 12, seed=0)
    assert factors.shape == shape
    assert factors.k == 12
    for side in (factors.U, factors.V):
        torch.testing.assert_close(side.T @ side, torch.eye(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(factors.core, torch.diag(factors.S), rtol=0, atol=1e-5 * float(factors.S[0]))


def test_an_ill_conditioned_weight_still_gives_orthonormal_factors():
    weight = falling(40, 24, power=8.0)  # condition number 1e11: its Gram matrix is singular in float64
    factors = factorize(weight, 24, seed=0, dtype=torch.float64)
    for side in (factors.U, factors.V):
        torch.testing.assert_close(side.T @ side, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-12)
    expected = torch.linalg.svdvals(weight)
    torch.testing.assert_close(factors.S, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(factors.S[:6], expected[:6], rtol=1e-9, atol=0)


@pytest.mark.parametrize("weight", [torch.zeros(20, 8), torch.ones(8, 20)], ids=["zero", "rank one"])
def test_a_weight_of_lower_rank_than_k(weight):
    factors = factorize(weight, 6, seed=0)
    torch.testing.assert_close(factors.V.T @ factors.V, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(factors.S, torch.linalg.svdvals(weight)[:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 240), (240, 300)])
def test_factors_from_a_random_block_are_the_exact_ones(shape):
    weight, k = falling(*shape).float(), 20
    exact, found = (factorize(weight, k, seed=0, dtype=torch.float64, exact=way) for way in (True, False))
    torch.testing.assert_close(found.S, exact.S, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.U @ found.U.T, exact.U @ exact.U.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.V @ found.V.T, exact.V @ exact.V.T, rtol=0, atol=1e-5)
    assert exact.residual == 0 < found.residual <= TOLERANCE


def test_a_low_rank_weight_is_found_exactly():
    weight = matrix(120, 7, dtype=torch.float64) @ matrix(7, 90, seed=1, dtype=torch.float64)
    found = factorize(weight, 7, seed=3, dtype=torch.float64, exact=False)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(weight)[:7], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.U * found.S @ found.V.T, weight, rtol=0, atol=1e-10)


def test_the_seed_decides_the_random_block():
    weight = falling(80, 60).float()
    first, again, other = (factorize(weight, 8, seed=seed, dtype=torch.float64, exact=False) for seed in (1, 1, 2))
    assert torch.equal(first.U, again.U)
    assert not torch.equal(first.U, other.U)
    torch.testing.assert_close(first.U @ first.U.T, other.U @ other.U.T, rtol=0, atol=1e-5)


def test_block_drift_judges_by_the_very_space_that_is_held():
    """A change inside the factors' block is all drift, one outside of it none."""
    weight = falling(60, 40)
    factors = factorize(weight, 6, seed=0, dtype=torch.float64)
    inside = factors.U @ matrix(6, 6, dtype=torch.float64) @ factors.V.T
    anywhere = matrix(60, 40, seed=3, dtype=torch.float64)
    outside = anywhere - factors.U @ (factors.U.T @ anywhere)
    assert Spaces.of(weight, weight + 1e-3 * inside, 6).drift == pytest.approx(1, abs=1e-12)
    assert Spaces.of(weight, weight + 1e-3 * outside, 6).drift == pytest.approx(0, abs=1e-11)


def test_factors_that_did_not_come_to_stand_are_named(monkeypatch):
    weight = falling(80, 60, power=0.01).float()
    monkeypatch.setattr("midblock.metrics.top_singular.RESTARTS", 1)
    poor = factorize(weight, 4, seed=0, exact=False)
    assert unsettled({"poor": poor.transposed.to("cpu"), "exact": factorize(weight, 4, seed=0)}) == ("poor",)


@pytest.mark.parametrize("exact", [True, False])
def test_experts_are_factorised_one_by_one(exact):
    weights = matrix(3, 30, 20)
    together = factorize(weights, 4, seed=0, exact=exact)
    assert together.shape == (3, 30, 20)
    for expert, weight in enumerate(weights):
        alone = factorize(weight, 4, seed=0, exact=exact)
        assert torch.equal(together.U[expert], alone.U)
        assert torch.equal(together.V[expert], alone.V)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_the_core_is_what_the_kept_factors_give(weight_dtype):
    weight = matrix(60, 40, dtype=weight_dtype)
    factors = factorize(weight, 10, seed=0, dtype=torch.bfloat16)
    assert factors.U.dtype == factors.V.dtype == torch.bfloat16
    assert factors.core.dtype == torch.float32
    expected = factors.U.double().T @ weight.double() @ factors.V.double()
    torch.testing.assert_close(factors.core.double(), expected, rtol=0, atol=1e-5)
    rounding = (factors.core - torch.diag(torch.linalg.svdvals(weight.float())[:10])).abs().max()
    assert rounding > 1e-3  # the exact singular values would not be zero at the start


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (2, 30, 50)])
def test_both_orders_of_the_product(shape):
    weight, factors = matrix(*shape, dtype=torch.float64), factorize(matrix(*shape), 4, seed=0, dtype=torch.float64)
    torch.testing.assert_close(block(weight, factors.U, factors.V), factors.U.mT @ weight @ factors.V)


def test_transposed_factors_are_those_of_the_transpose():
    weight = matrix(20, 30, dtype=torch.float64)
    swapped = factorize(weight, 5, seed=0, dtype=torch.float64).transposed
    assert swapped.shape == (30, 20)
    torch.testing.assert_close(swapped.core, swapped.U.T @ weight.T @ swapped.V)


def test_the_weight_is_left_alone_and_out_of_the_graph():
    weight = torch.nn.Parameter(matrix(20, 30))
    before = weight.detach().clone()
    factors = factorize(weight, 5, seed=0)
    assert torch.equal(weight, before)
    assert not factors.core.requires_grad


def test_refusals_name_the_weight():
    with pytest.raises(MidblockError, match="norm has the shape"):
        factorize(torch.ones(3), 1, seed=0, name="norm")
    broken = matrix(4, 5)
    broken[2, 3] = float("nan")
    with pytest.raises(MidblockError, match="q_proj holds values that are not finite"):
        factorize(broken, 2, seed=0, name="q_proj")
