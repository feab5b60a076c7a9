"""Whether the blocks of a pair can be run on their own, each on what the other's was given: seen before the long pass.

Own change needs it. Where a family's blocks cannot be run one by one it is left out and said; what blocks are given
beside the states (positions, masks) is the base's, and it is said where the tuned model's would be other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.prompts import Prompts
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair
from midblock.evaluation import CHECKED
from midblock.trace import HeldStates, check_blocks_alone, hold_states
from midblock.trace.outline import tried


def own_change_notes(pair: Pair, prompts: Prompts) -> tuple[bool, list[str]]:
    """Try every block of every model on a few tokens.

    Returns:
        Whether own change cannot be had, and what a reader must know.
    """
    ids = prompts.deep[0].start(CHECKED).input_ids
    notes: list[str] = []
    try:
        with ExitStack() as stack:
            for variant in pair:
                outline = stack.enter_context(tried(variant, ids))
                if outline is not None and outline.hands_on:
                    raise MidblockError(f"{variant.name} hands on more than states, and is walked block by block")
            notes += _other_surroundings(pair, ids)
    except torch.OutOfMemoryError:
        raise
    except (MidblockError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
        reason = said.strip().splitlines()[0].rstrip(".")
        return True, [f"No own change of blocks (change_own, change_reaction, own_share): {reason}."]
    return False, notes


def _other_surroundings(pair: Pair, ids: Tensor) -> list[str]:
    """Run every block alone; a note for each tuned model whose blocks are given something else than the base's."""
    base, notes = Anatomy.of(pair.base.model), []
    check_blocks_alone(base, ids)
    held = hold_states(base, ids, calls=True)
    for variant in pair.tuned:
        anatomy = Anatomy.of(variant.model)
        check_blocks_alone(anatomy, ids)
        for block in range(len(base)):
            held.through(anatomy, block)
        if not _same_surroundings(held, hold_states(anatomy, ids, calls=True)):
            notes.append(
                f"The blocks of {variant.name} are given other positions or masks than the base's: what that does "
                "counts as reaction, not as change of their own."
            )
    return notes


def _same_surroundings(one: HeldStates, other: HeldStates) -> bool:
    ours, theirs = list(_tensors(one)), list(_tensors(other))
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in zip(ours, theirs, strict=True)
    )


def _tensors(held: HeldStates) -> Iterator[Tensor]:
    """What the blocks of a pass were given beside the states."""
    for call in held.calls.calls if held.calls else ():
        for value in (*call.args, *call.kwargs.values()):
            yield from _leaves(value)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _leaves(each)
