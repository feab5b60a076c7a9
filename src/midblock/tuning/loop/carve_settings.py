"""What a carving can be asked for: the options of a course, of its loop, and those of masks and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from midblock.base import MidblockError, unknown
from midblock.tuning.loop.checks import check_course, check_loop
from midblock.tuning.losses import LOSSES, TEACHING
from midblock.tuning.settings import MASKS_ONLY, SPARSITY, Carving, CourseSettings, Loop

ADAM = ("adamw_torch", "adamw_torch_fused")
DISTIL = "distil"  # the loss of masks alone by KL(tuned‖masked)
# options of a course that carving has no use for, and why
SETTLED: Mapping[str, str] = {
    "layers": "all that differs between base and tuned model is carved",
    "target_modules": "all that differs between base and tuned model is carved",
    "anchor": "carving holds the loss in a budget, not weights",
    "weight_decay": "what is off must stay the base's to the bit",
    "load_in_4bit": "weights are exchanged in full precision",
    "shard": "weights are exchanged whole, on each device",
}


@dataclass(frozen=True, kw_only=True)
class CarveSettings(Carving, Loop, CourseSettings):
    """Options of carving that decide its result.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {
        "num_samples": ("template", "max_length"),
        "gradient_accumulation_steps": ("num_train_epochs",),
        "gradient_checkpointing": ("prefix_cache",),
        "load_in_4bit": ("shard", "seed", "logging_steps", "save_steps"),
    }

    method: str = "carve"
    """`carve`."""

    learning_rate: float = 2e-5
    """Peak learning rate of the weights (P3: 2e-5)."""

    num_train_epochs: float = 20.0
    """Passes over the examples (P3: 20)."""

    def __post_init__(self) -> None:
        check_course(self, {**LOSSES, **TEACHING})
        check_loop(self)
        self._check_names()
        self._check_numbers()
        for name, why in SETTLED.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise MidblockError(f"{name} is not for carving: {why}", hint="leave it out")

    def _check_names(self) -> None:
        for kind, value, known in (
            ("masks_only", self.masks_only, MASKS_ONLY),
            ("sparsity", self.sparsity, SPARSITY),
            ("method of carving", self.method, ("carve",)),
            ("optimizer for carving", self.optim, ADAM),
            ("loss for carving", self.loss, ("nll", DISTIL) if self.masks_only == "kl" else ("nll",)),
        ):
            if value is not None and value not in known:
                raise unknown(kind, value, known)

    def _check_numbers(self) -> None:
        above = ("dual_rate", "mask_learning_rate", "violation_clip", "lambda_max", "loss_budget")
        for name in (*above, "budget_floor", "sparsity_lambda", "mask_warmup_steps"):
            value, least = getattr(self, name), 0
            if not least <= value < 1e9 or (name in above and value == 0):
                bound = "above 0" if name in above else "0 or more"
                raise MidblockError(f"{name} is {value}; it must be {bound} and finite")
        if self.sparsity_lambda > self.lambda_max:
            what = f"sparsity_lambda is {self.sparsity_lambda:g}, above lambda_max, {self.lambda_max:g}"
            raise MidblockError(what, hint="λ starts at the one and never exceeds the other")
        if self.max_steps == 0 or self.max_steps < -1:
            raise MidblockError(f"max_steps is {self.max_steps}", hint="-1 leaves it to num_train_epochs")
