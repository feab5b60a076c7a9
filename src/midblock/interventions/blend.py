"""(1 − α) W_b + α W_s, piece by piece: float64 in pieces that fit the cache, rounded once to the type written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from midblock.checkpoints import LowRankDelta

PIECE = 1 << 17  # entries computed at a time: both float64 buffers stay in the second-level cache
FEW = 256  # one entry in so many
_BELOW_FLOAT32 = (1 << 29) - 1  # the bits of a float64's mantissa that a float32 has not


@dataclass(frozen=True)
class Source:
    """One parent's value of a tensor.

    Attributes:
        stored: as it lies on disk, or what an adapter puts in its place.
        delta: an adapter's low-rank change on top, or None.
    """

    stored: Shaped[Tensor, "*shape"]
    delta: LowRankDelta | None = None

    @property
    def flat(self) -> Shaped[Tensor, " n"]:
        return self.stored.reshape(-1)

    def fill(self, buffer: Float64[Tensor, " n"], start: int) -> None:
        """Write the entries from `start` on into `buffer`; with a delta both must be whole rows."""
        buffer.copy_(self.flat[start : start + len(buffer)])
        if self.delta is not None:
            width = self.delta.shape[1]
            rows = slice(start // width, (start + len(buffer)) // width)
            buffer.view(-1, width).add_(LowRankDelta(self.delta.B[rows], self.delta.A, self.delta.scale).dense())


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


def pieces(base: Source, tuned: Source) -> Iterator[tuple[int, int]]:
    """First and last (excluded) entry of each piece of a tensor; whole rows where there is a delta."""
    size, step = base.stored.numel(), PIECE
    if base.delta is not None or tuned.delta is not None:
        width = base.stored.shape[-1]
        step = max(1, PIECE // width) * width
    for start in range(0, size, step):
        yield start, min(start + step, size)


def blend(base: Source, tuned: Source, alpha: float, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Entries `start` to `stop` of (1 − α) W_b + α W_s, rounded once.

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
    made = _workspace.result(stop - start, dtype)
    if dtype == torch.bfloat16:
        return made.copy_(_towards_bfloat16(first, second))
    if dtype == torch.float16:
        round_to_odd(first, second)
    return made.copy_(first)


def _towards_bfloat16(numbers: Float64[Tensor, " n"], scratch: Float64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Numbers that round to bfloat16 as `numbers` do, in far less time than `round_to_odd` takes for all of them.

    Rounding by way of float32 goes wrong only where the float32 lies halfway between two bfloat16, its lower 16 bits
    1000…0. Few are, and those are pushed to the side where the number really lies.
    """
    near = scratch.view(torch.float32)[: len(numbers)].copy_(numbers)
    bits = near.view(torch.int32)
    halfway = torch.bitwise_and(bits, 0xFFFF) == 0x8000
    count = int(halfway.sum())
    if count > len(numbers) // FEW:
        round_to_odd(numbers, scratch)
        return numbers
    if count:
        where = halfway.nonzero().squeeze(1)
        beyond = numbers[where].abs() - near[where].double().abs()
        bits[where] += beyond.sign().int()
    return near


def round_to_odd(numbers: Float64[Tensor, " n"], scratch: Float64[Tensor, " n"]) -> None:
    """Cut float64 numbers to float32's 24 bits, in place, with the last bit set where anything was cut off.

    torch goes from float64 to the 16-bit types by way of float32, which rounds twice. After this the first of these
    roundings is exact, and the second rounds as if it had seen the whole number (Boldo and Melquiond 2008).
    """
    bits = numbers.view(torch.int64)
    cut = torch.bitwise_and(bits, _BELOW_FLOAT32, out=scratch.view(torch.int64)).add_(_BELOW_FLOAT32)
    bits.bitwise_or_(cut).bitwise_and_(~_BELOW_FLOAT32)
