import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from midblock.metrics import geometry
from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.geometry import Pooled, States, gini_of, intrinsic_dimension

GEOMETRY = [name for name in computed_from("pooled", METRICS, paired=False) if name != "l2_norm"]

few = settings(deadline=None, max_examples=25)
sizes = st.sampled_from([(8, 20), (20, 8), (9, 9), (5, 2)])
seeds = st.integers(0, 10_000)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(n, d, seed=0):
    """n×d with orthonormal rows or columns, whichever are fewer."""
    Q = torch.linalg.qr(gaussian(max(n, d), min(n, d), seed=seed)).Q
    return Q if n >= d else Q.T


def with_spectrum(sigma, n, d, seed=0):
    k = len(sigma)
    return orthonormal(n, k, seed) * torch.tensor(sigma, dtype=torch.float64) @ orthonormal(k, d, seed + 1)


def of(X, wanted=GEOMETRY):
    return {name: float(value) for name, value in values(wanted, Pooled.whole(X)).items()}


def by_numpy(X):
    """Every metric of the room, written out."""
    N, D = X.shape

    def spectral_entropy(A):
        return scipy.stats.entropy(np.linalg.svd(A, compute_uv=False) ** 2)

    norms = np.linalg.norm(X, axis=1)
    sigma = np.linalg.svd(X, compute_uv=False)
    distance = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(X).kneighbors(X)[0]
    rank = math.exp(spectral_entropy(X))
    return {
        "dataset_entropy": spectral_entropy(X / norms[:, None]) / math.log(min(N, D)),
        "effective_rank": rank,
        "effective_rank_normalized": rank / min(N, D),
        "effective_rank_centered": math.exp(spectral_entropy(X - X.mean(0))),
        "spectral_norm": np.linalg.norm(X, 2),
        "condition_number": np.linalg.cond(X),
        "rank_deficiency": np.mean(sigma <= 0.01 * sigma[0]),
        "gini": np.abs(norms[:, None] - norms).mean() / (2 * norms.mean()),
        "intrinsic_dimension": N / np.log(distance[:, 2] / distance[:, 1]).sum(),
    }


@few
@given(sizes, seeds)
def test_everything_is_numpys_scipys_and_sklearns(size, seed):
    X = gaussian(*size, seed=seed) + gaussian(size[1], seed=seed + 1)
    assert of(X) == pytest.approx(by_numpy(X.numpy()), rel=1e-6)


@pytest.mark.parametrize("size", [(12, 30), (30, 12), (14, 13)])
def test_an_index_set_gives_what_its_rows_alone_give(size):
    X = gaussian(*size)
    keep = torch.tensor([range(1, size[0]), range(size[0] - 1)])
    found = values(GEOMETRY, Pooled(States.of(X), keep))
    for place, rows in enumerate(keep):
        assert {name: float(value[place]) for name, value in found.items()} == pytest.approx(of(X[rows]), rel=1e-7)


@few
@given(sizes, seeds)
def test_rotation_and_order_of_prompts_never_matter(size, seed):
    X = gaussian(*size, seed=seed)
    other = X.flip(0) @ orthonormal(size[1], size[1], seed)
    assert of(other) == pytest.approx(of(X), rel=1e-6)


@few
@given(sizes, seeds, st.floats(1e-4, 1e4))
def test_scale_matters_to_the_spectral_norm_only(size, seed, scale):
    X = gaussian(*size, seed=seed)
    before, after = of(X), of(scale * X)
    before["spectral_norm"] *= scale
    assert after == pytest.approx(before, rel=1e-6)


@few
@given(sizes, seeds, st.sampled_from([1.0, 1e6]))
def test_a_shared_mean_does_not_move_centred_rank_and_dimension(size, seed, shift):
    X = gaussian(*size, seed=seed)
    moved = X + shift * gaussian(size[1], seed=seed + 1)
    for name in ("effective_rank_centered", "intrinsic_dimension"):
        assert of(moved)[name] == pytest.approx(of(X)[name], rel=1e-6)


@few
@given(sizes, seeds)
def test_dataset_entropy_ignores_each_prompts_norm(size, seed):
    X = gaussian(*size, seed=seed)
    scaled = X * torch.arange(1, size[0] + 1)[:, None]
    assert of(scaled)["dataset_entropy"] == pytest.approx(of(X)["dataset_entropy"], rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(6, 6), (6, 20)])
def test_orthonormal_rows_are_as_spread_as_can_be(n, d):
    assert of(orthonormal(n, d), wanted=[name for name in GEOMETRY if name != "intrinsic_dimension"]) == pytest.approx(
        {
            "dataset_entropy": 1,
            "effective_rank": n,
            "effective_rank_normalized": 1,
            "effective_rank_centered": n - 1,
            "spectral_norm": 1,
            "condition_number": 1,
            "rank_deficiency": 0,
            "gini": 0,
        },
        abs=1e-12,
    )


def test_parallel_rows_have_rank_one_and_no_entropy():
    found = of(torch.arange(1, 7)[:, None] * gaussian(10))
    assert found["dataset_entropy"] == pytest.approx(0, abs=1e-12)
    assert found["effective_rank"] == pytest.approx(1)
    assert found["effective_rank_centered"] == pytest.approx(1)


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("size", [(12, 40), (40, 12)])
def test_r_equal_directions_have_effective_rank_r(r, size):
    found = of(with_spectrum([3.0] * r, *size))
    assert found["effective_rank"] == pytest.approx(r)
    assert found["effective_rank_normalized"] == pytest.approx(r / 12)
    assert found["condition_number"] == pytest.approx(1)
    assert found["rank_deficiency"] == pytest.approx(1 - r / 12)


