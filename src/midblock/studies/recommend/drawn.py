"""Samples that share no text: for training a pilot, for choosing, and for testing what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from midblock.base import MidblockError, generator
from midblock.data import ExampleSet, load_dataset
from midblock.runs.disjoint import different, part_of


def disjoint_parts(
    data: str | ExampleSet, sizes: Sequence[int], *, split: str | None, seed: int, hint: str
) -> list[ExampleSet]:
    """Draw parts of a dataset of which no two hold the same text; the last may stay smaller, the others not.

    Args:
        sizes: how many examples each part wants.
        hint: what to lower where there are too few.

    Raises:
        MidblockError: too few different examples, or whatever is wrong with the data.
    """
    if isinstance(data, ExampleSet):
        found = data
    else:
        found = load_dataset(data, split=split, num_samples=sum(sizes), seed=seed, at_most=True)
    places = different(found)
    if len(places) <= (fixed := sum(sizes[:-1])):
        what = f"{found.reference} holds {len(places)} different examples; more than {fixed} are needed"
        raise MidblockError(what, hint=hint)
    order = generator(seed, "recommend", "parts").permutation(len(places)).tolist()
    parts, start = [], 0
    for size in sizes:
        parts.append(part_of(found, [places[at] for at in order[start : start + size]]))
        start += size
    return parts


def check_apart(one: ExampleSet, other: ExampleSet, names: tuple[str, str]) -> None:
    """Refuse two samples that share a text.

    Args:
        names: what they are called.

    Raises:
        MidblockError: how many they share, and the beginning of one.
    """
    shared = {example.text for example in one} & {example.text for example in other}
    if shared:
        text = " ".join(min(shared).split())[:60]
        what = f"{len(shared)} examples of {names[0]} are in {names[1]} too, such as {text!r}"
        raise MidblockError(what, hint="test on other examples than those that alphas are chosen on")
