"""Anchor: a penalty on leaving the pretrained weights whose gradient is added once an optimiser step, in closed form.

λ Σ_W ‖U_kᵀ W V_k − Σ_k‖_F², with the gradient 2λ U_k M V_kᵀ for M = U_kᵀ W V_k − Σ_k. Autograd would pay for the
penalty in every micro-batch, keep its intermediates, and touch each weight several times; in closed form a weight is
read once and its gradient written once. Source: P2 (RPSFT). Described in docs/tuning/rpsft.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from midblock.base import MidblockError
from midblock.tuning.anchor.factors import Factors
from midblock.tuning.anchor.rows import summed


@dataclass(frozen=True, eq=False)
class Projected:
    """What a hold made of this process's rows.

    Attributes:
        sums: small tensors to be summed over processes.
        kept: what stays here until then.
    """

    sums: list[Tensor]
    kept: Any = None


@runtime_checkable
class Hold(Protocol):
    """The penalty on one weight, in two halves with a sum over processes between them.

    Attributes:
        group: the processes that share the weight's rows; None where there is nothing to sum.
    """

    group: dist.ProcessGroup | None

    def project(self) -> Projected:
        """Read the weight."""
        ...

    def finish(self, sums: list[Tensor], kept: Any, factor: float | None) -> Float[Tensor, ""]:
        """Return the penalty, without λ; add `factor` times its gradient to `.grad` unless that is None."""
        ...


class Anchor:
    """A sum of holds times λ. The weights of each process group cost one all-reduce a step, all of them together."""

    def __init__(self, holds: Sequence[Hold], strength: float) -> None:
        if not holds:
            raise MidblockError("there is no weight to anchor", hint="tune at least one matrix")
        self.strength = strength
        alone = [[hold] for hold in holds if hold.group is None]
        groups = dict.fromkeys(hold.group for hold in holds if hold.group is not None)
        self._buckets = alone + [[hold for hold in holds if hold.group is group] for group in groups]

    def add_gradient(self, factor: float = 1.0) -> Float[Tensor, ""]:
        """Add factor · ∇penalty to the parameters' `.grad`.

        Call it once for each optimiser step, after the last backward pass (and any averaging over processes), before
        gradients are clipped. Every process of a sharded model must call it.

        Args:
            factor: a gradient scaler's scale, or 1.

        Returns:
            The penalty, λ included and `factor` not, the same in every process. Reading it synchronises a GPU.
        """
        return self._run(self.strength * factor)

    def value(self) -> Float[Tensor, ""]:
        """The penalty, λ included; gradients are left alone."""
        return self._run(None)

    @torch.no_grad()
    def _run(self, factor: float | None) -> Float[Tensor, ""]:
        values = []
        for bucket in self._buckets:
            projected = [hold.project() for hold in bucket]
            sums = [each.sums for each in projected]
            if (group := bucket[0].group) is not None:
                sums = summed(sums, group)
            for hold, several, each in zip(bucket, sums, projected, strict=True):
                values.append(hold.finish(several, each.kept, factor))
        return self.strength * torch.stack([value.to(values[0].device) for value in values]).sum()


def share_of(factors: Factors, normalize: bool, dtype: torch.dtype) -> Float[Tensor, "*experts 1 1"]:
    """What a weight's term is multiplied by: 1, or 1/‖Σ_k‖_F² (0 for a weight of zeros, which has no directions)."""
    squared = factors.core.square().sum((-2, -1), keepdim=True)
    share = torch.where(squared > 0, 1 / squared, 0) if normalize else torch.ones_like(squared)
    return share.to(dtype)


def check_shape(name: str, factors: Factors, shape: Sequence[int]) -> None:
    """Refuse factors of another weight.

    Raises:
        MidblockError: the shapes differ.
    """
    if factors.shape != tuple(shape):
        what = f"{name}: factors of a weight of shape {list(factors.shape)} for one of {list(shape)}"
        swapped = factors.transposed.shape == tuple(shape)
        raise MidblockError(what, hint="use `Factors.transposed`" if swapped else None)


def autograd_penalty(
    weights: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    *,
    strength: float = 1.0,
    scope: str = "block",
    normalize: bool = False,
    origins: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, ""]:
    """The penalty as published, a term to add to the loss: what `add_gradient` is measured against.

    Args:
        weights: the current weights, whole; gradients flow into them.
        factors: of the weights they started from.
        scope: `block` or `subspace`.
        origins: the weights they started from; needed by `subspace` only.

    Returns:
        λ times the sum over weights.
    """
    total = []
    for name, weight in weights.items():
        kept = factors[name]
        U, V = kept.U.to(weight.dtype), kept.V.to(weight.dtype)
        if scope == "block":
            terms = _squares(U.mT @ weight @ V - kept.core)
        else:
            delta = weight - (origins or {})[name]
            terms = _squares(U.mT @ delta) + _squares(delta @ V) - _squares(U.mT @ delta @ V)
        total.append((share_of(kept, normalize, weight.dtype) * terms).sum())
    return strength * torch.stack(total).sum()


def _squares(part: Float[Tensor, "*experts a b"]) -> Float[Tensor, "*experts 1 1"]:
    return part.square().sum((-2, -1), keepdim=True)
