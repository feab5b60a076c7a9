"""From a dataset to the batches an analysis runs over, and the facts about them that a run records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from midblock.analysis.repeats import repeats_of
from midblock.analysis.settings import LEAST_PROMPTS, AnalysisSettings
from midblock.base import MidblockError, generator
from midblock.base.clusters import Clusters
from midblock.base.few import LEAST, enough
from midblock.checkpoints import Pair
from midblock.data import Batch, ExampleSet, TokenizedSet, make_batches
from midblock.metrics.views import VIEWS, drop_tokens
from midblock.runs.reading import Reading, few_note, read

SHOWN = 3  # texts
FLOOR_PROMPTS = 16  # on about so many rounding is measured: what it does hardly differs from prompt to prompt


@dataclass(frozen=True)
class Prompts:
    """Prompts ready to be run.

    Attributes:
        reference: the dataset, as tables name it.
        deep: batches of the prompts that also get token-level metrics and the logit lens.
        pooled: batches of the others.
        views: for each augmented view, batches of all prompts; empty unless wanted.
        general: batches of texts that the tuning was not about; empty unless wanted.
        general_reference: that dataset, as tables name it.
        facts: what `run.json` records about the data.
        samples: the first few texts, to be shown.
        repeats: for each prompt that repeats an earlier one in the region, that one, by index.
        questions: of each sample the question that it is a variant of, "" where it is none.
        general_repeats: `repeats` of the general texts.
    """

    reference: str
    deep: list[Batch]
    pooled: list[Batch]
    views: tuple[list[Batch], ...]
    facts: Mapping[str, Any]
    samples: list[str]
    repeats: Mapping[int, int] = field(default_factory=dict)
    general: list[Batch] = field(default_factory=list)
    general_reference: str = ""
    questions: Sequence[str] = ()
    general_repeats: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def clusters(self) -> Clusters | None:
        """Which samples are variants of one question or repeat one another, by index; None where none are."""
        return Clusters.of(self.questions, self.repeats)

    @cached_property
    def rounded(self) -> frozenset[int]:
        """The prompts, by index, on which the base is run in another precision too: every so many batches of `deep`."""
        stride = max(1, sum(len(batch.index) for batch in self.deep) // FLOOR_PROMPTS)
        return frozenset(index for batch in self.deep[::stride] for index in batch.index.tolist())

    def notes(self) -> list[str]:
        """What a reader must know: how many prompts were left out or cut, and why."""
        facts = self.facts
        told = {
            "too_short": "too short to be measured: left out.",
            "without_region": f"without a token in the region {facts.get('region')!r}: left out.",
            "completion_lost": f"cut at {facts.get('max_length')} tokens, before the completion begins.",
        }
        notes = [*facts.get("left_out", ())]
        notes += [f"{facts[name]} prompt(s) {note}" for name, note in told.items() if facts.get(name)]
        notes += self._few()
        if self.clusters is not None and Clusters.of(self.questions) is not None:
            notes.append(self.clusters.note("prompts"))
        if self.repeats:
            notes.append(self._repeated(facts["num_samples"]))
        return notes

    def _repeated(self, count: int) -> str:
        """What repeats do to numbers, of so many prompts."""
        different = count - len(self.repeats)
        note = (
            f"{len(self.repeats)} of {count} prompts repeat the tokens of an earlier one: values count every prompt, "
            "intervals resample a prompt together with its repeats, and intrinsic_dimension takes each different one "
            f"({different}) once."
        )
        if enough("jackknife", different):
            return note
        return f"{note} Fewer than {LEAST['mean']} different ones give no interval of a mean, fewer than " + (
            f"{LEAST['jackknife']} none of what is computed from all together."
        )

    def _few(self) -> list[str]:
        """That intervals rest on few prompts: all of them, or those of token-level metrics."""
        count, deep = (self._resampled(batches) for batches in (self.deep + self.pooled, self.deep))
        noun = "different prompts" if self.repeats else "prompts"
        return few_note(count, noun) or few_note(deep, f"{noun}, those of token-level metrics,")

    def _resampled(self, batches: Sequence[Batch]) -> int:
        """How many different prompts there are in some batches."""
        return len({self.repeats.get(index, index) for batch in batches for index in batch.index.tolist()})


def prepare_prompts(pair: Pair, data: str | ExampleSet, settings: AnalysisSettings, *, views: bool) -> Prompts:
    """Draw, tokenise and batch the prompts; every model will see these ids.

    Raises:
        MidblockError: tokenizers that disagree, too few prompts, or whatever is wrong with the data.
    """
    found = read(pair, data, settings)
    if (count := len(found.tokens.prompts)) < LEAST_PROMPTS:
        what = f"only {count} of {len(found.examples)} prompts of {found.reference} can be measured"
        raise MidblockError(what, hint=f"{LEAST_PROMPTS} are needed; see --num-samples, --region and --max-length")
    order = generator(settings.seed, "token-level", count).permutation(count).tolist()
    chosen = set(order[: settings.num_token_samples])
    deep, pooled = (_batches(found, settings, chosen, inside) for inside in (True, False))
    return Prompts(
        reference=found.reference,
        deep=deep,
        pooled=pooled,
        views=_views(found.tokens, settings) if views else (),
        facts={**found.facts, "num_token_samples": len(chosen), "asked": len(found.examples)},
        samples=[example.text for example in found.examples.examples[:SHOWN]],
        repeats=repeats_of(found.tokens.prompts, settings.region),
        questions=[example.question for example in found.examples],
    )


def with_general(pair: Pair, prompts: Prompts, settings: AnalysisSettings) -> Prompts:
    """The same prompts, and as many texts of `settings.general` as get token-level metrics.

    Raises:
        MidblockError: no text of it can be read, or whatever is wrong with the data.
    """
    if settings.general is None:
        return prompts
    asked = replace(settings, split=None, num_samples=max(settings.num_token_samples, LEAST_PROMPTS), region="all")
    found = read(pair, settings.general, asked)
    if not found.tokens.prompts:
        raise MidblockError(f"no text of {found.reference} can be measured", hint="see --general and --max-length")
    facts = {**prompts.facts, "general": dict(found.facts)}
    batches = found.batches(settings.batch_tokens)
    repeats = repeats_of(found.tokens.prompts, "all")
    return replace(prompts, general=batches, general_reference=found.reference, general_repeats=repeats, facts=facts)


def _batches(found: Reading, settings: AnalysisSettings, chosen: set[int], inside: bool) -> list[Batch]:
    kept = [prompt for place, prompt in enumerate(found.tokens.prompts) if (place in chosen) == inside]
    return make_batches(kept, batch_tokens=settings.batch_tokens)


def _views(tokens: TokenizedSet, settings: AnalysisSettings) -> tuple[list[Batch], ...]:
    made = (drop_tokens(tokens.prompts, settings.token_dropout, view, settings.seed) for view in range(VIEWS))
    return tuple(make_batches(prompts, batch_tokens=settings.batch_tokens) for prompts in made)
