"""Which answers an intervention is judged by: examples to token batches, the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.base.clusters import Clusters
from midblock.checkpoints import Pair
from midblock.data import Batch, ExampleSet
from midblock.evaluation import ANSWERS, Targets
from midblock.runs.reading import ReadingSettings, check_least, check_reading, read

FEWEST = 2  # examples; a single one has no interval


@dataclass(frozen=True, kw_only=True)
class AnsweringSettings(ReadingSettings):
    """Options about answers, for interventions that predict them and may generate them, too."""

    num_samples: int = 64
    """Examples whose answers are predicted, given the right ones so far."""

    region: str = "answer"
    """Tokens that are predicted: `answer`, `prompt` or `all`."""

    generate: bool = False
    """Answer greedily, too, and count exact matches; takes many times longer."""

    generate_samples: int = 32
    """Examples to answer each time."""

    max_new_tokens: int = 256
    """Where an answer that does not end is cut."""

    reader: str | None = None
    """How an answer is read: `gsm8k`, `marked`, `boxed`, `last_number`, `first_line`, `exact`; by default what fits the
    data."""

    @property
    def answering(self) -> dict[str, Any]:
        """Keyword arguments of `exact_match`."""
        return {"reader": self.reader, "template": self.template, "max_new_tokens": self.max_new_tokens}

    def check_answering(self) -> None:
        """Raise MidblockError for a value out of range or an unknown name."""
        check_reading(self, fewest=FEWEST)
        if self.reader is not None and self.reader not in ANSWERS:
            raise unknown("reader", self.reader, ANSWERS)
        check_least(self, generate_samples=1, max_new_tokens=1)


@dataclass(frozen=True)
class Answers:
    """Examples ready to be read.

    Attributes:
        examples: the samples, for exact match.
        tokenizer: the one whose ids all models are fed.
        batches: their tokens.
        region: the tokens that count.
        facts: what `run.json` records.
    """

    examples: ExampleSet
    tokenizer: Any
    batches: list[Batch]
    region: str
    facts: Mapping[str, Any]

    @property
    def reference(self) -> str:
        return self.examples.reference

    @cached_property
    def clusters(self) -> Clusters | None:
        """Which examples are variants of one question, by their places."""
        return self.examples.clusters

    @cached_property
    def targets(self) -> list[Targets]:
        """The tokens to predict, batch by batch."""
        return [Targets.of(batch, self.region) for batch in self.batches]

    def first(self, count: int) -> ExampleSet:
        """The first so many examples, for what takes longer than reading."""
        return replace(self.examples, examples=self.examples.examples[:count])

    def notes(self) -> list[str]:
        """What a reader must know: how many examples were left out or cut, and why."""
        told = {
            "too_short": "too short to be measured: left out.",
            "without_region": f"without a token in the region {self.region!r}: left out.",
            "truncated": f"cut at {self.facts['max_length']} tokens.",
        }
        counted = [f"{self.facts[name]} example(s) {note}" for name, note in told.items() if self.facts.get(name)]
        return [*self.facts.get("left_out", ()), *counted]


def read_answers(pair: Pair, data: str | ExampleSet, settings: ReadingSettings) -> Answers:
    """Draw, tokenise and batch the examples.

    Raises:
        MidblockError: tokenizers that disagree, no answers, too few examples, or whatever is wrong with the data.
    """
    found = read(pair, data, settings)
    if (count := len(found.tokens.prompts)) < FEWEST:
        what = f"only {count} of {len(found.examples)} examples of {found.reference} can be measured"
        cut = len(found.tokens.completion_lost) > 0
        hint = "--region all counts every token" if settings.region == "answer" and not cut else "see --max-length"
        raise MidblockError(what, hint=hint)
    return Answers(found.examples, found.tokenizer, found.batches(settings.batch_tokens), settings.region, found.facts)
