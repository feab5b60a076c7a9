"""Masks: a logit θ for each channel of a layer, on where it is above zero.

m = 1[θ > 0], and the gradient goes straight through: ∂ℓ/∂θ = ∂ℓ/∂m · σ′(θ). θ begins at N(1.5, 0.5²), so that nearly
all are on, and is moved by plain gradient descent, within bounds that a mask can come back from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.base import derive
from midblock.tuning.carve.channels import ChannelGroups

MEAN, SPREAD = 1.5, 0.5
FARTHEST = 4.0  # of θ from zero: beyond, σ′ is so small that no gradient could turn a mask any more


@dataclass(eq=False)
class Masks:
    """The masks of a model.

    Attributes:
        logits: θ of each layer, and `gradients` by it, both float64 where the device has it.
    """

    logits: dict[int, Float[Tensor, "_"]]
    gradients: dict[int, Float[Tensor, "_"]]

    @classmethod
    def drawn(cls, groups: ChannelGroups, seed: int) -> Masks:
        """Draw θ at random; each layer's depends on the seed and the layer alone."""
        logits = {}
        for layer in groups.layers:
            stream = torch.Generator().manual_seed(derive(seed, "masks", layer))
            drawn = torch.randn(groups.size(layer), generator=stream, dtype=torch.float64)
            logits[layer] = MEAN + SPREAD * drawn
        return cls.of(logits)

    @classmethod
    def of(cls, logits: Mapping[int, Float[Tensor, "_"]]) -> Masks:
        return cls(dict(logits), {layer: torch.zeros_like(each) for layer, each in logits.items()})

    @property
    def on(self) -> dict[int, Bool[Tensor, "_"]]:
        """m of each layer."""
        return {layer: each > 0 for layer, each in self.logits.items()}

    @property
    def total(self) -> int:
        """M."""
        return sum(map(len, self.logits.values()))

    @property
    def share(self) -> float:
        """The share of masks that are on."""
        return sum(int((each > 0).sum()) for each in self.logits.values()) / self.total

    def step(self, rate: float, weight: float, pressure: float) -> None:
        """Move θ down the gradient, which begins anew.

        Args:
            rate: the learning rate.
            weight: of the loss's gradient.
            pressure: of σ(θ).
        """
        for layer, logits in self.logits.items():
            opened = torch.sigmoid(logits)
            slope = opened * (1 - opened)
            logits.sub_(rate * slope * (weight * self.gradients[layer] + pressure)).clamp_(-FARTHEST, FARTHEST)
            self.gradients[layer].zero_()

    def to(self, device: torch.device) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.logits = {layer: each.to(device, kind) for layer, each in self.logits.items()}
        self.gradients = {layer: each.to(device, kind) for layer, each in self.gradients.items()}
