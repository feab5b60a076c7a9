"""Changes of a weight kept as factors, scale · B A, measured without ever building the m × n matrix.

With QR of B and Aᵀ the singular values are those of scale · R_B R_Aᵀ, r × r; the squared Frobenius norm is
scale² tr(BᵀB AAᵀ). Cost: O((m + n) r²) instead of O(m n min(m, n)).
"""

from __future__ import annotations

from collections.abc import Iterator
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

    @property
    def turned(self) -> LowRankDelta:
        """Its transpose."""
        return LowRankDelta(self.A.T, self.B.T, self.scale)

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

    def dense_rows(self, rows: slice) -> Float64[Tensor, "rows n"]:
        """Some rows of it."""
        return LowRankDelta(self.B[rows], self.A, self.scale).dense()

    def cut(self, rows: slice, columns: slice) -> LowRankDelta:
        """A box of it, as low-rank as the whole."""
        return LowRankDelta(self.B[rows], self.A[:, columns], self.scale)


@dataclass(frozen=True)
class StackedDelta:
    """One low-rank change for each expert of a stacked weight.

    Attributes:
        experts: in order, all of one shape.
    """

    experts: tuple[LowRankDelta, ...]

    @classmethod
    def of(
        cls, B: Float[Tensor, "m re"], A: Float[Tensor, "er n"], scale: float, experts: int, *, turned: bool
    ) -> StackedDelta:
        """Take PEFT's two factors of a stacked weight apart.

        Args:
            B: the experts' left factors, interleaved: column r·e + i is column r of expert i's.
            A: the experts' right factors, one below the other.
            scale: as of each expert's change.
            experts: e.
            turned: the weight is stored as (in, out).
        """
        left = B.reshape(B.shape[0], -1, experts)
        right = A.reshape(experts, -1, A.shape[-1])
        each = (LowRankDelta(left[..., i], right[i], scale) for i in range(experts))
        return cls(tuple(delta.turned if turned else delta for delta in each))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, m, n)."""
        return len(self.experts), *self.experts[0].shape

    @property
    def rank(self) -> int:
        """r of each expert's change."""
        return self.experts[0].rank

    def dense(self) -> Float64[Tensor, "e m n"]:
        """The changes themselves, float64."""
        return torch.stack([delta.dense() for delta in self.experts])

    def dense_rows(self, rows: slice) -> Float64[Tensor, "rows n"]:
        """Some rows of the experts' matrices as they lie one below the other."""
        return torch.cat(list(self._rows(rows.start, rows.stop)))

    def _rows(self, start: int, stop: int) -> Iterator[Tensor]:
        height = self.experts[0].shape[0]
        for index in range(start // height, -(-stop // height)):
            first = index * height
            yield self.experts[index].dense_rows(slice(max(start - first, 0), min(stop - first, height)))


Delta = LowRankDelta | StackedDelta
