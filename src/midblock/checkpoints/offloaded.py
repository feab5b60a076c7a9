"""Parameters of models whose weights accelerate keeps on the CPU or the disk (`device_map`, `cpu_offload`, …).

Such a model shows an empty place on the `meta` device, and a hook brings the values while the module runs. They are
read by way of that hook; written they cannot be, for what is written into an empty place is lost without a word.
"""

from __future__ import annotations

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
    value = model.get_parameter(name)
    if not value.is_meta:
        return value.detach()
    place, _, leaf = name.rpartition(".")
    owner = model.get_submodule(place)
    for above in _upwards(place):  # a hook may stand at a module for all that is in it
        found = _brought(model.get_submodule(above), owner, leaf)
        if found is not None:
            return found
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


def _upwards(place: str) -> list[str]:
    parts = place.split(".") if place else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _brought(hooked: nn.Module, owner: nn.Module, leaf: str) -> Tensor | None:
    """The value that a module's hook brings; None where it has no such hook."""
    if getattr(hooked, "_hf_hook", None) is None:
        return None
    from accelerate.utils.modeling import align_module_device, has_offloaded_params

    if not has_offloaded_params(hooked):
        return None
    with align_module_device(hooked, torch.device("cpu")):
        value = owner.get_parameter(leaf)
        return None if value.is_meta else value.detach().clone()
