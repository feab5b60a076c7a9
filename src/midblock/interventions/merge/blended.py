"""Blended: a model in memory that stands anywhere between a base and a tuned one, and moves without being written.

W = (1 − α) W_base + α W_tuned, computed in float64 and rounded as `merge` does, so that a checkpoint merged with the
same alphas has the same weights. Cost: a copy of the base; a change of α reads and writes only the weights it is about.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Projection
from midblock.checkpoints.offloaded import check_writable
from midblock.interventions.merge.alphas import Alphas


@dataclass(eq=False)
class Blended:
    """A copy of the base whose weights move.

    Attributes:
        model: the copy; as the base is until `move` is called.
        parts: the weights that tuning changed, each with where it sits.
    """

    model: nn.Module
    parts: list[_Part] = field(repr=False)

    @classmethod
    def of(cls, base: nn.Module, tuned: nn.Module) -> Blended:
        """Make the copy.

        Raises:
            MidblockError: a weight that one of them lacks, has in another shape or does not hold; it is named.
        """
        for each in (base, tuned):
            check_writable(each, "weights cannot be blended in memory")
        model, anatomy = copy.deepcopy(base), Anatomy.of(base)
        theirs, moving = dict(tuned.named_parameters()), dict(model.named_parameters())
        parts = []
        for name, value in base.named_parameters():
            other = theirs.pop(name, None)
            if other is None or other.shape != value.shape:
                has = "is in one of the models only" if other is None else f"has {list(other.shape)} in the tuned model"
                raise MidblockError(f"{name} {has}", hint="blend a base with a model tuned from it")
            if not torch.equal(value, other.to(value.device, value.dtype)):
                parts.append(_Part(anatomy.projection_of(name), value, other, moving[name]))
        return cls(model, parts)

    def move(self, alphas: Alphas) -> nn.Module:
        """Give every weight its α.

        Returns:
            The model.
        """
        with torch.no_grad():
            for part in self.parts:
                part.move(alphas.of(part.where))
        return self.model


@dataclass(eq=False)
class _Part:
    """One weight, in the base, in the tuned model and in between."""

    where: Projection
    base: nn.Parameter
    tuned: nn.Parameter
    moving: nn.Parameter
    alpha: float = 0.0

    def move(self, alpha: float) -> None:
        if alpha == self.alpha:
            return
        if alpha in (0.0, 1.0):
            self.moving.copy_(self.tuned if alpha else self.base)
        else:
            wide = torch.float32 if self.base.device.type == "mps" else torch.float64
            ours, theirs = (each.to(self.base.device, wide, copy=True) for each in (self.base, self.tuned))
            self.moving.copy_(ours.mul_(1 - alpha).add_(theirs.mul_(alpha)))
        self.alpha = alpha
