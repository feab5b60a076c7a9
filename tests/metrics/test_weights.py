import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.top_singular import TOLERANCE
from midblock.metrics.weights import (
    NO_CHANGE,
    PIECE,
    UNTURNED,
    Spaces,
    Spectrum,
    Sums,
    delta_spectral,
    delta_stable_rank,
    principal_angles,
    sums,
)

NORMS, DELTA, ROTATION = (computed_from(source, METRICS) for source in ("weights", "spectrum", "spaces"))

few = settings(deadline=None, max_examples=25)
shapes = st.sampled_from([(6, 6), (12, 5), (5, 12), (2, 9)])
seeds = st.integers(0, 10_000)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(n, k, seed=0):
    return torch.linalg.qr(gaussian(n, k, seed=seed)).Q


def with_spectrum(sigma, m, n, seed=0):
    k = len(sigma)
    return orthonormal(m, k, seed) * torch.tensor(sigma, dtype=torch.float64) @ orthonormal(n, k, seed + 1).T


def norms(base, tuned):
    return values(NORMS, sums(base, tuned))


def delta_metrics(change, **options):
    return values(DELTA, Spectrum.of(change, **options))


def rotation_metrics(base, tuned, rank):
    return values(ROTATION, Spaces.of(base, tuned, rank))


def delta_by_numpy(change):
    sigma = np.linalg.svd(change, compute_uv=False)
    return {
        "delta_spectral": sigma[0],
        "delta_stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "delta_effective_rank": math.exp(scipy.stats.entropy(sigma**2)),
    }


