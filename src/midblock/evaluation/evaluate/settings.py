"""What an evaluation can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.base.options import check_sizes
from midblock.evaluation.answered import known_reader
from midblock.evaluation.task import TaskSettings
from midblock.runs.reading import check_least

COMPARED = ("all", "reference")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(TaskSettings):
    """Options of `midblock evaluate` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    tasks: tuple[str, ...] = ()
    """Tasks, comma-separated: `gsm_symbolic`, `chain_sum`, any reasoning-gym set, `gsm8k`, `gsm8k:FILE`,
    `exact_match:DATA`, `humaneval`, `mmlu`, `perplexity:DATA`, `bits_per_byte:DATA`, `lm_eval:TASK`, …"""

    num_samples: int | None = 200
    """Items drawn of each task."""

    skip: int = 0
    """Items that are passed over first: behind the N of an earlier draw lie others with `--skip N`."""

    split: str | None = None
    """Split of the tasks' data; their usual evaluation split when left out."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    target: tuple[str, ...] = ()
    """Tasks among them that tuning was about, comma-separated: what is lost is told of the others."""

    general: str | None = None
    """Dataset of texts that tuning was not about, on which predictions are compared with the reference's."""

    general_samples: int = 64
    """Texts of it, and prompts of the tasks, on which predictions are compared."""

    max_length: int = 256
    """Tokens such a text is cut at."""

    compare: str = "all"
    """Which models are compared: `all` with each other, or each with the `reference`."""

    inspect: bool = False
    """Write an Inspect log of each model and task besides, into `inspect/`."""

    seed: int = 0
    """Decides which items are drawn and every resampling."""

    def __post_init__(self) -> None:
        check_sizes(self)
        least = {"max_new_tokens": 1, "batch_tokens": 1, "general_samples": 4, "max_length": 3}
        check_least(self, skip=0, **least, **({} if self.num_samples is None else {"num_samples": 1}))
        known_reader(self.reader)
        if self.compare not in COMPARED:
            raise unknown("comparison", self.compare, COMPARED)
        names = self.task_names
        if not names:
            raise MidblockError("no task is given", hint="--tasks gsm_symbolic,chain_sum")
        if twice := [name for name in names if names.count(name) > 1]:
            raise MidblockError(f"the task {twice[0]} is given twice")
        for name in self.targets:
            if name not in names:
                raise unknown("target", name, names)

    @property
    def task_names(self) -> list[str]:
        return split_names(self.tasks)

    @property
    def targets(self) -> list[str]:
        return split_names(self.target)


def split_names(names: str | Iterable[str]) -> list[str]:
    """Names given one by one or with commas."""
    given = [names] if isinstance(names, str) else names
    return [name.strip() for each in given for name in each.split(",") if name.strip()]
