"""Which answers an intervention is judged by: examples to token batches, the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.checkpoints import Pair
from midblock.data import REGIONS, Batch, ExampleSet, encode, load_dataset, make_batches
from midblock.evaluation import ANSWERS, Targets
from midblock.metrics.prompts import check_ids, common_tokenizer, data_facts, with_region

DEFAULT_DATA = "builtin:gsm_symbolic"


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """Options about the data, the same for all interventions."""

    split: str | None = None
    """Split of the dataset; its usual evaluation split when left out."""

    num_samples: int = 64
    """Examples whose answers are predicted, given the right ones so far."""

    max_length: int = 256
    """Tokens an example is cut at."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    region: str = "answer"
    """Tokens that are predicted: `answer`, `prompt` or `all`."""

    batch_tokens: int = 1024
    """Tokens a batch may hold, padding included."""

    seed: int = 0
    """Decides which examples are drawn and every resampling."""

    def check_reading(self) -> None:
        """Raise MidblockError for a value out of range or an unknown region."""
        if self.region not in REGIONS:
            raise unknown("region", self.region, REGIONS)
        for name, low in {"num_samples": 2, "max_length": 3, "batch_tokens": 1}.items():
            if getattr(self, name) < low:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be {low} or more")


@dataclass(frozen=True, kw_only=True)
class AnsweringSettings(ReadingSettings):
    """Options about greedy answers, for interventions that may generate them."""

    generate: bool = False
    """Answer greedily, too, and count exact matches; takes many times longer."""

    generate_samples: int = 32
    """Examples to answer each time."""

    max_new_tokens: int = 256
    """Where an answer that does not end is cut."""

    reader: str | None = None
    """How an answer is read: `gsm8k`, `last_number`, `first_line`, `exact`; by default what fits the data."""

    @property
    def answering(self) -> dict[str, Any]:
        """Keyword arguments of `exact_match`."""
        return {"reader": self.reader, "template": self.template, "max_new_tokens": self.max_new_tokens}

    def check_answering(self) -> None:
        """Raise MidblockError for a value out of range or an unknown name."""
        self.check_reading()
        if self.reader is not None and self.reader not in ANSWERS:
            raise unknown("reader", self.reader, ANSWERS)
        for name in ("generate_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be 1 or more")


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
        return [f"{self.facts[name]} example(s) {note}" for name, note in told.items() if self.facts.get(name)]


def read_answers(pair: Pair, data: str | ExampleSet, settings: ReadingSettings) -> Answers:
    """Draw, tokenise and batch the examples.

    Raises:
        MidblockError: tokenizers that disagree, no answers, too few examples, or whatever is wrong with the data.
    """
    if isinstance(data, str):
        data = load_dataset(data, split=settings.split, num_samples=settings.num_samples, seed=settings.seed)
    tokenizer = common_tokenizer(pair, data, settings)
    tokens = encode(data, tokenizer, template=settings.template, max_length=settings.max_length)
    long_enough = len(tokens.prompts)
    tokens = with_region(tokens, settings.region)
    if len(tokens.prompts) < 2:
        what = f"only {len(tokens.prompts)} of {len(data.examples)} examples of {data.reference} can be measured"
        cut = len(tokens.completion_lost) > 0
        hint = "--region all counts every token" if settings.region == "answer" and not cut else "see --max-length"
        raise MidblockError(what, hint=hint)
    check_ids(tokens, pair)
    facts = data_facts(data, tokens, settings) | {"without_region": long_enough - len(tokens.prompts)}
    batches = make_batches(tokens.prompts, batch_tokens=settings.batch_tokens)
    return Answers(data, tokenizer, batches, settings.region, facts)
