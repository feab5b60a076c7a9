import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.similarity import (
    Pairing,
    Pairs,
    Shuffled,
    cka_debiased_null,
    cka_null,
    cosine_centered_null,
    cosine_similarity_null,
    procrustes_null,
)

PER_PROMPT = ("cosine_similarity", "change_intensity")
SIMILARITY = [name for name in computed_from("pooled", METRICS, paired=True) if name not in PER_PROMPT]

few = settings(deadline=None, max_examples=25)
sizes = st.sampled_from([(6, 20), (20, 6), (8, 8), (9, 2)])
seeds = st.integers(0, 10_000)
CKA = ("cka", "cka_debiased")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=0):
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def related(n, d, seed=0, amount=0.5):
    """A base with a shared direction, as real states have, and a tuned side that differs from it."""
    base = gaussian(n, d, seed=seed) + 3 * gaussian(d, seed=seed + 1)
    return base, base + amount * gaussian(n, d, seed=seed + 2) + amount * gaussian(d, seed=seed + 3)


def of(base, tuned, received=None, wanted=SIMILARITY):
    return {name: float(value) for name, value in values(wanted, Pairs.whole(base, tuned, received)).items()}


def per_prompt(base, tuned):
    return values(PER_PROMPT, Pairs.whole(base, tuned))


def shuffled(base, tuned, orders):
    return Shuffled(Pairing.of(base, tuned), orders)


def biased_cka_with_centring_matrices(X, Y):
    n = len(X)
    H = np.eye(n) - np.ones((n, n)) / n
    K, L = X @ X.T, Y @ Y.T

    def hsic(A, B):
        return np.trace(A @ H @ B @ H) / (n - 1) ** 2

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def debiased_cka_by_song(X, Y):
    """Song et al. 2012, equation 5, its sums over pairs, triples and quadruples written out as loops."""
    n = len(X)
    K, L = X @ X.T, Y @ Y.T

    def hsic(A, B):
        pairs = triples = totals_A = totals_B = 0.0
        for i in range(n):
            for j in range(n):
                if i == j:
                    continue
                pairs += A[i, j] * B[i, j]
                totals_A += A[i, j]
                totals_B += B[i, j]
                for k in range(n):
                    if k != j:
                        triples += A[i, j] * B[j, k]
        return (pairs + totals_A * totals_B / ((n - 1) * (n - 2)) - 2 * triples / (n - 2)) / (n * (n - 3))

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def procrustes_by_scipy(X, Y):
    X, Y = X - X.mean(0), Y - Y.mean(0)
    X, Y = X / np.linalg.norm(X), Y / np.linalg.norm(Y)
    R, _ = scipy.linalg.orthogonal_procrustes(X, Y)
    return np.linalg.norm(X @ R - Y) ** 2


def by_numpy(X, Y, received):
    change, scale = Y - X, np.linalg.norm(X, axis=1).mean()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(X - X.mean(0), Y - Y.mean(0), strict=True)]
    shift = np.linalg.norm(X.mean(0) - Y.mean(0))
    return {
        "cka": biased_cka_with_centring_matrices(X, Y),
        "cka_debiased": debiased_cka_by_song(X, Y),
        "cosine_centered": np.mean(cosines),
        "change_intensity_relative": np.linalg.norm(change, axis=1).mean() / scale,
        "change_increment": np.linalg.norm(change - received, axis=1).mean() / scale,
        "mean_shift": shift,
        "mean_shift_debiased": np.sqrt(max(0, shift**2 - np.cov(change.T).trace() / len(X))),
        "mean_shift_relative": shift / scale,
        "procrustes": procrustes_by_scipy(X, Y),
    }


@few
@given(sizes, seeds, st.sampled_from([0.01, 0.5, 5.0]))
def test_everything_is_numpys_and_scipys(size, seed, amount):
    base, tuned = related(*size, seed=seed, amount=amount)
    received = gaussian(*size, seed=seed + 9)
    expected = by_numpy(base.numpy(), tuned.numpy(), received.numpy())
    assert of(base, tuned, received=received) == pytest.approx(expected, rel=1e-8, abs=1e-11)


