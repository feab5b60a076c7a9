"""The two factors of a low-rank change, looked at before they are multiplied: numbers, finite, of one rank.

Source: how PEFT's layers lay them out; A is r × n, B is m × r, of stacked experts (e r) × n and m × (r e).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError


@runtime_checkable
class Readable(Protocol):
    """Tensors by name."""

    def read(self, name: str) -> Shaped[Tensor, "..."]: ...


def read_factors(own: Readable, left: str, right: str, file: Path) -> tuple[Tensor, Tensor]:
    """Read B and A.

    Args:
        own: an adapter's tensors.
        left, right: names of B and of A.
        file: for messages.

    Raises:
        MidblockError: one is no matrix of finite numbers, or they have different ranks.
    """
    B, A = _checked(own, left, file), _checked(own, right, file)
    if A.shape[0] != B.shape[1]:
        what = f"{file}: {left} is {list(B.shape)} and {right} is {list(A.shape)}: they cannot be multiplied"
        raise MidblockError(what, hint="the file is not whole: save the adapter again")
    return B, A


def _checked(own: Readable, name: str, file: Path) -> Tensor:
    factor = own.read(name)
    if factor.ndim < 2:
        raise MidblockError(f"{file}: {name} is {list(factor.shape)}, no matrix", hint="save the adapter again")
    if not factor.is_floating_point() or factor.dtype.itemsize == 1:
        kind = str(factor.dtype).removeprefix("torch.")
        raise MidblockError(f"{file} stores {name} as {kind}, which are no numbers to add", hint="save it in float32")
    if not bool(torch.isfinite(factor).all()):
        raise MidblockError(f"NaN or Inf in {name} of {file}", hint="its training went wrong, or the file is damaged")
    return factor
