"""Judging: how often a model shows the behaviour, how far its predictions are from another's, what it still can do.

Every model answers the same prompts with the same settings, greedily; all that is found is kept, so that a run that was
stopped asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from midblock.base import Progress
from midblock.carriers.erase.samples import Asked
from midblock.carriers.erase.settings import EraseSettings
from midblock.data import BEHAVIOURS, ExampleSet
from midblock.evaluation import TokenMean, exact_match, mean_divergence
from midblock.evaluation.encoded_prompts import stop_tokens
from midblock.evaluation.generate import continue_prompts
from midblock.evaluation.paired import Marks
from midblock.interventions.steer.kept import KeptValues

Given = Callable[[], nn.Module]


@dataclass(eq=False)
class Judging:
    """Measures models by name.

    Attributes:
        tokenizer: the one whose ids all models are fed.
        written: answers by model and kind of prompts, in the order they were first asked for.
    """

    tokenizer: Any
    settings: EraseSettings
    kept: KeptValues
    progress: Progress
    written: dict[tuple[str, str], tuple[Asked, list[str]]] = field(default_factory=dict)

    def shown(self, name: str, model: Given, asked: Asked) -> Marks:
        """Which prompts are answered with the behaviour.

        Args:
            name: what is kept of it is called after that.
            model: gives the model, where it is not known what it writes.
        """
        outputs: list[str] = self.kept.value(_file(f"written-{name}-{asked.name}"), lambda: self.write(model(), asked))
        self.written[name, asked.name] = asked, outputs
        return self.marks(outputs, asked)

    def marks(self, outputs: list[str], asked: Asked) -> Marks:
        """Which outputs show the behaviour."""
        shows = BEHAVIOURS[self.settings.named].shown
        pairs = zip(outputs, asked.examples, strict=True)
        values = np.array([float(shows(output, example)) for output, example in pairs])
        return Marks(values, np.ones_like(values), True, asked.clusters)

    def divergence(self, name: str, model: Given, reference: Given, asked: Asked) -> TokenMean:
        """KL(reference‖model) behind every token of the prompts, in nats."""

        def parts() -> list[list[float]]:
            found = mean_divergence(model(), reference(), asked.batches, seed=self.settings.seed)
            return [found.index.tolist(), found.sums.tolist(), found.counts.tolist()]

        index, sums, counts = self.kept.value(_file(f"kl-{name}-{asked.name}"), parts)
        totals = torch.tensor(index), torch.tensor(sums, dtype=torch.float64), torch.tensor(counts)
        return TokenMean.of(*totals, seed=self.settings.seed, clusters=asked.clusters)

    def right(self, name: str, model: Given, general: ExampleSet) -> Marks:
        """Which sums are right."""

        def ask() -> list[float]:
            found = exact_match(
                model(),
                self.tokenizer,
                general,
                template=self.settings.template,
                max_new_tokens=self.settings.max_new_tokens,
            )
            return [float(each) for each in found.correct.tolist()]

        values = np.array(self.kept.value(_file(f"right-{name}"), ask))
        return Marks(values, np.ones_like(values), True, general.clusters)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All answers, for a file."""
        for (name, kind), (asked, outputs) in self.written.items():
            marks = self.marks(outputs, asked)
            for example, output, shown in zip(asked.examples, outputs, marks.values.tolist(), strict=True):
                yield {
                    "model": name,
                    "prompts": kind,
                    "prompt": example.prompt,
                    "output": output,
                    "shown": shown == 1.0,
                }

    def write(self, model: nn.Module, asked: Asked) -> list[str]:
        """What a model answers, greedily."""
        return continue_prompts(
            model,
            self.tokenizer,
            asked.prompts,
            stop=stop_tokens(model, self.tokenizer, self.settings.template),
            max_new_tokens=self.settings.max_new_tokens,
            progress=self.progress,
        )


def _file(name: str) -> str:
    """A name as that of a file: a model's may hold a branch of the hub."""
    return name.replace("/", "-")
