"""The two samples of the data that steering reads: one to estimate directions on, one held out to judge them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from midblock.base import MidblockError, generator
from midblock.data import ExampleSet, load_dataset
from midblock.data.examples import hash_examples
from midblock.interventions.steer_settings import SteerSettings


@dataclass
class Samples:
    """The two samples of the data, which share none.

    Attributes:
        judged: the held-out prompts: a reference, of which the first `num_samples` are drawn, or examples.
    """

    judged: str | ExampleSet
    settings: SteerSettings
    rest: ExampleSet | None = None

    @classmethod
    def of(cls, data: str | ExampleSet, settings: SteerSettings, *, needed: bool) -> Samples:
        """Split examples in memory; a reference is drawn from later, with one seed.

        Args:
            needed: directions are to be estimated; else all that is asked for may be judged.
        """
        if isinstance(data, str):
            return cls(data, settings)
        order = generator(settings.seed, "steer", "split", len(data)).permutation(len(data)).tolist()
        order = _different(data, order)
        least = settings.num_samples + 2 * needed
        if len(order) < least:
            what = (
                f"{data.reference} holds {len(order)} different samples; judging {settings.num_samples} takes {least}"
            )
            raise MidblockError(what, hint="lower num_samples")
        end = settings.num_samples + settings.num_directions_samples
        judged, rest = order[: settings.num_samples], order[settings.num_samples : end]
        return cls(_part(data, judged), settings, _part(data, rest) if needed else None)

    @cached_property
    def estimated_on(self) -> ExampleSet:
        """The samples the directions are estimated on."""
        if not isinstance(self.judged, str):
            if self.rest is None:
                raise MidblockError("no samples are left to estimate directions on")
            return self.rest
        settings = self.settings
        asked = settings.num_directions_samples
        try:
            return load_dataset(
                self.judged, split=settings.split, num_samples=asked, seed=settings.seed, skip=settings.num_samples
            )
        except MidblockError as error:
            hint = error.hint and error.hint.replace("--num-samples", "--num-directions-samples")
            raise MidblockError(error.what, hint=hint) from error


def _different(data: ExampleSet, order: Sequence[int]) -> list[int]:
    """The places of the texts, each text once: one that is estimated on must not be judged too."""
    first: dict[str, int] = {}
    for place in order:
        first.setdefault(data.examples[place].text, place)
    return list(first.values())


def _part(data: ExampleSet, chosen: Sequence[int]) -> ExampleSet:
    examples = tuple(data.examples[index] for index in sorted(chosen))
    return replace(data, examples=examples, content_hash=hash_examples(examples))