@pytest.mark.parametrize("size", [(10, 25), (25, 10)])
def test_an_index_set_gives_what_its_rows_alone_give(size):
    base, tuned = related(*size)
    received = gaussian(*size, seed=7)
    keep = torch.tensor([range(2, size[0]), range(size[0] - 2)])
    found = values(SIMILARITY, Pairs(Pairing.of(base, tuned, received), keep))
    for place, rows in enumerate(keep):
        alone = of(base[rows], tuned[rows], received=received[rows])
        assert {name: float(value[place]) for name, value in found.items()} == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("size", [(5, 30), (30, 5), (64, 64)])
def test_the_base_against_itself_is_exactly_the_same(size):
    base = related(*size)[0]
    found = of(base, base.clone(), received=torch.zeros_like(base))
    assert found.pop("procrustes") == pytest.approx(0, abs=1e-12)
    assert found.pop("cosine_centered") == pytest.approx(1, abs=1e-14)
    assert found == {name: float(name in CKA) for name in found}
    assert len(found) == len(SIMILARITY) - 2


def test_the_base_against_itself_prompt_by_prompt():
    base = related(6, 10)[0]
    values = per_prompt(base, base.clone())
    assert torch.allclose(values["cosine_similarity"], torch.ones(6, dtype=torch.float64), atol=1e-14, rtol=0)
    assert torch.equal(values["change_intensity"], torch.zeros(6, dtype=torch.float64))


@few
@given(sizes, seeds, st.floats(1e-3, 1e3))
def test_geometries_ignore_rotation_scale_and_translation_of_either_side(size, seed, scale):
    base, tuned = related(*size, seed=seed)
    moved = scale * tuned @ rotation(size[1], seed) + 10 * gaussian(size[1], seed=seed + 5)
    names = {*CKA, "procrustes"}
    assert of(base, moved, wanted=names) == pytest.approx(of(base, tuned, wanted=names), rel=1e-6, abs=1e-9)


@few
@given(sizes, seeds, st.floats(1e-3, 1e3))
def test_what_is_relative_ignores_rotation_and_scale_of_both_sides(size, seed, scale):
    base, tuned = related(*size, seed=seed)
    received, R = gaussian(*size, seed=seed + 6), scale * rotation(size[1], seed)
    before = of(base, tuned, received=received)
    for name in ("mean_shift", "mean_shift_debiased"):
        before[name] *= scale
    assert of(base @ R, tuned @ R, received=received @ R) == pytest.approx(before, rel=1e-7, abs=1e-10)


@few
@given(sizes, seeds)
def test_the_order_of_prompts_never_matters(size, seed):
    base, tuned = related(*size, seed=seed)
    received = gaussian(*size, seed=seed + 6)
    flipped = of(base.flip(0), tuned.flip(0), received=received.flip(0))
    assert flipped == pytest.approx(of(base, tuned, received=received), rel=1e-9, abs=1e-12)


@few
@given(sizes, seeds)
def test_similarities_do_not_ask_which_side_is_the_base(size, seed):
    base, tuned = related(*size, seed=seed)
    names = {*CKA, "procrustes", "cosine_centered", "mean_shift"}
    assert of(tuned, base, wanted=names) == pytest.approx(of(base, tuned, wanted=names), rel=1e-9, abs=1e-12)


@few
@given(sizes, seeds)
def test_a_shift_of_all_prompts_is_only_a_shift(size, seed):
    base, shift = related(*size, seed=seed)[0], gaussian(size[1], seed=seed + 4)
    found = of(base, base + shift)
    assert found["mean_shift"] == pytest.approx(float(shift.norm()))
    assert found["mean_shift_relative"] == pytest.approx(found["change_intensity_relative"])
    assert found["cosine_centered"] == pytest.approx(1)
    assert found["cka_debiased"] == pytest.approx(1)
    assert found["procrustes"] == pytest.approx(0, abs=1e-10)


def test_the_debiased_shift_is_the_shift_on_average_however_few_prompts():
    """Squares are compared: the root is cut at 0. The plain shift is too large by tr(Σ)/n."""
    shift, draws, n, width = 0.3, 100, 5, 40
    stream = torch.Generator().manual_seed(0)
    base = torch.zeros(n, width, dtype=torch.float64)
    plain, debiased = [], []
    for _ in range(draws):
        change = torch.randn(n, width, generator=stream, dtype=torch.float64) * 0.01 + shift / width**0.5
        found = of(base, base + change, wanted=("mean_shift", "mean_shift_debiased"))
        plain.append(float(found["mean_shift"]) ** 2)
        debiased.append(float(found["mean_shift_debiased"]) ** 2)
    noise = width * 0.01**2 / n
    assert sum(plain) / draws == pytest.approx(shift**2 + noise, abs=noise / 3)
    assert sum(debiased) / draws == pytest.approx(shift**2, abs=noise / 3)


