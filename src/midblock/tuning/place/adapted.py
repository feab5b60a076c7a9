"""The method `lora`: adapters beside frozen weights, written as a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Checkpoint
from midblock.checkpoints.lora_config import ALTERING_INITS
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.anchor.factors import Factors
from midblock.tuning.anchor.lora import lora_anchor
from midblock.tuning.place.adapter_plan import AdapterPlan, place_adapters
from midblock.tuning.place.adapters import attach, live_factors
from midblock.tuning.place.gradients import plain_name
from midblock.tuning.place.trainable import Start, Trainable
from midblock.tuning.settings import Anchoring, CourseSettings


@dataclass(frozen=True, eq=False)
class Adapted(Trainable):
    """A model with adapters.

    Attributes:
        wrapper: PEFT's.
        adapters: which ones were attached.
        use_rslora: their scale is alpha/√r.
    """

    wrapper: nn.Module
    adapters: AdapterPlan
    use_rslora: bool

    @property
    def model(self) -> nn.Module:
        return self.wrapper

    @property
    def by_part(self) -> dict[str, int]:
        return self.adapters.by_part()

    def targets(self) -> list[dict[str, Any]]:
        return [
            {
                "name": target.name,
                "block": target.block,
                "role": target.role,
                "shape": list(target.shape),
                "rank": target.rank,
                "alpha": target.alpha,
                "scale": self.adapters.scale(target, self.use_rslora),
                "parameters": target.parameters,
            }
            for target in self.adapters.targets
        ]

    def check_anchor(self, settings: CourseSettings) -> None:
        if settings.load_in_4bit:
            raise MidblockError("an anchor needs the weights in full, not in 4 bits", hint="leave out --load-in-4bit")
        if settings.use_dora:
            raise MidblockError("the anchor is not defined for DoRA, whose change is more than B A", hint="plain LoRA")
        start = settings.init_lora_weights
        if start.lower().startswith(ALTERING_INITS):
            what = f"adapters that start by {start} take part of the weight that the anchor would hold"
            raise MidblockError(what, hint="another init_lora_weights")

    def anchored(self) -> dict[str, nn.Parameter]:
        """The frozen weights under the adapters."""
        plain = {plain_name(name): value for name, value in self.wrapper.named_parameters() if ".lora_" not in name}
        return {target.projection.name: plain[target.projection.name] for target in self.adapters.targets}

    def anchor(self, factors: Mapping[str, Factors], settings: Anchoring) -> Anchor:
        live = live_factors(self.wrapper)
        items: dict[str, Any] = {}
        for target in self.adapters.targets:
            held = factors[target.projection.name]
            # an adapter's B A is (out, in) also where the weight is stored the other way round
            oriented = held.transposed if target.transposed else held
            items[target.name] = (*live[target.name], oriented)
        return lora_anchor(
            items,
            strength=settings.anchor_lambda,
            scope=settings.anchor_scope,
            normalize=settings.anchor_normalize,
        )

    @property
    def bytes_beside(self) -> int:
        """Of stacked experts PEFT makes W + sBA whole for each forward pass, and the backward pass keeps it."""
        stacked = {target.projection.name for target in self.adapters.targets if target.projection.stacked}
        return sum(weight.nbytes for name, weight in self.anchored().items() if name in stacked)

    def companion(self, steps: int, device: torch.device, scratch: Path) -> None:
        """Nothing: the optimiser does it all."""

    @property
    def saved(self) -> set[str]:
        return {name for name, value in self.wrapper.named_parameters() if value.requires_grad}

    def write(self, folder: Path, state: Mapping[str, Tensor], base: Checkpoint) -> None:
        wrapper: Any = self.wrapper
        reference = base.reference
        for config in wrapper.peft_config.values():
            # as the user named the base, not as a folder of this machine's cache
            config.base_model_name_or_path = reference.location if reference.kind == "hub" else reference.text
            config.revision = reference.revision
            config.inference_mode = True
        wrapper.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        _sort_names(folder / "adapter_config.json")


def attach_adapters(start: Start) -> Trainable:
    """Put adapters on the planned projections, in place, and freeze everything else.

    Raises:
        MidblockError: the plan fits the model nowhere, a rank is larger than its matrix, or PEFT refuses.
    """
    causal, settings = start.causal, start.settings
    adapters = place_adapters(causal, start.plan, settings)
    causal.requires_grad_(False)
    return Adapted(attach(causal, adapters, settings, seed=settings.seed), adapters, settings.use_rslora)


def _sort_names(path: Path) -> None:
    """PEFT writes sets in an order that changes from run to run."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
