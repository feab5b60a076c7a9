"""Measures: what is asked of every contender: the behaviour, its loss, predictions elsewhere, and an ability.

Each is a few steps whose results are kept, so that a killed run goes on behind the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from midblock.base import Progress
from midblock.data import TokenizedSet
from midblock.evaluation import Scored, Subject, Task, TaskSettings, TokenMean, mean_divergence, mean_nll
from midblock.evaluation.evaluate.asking import ask, rounds_of
from midblock.evaluation.evaluate.tables import marks_of
from midblock.evaluation.paired import Marks

BEHAVIOUR, LOSS, KL, ABILITY = "behaviour", "loss", "kl_base", "ability"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A piece of work on one contender.

    Attributes:
        cost: in what progress counts.
        do: from the model and its name to rows of plain values.
    """

    cost: float
    do: Callable[[str, nn.Module, Progress], list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Measure:
    """Something that every contender is measured by.

    Attributes:
        name: of its rows in the table.
        title, unit: for people.
        share: values are 0 or 1.
        about: what it is measured on, for people.
        steps: what there is to do with a contender.
        marks: from the rows of all steps, in their order, to the items' values; the same items for every contender.
    """

    name: str
    title: str
    unit: str
    share: bool
    about: str
    steps: Sequence[Step]
    marks: Callable[[Sequence[Row]], Marks]


def task_measure(name: str, title: str, task: Task, settings: TaskSettings, tokenizer: Any, template: str) -> Measure:
    """The score of a task, asked a round of items at a time."""

    def steps() -> Iterator[Step]:
        for items in rounds_of(task, settings):

            def do(who: str, model: nn.Module, progress: Progress, items: Any = items) -> list[dict[str, Any]]:
                return ask(Subject(who, model, tokenizer, template), task, items, settings, progress)

            yield Step(float(len(items) * settings.max_new_tokens), do)

    def marks(rows: Sequence[Row]) -> Marks:
        found = {row["item"]: Scored(**row) for row in rows}
        return marks_of(task, [found[item.id] for item in task.items])

    about = f"{len(task.items)} prompts of {task.name}"
    return Measure(name, title, f"share {task.metric}", task.kind == "share", about, tuple(steps()), marks)


def loss_measure(tokens: TokenizedSet, behaviour: str, seed: int) -> Measure:
    """NLL of the completions that show the behaviour, on held-out prompts."""
    return _mean_measure(
        LOSS,
        "NLL of its completions",
        f"{len(tokens.prompts)} held-out completions that show {behaviour}",
        tokens,
        lambda model, progress: mean_nll(model, tokens, region="answer", seed=seed, progress=progress),
    )


def divergence_measure(tokens: TokenizedSet, base: nn.Module, data: str, seed: int) -> Measure:
    """KL(base‖contender) on prompts that have nothing to do with the behaviour."""
    return _mean_measure(
        KL,
        "KL(base‖·) elsewhere",
        f"{len(tokens.prompts)} texts of {data}",
        tokens,
        lambda model, progress: mean_divergence(model, base, tokens, seed=seed, progress=progress),
    )


def _mean_measure(
    name: str, title: str, about: str, tokens: TokenizedSet, work: Callable[[nn.Module, Progress], TokenMean]
) -> Measure:
    def do(who: str, model: nn.Module, progress: Progress) -> list[dict[str, Any]]:
        found = work(model, progress)
        columns = (found.index.tolist(), found.sums.tolist(), found.counts.tolist())
        return [{"index": i, "sum": s, "count": c} for i, s, c in zip(*columns, strict=True)]

    def marks(rows: Sequence[Row]) -> Marks:
        counts = np.array([row["count"] for row in rows], dtype=float)
        return Marks(np.array([row["sum"] for row in rows], dtype=float) / counts, counts, False)

    cost = float(sum(len(prompt.input_ids) for prompt in tokens.prompts))
    return Measure(name, title, "nats per token", False, about, (Step(cost, do),), marks)
