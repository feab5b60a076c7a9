"""`behaviour:NAME:DATA`: how often a model shows a behaviour, by the behaviour's own scorer, on held-out prompts.

An item counts 1 where `shown` says so of the whole output, else 0; nothing is read out of it. Cost: generating.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midblock.base import Progress, unknown
from midblock.data import BEHAVIOURS, Behaviour, ExampleSet
from midblock.data.derived import DEFAULT_PROMPTS
from midblock.evaluation.answered import drawn, facts_of, notes_of, write_answers
from midblock.evaluation.task import SHARE, Item, Scored, Subject, Task, TaskRequest, TaskSettings, items_of

SHOWN = "shown"
KIND = "behaviour"


@dataclass(frozen=True)
class Watched:
    """How a behaviour is asked for and scored; `Task.run` of it."""

    behaviour: Behaviour

    def run(
        self, subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
    ) -> Iterator[Scored]:
        """Ask a model the items, in batches."""
        for item, output, cut in write_answers(subject, items, settings, progress):
            value = float(self.behaviour.shown(output, item.example))
            yield Scored(item.id, value, 1.0, output, output.strip(), item.example.completion, cut)


def open_behaviour(request: TaskRequest) -> Task:
    """`behaviour:NAME`, or `behaviour:NAME:DATA` for the prompts of other data.

    Raises:
        MidblockError: an unknown behaviour (the nearest is named), or data that cannot be read.
    """
    name, _, data = request.argument.partition(":")
    if name not in BEHAVIOURS:
        raise unknown("behaviour", name, BEHAVIOURS)
    examples = drawn(request, f"{name}:{data or DEFAULT_PROMPTS}")
    return watch(request.name, name, examples, notes_of(request, examples))


def watch(title: str, name: str, examples: ExampleSet, notes: tuple[str, ...] = ()) -> Task:
    """A task that looks for a behaviour on the prompts of given examples.

    Args:
        title: what tables call it.
        name: of the behaviour.
        examples: with the completions that show it.
    """
    behaviour = BEHAVIOURS[name]
    return Task(
        title,
        SHOWN,
        SHARE,
        items_of(f"{KIND}:{name}", examples.examples),
        Watched(behaviour).run,
        rule=behaviour.rule,
        generates=True,
        facts=tuple(facts_of(examples).items()),
        notes=notes,
    )
