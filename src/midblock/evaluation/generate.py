"""Greedy decoding in batches: what a model answers, given exactly the ids that training put before the answer.

Cost: a forward pass a token, with a cache of keys and values, by transformers' own `generate`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, Progress, Silent
from midblock.checkpoints import device_of, soft_prompt_in
from midblock.data import Example, ExampleSet, Message, encode
from midblock.data.sandbox import RunawayTemplateError
from midblock.data.templates import render
from midblock.runs.lending import evaluating

# Last tokens of a prompt, and tokens of padding before them, at least and at most, that show whether padding shows.
PROBED, PADDED, MOST_PADDED = 16, 9, 512
# Of the predictions' size: in float32 rounding makes at most 3e-6 of it in any family, padding that shows 6e-2 or more.
ROUNDING = 1e-3


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


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | ExampleSet,
    *,
    template: str = "raw",
    max_new_tokens: int = 256,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[str]:
    """Let the model continue each prompt with the likeliest token, until it ends its answer.

    Nothing that the model's own generation config asks for (sampling, penalties, forbidden tokens) applies.

    Args:
        model: a causal language model of transformers, or PEFT's wrapper with its adapters in use.
        tokenizer: a fast tokenizer.
        prompts: examples, whose completions the model does not see; or texts, taken as they are.
        template: "raw" (prompt and separator), "chat" (the tokenizer's own, the answer's turn opened) or a `.jinja`.
        max_new_tokens: where an answer that does not end is cut.
        batch_tokens: most tokens, padding and answers included, that a batch may hold.

    Returns:
        What was written after each prompt, in the prompts' order, without special tokens.

    Raises:
        MidblockError: an empty prompt, one too long for the model, or a template that cannot be used.
    """
    return continue_prompts(
        model,
        tokenizer,
        encode_prompts(prompts, tokenizer, template),
        stop=stop_tokens(model, tokenizer, template),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        progress=progress,
    )


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


def continue_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[str]:
    """Continue encoded prompts greedily until a token of `stop`; see `generate_greedy`."""
    limits = {"max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens}
    written = continue_ids(model, tokenizer, prompts, stop=stop, progress=progress, **limits)
    return [answer_text(tokenizer, prompt, ids, stop) for prompt, ids in zip(prompts, written, strict=True)]


def continue_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[tuple[int, ...]]:
    """The ids that `continue_prompts` makes text of: the token of `stop` that ended an answer is the last of them."""
    if max_new_tokens < 1 or batch_tokens < 1:
        raise MidblockError(f"cannot write {max_new_tokens} tokens in batches of {batch_tokens}")
    if (soft := soft_prompt_in(model)) is not None:
        prompts = [replace(prompt, input_ids=soft.insert(prompt.input_ids)) for prompt in prompts]
    check_room(model, prompts, max_new_tokens)
    padding = padding_of(tokenizer, stop)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop) or None,
        pad_token_id=padding,
        use_cache=True,
    )
    device = device_of(model.get_input_embeddings())  # type: ignore[operator]
    advance = (progress or Silent()).phase("generating answers", len(prompts))
    outputs: list[tuple[int, ...]] = [()] * len(prompts)
    with evaluating(model), _plain_generation(model):
        groups = _groups(prompts, max_new_tokens, batch_tokens)
        if (width := _most_padding(prompts, groups)) and padding_shows(model, prompts, padding, width):
            groups = _groups(prompts, max_new_tokens, batch_tokens, alike=True)
        for group in groups:
            rows = [prompts[index].input_ids for index in group]
            input_ids, mask = _pad_left(rows, padding)
            inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
            written = _generated(model, generation_config=settings, **inputs)
            for index, ids in zip(group, written[:, input_ids.shape[1] :].tolist(), strict=True):
                outputs[index] = tuple(ids[: _end(ids, stop) + 1])
            advance(len(group))
    return outputs


def answer_text(
    tokenizer: PreTrainedTokenizerBase, prompt: EncodedPrompt, ids: Sequence[int], stop: Sequence[int]
) -> str:
    """The words that were written after a prompt, without what ended them and without the whitespace it was owed."""
    words = list(ids[: _end(ids, stop)])
    text = tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).removeprefix(prompt.owed)


@contextmanager
def _plain_generation(model: nn.Module) -> Iterator[None]:
    """Put the model's own generation config aside: transformers fills in from it whatever a caller left open."""
    holders: list[tuple[Any, Any]] = [
        (module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)
    ]
    for module, _ in holders:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in holders:
            module.generation_config = config


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


