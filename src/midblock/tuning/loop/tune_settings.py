"""What a tuning run can be asked for: the options of a course, how long its loop goes on, and where to upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from midblock.base import MidblockError
from midblock.tuning.loop.checks import check_course, check_loop
from midblock.tuning.settings import CourseSettings, Loop


@dataclass(frozen=True, kw_only=True)
class TuneSettings(Loop, CourseSettings):
    """Options of `midblock tune` that decide its result.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {
        "num_samples": ("template", "max_length"),
        "gradient_accumulation_steps": ("num_train_epochs",),
        "gradient_checkpointing": ("prefix_cache",),
        "load_in_4bit": ("shard", "seed", "logging_steps", "save_steps"),
    }

    push_to_hub: bool = False
    """Upload the result to the hub."""

    hub_model_id: str | None = None
    """Where to upload it."""

    hub_private_repo: bool = True
    """Make a new hub repository private."""

    def __post_init__(self) -> None:
        check_course(self)
        check_loop(self)
        if self.max_steps == 0 or self.max_steps < -1:
            raise MidblockError(f"max_steps is {self.max_steps}", hint="-1 leaves it to num_train_epochs")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise MidblockError("hub_model_id is about uploading", hint="leave it out, or --push-to-hub")
