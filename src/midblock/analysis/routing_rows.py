"""What the routers of all models chose in one batch, to a row a prompt: how often each expert, and how much changed.

The tuned models' routers are asked about what reaches the base's while the base's own pass is under way, so that no
state is kept: what is held of a batch are k indices and weights for each token and block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.analysis.mixtures import CHOICES, LOADS
from midblock.base.names import BASE
from midblock.metrics.catalogue import columns
from midblock.metrics.routing import Routed, Routings
from midblock.trace.routing import Choice, Mixtures, watch_choices

Place = tuple[str, int]


@dataclass(eq=False)
class RoutingRows:
    """One batch.

    Attributes:
        mixtures: by model; empty where no block has experts, or nothing of them is wanted.
        names: metrics of choices, the columns of their rows.
        chosen: by model and block, each model on its own states.
        alone: by tuned model and block, its router on what reaches the base's.
    """

    mixtures: Mapping[str, Mixtures]
    names: tuple[str, ...]
    chosen: dict[Place, Choice] = field(default_factory=dict)
    alone: dict[Place, Choice] = field(default_factory=dict)

    def reading(self, name: str) -> AbstractContextManager[None]:
        """Note what a model's blocks choose inside the `with`: one pass of that model over the batch.

        Args:
            name: the model's, or that of the base in the other precision.
        """
        mixtures = self.mixtures.get(name, self.mixtures.get(BASE, {}))
        if not mixtures:
            return nullcontext()
        return watch_choices(mixtures, partial(self._note, name), self._ask_others if name == BASE else None)

    def _note(self, name: str, block: int, choice: Choice) -> None:
        self.chosen[name, block] = choice

    def _ask_others(self, block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, mixtures in self.mixtures.items():
            if name != BASE and self.names and mixtures[block].router is not None:
                self.alone[name, block] = mixtures[block].ask(args, kwargs)

    def forget(self, name: str) -> None:
        """Drop what was noted of a pass that failed."""
        self.chosen = {place: choice for place, choice in self.chosen.items() if place[0] != name}

    def rows(self, mask: Bool[Tensor, "B T"]) -> Iterator[tuple[str, str, int, Tensor]]:
        """(model, kind, block, rows): counts of each expert for every model, and what differs from the base."""
        for (name, block), choice in self.chosen.items():
            count = self.mixtures[BASE][block].count
            yield name, LOADS, block, counts(choice, mask, count)
            if name != BASE and self.names:
                yield name, CHOICES, block, columns(self.names, self._beside_base(name, block, mask, count))

    def _beside_base(self, name: str, block: int, mask: Tensor, count: int) -> Routings:
        base, tuned = (_routed(self.chosen[each, block], mask, count) for each in (BASE, name))
        alone = self.alone.get((name, block))
        return Routings(base, tuned, mask, None if alone is None else _routed(alone, mask, count))


def counts(choice: Choice, mask: Bool[Tensor, "B T"], count: int) -> Float[Tensor, "B E"]:
    """How often each expert was chosen in each prompt, for the tokens that count."""
    experts = choice.experts.cpu().unflatten(0, mask.shape)
    weights = mask.double().unsqueeze(-1).expand(experts.shape)
    zeros = torch.zeros(len(mask), count, dtype=torch.float64)
    return zeros.scatter_add_(1, experts.flatten(1), weights.flatten(1))


def _routed(choice: Choice, mask: Tensor, count: int) -> Routed:
    return Routed(choice.experts.cpu().unflatten(0, mask.shape), choice.shares(count).unflatten(0, mask.shape))
