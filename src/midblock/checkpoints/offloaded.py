"""Parameters of models whose weights accelerate keeps on the CPU or the disk (`device_map`, `cpu_offload`, …).

Such a model shows an empty place on the `meta` device, and a hook brings the values while the module runs. They are
read by way of that hook; written they cannot be, for what is written into an empty place is lost without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from midblock.base import MidblockError

HINT = "load the model whole: device='cpu', or a device that holds it"


def held_value(model: nn.Module, name: str) -> Shaped[Tensor, "*shape"]:
    """A parameter's value, wherever it is kept; on the CPU where that is not a device.

    Raises:
        MidblockError: it has none.

    Example:
        >>> held_value(nn.Linear(3, 2), "weight").shape
        torch.Size([2, 3])
    """
    value = _value(model, name)
    if value is not None:
        return value
    raise MidblockError(f"{name} has no values: it is on the meta device", hint=HINT)


def check_writable(model: nn.Module, what: str) -> None:
    """Do nothing where every parameter is in memory.

    Args:
        what: that cannot be had otherwise, to begin the message.

    Raises:
        MidblockError: one is not; it is named.
    """
    for name, value in model.named_parameters():
        if value.is_meta:
            raise MidblockError(f"{what}: {name} is not in memory, and cannot be written", hint=HINT)


def parameters_once(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by name, tied ones once: also those that offloading parted into two empty places."""
    found = dict(model.named_parameters())
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in tied.items():
        if not {name, source} <= found.keys() or not (found[name].is_meta or found[source].is_meta):
            continue
        values = [_value(model, each) for each in (name, source)]
        if values[0] is not None and values[1] is not None and torch.equal(values[0].cpu(), values[1].cpu()):
            del found[name]
    return found


def hooks_of(module: nn.Module) -> list[Any]:
    """accelerate's hooks of a module, those in sequence one by one."""
    waiting, found = [getattr(module, "_hf_hook", None)], []
    while waiting:
        hook = waiting.pop(0)
        if hook is not None:
            within = getattr(hook, "hooks", None)
            waiting[:0] = within or ()
            found += [] if within is not None else [hook]
    return found


def _value(model: nn.Module, name: str) -> Tensor | None:
    """A parameter's value; None where nobody keeps it."""
    value = model.get_parameter(name)
    if not value.is_meta:
        return value.detach()
    place, _, leaf = name.rpartition(".")
    owner, parts = model.get_submodule(place), place.split(".") if place else []
    for count in range(len(parts), -1, -1):  # a hook may stand at a module for all that is in it
        above = model.get_submodule(".".join(parts[:count]))
        for hook in hooks_of(above):
            found = _brought(hook, above, owner, leaf)
            if found is not None:
                return found
    return None


def _brought(hook: Any, hooked: nn.Module, owner: nn.Module, leaf: str) -> Tensor | None:
    """The value that a hook brings to the CPU; None where it brings none."""
    if not getattr(hook, "offload", False):
        return None
    before, hook.execution_device = hook.execution_device, torch.device("cpu")
    try:
        hook.pre_forward(hooked)
        value = owner.get_parameter(leaf)
        return None if value.is_meta else value.detach().clone()
    finally:
        hook.post_forward(hooked, None)
        hook.execution_device = before
