"""What the routers of all models chose in one batch, to a row a prompt: how often each expert, and how much changed.

The tuned models' routers are asked about what reaches the base's while the base's own pass is under way, so that no
state is kept: what is held of a batch are k indices and weights for each token and block, noted with the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.analysis.mixtures import CHOICES, LOADS
from midblock.base.names import BASE
from midblock.metrics.catalogue import columns
from midblock.metrics.routing import Routed, Routings
from midblock.trace.routing import Choice, Mixtures, watch_choices
from midblock.trace.walk import Note, Pass, Rows

OWN = ""  # what a model chooses itself


@dataclass(eq=False)
class RoutingRows:
    """One batch.

    Attributes:
        mixtures: by model; empty where no block has experts, or nothing of them is wanted.
        names: metrics of choices, the columns of their rows.
        noted: by model, what was noted in its pass.
    """

    mixtures: Mapping[str, Mixtures]
    names: tuple[str, ...]
    noted: dict[str, Rows] = field(default_factory=dict)

    def watched(self, wanted: Pass) -> Pass:
        """A pass in which what the model's blocks choose is noted."""
        mixtures = self._of(wanted.called)
        if not mixtures:
            return wanted
        others = self._asked if wanted.called == BASE else ()
        places = tuple((label, block) for block in mixtures for name in (OWN, *others) for label in _labels(name))
        return replace(wanted, watching=partial(self._watching, mixtures, others), noting=places)

    def _of(self, name: str) -> Mixtures:
        """The mixtures of a model, or of the base in the other precision."""
        return self.mixtures.get(name, self.mixtures.get(BASE, {}))

    @cached_property
    def _asked(self) -> tuple[str, ...]:
        """The tuned models whose routers are asked about what reaches the base's."""
        known = (
            name for name, of_one in self.mixtures.items() if all(each.router is not None for each in of_one.values())
        )
        return tuple(name for name in known if name != BASE) if self.names else ()

    def _watching(self, mixtures: Mixtures, others: Sequence[str], note: Note) -> AbstractContextManager[None]:
        def on_choice(block: int, choice: Choice) -> None:
            _write(note, OWN, block, choice)

        def on_router(block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for name in others:
                _write(note, name, block, self.mixtures[name][block].ask(args, kwargs))

        return watch_choices(mixtures, on_choice, on_router if others else None)

    def rows(self, mask: Bool[Tensor, "B T"]) -> Iterator[tuple[str, str, int, Tensor]]:
        """(model, kind, block, rows): counts of each expert for every model, and what differs from the base."""
        for name in self.noted:
            for block, mixture in self._of(name).items():
                yield name, LOADS, block, counts(self._chosen(name, block), mask, mixture.count)
                if name != BASE and self.names:
                    beside = self._beside_base(name, block, mask, mixture.count)
                    yield name, CHOICES, block, columns(self.names, beside)

    def _chosen(self, name: str, block: int, by: str = OWN) -> Choice:
        """What a model's block chose, or another model's router on what reached it."""
        experts, weights = (self.noted[name][label, block] for label in _labels(by))
        return Choice(experts.long(), weights)

    def _beside_base(self, name: str, block: int, mask: Tensor, count: int) -> Routings:
        base, tuned = (_routed(self._chosen(each, block), mask, count) for each in (BASE, name))
        alone = _routed(self._chosen(BASE, block, by=name), mask, count) if name in self._asked else None
        return Routings(base, tuned, mask, alone)


def _labels(name: str) -> tuple[str, str]:
    return f"experts {name}", f"weights {name}"


def _write(note: Note, name: str, block: int, choice: Choice) -> None:
    experts, weights = _labels(name)
    note(experts, block, choice.experts.int())
    note(weights, block, choice.weights)


def counts(choice: Choice, mask: Bool[Tensor, "B T"], count: int) -> Float[Tensor, "B E"]:
    """How often each expert was chosen in each prompt, for the tokens that count."""
    experts = choice.experts.cpu().unflatten(0, mask.shape)
    weights = mask.double().unsqueeze(-1).expand(experts.shape)
    zeros = torch.zeros(len(mask), count, dtype=torch.float64)
    return zeros.scatter_add_(1, experts.flatten(1), weights.flatten(1))


def _routed(choice: Choice, mask: Tensor, count: int) -> Routed:
    return Routed(choice.experts.cpu().unflatten(0, mask.shape), choice.shares(count).unflatten(0, mask.shape))
