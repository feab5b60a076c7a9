"""Greedy decoding in batches: what a model answers, given exactly the ids that training put before the answer.

Cost: a forward pass a token, with a cache of keys and values, by transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, Progress, Silent
from midblock.checkpoints import device_of, soft_prompt_in
from midblock.data import ExampleSet
from midblock.evaluation.encoded_prompts import EncodedPrompt, encode_prompts, stop_tokens
from midblock.evaluation.own_generate import generated, pad_left, plain_generation
from midblock.evaluation.padding import padding_of, padding_shows
from midblock.runs.lending import evaluating


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
    with evaluating(model), plain_generation(model):
        groups = _groups(prompts, max_new_tokens, batch_tokens)
        if (width := _most_padding(prompts, groups)) and padding_shows(model, prompts, padding, width):
            groups = _groups(prompts, max_new_tokens, batch_tokens, alike=True)
        for group in groups:
            rows = [prompts[index].input_ids for index in group]
            input_ids, mask = pad_left(rows, padding)
            inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
            written = generated(model, generation_config=settings, **inputs)
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


def _end(ids: Sequence[int], stop: Sequence[int]) -> int:
    """Where the first stop token stands; behind it a batch holds padding."""
    return next((position for position, token in enumerate(ids) if token in stop), len(ids))
