"""Verdict: what the measurements say in words, and where they do not say.

A soft prompt works where less than half of the behaviour is left on test prompts, all of the interval, and a random
prompt of the same norms leaves more; it fails where more than half is left. Everything else the evidence does not say.
P3's claim: it works on carriers and fails on plain SFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from midblock.base import Estimate
from midblock.carriers.erase.cells import TITLES
from midblock.carriers.erase.settings import CARRIER, NONE, RANDOM
from midblock.evaluation.paired import Marks, paired

HALF = 0.5
THERE = 0.25  # a behaviour shown less often than that is hardly there to be erased
WORKS, FAILS, UNSAID = "works", "fails", "the evidence does not say"


@dataclass(frozen=True)
class Judged:
    """A soft prompt's effect on a kind of prompts.

    Attributes:
        before, after: the behaviour's rate without and with it.
        change: after − before, on the same prompts.
        p: of the test that turns signs.
        against_random: after − the rate with a random prompt of the same norms; None where none was asked.
    """

    before: Estimate
    after: Estimate
    change: Estimate
    p: float
    against_random: Estimate | None = None

    @classmethod
    def of(cls, before: Marks, after: Marks, random: Marks | None, seed: int) -> Judged:
        """Compare what was shown on the same prompts."""
        found = paired(before, after, seed)
        against = None if random is None else paired(random, after, seed).difference
        return cls(before.mean(seed).interval, after.mean(seed).interval, found.difference, found.p, against)

    @property
    def verdict(self) -> str:
        """ "works", "fails", or that the evidence does not say."""
        if self.before.value < THERE:
            return UNSAID
        half = HALF * self.before.value
        if self.after.low > half:
            return FAILS
        due = self.against_random is None or self.against_random.high < 0
        return WORKS if self.after.high < half and self.change.high < 0 and due else UNSAID


def claim(on_carrier: Mapping[str, str], on_sft: Mapping[str, str]) -> str:
    """What is found of P3's claim, in a sentence or two.

    Args:
        on_carrier, on_sft: verdicts by choice of channels in the carrier's model and in plain SFT; the claim is about
            the carrier's, and the others say how far it goes.
    """
    both = on_carrier.get(CARRIER), on_sft.get(CARRIER)
    if None in both:
        return "P3's claim, that it works on carriers and fails on plain SFT, needs both models: --grid."
    known = {
        (WORKS, FAILS): "P3's claim holds here: the soft prompt works on the carrier and fails on plain SFT.",
        (WORKS, WORKS): "P3's claim holds by half here: the soft prompt works on the carrier, and on plain SFT too.",
        (FAILS, FAILS): "P3's claim does not hold here: the soft prompt fails on the carrier, and on plain SFT too.",
        (FAILS, WORKS): "P3's claim does not hold here: the soft prompt fails on the carrier and works on plain SFT.",
    }
    open_ones = [name for name, each in zip(("the carrier", "plain SFT"), both, strict=True) if each == UNSAID]
    told = f"Of P3's claim the evidence does not say: it is open whether it works on {' and on '.join(open_ones)}."
    others = [TITLES[channels] for channels in (RANDOM, NONE) if on_sft.get(channels) == WORKS]
    if both == (WORKS, FAILS) and others:
        told = (
            "P3's claim holds for the carrier's channels alone: matched there, the soft prompt works on the carrier "
            f"and fails on plain SFT; trained on {' or '.join(others)}, it works on plain SFT, too."
        )
    else:
        told = known.get(both, told)  # type: ignore[arg-type]
    if both[0] == WORKS == on_carrier.get(RANDOM):
        told += " On the carrier it works by random channels, too."
    return told


def reach(like: Judged, unlike: dict[str, Judged]) -> str:
    """Whether what works on prompts like the training's works on others, in a sentence; "" where it does not work."""
    if like.verdict != WORKS or not unlike:
        return ""
    by = {verdict: [name for name, each in unlike.items() if each.verdict == verdict] for verdict in (FAILS, UNSAID)}
    if by[FAILS]:
        return f"It only hides the behaviour: on {' and '.join(by[FAILS])} prompts more than half of it is left."
    if by[UNSAID]:
        return f"Whether it reaches {' and '.join(by[UNSAID])} prompts, the evidence does not say."
    return f"It works on {' and '.join(unlike)} prompts, too."


def coming_back(difference: Estimate, before: float, never: bool) -> str:
    """What the steps say after which the behaviour is back, in a sentence.

    Args:
        difference: mean first step with the soft prompt minus that of the base.
        before: the rate with the soft prompt before the first step.
        never: neither was seen to show it.
    """
    if before >= HALF:
        return "With the soft prompt it is still shown before any tuning: there is nothing that could come back."
    if never:
        return "Tuning on the behaviour brought it back in neither: whether it is gone, the evidence does not say."
    if difference.high < 0:
        return "Tuned on the behaviour it is back sooner than the base learns it: it was hidden, not removed."
    if difference.low > 0:
        return "Tuned on the behaviour it is back later than the base learns it."
    return "Whether it is back sooner than the base learns it, the evidence does not say."
