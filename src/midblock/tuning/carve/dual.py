"""DualControl: how strongly masks are pressed off, so that the loss stays within its budget.

ℓ + λ·s is minimised, s the masks' sum or mean. Once warm-up is over, the budget is ε = ℓ₀ + ρ·max(ℓ₀, f), ℓ₀ the loss's
running mean then; from there on λ ← clip(λ·exp(−η·clip((ℓ̂ − ε)/ε, ±c)), 0, λ_max). Source: P3 (LCDD), whose loss counts
the prompt as well, so that ℓ₀ is never small and there is no floor f.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midblock.tuning.settings import Carving

DECAY = 0.95  # of the running mean


@dataclass
class DualControl:
    """The dual variable and what it is moved by.

    Attributes:
        settings: ρ, η, λ's start and most, the clip of the violation, the length of warm-up.
        strength: λ.
        steps: losses that were seen.
        mean: the running mean of the loss, not yet divided by 1 − 0.95^t.
        budget: ε; None while warming up.
    """

    settings: Carving
    strength: float
    steps: int = 0
    mean: float = 0.0
    budget: float | None = None

    @classmethod
    def of(cls, settings: Carving) -> DualControl:
        return cls(settings, settings.sparsity_lambda)

    @property
    def loss(self) -> float:
        """ℓ̂, the bias-corrected running mean."""
        return self.mean / (1 - DECAY**self.steps) if self.steps else math.nan

    @property
    def within(self) -> bool:
        """Whether the loss is in its budget; in the step that set it it is so by definition, which says nothing."""
        return self.budget is not None and self.steps > self.settings.mask_warmup_steps and self.loss <= self.budget

    @property
    def pressure(self) -> float:
        """λ·min(1, t/t_w): what the masks are pressed off with in this step."""
        warmed = self.steps / self.settings.mask_warmup_steps if self.settings.mask_warmup_steps else 1.0
        return self.strength * min(1.0, warmed)

    def see(self, loss: float) -> None:
        """Take in the loss of a step, in nats per target token."""
        self.steps += 1
        self.mean = DECAY * self.mean + (1 - DECAY) * loss
        if self.budget is not None:
            violation = (self.loss - self.budget) / max(self.budget, 1e-12)
            clipped = max(-self.settings.violation_clip, min(self.settings.violation_clip, violation))
            moved = self.strength * math.exp(-self.settings.dual_rate * clipped)
            self.strength = max(0.0, min(self.settings.lambda_max, moved))
        elif self.steps >= self.settings.mask_warmup_steps:
            self.budget = self.loss + self.settings.loss_budget * max(self.loss, self.settings.budget_floor)

    def carried(self) -> dict[str, Any]:
        """What a run that goes on from here must know."""
        return {"strength": self.strength, "steps": self.steps, "mean": self.mean, "budget": self.budget}

    def go_on(self, carried: Mapping[str, Any]) -> None:
        self.strength, self.steps = carried["strength"], carried["steps"]
        self.mean, self.budget = carried["mean"], carried["budget"]