def test_the_debiased_shift_by_hand():
    wanted, base = ("mean_shift_debiased",), torch.zeros(2, 2)
    change = torch.tensor([[3.0, 0.0], [1.0, 0.0]])  # mean 2, variance 2
    assert of(base, change, wanted=wanted)["mean_shift_debiased"] == pytest.approx(3**0.5)
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert of(base, apart, wanted=wanted)["mean_shift_debiased"] == 0


def test_a_large_shared_mean_does_not_swallow_the_digits():
    base, tuned = related(10, 30)
    found = of(base + 2.0**20, tuned + 2.0**20, wanted=CKA)
    assert found == pytest.approx(of(base, tuned, wanted=CKA), rel=1e-8)


def test_a_change_that_was_received_adds_nothing():
    base, tuned = related(6, 9)
    assert of(base, tuned, received=tuned - base)["change_increment"] == 0


def test_change_that_nobody_received_is_all_added_here():
    base, tuned = related(6, 9)
    found = of(base, tuned, received=torch.zeros_like(base))
    assert found["change_increment"] == found["change_intensity_relative"]


def test_nothing_is_added_where_nothing_is_received():
    assert "change_increment" not in of(*related(6, 9))


def test_doubling_every_state_is_a_change_of_the_bases_own_norm():
    base = gaussian(7, 12)
    found = of(base, 2 * base)
    assert found["change_intensity_relative"] == pytest.approx(1)
    assert found["cka_debiased"] == pytest.approx(1)


@pytest.mark.parametrize("size", [(8, 20), (20, 8)])
def test_opposite_states_have_cosine_minus_one_and_the_same_geometry(size):
    base = gaussian(*size)
    assert of(base, -base)["cosine_centered"] == pytest.approx(-1)
    assert of(base, -base)["procrustes"] == pytest.approx(0, abs=1e-12)
    assert per_prompt(base, -base)["cosine_similarity"].tolist() == pytest.approx([-1] * size[0])


def test_geometries_without_a_common_pattern_are_two_apart():
    # prompts vary in disjoint halves: no rotation of one explains anything of the other
    walk = torch.tensor([1.0, -1, 0, 0]).double()[:, None]
    other = torch.tensor([0.0, 0, 1, -1]).double()[:, None]
    assert of(walk, other)["procrustes"] == pytest.approx(2)
    assert of(walk, other)["cka"] == pytest.approx(0)


@few
@given(sizes, seeds)
def test_procrustes_gives_scipys_disparity(size, seed):
    """scipy also fits a scale s = ‖XᵀY‖_*: its disparity is 1 − s², ours 2 − 2s."""
    base, tuned = related(*size, seed=seed)
    disparity = scipy.spatial.procrustes(base.numpy(), tuned.numpy())[2]
    assert 1 - (1 - of(base, tuned)["procrustes"] / 2) ** 2 == pytest.approx(disparity, abs=1e-10)


@pytest.mark.parametrize(("N", "D", "expected"), [(200, 2048, 0.91), (200, 5120, 0.96)])
def test_independent_gaussians_look_alike_only_to_the_biased_cka(N, D, expected):
    found = of(gaussian(N, D), gaussian(N, D, seed=1), wanted=CKA)
    assert found["cka"] == pytest.approx(expected, abs=0.01)
    assert found["cka_debiased"] == pytest.approx(0, abs=0.02)


