import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.data import TokenizedPrompt
from midblock.metrics.catalogue import values
from midblock.metrics.spectra import eigenvalues, entropy
from midblock.metrics.views import Views, _by_columns, _by_rows, drop_tokens, infonce

few = settings(deadline=None, max_examples=25)
sizes = st.sampled_from([(5, 12), (12, 5), (7, 7)])
seeds = st.integers(0, 10_000)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_views(n, d, seed=0, amount=0.3):
    prompts = gaussian(n, d, seed=seed)
    return prompts + amount * gaussian(2, n, d, seed=seed + 1)


def of(views):
    return {
        name: float(value.mean()) for name, value in values(("lidar", "dime", "infonce"), Views.whole(views)).items()
    }


def lidar_with_square_matrices(views, ridge=1e-4):
    K, n, D = views.shape
    means = views.mean(0)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / n
    within = sum((view - means).T @ (view - means) for view in views) / (n * K) + ridge * np.eye(D)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(within).real)
    return scipy.stats.entropy(np.linalg.eigvalsh(root @ between @ root).clip(0))


def matrix_entropy(X):
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    return scipy.stats.entropy(np.linalg.svd(unit, compute_uv=False) ** 2)


def infonce_by_scipy(views):
    first, second = (view / np.linalg.norm(view, axis=1, keepdims=True) for view in views)
    scores = first @ second.T / 0.1
    return np.mean(scipy.special.logsumexp(scores, axis=1) - np.diag(scores))


@few
@given(sizes, seeds)
def test_everything_is_numpys_and_scipys(size, seed):
    views = two_views(*size, seed=seed)
    found, arrays = of(views), views.numpy()
    assert found["lidar"] == pytest.approx(lidar_with_square_matrices(arrays), rel=1e-6)
    assert found["dime"] == pytest.approx(abs(matrix_entropy(arrays[0]) - matrix_entropy(arrays[1])), abs=1e-9)
    assert found["infonce"] == pytest.approx(infonce_by_scipy(arrays), rel=1e-9)


@few
@given(sizes, seeds)
def test_rotation_and_order_of_prompts_never_matter(size, seed):
    views = two_views(*size, seed=seed)
    R = torch.linalg.qr(gaussian(size[1], size[1], seed=seed)).Q
    assert of(views.flip(1) @ R) == pytest.approx(of(views), rel=1e-6, abs=1e-9)


@few
@given(sizes, seeds, st.floats(0.01, 100))
def test_dime_and_infonce_ignore_scale(size, seed, scale):
    views = two_views(*size, seed=seed)
    before, after = of(views), of(scale * views)
    assert after["dime"] == pytest.approx(before["dime"], abs=1e-9)
    assert after["infonce"] == pytest.approx(before["infonce"], rel=1e-9)


@few
@given(sizes, seeds)
def test_lidar_ignores_where_the_states_lie(size, seed):
    views = two_views(*size, seed=seed)
    assert of(views + 5 * gaussian(size[1]))["lidar"] == pytest.approx(of(views)["lidar"], rel=1e-6)


def test_an_index_set_gives_what_its_rows_alone_give():
    views = two_views(9, 14)
    keep = torch.tensor([range(2, 9), range(7)])
    for place, rows in enumerate(keep):
        alone = of(views[:, rows])
        for name, value in values(("lidar", "dime"), Views(views, keep)).items():
            assert float(value[place]) == pytest.approx(alone[name], rel=1e-9)


def test_lidar_of_views_that_agree_is_the_entropy_between_prompts():
    prompts = torch.eye(6, 20, dtype=torch.float64)
    # centring leaves five equal directions
    assert of(torch.stack([prompts, prompts]))["lidar"] == pytest.approx(math.log(5))


def test_lidar_counts_directions_by_how_well_they_tell_prompts_apart():
    """Two directions of equal spread between prompts, one of them as noisy: the noisy one hardly counts."""
    prompts = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    noise = torch.tensor([0.0, 1.0]).double()
    quiet, noisy = 1 / 1e-4, 1 / (1 + 1e-4)
    expected = scipy.stats.entropy([quiet, noisy])
    assert of(torch.stack([prompts + noise, prompts - noise]))["lidar"] == pytest.approx(expected, rel=1e-6)


