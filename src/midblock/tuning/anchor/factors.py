"""Factors: the top singular block of a pretrained weight, which RPSFT holds on to.

W⁰ ≈ U_k Σ_k V_kᵀ, from `metrics.top_singular`, by which `block_drift` judges too. Cost: paid once a checkpoint
(`factor_cache`), k(m + n + k) numbers a weight. Source: P2. Described in docs/tuning/rpsft.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError
from midblock.base.json_file import shown
from midblock.metrics.top_singular import TOLERANCE, top_singular


@dataclass(frozen=True, eq=False)
class Factors:
    """Top-k singular spaces of W⁰ (m × n), or of each of E experts' weights.

    The penalty compares U_kᵀ W V_k with `core`, which is what this very product gave for W⁰ with the factors as they
    are kept: rounded, perhaps to bfloat16, or found to a small residual only. So it is zero at the start by
    construction, up to the rounding of a matrix product, instead of up to the factors' own error. With exact factors
    `core` is diagonal and its diagonal the singular values.

    Attributes:
        U: left singular vectors, as columns.
        core: Σ_k, the computed U_kᵀ W⁰ V_k, in float32 (float64 for float64 factors).
        V: right singular vectors, as columns.
        residual: how far from the true spaces these may be at most, the sine of an angle (`top_singular`); of several
            experts the largest. 0 where they are exact.
    """

    U: Float[Tensor, "*experts m k"]
    core: Float[Tensor, "*experts k k"]
    V: Float[Tensor, "*experts n k"]
    residual: float = 0.0

    @property
    def S(self) -> Float[Tensor, "*experts k"]:  # noqa: N802
        """Singular values, descending (up to the factors' rounding)."""
        return self.core.diagonal(dim1=-2, dim2=-1)

    @property
    def k(self) -> int:
        """How many directions are kept."""
        return self.U.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (*self.U.shape[:-1], self.V.shape[-2])

    @property
    def transposed(self) -> Factors:
        """Factors of Wᵀ.

        GPT-2's `Conv1D` stores (in, out). With full tuning that does not matter: the penalty is the same for W and Wᵀ,
        so factorise what is stored. An adapter's BA is (out, in) all the same: give it the transposed factors.
        """
        return Factors(self.V, self.core.mT, self.U, self.residual)

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on another device."""
        return replace(self, U=self.U.to(device), core=self.core.to(device), V=self.V.to(device))


def block(
    weight: Float[Tensor, "*experts m n"], U: Float[Tensor, "*experts m k"], V: Float[Tensor, "*experts n k"]
) -> Float[Tensor, "*experts k k"]:
    """U_kᵀ W V_k, in float32 at least, the weight read once; the longer side is summed over first."""
    dtype = working_dtype(weight)
    weight, U, V = weight.to(dtype), U.to(dtype), V.to(dtype)
    if weight.shape[-2] <= weight.shape[-1]:
        return U.mT @ (weight @ V)
    return (U.mT @ weight) @ V


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Float32, or the tensor's own type where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def resolve_k(text: str, m: int, n: int) -> int:
    """Turn `64`, or a share of min(m, n) such as `0.25`, into a number of directions between 1 and min(m, n).

    Raises:
        MidblockError: neither a whole number from 1 nor a share in (0, 1].
    """
    try:
        count = int(text) if text.strip().isdigit() else round(_share(text) * min(m, n)) or 1
    except ValueError:
        count = 0
    if count < 1:
        hint = "a number such as 64, or a share of min(m, n) such as 0.25"
        raise MidblockError(f"anchor_k is {shown(text)}", hint=hint)
    return min(count, m, n)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise ValueError(text)
    return share


def full_rank_names(shapes: Mapping[str, Sequence[int]], k: str) -> tuple[str, ...]:
    """Names of the weights that k covers whole (k ≥ min(m, n)), so that nothing of the smaller side is left free.

    For them the penalty is an L2 pull to the pretrained weight: on the whole weight if it is square, else on the part
    inside its row (or column) space. Callers should say so.

    Args:
        shapes: name to shape, (m, n) or (experts, m, n).
        k: as in `resolve_k`.

    Raises:
        MidblockError: as `resolve_k`.
    """
    return tuple(name for name, (*_, m, n) in shapes.items() if resolve_k(k, m, n) == min(m, n))


def unsettled(factors: Mapping[str, Factors]) -> tuple[str, ...]:
    """Names of the weights whose directions did not come to stand as `top_singular` wants. Callers should say so."""
    return tuple(name for name, found in factors.items() if found.residual > TOLERANCE)


def factorize(
    weight: Float[Tensor, "*shape"],
    k: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    exact: bool | None = None,
    name: str = "the weight",
) -> Factors:
    """Find the top-k singular spaces of a weight, or of every expert's: those by which `block_drift` judges too.

    Args:
        weight: (m, n), or (experts, m, n).
        k: at most min(m, n).
        seed: decides the random block of a weight too wide to be decomposed whole.
        dtype: what U and V are kept in; the arithmetic is float64 whatever it is.
        exact: force one of the two ways.
        name: the weight's, for errors.

    Returns:
        Factors on the weight's device.

    Raises:
        MidblockError: the weight is no matrix (or stack of matrices), or holds values that are not finite.
    """
    if weight.ndim not in (2, 3):
        raise MidblockError(f"{name} has the shape {list(weight.shape)}; only matrices have singular directions")
    if not bool(weight.isfinite().all()):
        raise MidblockError(f"{name} holds values that are not finite", hint="fetch the checkpoint again")
    home = weight.device
    weight = weight.detach().cpu() if home.type == "mps" else weight.detach()  # mps has no float64
    matrices = weight if weight.ndim == 3 else weight[None]
    found = [top_singular(matrix, k, exact=exact, seed=seed) for matrix in matrices]
    U, V = torch.stack([each.U for each in found]).to(dtype), torch.stack([each.V for each in found]).to(dtype)
    if weight.ndim == 2:
        U, V = U[0], V[0]
    return Factors(U, block(weight, U, V), V, max(each.residual for each in found)).to(home)
