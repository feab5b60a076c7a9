"""Which rows of a parameter this process holds (torch's FSDP2), and sums over processes: the anchor's view of sharding.

Only tensors the size of the factors ever travel; no weight is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard

from midblock.base import MidblockError


@dataclass(frozen=True)
class RowShare:
    """RowShare `start` to `stop` of a parameter's `total` (of experts, for a 3-D one).

    Attributes:
        group: the processes that share them out; None where this process holds all.
    """

    start: int
    stop: int
    total: int
    group: dist.ProcessGroup | None = None

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def padded(self, part: Float[Tensor, "*experts rows width"]) -> Float[Tensor, "*experts total width"]:
        """The part in its place among zeros, so that a sum over processes puts all parts together."""
        if self.group is None:
            return part
        whole = part.new_zeros(self.total, *part.shape[1:])
        whole[self.slice] = part
        return whole


def rows_of(parameter: nn.Parameter, name: str) -> RowShare:
    """Find the rows this process holds, as `torch.chunk` shares them out: uneven, perhaps none.

    Raises:
        MidblockError: the parameter is split in another way than by rows over one dimension of processes.
    """
    total = parameter.shape[0]
    if not isinstance(parameter, DTensor) or all(placement.is_replicate() for placement in parameter.placements):
        return RowShare(0, total, total)
    mesh, placements = parameter.device_mesh, parameter.placements
    if len(placements) != 1 or placements[0] != Shard(0):
        raise MidblockError(
            f"{name} is split as {placements}; the anchor knows rows over one dimension of processes only",
            hint="shard with `fully_shard` over a one-dimensional mesh",
        )
    size = -(-total // mesh.size())
    start = min(mesh.get_local_rank() * size, total)
    rows = RowShare(start=start, stop=min(start + size, total), total=total, group=mesh.get_group())
    if local(parameter).shape[0] != rows.stop - rows.start:
        raise MidblockError(f"{name}: {local(parameter).shape[0]} rows here, {rows.stop - rows.start} expected")
    return rows


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def add_product(
    parameter: nn.Parameter,
    left: Float[Tensor, "*e m k"],
    right: Float[Tensor, "*e k n"],
    looked_at: Callable[[Tensor], Tensor] = lambda grad: grad,
) -> None:
    """Add left · right to the rows of `.grad` that lie here, in place, in one pass over it; zeros if there is none.

    The factors are rounded to the gradient's type; the sum over k is the matrix product's own (float32 for bfloat16).

    Args:
        looked_at: gives the view of the gradient that has the product's shape.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    grad = looked_at(local(parameter.grad))
    left, right = left.to(grad.dtype), right.to(grad.dtype)
    if not grad.numel():
        return
    if grad.ndim == 2:
        grad.addmm_(left, right)
    else:
        grad.baddbmm_(left, right)


def summed(parts: Sequence[Sequence[Tensor]], group: dist.ProcessGroup) -> list[list[Tensor]]:
    """Sum every tensor over the processes, all in one all-reduce."""
    flat = torch.cat([part.reshape(-1) for several in parts for part in several])
    dist.all_reduce(flat, group=group)
    pieces = iter(flat.split([part.numel() for several in parts for part in several]))
    return [[next(pieces).view(part.shape) for part in several] for several in parts]
