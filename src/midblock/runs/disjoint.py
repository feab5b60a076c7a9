"""Samples of examples that share no text: what is needed to draw them, whoever does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from midblock.data import Example, ExampleSet
from midblock.data.examples import hash_examples


def different(data: ExampleSet, order: Iterable[int] | None = None) -> list[int]:
    """The places of the different texts, each text once: what is drawn into one sample must not be in another too.

    Args:
        order: the places in the order in which they count, by default their own; of equal texts the first one stays.
    """
    first: dict[str, int] = {}
    for place in range(len(data)) if order is None else order:
        first.setdefault(data.examples[place].text, place)
    return list(first.values())


def part_of(data: ExampleSet, places: Iterable[int]) -> ExampleSet:
    """The examples at these places, in the data's own order."""
    return with_examples(data, [data.examples[place] for place in sorted(places)])


def with_examples(data: ExampleSet, examples: Sequence[Example]) -> ExampleSet:
    """The same dataset with other examples, and the hash of those."""
    return replace(data, examples=tuple(examples), content_hash=hash_examples(examples))