def test_dime_of_equal_views_is_zero_and_of_the_extremes_ln_n():
    spread = torch.eye(6, 20, dtype=torch.float64)
    alike = torch.ones(6, 20, dtype=torch.float64)
    assert of(torch.stack([spread, spread]))["dime"] == 0
    assert of(torch.stack([spread, alike]))["dime"] == pytest.approx(math.log(6))


def test_infonce_of_orthogonal_prompts_and_of_prompts_all_alike():
    prompts = torch.eye(6, 20, dtype=torch.float64)
    assert infonce(Views.whole(torch.stack([prompts, prompts]))).tolist() == pytest.approx(
        [math.log1p(5 * math.exp(-10))] * 6
    )
    alike = torch.ones(2, 6, 20, dtype=torch.float64)
    assert infonce(Views.whole(alike)).tolist() == pytest.approx([math.log(6)] * 6)


def prompts_of(*lengths, answer=0.5):
    return [TokenizedPrompt(i, tuple(range(10, 10 + length)), int(length * answer)) for i, length in enumerate(lengths)]


def test_dropping_keeps_order_identity_and_the_first_three_tokens():
    prompts = prompts_of(3, 8, 40)
    for before, after in zip(prompts, drop_tokens(prompts, 0.9, 0, seed=0), strict=True):
        assert after.index == before.index
        assert after.input_ids[:3] == before.input_ids[:3]
        assert list(after.input_ids) == sorted(set(after.input_ids) & set(before.input_ids))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_about_the_stated_share_is_dropped(rate):
    kept = len(drop_tokens(prompts_of(4000), rate, 0, seed=0)[0].input_ids)
    assert kept / 4000 == pytest.approx(1 - rate, abs=0.04)


@few
@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.floats(0, 1))
def test_the_answer_still_starts_at_its_first_token_that_stayed(seed, rate, share):
    prompt = prompts_of(30, answer=share)[0]
    view = drop_tokens([prompt], rate, 0, seed)[0]
    answer = set(prompt.input_ids[prompt.answer_start :])
    assert set(view.input_ids[view.answer_start :]) == answer & set(view.input_ids)
    assert not answer & set(view.input_ids[: view.answer_start])


@pytest.mark.parametrize("answer", [0.97, 0.5])
def test_no_view_loses_the_whole_answer(answer):
    """Otherwise the region `answer` would be empty there, and its mean not a number."""
    prompts = prompts_of(*[30] * 40, answer=answer)
    assert all(view.answer_start < len(view.input_ids) for view in drop_tokens(prompts, 0.95, 0, seed=0))


def test_views_differ_but_are_the_same_each_time_and_in_any_company():
    prompts = prompts_of(30, 30, 30)
    first = drop_tokens(prompts, 0.3, 0, seed=0)
    assert drop_tokens(prompts, 0.3, 0, seed=0) == first
    assert drop_tokens(prompts[2:], 0.3, 0, seed=0) == first[2:]
    assert drop_tokens(prompts, 0.3, 1, seed=0) != first
    assert drop_tokens(prompts, 0.3, 0, seed=1) != first
    assert len({view.input_ids for view in first}) == 3


@few
@given(st.sampled_from([(9, 20), (30, 8), (12, 12)]), seeds)
def test_lidar_by_rows_and_by_columns_has_the_same_spectrum(size, seed):
    between, within = gaussian(*size, seed=seed), 0.3 * gaussian(2 * size[0], size[1], seed=seed + 1)
    ours, theirs = (entropy(eigenvalues(way(between, within, 1e-4))) for way in (_by_rows, _by_columns))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


def test_infonce_in_blocks_is_infonce(monkeypatch):
    states = Views.whole(gaussian(2, 23, 7))
    whole = infonce(states)
    monkeypatch.setattr("midblock.metrics.views.ENTRIES", 23 * 4)
    torch.testing.assert_close(infonce(states), whole, rtol=1e-13, atol=0)
