"""Hold one batch's states of all layers, for what must see several of them together, or run a block again on its own.

Which tokens are sinks is known only behind the last block; what another model's block makes of this model's states
takes the state that entered here. Cost: (L+2)·B·T·D numbers for as long as a batch is looked at, and time to copy
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.trace.calls import BlockCalls, record_calls, same_states
from midblock.trace.residual import run_backbone, watch


@dataclass(frozen=True)
class HeldStates:
    """One forward pass.

    Attributes:
        states: copies by layer, -1 what enters block 0, 0…L-1 what leaves each block, L what leaves the final norm.
        calls: how each block was called; None where that was not asked for.
    """

    states: Mapping[int, Float[Tensor, "B T D"]]
    calls: BlockCalls | None = None

    def through(self, anatomy: Anatomy, block: int) -> Float[Tensor, "B T D"]:
        """What a block of `anatomy`, of this or another model, makes of just what this pass gave its own.

        That is the entering state, the position embeddings and masks, and whatever blocks below had left for it.
        """
        if self.calls is None:
            raise MidblockError("the blocks' calls were not recorded")
        # A block may write over what it is given.
        entering = self.states[block - 1].to(device_of(anatomy.blocks[block]), copy=True)
        return self.calls.run(list(anatomy.blocks), entering, block, block + 1)


def hold_states(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], *, calls: bool = False) -> HeldStates:
    """Run a model without its head and keep a copy of what every layer puts out.

    Args:
        calls: record how blocks are called too.

    Raises:
        MidblockError: more than one stream; with `calls`, blocks that cannot be run one by one.
    """
    states: dict[int, Tensor] = {}
    shelf: list[Tensor] = []

    def on_layer(layer: int, found: Tensor) -> None:
        states[layer] = _copied(found, layer + 1, len(anatomy) + 2, shelf)

    recording: Any = record_calls(anatomy, ()) if calls else nullcontext()
    with watch(anatomy, range(-1, len(anatomy) + 1), on_layer), recording as recorded:
        run_backbone(anatomy, input_ids)
    return HeldStates(states, recorded)


def _copied(states: Tensor, place: int, places: int, shelf: list[Tensor]) -> Tensor:
    """A copy, on the CPU inside one piece of memory for all layers.

    States kept one by one lie between the passing ones, and the allocator then hands memory back and asks for it
    anew at every block: a sixth of the forward pass.
    """
    if states.device.type != "cpu":
        return states.clone()
    if not shelf:
        shelf.append(states.new_empty((places, *states.shape)))
    into = shelf[0]
    if into.shape[1:] != states.shape or into.dtype != states.dtype:
        return states.clone()
    return into[place].copy_(states)


def check_blocks_alone(anatomy: Anatomy, input_ids: Int[Tensor, "B T"]) -> None:
    """See on a few tokens that each block, run by hand on what it was given, puts out what it did in its model.

    Raises:
        MidblockError: it does not, or its blocks cannot be run one by one; the message names the block.
    """
    held = hold_states(anatomy, input_ids, calls=True)
    for block in range(len(anatomy)):
        try:
            again = held.through(anatomy, block)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MidblockError(f"block {block} cannot be run alone: {reason}") from error
        finite = bool(torch.isfinite(held.states[block]).all())
        if finite and not same_states(again, held.states[block]):
            raise MidblockError(f"block {block} alone does not make what it makes in its model")
