"""Carver: weights, masks and the dual variable, trained together (LCDD).

In each step of the optimiser: the loss moves the dual variable, gradients of the chosen weights become gradients of the
masks, the optimiser moves what is on, gradient descent moves θ, and entries whose masks turned change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors.torch import load_file
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.runs.processes import main_process
from midblock.tuning.carve.best import NAME, SPARSER, Found, put, write_state
from midblock.tuning.carve.channels import ChannelGroups
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.carve.selected import SelectedWeight
from midblock.tuning.companion import Companion
from midblock.tuning.settings import Carving

STATE = "carving.safetensors"
LOGITS, REST = "logits.", "rest."
BY_GROUP_EACH = 10  # steps between lines that tell of each group


@dataclass(eq=False)
class Carver(Companion):
    """What carving does beside the optimiser.

    Attributes:
        start: θ as it was drawn.
        on: which masks are on.
        best: the best carrier so far; its entries lie in `scratch`.
        scratch: a folder of this run.
    """

    settings: Carving
    groups: ChannelGroups
    weights: Mapping[str, SelectedWeight]
    masks: Masks
    dual: DualControl
    start: Mapping[int, Tensor] = field(init=False)
    on: dict[int, Bool[Tensor, "_"]] = field(init=False)
    best: Found | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        """Give the parameters the values that the masks select, tuned weights being in them."""
        self.start = {layer: each.clone() for layer, each in self.masks.logits.items()}
        self.on = {layer: torch.ones_like(each, dtype=torch.bool) for layer, each in self.start.items()}
        self.turn(self.masks.on, {})

    def begin(self, steps: int, device: torch.device, scratch: Path) -> Carver:
        """Get ready to train.

        Raises:
            MidblockError: all steps would be warm-up.
        """
        if steps <= self.settings.mask_warmup_steps:
            what = f"the masks' warm-up of {self.settings.mask_warmup_steps} steps leaves nothing of {steps} steps"
            raise MidblockError(what, hint="more --num-train-epochs, or fewer --mask-warmup-steps")
        self.masks.to(device)
        self.on = {layer: each.to(device) for layer, each in self.on.items()}
        for weight in self.weights.values():
            weight.to(device)
        self.scratch = scratch
        return self

    def before_step(self, nll: float) -> None:
        self.dual.see(nll)
        self._keep_best()
        for weight in self.weights.values():
            total = self.masks.gradients[weight.layer]
            weight.gather(self.on[weight.layer], total, trained=self.settings.masks_only is None)

    def after_step(self, optimizer: Any) -> None:
        whole = self.masks.total if self.settings.sparsity == "normalized" else 1
        self.masks.step(self.settings.mask_learning_rate, float(whole), self.dual.pressure)
        self.turn(self.masks.on, optimizer.state)

    def line(self) -> Mapping[str, Any]:
        line: dict[str, Any] = {
            "lambda": self.dual.strength,
            "loss_mean": self.dual.loss,
            "masks_on": self.masks.share,
        }
        if self.dual.budget is not None:
            line["budget"] = self.dual.budget
        if self.dual.steps % BY_GROUP_EACH == 0:
            line["masks_on_by_group"] = self.density()
        return line

    def density(self) -> dict[str, float]:
        """Group → share of its masks that are on, over all layers."""
        sums: dict[str, list[int]] = {}
        for (_, group), on in self.groups.by_group(self.on).items():
            count = sums.setdefault(group, [0, 0])
            count[0] += int(on.sum())
            count[1] += len(on)
        return {group: kept / size for group, (kept, size) in sums.items()}

    def save(self, folder: Path) -> Mapping[str, Any]:
        tensors = {f"{LOGITS}{layer}": each.cpu() for layer, each in self.masks.logits.items()}
        entries = {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()}
        entries |= {f"{REST}{name}": (each.rest.dtype, tuple(each.rest.shape)) for name, each in self.weights.items()}
        write_tensors(
            folder / STATE,
            entries,
            lambda name: tensors[name] if name in tensors else self.weights[name.removeprefix(REST)].rest.cpu(),
        )
        if self.best is not None:
            put(self._best_file, folder / NAME)
        return {"dual": self.dual.carried(), "best": None if self.best is None else self.best.as_record()}

    def load(self, folder: Path, carried: Mapping[str, Any]) -> None:
        found = load_file(folder / STATE)
        for layer, logits in self.masks.logits.items():
            logits.copy_(found[f"{LOGITS}{layer}"])
        for name, weight in self.weights.items():
            weight.rest.copy_(found[f"{REST}{name}"])
        self.on = self.masks.on
        self.dual.go_on(carried["dual"])
        self.best = None if carried["best"] is None else Found(**carried["best"])
        if self.best is not None:
            put(folder / NAME, self._best_file)

    def final(self) -> tuple[Path, Found]:
        """The file of the carrier to be kept, and what it came to: the best, or the last one where none was within."""
        if self.best is not None:
            return self._best_file, self.best
        write_state(self._best_file, self.weights, self.groups, self.on)
        return self._best_file, Found(self.dual.steps, self.masks.share, self.dual.loss)

    @property
    def _best_file(self) -> Path:
        if self.scratch is None:
            raise ValueError("a carver that has not begun has no carrier yet")
        return self.scratch / NAME

    def _keep_best(self) -> None:
        """Look at the masks and weights that the step's loss was of."""
        share = self.masks.share
        if self.dual.within and (self.best is None or share < SPARSER * self.best.share):
            if main_process():
                write_state(self._best_file, self.weights, self.groups, self.on)
            self.best = Found(self.dual.steps - 1, share, self.dual.loss)

    def turn(self, after: dict[int, Bool[Tensor, "_"]], state: Mapping[Any, Any]) -> None:
        """Let other masks be on.

        Args:
            after: all of them, by layer.
            state: the optimiser's, by parameter.
        """
        turned = {layer for layer, each in after.items() if not torch.equal(each, self.on[layer])}
        for weight in self.weights.values():
            if weight.layer in turned:
                moments = state[weight.parameter].get("exp_avg") if weight.parameter in state else None
                weight.select(self.on[weight.layer], after[weight.layer], moments)
        self.on = after
