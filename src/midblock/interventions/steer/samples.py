"""The two samples of the data that steering reads: one to estimate directions on, one held out to judge them by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from midblock.base import MidblockError, generator
from midblock.data import ExampleSet
from midblock.interventions.steer.settings import SteerSettings
from midblock.runs.disjoint import different, part_of
from midblock.runs.reading import load_samples


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

        Raises:
            MidblockError: too few different samples.
        """
        if isinstance(data, str):
            return cls(data, settings)
        order = generator(settings.seed, "steer", "split", len(data)).permutation(len(data)).tolist()
        places, least = different(data, order), settings.num_samples + 2 * needed
        if len(places) < least:
            what = (
                f"{data.reference} holds {len(places)} different samples; judging {settings.num_samples} takes {least}"
            )
            raise MidblockError(what, hint="lower num_samples")
        judged, rest = places[: settings.num_samples], places[settings.num_samples :][: settings.num_directions_samples]
        return cls(part_of(data, judged), settings, part_of(data, rest) if needed else None)

    @cached_property
    def estimated_on(self) -> ExampleSet:
        """The samples the directions are estimated on.

        Raises:
            MidblockError: there are not so many, or whatever is wrong with the data.
        """
        if not isinstance(self.judged, str):
            if self.rest is None:
                raise MidblockError("no samples are left to estimate directions on")
            return self.rest
        asked, judged = self.settings.num_directions_samples, self.settings.num_samples
        try:
            return load_samples(self.judged, self.settings, count=asked, skip=judged)
        except MidblockError as error:
            hint = error.hint and error.hint.replace("--num-samples", "--num-directions-samples")
            raise MidblockError(error.what, hint=hint) from error