def test_debiased_cka_of_unrelated_data_averages_to_zero():
    found = [of(gaussian(8, 30, seed=s), gaussian(8, 30, seed=s + 1000), wanted=CKA)["cka_debiased"] for s in range(80)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error < 0.15


def test_debiased_cka_is_not_defined_for_three_prompts():
    """Its numerator and denominator are then zero but for rounding."""
    base, tuned = related(9, 20)
    keep = torch.combinations(torch.arange(9), 3)
    found = values(CKA, Pairs(Pairing.of(base, tuned), keep))
    assert found["cka_debiased"].isnan().all()
    assert found["cka"].isfinite().all()


@pytest.mark.parametrize("size", [(9, 25), (25, 9)])
def test_permuted_cka_is_that_of_reordered_rows(size):
    base, tuned = related(*size)
    orders = torch.stack([torch.randperm(size[0], generator=torch.Generator().manual_seed(s)) for s in range(5)])
    for name, null in zip(CKA, (cka_null, cka_debiased_null), strict=True):
        expected = [of(base, tuned[order], wanted=CKA)[name] for order in orders]
        assert null(shuffled(base, tuned, orders)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_null_of_related_models_is_near_zero_debiased_and_far_above_it_biased():
    base, tuned = related(40, 200, amount=0.1)
    stream = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(40, generator=stream) for _ in range(100)])
    unrelated = shuffled(base, tuned, orders)
    assert abs(float(cka_debiased_null(unrelated).mean())) < 0.02
    assert float(cka_null(unrelated).mean()) > 0.7
    assert of(base, tuned)["cka_debiased"] > float(cka_debiased_null(unrelated).max()) + 0.5


def test_permuted_cosine_is_that_of_reordered_rows():
    base, tuned = related(7, 12)
    orders = torch.stack([torch.arange(7), torch.arange(7).roll(2)])
    expected = [float(per_prompt(base, tuned[order])["cosine_similarity"].mean()) for order in orders]
    assert cosine_similarity_null(shuffled(base, tuned, orders)).tolist() == pytest.approx(expected)
    expected = [of(base, tuned[order])["cosine_centered"] for order in orders]
    assert cosine_centered_null(shuffled(base, tuned, orders)).tolist() == pytest.approx(expected)


@few
@given(sizes, seeds)
def test_per_prompt_metrics_are_numpys(size, seed):
    base, tuned = related(*size, seed=seed)
    values, X, Y = per_prompt(base, tuned), base.numpy(), tuned.numpy()
    cosines = (X * Y).sum(1) / np.linalg.norm(X, axis=1) / np.linalg.norm(Y, axis=1)
    assert np.allclose(values["cosine_similarity"].numpy(), cosines, rtol=1e-12)
    assert np.allclose(values["change_intensity"].numpy(), np.linalg.norm(X - Y, axis=1), rtol=1e-12)


@few
@given(sizes, seeds)
def test_per_prompt_metrics_turn_and_move_with_the_states(size, seed):
    base, tuned = related(*size, seed=seed)
    R, shift = rotation(size[1], seed), gaussian(size[1], seed=seed + 5)
    before, turned, moved = (
        per_prompt(base, tuned),
        per_prompt(base @ R, tuned @ R),
        per_prompt(base + shift, tuned + shift),
    )
    assert torch.allclose(turned["cosine_similarity"], before["cosine_similarity"])
    assert torch.allclose(turned["change_intensity"], before["change_intensity"])
    assert torch.allclose(moved["change_intensity"], before["change_intensity"])


@pytest.mark.parametrize("name", SIMILARITY)
def test_one_wanted_metric_comes_alone_and_the_same(name):
    base, tuned = related(8, 12)
    received = gaussian(8, 12, seed=5)
    assert of(base, tuned, received=received, wanted={name}) == {name: of(base, tuned, received=received)[name]}


@pytest.mark.parametrize("shape", [(7, 20), (20, 7)])
def test_permuted_procrustes_is_that_of_the_shuffled_rows(shape):
    base, tuned = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    orders = torch.stack([torch.arange(shape[0]), torch.arange(shape[0]).flip(0)])
    expected = [of(base, tuned[order])["procrustes"] for order in orders]
    assert procrustes_null(shuffled(base, tuned, orders)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cka", "cka_debiased", "cosine_centered", "procrustes"])
def test_one_point_for_all_prompts_has_no_geometry(name):
    """Not even that of the rounding of its mean."""
    point = (gaussian(8) / 3).expand(7, 8).clone()
    for base, tuned in ((point, gaussian(7, 8)), (gaussian(7, 8), point), (point, point)):
        assert np.isnan(of(base, tuned)[name])
        null = METRICS[name].null(shuffled(base, tuned, torch.stack([torch.randperm(7) for _ in range(3)])))
        assert null.isnan().all()
