"""Task: questions that models are asked, one by one, and how what they do is scored.

A task draws its items once; every model is asked the same ones, so that models are compared item by item. How an item
is scored is the task's own affair: a generated answer read by a rule, a program that is run, likelihoods of choices.
The tasks that there are stand in `midblock.evaluation.tasks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, Progress
from midblock.base.clusters import Clusters
from midblock.base.seal import fingerprint
from midblock.data import Example, ExampleSet
from midblock.data.examples import hash_examples

Kind = Literal["share", "mean"]
SHARE: Kind = "share"
MEAN: Kind = "mean"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under test.

    Attributes:
        name: what tables call it.
        model: a causal language model, loaded.
        tokenizer: its own, a fast one.
        template: "raw", "chat" or the path of a `.jinja` file: how it is given prompts.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: str = "raw"


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
        id: the same for all models, runs and machines: a hash of the task and of what the item says.
        example: the question, with its answer.
        cluster: what it is one of many variants of; None where it is none. Variants are resampled together.
    """

    id: str
    example: Example
    cluster: str | None = None


@dataclass(frozen=True)
class Scored:
    """What a model made of one item.

    Attributes:
        item: the item's id.
        value: its score: 0 or 1 in a task whose kind is "share".
        weight: what the value counts (of a mean over tokens, their number).
        output: what the model wrote; empty where it was not asked to write.
        answer: what was read from that; None where no answer was found.
        expected: the right answer, as it is compared.
        cut: the output ended at the limit of new tokens: the model did not stop by itself.
        failed: why the item could not be scored as others are (a program that ran out of time); it has a value all the
            same.
    """

    item: str
    value: float
    weight: float = 1.0
    output: str = ""
    answer: str | None = None
    expected: str = ""
    cut: bool = False
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Options that decide how items are asked and scored."""

    max_new_tokens: int = 256
    """Tokens at which an answer that does not end is cut."""

    batch_tokens: int = 8192
    """Tokens a batch may hold, padding and answers included."""

    reader: str | None = None
    """How answers are read: `marked` (behind ####), `boxed`, `last_number`, `first_line`, `exact`, or `gsm8k` (behind
    ####, else the last number); each task's own rule when left out."""

    allow_code: bool = False
    """Run programs that models write, each in a process with limits and no network."""

    choices: str = "letters"
    """What multiple choice compares: `letters` below a list, `texts`, or `texts_per_byte` (length-normalised)."""

    include_path: str | None = None
    """Folder of further lm-eval tasks (YAML), for `lm_eval:NAME`."""


@dataclass(frozen=True)
class TaskRequest:
    """What an opener of the table is given.

    Attributes:
        name: the task as the user wrote it.
        argument: what stands behind the colon of its name ("" where there is none).
        num_samples: items wanted; None for all there are.
        seed: decides which are drawn.
        split: which part of the dataset; None for its usual evaluation split.
    """

    name: str
    argument: str
    num_samples: int | None
    seed: int
    split: str | None
    settings: TaskSettings


Run = Callable[[Subject, Sequence[Item], TaskSettings, Progress], Iterator[Scored]]


@dataclass(frozen=True, eq=False)
class Task:
    """A task, its items drawn.

    Attributes:
        name: as the user wrote it.
        metric: what its number is called ("exact_match", "pass@1", "accuracy", "nll", …).
        kind: "share" where each value is 0 or 1, else "mean".
        items: in the order of the data; no two have one id.
        run: asks a model some of the items and gives each one's score, in any order. The same items in the same call
            give the same scores. Told of progress in items.
        higher_is_better: whether more is better.
        rule: how answers are read, recorded; "" where none are.
        generates: the model writes, so that outputs without an answer and outputs that were cut are counted.
        at_once: its items are always run in one call (so begun anew when a run was killed), not some at a time.
        facts: what is recorded of where the items come from (`reference`, `content_hash`, …).
        notes: what a reader must know of them.
    """

    name: str
    metric: str
    kind: Kind
    items: tuple[Item, ...]
    run: Run
    higher_is_better: bool = True
    rule: str = ""
    generates: bool = False
    at_once: bool = False
    facts: tuple[tuple[str, object], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> ExampleSet:
        """The items' examples."""
        return examples_of(self.items)

    @property
    def clusters(self) -> Clusters | None:
        """Which items are variants of one question, by their places; None where none are."""
        return Clusters.of([item.cluster or "" for item in self.items])


def items_of(task: str, examples: Sequence[Example]) -> tuple[Item, ...]:
    """Items with their ids; `question` says what an example is a variant of; what comes twice is one of itself.

    Args:
        task: what the task is, wherever its data lie ("gsm8k", not a path): the same question has the same id.
    """
    counted: dict[str, int] = {}
    found = []
    contents = [hash_examples([example]) for example in examples]
    times = Counter(contents)
    for example, content in zip(examples, contents, strict=True):
        counted[content] = counted.get(content, 0) + 1
        # a question that the data hold twice is asked twice
        key = fingerprint(task, content, counted[content])[:16]
        found.append(Item(key, example, example.question or (content if times[content] > 1 else None)))
    return tuple(found)


def examples_of(items: Sequence[Item]) -> ExampleSet:
    """Items as samples, for whoever writes prompts."""
    return ExampleSet("", "", "", tuple(item.example for item in items), "")


def check_items(task: Task) -> Task:
    """The task itself.

    Raises:
        MidblockError: it has no items.
    """
    if not task.items:
        raise MidblockError(f"{task.name} has no items", hint="ask for more samples, or another split")
    return task
