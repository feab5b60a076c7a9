"""Outline: how a model calls its blocks, found without a weight of any block.

The model's own forward runs with its blocks stepped over, each handing on a stand-in for its states; so masks, position
tables and what else blocks are given come from the model itself. That what it gives them hangs on none of their states
is seen on a few tokens: two runs with other stand-ins must give the same. Cost: the embedding, and a call a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Variant
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.checkpoints.own_logits import stepped_over
from midblock.trace.calls import BlockCall, BlockCalls, record_calls
from midblock.trace.residual import run_backbone

TRIED = 16  # tokens on which a model is tried
HINT = "without --max-memory it is loaded whole"

StandIn = Callable[[int, Tensor], Tensor]

_UNKNOWN = object()  # what a block puts out besides its states: no other block may be given it


@dataclass(frozen=True)
class Outline:
    """A model whose blocks can be stepped over.

    Attributes:
        others: what its blocks put out besides their states: nothing, or so many things in a tuple.
        hands_on: its blocks write into something that blocks above read.
    """

    anatomy: Anatomy
    others: int | None = None
    hands_on: bool = False

    @classmethod
    def of(cls, anatomy: Anatomy, input_ids: Int[Tensor, "B T"], model: str) -> Outline:
        """Try on a few tokens that the model can be run block by block.

        Args:
            anatomy: of a model with the weights of all but its blocks.
            model: what errors call it.

        Raises:
            MidblockError: it cannot.
        """
        reason: Exception | None = None
        for others in (None, 0, 1, 2):
            try:
                return cls(anatomy, others)._checked(input_ids)
            except torch.OutOfMemoryError:
                raise
            except (MidblockError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
                reason = error if reason is None or isinstance(error, MidblockError) else reason
        said = reason.what if isinstance(reason, MidblockError) else (str(reason).strip() or type(reason).__name__)
        what = f"{model} cannot be run block by block: {said.splitlines()[0].rstrip('.')}"
        raise MidblockError(what, hint=HINT) from reason

    def record(self, input_ids: Int[Tensor, "B T"]) -> BlockCalls:
        """How the blocks are called for a batch, and what enters block 0."""
        with self.stepped_over(_passed_on), record_calls(self.anatomy, (0,)) as calls:
            run_backbone(self.anatomy, input_ids)
        return calls

    @classmethod
    @contextmanager
    def tried(cls, model: BlockwiseModel, input_ids: Int[Tensor, "B T"]) -> Iterator[Outline]:
        """Inside the `with`, a model runs without its large weights, so that what is checked of whole models can be.

        Its blocks, its embedding and its head hand on stand-ins, the same each time.

        Args:
            input_ids: a few tokens, on which the outline is found.

        Raises:
            MidblockError: it cannot be run block by block.
        """
        anatomy, kind = model.anatomy, next(model.anatomy.embedding.parameters()).dtype
        with ExitStack() as stack:
            stack.enter_context(model.loaded("around", "final_norm"))
            for part in ("head", "embedding", *range(len(anatomy))):
                stack.enter_context(model.stood_in(part))
            stack.enter_context(
                stepped_over(
                    {
                        anatomy.head: partial(_as_head, len(anatomy.head.get_parameter("weight"))),
                        anatomy.embedding: partial(_as_embedding, anatomy.width, kind),
                    }
                )
            )
            found = cls.of(anatomy, input_ids, model.name)
            stack.enter_context(found.stepped_over(partial(drawn, 0)))
            yield found

    @contextmanager
    def stepped_over(self, stand_in: StandIn) -> Iterator[None]:
        """Inside the `with`, each block hands on a stand-in, made of its number and what entered it."""
        blocks = self.anatomy.blocks
        with stepped_over({each: partial(self._hand_on, stand_in, number) for number, each in enumerate(blocks)}):
            yield

    def _hand_on(self, stand_in: StandIn, number: int, *args: Any, **kwargs: Any) -> Any:
        states = stand_in(number, args[0] if args else kwargs["hidden_states"])
        return states if self.others is None else (states, *([_UNKNOWN] * self.others))

    def _checked(self, input_ids: Tensor) -> Outline:
        one, other = (self._tried(input_ids, draw) for draw in (1, 2))
        if not same_calls(one, other) or any(call.holds(_UNKNOWN) for call in one.calls):
            raise MidblockError("what its blocks are given besides their states hangs on the blocks below")
        return replace(self, hands_on=any(call.writes for call in one.calls))

    def _tried(self, input_ids: Tensor, draw: int) -> BlockCalls:
        norm, seen = self.anatomy.final_norm, dict[str, Tensor]()
        hooks = [norm.register_forward_pre_hook(lambda module, args: seen.update(given=args[0]))]
        hooks.append(norm.register_forward_hook(lambda module, args, output: seen.update(made=output)))
        total = len(self.anatomy)
        try:
            with self.stepped_over(partial(drawn, draw)), record_calls(self.anatomy, (0, total)) as calls:
                output = run_backbone(self.anatomy, input_ids)
        finally:
            for hook in hooks:
                hook.remove()
        if "made" not in seen or not torch.equal(seen["given"], calls.entering[total]):
            raise MidblockError("its final norm is given something else than its last block puts out")
        if not torch.equal(output, seen["made"]):
            raise MidblockError("its decoder puts out something else than its final norm")
        return calls


def drawn(draw: int, number: int, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Random states of a block, the same each time for one draw."""
    stream = torch.Generator().manual_seed(1_000_003 * draw + number + 1)
    return torch.randn(states.shape, generator=stream).to(states.device, states.dtype)


