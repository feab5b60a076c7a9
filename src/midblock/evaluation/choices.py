"""Multiple choice: which of the answers that are offered a model finds likeliest, without letting it write.

As lm-eval's `multiple_choice` does: the choice stands behind the question, a space before it belongs to it, and of its
tokens alone ln p is summed up. Letters are compared below a list of the choices (MMLU); whole texts stand behind the
question alone, and since longer ones are less likely, their ln p can be taken per byte (`acc_norm`; lm-eval itself
divides by letters there and calls this `acc_bytes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, Progress, unknown
from midblock.data import Example, Message, TokenizedPrompt
from midblock.data.encode import tokenise
from midblock.data.layouts import ASKED, LETTERS, lettered
from midblock.data.templates import Rendering, render
from midblock.evaluation.answered import drawn, facts_of, notes_of
from midblock.evaluation.encoded_prompts import without_end
from midblock.evaluation.likelihood import log_likelihoods
from midblock.evaluation.task import SHARE, Item, Scored, Subject, Task, TaskRequest, TaskSettings, items_of


@dataclass(frozen=True)
class Offer:
    """What is compared, and how.

    Attributes:
        metric: what the share of right answers is called.
        texts: the choices' own words, not their letters.
        per_byte: ln p is divided by the choice's length in UTF-8.
    """

    metric: str
    texts: bool = False
    per_byte: bool = False


OFFERS: Mapping[str, Offer] = {
    "letters": Offer("acc"),
    "texts": Offer("acc", texts=True),
    "texts_per_byte": Offer("acc_norm", texts=True, per_byte=True),
}


def open_choices(request: TaskRequest) -> Task:
    """`mmlu` from the hub, or `mmlu:FILE`: `question`, `choices`, `answer` (the right one's place, from 0).

    Raises:
        MidblockError: the data cannot be read, or have no choices; an unknown way to compare them.
    """
    if request.settings.choices not in OFFERS:
        raise unknown("way to compare choices", request.settings.choices, OFFERS)
    data = request.argument or "mmlu"
    examples = drawn(request, data)
    for place, example in enumerate(examples):
        if "choices" not in example.extra:
            what = f"{request.name}: sample {place} offers no choices"
            raise MidblockError(
                what, hint="columns: question, choices (a list), answer (the right one's place, from 0)"
            )
        if blank := [each for each in json.loads(example.extra["choices"]) if not each.strip()]:
            raise MidblockError(f"{request.name}: sample {place} offers {blank[0]!r}, an empty choice")
    offer = OFFERS[request.settings.choices]

    def run(subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress) -> Iterator[Scored]:
        return _run(offer, subject, items, settings, progress)

    facts, notes = tuple(facts_of(examples).items()), notes_of(request, examples)
    items = items_of("mmlu", examples.examples)
    return Task(request.name, offer.metric, SHARE, items, run, rule=request.settings.choices, facts=facts, notes=notes)


def _run(
    offer: Offer, subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
) -> Iterator[Scored]:
    offered = [offered_with(item.example, texts=offer.texts) for item in items]
    flat = [example for examples in offered for example in examples]
    requests = encode_offered(flat, subject.tokenizer, subject.template)
    sums = log_likelihoods(
        subject.name, subject.model, requests, batch_tokens=settings.batch_tokens, progress=progress
    ).tolist()
    start = 0
    for item, examples in zip(items, offered, strict=True):
        values = sums[start : start + len(examples)]
        start += len(examples)
        if offer.per_byte:
            values = [
                value / len(each.completion.encode("utf-8")) for value, each in zip(values, examples, strict=True)
            ]
        chosen, right = values.index(max(values)), LETTERS.index(item.example.extra["answer"])
        answer, expected = examples[chosen].completion, examples[right].completion
        yield Scored(item.id, float(chosen == right), answer=answer, expected=expected)


def offered_with(example: Example, *, texts: bool = False) -> list[Example]:
    """The question with each of its choices as the answer: their letters below the list of them, or their texts."""
    choices: list[str] = json.loads(example.extra["choices"])
    if not texts:
        return [_answered(example, example.prompt, letter) for letter in LETTERS[: len(choices)]]
    prompt = f"{example.prompt.removesuffix(lettered(choices))}\n{ASKED}"
    return [_answered(example, prompt, choice.strip()) for choice in choices]


def _answered(example: Example, prompt: str, choice: str) -> Example:
    turns = (Message("user", prompt), Message("assistant", choice))
    return replace(example, prompt=prompt, completion=choice, messages=turns)


def encode_offered(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str
) -> list[TokenizedPrompt]:
    """Token ids up to the last of each example's completion: what a template writes behind it says nothing of it.

    In raw text the whitespace before it counts with it, whether or not it is a token of its own; what a chat template
    writes before it does not.
    """
    whole = render(examples, tokenizer, template)
    ends = [boundary + len(example.completion) for boundary, example in zip(whole.boundaries, examples, strict=True)]
    texts = tuple(text[:end] for text, end in zip(whole.texts, ends, strict=True))
    starts = whole.boundaries
    if template == "raw":
        starts = tuple(len(text[:start].rstrip()) for text, start in zip(texts, starts, strict=True))
    found = tokenise(Rendering(whole.template, texts, starts, whole.special_tokens), tokenizer)
    return [
        replace(each, input_ids=without_end(each.input_ids, text, tokenizer, template))
        for each, text in zip(found, texts, strict=True)
    ]
