"""The base in its other precision, one block at a time: bfloat16 for a float32 model, float32 for any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from midblock.checkpoints import Anatomy


@contextmanager
def rounded(anatomy: Anatomy) -> Iterator[None]:
    """Run the backbone in the other precision while inside.

    Each part of the backbone (embedding, block, final norm) gets cast parameters when its forward begins and its own,
    the very same tensors, back when it ends, so that memory holds one cast block and never a second model.
    """
    other = other_precision(next(anatomy.backbone.parameters()).dtype)
    own: list[tuple[nn.Module, str, nn.Parameter]] = []

    def cast(part: nn.Module, args: Any) -> None:
        for module in part.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    own.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(parameter.to(other), requires_grad=False)

    def restore(*unused: Any) -> None:
        while own:
            module, name, parameter = own.pop()
            module._parameters[name] = parameter

    parts = [*anatomy.blocks, *(child for child in anatomy.backbone.children() if child is not anatomy.blocks)]
    hooks = [part.register_forward_pre_hook(cast) for part in parts]
    hooks += [part.register_forward_hook(restore, always_call=True) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        restore()


def other_precision(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 for float32 and float64, float32 for the small types."""
    return torch.bfloat16 if dtype in (torch.float32, torch.float64) else torch.float32
