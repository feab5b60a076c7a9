"""How a model calls its decoder blocks, recorded, so that any block can be run again by hand on other states.

Masks, position embeddings and the like differ from block to block and from family to family; a recorded call brings
them along. So a changed model costs only the blocks at and above the change, and a block of another model of the same
shape can stand in for one of this model's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy


@dataclass(frozen=True)
class BlockCall:
    """What a block was given besides the residual stream's states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Put states through a block."""
        output = block(states, *self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output[0]


@dataclass
class BlockCalls:
    """One forward pass, block by block.

    Attributes:
        calls: how each block was called, bottom first.
        entering: the states that entered the chosen blocks, by block; key L holds what left the last one.
    """

    calls: list[BlockCall] = field(default_factory=list)
    entering: dict[int, Float[Tensor, "B T D"]] = field(default_factory=dict)

    def run(
        self, blocks: Sequence[nn.Module], states: Float[Tensor, "B T D"], first: int, stop: int
    ) -> Float[Tensor, "B T D"]:
        """Put states through blocks first…stop-1, this model's own or another's, the way they were called here.

        Args:
            blocks: all L blocks, of which those are run.
            states: what enters block `first`.
        """
        with torch.inference_mode():
            for position in range(first, stop):
                states = self.calls[position].run(blocks[position], states)
        return states


@contextmanager
def record_calls(anatomy: Anatomy, keep: Collection[int]) -> Iterator[BlockCalls]:
    """Record one forward pass inside the `with`.

    Args:
        keep: blocks whose entering states are kept; L for what leaves the last block.

    Raises:
        MidblockError: the pass did not go through all blocks once, bottom to top, each taking what the one below put
            out: such a model cannot be run block by block.
    """
    found, hooks = BlockCalls(), []
    total, left = len(anatomy), _Left()
    for position, block in enumerate(anatomy.blocks):
        on_enter = partial(_entering, found, left, position, position in keep)
        hooks.append(block.register_forward_pre_hook(on_enter, with_kwargs=True))
        hooks.append(block.register_forward_hook(partial(_leaving, left, position)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if left.position != total - 1 or left.states is None:
        raise MidblockError(f"the forward pass did not go through all {total} blocks, so they cannot be exchanged")
    if total in keep:
        found.entering[total] = left.states


@dataclass
class _Left:
    """What the block below put out."""

    position: int = -1
    states: Tensor | None = None


def _entering(
    found: BlockCalls,
    left: _Left,
    position: int,
    keep: bool,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    rest = dict(kwargs)
    states, others = (args[0], args[1:]) if args else (rest.pop("hidden_states"), ())
    as_left = left.states is None or states is left.states or torch.equal(states.to(left.states.device), left.states)
    if left.position != position - 1 or not as_left:
        what = f"does not take what block {position - 1} put out" if position else "is run more than once"
        raise MidblockError(f"block {position} {what}, so blocks cannot be run one by one")
    found.calls.append(BlockCall(others, rest))
    if keep:
        found.entering[position] = states


def _leaving(left: _Left, position: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    left.position, left.states = position, output if isinstance(output, Tensor) else output[0]


def check_rerun(anatomy: Anatomy, calls: BlockCalls, normed: Float[Tensor, "B T D"], model: str) -> None:
    """Compare what the recorded calls and the final norm give with what the model itself handed its head.

    Args:
        calls: with the states entering the last block.
        normed: the backbone's own output.

    Raises:
        MidblockError: the last block run by hand, or the final norm that was found, gives something else.
    """
    last = len(anatomy) - 1
    states = calls.run(list(anatomy.blocks), calls.entering[last], last, last + 1)
    with torch.inference_mode():
        again = anatomy.final_norm(states)
    finite = bool(torch.isfinite(normed).all())  # what is not is told where it is scored, with its prompt
    if finite and not same_states(again, normed):
        norm = anatomy.names["final_norm"]
        what = f"{model}: its last block and the final norm {norm} do not make what its head is given"
        raise MidblockError(what, hint="its blocks cannot be read or exchanged one by one")


def same_states(a: Float[Tensor, "*n D"], b: Float[Tensor, "*m D"]) -> bool:
    """Whether two ways to one result agree, but for rounding: some kernels add up in another order each time."""
    if a.shape != b.shape:
        return False
    grain, exact = torch.finfo(b.dtype).eps, b.cpu().double()
    return bool((a.cpu().double() - exact).norm() <= 2 * grain * exact.norm())
