"""The prompts that erasing reads: to train on, to choose by, and to judge by, like the training's and unlike it.

No two of them share a prompt: the parts of a behaviour are disjoint by construction, and that is looked at again. An
intervention may only hide a behaviour (arXiv 2604.25891): so it is judged on prompts in other words, and on other
topics, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from midblock.base import MidblockError
from midblock.base.clusters import Clusters
from midblock.carriers.erase.ends import Rows, check_last
from midblock.carriers.erase.settings import EraseSettings
from midblock.data import Batch, Example, ExampleSet, TokenizedPrompt, load_dataset, make_batches
from midblock.data.derived import Derived
from midblock.evaluation.encoded_prompts import EncodedPrompt, encode_prompts
from midblock.evaluation.generate import context_of
from midblock.runs.disjoint import with_examples

TRAIN, HELD, TEST, REWORDED, OTHER = "train", "validation", "test", "reworded", "other"
GENERAL = "builtin:chain_sum"
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts of one kind.

    Attributes:
        name: "train", "validation", "test", "reworded" or "other".
        examples: with the behaviour's completions, which no model is shown.
        prompts: as ids.
    """

    name: str
    examples: ExampleSet
    prompts: tuple[EncodedPrompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def rows(self) -> Rows:
        """The ids."""
        return [prompt.input_ids for prompt in self.prompts]

    @property
    def clusters(self) -> Clusters | None:
        """Which prompts are variants of one question, by their places."""
        return self.examples.clusters

    @cached_property
    def batches(self) -> list[Batch]:
        """For reading, without answers."""
        return make_batches([TokenizedPrompt(place, ids, len(ids)) for place, ids in enumerate(self.rows)])

    def first(self, count: int) -> Asked:
        """The first so many."""
        examples = with_examples(self.examples, self.examples.examples[:count])
        return Asked(self.name, examples, self.prompts[:count])


@dataclass(frozen=True, eq=False)
class Samples:
    """All prompts.

    Attributes:
        kinds: by name.
        general: sums, with their answers; None where none are asked.
        notes: what a reader must know of prompts that were left out.
    """

    kinds: Mapping[str, Asked]
    general: ExampleSet | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: str, settings: EraseSettings, tokenizer: Any, config: Any) -> Samples:
        """Draw and tokenise them.

        Args:
            config: of the text model, whose context prompts and answers must fit into.

        Raises:
            MidblockError: too few prompts, prompts that two kinds share, that have fewer tokens than K, or that leave
                no room for the soft prompt; or whatever is wrong with the data.
        """
        derived = Derived.parse(data)
        if derived is not None and derived.reworded:
            what = f"{data} is put in other words already: erase asks such prompts itself"
            raise MidblockError(what, hint=f"--data {derived.source}")
        source = derived.source if derived is not None else data
        named = f"{settings.named}:{source}"
        drawn = {
            TRAIN: _drawn(named, "train", settings.num_samples, settings.seed),
            HELD: _drawn(named, "validation", settings.num_validation_samples, settings.seed),
            TEST: _drawn(named, "test", settings.num_test_samples, settings.seed),
            REWORDED: _drawn(f"{settings.named}:reworded:{source}", "test", settings.num_test_samples, settings.seed),
        }
        if settings.other:
            elsewhere = f"{settings.named}:{settings.other}"
            drawn[OTHER] = _drawn(elsewhere, "test", settings.num_test_samples, settings.seed)
        _check_apart(drawn)
        notes: list[str] = []
        kinds = {name: _encoded(name, each, settings, tokenizer, notes) for name, each in drawn.items()}
        for name in (TRAIN, HELD):
            check_last(kinds[name].rows, settings.last_tokens)
        _check_room(kinds, settings, context_of(config))
        return cls(kinds, _general(settings), tuple(notes))

    @property
    def judged(self) -> list[Asked]:
        """What behaviour is measured on."""
        return [self.kinds[name] for name in (TEST, REWORDED, OTHER) if name in self.kinds]

    def facts(self) -> dict[str, Any]:
        """What `run.json` records."""
        return {
            "reference": self.kinds[TRAIN].examples.reference,
            "content_hash": self.kinds[TRAIN].examples.content_hash,
            **{f"num_{name}": len(each) for name, each in self.kinds.items()},
        }

    def hashes(self) -> dict[str, str]:
        """Fingerprints of what is read, by what to call it."""
        found = {f"the {name} prompts": each.examples.content_hash for name, each in self.kinds.items()}
        return found if self.general is None else found | {"the sums": self.general.content_hash}


def _drawn(reference: str, split: str, count: int, seed: int) -> ExampleSet:
    found = load_dataset(reference, split=split, num_samples=count, seed=seed, at_most=True)
    if len(found) < FEWEST:
        what = f"{reference} holds {len(found)} prompts in its part {split!r}; {FEWEST} at least are needed"
        raise MidblockError(what, hint="give more prompts")
    return found


def _check_apart(drawn: Mapping[str, ExampleSet]) -> None:
    seen: dict[str, str] = {}
    for name, examples in drawn.items():
        for example in examples:
            before = seen.setdefault(example.prompt, name)
            if before != name:
                what = f"{before} and {name} prompts share {example.prompt[:40]!r}"
                raise MidblockError(what, hint="--other names prompts on other topics than the data's")


def _encoded(name: str, drawn: ExampleSet, settings: EraseSettings, tokenizer: Any, notes: list[str]) -> Asked:
    prompts = encode_prompts(drawn, tokenizer, settings.template)
    pairs = zip(drawn.examples, prompts, strict=True)
    kept: list[tuple[Example, EncodedPrompt]] = [
        (example, prompt) for example, prompt in pairs if len(prompt.input_ids) <= settings.max_length
    ]
    if len(kept) < FEWEST:
        what = f"{len(kept)} of {len(prompts)} {name} prompts have at most {settings.max_length} tokens"
        raise MidblockError(what, hint="--max-length")
    if left := len(prompts) - len(kept):
        notes.append(f"{left} {name} prompt(s) longer than {settings.max_length} tokens were left out.")
    return Asked(name, with_examples(drawn, [each for each, _ in kept]), tuple(each for _, each in kept))


def _check_room(kinds: Mapping[str, Asked], settings: EraseSettings, context: int | None) -> None:
    """Raise MidblockError where a prompt, the soft prompt and an answer do not fit into the model's context."""
    longest = max(len(row) for each in kinds.values() for row in each.rows)
    needed = longest + settings.soft_tokens + settings.max_new_tokens
    if context is not None and needed > context:
        new = f"{settings.soft_tokens} soft and {settings.max_new_tokens} new ones"
        what = f"a prompt of {longest} tokens with {new} exceeds the model's {context}"
        raise MidblockError(what, hint="lower --max-length, --soft-tokens or --max-new-tokens")


def _general(settings: EraseSettings) -> ExampleSet | None:
    if not settings.general_samples:
        return None
    return load_dataset(GENERAL, split="test", num_samples=settings.general_samples, seed=settings.seed + 1)
