"""TASKS: the one table of the tasks that models can be asked, by name or by what stands before the colon of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from midblock.base import nearest, unknown
from midblock.data.procedural import OF_REASONING_GYM, reasoning_sets
from midblock.evaluation.answered import open_exact_match, open_gsm8k
from midblock.evaluation.behaviour import open_behaviour
from midblock.evaluation.choices import open_choices
from midblock.evaluation.lm_eval_tasks import open_lm_eval
from midblock.evaluation.perplexity import open_bits_per_byte, open_perplexity
from midblock.evaluation.programs import open_humaneval
from midblock.evaluation.reasoning import open_reasoning
from midblock.evaluation.task import Task, TaskRequest, TaskSettings, check_items

Opener = Callable[[TaskRequest], Task]

# Any set of reasoning-gym is a task by its own name besides: `gsm_symbolic`, `chain_sum`, …
TASKS: Mapping[str, Opener] = {
    "gsm8k": open_gsm8k,
    "exact_match": open_exact_match,
    "reasoning_gym": open_reasoning,
    "humaneval": open_humaneval,
    "mmlu": open_choices,
    "perplexity": open_perplexity,
    "bits_per_byte": open_bits_per_byte,
    "lm_eval": open_lm_eval,
    "behaviour": open_behaviour,
}


def open_task(
    name: str,
    num_samples: int | None = None,
    seed: int = 0,
    split: str | None = None,
    settings: TaskSettings | None = None,
    skip: int = 0,
) -> Task:
    """Draw the items of a task.

    Args:
        name: a name of `TASKS`, with or without `:ARGUMENT` (a dataset reference, a set's name), or a reasoning-gym
            set.
        num_samples: items wanted; None for all there are.
        seed: decides which are drawn.
        split: which part of the data; its usual evaluation split when left out.
        skip: leave out the items that a draw of so many has: what is drawn behind them shares none with it.

    Raises:
        MidblockError: an unknown task (the nearest is named), one whose items have no answers, or data that cannot be
            read.
    """
    if skip:
        passed = {item.id for item in open_task(name, skip, seed, split, settings).items}
        wide = open_task(name, None if num_samples is None else skip + num_samples, seed, split, settings)
        return check_items(replace(wide, items=tuple(item for item in wide.items if item.id not in passed)))
    kind, _, argument = name.partition(":")
    request = TaskRequest(name, argument, num_samples, seed, split, settings or TaskSettings())
    if kind in TASKS:
        return check_items(TASKS[kind](request))
    if name in (sets := reasoning_sets()):
        return check_items(open_reasoning(TaskRequest(name, name, num_samples, seed, split, request.settings)))
    known = [*TASKS, *sets]
    raise unknown("task", kind, known if nearest(kind, known) else [*TASKS, *OF_REASONING_GYM])
