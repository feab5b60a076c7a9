"""The method `full`: the model's own weights, written as a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midblock.checkpoints import Anatomy, Checkpoint
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.anchor.factors import Factors
from midblock.tuning.anchor.full import full_anchor
from midblock.tuning.place.trainable import Start, Trainable
from midblock.tuning.place.weights import by_part, choose_weights, train_only
from midblock.tuning.settings import Anchoring, CourseSettings


@dataclass(frozen=True, eq=False)
class OwnWeights(Trainable):
    """A model some of whose own parameters are trained.

    Attributes:
        causal: the causal language model.
        chosen: the names of those parameters, each with its part.
        anatomy: where they sit.
    """

    causal: nn.Module
    chosen: Mapping[str, str]
    anatomy: Anatomy

    @property
    def model(self) -> nn.Module:
        return self.causal

    @property
    def by_part(self) -> dict[str, int]:
        return by_part(self.causal, self.chosen)

    def targets(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "block": where.layer,
                "role": where.role,
                "shape": list(value.shape),
                "rank": None,
                "alpha": None,
                "scale": None,
                "parameters": value.numel(),
            }
            for name, value in self._trained().items()
            for where in [self.anatomy.projections[name]]
        ]

    def check_anchor(self, settings: CourseSettings) -> None:
        """Any weight can be held on to."""

    def anchored(self) -> dict[str, nn.Parameter]:
        """The trained weights themselves, as they are before the first step."""
        stacked = {name for name, where in self.anatomy.projections.items() if where.stacked}
        return {name: value for name, value in self._trained().items() if value.ndim == 2 or name in stacked}

    def anchor(self, factors: Mapping[str, Factors], settings: Anchoring) -> Anchor:
        trained = self._trained()
        return full_anchor(
            {name: (trained[name], held) for name, held in factors.items()},
            strength=settings.anchor_lambda,
            scope=settings.anchor_scope,
            normalize=settings.anchor_normalize,
        )

    @property
    def bytes_beside(self) -> int:
        return 0

    def companion(self, steps: int, device: torch.device, scratch: Path) -> None:
        """Nothing: the optimiser does it all."""

    @property
    def saved(self) -> None:
        return None

    def write(self, folder: Path, state: Mapping[str, Tensor], base: Checkpoint) -> None:
        causal: Any = self.causal
        causal.save_pretrained(folder, state_dict=state)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.causal.named_parameters() if value.requires_grad}


def choose_own_weights(start: Start) -> Trainable:
    """Make the planned parameters trainable, in place, and freeze all others.

    Raises:
        MidblockError: the plan fits the model nowhere, or names weights that cannot be trained.
    """
    chosen = choose_weights(start.causal, start.plan, start.settings)
    train_only(start.causal, chosen)
    return OwnWeights(start.causal, chosen, Anatomy.of(start.causal))
