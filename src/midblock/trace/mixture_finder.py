"""Find the mixtures of experts of a model: which module of a block runs them, and which chooses among them.

Nothing is taken from names: the experts are the module in the block that is called with whole numbers and weights for
each token, which is the choice, and the router is the innermost module whose output that very choice is. All of it is
found on a few tokens of two prompts, and checked there: rows are prompt by prompt, no prompt's choice hangs on the
other, and a router asked again by hand says the same. Cost: two passes over those tokens, by either engine of `walk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.trace.routing import Call, Choice, Mixture, choice_of, is_index, watch_choices
from midblock.trace.walk import Asked, Note, Pass, Watching, Work

AGREEING = 0.9  # of choices, between two ways that differ by rounding; where tokens are in another order few agree
ALIKE = 1e-2  # of a token's weights: what bfloat16 leaves of a sum to one


@dataclass(eq=False)
class MixtureFinder:
    """Of one model.

    Attributes:
        anatomy: of the model; block by block its weights come and go.
        found: by block; of a block without experts nothing.
        calls: what each router that can be asked by hand was given, by block.
    """

    anatomy: Anatomy
    found: dict[int, Mixture] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    _seen: dict[int, Choice] = field(default_factory=dict)
    _alone: dict[int, Choice] = field(default_factory=dict)

    def work(self, model: str, both: Batch, last: Batch) -> Work:
        """Fill `found` and `calls`.

        Args:
            model: its name among those that are walked.
            both: real tokens of two prompts or more, without padding.
            last: the last of them alone.

        Raises:
            MidblockError: a block's choice cannot be read; the message names the block.
        """
        if not (blocks := with_experts(self.anatomy)):
            return
        passes = ((both, self._looking(both)), (last, self._listening))
        yield Asked(tuple(Pass(model, batch, batch.region("all"), hold=True, watching=each) for batch, each in passes))
        for block in blocks:
            if block not in self.found:
                raise MidblockError(f"the experts of block {block} are not called with a choice for each token")
            self._check_order(block, *both.input_ids.shape)

    def _looking(self, batch: Batch) -> Watching:
        @contextmanager
        def looking(note: Note) -> Iterator[None]:
            with _inside(self.anatomy) as inside:
                yield
            for block, each in inside.items():
                if each.ran:
                    self._locate(block, each, batch.input_ids.numel())

        return looking

    def _locate(self, block: int, inside: _Inside, tokens: int) -> None:
        """Find the mixture of a block that has just run: its router put out the very choice its experts were given."""
        experts, choice = _experts(block, inside, tokens)
        count = _count(experts)
        if count is None:
            raise MidblockError(f"how many experts block {block} has is not known")
        self._seen[block], self.found[block] = choice, Mixture(count, experts)
        for module, call, output in inside.outputs:
            if (places := _places(output, choice)) is not None:
                mixture = Mixture(count, experts, module, places)
                if _answers(mixture, call, choice):
                    self.found[block], self.calls[block] = mixture, call
                return

    @contextmanager
    def _listening(self, note: Note) -> Iterator[None]:
        with watch_choices(self.found, self._alone.__setitem__):
            yield

    def _check_order(self, block: int, rows: int, tokens: int) -> None:
        """See that a prompt alone is given the experts of its own rows.

        Raises:
            MidblockError: it is not: rows are in another order, or a choice hangs on the other prompts.
        """
        choice = self._seen[block]
        if len(choice.experts) != rows * tokens:
            raise MidblockError(f"the experts of block {block} are not chosen token by token")
        own = Choice(choice.experts[-tokens:], choice.weights[-tokens:])
        if float(own.agreement(self._alone[block]).mean()) < AGREEING:
            raise MidblockError(f"the experts of block {block} depend on the other prompts of a batch")


def with_experts(anatomy: Anatomy) -> list[int]:
    """The blocks in which something is stacked for several experts, or routed."""
    of_experts = (each for each in anatomy.projections.values() if each.stacked or each.role == "router")
    return sorted({each.block for each in of_experts if each.block is not None})


@dataclass
class _Inside:
    """What was seen inside one block.

    Attributes:
        ran: whether anything of it ran.
        chosen: modules that were called with a choice for each token, the outermost first.
        outputs: what other modules were given and had put out by then, the innermost first.
    """

    ran: bool = False
    chosen: list[tuple[nn.Module, Choice]] = field(default_factory=list)
    outputs: list[tuple[nn.Module, Call, Sequence[Any]]] = field(default_factory=list)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module runs."""
        self.ran = True
        if (choice := choice_of(args, kwargs)) is not None:
            self.chosen.append((module, choice))

    def put_out(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After it ran."""
        if not self.chosen and isinstance(output, tuple | list):
            self.outputs.append((module, (args, kwargs), output))


@contextmanager
def _inside(anatomy: Anatomy) -> Iterator[dict[int, _Inside]]:
    inside, hooks = {block: _Inside() for block in with_experts(anatomy)}, []
    for block, each in inside.items():
        for module in anatomy.blocks[block].modules():
            hooks.append(module.register_forward_pre_hook(each.called, with_kwargs=True))
            hooks.append(module.register_forward_hook(each.put_out, with_kwargs=True))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def _experts(block: int, inside: _Inside, tokens: int) -> tuple[nn.Module, Choice]:
    """The module that runs the experts, inside whatever is wrapped around it, and what it was told to run."""
    chosen = [(module, choice) for module, choice in inside.chosen if len(choice.experts) == tokens]
    if not chosen:
        raise MidblockError(f"the experts of block {block} are not called with a choice for each token")
    experts, choice = chosen[-1]
    if any(not torch.equal(choice.experts, each.experts) for _, each in chosen):
        raise MidblockError(f"block {block} has more than one mixture of experts")
    if bool((choice.weights < 0).any()):
        raise MidblockError(f"block {block} mixes its experts with negative weights")
    return experts, choice


def _count(experts: nn.Module) -> int | None:
    """How many experts there are: matrices in a stack, or what the module itself says where it has no stack."""
    stacks = {len(value) for value in experts.parameters() if value.ndim == 3}
    stated = getattr(experts, "num_experts", None)
    if len(stacks) == 1:
        return stacks.pop()
    return stated if isinstance(stated, int) and not stacks else None


def _places(output: Sequence[Any], choice: Choice) -> tuple[int, int] | None:
    """Where in an output the choice stands; None where it does not."""
    index = [place for place, each in enumerate(output) if is_index(each) and _same(each, choice.experts)]
    weights = [
        place
        for place, each in enumerate(output)
        if isinstance(each, Tensor) and each.is_floating_point() and _same(each, choice.weights)
    ]
    return (index[0], weights[0]) if index and weights else None


def _same(value: Tensor, other: Tensor) -> bool:
    return value.ndim >= 2 and value.flatten(0, -2).shape == other.shape and torch.equal(value.flatten(0, -2), other)


def _answers(mixture: Mixture, call: Call, seen: Choice) -> bool:
    """Whether a router says the same when it is asked by hand."""
    try:
        again = mixture.ask(*call)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False
    far = (again.shares(mixture.count) - seen.shares(mixture.count)).abs().max()
    return float(again.agreement(seen).mean()) >= AGREEING and float(far) <= ALIKE
