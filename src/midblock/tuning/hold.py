"""Holding on to the pretrained weights: which of them, by how many directions, and the anchor that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from midblock.base import MidblockError, Progress, derive
from midblock.checkpoints.lora_config import ALTERING_INITS
from midblock.tuning.adapters import adapter_parameters
from midblock.tuning.anchor import Anchor
from midblock.tuning.anchor_full import FullAnchor
from midblock.tuning.anchor_lora import LoraAnchor
from midblock.tuning.factor_cache import load_factors
from midblock.tuning.factors import Factors, full_rank_names
from midblock.tuning.prepared import Prepared
from midblock.tuning.settings import Anchoring, TuneSettings
from midblock.tuning.sharding import rank, world_size


@dataclass(frozen=True, eq=False)
class Hold:
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
        cls, prepared: Prepared, settings: TuneSettings, weight_hash: str, device: torch.device, progress: Progress
    ) -> Hold:
        """Factorise the weights that will be trained, or those under their adapters, as they are now.

        Raises:
            MidblockError: an anchor on something it is not defined for.
        """
        if settings.anchor == "none":
            return cls(settings)
        _check(prepared, settings)
        weights = prepared.anchored()
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
        if not self.full_rank:
            return []
        shown = ", ".join(self.full_rank[:3]) + (", …" if len(self.full_rank) > 3 else "")
        return [
            f"The anchor's k takes every direction of {len(self.full_rank)} weights ({shown}): there it holds the "
            "whole weight, like an L2 penalty."
        ]

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
        return lambda: self._made(prepared)

    def _made(self, prepared: Prepared) -> Anchor:
        how = (self.settings.anchor_lambda, self.settings.anchor_scope, self.settings.anchor_normalize)
        if prepared.adapters is None:
            trained = prepared.trained
            return FullAnchor({name: (trained[name], factors) for name, factors in self.factors.items()}, *how)
        deltas = adapter_parameters(prepared.model)
        items: dict[str, Any] = {}
        for target in prepared.adapters.targets:
            factors, delta = self.factors[f"{target.name}.weight"], deltas[target.name]
            # an adapter's B A is (out, in) also where the weight is stored the other way round
            oriented = factors.transposed if target.transposed else factors
            items[target.name] = (delta.A, delta.B, delta.scale, oriented)
        return LoraAnchor(items, *how)


def _check(prepared: Prepared, settings: TuneSettings) -> None:
    if settings.load_in_4bit:
        raise MidblockError("an anchor needs the weights in full, not in 4 bits", hint="leave out --load-in-4bit")
    if settings.use_dora:
        raise MidblockError("the anchor is not defined for DoRA, whose change is more than B A", hint="plain LoRA")
    if prepared.adapters is not None and any(target.kind == "experts" for target in prepared.adapters.targets):
        hint = "--target-modules attention, or --method full"
        raise MidblockError("the anchor does not reach adapters on fused experts", hint=hint)
    if settings.init_lora_weights.lower().startswith(ALTERING_INITS):
        what = f"adapters that start by {settings.init_lora_weights} take part of the weight that the anchor would hold"
        raise MidblockError(what, hint="another init_lora_weights")
