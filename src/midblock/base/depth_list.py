"""A list of numbers by depth, such as `0,0.5,1`: read from text, and spread over a model's blocks.

A list shorter than the model is stretched over its blocks, by default as mergekit stretches its gradients: block i of L
stands at t = i / (L − 1), and the list is read off at t · (count − 1), linearly between its numbers. Described in
docs/causes/merge.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from midblock.base.errors import MidblockError, unknown

INTERPOLATIONS = ("gradient", "segments")


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


def per_block(
    numbers: Sequence[float], blocks: int, interpolation: str = "gradient", what: str = "alphas"
) -> tuple[float, ...]:
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
        message = f"{count} {what} fit neither the model's {blocks} blocks nor segments of them"
        raise MidblockError(message, hint="give one for each block, or fewer")
    if count in (1, blocks):
        return tuple(numbers) * (blocks if count == 1 else 1)
    if interpolation == "segments":
        return tuple(numbers[block * count // blocks] for block in range(blocks))
    return tuple(_at(numbers, block, blocks) for block in range(blocks))


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
