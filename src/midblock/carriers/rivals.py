"""Rivals: other small descriptions of a fine-tuning's change, of as many bytes as a carrier, to be held against it.

A rival is put on the base (is it sufficient?) or taken out of the tuned model (is it necessary?). Cost: a copy of what
it touches. Described in docs/carriers.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import LowRankDelta
from midblock.checkpoints.offloaded import check_writable


@dataclass(frozen=True)
class Scattered:
    """Single entries of a parameter.

    Attributes:
        shape: of the parameter.
        index: positions in the flat parameter.
        values: what the tuned model has there.
        before: what the base has there.
    """

    shape: tuple[int, ...]
    index: Int64[Tensor, " n"]
    values: Float[Tensor, " n"]
    before: Float[Tensor, " n"]

    def applied(self, value: Float[Tensor, "*shape"], *, remove: bool) -> Float[Tensor, "*shape"]:
        """The parameter with the tuned values in it; with `remove` the base's."""
        made = value.detach().clone()
        put = self.before if remove else self.values
        made.view(-1)[self.index.to(made.device)] = put.to(made.device, made.dtype)
        return made


@dataclass(frozen=True)
class LowRank:
    """A low-rank change of each matrix of a parameter.

    Attributes:
        shape: of the parameter.
        matrices: the change of each, in order; a vector is one row.
    """

    shape: tuple[int, ...]
    matrices: tuple[LowRankDelta, ...]

    def applied(self, value: Float[Tensor, "*shape"], *, remove: bool) -> Float[Tensor, "*shape"]:
        """The parameter with the change added in float64; with `remove` taken away."""
        change = torch.stack([each.dense() for each in self.matrices]).reshape(self.shape).to(value.device)
        exact = value.detach().double()
        return (exact - change if remove else exact + change).to(value.dtype)


Change = Scattered | LowRank


@dataclass(frozen=True)
class Rival:
    """A description of a change.

    Attributes:
        name: "pruned" or "svd".
        nbytes: on disk: values, and indices of four bytes where there are some.
        share: of the whole change's squared Frobenius norm, how much it holds.
        changes: by parameter.
    """

    name: str
    nbytes: int
    share: float
    changes: Mapping[str, Change] = field(repr=False)


@contextmanager
def put_rival(model: nn.Module, rival: Rival, *, remove: bool = False) -> Iterator[int]:
    """Let a model compute with a rival's change while the `with` lasts; it is the same to the bit afterwards.

    Args:
        model: the base; with `remove` the tuned model.
        remove: take the change out of it.

    Yields:
        How many parameters it touches.

    Raises:
        MidblockError: the model lacks a parameter, or has it in another shape.

    Example:
        >>> with put_rival(base_model, pruned(base_model, tuned_model, budget=1000)) as touched:
        ...     touched > 0
        True
    """
    check_writable(model, "a rival cannot be put in")
    known = dict(model.named_parameters())
    for name, change in rival.changes.items():
        if name not in known or tuple(known[name].shape) != change.shape:
            raise MidblockError(f"the model has no parameter {name} of the shape {list(change.shape)}")
    before = {name: known[name].detach().clone() for name in rival.changes}
    try:
        with torch.no_grad():
            for name, change in rival.changes.items():
                known[name].copy_(change.applied(known[name], remove=remove))
        yield len(before)
    finally:
        with torch.no_grad():
            for name, value in before.items():
                known[name].copy_(value)