def _as_embedding(width: int, kind: torch.dtype, input_ids: Tensor) -> Tensor:
    return drawn(0, -1, torch.empty((*input_ids.shape, width), dtype=kind, device=input_ids.device))


def _as_head(vocabulary: int, states: Tensor) -> Tensor:
    """Something for each id that hangs on the states."""
    ramp = torch.linspace(-1, 1, vocabulary, dtype=states.dtype, device=states.device)
    return states.sum(-1, keepdim=True) * ramp


def _passed_on(number: int, states: Tensor) -> Tensor:
    return states.view_as(states)


def same_calls(one: BlockCalls, other: BlockCalls) -> bool:
    """Whether the blocks were given the same besides their states, in two passes."""
    pairs = list(zip(one.calls, other.calls, strict=True))
    return all(
        a.kwargs.keys() == b.kwargs.keys()
        and same_values((a.args, tuple(a.kwargs.values())), (b.args, tuple(b.kwargs[key] for key in a.kwargs)))
        for a, b in pairs
    )


def same_values(a: Any, b: Any) -> bool:
    """Whether two arguments are the same, tensors by their values."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same_values, a, b))
    if isinstance(a, bool | int | float | str):
        return type(a) is type(b) and a == b
    return isinstance(a, nn.Module) or type(a) is type(b)


@contextmanager
def tried(variant: Variant, input_ids: Int[Tensor, "B T"]) -> Iterator[Outline | None]:
    """Inside the `with`, a model can be checked on a few tokens as a whole one, also where it is in parts (`Outline`).

    Raises:
        MidblockError: as `Outline.tried`.
    """
    if variant.parts is None:
        yield None
        return
    with Outline.tried(variant.parts, input_ids) as found:
        yield found


class Shared:
    """Equal tensors in the calls of many batches, kept once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}

    def of(self, calls: BlockCalls) -> BlockCalls:
        """The same calls, with tensors that were there before."""
        found = [
            BlockCall(self._each(call.args), {key: self._each(value) for key, value in call.kwargs.items()})
            for call in calls.calls
        ]
        return BlockCalls(found, calls.entering)

    def _each(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(self._each, value))
        if not isinstance(value, Tensor):
            return value
        there = self._known.setdefault((value.shape, value.dtype, value.device), [])
        known = next((each for each in there if each is value or torch.equal(each, value)), None)
        if known is None:
            there.append(value)
        return value if known is None else known
