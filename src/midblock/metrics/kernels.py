"""Linear kernels K and L of paired rows, and the few sums over them that CKA is made of, without their diagonals.

Over a set of rows with 0/1 weights m those are Σ_{i≠j} K_ij L_ij and the row sums of K and L; over rows given to each
other in another order, the first alone. They are taken from N×N matrices, mᵀ(K∘L)m, or from D×D ones, ‖XᵀY‖² less the
diagonal: whichever is cheaper, by shape. The results are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

GATHERING = 30_000  # what 200 orders cost with N×N matrices, in products for each of the N² entries
FOLDING = 526  # what 21 sets and 200 orders cost with D×D matrices, in products for each of the N·D² terms
LARGEST = 2**27  # entries of an N×N matrix, 1 GiB: beyond, the D×D ones whatever they cost
ENTRIES = 2**22  # entries of a matrix that are looked at at once: 32 MiB


@dataclass(frozen=True, eq=False)
class Kernels:
    """Kernels of two sides' centred rows, float64."""

    X: Float[Tensor, "N D"]
    Y: Float[Tensor, "N D"]

    @cached_property
    def by_rows(self) -> bool:
        """Whether N×N matrices are the cheaper way."""
        return grams_pay(*self.X.shape)

    @cached_property
    def diagonals(self) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Of K and of L."""
        return self.X.square().sum(1), self.Y.square().sum(1)

    @cached_property
    def hollow(self) -> tuple[Float[Tensor, "N N"], Float[Tensor, "N N"]]:
        """K and L with zero diagonals."""
        return (self.X @ self.X.T).fill_diagonal_(0), (self.Y @ self.Y.T).fill_diagonal_(0)

    def row_sums(self, masks: Float[Tensor, "N G"]) -> tuple[Float[Tensor, "N G"], Float[Tensor, "N G"]]:
        """Of K and of L within each set, the diagonal left out; zero outside the set."""
        if self.by_rows:
            K, L = self.hollow
            return K @ masks * masks, L @ masks * masks
        k, h = self.diagonals
        ours, theirs = ((side @ (side.T @ masks) - own[:, None]) * masks for side, own in ((self.X, k), (self.Y, h)))
        return ours, theirs

    def products(self, masks: Float[Tensor, "N G"]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each set ΣK∘L, ΣK∘K and ΣL∘L, the diagonals left out."""
        sides = (0, 1), (0, 0), (1, 1)
        found = (self._by_rows if self.by_rows else self._by_columns)(sides, masks)
        return found[0], found[1], found[2]

    def shuffled(self, orders: Int[Tensor, "P N"]) -> Float[Tensor, " P"]:
        """ΣK∘L with L's rows and columns in each of the orders, the diagonals left out."""
        if self.by_rows:
            return torch.stack([self._in_order(order) for order in orders])
        k, h = self.diagonals
        found = torch.stack([(self.X.T @ self.Y[order]).square().sum() for order in orders])
        return found - h[orders] @ k

    def _in_order(self, order: Tensor) -> Tensor:
        K, L = self.hollow
        rows = max(1, ENTRIES // len(order))
        parts = zip(K.split(rows), order.split(rows), strict=True)
        return torch.stack([(part * L[chosen][:, order]).sum() for part, chosen in parts]).sum()

    def _by_rows(self, sides: Sequence[tuple[int, int]], masks: Tensor) -> list[Tensor]:
        found, rows = [], max(1, ENTRIES // len(masks))
        for one, other in sides:
            blocks = zip(self.hollow[one].split(rows), self.hollow[other].split(rows), masks.split(rows), strict=True)
            found.append(torch.stack([(part * ((A * B) @ masks)).sum(0) for A, B, part in blocks]).sum(0))
        return found

    def _by_columns(self, sides: Sequence[tuple[int, int]], masks: Tensor) -> list[Tensor]:
        both = self.X, self.Y
        found = []
        for one, other in sides:
            A, B = both[one], both[other]
            whole, diagonal = A.T @ B, self.diagonals[one] * self.diagonals[other]
            crossed = torch.stack([self._crossed(A, B, whole, mask) for mask in masks.T])
            found.append(crossed - diagonal @ masks)
        return found

    def _crossed(self, A: Tensor, B: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """‖AᵀB‖² over a set; where it leaves out fewer rows than it keeps, those are subtracted."""
        kept, left = mask.nonzero()[:, 0], (mask == 0).nonzero()[:, 0]
        if len(left) < len(kept):
            return (whole - A[left].T @ B[left]).square().sum()
        return (A[kept].T @ B[kept]).square().sum()


def grams_pay(N: int, D: int) -> bool:
    """Whether N×N matrices cost less than D×D ones, and fit."""
    return N * N <= LARGEST and N * (4 * D + GATHERING) <= FOLDING * D * D
