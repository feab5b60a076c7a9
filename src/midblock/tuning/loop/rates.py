"""The learning rate by depth: a factor for each block, which the optimiser's parameter groups carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midblock.base import MidblockError
from midblock.base.depth_list import per_block, read_numbers
from midblock.tuning.place.gradients import Gradients, plain_name

OPTION = "lr_by_depth"
FACTOR = "lr_factor"  # in a parameter group
MOST = 1e3


@dataclass(frozen=True)
class DepthRates:
    """Factors of the learning rate.

    Attributes:
        blocks: one per decoder block.
        embedding: of all that comes before the first block.
        head: of all that comes behind the last block.
    """

    blocks: tuple[float, ...]
    embedding: float
    head: float

    @classmethod
    def of(cls, text: str | None, blocks: int) -> DepthRates | None:
        """Spread what `lr_by_depth` says over a model; None where it says nothing.

        Args:
            blocks: L.

        Raises:
            MidblockError: no numbers, one out of range, or more than blocks.

        Example:
            >>> DepthRates.of("0.5", 3)
            DepthRates(blocks=(0.25, 0.5, 1.0), embedding=0.125, head=1.0)
        """
        if text is None:
            return None
        numbers = read_rates(text)
        if len(numbers) == 1:
            return cls(tuple(numbers[0] ** (blocks - 1 - block) for block in range(blocks)), numbers[0] ** blocks, 1.0)
        spread = per_block(numbers, blocks, what="factors")
        return cls(spread, spread[0], spread[-1])

    def of_layer(self, layer: int) -> float:
        """The factor at a layer, -1 being the embedding and L what stands behind the last block."""
        return self.embedding if layer < 0 else self.blocks[layer] if layer < len(self.blocks) else self.head

    def as_record(self) -> Mapping[str, Any]:
        """For `plan.json`."""
        return {"embedding": self.embedding, "blocks": list(self.blocks), "head": self.head}

    def apply(self, optimizer: Any, gradients: Gradients) -> None:
        """Split an optimiser's parameter groups by factor; before its first step, and before a schedule is made.

        Raises:
            MidblockError: an optimiser that does not hold the trained parameters in groups with a rate.
        """
        named = gradients.model.named_parameters()
        factors = {
            id(value): self.of_layer(gradients.locate(plain_name(name)).layer)
            for name, value in named
            if value.requires_grad
        }
        groups = [dict(group) for group in optimizer.param_groups]
        held = [id(each) for group in groups for each in group["params"]]
        if sorted(held) != sorted(factors) or any("lr" not in group for group in groups):
            what = f"{type(optimizer).__name__} does not take a learning rate by depth"
            raise MidblockError(what, hint="--optim adamw_torch does")
        optimizer.param_groups[:] = [part for group in groups for part in _parts(group, factors)]


def read_rates(text: str) -> tuple[float, ...]:
    """The numbers of `lr_by_depth`.

    Raises:
        MidblockError: nothing there, no numbers, or one that is not above 0 and at most 1,000.
    """
    numbers = read_numbers(text, OPTION)
    for number in numbers:
        if not 0 < number <= MOST:
            what = f"{OPTION} has {number:g}; factors lie above 0 and at most at {MOST:,.0f}"
            raise MidblockError(what, hint="--layers says which blocks are not tuned at all")
    return numbers


def first_factor(optimizer: Any) -> float:
    """The factor of the group whose rate is logged."""
    return float(optimizer.param_groups[0].get(FACTOR, 1.0))


def _parts(group: dict[str, Any], factors: Mapping[int, float]) -> list[dict[str, Any]]:
    found = sorted({factors[id(each)] for each in group["params"]}, reverse=True)
    return [
        {
            **group,
            "params": [each for each in group["params"] if factors[id(each)] == factor],
            "lr": group["lr"] * factor,
            FACTOR: factor,
        }
        for factor in found
    ]
