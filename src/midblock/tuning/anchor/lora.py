"""`lora_anchor`: RPSFT's penalty on adapters, from their factors: W, W⁰ and BA are never touched or built.

W = W⁰ + sBA, so M = s(U_kᵀB)(AV_k), ∇_B = 2λs U_k M (AV_k)ᵀ and ∇_A = 2λs (U_kᵀB)ᵀ M V_kᵀ. A weight costs about
4kr(m + n) operations, where training W itself would cost 4kmn. Of stacked experts each has its own factors and its own
B A, which lie in PEFT's two matrices one below the other (A) and interleaved (B): they are looked at as E × r × n and
E × m × r without being copied. Described in docs/tuning/rpsft.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from midblock.base import MidblockError, unknown
from midblock.tuning.anchor.anchor import Anchor, Hold, Projected, check_shape, share_of
from midblock.tuning.anchor.factors import Factors, working_dtype
from midblock.tuning.anchor.rows import RowShare, add_product, local, rows_of

LoraItem = tuple[nn.Parameter, nn.Parameter, float, Factors]


def lora_anchor(
    items: Mapping[str, LoraItem], strength: float, scope: str = "block", normalize: bool = False
) -> Anchor:
    """λ Σ ‖U_kᵀ Δ V_k‖_F², or with scope `subspace` ‖U_kᵀΔ‖² + ‖ΔV_k‖² − ‖U_kᵀΔV_k‖², where Δ = sBA.

    The frozen weight must be W⁰: an initialisation that takes BA out of it at the start (PiSSA, OLoRA, LoftQ) would
    be held to the wrong place, and DoRA's change is not sBA.

    Args:
        items: name to (A: (r, n), B: (m, r), s, factors of the pretrained (m, n) weight). The factors are oriented
            (out, in) as BA is; of a weight stored (in, out) give `Factors.transposed`. A and B may both be sharded by
            rows with `fully_shard`. Of a stack of E experts A is (E·r, n) and B (m, r·E) as PEFT keeps them; these
            may not be sharded.
        strength: λ.
        scope: `block` or `subspace`.
        normalize: divide each weight's term by ‖Σ_k‖_F².

    Raises:
        MidblockError: no items, an unknown scope, factors of another weight, or another way of sharding.
    """
    if scope not in HOLDS:
        raise unknown("anchor scope", scope, HOLDS)
    return Anchor([HOLDS[scope](_adapter(name, item, normalize)) for name, item in items.items()], strength)


@dataclass(frozen=True, eq=False)
class _Adapter:
    """One weight's adapter and factors.

    Attributes:
        U: the rows of U_k that go with the rows of B held here.
        share: what the weight's term is multiplied by.
        group: the processes that share out the rows of A and of B; None where they are whole.
    """

    A: nn.Parameter
    B: nn.Parameter
    scale: float
    U: Float[Tensor, "*experts m k"]
    V: Float[Tensor, "*experts n k"]
    share: Float[Tensor, "*experts 1 1"]
    rows_of_a: RowShare
    group: dist.ProcessGroup | None

    def local(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(A, B, U, V): the rows that lie here, all in float32 or wider."""
        dtype = working_dtype(self.B)
        A, B = self.by_expert_a(local(self.A)), self.by_expert_b(local(self.B))
        return A.to(dtype), B.to(dtype), self.U.to(dtype), self.V.to(dtype)

    def by_expert_a(self, rows: Float[Tensor, "er n"]) -> Float[Tensor, "*e r n"]:
        """A, or its gradient, as one matrix for each expert: a view."""
        return rows if self.U.ndim == 2 else rows.unflatten(0, (len(self.U), -1))

    def by_expert_b(self, columns: Float[Tensor, "m re"]) -> Float[Tensor, "*e m r"]:
        """B, or its gradient, as one matrix for each expert: a view."""
        return columns if self.U.ndim == 2 else columns.unflatten(1, (-1, len(self.U))).permute(2, 0, 1)

    def add_to_a(self, left: Float[Tensor, "*e r k"], right: Float[Tensor, "*e k n"]) -> None:
        """Add left · right to the gradient of A."""
        add_product(self.A, left, right, self.by_expert_a)

    def add_to_b(self, left: Float[Tensor, "*e m k"], right: Float[Tensor, "*e k r"]) -> None:
        """Add left · right to the gradient of B."""
        add_product(self.B, left, right, self.by_expert_b)


