"""What a mixture of experts chooses: which experts a block runs for each token, and with what weights it mixes them.

Nothing is taken from names: the experts are the module in the block that is called with whole numbers and weights for
each token, which is the choice, and the router is the innermost module whose output that very choice is. All of it is
found on a few tokens, and checked there: rows are prompt by prompt, and a router asked again by hand says the same.
Cost: a hook on each mixture while a batch passes, and no state is kept; a router asked by hand is a product of tokens,
D and E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.trace.residual import run_backbone

AGREEING = 0.9  # of choices, between two ways that differ by rounding; where tokens are in another order few agree
ALIKE = 1e-2  # of a token's weights: what bfloat16 leaves of a sum to one


@dataclass(frozen=True, eq=False)
class Choice:
    """What a block chose for each of n tokens.

    Attributes:
        experts: the k that it ran, in any order.
        weights: what their outputs were multiplied by.
    """

    experts: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]

    def shares(self, count: int) -> Float[Tensor, "n E"]:
        """The weights over all E experts, scaled to a sum of 1; NaN where they have none."""
        weights = self.weights.cpu().double()
        spread = weights.new_zeros(len(weights), count).scatter_add_(1, self.experts.cpu(), weights)
        return spread / spread.sum(1, keepdim=True)

    def agreement(self, other: Choice) -> Float[Tensor, " n"]:
        """Share of the experts that are chosen in the other too."""
        ours, theirs = self.experts.cpu(), other.experts.cpu()
        return (ours[:, :, None] == theirs[:, None, :]).any(2).double().mean(1)


@dataclass(frozen=True, eq=False)
class Mixture:
    """The experts of one block.

    Attributes:
        count: E, how many experts there are to choose from.
        experts: the module that runs them.
        router: the module that chooses; None where no module puts out just what the experts are called with.
        places: where in the router's output experts and weights stand.
    """

    count: int
    experts: nn.Module = field(repr=False)
    router: nn.Module | None = field(default=None, repr=False)
    places: tuple[int, int] = (0, 0)

    def ask(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Choice:
        """What the router chooses for what it, or another model's, was given."""
        if self.router is None:
            raise MidblockError("the router is not known")
        home = device_of(self.router)
        moved = [_at(value, home) for value in args]
        with torch.inference_mode():
            return self.chosen(self.router(*moved, **{name: _at(value, home) for name, value in kwargs.items()}))

    def chosen(self, output: Sequence[Any]) -> Choice:
        """The choice that stands in a router's output."""
        experts, weights = (output[place] for place in self.places)
        return Choice(experts.flatten(0, -2), weights.flatten(0, -2))