@pytest.mark.parametrize("size", [(4, 30), (30, 4)])
@pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-6, 1e-9])
def test_a_known_spectrum_gives_its_norm_condition_and_deficiency(size, smallest):
    found = of(with_spectrum([7.0, 5.0, 0.071, 7 * smallest], *size))
    assert found["spectral_norm"] == pytest.approx(7)
    # of σ ≤ 1 % of the largest; 0.071 is a little more
    assert found["rank_deficiency"] == (0 if smallest > 0.01 else 0.25)
    assert found["condition_number"] == pytest.approx(max(1 / smallest, 7 / 0.071), rel=1e-3)


def test_the_outlier_direction_hides_the_rest_only_uncentred():
    X = orthonormal(8, 40) + 1000 * gaussian(40, seed=1)
    assert of(X)["effective_rank"] < 1.01
    assert of(X)["effective_rank_centered"] > 6.9


def test_gini_closed_forms():
    assert float(gini_of(torch.full((1, 5), 2.0))) == pytest.approx(0, abs=1e-12)
    assert float(gini_of(torch.tensor([[0.0, 0, 0, 9]]))) == pytest.approx(3 / 4)
    assert float(gini_of(torch.tensor([[3.0, 1, 2]]))) == pytest.approx(2 / 9)


@pytest.mark.parametrize("true", [1, 2, 3])
def test_two_nn_finds_the_dimension_of_a_uniform_sheet_in_high_d(true):
    sheet = torch.rand(1500, true, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = sheet @ orthonormal(true, 40)
    assert float(intrinsic_dimension(Pooled.whole(X))) == pytest.approx(true, rel=0.12)


def test_two_nn_of_three_points_on_a_line():
    # nearest 1, 1, 2; second nearest 3, 2, 3
    X = torch.tensor([[0.0], [1.0], [3.0]]).double()
    expected = 3 / (math.log(3) + math.log(2) + math.log(1.5))
    assert float(intrinsic_dimension(Pooled.whole(X))) == pytest.approx(expected)


def test_two_nn_counts_a_point_once_however_often_it_comes():
    X = torch.tensor([[0.0], [1.0], [3.0], [100.0], [100.0]]).double()
    expected = 4 / (math.log(3) + math.log(2) + math.log(1.5) + math.log(99 / 97))
    assert float(intrinsic_dimension(Pooled.whole(X))) == pytest.approx(expected)


@few
@given(st.integers(1, 12), seeds)
def test_two_nn_of_copies_is_that_of_the_different_rows(copies, seed):
    X = gaussian(12, 5, seed=seed) + 100
    twice = torch.cat([X, X[:copies]])[torch.randperm(12 + copies, generator=torch.Generator().manual_seed(seed))]
    expected = by_numpy(X.numpy())["intrinsic_dimension"]
    assert float(intrinsic_dimension(Pooled.whole(twice))) == pytest.approx(expected)
    assert float(intrinsic_dimension(Pooled.whole(twice * (1 + 1e-15)))) == pytest.approx(expected)


def test_two_nn_of_index_sets_with_copies_is_that_of_their_different_rows():
    X = gaussian(9, 4)
    X[7], X[8] = X[0], X[1]
    keep = torch.tensor([[0, 1, 2, 3, 4, 7], [2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 5, 6]])
    whole = Pooled(States.of(X), keep)
    different = [[0, 1, 2, 3, 4], [2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 5, 6]]
    expected = [float(intrinsic_dimension(Pooled.whole(X[rows]))) for rows in different]
    assert intrinsic_dimension(whole).tolist() == pytest.approx(expected)


def test_what_is_no_geometry_is_nan_and_no_rounding():
    """Rows that are all the same leave, once their mean is out, nothing but rounding."""
    X = (gaussian(8) / 3).expand(6, 8).clone()
    assert math.isnan(of(X, wanted=["effective_rank_centered"])["effective_rank_centered"])
    assert math.isnan(of(torch.zeros(6, 8).double(), wanted=["condition_number"])["condition_number"])
    assert math.isnan(of(torch.zeros(6, 8).double(), wanted=["dataset_entropy"])["dataset_entropy"])


@pytest.mark.parametrize("X", [gaussian(2, 4), gaussian(4).expand(6, 4)])
def test_two_nn_without_two_neighbours_at_a_distance_is_nan(X):
    assert intrinsic_dimension(Pooled.whole(X.clone())).isnan().all()


def test_two_nn_does_not_lose_near_neighbours_to_a_large_mean():
    X = gaussian(30, 6)
    far = (X + 2.0**20).sub(2.0**20) + 2.0**20  # the same points as rounded there, moved without rounding
    expected = intrinsic_dimension(Pooled.whole(far - 2.0**20))
    assert torch.allclose(intrinsic_dimension(Pooled.whole(far)), expected, rtol=1e-10)


@pytest.mark.parametrize("name", GEOMETRY)
def test_one_wanted_metric_comes_alone_and_the_same(name):
    X = gaussian(8, 12)
    assert of(X, wanted=[name]) == {name: of(X)[name]}


def test_norms_are_a_value_a_prompt():
    X = gaussian(6, 9)
    norms = values(["l2_norm"], Pooled.whole(X.float()))["l2_norm"]
    assert norms.tolist() == pytest.approx(np.linalg.norm(X.float().numpy(), axis=1).tolist())


def test_metrics_of_one_spectrum_compute_it_once(monkeypatch):
    calls, spectra = [], geometry.subset_spectra
    monkeypatch.setattr(geometry, "subset_spectra", lambda *given: calls.append(1) or spectra(*given))
    of(gaussian(5, 7), ["effective_rank", "effective_rank_normalized", "spectral_norm", "rank_deficiency"])
    assert len(calls) == 1
