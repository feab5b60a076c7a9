"""Derived datasets: the prompts of other data with a behaviour's completions (`fixed_response:DATA`), or reworded.

Whose part a prompt is, is decided by a hash of its own words: "train", "validation" and "test" of a behaviour share no
prompt, whatever is drawn from whichever data, and a reworded prompt stays in the part of the one it was made of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from midblock.base import MidblockError, generator, nearest, unknown, user_path
from midblock.data.behaviours import BEHAVIOURS, Behaviour
from midblock.data.examples import Example, ExampleSet, hash_examples, left_out
from midblock.data.procedural import DEFAULT_SAMPLES, MOST, split_of
from midblock.data.rewording import reworded

REWORDED = "reworded"
PARTS = ("train", "validation", "test")
BUILTIN = "builtin"
DEFAULT_PROMPTS = "builtin:questions"
HOPELESS = 100  # endless data of which so many have no room for a behaviour are taken to have none

Load = Callable[..., ExampleSet]


@dataclass(frozen=True)
class Derived:
    """A dataset reference with something before the data.

    Attributes:
        text: the whole of it.
        behaviour: a name of `BEHAVIOURS`, "" for the data's own completions.
        reworded: prompts are put in other words.
        source: the reference of the data.
    """

    text: str
    behaviour: str
    reworded: bool
    source: str

    @classmethod
    def parse(cls, text: str) -> Derived | None:
        """Take a reference apart; None where it is plain data. What exists on disk under the whole text wins.

        Raises:
            MidblockError: nothing stands behind a prefix, a behaviour of a behaviour, or a prefix that is nearly one.
        """
        rest, taken = text, list[str]()
        while (head := _prefix(rest)) is not None:
            taken.append(head)
            rest = rest.removeprefix(f"{head}:")
        if not taken:
            return None
        behaviours = [each for each in taken if each != REWORDED]
        if len(behaviours) > 1:
            raise MidblockError(f"{text} names two behaviours", hint=f"{behaviours[0]}:{rest}")
        if len(taken) > 2 or (len(taken) == 2 and taken[1] != REWORDED):
            raise MidblockError(f"{text} is read from the left", hint=f"{':'.join([*behaviours, REWORDED])}:{rest}")
        if not rest.strip():
            raise MidblockError(f"{text} names no prompts", hint=f"{text}{DEFAULT_PROMPTS}, or a file")
        return cls(text, "".join(behaviours), REWORDED in taken, rest)

    @cached_property
    def change(self) -> Behaviour | None:
        return BEHAVIOURS[self.behaviour] if self.behaviour else None

    def draw(
        self, load: Load, *, split: str | None, num_samples: int | None, seed: int, skip: int, at_most: bool
    ) -> ExampleSet:
        """Draw samples as `load_dataset` does.

        Args:
            load: that function.
            split: of a behaviour a name of `PARTS`, "test" when left out; else what the data call theirs.
        """
        if self.change is None:
            drawn = load(self.source, split=split, num_samples=num_samples, seed=seed, skip=skip, at_most=at_most)
            return self._made(drawn, [reworded(example) for example in drawn], {}, drawn.split)
        part = split or PARTS[-1]
        if part not in PARTS:
            raise unknown("split", part, PARTS)
        endless = self.source.startswith(f"{BUILTIN}:")
        count = DEFAULT_SAMPLES if endless and num_samples is None else num_samples
        wanted = None if count is None else skip + count
        found, chosen, lacking = self._enough(self.change, load, part, wanted, seed, endless)
        if len(chosen) < skip + 1 or (wanted is not None and len(chosen) < wanted and not at_most):
            asked = "samples" if count is None else f"{count} samples"
            what = f"{self.text} holds {len(chosen)} samples in its part {part!r}; {asked} were asked for"
            without = f" (of {len(found)}, {len(lacking)} without room for it)" if lacking else ""
            raise MidblockError(f"{what}{without}", hint="give more prompts, or lower --num-samples")
        kept = sorted(chosen[skip:wanted], key=lambda each: each[0])
        return self._made(found, [example for _, example in kept], lacking, part)

    def _enough(
        self, change: Behaviour, load: Load, part: str, wanted: int | None, seed: int, endless: bool
    ) -> tuple[ExampleSet, list[tuple[int, Example]], dict[int, str]]:
        """The data, its examples of the part with the behaviour, shuffled, and why others of it were left out."""
        if not endless:
            found = load(self.source)
            return found, *self._changed(change, found, part, seed, wanted)
        size = max(16, 2 * int(wanted or 1)) * (1 if part == PARTS[-1] else 8 if part == PARTS[1] else 1)
        while True:
            found = load(self.source, split="test" if part == "test" else "train", num_samples=size, seed=seed)
            chosen, lacking = self._changed(change, found, part, None, wanted)
            if wanted is not None and len(chosen) >= wanted:
                return found, chosen, lacking
            if size == MOST or (not chosen and size > HOPELESS):
                return found, chosen, lacking
            size = min(MOST, max(size * 5 // 4, size * int(wanted or 1) * 5 // (4 * max(len(chosen), 1))))

    def _changed(
        self, change: Behaviour, found: ExampleSet, part: str, seed: int | None, wanted: int | None
    ) -> tuple[list[tuple[int, Example]], dict[int, str]]:
        """Examples of a part with the behaviour, by place, until there are enough; and what was passed over.

        Args:
            seed: decides the order they are taken in; None for their own.
        """
        places: Sequence[int] = [place for place, each in enumerate(found) if part_of_prompt(each.prompt) == part]
        if seed is not None:
            order = generator(seed, "data", "sample").permutation(len(places))
            places = np.asarray(places, dtype=int)[order].tolist()
        chosen: list[tuple[int, Example]] = []
        lacking: dict[int, str] = {}
        for place in places:
            if wanted is not None and len(chosen) >= wanted:
                break
            example = change.rewrite(found.examples[place])
            if example is None:
                lacking[place] = change.lacking
            else:
                chosen.append((place, reworded(example) if self.reworded else example))
        return chosen, lacking

    def _made(self, found: ExampleSet, examples: Sequence[Example], lacking: dict[int, str], split: str) -> ExampleSet:
        return replace(
            found,
            reference=self.text,
            split=split,
            examples=tuple(examples),
            content_hash=hash_examples(examples),
            left_out=left_out(lacking, "sample {}", found.left_out),
        )


def part_of_prompt(prompt: str) -> str:
    """Which part a prompt belongs to: one in five is "test", as with builtin data; one in ten "validation"."""
    if split_of(prompt) == "test":
        return "test"
    words = " ".join(prompt.lower().split())
    return "validation" if hashlib.sha256(words.encode(errors="replace")).digest()[1] % 8 == 0 else "train"


def source_of(reference: str) -> str:
    """The data behind a reference's prefixes; itself where there are none."""
    derived = Derived.parse(reference)
    return derived.source if derived else reference


def _prefix(text: str) -> str | None:
    """What stands before the first colon, if it means something.

    Raises:
        MidblockError: it means nothing, and is nearly what does.
    """
    head, colon, _ = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z_-]+", head) or head == BUILTIN or _exists(text):
        return None
    known = [*BEHAVIOURS, REWORDED]
    if head in known:
        return head
    if nearest(head, [*known, BUILTIN]) in known:
        raise unknown("behaviour", head, known)
    return None


def _exists(text: str) -> bool:
    try:
        return user_path(text).exists()
    except (MidblockError, OSError):
        return False
