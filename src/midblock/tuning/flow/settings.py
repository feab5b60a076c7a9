"""What a flow run can be asked for: the options of a course, for a few steps after which no model is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from midblock.base import MidblockError
from midblock.tuning.loop.checks import check_course
from midblock.tuning.settings import CourseSettings, Loop

MOST_STEPS = 1000  # the intervals cost K³
MOST_NUMBERS = 2**24  # 64 MB a tensor and step
# A few steps in whole gradients, each of them logged and none kept: a run that was stopped takes them anew.
FEW_STEPS = Loop(prefix_cache="off", shard=False, logging_steps=1, save_steps=0)


@dataclass(frozen=True, kw_only=True)
class FlowSettings(CourseSettings):
    """Options of `midblock flow` that decide its result.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {
        "num_samples": ("template", "max_length"),
        "load_in_4bit": ("seed",),
    }

    max_steps: int = 10
    """K: optimiser steps whose gradients are looked at; agreement wants 2, its interval 3."""

    lr_scheduler_type: str = "constant"
    """How the learning rate goes on: `constant`, `constant_with_warmup`, `linear`, `cosine`, …"""

    sketch_size: int = 8192
    """m: numbers kept of each tensor's gradient in a step, to compare it with other steps'. Smaller tensors are kept
    whole; cosines of larger ones are uncertain by about 1/√m."""

    def __post_init__(self) -> None:
        check_course(self)
        if self.max_steps < 1:
            raise MidblockError(f"max_steps is {self.max_steps}; flow wants to know how many steps", hint="e.g. 10")
        if self.max_steps > MOST_STEPS:
            hint = f"flow is about the first steps, {MOST_STEPS:,} at the most"
            raise MidblockError(f"max_steps is {self.max_steps}", hint=hint)
        if not 1 <= self.sketch_size <= MOST_NUMBERS:
            raise MidblockError(f"sketch_size is {self.sketch_size}; it must lie between 1 and {MOST_NUMBERS:,}")
        if self.warmup_steps > 0 and self.lr_scheduler_type == "constant":
            hint = "--lr-scheduler-type constant_with_warmup"
            raise MidblockError("the schedule `constant` has no warm-up", hint=hint)
        if self.warmup_steps > 0 and self.max_steps == 1:
            what = "the only step would be the first of the warm-up, at a learning rate of 0: nothing would move"
            raise MidblockError(what, hint="more --max-steps, or no --warmup-steps")
