"""What a study will cost, before it starts: passes over tokens, and the time that they take on this machine.

A rough estimate, told as one: a multiplication of matrices is timed, and a model is taken to do 60 % of it in training
and 10 % when it writes, token by token. Cost: a tenth of a second, and tokenising a few examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from midblock.base.options import divide
from midblock.checkpoints import Checkpoint, LoadSettings
from midblock.data import Example
from midblock.studies.study.exams import Exam
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import Trial, tune_options
from midblock.tuning import TuneSettings
from midblock.tuning.loop.examples import draw_examples

FEW = 64  # examples whose lengths stand for all
SIDE = 1024  # of the matrices that are timed
TRAINING, WRITING = 0.6, 0.1  # share of that speed
IMPORTS = 4.0  # seconds until a trial's process begins


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
            f"{self.trials:,} trials, {self.steps:,} steps over {self.tokens:,} tokens, {self.answers:,} answers: "
            f"about {time} on this machine (a rough estimate)"
        )


def cost_of(
    study: StudyFile, trials: Sequence[Trial], checkpoint: Checkpoint, exams: tuple[Exam | None, Exam], jobs: int
) -> Cost:
    """Estimate what a study costs; halving and a resumed study cost less.

    Args:
        exams: what is asked for validation (None for nothing) and as a test.
        jobs: trials at a time.
    """
    tokenizer, parameters = checkpoint.tokenizer(), _parameters(checkpoint)
    speed = _speed() * jobs
    lengths = {"": 1.0}
    steps = tokens = 0
    work = 0.0
    for trial in trials:
        settings, _ = divide(tune_options(trial), TuneSettings, LoadSettings)
        key = repr([trial.options.get(name) for name in ("num_samples", "split")])
        if key not in lengths:
            lengths[key] = _mean_length(draw_examples(study.data, settings).examples, tokenizer, settings.max_length)
            lengths[f"count {key}"] = len(draw_examples(study.data, settings))
        trained = _steps(settings, int(lengths[f"count {key}"]))
        read = trained * settings.per_device_train_batch_size * settings.gradient_accumulation_steps * lengths[key]
        steps, tokens = steps + trained, tokens + round(read)
        work += read * parameters * (6 if settings.method == "full" else 4) / TRAINING
    arms = len({trial.arm for trial in trials})
    points = len({(trial.arm, trial.point) for trial in trials})
    tested = 1 + len(trials) * arms // points
    validation, test = exams
    answers = 0
    for exam, models in ((validation, len(trials)), (test, tested)):
        if exam is not None:
            asked = [item.example for task in exam.tasks for item in task.items]
            answers += models * len(asked)
            work += models * len(asked) * 2 * parameters * _mean_length(asked, tokenizer, 10**6) / WRITING
    seconds = work / speed + IMPORTS * (len(trials) + (tested if points > arms else 1)) / jobs
    return Cost(len(trials), steps, tokens, answers, seconds)


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


def _speed() -> float:
    """Operations a second of a multiplication of matrices here, where models would be."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    matrix = torch.ones(SIDE, SIDE, device=device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best
