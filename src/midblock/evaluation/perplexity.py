"""Perplexity: how well a model expects texts that it did not write, in nats a token or in bits a byte.

Tokens of the answers count where all samples have one; else all tokens of the texts, the first one told by the token
that begins a text (lm-eval does so too). Nats a token compare models with one tokenizer, and their exponential is the
perplexity; bits a byte compare any. Cost: a forward pass.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from midblock.base import MidblockError, Progress
from midblock.data import Example, ExampleSet, TokenizedPrompt, encode, make_batches
from midblock.evaluation.answered import drawn, facts_of, notes_of
from midblock.evaluation.divergence import mean_nll
from midblock.evaluation.encoded_prompts import without_end
from midblock.evaluation.generate import context_of, text_config
from midblock.evaluation.task import MEAN, Item, Scored, Subject, Task, TaskRequest, TaskSettings, items_of

LONGEST = 2048  # tokens that are read of a text, or of a prompt with its answer


def open_perplexity(request: TaskRequest) -> Task:
    """`perplexity:DATAREF`: the mean of −ln p over tokens."""
    return _open(request, "nll", per_byte=False)


def open_bits_per_byte(request: TaskRequest) -> Task:
    """`bits_per_byte:DATAREF`: the sum of −log2 p over tokens, a byte of the text that they stand for."""
    return _open(request, "bits_per_byte", per_byte=True)


def _open(request: TaskRequest, metric: str, *, per_byte: bool) -> Task:
    if not request.argument:
        what = f"the task {request.name!r} wants a dataset"
        raise MidblockError(what, hint=f"{request.name}:wikitext, {request.name}:FILE.jsonl, …")
    examples = drawn(request, request.argument)
    reading = Reading(all(example.completion for example in examples), per_byte)
    return Task(
        request.name,
        metric,
        MEAN,
        items_of("perplexity", examples.examples),
        reading.run,
        higher_is_better=False,
        rule=f"tokens: {'answers' if reading.answers else 'all'}",
        facts=tuple(facts_of(examples).items()),
        notes=notes_of(request, examples),
    )


@dataclass(frozen=True)
class Reading:
    """Which tokens count, and by what their surprise is divided.

    Attributes:
        answers: those of the answers; else all.
        per_byte: by the bytes that they stand for; else by their number.
    """

    answers: bool
    per_byte: bool

    def run(
        self, subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
    ) -> Iterator[Scored]:
        """Let a model read the items."""
        longest = min(LONGEST, context_of(text_config(subject.model)) or LONGEST)
        whole = self._encode(subject, [item.example for item in items])
        cut = [self._cut(prompt, longest) for prompt in whole]
        batches = make_batches(cut, batch_tokens=settings.batch_tokens)
        mean = mean_nll(subject.model, batches, progress=progress)
        scores = zip(mean.sums.tolist(), mean.counts.tolist(), strict=True)
        for item, before, prompt, (total, count) in zip(items, whole, cut, scores, strict=True):
            weight = self._bytes(subject, item.example, prompt, before) if self.per_byte else count
            value = total / math.log(2) / weight if self.per_byte else total / weight
            failed = f"cut at {longest} tokens" if prompt.input_ids != before.input_ids else ""
            yield Scored(item.id, value, float(weight), failed=failed)

    def _encode(self, subject: Subject, examples: Sequence[Example]) -> list[TokenizedPrompt]:
        """Ids of each text, and where those that count begin."""
        texts = examples if self.answers else [Example(example.text) for example in examples]
        template = subject.template if self.answers else "raw"
        plain = ExampleSet("", "", "", tuple(texts), "")
        found = encode(plain, subject.tokenizer, template=template, max_length=sys.maxsize, min_tokens=1).prompts
        if self.answers:
            return list(found)
        return [_begun(subject, prompt, text.prompt) for prompt, text in zip(found, texts, strict=True)]

    def _cut(self, prompt: TokenizedPrompt, longest: int) -> TokenizedPrompt:
        """The start of a text; of a prompt with its answer the end."""
        beyond = len(prompt.input_ids) - longest
        if beyond <= 0:
            return prompt
        if not self.answers:
            return replace(prompt, input_ids=prompt.input_ids[:longest])
        stop = None if prompt.answer_stop is None else prompt.answer_stop - beyond
        start = max(1, prompt.answer_start - beyond)
        return replace(prompt, input_ids=prompt.input_ids[beyond:], answer_start=start, answer_stop=stop)

    def _bytes(self, subject: Subject, example: Example, prompt: TokenizedPrompt, before: TokenizedPrompt) -> int:
        """Bytes that the tokens which count stand for, one at least."""
        if not self.answers and prompt.input_ids == before.input_ids:
            return len(example.text.encode("utf-8"))
        ids = list(prompt.input_ids[prompt.answer_start : prompt.answer_end])
        text = subject.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return max(1, len(str(text).encode("utf-8")))


def _begun(subject: Subject, prompt: TokenizedPrompt, text: str) -> TokenizedPrompt:
    """A text behind the token that begins one, all of it as the answer.

    Raises:
        MidblockError: the tokenizer has no such token, and the text no second one to begin with.
    """
    tokenizer = subject.tokenizer
    ids = without_end(prompt.input_ids, text, tokenizer, "raw")
    begins = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(token, int)]
    if begins and ids[0] not in begins:
        ids = (begins[0], *ids)
    if len(ids) < 2:
        raise MidblockError(f"{subject.name}: nothing of {text[:40]!r} can be predicted: it is one token")
    return TokenizedPrompt(prompt.index, ids, 1)
