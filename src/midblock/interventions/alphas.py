"""Alphas: how much of the tuned model each tensor of a merge takes, from a list of numbers and a tensor's name.

A list shorter than the model is stretched over its blocks, by default as mergekit stretches its gradients: block i of L
stands at t = i / (L − 1), and the list is read off at t · (count − 1), linearly between its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.checkpoints import ATTENTION, MLP, place
from midblock.checkpoints.roles import ROLES

INTERPOLATIONS = ("gradient", "segments")
GROUPS = ("attention", "mlp")
ROLE_NAMES = frozenset({*ATTENTION, *MLP, *ROLES.values(), *GROUPS, "norm", "bias"})
OUTSIDE = {"embedding": "--embedding-alpha", "head": "--head-alpha", "lm_head": "--head-alpha"}
_IN_ATTENTION = {*ATTENTION, "qkv"}
_IN_MLP = {*MLP, "gate_up", "router"}


@dataclass(frozen=True)
class Alphas:
    """α of every tensor of one model.

    Attributes:
        blocks: one α per decoder block.
        embedding: of all that comes before the first block.
        head: of all that comes after the last block; of a tied head the embedding's is taken instead.
        overrides: for each module given by name, one α per block.
    """

    blocks: tuple[float, ...]
    embedding: float
    head: float
    overrides: Mapping[str, tuple[float, ...]]

    def of(self, name: str) -> float:
        """α of the tensor `name`."""
        layer = place(name, len(self.blocks)).layer
        if layer < 0:
            return self.embedding
        if layer >= len(self.blocks):
            return self.head
        override = self.override_of(name)
        return self.blocks[layer] if override is None else self.overrides[override][layer]

    def override_of(self, name: str) -> str | None:
        """The override that decides the tensor's α, its own module's before its group's; None where none does."""
        return next((module for module in modules_of(name, len(self.blocks)) if module in self.overrides), None)

    def check_overrides(self, names: Iterable[str]) -> None:
        """Do nothing if every override decides at least one of the tensors `names`.

        Raises:
            MidblockError: one that decides none; where fused tensors hold its module, they are named.
        """
        deciding = {self.override_of(name) for name in names}
        present = sorted({module for name in names for module in modules_of(name, len(self.blocks))})
        for module in self.overrides:
            if module in deciding:
                continue
            if module not in ROLE_NAMES and module not in present:
                raise unknown("module", module, {*ROLE_NAMES, *present})
            fused = next((whole for whole, parts in (("qkv", ATTENTION[:3]), ("gate_up", MLP[:2])) if module in parts
                          and whole in present), None)  # fmt: skip
            hint = f"it is stored together with others as {fused}" if fused else f"it has {', '.join(present)}"
            raise MidblockError(f"no tensor of the model takes the alphas of the module {module}", hint=hint)


def read_numbers(given: str | float | Sequence[float], what: str = "alphas") -> tuple[float, ...]:
    """Read one number or several, as a text with commas or as numbers.

    Raises:
        MidblockError: nothing there, or something that is no finite number; the message begins with `what`.
    """
    parts: Sequence[str | float] = [given] if isinstance(given, int | float) else given
    if isinstance(given, str):
        parts = [part.strip() for part in given.strip().strip("[]").split(",")]
    numbers = [_number(part, what) for part in parts]
    if not numbers:
        raise MidblockError(f"{what}: no number given", hint="one, or several like 0,0.5,1")
    return tuple(numbers)


def read_overrides(given: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Read texts like `mlp=0,1`.

    Raises:
        MidblockError: one that has no name or no numbers, names an embedding or head, or a name given twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in given:
        module, sign, numbers = text.partition("=")
        module = module.strip()
        if not sign or not module:
            raise MidblockError(f"cannot read the module alphas {text!r}", hint="write them like mlp=0,0.5,1")
        if module in OUTSIDE:
            raise MidblockError(f"{module} is in no block", hint=f"{OUTSIDE[module]} sets its alpha")
        if module in found:
            raise MidblockError(f"the module {module} is given alphas twice")
        found[module] = read_numbers(numbers, f"alphas of {module}")
    return found


def per_block(numbers: Sequence[float], blocks: int, interpolation: str = "gradient") -> tuple[float, ...]:
    """Spread a list over the blocks.

    Args:
        numbers: one for all blocks, one for each, or fewer than blocks.
        blocks: L.
        interpolation: of fewer: `gradient` (linear, as mergekit) or `segments` (equal depth segments, constant).

    Raises:
        MidblockError: more numbers than blocks, or an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    count = len(numbers)
    if count > blocks:
        what = f"{count} alphas fit neither the model's {blocks} blocks nor segments of them"
        raise MidblockError(what, hint="give one for each block, or fewer")
    if count in (1, blocks):
        return tuple(numbers) * (blocks if count == 1 else 1)
    if interpolation == "segments":
        return tuple(numbers[block * count // blocks] for block in range(blocks))
    return tuple(_at(numbers, block, blocks) for block in range(blocks))


def modules_of(name: str, blocks: int) -> tuple[str, ...]:
    """The module names a block's tensor answers to, the narrowest first; none outside the blocks.

    A bias also answers to the name of its projection. `attention` and `mlp` hold whatever lies in such a part of the
    block: biases, the router, norms of queries and keys, but not the norms between the parts.
    """
    where = place(name, blocks)
    if not 0 <= where.layer < blocks:
        return ()
    parts = name.split(".")
    found = [where.module]
    if parts[-1] == "bias":
        found.append(place(".".join([*parts[:-1], "weight"]), blocks).module)
    inside = parts[next(index for index, part in enumerate(parts) if part.isdigit()) + 1 :]
    containers = inside[: -2 if inside[-1] in ("weight", "bias") else -1]
    group = _group(found[-1], containers)
    return tuple(dict.fromkeys([*found, *([group] if group else [])]))


def _group(role: str, containers: Sequence[str]) -> str | None:
    if role in _IN_ATTENTION or any("attn" in part or "attention" in part for part in containers):
        return "attention"
    inside_mlp = any(word in part for part in containers for word in ("mlp", "moe", "expert", "feed_forward", "ffn"))
    return "mlp" if role in _IN_MLP or inside_mlp else None


def _number(given: str | float, what: str) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError) as error:
        raise MidblockError(f"{what}: {given!r} is no number", hint="write them like 0,0.5,1") from error
    if not math.isfinite(number):
        raise MidblockError(f"{what}: {given} is not finite")
    return number


def _at(numbers: Sequence[float], block: int, blocks: int) -> float:
    # In whole numbers, so that a block that stands on one of the list's numbers gets just that number.
    first, rest = divmod(block * (len(numbers) - 1), blocks - 1)
    if rest == 0:
        return float(numbers[first])
    share = rest / (blocks - 1)
    return (1 - share) * numbers[first] + share * numbers[first + 1]
