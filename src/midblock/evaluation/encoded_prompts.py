"""Prompts as training put them before the answer: their ids, and the tokens that end an answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError
from midblock.data import Example, ExampleSet, Message, encode
from midblock.data.sandbox import RunawayTemplateError
from midblock.data.templates import render


@dataclass(frozen=True)
class EncodedPrompt:
    """What a model is given before it answers.

    Attributes:
        input_ids: token ids, special tokens included, no padding.
        owed: whitespace at the prompt's end that training saw inside the completion's first token (the space of
            "Answer: B"); it is left for the model to write and taken off what it wrote.
        as_trained: the ids are those that stand before the completion in training; False where a token of the whole
            text holds both words of the prompt and of the completion; None where there is no completion to tell by.
    """

    input_ids: tuple[int, ...]
    owed: str = ""
    as_trained: bool | None = None


def encode_prompts(
    prompts: Sequence[str] | ExampleSet, tokenizer: PreTrainedTokenizerBase, template: str = "raw"
) -> list[EncodedPrompt]:
    """Tokenise prompts as training did.

    Where an example has a completion, its prompt gets the ids that precede the completion in the tokenised whole, as
    long as they miss no more than whitespace of the prompt; else those of the prompt alone, since to begin inside a
    token would tell the model how the answer goes on.

    Raises:
        MidblockError: a prompt without tokens, or a template that cannot be used.
    """
    examples = list(prompts) if isinstance(prompts, ExampleSet) else [_as_example(text) for text in prompts]
    if not examples:
        raise MidblockError("there are no prompts to answer")
    asked = [_asked(example, template) for example in examples]
    alone = _encode(asked, tokenizer, template)
    if empty := [index for index, ids in enumerate(alone) if not ids[0]]:
        raise MidblockError(f"prompt {empty[0]} has no tokens")
    try:
        whole = _encode(examples, tokenizer, template)
    except RunawayTemplateError:
        raise
    except MidblockError:
        # A template that writes the prompt otherwise once an answer follows: not to be trained with, but to be asked.
        return [EncodedPrompt(ids) for ids, _ in alone]
    return [
        _before_answer(tokenizer, without_end(ids, example.prompt, tokenizer, template), trained[:start], example)
        for (ids, _), (trained, start), example in zip(alone, whole, examples, strict=True)
    ]


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Ids that end an answer: the tokenizer's end, those the model was shipped with, and the template's end of turn."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    if template != "raw":
        found.append(_end_of_turn(tokenizer, template))
    return sorted({token for token in found if isinstance(token, int)})


def without_end(
    ids: tuple[int, ...], prompt: str, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[int, ...]:
    """Take off the end token that some tokenizers put behind any text: nothing would be left to say."""
    end = tokenizer.eos_token_id
    added = template == "raw" and ids[-1] == end and not prompt.endswith(str(tokenizer.eos_token))
    return ids[:-1] if added and len(ids) > 1 else ids


def _as_example(text: str) -> Example:
    return Example(text, messages=(Message("user", text),), separator="")


def _asked(example: Example, template: str) -> Example:
    """The example without its answer."""
    if template != "raw":
        before = example.messages[:-1] if example.answered else example.messages
        return Example(example.prompt, messages=before, tools=example.tools)
    answerable = example.completion or example.messages
    return Example(example.prompt + example.separator if answerable else example.prompt)


def _encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str
) -> list[tuple[tuple[int, ...], int]]:
    """Ids and the answer's start of each example; those without tokens included."""
    plain = ExampleSet("", "", "", tuple(examples), "")
    encoded = encode(plain, tokenizer, template=template, max_length=sys.maxsize, min_tokens=1)
    found = {prompt.index: (prompt.input_ids, prompt.answer_start) for prompt in encoded.prompts}
    return [found.get(index, ((), 0)) for index in range(len(examples))]


def _before_answer(
    tokenizer: PreTrainedTokenizerBase, alone: tuple[int, ...], trained: tuple[int, ...], example: Example
) -> EncodedPrompt:
    if not example.completion:
        return EncodedPrompt(alone)
    if trained == alone:
        return EncodedPrompt(alone, as_trained=True)
    given, seen = (str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) for ids in (alone, trained))
    owed = given.removeprefix(seen)
    if trained and given.startswith(seen) and not owed.strip():
        return EncodedPrompt(trained, owed, as_trained=True)
    return EncodedPrompt(alone, as_trained=False)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The first special token that a template writes behind an answer."""
    question, answer = "question", "the answer"
    turns = (Message("user", question), Message("assistant", answer))
    try:
        text = render([Example(question, answer, turns)], tokenizer, template).texts[0]
    except MidblockError:
        return None  # it renders no answers, and may still render prompts
    behind = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in behind if token in special), None)
