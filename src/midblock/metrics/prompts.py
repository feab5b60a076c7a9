"""From a dataset to the batches an analysis runs over, and the facts about them that a run records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from midblock.base import MidblockError, generator
from midblock.checkpoints import Pair
from midblock.data import Batch, ExampleSet, TokenizedSet, encode, load_dataset, make_batches, tokenizer_difference
from midblock.metrics.settings import AnalysisSettings
from midblock.metrics.views import VIEWS, drop_tokens

LEAST_PROMPTS = 4  # debiased CKA divides by n − 3


@runtime_checkable
class Reading(Protocol):
    """The settings that say which prompts are read, and how."""

    @property
    def split(self) -> str | None: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def template(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Prompts:
    """Prompts ready to be run.

    Attributes:
        reference: the dataset, as tables name it.
        deep: batches of the prompts that also get token-level metrics and the logit lens.
        pooled: batches of the others.
        views: for each augmented view, batches of all prompts; empty unless wanted.
        facts: what `run.json` records about the data.
        samples: the first few texts, to be shown.
    """

    reference: str
    deep: list[Batch]
    pooled: list[Batch]
    views: tuple[list[Batch], ...]
    facts: Mapping[str, Any]
    samples: list[str]

    def notes(self) -> list[str]:
        """What a reader must know: how many prompts were left out or cut, and why."""
        facts = self.facts
        told = {
            "too_short": "too short to be measured: left out.",
            "without_region": f"without a token in the region {facts.get('region')!r}: left out.",
            "completion_lost": f"cut at {facts.get('max_length')} tokens, before the completion begins.",
        }
        return [f"{facts[name]} prompt(s) {note}" for name, note in told.items() if facts.get(name)]


def prepare_prompts(pair: Pair, data: str | ExampleSet, settings: AnalysisSettings, *, views: bool) -> Prompts:
    """Draw, tokenise and batch the prompts; every model will see these ids.

    Raises:
        MidblockError: tokenizers that disagree, too few prompts, or whatever is wrong with the data.
    """
    asked = settings.num_samples if isinstance(data, str) else len(data.examples)
    if isinstance(data, str):
        data = load_dataset(data, split=settings.split, num_samples=settings.num_samples, seed=settings.seed)
    tokenizer = common_tokenizer(pair, data, settings)
    tokens = encode(data, tokenizer, template=settings.template, max_length=settings.max_length)
    long_enough = len(tokens.prompts)
    tokens = with_region(tokens, settings.region)
    if len(tokens.prompts) < LEAST_PROMPTS:
        what = f"only {len(tokens.prompts)} of {len(data.examples)} prompts of {data.reference} can be measured"
        raise MidblockError(what, hint=f"{LEAST_PROMPTS} are needed; see --num-samples, --region and --max-length")
    check_ids(tokens, pair)
    order = generator(settings.seed, "token-level", len(tokens.prompts)).permutation(len(tokens.prompts))
    deep = set(order[: settings.num_token_samples].tolist())
    batches = [
        make_batches(
            [prompt for place, prompt in enumerate(tokens.prompts) if (place in deep) == chosen],
            batch_tokens=settings.batch_tokens,
        )
        for chosen in (True, False)
    ]
    return Prompts(
        reference=data.reference,
        deep=batches[0],
        pooled=batches[1],
        views=_views(tokens, settings) if views else (),
        facts={
            **_facts(data, tokens, settings, len(deep)),
            "asked": asked,
            "without_region": long_enough - len(tokens.prompts),
        },
        samples=[example.text for example in data.examples[:3]],
    )


def _views(tokens: TokenizedSet, settings: AnalysisSettings) -> tuple[list[Batch], ...]:
    made = (drop_tokens(tokens.prompts, settings.token_dropout, view, settings.seed) for view in range(VIEWS))
    return tuple(make_batches(prompts, batch_tokens=settings.batch_tokens) for prompts in made)


def common_tokenizer(pair: Pair, data: ExampleSet, settings: Reading) -> Any:
    """The tokenizer all models share; for a chat template, the first one that has it.

    Tuned models often come with a template that the base lacks, and with added tokens. Ids decide, not files: the
    difference is looked for on the texts that will be used.
    """
    texts = [example.text for example in data.examples[:32]]
    for name, other in pair.other_tokenizers.items():
        if difference := tokenizer_difference(pair.tokenizer, other, texts):
            what = f"the tokenizers of the base and of {name} differ: {difference}"
            raise MidblockError(what, hint="models must share token ids to be compared on the same text")
    if settings.template == "chat" and not pair.tokenizer.chat_template:
        return next((other for other in pair.other_tokenizers.values() if other.chat_template), pair.tokenizer)
    return pair.tokenizer


def with_region(tokens: TokenizedSet, region: str) -> TokenizedSet:
    """Leave out prompts that have no token in the region."""
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


def _facts(data: ExampleSet, tokens: TokenizedSet, settings: AnalysisSettings, deep: int) -> dict[str, Any]:
    return data_facts(data, tokens, settings) | {"num_token_samples": deep}


def data_facts(data: ExampleSet, tokens: TokenizedSet, settings: Reading) -> dict[str, Any]:
    """What `run.json` records about the data."""
    lengths = torch.tensor([len(prompt.input_ids) for prompt in tokens.prompts])
    return {
        "reference": data.reference,
        "split": data.split,
        "layout": data.layout,
        "content_hash": data.content_hash,
        "num_samples": len(tokens.prompts),
        "max_length": settings.max_length,
        "template": tokens.template,
        "region": settings.region,
        "tokens": int(lengths.sum()),
        "truncated": tokens.truncated,
        "too_short": len(tokens.too_short),
        "completion_lost": len(tokens.completion_lost),
    }
