"""The different points among the rows of X, and the nearest neighbours of each.

Rows no farther apart than the rounding of sums in float64 are one point. Cost: N²·D as products of matrices, a block of
rows at a time, and a short list a point: memory N × `MOST`. A product loses the digits of what lies close together, so
it only nominates; distances are taken of differences, and a neighbour that the product cannot vouch for is looked up
among all points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAME = 1e-12  # of a row's length: rows no farther apart are the same point
MOST = 24  # neighbours kept of each point
ENTRIES = 2**22  # numbers in a block of distances: 32 MiB


@dataclass(frozen=True, eq=False)
class Points:
    """The M different points of N rows.

    Attributes:
        first: for each row the place of the first one that is the same.
        rows: the points, in the order of those places.
        which: for each row its point.
        neighbours: for each point the nearest others, nearest first.
        apart: how far they are; infinite where others may be nearer.
    """

    first: Int[Tensor, " N"]
    rows: Float[Tensor, "M D"]
    which: Int[Tensor, " N"]
    neighbours: Int[Tensor, "M k"]
    apart: Float[Tensor, "M k"]

    @classmethod
    def of(cls, X: Float[Tensor, "N D"]) -> Points:
        """Find the points of float64 rows."""
        copies = _first_copies(X)
        places = copies.unique()
        first, (neighbours, apart) = places, _nearest(X[places])
        length = X[places].norm(dim=1)
        same = apart <= SAME * torch.maximum(length[:, None], length[neighbours])
        if bool(same.any()):  # not copies, but equal within rounding
            first = torch.where(same, places[neighbours], len(X)).amin(1).minimum(places)
            neighbours, apart = _nearest(X[first.unique()])
        firsts = first[torch.searchsorted(places, copies)]
        points = first.unique()
        return cls(firsts, X[points], torch.searchsorted(points, firsts), neighbours, apart)

    def two_nearest(self, keep: Int[Tensor, " n"]) -> Float[Tensor, "m 2"]:
        """Distances of each of the m points among some rows to the two nearest others there; infinite if missing."""
        present = torch.zeros(len(self.rows), dtype=torch.bool)
        present[self.which[keep]] = True
        wide = max(2 - self.apart.shape[1], 0)
        listed = torch.nn.functional.pad(self.apart, (0, wide), value=torch.inf)
        there = torch.nn.functional.pad(present[self.neighbours], (0, wide))
        near = listed.masked_fill(~there, torch.inf)[present].topk(2, largest=False).values
        if int(present.sum()) > 2:
            lacking = torch.isinf(near[:, 1])
            if bool(lacking.any()):
                near[lacking] = self._looked_up(present, lacking)
        return near

    def _looked_up(self, present: Bool[Tensor, " M"], lacking: Bool[Tensor, " m"]) -> Float[Tensor, "l 2"]:
        """The same for points whose list is too short, among all that are present."""
        others, asked = self.rows[present], lacking.nonzero()[:, 0]
        found = []
        for part in asked.split(max(1, ENTRIES // len(others))):
            distance = torch.cdist(others[part], others, compute_mode="donot_use_mm_for_euclid_dist")
            distance[torch.arange(len(part)), part] = torch.inf
            found.append(distance.topk(2, largest=False).values)
        return torch.cat(found)


def _first_copies(X: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
    """For each row the place of the first one with the very same numbers."""
    kinds, which = torch.unique(X, dim=0, return_inverse=True)
    first = torch.full((len(kinds),), len(X)).scatter_reduce(0, which, torch.arange(len(X)), "amin")
    return first[which]


def _nearest(X: Float[Tensor, "M D"]) -> tuple[Int[Tensor, "M k"], Float[Tensor, "M k"]]:
    """Each row's nearest others and their distances, infinite where a row that is not listed may be nearer."""
    M, count = len(X), min(MOST, len(X) - 1)
    if count < 1:
        return torch.empty(M, 0, dtype=torch.long), torch.empty(M, 0, dtype=X.dtype)
    # small tensors that live on among large ones would keep the allocator from handing the large ones back
    index, apart = torch.empty(M, count, dtype=torch.long), X.new_empty(M, count)
    for nominated, reach, rows in _nominated(X, count):
        distance = (X[nominated] - X[rows][:, None]).norm(dim=2)
        order = distance.argsort(dim=1)
        distance = distance.gather(1, order)
        index[rows] = nominated.gather(1, order)
        apart[rows] = distance.masked_fill(distance.square() > reach[:, None], torch.inf)
    return index, apart


def _nominated(X: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By blocks: the likely nearest, the squared distance below which nobody is missing, and whose they are."""
    M, D = X.shape
    centred = X - X.mean(0)
    squares = centred.square().sum(1)
    doubt = 8 * (D + 4) * torch.finfo(X.dtype).eps * float(squares.max())  # what rounding makes of a product
    for rows in torch.arange(M).split(max(1, ENTRIES // M)):
        rough = torch.addmm(squares[None], centred[rows], centred.T, alpha=-2).add_(squares[rows, None])
        rough[torch.arange(len(rows)), rows] = torch.inf
        found = rough.topk(count, dim=1, largest=False)
        everyone = count == M - 1
        reach = torch.full((len(rows),), torch.inf, dtype=X.dtype) if everyone else found.values[:, -1] - doubt
        yield found.indices, reach, rows
