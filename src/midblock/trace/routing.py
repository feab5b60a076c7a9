"""What a mixture of experts chooses: which experts a block runs for each token, and with what weights it mixes them.

Which module runs a block's experts and which chooses them is found by `mixture_finder`. Cost: a hook on each mixture
while a batch passes, and no state is kept; a router asked by hand is a product of tokens, D and E.
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
from midblock.checkpoints import device_of


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
    choice = choice_of(args, kwargs)
    if choice is None:
        raise MidblockError(f"the experts of block {block} are not called with a choice for each token")
    if not bool(((choice.experts >= 0) & (choice.experts < count)).all()):
        raise MidblockError(f"block {block} chooses experts that it does not have")
    on_choice(block, choice)


def _asked(on_router: OnRouter, block: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    on_router(block, args, kwargs)


def choice_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice | None:
    """The indices that experts are called with, behind the states, and the weights of the same shape beside them."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][1:]
    for index in filter(is_index, given):
        weights = [each for each in given if each.is_floating_point() and each.shape == index.shape]
        if len(weights) == 1:
            return Choice(index.flatten(0, -2), weights[0].flatten(0, -2))
    return None


def is_index(value: Any) -> bool:
    """Whether it is whole numbers, some for each token."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return whole and value.dtype != torch.bool and value.ndim >= 2
