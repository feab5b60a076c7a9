"""Tasks by generation: the model writes an answer, a rule reads it, and it is right or it is not.

An answer is what a rule finds and nothing else: where a model ends its answer in another way than the rule wants, there
is none, and how often that was so stands beside the score. Cost: generating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from midblock.base import MidblockError, Progress, unknown
from midblock.data import ExampleSet, load_dataset
from midblock.evaluation.answers import ANSWERS, choose_strict_reader, gold_answer, read_gold
from midblock.evaluation.encoded_prompts import encode_prompts, stop_tokens
from midblock.evaluation.generate import answer_text, continue_ids
from midblock.evaluation.task import (
    SHARE,
    Item,
    Scored,
    Subject,
    Task,
    TaskRequest,
    TaskSettings,
    examples_of,
    items_of,
)

Verdict = tuple[float, str]  # a value, and why it could not be had as others are


@dataclass(frozen=True, eq=False)
class Answered:
    """How a task by generation asks and scores; `Task.run` of it.

    Attributes:
        reader: how answers are read, a name of `ANSWERS`.
        expected: of an item, the right answer as it is shown and compared.
        score: from an item and the answer read (None where there is none) to its value, and why that failed.
    """

    reader: str
    expected: Callable[[Item], str]
    score: Callable[[Item, str | None], Verdict]

    def run(
        self, subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
    ) -> Iterator[Scored]:
        """Ask a model the items, in batches."""
        for item, output, cut in write_answers(subject, items, settings, progress):
            answer = ANSWERS[self.reader](output)
            value, failed = self.score(item, answer)
            yield Scored(item.id, value, 1.0, output, answer, self.expected(item), cut, failed)


def write_answers(
    subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
) -> Iterator[tuple[Item, str, bool]]:
    """Let a model answer the items greedily: each with what was written, and whether that ends at the limit."""
    prompts = encode_prompts(examples_of(items), subject.tokenizer, subject.template)
    stop = stop_tokens(subject.model, subject.tokenizer, subject.template)
    written = continue_ids(
        subject.model,
        subject.tokenizer,
        prompts,
        stop=stop,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        progress=progress,
    )
    for item, prompt, ids in zip(items, prompts, written, strict=True):
        yield item, answer_text(subject.tokenizer, prompt, ids, stop), not (ids and ids[-1] in stop)


def open_exact_match(request: TaskRequest) -> Task:
    """`exact_match:DATAREF`: any dataset whose samples come with answers."""
    if not request.argument:
        raise MidblockError(f"the task {request.name!r} wants a dataset", hint="exact_match:builtin:gsm_symbolic, …")
    return matched(request, "exact_match", request.argument)


def open_gsm8k(request: TaskRequest) -> Task:
    """`gsm8k` from the hub, or `gsm8k:FILE` from a file; answers behind #### alone unless asked otherwise."""
    return matched(request, "gsm8k", request.argument or "gsm8k", reader="marked")


def matched(request: TaskRequest, key: str, data: str, *, reader: str | None = None) -> Task:
    """A task whose answers are those of a dataset, compared as the reader gives them.

    Args:
        key: what the items' ids say the task is.
        reader: the task's own rule; None for the one that fits the data.

    Raises:
        MidblockError: the data cannot be read, an unknown reader, or samples without an answer that it can read.
    """
    examples = drawn(request, data)
    if missing := [place for place, example in enumerate(examples) if not gold_answer(example).strip()]:
        what = f"{request.name}: {len(missing)} of {len(examples)} samples have no answer to compare with"
        raise MidblockError(what, hint="a task needs answered data")
    reader = known_reader(request.settings.reader) or reader or choose_strict_reader(examples.examples)
    items = items_of(key, examples.examples)
    expected: dict[str, str] = {}
    for place, item in enumerate(items):
        gold = read_gold(reader, item.example)
        if gold is None:
            what = f"{request.name}: {reader} reads no answer from {gold_answer(item.example)[:40]!r} (sample {place})"
            raise MidblockError(what, hint=f"choose another reader: {', '.join(ANSWERS)}")
        expected[item.id] = gold
    asked = Answered(reader, lambda item: expected[item.id], lambda item, answer: _alike(answer, expected[item.id]))
    return Task(
        request.name,
        "exact_match",
        SHARE,
        items,
        asked.run,
        rule=reader,
        generates=True,
        facts=tuple(facts_of(examples).items()),
        notes=notes_of(request, examples),
    )


def known_reader(reader: str | None) -> str | None:
    """The reader asked for, None for none.

    Raises:
        MidblockError: it is unknown; the nearest is named.
    """
    if reader is not None and reader not in ANSWERS:
        raise unknown("reader", reader, ANSWERS)
    return reader


def drawn(request: TaskRequest, data: str) -> ExampleSet:
    """As many samples of a dataset as were asked for, or all there are.

    Raises:
        MidblockError: it cannot be read, or holds none.
    """
    split, count = request.split, request.num_samples
    return load_dataset(data, split=split, num_samples=count, seed=request.seed, at_most=True)


def notes_of(request: TaskRequest, examples: ExampleSet) -> tuple[str, ...]:
    """What a reader must know of the samples that were drawn."""
    return (*examples.notes(), *fewer(request, len(examples)))


def fewer(request: TaskRequest, count: int) -> list[str]:
    """A note where there are fewer items than were asked for."""
    if request.num_samples is None or count >= request.num_samples:
        return []
    return [f"{request.name} has {count} items, all of which were asked ({request.num_samples} were wanted)."]


def facts_of(examples: ExampleSet) -> dict[str, object]:
    """What is recorded of where items come from."""
    return {
        "reference": examples.reference,
        "split": examples.split,
        "layout": examples.layout,
        "content_hash": examples.content_hash,
    }


def _alike(answer: str | None, expected: str) -> Verdict:
    return float(answer == expected), ""
