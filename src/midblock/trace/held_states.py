"""Hold one batch's states of all layers, for what must see several of them together, or run a block again on its own.

Which tokens are sinks is known only behind the last block; what another model's block makes of this model's states
takes the state that entered here. Cost: (L+2)·B·T·D numbers for as long as a batch is looked at, and nothing in time.
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
        states: by layer, -1 what enters block 0, 0…L-1 what leaves each block, L what leaves the final norm.
        calls: how each block was called; None where that was not asked for.
        overwrites: whether some block writes over what it is given.
    """

    states: Mapping[int, Float[Tensor, "B T D"]]
    calls: BlockCalls | None = None
    overwrites: bool = False

    def through(self, anatomy: Anatomy, block: int) -> Float[Tensor, "B T D"]:
        """What a block of `anatomy`, of this or another model, makes of just what this pass gave its own.

        That is the entering state, the position embeddings and masks, and whatever blocks below had left for it.
        """
        if self.calls is None:
            raise MidblockError("the blocks' calls were not recorded")
        entering = self.states[block - 1].to(device_of(anatomy.blocks[block]))
        entering = entering.clone() if self.overwrites else entering
        return self.calls.run(list(anatomy.blocks), entering, block, block + 1)


def hold_states(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], *, calls: bool = False) -> HeldStates:
    """Run a model without its head and keep what every layer puts out.

    Args:
        calls: record how blocks are called too.

    Raises:
        MidblockError: more than one stream; with `calls`, blocks that cannot be run one by one.
    """
    held, versions = _run(anatomy, input_ids, calls=calls, copies=False)
    if any(states._version != versions[layer] for layer, states in held.states.items()):
        held, _ = _run(anatomy, input_ids, calls=calls, copies=True)
    return held


def _run(
    anatomy: Anatomy, input_ids: Int[Tensor, "B T"], *, calls: bool, copies: bool
) -> tuple[HeldStates, dict[int, int]]:
    states: dict[int, Tensor] = {}
    versions: dict[int, int] = {}

    def on_layer(layer: int, found: Tensor) -> None:
        states[layer] = found.clone() if copies else found
        versions[layer] = states[layer]._version

    recording: Any = record_calls(anatomy, ()) if calls else nullcontext()
    with watch(anatomy, range(-1, len(anatomy) + 1), on_layer), recording as recorded:
        run_backbone(anatomy, input_ids, versions=True)
    return HeldStates(states, recorded, copies), versions


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