def _adapter(name: str, item: LoraItem, normalize: bool) -> _Adapter:
    A, B, scale, factors = item
    experts = factors.shape[:-2]
    check_shape(name, factors, (*experts, B.shape[0], A.shape[1]))
    if experts:
        return _stacked(name, item, normalize)
    rows_of_a, rows_of_b = rows_of(A, f"{name}'s A"), rows_of(B, f"{name}'s B")
    if rows_of_a.group is not rows_of_b.group:
        raise MidblockError(f"{name}: A and B are shared out over different processes")
    if rows_of_b.group is not None:
        factors = replace(factors, U=factors.U[rows_of_b.slice].clone())
    factors = factors.to(local(B).device)
    share = share_of(factors, normalize, working_dtype(B))
    return _Adapter(
        A=A, B=B, scale=scale, U=factors.U, V=factors.V, share=share, rows_of_a=rows_of_a, group=rows_of_a.group
    )


def _stacked(name: str, item: LoraItem, normalize: bool) -> _Adapter:
    A, B, scale, factors = item
    rank, rest = divmod(len(A), factors.shape[0])
    if rest or B.shape[1] != len(A):
        raise MidblockError(f"{name}: adapters of shape {list(A.shape)} and {list(B.shape)} are not of one rank each")
    if any(rows_of(each, name).group is not None for each in (A, B)):
        raise MidblockError(f"{name}: the anchor does not reach sharded adapters of experts", hint="leave out --shard")
    factors = factors.to(B.device)
    share = share_of(factors, normalize, working_dtype(B))
    whole = RowShare(0, rank, rank)
    return _Adapter(A=A, B=B, scale=scale, U=factors.U, V=factors.V, share=share, rows_of_a=whole, group=None)


class LoraBlockHold:
    """‖M‖_F², M = s(U_kᵀB)(AV_k), of one weight."""

    def __init__(self, adapter: _Adapter) -> None:
        self.adapter, self.group = adapter, adapter.group

    def project(self) -> Projected:
        A, B, U, V = self.adapter.local()
        return Projected([U.mT @ B, self.adapter.rows_of_a.padded(A @ V)])

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        (P, Q), own = sums, self.adapter
        M = own.scale * (P @ Q)
        if factor is not None:
            scaled = 2 * factor * own.scale * own.share * M
            own.add_to_b(own.U, scaled @ Q.mT)
            own.add_to_a(P[..., own.rows_of_a.slice].mT @ scaled, own.V.mT)
        return (own.share * M.square()).sum()


class LoraSubspaceHold:
    """The same with the first-order rotation out of the top spaces, from r × r Gram matrices.

    With P = U_kᵀB and Q = AV_k: s²(⟨PᵀP, AAᵀ − QQᵀ⟩ + ⟨BᵀB, QQᵀ⟩). A sharded A is put together (r × n) for AAᵀ.
    """

    def __init__(self, adapter: _Adapter) -> None:
        self.adapter, self.group = adapter, adapter.group

    def project(self) -> Projected:
        A, B, U, _ = self.adapter.local()
        return Projected([U.mT @ B, B.mT @ B, self.adapter.rows_of_a.padded(A)])

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        (P, BB, A), own = sums, self.adapter
        Q = A @ own.V.to(A.dtype)
        PP, QQ = P.mT @ P, Q @ Q.mT
        outside = A @ A.mT - QQ
        if factor is not None:
            scale, rows = 2 * factor * own.scale**2 * own.share, own.rows_of_a.slice
            own.add_to_b(own.U, scale * (P @ outside))
            own.add_to_b(own.by_expert_b(local(own.B)), scale * QQ)
            own.add_to_a((scale * PP)[..., rows, :], A)
            own.add_to_a((scale * (BB - PP) @ Q)[..., rows, :], own.V.mT)
        return own.scale**2 * (own.share * (PP * outside + BB * QQ)).sum()


HOLDS: Mapping[str, Callable[[_Adapter], Hold]] = {"block": LoraBlockHold, "subspace": LoraSubspaceHold}
