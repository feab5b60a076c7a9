"""The base in its other precision, one block at a time: bfloat16 for a float32 model, float32 for any other.

Which parameters and buffers take the other type, and which keep their own, is what transformers does when it loads the
model in that type: it is read off the backbone's skeleton, built on the meta device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from midblock.checkpoints import Anatomy
from midblock.checkpoints.skeleton import planned_types

Exchanged = list[tuple[dict[str, Any], str, Tensor]]  # where a tensor stood, its name there, itself


@contextmanager
def rounded(anatomy: Anatomy, types: Mapping[str, torch.dtype] | None = None) -> Iterator[None]:
    """Run the backbone in the other precision while inside.

    Each part of the backbone (embedding, block, final norm) gets cast parameters and buffers when its forward begins
    and its own, the very same tensors, back when it ends, so that memory holds one cast block and never a second model.

    Args:
        types: what `types_of` gives; some 25 ms if it is to be found here.
    """
    backbone, wanted = anatomy.backbone, types_of(anatomy) if types is None else types
    names = {id(module): name for name, module in backbone.named_modules()}
    own: list[tuple[nn.Module, Exchanged]] = [(backbone, _cast(backbone, "", wanted))]  # what no part of it holds

    def begin(part: nn.Module, args: Any) -> None:
        kept: Exchanged = []
        own.append((part, kept))
        for module in part.modules():
            kept += _cast(module, names[id(module)], wanted)

    def end(part: nn.Module, *unused: Any) -> None:
        if own[-1][0] is part:  # an error before the forward began leaves nothing to give back
            _restore(own.pop()[1])

    children = (child for child in backbone.children() if child is not anatomy.blocks)
    parts = list(dict.fromkeys((*anatomy.blocks, anatomy.final_norm, *children)))
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    hooks += [part.register_forward_hook(end, always_call=True) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while own:
            _restore(own.pop()[1])


def _cast(module: nn.Module, name: str, wanted: Mapping[str, torch.dtype]) -> Exchanged:
    """Exchange a module's own tensors for cast ones; those that stood there."""
    kept: Exchanged = []
    places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for place in places:
        for key, tensor in place.items():
            full = f"{name}.{key}" if name else key
            if tensor is None or not tensor.is_floating_point() or wanted.get(full, tensor.dtype) == tensor.dtype:
                continue
            kept.append((place, key, tensor))
            cast = tensor.to(wanted[full])
            place[key] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
    return kept


def _restore(kept: Exchanged) -> None:
    while kept:
        place, key, tensor = kept.pop()
        place[key] = tensor


def types_of(anatomy: Anatomy) -> dict[str, torch.dtype]:
    """The type of every tensor of the backbone in the other precision."""
    other = other_precision(own_precision(anatomy))
    return types_in(anatomy.backbone, other, anatomy.names["backbone"])


def types_in(backbone: nn.Module, dtype: torch.dtype, place: str = "") -> dict[str, torch.dtype]:
    """The type of every floating-point parameter and buffer where transformers loads the backbone in `dtype`.

    Of a module that is none of transformers', or that cannot be built again, parameters take `dtype` and buffers keep
    their own type.

    Args:
        place: the backbone's name in its model, which patterns of what stays in float32 may hold.
    """
    found = {name: dtype if isinstance(each, nn.Parameter) else each.dtype for name, each in _named(backbone)}
    skeleton = _skeleton(backbone, dtype)
    if skeleton is None:
        return found
    found |= {name: tensor.dtype for name, tensor in _named(skeleton) if name in found}
    kept = planned_types(skeleton, [f"{place}.{name}" for name in found], dtype)
    return found | {name.removeprefix(f"{place}."): kind for name, kind in kept.items()}


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _skeleton(backbone: nn.Module, dtype: torch.dtype) -> Any:
    build = getattr(type(backbone), "_from_config", None)
    if build is None:
        return None
    try:
        with torch.device("meta"):
            return build(copy.deepcopy(backbone.config), dtype=dtype)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):  # what a config's own checks and __init__ raise
        return None


def own_precision(anatomy: Anatomy) -> torch.dtype:
    """What the model computes in."""
    return next(anatomy.backbone.parameters()).dtype


def other_precision(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 for float32 and float64, float32 for the small types."""
    return torch.bfloat16 if dtype in (torch.float32, torch.float64) else torch.float32
