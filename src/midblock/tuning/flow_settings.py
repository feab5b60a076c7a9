"""What a flow run can be asked for: the options of `midblock tune`, for a few steps after which no model is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from midblock.base import MidblockError, from_options
from midblock.tuning.settings import TuneSettings


@dataclass(frozen=True, kw_only=True)
class FlowSettings(TuneSettings):
    """Options of `midblock flow` that decide its result: those of `midblock tune` under the same names.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    max_steps: int = 10
    """K: optimiser steps whose gradients are looked at; agreement wants 2, its interval 3."""

    lr_scheduler_type: str = "constant"
    """How the learning rate goes on: `constant`, `constant_with_warmup`, `linear`, `cosine`, …"""

    sketch_size: int = 8192
    """m: numbers kept of each tensor's gradient in a step, to compare it with other steps'. Smaller tensors are kept
    whole; cosines of larger ones are uncertain by about 1/√m."""

    # No options here: as class variables they are no fields, so neither the command line nor Python takes them.
    num_train_epochs: ClassVar[float] = 1.0  # type: ignore[misc]
    prefix_cache: ClassVar[str] = "off"  # type: ignore[misc]
    shard: ClassVar[bool] = False  # type: ignore[misc]
    logging_steps: ClassVar[int] = 1  # type: ignore[misc]
    save_steps: ClassVar[int] = 0  # type: ignore[misc]
    push_to_hub: ClassVar[bool] = False  # type: ignore[misc]
    hub_model_id: ClassVar[str | None] = None  # type: ignore[misc]
    hub_private_repo: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps < 1:
            raise MidblockError(f"max_steps is {self.max_steps}; flow wants to know how many steps", hint="e.g. 10")
        if self.sketch_size < 1:
            raise MidblockError(f"sketch_size is {self.sketch_size}; it must be above 0")
        if self.warmup_steps > 0 and self.lr_scheduler_type == "constant":
            hint = "--lr-scheduler-type constant_with_warmup"
            raise MidblockError("the schedule `constant` has no warm-up", hint=hint)
        if self.warmup_steps > 0 and self.max_steps == 1:
            what = "the only step would be the first of the warm-up, at a learning rate of 0: nothing would move"
            raise MidblockError(what, hint="more --max-steps, or no --warmup-steps")

    @classmethod
    def of(cls, options: dict[str, Any]) -> FlowSettings:
        """Build the settings from keyword arguments.

        Raises:
            MidblockError: an unknown keyword; the nearest is named.
        """
        return from_options(cls, options)
