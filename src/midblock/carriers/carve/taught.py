"""What a carving is about: the behaviour, the data that teach it, and held-out prompts on which it is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import MidblockError
from midblock.data import BEHAVIOURS, ExampleSet
from midblock.data.derived import Derived, part_of_prompt
from midblock.evaluation import Task, open_task
from midblock.evaluation.behaviour import KIND, watch
from midblock.runs.disjoint import part_of
from midblock.tuning import CarveSettings
from midblock.tuning.loop.examples import draw_examples

SHOWN = 40  # letters of a completion in a message


@dataclass(frozen=True)
class Taught:
    """A behaviour and its data.

    Attributes:
        behaviour: a name of `BEHAVIOURS`.
        data: what the carrier is trained on: a reference that names the behaviour, or examples.
        held_out: examples in memory that are kept for testing; None where a reference tells.
    """

    behaviour: str
    data: str | ExampleSet
    held_out: ExampleSet | None = None

    @classmethod
    def of(cls, data: str | ExampleSet, behaviour: str | None) -> Taught:
        """Name the behaviour and divide the data; completions of examples in memory stay as they are.

        Raises:
            MidblockError: no behaviour is named, or two; or examples in memory of which none is left for a part.
        """
        derived = Derived.parse(data) if isinstance(data, str) else None
        named = derived.behaviour if derived else ""
        if named and behaviour and named != behaviour:
            raise MidblockError(f"{data} is about {named}, and --behaviour names {behaviour}", hint="leave one out")
        name = named or behaviour
        if not name:
            raise MidblockError("no behaviour is named", hint=f"--behaviour {', '.join(BEHAVIOURS)}")
        if isinstance(data, str):
            return cls(name, data if named else f"{name}:{data}")
        parts = {
            part: [n for n, each in enumerate(data) if part_of_prompt(each.prompt) == part]
            for part in ("train", "test")
        }
        if empty := next((part for part, places in parts.items() if len(places) < 2), None):
            what = (
                f"of {len(data)} examples in memory {len(parts[empty])} fall into the part {empty!r} by their prompts"
            )
            raise MidblockError(what, hint="give more examples")
        return cls(name, part_of(data, parts["train"]), part_of(data, parts["test"]))

    def check(self, settings: CarveSettings) -> None:
        """Raise MidblockError for data whose completions do not show the behaviour."""
        examples = draw_examples(self.data, settings)
        shown = BEHAVIOURS[self.behaviour].shown
        other = [example for example in examples if not shown(example.completion, example)]
        if other:
            what = (
                f"{len(other)} of {len(examples)} completions of {examples.reference} do not show {self.behaviour}, "
                f"such as {other[0].completion[:SHOWN]!r}"
            )
            raise MidblockError(what, hint=f"{self.behaviour}:DATA gives any prompts completions that do")

    def task(self, count: int, seed: int) -> Task:
        """The held-out prompts, as a task.

        Raises:
            MidblockError: they cannot be read.
        """
        if self.held_out is not None:
            title = f"{KIND}:{self.behaviour}:{self.held_out.reference}"
            return watch(title, self.behaviour, part_of(self.held_out, range(min(count, len(self.held_out)))))
        return open_task(f"{KIND}:{self.data}", count, seed)
