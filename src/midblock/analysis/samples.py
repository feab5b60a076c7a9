"""Disjoint samples of prompts, and the rows that tell how much a number depends on which prompts were drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from midblock.analysis.settings import LEAST_PROMPTS, AnalysisSettings
from midblock.base import LayerRow, MidblockError, generator
from midblock.data import Example, ExampleSet
from midblock.metrics.metric import SEED, SEEDS, is_estimate
from midblock.runs.disjoint import different, part_of, with_examples
from midblock.runs.reading import load_samples


def draw_samples(data: str | ExampleSet, settings: AnalysisSettings) -> tuple[ExampleSet, ...]:
    """Draw `settings.seeds` samples that share no text.

    The first one of a dataset reference is what a single sample would be. Examples in memory are parted at random into
    samples of equal size; a remainder and repeated texts are left out. A single sample of them is all of them.

    Raises:
        MidblockError: too few different prompts, or whatever is wrong with the data.
    """
    if isinstance(data, ExampleSet):
        return (data,) if settings.seeds == 1 else _part(data, settings)
    first = load_samples(data, settings)
    return (first, *_draw_others(data, settings, first))


def sample_rows(rows: Iterable[LayerRow], number: int) -> list[LayerRow]:
    """The estimates of sample `number` (from 1) under their own names, METRIC.seed1, ….

    References (nulls, floors) have no rows of their own: they are those of sample 0.
    """
    return [replace(row, metric=f"{row.metric}{SEED}{number}") for row in _estimates(rows)]


def spread_rows(samples: Sequence[Sequence[LayerRow]]) -> list[LayerRow]:
    """METRIC.seeds for each estimate: the mean over the samples, between their smallest and largest; n is their number.

    Args:
        samples: the rows of each sample, under the metrics' plain names.
    """
    values: dict[tuple[str, int, str, str], list[float]] = {}
    for rows in samples:
        for row in _estimates(rows):
            values.setdefault(_key(row), []).append(row.value)
    spread = []
    for row in _estimates(samples[0]):
        found = np.array(values[_key(row)])
        value, low, high = float(found.mean()), float(found.min()), float(found.max())
        spread.append(replace(row, metric=row.metric + SEEDS, value=value, low=low, high=high, n=len(found)))
    return spread


def _draw_others(reference: str, settings: AnalysisSettings, first: ExampleSet) -> list[ExampleSet]:
    """Go on in the shuffled order where the first sample ended; a text that came before is passed over."""
    seen = {example.text for example in first}
    samples: list[ExampleSet] = []
    skip, repeated = settings.num_samples, 0
    while len(samples) < settings.seeds - 1:
        fresh: list[Example] = []
        while missing := settings.num_samples - len(fresh):
            try:
                found = load_samples(reference, settings, count=missing, skip=skip)
            except MidblockError as error:
                raise _cannot_draw(settings, error, repeated) from error
            new = {example.text: example for example in found if example.text not in seen}
            seen |= new.keys()
            fresh += new.values()
            skip, repeated = skip + missing, repeated + missing - len(new)
        samples.append(replace(with_examples(first, fresh), left_out=found.left_out))
    return samples


def _cannot_draw(settings: AnalysisSettings, error: MidblockError, repeated: int) -> MidblockError:
    what = f"cannot draw {settings.seeds} disjoint samples of {settings.num_samples} prompts: {error.what}"
    if repeated:
        what += f"; {repeated} repeated an earlier one"
    return MidblockError(what, hint="lower --seeds or --num-samples")


def _part(data: ExampleSet, settings: AnalysisSettings) -> tuple[ExampleSet, ...]:
    places = different(data)
    size = len(places) // settings.seeds
    if size < LEAST_PROMPTS:
        least = f"{settings.seeds} disjoint samples of {LEAST_PROMPTS} or more"
        what = f"{data.reference} holds {len(places)} different prompts, too few for {least}"
        raise MidblockError(what, hint="lower --seeds")
    order = generator(settings.seed, "data", "seeds").permutation(len(places))
    parts = (order[number * size :][:size] for number in range(settings.seeds))
    return tuple(part_of(data, [places[at] for at in part]) for part in parts)


def _estimates(rows: Iterable[LayerRow]) -> list[LayerRow]:
    return [row for row in rows if is_estimate(row.metric)]


def _key(row: LayerRow) -> tuple[str, int, str, str]:
    return row.model, row.layer, row.module, row.metric
