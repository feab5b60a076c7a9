import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics.catalogue import METRICS, columns, computed_from
from midblock.metrics.tokens import (
    Tokens,
    curvature,
    pooled_mean,
    prompt_entropy,
    prompt_entropy_renyi2,
    sparsity,
)

TOKENS = computed_from("tokens", METRICS)

few = settings(deadline=None, max_examples=25)
lengths = st.integers(3, 12)
widths = st.integers(2, 10)
seeds = st.integers(0, 10_000)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=0):
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def whole(states):
    return torch.ones(states.shape[:2], dtype=torch.bool)


def token_statistics(states, mask):
    return columns(TOKENS, Tokens(states, mask))


def statistics(prompt):
    """One prompt (T×D), all of whose tokens count, as {metric: value}."""
    return dict(zip(TOKENS, token_statistics(prompt[None], whole(prompt[None]))[0].tolist(), strict=True))


def entropies_by_numpy(H):
    unit = H / np.linalg.norm(H, axis=1, keepdims=True)
    p = np.linalg.svd(unit, compute_uv=False) ** 2 / len(H)
    most = math.log(min(H.shape))
    return scipy.stats.entropy(p) / most, -math.log((p**2).sum()) / most


def curvature_by_numpy(H):
    angles = []
    for before, here, after in zip(H, H[1:], H[2:], strict=False):
        a, b = here - before, after - here
        if np.linalg.norm(a) > 0 and np.linalg.norm(b) > 0:
            angles.append(math.acos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))
    return np.mean(angles) / math.pi


def sparsity_by_numpy(H):
    return np.mean(np.abs(H) < 0.01 * np.abs(H).max())


@few
@given(lengths, widths, seeds)
def test_all_statistics_are_numpys(T, D, seed):
    H = gaussian(T, D, seed=seed)
    H[1] *= 1e-3  # something for sparsity to find
    found = statistics(H)
    entropy, renyi = entropies_by_numpy(H.numpy())
    assert found["prompt_entropy"] == pytest.approx(entropy, rel=1e-9)
    assert found["prompt_entropy_renyi2"] == pytest.approx(renyi, rel=1e-9)
    assert found["curvature"] == pytest.approx(curvature_by_numpy(H.numpy()), rel=1e-9)
    assert found["sparsity"] == sparsity_by_numpy(H.numpy())


@few
@given(lengths, st.integers(0, 6), widths, seeds)
def test_padding_and_the_rest_of_the_batch_never_matter(T, padding, D, seed):
    H = gaussian(T, D, seed=seed)
    batch = torch.full((2, T + padding, D), 1e4, dtype=torch.float64)
    batch[0, :T] = H
    batch[1] = 1e3 * gaussian(T + padding, D, seed=seed + 1)
    mask = torch.arange(T + padding) < torch.tensor([[T], [T + padding]])
    padded = dict(zip(TOKENS, token_statistics(batch, mask)[0].tolist(), strict=True))
    assert padded == pytest.approx(statistics(H), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_not_even_broken_padding_matters(rubbish):
    H = gaussian(5, 4)
    batch = torch.cat([H, torch.full((3, 4), rubbish, dtype=torch.float64)])[None]
    mask = torch.arange(8)[None] < 5
    assert token_statistics(batch, mask)[0].tolist() == pytest.approx(list(statistics(H).values()))
    assert torch.allclose(pooled_mean(batch, mask)[0], H.mean(0))


def test_a_region_inside_the_prompt_stands_alone():
    H = gaussian(9, 4)
    mask = (torch.arange(9) >= 3)[None] & (torch.arange(9) < 8)[None]
    assert token_statistics(H[None], mask)[0].tolist() == pytest.approx(list(statistics(H[3:8]).values()))


@few
@given(lengths, widths, seeds, st.floats(1e-3, 1e3))
def test_entropies_and_curvature_ignore_rotation_and_scale(T, D, seed, scale):
    H = gaussian(T, D, seed=seed)
    before, after = statistics(H), statistics(scale * H @ rotation(D, seed))
    for name in ("prompt_entropy", "prompt_entropy_renyi2", "curvature"):
        assert after[name] == pytest.approx(before[name], abs=1e-9)


@few
@given(lengths, widths, seeds)
def test_entropies_ignore_order_and_length_of_tokens(T, D, seed):
    H = gaussian(T, D, seed=seed)
    other = H[torch.randperm(T, generator=torch.Generator().manual_seed(seed))] * torch.arange(1, T + 1)[:, None]
    before, after = statistics(H), statistics(other)
    for name in ("prompt_entropy", "prompt_entropy_renyi2"):
        assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-8)


@few
@given(lengths, widths, seeds)
def test_curvature_ignores_where_the_path_starts_and_which_way_it_is_walked(T, D, seed):
    H = gaussian(T, D, seed=seed)[None]
    other = H.flip(1) + 7 * gaussian(D, seed=seed + 1)
    assert torch.allclose(curvature(Tokens(other, whole(other))), curvature(Tokens(H, whole(H))), atol=1e-9)


