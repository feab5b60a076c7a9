"""The sums CKA is made of: N×N and D×D matrices give the same, whole, for a set, and in another order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics import kernels
from midblock.metrics.kernels import Kernels, grams_pay

few = settings(deadline=None, max_examples=25)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sides(n, d, seed):
    X = gaussian(n, d, seed=seed)
    return X - X.mean(0), (Y := X + 0.5 * gaussian(n, d, seed=seed + 1)) - Y.mean(0)


def both_ways(X, Y):
    made = Kernels(X, Y), Kernels(X, Y)
    for by_rows, each in enumerate(made):
        each.__dict__["by_rows"] = bool(by_rows)
    return made


@few
@given(st.sampled_from([(6, 20), (40, 6), (25, 25)]), st.integers(0, 10_000))
def test_rows_and_columns_give_the_same(size, seed):
    X, Y = sides(*size, seed)
    masks = (torch.rand(len(X), 5, generator=torch.Generator().manual_seed(seed)) < 0.7).double()
    masks[:2, :], masks[:, 0] = 1, 1
    masks[3:, 1] = 0
    orders = torch.stack([torch.randperm(len(X), generator=torch.Generator().manual_seed(seed + i)) for i in range(3)])
    scale = float((X @ X.T).square().sum())
    columns, rows = both_ways(X, Y)
    for ours, theirs in (
        *zip(columns.products(masks), rows.products(masks), strict=True),
        *zip(columns.row_sums(masks), rows.row_sums(masks), strict=True),
        (columns.shuffled(orders), rows.shuffled(orders)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14 * scale)


def test_they_are_the_sums_of_whole_matrices():
    X, Y = sides(12, 4, 0)
    masks = torch.ones(12, 1, dtype=torch.float64)
    masks[5:8] = 0
    K, L = ((side @ side.T).fill_diagonal_(0) for side in (X, Y))
    chosen = masks[:, 0].bool()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for each in both_ways(X, Y):
        product = (K * L)[chosen][:, chosen].sum()
        torch.testing.assert_close(each.products(masks)[0], product[None])
        torch.testing.assert_close(each.row_sums(masks)[1][chosen, 0], L[chosen][:, chosen].sum(1))
        torch.testing.assert_close(each.shuffled(order[None]), (K * L[order][:, order]).sum()[None])


def test_blocks_never_matter(monkeypatch):
    X, Y = sides(30, 40, 0)
    masks, orders = torch.ones(30, 1, dtype=torch.float64), torch.arange(29, -1, -1)[None]
    rows = both_ways(X, Y)[1]
    whole = rows.products(masks)[0], rows.shuffled(orders)
    monkeypatch.setattr(kernels, "ENTRIES", 70)
    for ours, theirs in zip((rows.products(masks)[0], rows.shuffled(orders)), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("N", "D", "pay"), [
    (200, 576, True), (200, 4096, True), (1000, 32, False), (10_000, 576, False), (10_000, 4096, True),
    (20_000, 8192, False),
])  # fmt: skip
def test_the_way_is_chosen_by_shape(N, D, pay):
    assert grams_pay(N, D) == pay
