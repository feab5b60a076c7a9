"""Gradients after the backward pass: their norm by depth and part, and the check that every planned module learns.

Cost: one norm a trained parameter; sharded ones one all-reduce of all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from midblock.base import MidblockError
from midblock.checkpoints import Projection


@dataclass(frozen=True, eq=False)
class Gradients:
    """The trained parameters of a model, and where each of them sits.

    Attributes:
        model: the model in training.
        locate: says of a parameter's name in the causal language model where it sits (`Anatomy.projection_of`).
    """

    model: nn.Module
    locate: Callable[[str], Projection]

    @cached_property
    def trained(self) -> Mapping[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @cached_property
    def places(self) -> Mapping[str, tuple[int, str]]:
        """Parameter name → layer (-1 the embedding, L the head) and part of the block."""
        found = {}
        for name in self.trained:
            where = self.locate(plain_name(name))
            found[name] = (where.layer, where.part)
        return found

    @property
    def unreached(self) -> list[str]:
        """Trained parameters that no gradient came to: of a cross attention without an encoder, for one."""
        return [name for name, value in self.trained.items() if value.grad is None]

    def squares(self) -> dict[str, float]:
        """‖∂L/∂θ‖² of each trained parameter, 0 where no gradient came; of sharded ones over all ranks.

        Raises:
            MidblockError: an adapter that got no gradient at all, by name.
        """
        if lost := next((name for name in self.unreached if ".lora_" in name), None):
            raise MidblockError(f"{plain_name(lost)} is to be trained but gets no gradient")
        local = [_zero(value) if value.grad is None else _local(value.grad) for value in self.trained.values()]
        coarse = any(each.element_size() < 4 for each in local)  # their norms would be as coarse
        norms = _wide(torch._foreach_norm(local, dtype=torch.float32 if coarse else None)).square()
        if any(isinstance(value, DTensor) for value in self.trained.values()):
            torch.distributed.all_reduce(norms)
        return dict(zip(self.trained, norms.tolist(), strict=True))

    def check_first(self, squares: Mapping[str, float]) -> None:
        """After the first backward pass: every planned module has a gradient, nothing else has one.

        Modules that no gradient reaches, as a family computes with them, may stand in a block; not be all of it.

        Raises:
            MidblockError: the module, the layer or the tensor concerned.
        """
        unreached = {name.rpartition(".")[0] for name in self.unreached}
        for owner, total in self._by_owner(squares).items():
            if not total > 0 and owner not in unreached:
                raise MidblockError(f"{plain_name(owner)} is to be trained but its gradient is exactly zero")
        for (layer, part), norm in self.by_place(squares).items():
            if part == "block" and not norm > 0:
                raise MidblockError(f"layer {layer} is to be trained but gets no gradient")
        strays = [name for name, value in self.model.named_parameters() if name not in self.trained and _has(value)]
        if strays:
            raise MidblockError(f"the frozen tensor {strays[0]} got a gradient")

    def check_moved(self) -> None:
        """After the first step at a learning rate above zero: no adapter's B is zero any more.

        Raises:
            MidblockError: the adapted module whose B still is.
        """
        names = [name for name in self.trained if ".lora_B." in name]
        if not names:
            return
        norms = _wide([_local(self.trained[name]).detach().norm() for name in names])
        if isinstance(self.trained[names[0]], DTensor):
            torch.distributed.all_reduce(norms)
        for name, norm in zip(names, norms.tolist(), strict=True):
            if not norm > 0:
                raise MidblockError(f"the adapter of {plain_name(name)} did not move in the first step")

    def by_place(self, squares: Mapping[str, float]) -> dict[tuple[int, str], float]:
        """Gradient norm by layer and part; the part "block" is all of a layer."""
        sums: dict[tuple[int, str], float] = {}
        for name, square in squares.items():
            layer, part = self.places[name]
            for key in {(layer, part), (layer, "block")}:
                sums[key] = sums.get(key, 0.0) + square
        return {key: total**0.5 for key, total in sums.items()}

    def _by_owner(self, squares: Mapping[str, float]) -> dict[str, float]:
        """Sums over each module; of an adapted one over its B alone, for A's gradient is zero while B is."""
        sums: dict[str, float] = {}
        for name, square in squares.items():
            counted = ".lora_B." in name or ".lora_" not in name
            owner = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
            sums[owner] = sums.get(owner, 0.0) + (square if counted else 0.0)
        return sums


def plain_name(name: str) -> str:
    """A parameter's name in the model itself, without what PEFT and wrappers add; of an adapter, its weight's."""
    adapted, lora, _ = name.partition(".lora_")
    parts = [part for part in adapted.split(".") if part not in ("base_layer", "_orig_mod")]
    if parts[:1] == ["module"]:
        parts = parts[1:]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(parts) + (".weight" if lora else "")


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _zero(value: Tensor) -> Tensor:
    local = _local(value)
    return torch.zeros(1, dtype=local.dtype, device=local.device)


def _wide(norms: Sequence[Tensor]) -> Tensor:
    """One vector, in float64 where the device has it."""
    kind = torch.float32 if norms[0].device.type == "mps" else torch.float64
    return torch.stack([norm.to(kind) for norm in norms])


def _has(value: Tensor) -> bool:
    return value.grad is not None and bool(_local(value.grad).any())