def rotation_by_scipy(base, tuned, k):
    k = max(1, min(k, min(base.shape) // 2))
    U, _, Vt = np.linalg.svd(base)
    U_tuned, _, Vt_tuned = np.linalg.svd(tuned)
    U, V, U_tuned, V_tuned = U[:, :k], Vt[:k].T, U_tuned[:, :k], Vt_tuned[:k].T
    angles = np.concatenate([scipy.linalg.subspace_angles(U, U_tuned), scipy.linalg.subspace_angles(V, V_tuned)])
    change = tuned - base
    return {
        "subspace_rotation_max": angles.max(),
        "subspace_rotation_mean": angles.mean(),
        "block_drift": np.linalg.norm(U.T @ change @ V) / np.linalg.norm(change),
    }


@few
@given(shapes, seeds, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_norms_are_numpys_float64_whatever_the_weights_are_kept_in(shape, seed, dtype):
    base = gaussian(*shape, seed=seed).to(dtype)
    tuned = (base.double() + 0.1 * gaussian(*shape, seed=seed + 1)).to(dtype)
    tuned[0] = base[0]
    before, after = base.double().numpy(), tuned.double().numpy()
    assert norms(base, tuned) == pytest.approx(
        {
            "delta_fro": np.linalg.norm(after - before),
            "delta_rel": np.linalg.norm(after - before) / np.linalg.norm(before),
            "changed_fraction": np.mean(after != before),
        },
        rel=1e-12,
    )


def test_sums_of_pieces_are_those_of_the_whole():
    base, tuned = (torch.rand(PIECE + 1000, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    whole, parts = sums(base, tuned), [sums(base[a:b], tuned[a:b]) for a, b in ((0, 7), (7, 7), (7, PIECE + 1000))]
    total = parts[2] + parts[0] + parts[1]
    assert (total.changed, total.count) == (whole.changed, whole.count) == (PIECE + 1000, PIECE + 1000)
    assert (total.base, total.change) == pytest.approx((whole.base, whole.change), rel=1e-12)
    assert whole.base == pytest.approx(float(base.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads_give_the_same_sums(dtype):
    base, tuned = (torch.randn(3 * PIECE + 5, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    with ThreadPoolExecutor(4) as pool:
        assert sums(base, tuned, each=pool.map) == sums(base, tuned)


@few
@given(shapes, seeds, st.floats(1e-3, 1e3))
def test_norms_scale_and_do_not_ask_for_order(shape, seed, scale):
    base, tuned = gaussian(*shape, seed=seed), gaussian(*shape, seed=seed + 1)
    expected = norms(base, tuned)
    expected["delta_fro"] *= scale
    assert norms((scale * base).T.flip(0), (scale * tuned).T.flip(0)) == pytest.approx(expected)


def test_no_change_is_exactly_none():
    base = gaussian(8, 6)
    assert norms(base, base.clone()) == {"delta_fro": 0, "delta_rel": 0, "changed_fraction": 0}
    assert delta_metrics(base - base.clone()) == {"delta_spectral": 0}
    rotation = rotation_metrics(base, base.clone(), 3)
    assert rotation == {"subspace_rotation_max": 0, "subspace_rotation_mean": 0}
    assert values(DELTA, NO_CHANGE) == {"delta_spectral": 0}
    assert values(ROTATION, UNTURNED) == rotation


def test_a_change_in_the_last_digit_is_a_change():
    base = torch.ones(4)
    tuned = base.clone()
    tuned[2] = torch.nextafter(tuned[2], torch.tensor(2.0))
    found = norms(base, tuned)
    assert found["changed_fraction"] == 0.25
    assert found["delta_fro"] == 2**-23


def test_changed_entries_are_counted_only_if_wanted():
    assert sums(torch.zeros(3), torch.ones(3), changed=False) == Sums(0.0, 3.0, 0, 3)


def test_a_weight_of_zeros_has_no_relative_change_unless_it_stayed():
    assert math.isnan(norms(torch.zeros(3), torch.ones(3))["delta_rel"])
    assert norms(torch.zeros(3), torch.zeros(3)) == {"delta_fro": 0, "delta_rel": 0, "changed_fraction": 0}


@few
@given(shapes, seeds)
def test_spectral_metrics_of_a_change_are_numpys(shape, seed):
    change = gaussian(*shape, seed=seed)
    assert delta_metrics(change) == pytest.approx(delta_by_numpy(change.numpy()), rel=1e-9)


@few
@given(shapes, seeds)
def test_spectral_metrics_of_a_change_ignore_rotation_on_either_side(shape, seed):
    change = gaussian(*shape, seed=seed)
    turned = orthonormal(shape[0], shape[0], seed) @ change @ orthonormal(shape[1], shape[1], seed + 1)
    assert delta_metrics(turned) == pytest.approx(delta_metrics(change), rel=1e-9)


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
@pytest.mark.parametrize("r", [1, 3])
def test_a_change_of_r_equal_directions_has_rank_r(shape, r):
    found = delta_metrics(with_spectrum([0.5] * r, *shape))
    assert found == pytest.approx({"delta_spectral": 0.5, "delta_stable_rank": r, "delta_effective_rank": r})


def test_ranks_of_unequal_directions():
    found = delta_metrics(with_spectrum([2.0, 1.0], 8, 8))
    assert found["delta_stable_rank"] == pytest.approx(5 / 4)
    assert found["delta_effective_rank"] == pytest.approx(math.exp(scipy.stats.entropy([4, 1])))


@few
@given(shapes, seeds)
def test_the_spectrum_alone_gives_the_same(shape, seed):
    change = gaussian(*shape, seed=seed)
    found = values(DELTA, Spectrum.of_values(torch.linalg.svdvals(change)))
    assert found == pytest.approx(delta_metrics(change), rel=1e-9)
    assert values(DELTA, Spectrum.of_values(torch.zeros(3))) == {"delta_spectral": 0}


@few
@given(shapes, seeds, st.sampled_from([1, 2, 64]), st.sampled_from([1e-3, 0.1, 1.0]))
def test_rotations_are_scipys(shape, seed, k, amount):
    base = gaussian(*shape, seed=seed)
    tuned = base + amount * gaussian(*shape, seed=seed + 1)
    found, expected = rotation_metrics(base, tuned, k), rotation_by_scipy(base.numpy(), tuned.numpy(), k)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@few
@given(shapes, seeds)
def test_rotations_ignore_scale_and_a_turn_of_both(shape, seed):
    base = gaussian(*shape, seed=seed)
    tuned = base + 0.2 * gaussian(*shape, seed=seed + 1)
    left, right = orthonormal(shape[0], shape[0], seed), orthonormal(shape[1], shape[1], seed + 1)
    found = rotation_metrics(5 * left @ base @ right, 5 * left @ tuned @ right, 2)
    assert found == pytest.approx(rotation_metrics(base, tuned, 2), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_rotations_of_the_transpose_are_the_same(shape):
    base = gaussian(*shape)
    tuned = base + 0.2 * gaussian(*shape, seed=1)
    assert rotation_metrics(base.T, tuned.T, 3) == pytest.approx(rotation_metrics(base, tuned, 3), rel=1e-8)


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.5, math.pi / 4, 1.2, math.pi / 2])
def test_turning_the_top_singular_vectors_by_an_angle_gives_that_angle(angle):
    U, V = orthonormal(10, 4), orthonormal(12, 4, seed=1)
    sigma = torch.tensor([9.0, 8, 2, 1]).double()
    turned = U.clone()
    turned[:, 0] = math.cos(angle) * U[:, 0] + math.sin(angle) * U[:, 2]
    turned[:, 2] = math.cos(angle) * U[:, 2] - math.sin(angle) * U[:, 0]
    found = rotation_metrics(U * sigma @ V.T, turned * sigma @ V.T, 2)
    # k = 2 left angles (angle, 0) and two right ones, which stayed
    assert found["subspace_rotation_max"] == pytest.approx(angle, rel=1e-5)
    assert found["subspace_rotation_mean"] == pytest.approx(angle / 4, rel=1e-5)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-6, 0.01, 0.78, 0.8, 1.5, math.pi / 2])
def test_principal_angles_keep_their_digits(angle):
    Q = orthonormal(9, 4)
    other = math.cos(angle) * Q[:, :2] + math.sin(angle) * Q[:, 2:]
    assert principal_angles(Q[:, :2], other).tolist() == pytest.approx(
        [angle, angle], rel=1e-3 if angle < 1e-10 else 1e-7
    )


@few
@given(st.integers(1, 4), seeds)
def test_principal_angles_are_scipys(k, seed):
    first, second = orthonormal(9, k, seed), orthonormal(9, k, seed + 1)
    expected = np.sort(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))
    assert np.allclose(principal_angles(first, second).numpy(), expected, atol=1e-7)


def test_principal_angles_of_one_space_in_two_bases_are_zero():
    Q = orthonormal(9, 3)
    assert principal_angles(Q, Q @ orthonormal(3, 3, seed=5)).tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_change_inside_the_top_block_is_all_drift():
    U, V = orthonormal(10, 6), orthonormal(8, 6, seed=1)
    base = U * torch.tensor([9.0, 8, 3, 2, 1, 0.5]).double() @ V.T
    inside = U[:, :2] @ gaussian(2, 2) @ V[:, :2].T
    outside = U[:, 2:] @ gaussian(4, 4) @ V[:, 2:].T
    across = U[:, :2] @ gaussian(2, 4) @ V[:, 2:].T
    assert rotation_metrics(base, base + 0.1 * inside, 2)["block_drift"] == pytest.approx(1)
    assert rotation_metrics(base, base + 0.01 * outside, 2)["block_drift"] == pytest.approx(0, abs=1e-9)
    assert rotation_metrics(base, base + 0.01 * across, 2)["block_drift"] == pytest.approx(0, abs=1e-9)


def test_scaling_a_weight_turns_nothing():
    base = gaussian(10, 8)
    found = rotation_metrics(base, 1.1 * base, 3)
    assert found["subspace_rotation_max"] == pytest.approx(0, abs=1e-7)
    sigma = np.linalg.svd(base.numpy(), compute_uv=False)
    assert found["block_drift"] == pytest.approx(np.linalg.norm(sigma[:3]) / np.linalg.norm(sigma))


def test_of_a_wide_change_only_the_largest_value_is_computed(monkeypatch):
    monkeypatch.setattr("midblock.metrics.top_singular.EXACT_UP_TO", 100)
    found = Spectrum.of(with_spectrum([10.0, 9, 8, 7, 1, 1, 1, 1], 110, 113))
    assert values(DELTA, found) == pytest.approx(
        {"delta_spectral": 10, "delta_stable_rank": (100 + 81 + 64 + 49 + 4) / 100}, rel=1e-10
    )
    assert 0 < found.residual <= TOLERANCE


def test_noise_just_beyond_the_exact_size_has_the_norm_it_has_below():
    """Full-rank noise falls slowest: with four power iterations its σ₁ came out 4 % low."""
    below, beyond = (Spectrum.of(gaussian(side, side, seed=7) / side**0.5) for side in (2048, 2112))
    assert below.whole
    assert not beyond.whole
    assert delta_spectral(beyond) == pytest.approx(delta_spectral(below), rel=0.005)
    assert delta_stable_rank(beyond) * 2048 / 2112 == pytest.approx(delta_stable_rank(below), rel=0.01)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_change_in_pieces_is_the_change(monkeypatch, shape, exact):
    monkeypatch.setattr("midblock.metrics.weights.PIECE", 100)
    monkeypatch.setattr("midblock.metrics.top_singular.EXACT_UP_TO", 32)
    before = gaussian(*shape, seed=0).bfloat16()
    after = (before.double() + with_spectrum([9.0, 4.0, 2.0, 1.0], *shape)).bfloat16()
    expected = delta_metrics(after.double() - before.double(), exact=exact)
    assert values(DELTA, Spectrum.of_pieces(before, after, exact=exact)) == pytest.approx(expected, rel=1e-6)
    assert values(DELTA, Spectrum.of_pieces(before, before)) == {"delta_spectral": 0}
