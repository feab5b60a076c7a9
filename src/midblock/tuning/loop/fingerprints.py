"""Proof that training left a tensor alone: a checksum of its bits before and after, taken where it lies.

Cost: two readings of every frozen tensor a run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from midblock.base import MidblockError

WORDS = 2**22


def fingerprint(tensor: Tensor) -> tuple[int, int]:
    """Two 64-bit sums over the tensor's bits, one of them weighted by position; a sharded tensor is put together first.

    An accidental change of any bit changes them (with a chance of about 2⁻⁶⁴ of a miss); they are no defence against
    a forger.
    """
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.detach().contiguous().reshape(-1)
    # a view may begin where no 64-bit word does
    flat = flat if flat.storage_offset() * flat.element_size() % 8 == 0 else flat.clone()
    data = flat.view(torch.uint8)
    whole = len(data) // 8 * 8
    words = data[:whole].view(torch.int64)
    total = torch.zeros(2, dtype=torch.int64, device=data.device)
    for start in range(0, len(words), WORDS):
        chunk = words[start : start + WORDS]
        odd = 2 * torch.arange(start, start + len(chunk), device=data.device) + 1
        # integers wrap around; the shifts let high bits, which a product pushes out, count as well
        mixed = (chunk ^ (chunk >> 29)) * odd * -7046029254386353131
        total += torch.stack([chunk.sum(), (mixed ^ (mixed >> 32)).sum()])
    rest = int.from_bytes(bytes(data[whole:].tolist()), "little")
    return int(total[0]) ^ rest, int(total[1]) + rest


@dataclass(frozen=True)
class Untouched:
    """Fingerprints of the tensors that training must not change."""

    before: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, model: nn.Module, trained: Collection[str]) -> Untouched:
        """Take the fingerprints of every parameter whose name is not in `trained`, and of every buffer that is kept."""
        kept = {name: value for name, value in _tensors(model).items() if name not in trained}
        return cls({name: fingerprint(value) for name, value in kept.items()})

    def check(self, model: nn.Module) -> int:
        """Compare with the model as it is now.

        Returns:
            How many tensors were compared.

        Raises:
            MidblockError: a tensor that is gone or changed, by name.
        """
        now = _tensors(model)
        for name, expected in self.before.items():
            if name not in now:
                raise MidblockError(f"the frozen tensor {name} is gone after training")
            if fingerprint(now[name]) != expected:
                raise MidblockError(f"the frozen tensor {name} changed during training; the result is not saved")
        return len(self.before)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}
