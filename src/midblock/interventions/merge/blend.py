"""(1 − α) W_b + α W_s, piece by piece: float64 in pieces that fit the cache, rounded by torch to the type written.

To the 16-bit types torch rounds by way of float32, as it does for anyone who computes the same by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from midblock.checkpoints import Source

PIECE = 1 << 18  # entries computed at a time: both float64 buffers stay in the cache, and calls are few


class _Workspace(threading.local):
    """Each thread's two float64 buffers, made once: fresh ones would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.base, self.tuned = torch.empty(2, 0, dtype=torch.float64)
        self.made = torch.empty(0, dtype=torch.uint8)

    def buffers(self, count: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        if len(self.base) < count:
            self.base, self.tuned = torch.empty(2, max(count, PIECE), dtype=torch.float64)
        return self.base[:count], self.tuned[:count]

    def result(self, count: int, dtype: torch.dtype) -> Shaped[Tensor, " n"]:
        if len(self.made) < count * dtype.itemsize:
            self.made = torch.empty(max(count, PIECE) * 8, dtype=torch.uint8)
        return self.made[: count * dtype.itemsize].view(dtype)


_workspace = _Workspace()


def scratch(count: int, dtype: torch.dtype) -> Shaped[Tensor, " n"]:
    """This thread's memory for a result, which its next call overwrites."""
    return _workspace.result(count, dtype)


def pieces(base: Source, tuned: Source) -> Iterator[tuple[int, int]]:
    """First and last (excluded) entry of each piece of a tensor; whole rows where there is a change."""
    size, step = base.stored.numel(), PIECE
    if base.changed or tuned.changed:
        width = base.stored.shape[-1]
        step = max(1, PIECE // width) * width
    for start in range(0, size, step):
        yield start, min(start + step, size)


def blend(base: Source, tuned: Source, alpha: float, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Entries `start` to `stop` of (1 − α) W_b + α W_s, rounded at the end.

    Args:
        base, tuned: W_b and W_s, of one shape.
        alpha: α; at 0 and 1 the other parent is not read.
        dtype: of the result.

    Returns:
        The entries, flat, in memory that this thread's next call overwrites.
    """
    first, second = _workspace.buffers(stop - start)
    if alpha in (0.0, 1.0):
        (tuned if alpha else base).fill(first, start)
    else:
        base.fill(first, start)
        tuned.fill(second, start)
        first.mul_(1 - alpha).add_(second.mul_(alpha))
    return _workspace.result(stop - start, dtype).copy_(first)
