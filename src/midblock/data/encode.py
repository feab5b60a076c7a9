"""encode: examples to token ids, once, so that base and tuned models see exactly the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError
from midblock.data.examples import Example, ExampleSet
from midblock.data.sandbox import RunawayTemplateError
from midblock.data.templates import Rendering, render, renderable


@dataclass(frozen=True)
class TokenizedPrompt:
    """One sample's tokens.

    Attributes:
        index: the sample's position in its ExampleSet, its identity everywhere.
        input_ids: token ids, special tokens included, no padding.
        answer_start: position of the first token that holds a character of the completion; len(input_ids) if none does.
        answer_stop: position behind its last token; None where the sample ends with it.
    """

    index: int
    input_ids: tuple[int, ...]
    answer_start: int
    answer_stop: int | None = None

    @property
    def answer_end(self) -> int:
        """Position behind the completion's last token."""
        return len(self.input_ids) if self.answer_stop is None else self.answer_stop


@dataclass(frozen=True)
class TokenizedSet:
    """The samples of an ExampleSet as tokens, and what was lost on the way.

    Attributes:
        prompts: the samples long enough to measure, in order.
        template: the Jinja source that was used, or "raw".
        truncated: how many of `prompts` were cut at the maximum length.
        too_short: indices left out for having too few tokens.
        completion_lost: indices in `prompts` that have a completion, all of it beyond the cut.
    """

    prompts: tuple[TokenizedPrompt, ...]
    template: str
    truncated: int
    too_short: tuple[int, ...]
    completion_lost: tuple[int, ...]


def encode_renderable(
    examples: ExampleSet, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[ExampleSet, TokenizedSet]:
    """Tokenise the examples that the template can write, and give them with the reasons why others are left out.

    Args:
        **options: as of `encode`.

    Raises:
        MidblockError: as `encode` does; where not one example can be written, about the first.
    """
    try:
        return examples, encode(examples, tokenizer, **options)
    except RunawayTemplateError:
        raise
    except MidblockError:
        kept = renderable(examples, tokenizer, options.get("template", "raw"))
        if len(kept) in (0, len(examples)):
            raise
    return kept, encode(kept, tokenizer, **options)


def encode(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "raw",
    max_length: int = 128,
    min_tokens: int = 3,
    add_eos: bool = False,
) -> TokenizedSet:
    """Tokenise the examples.

    Prompt and completion are tokenised as one text, as the model would meet them; the boundary is found afterwards from
    the tokens' character offsets. Raw text gets the special tokens the tokenizer adds by itself; a chat template writes
    its own.

    Args:
        examples: the samples.
        tokenizer: a fast tokenizer.
        template: "raw", "chat" (the tokenizer's own) or the path of a `.jinja` file.
        max_length: tokens kept of each sample, counted from its start.
        min_tokens: samples with fewer are left out (curvature, for one, needs three).
        add_eos: end raw completions and plain texts with the end-of-text token, for training.

    Raises:
        MidblockError: when the template cannot be used, the tokenizer is not a fast one or lacks the end token asked
            for, the lengths contradict each other, or no sample is long enough.
    """
    if not 1 <= min_tokens <= max_length:
        raise MidblockError(f"a maximum length of {max_length} leaves no prompts of {min_tokens} tokens or more")
    rendering = render(examples.examples, tokenizer, template)
    whole = tokenise(rendering, tokenizer)
    if add_eos and rendering.template == "raw":
        end = _end_token(tokenizer)
        whole = [_ended(prompt, examples.examples[prompt.index], end) for prompt in whole]
    kept = [_cut(prompt, max_length) for prompt in whole if len(prompt.input_ids) >= min_tokens]
    if not kept:
        raise MidblockError(f"all {len(whole)} prompts are shorter than {min_tokens} tokens")
    return TokenizedSet(
        prompts=tuple(kept),
        template=rendering.template,
        truncated=sum(len(prompt.input_ids) > max_length for prompt in whole),
        too_short=tuple(prompt.index for prompt in whole if len(prompt.input_ids) < min_tokens),
        completion_lost=tuple(prompt.index for prompt in whole if _loses_completion(prompt, max_length)),
    )


def tokenise(rendering: Rendering, tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPrompt]:
    """Tokenise texts whole, each with the place of its answer.

    Raises:
        MidblockError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        what = f"{type(tokenizer).__name__} does not say which characters a token holds"
        raise MidblockError(what, hint="use a fast tokenizer (one with a tokenizer.json)")
    encoded = tokenizer(
        list(rendering.texts),
        add_special_tokens=rendering.special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    answers = rendering.answers or (None,) * len(rendering.texts)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], rendering.texts, rendering.boundaries, strict=True)
    return [
        TokenizedPrompt(
            index,
            tuple(ids),
            _answer_start(offsets, boundary) if boundary < len(text) else len(ids),
            _answer_stop(offsets, answers[index]),
        )
        for index, (ids, offsets, text, boundary) in enumerate(spans)
    ]


def _answer_start(offsets: Sequence[tuple[int, int]], boundary: int) -> int:
    """The first token that reaches past the boundary; special tokens have the span (0, 0) and never do."""
    return next((position for position, (_, end) in enumerate(offsets) if end > boundary), len(offsets))


def _answer_stop(offsets: Sequence[tuple[int, int]], answer: tuple[int, int] | None) -> int | None:
    """The first token that begins behind the marked answer; None where there is none."""
    if answer is None:
        return None
    return next((position for position, (start, end) in enumerate(offsets) if start >= answer[1] and end > start), None)


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise MidblockError("the tokenizer has no end-of-text token to train on", hint="use --template chat")
    return tokenizer.eos_token_id


def _ended(prompt: TokenizedPrompt, example: Example, end: int) -> TokenizedPrompt:
    unanswered = bool(example.messages) and not example.completion
    if unanswered or prompt.input_ids[-1:] == (end,):  # some tokenizers write it themselves
        return prompt
    answer_start = prompt.answer_start if example.completion else len(prompt.input_ids) + 1
    return TokenizedPrompt(prompt.index, (*prompt.input_ids, end), answer_start)


def _loses_completion(prompt: TokenizedPrompt, max_length: int) -> bool:
    return max_length <= prompt.answer_start < len(prompt.input_ids)


def _cut(prompt: TokenizedPrompt, max_length: int) -> TokenizedPrompt:
    ids, start, stop = prompt.input_ids[:max_length], prompt.answer_start, prompt.answer_stop
    return TokenizedPrompt(
        prompt.index, ids, min(start, max_length), None if stop is None or stop >= len(ids) else stop
    )
