"""Which samples of the data a verb reads, and how: the options declared once, and the way from a reference to tokens.

Every model of a run reads the same token ids. What a verb makes of them (batches for measuring, answers to predict,
examples to train on) is its own and a few lines on top. Described in docs/references.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from midblock.base import MidblockError, unknown
from midblock.base.options import check_range, check_sizes
from midblock.checkpoints import Pair
from midblock.data import (
    REGIONS,
    Batch,
    ExampleSet,
    TokenizedSet,
    encode_renderable,
    load_dataset,
    make_batches,
    tokenizer_difference,
)

DEFAULT_DATA = "builtin:gsm_symbolic"
FEW = 24  # samples from which 93 % of the intervals hold the truth
COMPARED_TEXTS = 32  # on so many of the samples the models' tokenizers are held against each other


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Options of every verb that reads data."""

    split: str | None = None
    """Split of the dataset; its usual evaluation split when left out."""

    num_samples: int | None = None
    """Samples drawn from the dataset; all of them when left out."""

    max_length: int = 256
    """Tokens a sample is cut at."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    seed: int = 0
    """Decides which samples are drawn and every resampling."""


@dataclass(frozen=True, kw_only=True)
class ReadingSettings(DataSettings):
    """Options of every verb that runs models over samples and measures."""

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {"batch_tokens": ("seed",)}

    num_samples: int = 64
    """Samples the models read."""

    region: str = "all"
    """Tokens that count: `all`, `prompt` or `answer`."""

    batch_tokens: int = 1024
    """Tokens a batch may hold, padding included."""


def few_note(count: int, noun: str) -> list[str]:
    """What a reader must know of intervals over so many samples; nothing where there are enough, or none.

    Args:
        noun: what they are called, with what rests on them: "prompts".
    """
    if not 0 < count < FEW:
        return []
    return [f"{count} {noun} are few: of heavy-tailed values less than 93 % of the intervals hold the truth."]


def check_reading(settings: ReadingSettings, *, fewest: int) -> None:
    """Raise MidblockError for an unknown region or a number out of range.

    Args:
        fewest: samples the verb can do with.
    """
    if settings.region not in REGIONS:
        raise unknown("region", settings.region, REGIONS)
    check_sizes(settings)
    check_least(settings, num_samples=fewest, max_length=3, batch_tokens=1)


def check_least(settings: object, **least: int) -> None:
    """Raise MidblockError for an option below the least it may be."""
    check_range(settings, least, {})


def check_most(settings: object, **most: int) -> None:
    """Raise MidblockError for an option above the most it may be."""
    check_range(settings, {}, most)


@dataclass(frozen=True)
class Reading:
    """Samples as tokens.

    Attributes:
        examples: the samples.
        tokenizer: the one whose ids all models are fed.
        tokens: the samples' ids, those left out that have no token in the region.
        facts: what `run.json` records about the data.
    """

    examples: ExampleSet
    tokenizer: Any
    tokens: TokenizedSet
    facts: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """The dataset, as tables name it."""
        return self.examples.reference

    def batches(self, batch_tokens: int) -> list[Batch]:
        return make_batches(self.tokens.prompts, batch_tokens=batch_tokens)


def load_samples(
    data: str | ExampleSet, settings: DataSettings, *, count: int | None = None, skip: int = 0
) -> ExampleSet:
    """Draw the samples; examples in memory are taken as they are.

    Args:
        count: so many instead of `num_samples`.
        skip: so many of the shuffled order are passed over.

    Raises:
        MidblockError: whatever is wrong with the data.
    """
    if isinstance(data, ExampleSet):
        return data
    count = settings.num_samples if count is None else count
    return load_dataset(data, split=settings.split, num_samples=count, seed=settings.seed, skip=skip)


def read(pair: Pair, data: str | ExampleSet, settings: ReadingSettings) -> Reading:
    """Draw and tokenise the samples; every model will see these ids.

    Raises:
        MidblockError: tokenizers that disagree, a token that a model does not know, or whatever is wrong with the data.
            Whether enough samples are left is for the verb to say: `tokens` may be empty.
    """
    examples = load_samples(data, settings)
    tokenizer = common_tokenizer(pair, examples, settings.template)
    options = {"template": settings.template, "max_length": settings.max_length}
    examples, tokens = encode_renderable(examples, tokenizer, **options)
    long_enough = len(tokens.prompts)
    tokens = with_region(tokens, settings.region)
    if tokens.prompts:
        check_ids(tokens, pair)
    lengths = torch.tensor([len(prompt.input_ids) for prompt in tokens.prompts])
    facts = {
        "reference": examples.reference,
        "split": examples.split,
        "layout": examples.layout,
        "content_hash": examples.content_hash,
        "num_samples": len(tokens.prompts),
        "max_length": settings.max_length,
        "template": tokens.template,
        "region": settings.region,
        "tokens": int(lengths.sum()),
        "truncated": tokens.truncated,
        "too_short": len(tokens.too_short),
        "completion_lost": len(tokens.completion_lost),
        "without_region": long_enough - len(tokens.prompts),
        **({"left_out": examples.notes()} if examples.notes() else {}),
    }
    return Reading(examples, tokenizer, tokens, facts)


def common_tokenizer(pair: Pair, data: ExampleSet, template: str) -> Any:
    """The tokenizer all models share; for a chat template, the first one that has it.

    Tuned models often come with a template that the base lacks, and with added tokens. Ids decide, not files: the
    difference is looked for on the texts that will be used.

    Raises:
        MidblockError: the same text gets other ids from another model's tokenizer.
    """
    texts = [example.text for example in data.examples[:COMPARED_TEXTS]]
    for name, other in pair.other_tokenizers.items():
        if difference := tokenizer_difference(pair.tokenizer, other, texts):
            what = f"the tokenizers of the base and of {name} differ: {difference}"
            raise MidblockError(what, hint="models must share token ids to be compared on the same text")
    if template == "chat" and not pair.tokenizer.chat_template:
        return next((other for other in pair.other_tokenizers.values() if other.chat_template), pair.tokenizer)
    return pair.tokenizer


def with_region(tokens: TokenizedSet, region: str) -> TokenizedSet:
    """Leave out samples that have no token in the region."""
    if region == "all":
        return tokens
    kept = tuple(
        prompt
        for prompt in tokens.prompts
        if (prompt.answer_start < len(prompt.input_ids) if region == "answer" else prompt.answer_start > 0)
    )
    return replace(tokens, prompts=kept)


def check_ids(tokens: TokenizedSet, pair: Pair) -> None:
    """Raise MidblockError for a token id that some model does not know."""
    largest = max(max(prompt.input_ids) for prompt in tokens.prompts)
    if largest >= pair.vocabulary:
        what = f"token id {largest} of the text is beyond the {pair.vocabulary} ids all models share"
        raise MidblockError(what, hint="use --template raw, or models with the same added tokens")
