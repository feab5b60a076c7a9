"""What a recommendation can be asked for: every option once, with the door that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from midblock.base import MidblockError
from midblock.base.options import check_sizes
from midblock.runs.reading import check_least
from midblock.runs.stopping import seconds_of

# Options of one door alone; all others serve several.
OWN: Mapping[str, Sequence[str]] = {
    "runs": ("tuned_name",),
    "pilot": ("budget", "steps", "learning_rate", "lora_r", "per_device_train_batch_size"),
    "repair": ("test_samples", "test", "general_test", "segments", "grid", "keep"),
}

NAMES = {"runs": "run of several tuned models", "pilot": "pilot", "repair": "repair"}


@dataclass(frozen=True, kw_only=True)
class RecommendSettings:
    """Options of `midblock recommend` that decide its answer.

    Raises:
        MidblockError: a value out of range.
    """

    rank_budget: int | None = None
    """Sum of ranks over blocks, shared among the recommended ones by how much each is pointed at."""

    tuned_name: str | None = None
    """Of runs about several tuned models, the one that counts; the first when left out."""

    budget: str | None = None
    """Pilot: the time it may take (`5m`, `1h30m`, seconds); no limit when left out."""

    steps: int = 30
    """Pilot: the most steps of uniform LoRA that are taken."""

    learning_rate: float = 1e-3
    """Pilot: learning rate of its few steps, constant."""

    lora_r: int = 8
    """Pilot: rank of its adapters, on every projection of every block."""

    per_device_train_batch_size: int = 4
    """Pilot: examples a step."""

    num_samples: int = 48
    """Pilot: held-out examples measured on. Repair: examples in each of the two validation sets."""

    test_samples: int = 96
    """Repair: examples in each of the two test sets."""

    test: str | None = None
    """Repair: data of the task that the result is tested on; other samples of `data` when left out."""

    general_test: str | None = None
    """Repair: general data that the result is tested on; other samples of `general` when left out."""

    segments: int = 5
    """Repair: depth segments that get an α of their own, at most one a block."""

    grid: int = 4
    """Repair: α goes from 1 to 0 in so many equal steps."""

    keep: float = 0.9
    """Repair: share of the gain on the task's validation set that must stay."""

    split: str | None = None
    """Split of the datasets; `train` for a pilot, their usual evaluation split for a repair, when left out."""

    max_length: int = 256
    """Tokens an example is cut at."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    batch_tokens: int = 1024
    """Tokens a batch may hold, padding included."""

    seed: int = 0
    """Decides which examples are drawn, the pilot's adapters and every resampling."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_least(self, steps=1, lora_r=1, per_device_train_batch_size=1, num_samples=4, test_samples=4)
        check_least(self, segments=2, grid=1, max_length=3, batch_tokens=1)
        if self.rank_budget is not None:
            check_least(self, rank_budget=1)
        if not 0 < self.keep <= 1:
            raise MidblockError(f"keep is {self.keep}; it must lie above 0 and at most at 1")
        if not self.learning_rate > 0:
            raise MidblockError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.budget is not None:
            seconds_of(self.budget)

    def check_door(self, door: str) -> None:
        """Raise MidblockError for an option that another door has and this one would pass over."""
        usual = {field.name: field.default for field in fields(self)}
        for other, names in OWN.items():
            for name in names if other != door else ():
                if getattr(self, name) != usual[name]:
                    raise MidblockError(f"{name} is about recommending from a {NAMES[other]}", hint="leave it out")
