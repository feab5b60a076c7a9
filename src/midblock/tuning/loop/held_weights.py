"""Holding on to the pretrained weights: which of them, by how many directions, and the anchor that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from midblock.base import Progress, derive
from midblock.runs.processes import rank, world_size
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.anchor.factor_cache import load_factors
from midblock.tuning.anchor.factors import Factors, full_rank_names, unsettled
from midblock.tuning.place.prepared import Prepared
from midblock.tuning.settings import Anchoring, CourseSettings


@dataclass(frozen=True, eq=False)
class HeldWeights:
    """The singular factors of the weights to hold on to; none where no anchor is asked for.

    Attributes:
        settings: strength and scope.
        factors: by the weight's name.
        full_rank: weights of which k takes all directions, so that the penalty is an L2 anchor.
    """

    settings: Anchoring
    factors: Mapping[str, Factors] = field(default_factory=dict)
    full_rank: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, prepared: Prepared, settings: CourseSettings, weight_hash: str, device: torch.device, progress: Progress
    ) -> HeldWeights:
        """Factorise the weights that will be trained, or those under their adapters, as they are now.

        Raises:
            MidblockError: an anchor on something it is not defined for.
        """
        if settings.anchor == "none":
            return cls(settings)
        prepared.trainable.check_anchor(settings)
        weights = prepared.trainable.anchored()
        found = load_factors(
            {name: value.detach() for name, value in weights.items()},
            settings.anchor_k,
            weight_hash=weight_hash,
            seed=derive(settings.seed, "factors"),
            dtype=getattr(torch, settings.anchor_dtype),
            share=(rank(), world_size()),
            progress=progress,
        )
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        full = tuple(full_rank_names(shapes, settings.anchor_k))
        return cls(settings, {name: factors.to(device) for name, factors in found.items()}, full)

    @property
    def bytes(self) -> int:
        """Memory of the factors."""
        parts = [part for factors in self.factors.values() for part in (factors.U, factors.core, factors.V)]
        return sum(part.nbytes for part in parts)

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.full_rank:
            notes.append(
                f"The anchor's k takes every direction of {_some(self.full_rank)}: there it holds the whole weight, "
                "like an L2 penalty."
            )
        if names := unsettled(self.factors):
            worst = max(self.factors[name].residual for name in names)
            notes.append(
                f"The anchor's directions of {_some(names)} are approximate: the sine of their angle to the true ones "
                f"is up to {worst:.2g}."
            )
        return notes

    def as_record(self) -> dict[str, Any] | None:
        """What `plan.json` says of it."""
        if not self.factors:
            return None
        return {
            "kind": self.settings.anchor,
            "k": self.settings.anchor_k,
            "lambda": self.settings.anchor_lambda,
            "scope": self.settings.anchor_scope,
            "normalize": self.settings.anchor_normalize,
            "weights": len(self.factors),
            "full_rank": list(self.full_rank),
        }

    def anchor(self, prepared: Prepared) -> Callable[[], Anchor] | None:
        """A maker of the anchor, to be called once training has put the parameters where they stay."""
        if not self.factors:
            return None
        return partial(prepared.trainable.anchor, self.factors, self.settings)


def _some(names: Sequence[str]) -> str:
    """How many weights, and the first of them."""
    return f"{len(names)} weights ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
