"""What a study will cost, before it starts: passes over tokens, and the time that they take on this machine.

A rough estimate, told as one: a multiplication of matrices is timed, and a model is taken to do 40 % of it where it
reads and 5 % where it writes, token by token. Cost: a tenth of a second, and tokenising a few examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from midblock.base.options import divide
from midblock.base.plural import counted
from midblock.checkpoints import Checkpoint, LoadSettings
from midblock.data import Example
from midblock.evaluation.task import Task
from midblock.studies.study.exams import Exam
from midblock.studies.study.rounds import Seen, next_round
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial, tune_options
from midblock.tuning import METHODS, TuneSettings
from midblock.tuning.loop.examples import draw_examples

FEW = 64  # examples whose lengths stand for all
SIDE = 1024  # of the matrices that are timed
READING, WRITING = 0.4, 0.05  # share of that speed
LONGEST = 10**6  # tokens
IMPORTS = 5.0  # seconds until a round's processes begin


@dataclass(frozen=True)
class Cost:
    """What a study comes to.

    Attributes:
        trials: tunings.
        steps: optimizer steps of all of them.
        tokens: that are trained on.
        answers: that are generated or scored.
        seconds: on this machine, `jobs` trials at a time.
    """

    trials: int
    steps: int
    tokens: int
    answers: int
    seconds: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        time = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(1, round(minutes))} min"
        return (
            f"{counted(self.trials, 'trial')}, {counted(self.steps, 'step')} over {counted(self.tokens, 'token')}, "
            f"{counted(self.answers, 'answer')}: "
            f"about {time} on this machine (a rough estimate)"
        )


def cost_of(
    study: StudyFile,
    trials: Sequence[Trial],
    reference: str,
    checkpoint: Checkpoint,
    exams: tuple[Exam | None, Exam],
    jobs: int,
) -> Cost:
    """Estimate what a study costs; one that is resumed costs less.

    Args:
        reference: the arm that others are compared with.
        exams: what is asked for validation (None for nothing) and as a test.
        jobs: trials at a time.
    """
    tokenizer = checkpoint.tokenizer()
    works = all_works(study, trials, reference)
    steps, tokens, passes = _training(
        study, [trial for trial, stages in works if trial and "tune" in stages], tokenizer
    )
    answers, asking = 0, 0.0
    for stage, exam in zip(("validate", "evaluate"), exams, strict=True):
        times = sum(stage in stages for _, stages in works)
        if exam is not None:
            answers += times * sum(len(task.items) for task in exam.tasks)
            asking += times * sum(_asking(task, tokenizer) for task in exam.tasks)
    work = _parameters(checkpoint) * (passes + asking)
    seconds = work / (_speed(study) * jobs) + IMPORTS * len({stages for _, stages in works})
    tuned = sum("tune" in stages for _, stages in works)
    return Cost(tuned, steps, tokens, answers, seconds)


def all_works(study: StudyFile, trials: Sequence[Trial], reference: str) -> list[tuple[Trial | None, tuple[str, ...]]]:
    """What all rounds will do, where all points are equally good; None stands for the base."""
    seen: dict[str, Seen] = {}
    works: list[tuple[Trial | None, tuple[str, ...]]] = []
    while due := next_round(study, trials, reference, seen).due:
        for trial, stages in due:
            name = BASE if trial is None else trial.name
            seen[name] = Seen(seen.get(name, Seen()).stages | set(stages), 0.0)
        works += due
    return works


def _training(study: StudyFile, trials: Sequence[Trial], tokenizer: Any) -> tuple[int, int, float]:
    """Steps, tokens, and operations for each parameter of the model."""
    known: dict[str, tuple[int, float]] = {}
    steps, tokens, passes = 0, 0, 0.0
    for trial in trials:
        settings, _ = divide(tune_options(trial), TuneSettings, LoadSettings)
        key = repr([trial.options.get(name) for name in ("num_samples", "split")])
        if key not in known:
            examples = draw_examples(study.data, settings).examples
            known[key] = len(examples), _mean_length(examples, tokenizer, settings.max_length)
        count, length = known[key]
        taken = max(1, round(_steps(settings, count) * trial.share))
        read = taken * settings.per_device_train_batch_size * settings.gradient_accumulation_steps * length
        steps, tokens = steps + taken, tokens + round(read)
        passes += read * (4 if METHODS[settings.method].base_stays else 6) / READING
    return steps, tokens, passes


def _asking(task: Task, tokenizer: Any) -> float:
    """Operations for each parameter to ask one model all items: reading them, and writing answers token by token."""
    examples = [item.example for item in task.items]
    if not task.generates:
        return len(examples) * 2 * _mean_length(examples, tokenizer, LONGEST) / READING
    prompts = [Example(each.prompt) for each in examples]
    written = [Example(each.completion) for each in examples if each.completion] or [Example("1")]
    reading = _mean_length(prompts, tokenizer, LONGEST) / READING
    return len(examples) * 2 * (reading + (1 + _mean_length(written, tokenizer, LONGEST)) / WRITING)


def _steps(settings: TuneSettings, examples: int) -> int:
    if settings.max_steps > 0:
        return settings.max_steps
    a_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return max(1, math.ceil(examples * settings.num_train_epochs / a_step))


def _mean_length(examples: Sequence[Example], tokenizer: Any, longest: int) -> float:
    some = examples[:: max(1, len(examples) // FEW)]
    return sum(min(longest, len(tokenizer(each.text)["input_ids"])) for each in some) / len(some)


def _parameters(checkpoint: Checkpoint) -> int:
    with checkpoint.tensors() as tensors:
        return sum(math.prod(tensors.shape(name)) for name in tensors.names)


def _speed(study: StudyFile) -> float:
    """Operations a second of a multiplication of matrices here, where models would be."""
    asked = str(study.tune.get("device", "auto"))
    there = torch.accelerator.is_available() and asked != "cpu"
    device = torch.accelerator.current_accelerator() if there else torch.device("cpu")
    half = study.tune.get("dtype") == "bfloat16" or (there and study.tune.get("dtype", "auto") == "auto")
    matrix = torch.ones(SIDE, SIDE, device=device, dtype=torch.bfloat16 if half else torch.float32)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best
