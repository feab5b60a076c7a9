"""Alphas: how much of the tuned model each tensor of a merge takes, from a list of numbers and what it is.

A list shorter than the model is stretched over its blocks, by default as mergekit stretches its gradients: block i of L
stands at t = i / (L − 1), and the list is read off at t · (count − 1), linearly between its numbers. Described in
docs/causes/merge.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.checkpoints import Projection
from midblock.checkpoints.roles import ATTENTION, GATE_UP, MLP, QKV, ROLES

INTERPOLATIONS = ("gradient", "segments")
GROUPS = ("attention", "mlp")
ROLE_NAMES = frozenset(
    {
        *ATTENTION,
        *MLP,
        *(role for names in ROLES.values() for role in names.values()),
        *GROUPS,
        "router",
        "norm",
        "bias",
    }
)
OUTSIDE = {"embedding": "--embedding-alpha", "head": "--head-alpha", "lm_head": "--head-alpha"}


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

    def of(self, where: Projection) -> float:
        """α of a tensor."""
        if where.block is None:
            return self.embedding if where.layer < 0 else self.head
        override = self.override_of(where)
        return self.blocks[where.block] if override is None else self.overrides[override][where.block]

    def override_of(self, where: Projection) -> str | None:
        """The override that decides a tensor's α, its own module's before its group's; None where none does."""
        return next((module for module in modules_of(where) if module in self.overrides), None)

    def check_overrides(self, tensors: Iterable[Projection]) -> None:
        """Do nothing if every override decides at least one of the tensors.

        Raises:
            MidblockError: one that decides none; where fused tensors hold its module, they are named.
        """
        tensors = list(tensors)
        deciding = {self.override_of(where) for where in tensors}
        present = sorted({module for where in tensors for module in modules_of(where)})
        for module in self.overrides:
            if module in deciding:
                continue
            if module not in ROLE_NAMES and module not in present:
                raise unknown("module", module, {*ROLE_NAMES, *present})
            fused = next((whole for whole, parts in (("qkv", QKV), ("gate_up", GATE_UP)) if module in parts
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


def modules_of(where: Projection) -> tuple[str, ...]:
    """The module names a block's tensor answers to, the narrowest first; none outside the blocks.

    A bias also answers to the name of its projection, and to that one's part of the block. `attention` and `mlp` are
    the projections of such a part and their biases: no router, and no norm.
    """
    if where.block is None:
        return ()
    part = where.part if where.beside_part is None else where.beside_part
    return tuple(dict.fromkeys([*where.answers, *([part] if part in GROUPS else [])]))


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