def _at(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


Mixtures = Mapping[int, Mixture]
OnChoice = Callable[[int, Choice], None]
OnRouter = Callable[[int, tuple[Any, ...], dict[str, Any]], None]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def watch_choices(mixtures: Mixtures, on_choice: OnChoice, on_router: OnRouter | None = None) -> Iterator[None]:
    """Call `on_choice(block, choice)` whenever a block runs its experts, inside the `with`.

    Args:
        on_router: hears, as (block, args, kwargs), what each router that is known is given.
    """
    hooks = [
        mixture.experts.register_forward_pre_hook(partial(_called, on_choice, block, mixture.count), with_kwargs=True)
        for block, mixture in mixtures.items()
    ]
    if on_router is not None:
        hooks += [
            mixture.router.register_forward_pre_hook(partial(_asked, on_router, block), with_kwargs=True)
            for block, mixture in mixtures.items()
            if mixture.router is not None
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _called(
    on_choice: OnChoice, block: int, count: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    choice = _choice_of(args, kwargs)
    if choice is None:
        raise MidblockError(f"the experts of block {block} are not called with a choice for each token")
    if not bool(((choice.experts >= 0) & (choice.experts < count)).all()):
        raise MidblockError(f"block {block} chooses experts that it does not have")
    on_choice(block, choice)


def _asked(on_router: OnRouter, block: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    on_router(block, args, kwargs)


def _choice_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice | None:
    """The indices that experts are called with, behind the states, and the weights of the same shape beside them."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][1:]
    for index in filter(_is_index, given):
        weights = [each for each in given if each.is_floating_point() and each.shape == index.shape]
        if len(weights) == 1:
            return Choice(index.flatten(0, -2), weights[0].flatten(0, -2))
    return None


def _is_index(value: Any) -> bool:
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return whole and value.dtype != torch.bool and value.ndim >= 2


def find_mixtures(anatomy: Anatomy, input_ids: Int[Tensor, "B T"]) -> dict[int, Mixture]:
    """Find each block's experts and router, and see on a few tokens that what is read is what the model does.

    Args:
        input_ids: real tokens, two prompts or more.

    Returns:
        By block; of a block without experts nothing.

    Raises:
        MidblockError: a block's choice cannot be read; the message names the block.
    """
    found: dict[int, Mixture] = {}
    calls: dict[int, Call] = {}
    seen: dict[int, Choice] = {}
    if not (blocks := with_experts(anatomy)):
        return found
    with _inside(anatomy, blocks) as inside:
        run_backbone(anatomy, input_ids)
    found = {block: _located(block, each, input_ids.numel()) for block, each in inside.items()}
    with watch_choices(found, seen.__setitem__, lambda block, args, kwargs: calls.update({block: (args, kwargs)})):
        run_backbone(anatomy, input_ids)
    _check_order(anatomy, found, seen, input_ids)
    return {block: _if_alone(mixture, seen[block], calls.get(block)) for block, mixture in found.items()}


def with_experts(anatomy: Anatomy) -> list[int]:
    """The blocks in which something is stacked for several experts, or routed."""
    of_experts = (each for each in anatomy.projections.values() if each.stacked or each.role == "router")
    return sorted({each.block for each in of_experts if each.block is not None})


@dataclass
class _Inside:
    """What was seen inside one block.

    Attributes:
        chosen: modules that were called with a choice for each token, the outermost first.
        outputs: what other modules had put out by then, the innermost first.
    """

    chosen: list[tuple[nn.Module, Choice]] = field(default_factory=list)
    outputs: list[tuple[nn.Module, Sequence[Any]]] = field(default_factory=list)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module runs."""
        if (choice := _choice_of(args, kwargs)) is not None:
            self.chosen.append((module, choice))

    def put_out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it ran."""
        if not self.chosen and isinstance(output, tuple | list):
            self.outputs.append((module, output))


@contextmanager
def _inside(anatomy: Anatomy, blocks: Sequence[int]) -> Iterator[dict[int, _Inside]]:
    inside, hooks = {block: _Inside() for block in blocks}, []
    for block, each in inside.items():
        for module in anatomy.blocks[block].modules():
            hooks.append(module.register_forward_pre_hook(each.called, with_kwargs=True))
            hooks.append(module.register_forward_hook(each.put_out))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def _located(block: int, inside: _Inside, tokens: int) -> Mixture:
    """The mixture of a block: its router is what put out the very choice that the experts were called with."""
    chosen = [(module, choice) for module, choice in inside.chosen if len(choice.experts) == tokens]
    if not chosen:
        raise MidblockError(f"the experts of block {block} are not called with a choice for each token")
    experts, choice = chosen[-1]  # inside whatever is wrapped around it
    if any(not torch.equal(choice.experts, each.experts) for _, each in chosen):
        raise MidblockError(f"block {block} has more than one mixture of experts")
    if bool((choice.weights < 0).any()):
        raise MidblockError(f"block {block} mixes its experts with negative weights")
    count = _count(experts)
    if count is None:
        raise MidblockError(f"how many experts block {block} has is not known")
    for module, output in inside.outputs:
        if (places := _places(output, choice)) is not None:
            return Mixture(count, experts, module, places)
    return Mixture(count, experts)


def _count(experts: nn.Module) -> int | None:
    """How many experts there are: matrices in a stack, or what the module itself says where it has no stack."""
    stacks = {len(value) for value in experts.parameters() if value.ndim == 3}
    stated = getattr(experts, "num_experts", None)
    if len(stacks) == 1:
        return stacks.pop()
    return stated if isinstance(stated, int) and not stacks else None


def _places(output: Sequence[Any], choice: Choice) -> tuple[int, int] | None:
    """Where in an output the choice stands; None where it does not."""
    index = [place for place, each in enumerate(output) if _is_index(each) and _same(each, choice.experts)]
    weights = [
        place
        for place, each in enumerate(output)
        if isinstance(each, Tensor) and each.is_floating_point() and _same(each, choice.weights)
    ]
    return (index[0], weights[0]) if index and weights else None


def _same(value: Tensor, other: Tensor) -> bool:
    return value.ndim >= 2 and value.flatten(0, -2).shape == other.shape and torch.equal(value.flatten(0, -2), other)


def _check_order(anatomy: Anatomy, found: Mixtures, seen: Mapping[int, Choice], input_ids: Int[Tensor, "B T"]) -> None:
    """See that a prompt alone is given the experts of its own rows.

    Raises:
        MidblockError: it is not: rows are in another order, or a choice hangs on the other prompts.
    """
    rows, tokens = len(input_ids), input_ids.shape[1]
    alone: dict[int, Choice] = {}
    with watch_choices(found, alone.__setitem__):
        run_backbone(anatomy, input_ids[-1:])
    for block, choice in seen.items():
        if len(choice.experts) != rows * tokens:
            raise MidblockError(f"the experts of block {block} are not chosen token by token")
        own = Choice(choice.experts[-tokens:], choice.weights[-tokens:])
        if float(own.agreement(alone[block]).mean()) < AGREEING:
            raise MidblockError(f"the experts of block {block} depend on the other prompts of a batch")


def _if_alone(mixture: Mixture, seen: Choice, call: Call | None) -> Mixture:
    """The mixture, without a router that says something else when it is asked by hand."""
    if mixture.router is None or call is None:
        return Mixture(mixture.count, mixture.experts)
    try:
        again = mixture.ask(*call)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return Mixture(mixture.count, mixture.experts)
    far = (again.shares(mixture.count) - seen.shares(mixture.count)).abs().max()
    known = float(again.agreement(seen).mean()) >= AGREEING and float(far) <= ALIKE
    return mixture if known else Mixture(mixture.count, mixture.experts)