@few
@given(lengths, widths, seeds, st.floats(1e-2, 1e2))
def test_sparsity_ignores_scale_sign_and_order(T, D, seed, scale):
    H = gaussian(T, D, seed=seed) ** 3
    other = -scale * H.flip(0).flip(1)
    assert sparsity(Tokens(other[None], whole(other[None]))) == sparsity(Tokens(H[None], whole(H[None])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sparsity_counts_small_states_as_the_numbers_that_they_are(dtype):
    """1 % of 1.375 is 0.01375; in bfloat16 it would be 0.01373, the next number below 0.0137939."""
    H = torch.tensor([[1.375, *np.linspace(0.0130, 0.0144, 15)], [0.01373291015625] * 16], dtype=dtype)
    assert float(sparsity(Tokens(H[None], whole(H[None])))) == sparsity_by_numpy(H.double().numpy())


@pytest.mark.parametrize("D", [4, 9])
def test_orthonormal_tokens_have_entropy_one(D):
    found = statistics(rotation(D)[:4])
    assert found["prompt_entropy"] == pytest.approx(1)
    assert found["prompt_entropy_renyi2"] == pytest.approx(1)


def test_tokens_spread_evenly_over_fewer_dimensions_have_entropy_one():
    angle = torch.arange(7, dtype=torch.float64) * 2 * torch.pi / 7
    found = statistics(torch.stack([angle.cos(), angle.sin()], dim=1))
    assert found["prompt_entropy"] == pytest.approx(1)
    assert found["prompt_entropy_renyi2"] == pytest.approx(1)


def test_tokens_of_one_direction_have_entropy_zero():
    found = statistics(torch.ones(5, 3, dtype=torch.float64) * torch.arange(1, 6)[:, None])
    assert found["prompt_entropy"] == pytest.approx(0, abs=1e-12)
    assert found["prompt_entropy_renyi2"] == pytest.approx(0, abs=1e-12)


def test_two_directions_half_each():
    H = torch.eye(2, 8, dtype=torch.float64).repeat(2, 1)  # 4 tokens: ln 2 of a possible ln 4
    assert statistics(H)["prompt_entropy"] == pytest.approx(0.5)


def test_a_zero_token_adds_no_direction():
    H = torch.eye(3, dtype=torch.float64)
    H[2] = 0
    assert statistics(H)["prompt_entropy"] == pytest.approx(math.log(2) / math.log(3))


def test_a_straight_line_has_no_curvature():
    line = gaussian(6)[None, :] + torch.tensor([0.0, 1, 3, 4, 10])[:, None] * gaussian(6, seed=1)
    assert statistics(line)["curvature"] == pytest.approx(0, abs=1e-7)  # acos near 1 has half the digits


def test_a_zig_zag_has_curvature_one():
    path = torch.tensor([0.0, 1, 0, 1, 0])[:, None] * gaussian(6)
    assert statistics(path)["curvature"] == pytest.approx(1, abs=1e-7)


def test_a_square_has_curvature_one_half():
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]).double()
    assert statistics(square)["curvature"] == pytest.approx(0.5)


def test_a_repeated_token_is_counted_out_of_curvature():
    path = torch.tensor([[0.0, 0], [1, 0], [1, 1], [1, 1], [2, 1], [3, 1]]).double()
    # turns: a right angle, two without an angle, a straight one
    assert statistics(path)["curvature"] == pytest.approx(0.25)


@pytest.mark.parametrize("T", [1, 2])
def test_too_few_tokens_have_no_curvature(T):
    assert curvature(Tokens(gaussian(1, T, 4), torch.ones(1, T, dtype=torch.bool))).isnan()


def test_too_few_tokens_in_a_longer_batch_have_no_curvature():
    mask = torch.arange(6)[None] < torch.tensor([[2], [6]])
    assert curvature(Tokens(gaussian(2, 6, 4), mask)).isnan().tolist() == [True, False]


def test_one_token_has_no_entropy():
    mask = torch.arange(6)[None] < torch.tensor([[1], [6]])
    tokens = Tokens(gaussian(2, 6, 4), mask)
    for entropy in (prompt_entropy, prompt_entropy_renyi2):
        assert entropy(tokens).isnan().tolist() == [True, False]


def test_sparsity_counts_entries_below_a_hundredth_of_the_largest():
    H = torch.tensor([[100.0, 0.5, 1.0, 0.0], [-2.0, -0.5, 3.0, 0.9]]).double()
    assert statistics(H)["sparsity"] == 4 / 8


def test_sparsity_takes_each_prompts_own_largest():
    states = torch.stack([torch.tensor([[1.0, 0.5], [1.0, 0.5]]), torch.tensor([[1000.0, 0.5], [1.0, 0.5]])])
    assert sparsity(Tokens(states, whole(states))).tolist() == [0, 0.75]


def test_pooled_mean_is_numpys_in_float64():
    states = (gaussian(3, 7, 5) + 1e3).float()
    mask = torch.arange(7)[None] < torch.tensor([[7], [4], [1]])
    expected = [states[b, : int(mask[b].sum())].double().numpy().mean(0) for b in range(3)]
    assert np.allclose(pooled_mean(states, mask).numpy(), expected, rtol=1e-14)


def test_pooled_mean_of_no_token_is_nan():
    assert pooled_mean(gaussian(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)).isnan().all()


@few
@given(lengths, widths, seeds)
def test_pooled_mean_turns_and_moves_with_the_states(T, D, seed):
    H, R, shift = gaussian(1, T, D, seed=seed), rotation(D, seed), gaussian(D, seed=seed + 1)
    assert torch.allclose(pooled_mean(H @ R + shift, whole(H)), pooled_mean(H, whole(H)) @ R + shift)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_are_float64_whatever_the_model_runs_in(dtype):
    states = gaussian(2, 6, 4).to(dtype)
    found = token_statistics(states, whole(states))
    assert found.dtype == torch.float64
    assert torch.allclose(found[:, :3], token_statistics(states.double(), whole(states))[:, :3])
