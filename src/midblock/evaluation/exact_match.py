"""Exact match: the share of prompts a model answers rightly, and whether two models differ on the same prompts.

Intervals: of one share Clopper and Pearson's, which holds at any n and however near to 0 or 1; of a difference on the
same prompts Newcombe's (1998, method 10); p is McNemar's exact one, over the prompts that only one of the models gets
right. Cost: generating the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import LEVEL, MidblockError, Progress, unknown
from midblock.base.shares import clopper_pearson
from midblock.data import ExampleSet
from midblock.evaluation.answers import ANSWERS, choose_reader, gold_answer, read_gold
from midblock.evaluation.encoded_prompts import encode_prompts, stop_tokens
from midblock.evaluation.generate import check_room, continue_prompts


@dataclass(frozen=True, eq=False)
class MatchResult:
    """What a model answered to N prompts.

    Attributes:
        reader: how answers were read, a name of `ANSWERS`.
        outputs: what the model wrote.
        answers: what was read from it; None where no answer was found.
        expected: the right answers, read the same way.
        unlike_training: samples whose prompt has other token ids than training put before the answer.
    """

    reader: str
    outputs: tuple[str, ...]
    answers: tuple[str | None, ...]
    expected: tuple[str, ...]
    unlike_training: tuple[int, ...] = ()

    @cached_property
    def correct(self) -> Bool[Tensor, "N"]:
        """True where the answer is the right one."""
        return torch.tensor([answer == gold for answer, gold in zip(self.answers, self.expected, strict=True)])

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return int(self.correct.sum()) / self.n

    @property
    def low(self) -> float:
        """Lower end of the accuracy's 95 % interval (Clopper and Pearson)."""
        return exact_interval(int(self.correct.sum()), self.n)[0]

    @property
    def high(self) -> float:
        """Upper end of the accuracy's 95 % interval (Clopper and Pearson)."""
        return exact_interval(int(self.correct.sum()), self.n)[1]

    @property
    def n(self) -> int:
        """N, the number of prompts."""
        return len(self.expected)


@dataclass(frozen=True)
class PairedDifference:
    """How much more often b was right than a, on the same n prompts.

    Attributes:
        difference: accuracy of b minus accuracy of a.
        low, high: its 95 % interval (Newcombe).
        p: exact McNemar test, two-sided: how likely so unequal a split of the disagreements is if neither is better.
        only_a, only_b: prompts that only one of them answered rightly.
        n: prompts.
    """

    difference: float
    low: float
    high: float
    p: float
    only_a: int
    only_b: int
    n: int


def exact_match(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    *,
    reader: str | None = None,
    template: str = "raw",
    max_new_tokens: int = 256,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> MatchResult:
    """Let the model answer greedily, and count the answers that are right.

    Args:
        model: a causal language model, PEFT-wrapped or not.
        tokenizer: a fast tokenizer.
        examples: samples with answers (`extra["answer"]`, else the completion).
        reader: how to read an answer, a name of `ANSWERS`; by default the one that fits the dataset.
        template: "raw", "chat" or the path of a `.jinja` file: as in training.
        max_new_tokens: where an answer that does not end is cut.
        batch_tokens: most tokens, padding and answers included, that a batch may hold.

    Raises:
        MidblockError: an unknown reader, a sample without an answer that it can read, or prompts that cannot be given
            to the model.
    """
    reader, expected = expected_answers(examples, reader)
    prompts = encode_prompts(examples, tokenizer, template)
    outputs = continue_prompts(
        model,
        tokenizer,
        prompts,
        stop=stop_tokens(model, tokenizer, template),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return MatchResult(
        reader,
        tuple(outputs),
        tuple(ANSWERS[reader](output) for output in outputs),
        expected,
        tuple(index for index, prompt in enumerate(prompts) if prompt.as_trained is False),
    )


def compare(a: MatchResult, b: MatchResult) -> PairedDifference:
    """Compare two models on the same prompts.

    Raises:
        MidblockError: the results are about different prompts, or answers were read differently.
    """
    if a.expected != b.expected or a.reader != b.reader:
        raise MidblockError("these results are not about the same questions", hint="use one dataset, seed and reader")
    n = a.n
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    split = only_a + only_b
    p = sign_test(only_b, split)
    low, high = paired_interval(a.correct, b.correct)
    return PairedDifference((only_b - only_a) / n, low, high, p, only_a, only_b, n)


def exact_interval(right: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share: it holds the truth in 95 of 100 cases or more, whatever n is.

    Raises:
        MidblockError: n is 0.
    """
    if n < 1:
        raise MidblockError("no prompts were answered")
    low, high = clopper_pearson(np.array([float(right)]), np.array([float(n)]))
    return float(low[0]), float(high[0])


def sign_test(wins: int, count: int) -> float:
    """Exact two-sided p of so many wins where either side is as likely; 1 where nothing was decided."""
    return float(_binomial(wins, count).pvalue) if count else 1.0


def _binomial(right: int, count: int) -> Any:
    from scipy.stats import binomtest  # a second to import, and most runs want no test

    return binomtest(right, count)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: never empty, even where all or none are right.

    Raises:
        MidblockError: n is 0.
    """
    if n < 1:
        raise MidblockError("no prompts were answered")
    interval = _binomial(right, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def paired_interval(right_before: Bool[Tensor, "N"], right_after: Bool[Tensor, "N"]) -> tuple[float, float]:
    """95 % interval of a change in the share of right answers on the same prompts.

    From both shares' Wilson intervals and their correlation, so that it is never empty, even where nothing changed
    (Newcombe 1998, method 10).

    Raises:
        MidblockError: there are no prompts.
    """
    n = len(right_before)
    before, after = int(right_before.sum()), int(right_after.sum())
    both = int((right_before & right_after).sum())
    neither = n - before - after + both
    p, q = before / n if n else 0.0, after / n if n else 0.0
    (low_p, high_p), (low_q, high_q) = wilson(before, n), wilson(after, n)
    spread = before * (n - before) * after * (n - after)
    product = both * neither - (before - both) * (after - both)
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    phi = corrected / spread**0.5 if spread else 0.0
    down = (q - low_q) ** 2 - 2 * phi * (q - low_q) * (high_p - p) + (high_p - p) ** 2
    up = (high_q - q) ** 2 - 2 * phi * (high_q - q) * (p - low_p) + (p - low_p) ** 2
    return q - p - max(down, 0.0) ** 0.5, q - p + max(up, 0.0) ** 0.5


def check_answerable(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    *,
    reader: str | None = None,
    template: str = "raw",
    max_new_tokens: int = 256,
) -> None:
    """Raise what `exact_match` would raise about its input, before anything runs.

    Raises:
        MidblockError: an unknown reader, a sample without an answer, or a prompt too long for the model.
    """
    expected_answers(examples, reader)
    check_room(model, encode_prompts(examples, tokenizer, template), max_new_tokens)


def expected_answers(examples: ExampleSet, reader: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The reader that will be used, by default the one that fits, and the right answer of each sample as it reads it.

    Raises:
        MidblockError: an unknown reader, or a sample without an answer that it can read.
    """
    reader = reader or choose_reader(examples)
    if reader not in ANSWERS:
        raise unknown("reader", reader, ANSWERS)
    found: list[str] = []
    for index, example in enumerate(examples):
        answer = read_gold(reader, example)
        if answer is None:
            what = f"sample {index}: {reader} reads no answer from {gold_answer(example)[:40]!r}"
            raise MidblockError(what, hint=f"choose another reader: {', '.join(ANSWERS)}")
        found.append(answer)
    return reader, tuple(found)
