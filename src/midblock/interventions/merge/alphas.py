"""Alphas: how much of the tuned model each tensor of a merge takes, from a list of numbers and what it is.

Described in docs/causes/merge.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.base.depth_list import read_numbers
from midblock.checkpoints import Projection
from midblock.checkpoints.roles import ATTENTION, GATE_UP, MLP, QKV, ROLES

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


def modules_of(where: Projection) -> tuple[str, ...]:
    """The module names a block's tensor answers to, the narrowest first; none outside the blocks.

    A bias also answers to the name of its projection, and to that one's part of the block. `attention` and `mlp` are
    the projections of such a part and their biases: no router, and no norm.
    """
    if where.block is None:
        return ()
    part = where.part if where.beside_part is None else where.beside_part
    return tuple(dict.fromkeys([*where.answers, *([part] if part in GROUPS else [])]))
