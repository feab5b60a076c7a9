"""What steering can be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.interventions.steer.directions import KINDS
from midblock.interventions.steer.steering import ADDING
from midblock.runs.reading import ReadingSettings, check_least, check_most, check_reading

MOST_DRAWS = 1000  # each is a pass over all samples


@dataclass(frozen=True, kw_only=True)
class SteerSettings(ReadingSettings):
    """Options of `midblock steer` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    blocks: str = "0.2-0.8"
    """Blocks behind which is added: `01100`, `6-17`, `6,7,9-12`, `0.2-0.8` (all but the outer fifths) or `all`."""

    alpha: tuple[float, ...] = (0.5, 1.0, 2.0)
    """α: how much of the direction is added, one or several; 1 is the measured shift, below 0 leads away from it."""

    kind: str = "mean_shift"
    """Direction: `mean_shift`, `pca` (the shift's part along principal directions), or `random` of the same size."""

    components: int = 1
    """k: principal directions taken together (`--kind pca`)."""

    adding: str = "increments"
    """`increments`: blocks add what the shift grew by since the one below; `whole`: each adds all of its own."""

    num_samples: int = 24
    """Held-out prompts that are judged: the tuned model answers them."""

    num_directions_samples: int = 64
    """Other samples of the data, from which the directions are estimated."""

    max_length: int = 256
    """Tokens a sample is cut at when directions are estimated."""

    region: str = "all"
    """Tokens whose states are averaged for the directions: `all`, `prompt` or `answer`."""

    max_new_tokens: int = 96
    """Where an answer that does not end is cut."""

    num_texts: int = 6
    """Held-out prompts whose answers are written out side by side."""

    random_draws: int = 3
    """Random directions of the same norms that each α is compared with."""

    scan: bool = True
    """Steer each block alone, too: at α 1 where that is among those given, else at the largest by amount."""

    def __post_init__(self) -> None:
        check_reading(self, fewest=2)
        if self.kind not in KINDS:
            raise unknown("kind", self.kind, KINDS)
        if self.adding not in ADDING:
            raise unknown("way of adding", self.adding, ADDING)
        check_least(self, components=1, num_directions_samples=2, max_new_tokens=1, num_texts=0, random_draws=1)
        check_most(self, random_draws=MOST_DRAWS)
        self._check_alphas()

    def _check_alphas(self) -> None:
        if not self.alpha:
            raise MidblockError("no alpha was given", hint="--alpha 1")
        for alpha in self.alpha:
            if not math.isfinite(alpha):
                raise MidblockError(f"alpha is {alpha}; it must be a finite number")
        labels = [alpha_label(alpha) for alpha in self.alpha]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise MidblockError(f"alpha {twice[0]} is given twice")
        if not any(self.alpha):
            raise MidblockError("alpha 0 adds nothing", hint="give another one besides")

    @property
    def scan_alpha(self) -> float:
        """The α of the scan: 1, the measured shift, where it is among those asked for; else the largest by amount."""
        return 1.0 if 1.0 in self.alpha else max(self.alpha, key=abs)


def alpha_label(alpha: float) -> str:
    """How an α is written in files: 1, 0.5."""
    return f"{alpha:g}"
