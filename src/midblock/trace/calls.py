"""How a model calls its decoder blocks, recorded, so that any block can be run again by hand on other states.

Masks, position embeddings and the like differ from block to block and from family to family; a recorded call brings
them along. So a changed model costs only the blocks at and above the change, and a block of another model of the same
shape can stand in for one of this model's. What blocks write into on their way, such as keys and values that blocks
above read, is a copy of what it held when the first of them was called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.trace.residual import check_one_stream, run_backbone, watch


class Held:
    """What blocks write into and read from on their way: containers of one pass, each by the one that was recorded."""

    def __init__(self, copies: dict[int, Any] | None = None) -> None:
        self._copies: dict[int, Any] = copies or {}

    def branched(self) -> Held:
        """The same contents, free to go another way."""
        return Held({key: _copied(value) for key, value in self._copies.items()})

    def filled(self, value: Any) -> Any:
        """An argument as a block is given it now."""
        if isinstance(value, _Container):
            return self._copies.setdefault(id(value.given), _copied(value.content))
        return type(value)(map(self.filled, value)) if type(value) is tuple else value


@dataclass(frozen=True)
class _Container:
    """A container that a block was given, itself, and what it held then."""

    given: Any
    content: Any


@dataclass(frozen=True)
class BlockCall:
    """What a block was given besides the residual stream's states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def writes(self) -> bool:
        """Whether the block may write into what it is given."""
        return self._any(lambda value: isinstance(value, _Container))

    def holds(self, thing: object) -> bool:
        """Whether the block is given just this."""
        return self._any(lambda value: value is thing)

    def _any(self, wanted: Callable[[Any], bool]) -> bool:
        return _any_of((*self.args, *self.kwargs.values()), wanted)

    def run(self, block: nn.Module, states: Float[Tensor, "B T D"], held: Held) -> Float[Tensor, "B T D"]:
        """Put states through a block."""
        named = {name: held.filled(value) for name, value in self.kwargs.items()}
        output = block(states, *map(held.filled, self.args), **named)
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
        self,
        blocks: Sequence[nn.Module],
        states: Float[Tensor, "B T D"],
        first: int,
        stop: int,
        held: Held | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Put states through blocks first…stop-1, this model's own or another's, the way they were called here.

        Args:
            blocks: all L blocks, of which those are run.
            states: what enters block `first`.
            held: of the blocks below, where they were run by hand too; written into. Left out, what block `first`
                found in the recorded pass.
        """
        held = Held() if held is None else held
        with torch.inference_mode():
            for position in range(first, stop):
                states = self.calls[position].run(blocks[position], states, held)
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
        on_enter = partial(_entering, found, left, anatomy.width, position, position in keep)
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
    width: int,
    position: int,
    keep: bool,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    rest = dict(kwargs)
    states, others = (args[0], args[1:]) if args else (rest.pop("hidden_states"), ())
    check_one_stream(states, position - 1, width)
    as_left = left.states is None or states is left.states or torch.equal(states.to(left.states.device), left.states)
    if left.position != position - 1 or not as_left:
        what = f"does not take what block {position - 1} put out" if position else "is run more than once"
        raise MidblockError(f"block {position} {what}, so blocks cannot be run one by one")
    named = {name: _recorded(value, position) for name, value in rest.items()}
    found.calls.append(BlockCall(tuple(_recorded(value, position) for value in others), named))
    if keep:
        found.entering[position] = states


def _recorded(value: Any, position: int) -> Any:
    """An argument as it is kept; of what a block may write into, what it holds now.

    Raises:
        MidblockError: a cache, which cannot be wound back.
    """
    if isinstance(value, MutableMapping | list):
        return _Container(value, _copied(value))
    if type(value) is tuple:
        return tuple(_recorded(each, position) for each in value)
    if not isinstance(value, Tensor | nn.Module) and hasattr(value, "update"):
        what = f"block {position} is given a {type(value).__name__}, whose content changes as blocks are run"
        raise MidblockError(what, hint="its blocks cannot be exchanged one by one")
    return value


def _any_of(values: tuple[Any, ...], wanted: Callable[[Any], bool]) -> bool:
    """Whether a value, or one inside a tuple, is wanted."""
    return any(wanted(value) or (type(value) is tuple and _any_of(value, wanted)) for value in values)


def _copied(value: Any) -> Any:
    # mappings get new tensors for old ones; tensors in a list may be written into
    return (
        [each.clone() if isinstance(each, Tensor) else each for each in value] if type(value) is list else copy(value)
    )


def _leaving(left: _Left, position: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    left.position, left.states = position, output if isinstance(output, Tensor) else output[0]


def check_stream(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], model: str) -> Float[Tensor, "B T D"]:
    """See that what leaves each block is the residual stream, and the final norm its last: one pass over a few tokens.

    Either each block takes what the one below put out, or the model's own hidden states are what leaves its blocks.

    Returns:
        What the final norm puts out.

    Raises:
        MidblockError: neither: what was found is no stack of decoder blocks, or they hand on more than one stream; or
            the norm that was found is given something else than the last block puts out.
    """
    hint, last = "its states cannot be read; --weights-only needs none", len(anatomy) - 1
    seen: dict[int, Tensor] = {}
    try:
        with watch(anatomy, (last, last + 1), partial(_keep, seen)), record_calls(anatomy, ()):
            run_backbone(anatomy, input_ids)
    except MidblockError as reason:
        if not _are_its_own(anatomy, input_ids, seen):
            raise MidblockError(f"{model}: {reason.what}", hint=hint) from reason
    if bool(torch.isfinite(seen[last]).all()):
        with torch.inference_mode():
            again = anatomy.normed(seen[last])
        if not same_states(again, seen[last + 1]):
            norm = anatomy.names["final_norm"]
            what = f"{model}: its final norm {norm} is given something else than its last block puts out"
            raise MidblockError(what, hint=hint)
    return seen[last + 1]


def _are_its_own(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], seen: dict[int, Tensor]) -> bool:
    """Whether a model's own hidden states are what enters its blocks; `seen` gets what leaves every layer."""
    ids = input_ids.to(device_of(anatomy.embedding))
    try:
        with watch(anatomy, range(-1, len(anatomy) + 1), partial(_keep, seen)), torch.no_grad():
            answer = anatomy.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    except MidblockError:  # the first reason says more
        return False
    own = getattr(answer, "hidden_states", None)
    if own is None or len(own) != len(anatomy) + 1:
        return False
    return all(same_states(seen[layer], own[layer + 1]) for layer in range(-1, len(anatomy) - 1))


def _keep(seen: dict[int, Tensor], layer: int, states: Tensor) -> None:
    seen[layer] = states.clone()


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
        again = anatomy.normed(states)
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
