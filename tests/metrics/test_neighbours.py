"""Different points and their nearest neighbours, against all distances of all rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.metrics import neighbours
from midblock.metrics.neighbours import SAME, Points

few = settings(deadline=None, max_examples=25)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_distances(X):
    return torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)


def by_all(X, keep):
    """Of each different row of a set, in the order of where it first came, the distances to its two nearest."""
    norms = X.norm(dim=1)
    equal = all_distances(X) <= SAME * torch.maximum(norms[:, None], norms)
    first = [min([i, *equal[i].nonzero()[:, 0].tolist()]) for i in range(len(X))]
    points = sorted({first[i] for i in keep.tolist()})
    return torch.tensor(first), all_distances(X[points]).sort(dim=1).values[:, :2]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@few
@given(
    st.sampled_from([(5, 3), (40, 2), (60, 30), (130, 6)]),
    st.integers(0, 5),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1e6]),
)
def test_they_are_those_of_all_distances(size, copies, seed, mean):
    X = gaussian(*size, seed=seed) + mean
    X[len(X) - copies :] = X[:copies].clone()
    keep = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))[: 2 * len(X) // 3 + 1]
    first, near = by_all(X, keep)
    points = Points.of(X)
    assert points.first.tolist() == first.tolist()
    close(points.two_nearest(keep), near)


def test_a_neighbour_beyond_the_list_is_looked_up(monkeypatch):
    """Two clumps: of one, only two points far from each other are kept, all of whose listed neighbours are not."""
    monkeypatch.setattr(neighbours, "MOST", 8)
    X = torch.cat([gaussian(40, 3), 1000 + gaussian(40, 3, seed=1)])
    keep = torch.tensor([0, *range(40, 80)])
    points = Points.of(X)
    close(points.two_nearest(keep), by_all(X, keep)[1])
    close(points.two_nearest(torch.tensor([3, 50, 7])), by_all(X, torch.tensor([3, 50, 7]))[1])


def test_a_product_that_cannot_tell_rows_apart_is_not_trusted():
    """One row far away: beside its square, the distances between the others are rounding."""
    X = torch.cat([1e-9 * gaussian(60, 4), torch.full((1, 4), 1e3, dtype=torch.float64)])
    keep = torch.arange(61)
    close(Points.of(X).two_nearest(keep), by_all(X, keep)[1])


def test_rows_equal_but_for_rounding_are_one_point():
    X = gaussian(30, 8)
    X[20:] = X[:10] * (1 + 1e-14)
    points = Points.of(X)
    assert points.first.tolist() == [*range(20), *range(10)]
    assert len(points.rows) == 20


@pytest.mark.parametrize("entries", [1, 100, 10**6])
def test_blocks_never_matter(monkeypatch, entries):
    X = gaussian(50, 5)
    whole = Points.of(X)
    monkeypatch.setattr(neighbours, "ENTRIES", entries)
    assert torch.allclose(Points.of(X).apart, whole.apart, rtol=1e-14)
    assert torch.equal(Points.of(X).neighbours, whole.neighbours)


def test_one_row_has_no_neighbours():
    for X in (gaussian(1, 4), gaussian(4).expand(6, 4)):
        assert Points.of(X).two_nearest(torch.arange(len(X))).tolist() == [[torch.inf, torch.inf]]
