"""The change of each parameter from a base to a tuned model, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints.parameters import Weights, parameter_in, parameter_names


@dataclass(frozen=True)
class Moved:
    """A parameter in both models.

    Attributes:
        before, after: in the base, and in the tuned model.
        dtype: that it is counted and kept in.
    """

    name: str
    before: Float[Tensor, "*shape"]
    after: Float[Tensor, "*shape"]
    dtype: torch.dtype

    @property
    def change(self) -> Float64[Tensor, "*shape"]:
        """Δ, in float64."""
        return self.after.double() - self.before.double()

    @property
    def nbytes(self) -> int:
        """Of the whole change."""
        return self.after.numel() * self.dtype.itemsize


def moved(base: Weights, tuned: Weights, dtype: torch.dtype | None = None) -> Iterator[Moved]:
    """Every parameter in which two models differ.

    Args:
        dtype: that changes are kept in; the wider of both models' when left out.

    Raises:
        MidblockError: a parameter that one of them lacks, or has in another shape.
    """
    for name in parameter_names(base):
        before, after = parameter_in(base, name).cpu(), parameter_in(tuned, name).cpu()
        if before.shape != after.shape:
            raise MidblockError(
                f"{name} is {list(before.shape)} in the base and {list(after.shape)} in the tuned model"
            )
        if not torch.equal(before.double(), after.double()):
            yield Moved(name, before, after, dtype or torch.promote_types(before.dtype, after.dtype))


def full_bytes(base: Weights, tuned: Weights, dtype: torch.dtype | None = None) -> int:
    """Bytes of the full change: every parameter that differs, whole."""
    return sum(each.nbytes for each in moved(base, tuned, dtype))
