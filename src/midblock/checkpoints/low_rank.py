"""LowRankDelta: a change of a weight, scale · B A, measured without ever building the m × n matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class LowRankDelta:
    """scale · B A, in the orientation of the base's tensor.

    Attributes:
        B: left factor, m × r.
        A: right factor, r × n.
        scale: what the product is multiplied by (LoRA's alpha/r or alpha/√r).
    """

    B: Float[Tensor, "m r"]
    A: Float[Tensor, "r n"]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """r, the rank allowed (the true one may be smaller)."""
        return self.B.shape[1]

    def fro(self) -> float:
        """Frobenius norm, from tr(BᵀB · AAᵀ): two r × r Grams, float64."""
        B, A = self.B.double(), self.A.double()
        squared = torch.sum((B.T @ B) * (A @ A.T))
        return abs(self.scale) * float(squared.clamp(min=0).sqrt())

    def singular_values(self) -> Float64[Tensor, " k"]:
        """The min(m, r, n) leading singular values, descending; the rest are zero. float64, no m × n matrix."""
        left = torch.linalg.qr(self.B.double()).R
        right = torch.linalg.qr(self.A.double().T).R
        return abs(self.scale) * torch.linalg.svdvals(left @ right.T)

    def dense(self) -> Float64[Tensor, "m n"]:
        """The matrix itself, float64."""
        return self.scale * (self.B.double() @ self.A.double())