def without_end(
    ids: tuple[int, ...], prompt: str, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[int, ...]:
    """Take off the end token that some tokenizers put behind any text: nothing would be left to say."""
    end = tokenizer.eos_token_id
    added = template == "raw" and ids[-1] == end and not prompt.endswith(str(tokenizer.eos_token))
    return ids[:-1] if added and len(ids) > 1 else ids


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


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Ids that end an answer: the tokenizer's end, those the model was shipped with, and the template's end of turn."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    if template != "raw":
        found.append(_end_of_turn(tokenizer, template))
    return sorted({token for token in found if isinstance(token, int)})


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


def padding_of(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> int:
    """The id that fills batches up."""
    return next((token for token in (tokenizer.pad_token_id, *stop) if isinstance(token, int)), 0)


def check_room(model: Any, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> None:
    """Raise MidblockError where a prompt and its answer do not fit into the model's context."""
    check_fits(text_config(model), prompts, max_new_tokens)


def check_fits(config: Any, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> None:
    """The same of a text model's config, before the model is loaded."""
    most = context_of(config)
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index].input_ids))
    length = len(prompts[longest].input_ids)
    if most is not None and length + max_new_tokens > most:
        new = f"with {max_new_tokens} new ones " if max_new_tokens else ""
        what = f"prompt {longest} has {length} tokens; {new}it exceeds the model's {most}"
        raise MidblockError(what, hint=f"max_new_tokens {most - length}" if most > length else "drop this prompt")


def context_of(config: Any) -> int | None:
    """The most tokens that a text model takes, if its config says so."""
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None  # XLNet says -1: no end


def text_config(model: Any) -> Any:
    """The config of a model, of a multimodal one that of its text model."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _generated(model: nn.Module, **inputs: Any) -> Any:
    """What transformers' `generate` gives.

    Raises:
        MidblockError: the model cannot be run by it.
    """
    generate: Any = model.generate
    try:
        return generate(**inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"{type(model).__name__} does not write with transformers' generate: {reason}"
        raise MidblockError(what, hint="this architecture cannot be asked for answers") from error


def padding_shows(model: nn.Module, prompts: Sequence[EncodedPrompt], padding: int, width: int = PADDED) -> bool:
    """Whether a model writes otherwise behind padding than without: its state is no attention that a mask ends.

    Asked of the model itself, by the predictions of two tokens in a row behind the shortest prompt's end. Cost: two
    forward passes over it, two over a token, and the padding.

    Args:
        padding: the id that fills up.
        width: how much of it is put before the prompt, as far as that says more: 9 to 512 tokens.

    Raises:
        MidblockError: the model does not write at all.
    """
    ids = min((prompt.input_ids for prompt in prompts), key=len)[-PROBED:]
    alone = _predictions(model, [ids], padding)
    try:
        padded = _predictions(model, [ids, (padding,) * max(PADDED, min(width, MOST_PADDED)) + ids], padding)
    except MidblockError:
        return True  # it takes no padding
    allowed = max(ROUNDING, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    return not bool((padded - alone).norm() <= allowed * alone.norm())


def _predictions(model: nn.Module, rows: Sequence[tuple[int, ...]], padding: int) -> Float64[Tensor, "2 V"]:
    """The centred logits of two tokens in a row behind the first of the rows."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=2,
        min_new_tokens=2,
        pad_token_id=padding,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    device = device_of(model.get_input_embeddings())  # type: ignore[operator]
    input_ids, mask = _pad_left(rows, padding)
    inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
    with evaluating(model), _plain_generation(model):
        written = _generated(model, generation_config=settings, **inputs)
    logits = torch.stack([each[0] for each in written.logits]).cpu().double()
    return logits - logits.mean(-1, keepdim=True)


def _most_padding(prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[int]]) -> int:
    """The most padding before a prompt; 0 where prompts of one length share each batch."""
    lengths = ([len(prompts[index].input_ids) for index in group] for group in groups)
    return max(max(each) - min(each) for each in lengths)


def _groups(prompts: Sequence[EncodedPrompt], new: int, batch_tokens: int, *, alike: bool = False) -> list[list[int]]:
    """Indices by length, longest first, so that little is padded and a lack of memory shows at once.

    Args:
        alike: nothing is padded: a batch holds prompts of one length.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].input_ids), index)):
        widest = len(prompts[groups[-1][0]].input_ids) + new if groups else 0
        fits = not alike or widest == len(prompts[index].input_ids) + new
        if groups and fits and (len(groups[-1]) + 1) * widest <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Token ids and attention mask; an answer begins where its row ends, so the padding stands in front."""
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    return input_ids, (torch.arange(width)[None, :] >= width - lengths).long()


def _end(ids: Sequence[int], stop: Sequence[int]) -> int:
    """Where the first stop token stands; behind it a batch holds padding."""
    return next((position for position, token in enumerate(ids) if token in stop), len(ids))
