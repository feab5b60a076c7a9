"""`full_anchor`: RPSFT's penalty on weights that are trained themselves.

M = U_kᵀ W V_k − Σ_k, ∇ = 2λ U_k M V_kᵀ. A weight costs about 4k operations per element with scope `block` (8k with
`subspace`), all in matrix products. Described in docs/tuning/rpsft.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from midblock.base import MidblockError, unknown
from midblock.tuning.anchor.anchor import Anchor, Hold, Projected, check_shape, share_of
from midblock.tuning.anchor.factors import Factors, block, working_dtype
from midblock.tuning.anchor.rows import RowShare, add_product, local, rows_of, summed

SAME_WEIGHT = 0.02  # of ‖Σ_k‖_F: more than casting a weight to bfloat16 changes


def full_anchor(
    items: Mapping[str, tuple[nn.Parameter, Factors]], strength: float, scope: str = "block", normalize: bool = False
) -> Anchor:
    """λ Σ ‖U_kᵀ W V_k − Σ_k‖_F², or with scope `subspace` ‖U_kᵀΔ‖² + ‖ΔV_k‖² − ‖U_kᵀΔV_k‖² where Δ = W − W⁰.

    Scope `subspace` takes the weights at the time of the call for W⁰ (of which it keeps the k × n and m × k
    projections, no copy): make the anchor before a stopped run's weights are loaded.

    Args:
        items: name to parameter, (m, n) or (experts, m, n), and the factors of the whole pretrained weight as it is
            stored. A parameter may be sharded by rows with `fully_shard`; then its rows of U alone are kept here.
            Weights tied together are one item.
        strength: λ.
        scope: `block` or `subspace`.
        normalize: divide each weight's (each expert's) term by ‖Σ_k‖_F².

    Raises:
        MidblockError: no items, an unknown scope, factors of another weight, or another way of sharding.
    """
    if scope not in HOLDS:
        raise unknown("anchor scope", scope, HOLDS)
    return Anchor([_hold(name, *item, scope, normalize) for name, item in items.items()], strength)


class FullBlockHold:
    """‖U_kᵀ W V_k − Σ_k‖_F² of one weight."""

    def __init__(self, name: str, parameter: nn.Parameter, factors: Factors, rows: RowShare, normalize: bool) -> None:
        self.parameter, self.factors, self.group = parameter, factors, rows.group
        self.share = share_of(factors, normalize, working_dtype(parameter))

    def project(self) -> Projected:
        return Projected([block(local(self.parameter), self.factors.U, self.factors.V)])

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        M = sums[0] - self.factors.core
        if factor is not None:
            U, V = self.factors.U, self.factors.V
            scaled = 2 * factor * self.share * M
            if U.shape[-2] < V.shape[-2]:
                add_product(self.parameter, U.to(M.dtype) @ scaled, V.mT)
            else:
                add_product(self.parameter, U, scaled @ V.mT.to(M.dtype))
        return (self.share * M.square()).sum()


class FullSubspaceHold:
    """‖U_kᵀΔ‖² + ‖ΔV_k‖² − ‖U_kᵀΔV_k‖² of one weight: what leaves the top spaces to first order counts too."""

    def __init__(self, name: str, parameter: nn.Parameter, factors: Factors, rows: RowShare, normalize: bool) -> None:
        self.parameter, self.factors, self.group = parameter, factors, rows.group
        self.share = share_of(factors, normalize, working_dtype(parameter))
        with torch.no_grad():
            left, self.right_origin = self._sides()
            self.left_origin = left if rows.group is None else summed([[left]], rows.group)[0][0]
            self._check(name)

    def project(self) -> Projected:
        left, right = self._sides()
        right -= self.right_origin
        return Projected([left, (self.share * right.square()).sum()], right)

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        left, right = sums[0] - self.left_origin, kept
        U, V = self.factors.U.to(left.dtype), self.factors.V.to(left.dtype)
        M = left @ V
        if factor is not None:
            scale = 2 * factor * self.share
            add_product(self.parameter, U, scale * left)
            add_product(self.parameter, scale * (right - U @ M), V.mT)
        return (self.share * left.square()).sum() + sums[1] - (self.share * M.square()).sum()

    def _sides(self) -> tuple[Float[Tensor, "*e k n"], Float[Tensor, "*e m k"]]:
        weight = local(self.parameter)
        weight = weight.to(working_dtype(weight))
        return self.factors.U.mT.to(weight.dtype) @ weight, weight @ self.factors.V.to(weight.dtype)

    def _check(self, name: str) -> None:
        found = self.left_origin @ self.factors.V.to(self.left_origin.dtype)
        error = torch.linalg.matrix_norm(found - self.factors.core)
        if not bool((error <= SAME_WEIGHT * torch.linalg.matrix_norm(self.factors.core)).all()):
            raise MidblockError(
                f"{name} is not the weight its factors were made of",
                hint="make the anchor from the pretrained weights, before others are loaded",
            )


class ExpertsHold:
    """Experts shared out whole: each process finishes its own, and only the value is summed."""

    def __init__(self, own: Hold, group: dist.ProcessGroup) -> None:
        self.own = own
        self.group: dist.ProcessGroup | None = group

    def project(self) -> Projected:
        mine = self.own.project()
        return Projected([self.own.finish(mine.sums, mine.kept, None)], mine)

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        if factor is not None:
            self.own.finish(kept.sums, kept.kept, factor)
        return sums[0]


HOLDS: Mapping[str, Callable[[str, nn.Parameter, Factors, RowShare, bool], Hold]] = {
    "block": FullBlockHold,
    "subspace": FullSubspaceHold,
}


def _hold(name: str, parameter: nn.Parameter, factors: Factors, scope: str, normalize: bool) -> Hold:
    check_shape(name, factors, parameter.shape)
    rows, device = rows_of(parameter, name), local(parameter).device
    if rows.group is None:
        return HOLDS[scope](name, parameter, factors.to(device), rows, normalize)
    if parameter.ndim == 2:
        mine = replace(factors, U=factors.U[rows.slice].clone())
        return HOLDS[scope](name, parameter, mine.to(device), rows, normalize)
    U, core, V = (part[rows.slice].clone() for part in (factors.U, factors.core, factors.V))
    mine, alone = replace(factors, U=U, core=core, V=V), replace(rows, group=None)
    return ExpertsHold(HOLDS[scope](name, parameter, mine.to(device), alone, normalize), rows.group)
