"""Which controls there are, by the words of `--controls`."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import unknown
from midblock.metrics.metric import EQUAL_STEP, RANDOM

KINDS = {"random": RANDOM, "equal-step": EQUAL_STEP}


@dataclass(frozen=True)
class Control:
    """One change to measure.

    Attributes:
        kind: "random" or "equal-step".
        draw: its number among the random ones.
    """

    kind: str
    draw: int = 0

    @property
    def label(self) -> str:
        """What its pieces on disk are called."""
        return f"{self.kind}{self.draw}"


def read_controls(text: str, draws: int) -> tuple[Control, ...]:
    """The controls that words ask for.

    Raises:
        MidblockError: another word.

    Example:
        >>> [control.label for control in read_controls("random,equal-step", 2)]
        ['random0', 'random1', 'equal-step0']
    """
    words = dict.fromkeys(filter(None, (word.strip() for word in text.split(","))))
    for word in words:
        if word not in KINDS:
            raise unknown("control", word, KINDS)
    return tuple(Control(kind, draw) for kind in words for draw in range(draws if kind == "random" else 1))


def cost_of(controls: tuple[Control, ...]) -> str:
    """What controls cost, to be said before they are run; "" where there are none."""
    if not controls:
        return ""
    passes = f"{len(controls)} more pass{'es' * (len(controls) > 1)} of all models over the prompts"
    return f"Controls: {passes}, each about as long as the first, and the changed weights once more in memory."
