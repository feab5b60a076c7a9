"""RIVALS: the one table of other ways to say which blocks to tune, each a function of a situation.

They are here to be scored beside ours (`score`), not to be recommended. What they read is the base and examples; own
change and swap also read a pilot, and say nothing where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from midblock.base import unknown
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.studies.recommend.gradients import gradient_norms
from midblock.studies.recommend.recommendation import fallback
from midblock.studies.recommend.rival_states import Moments, eva_ranks, one_minus_cka, state_moments
from midblock.studies.recommend.rival_weights import above_noise, spectrum_snr
from midblock.studies.recommend.score import Advice


@dataclass(frozen=True, eq=False)
class Situation:
    """What is known before the sweep.

    Attributes:
        model: the base.
        batches: held-out examples of the task.
        seen: what a pilot or runs showed, a score a block: `own_change`, `swap`.
    """

    model: nn.Module
    batches: Sequence[Batch]
    seen: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> int:
        return len(Anatomy.of(self.model))

    @cached_property
    def moments(self) -> list[Moments]:
        """Of the base's states, read once."""
        return state_moments(self.model, self.batches)

    @cached_property
    def gradients(self) -> list[float]:
        return gradient_norms(self.model, self.batches).mean(0).tolist()


Rival = Callable[[Situation], Advice | None]


def _scores(name: str, scores: Callable[[Situation], Sequence[float]]) -> Rival:
    def advise(situation: Situation) -> Advice | None:
        found = scores(situation)
        return Advice(name, tuple(np.nan_to_num(np.array(found, float), nan=-np.inf).tolist())) if len(found) else None

    return advise


def _uniform(situation: Situation) -> Advice:
    return Advice("uniform", (1.0,) * situation.blocks, tuple(range(situation.blocks)))


def _middle(situation: Situation) -> Advice:
    chosen = fallback(situation.blocks).blocks
    return Advice("p1_middle", tuple(float(block in chosen) for block in range(situation.blocks)), chosen)


RIVALS: Mapping[str, Rival] = {
    "uniform": _uniform,
    "p1_middle": _middle,
    "gradient_norm": _scores("gradient_norm", lambda situation: situation.gradients),
    "one_minus_cka": _scores("one_minus_cka", lambda situation: one_minus_cka(situation.moments)),
    "spectrum_snr": _scores("spectrum_snr", lambda situation: spectrum_snr(situation.model)),
    "above_noise": _scores("above_noise", lambda situation: above_noise(situation.model)),
    "own_change": _scores("own_change", lambda situation: situation.seen.get("own_change", ())),
    "swap": _scores("swap", lambda situation: situation.seen.get("swap", ())),
    "eva": _scores("eva", lambda situation: eva_ranks(situation.moments)),
}


def check_rivals(names: Iterable[str] | None) -> list[str]:
    """The rivals that are asked: those named, or all.

    Raises:
        MidblockError: an unknown name.
    """
    asked = list(RIVALS) if names is None else list(names)
    for name in asked:
        if name not in RIVALS:
            raise unknown("rival", name, RIVALS)
    return asked


def rival_advice(situation: Situation, names: Iterable[str] | None = None) -> list[Advice]:
    """Ask rivals; those that have nothing to go on are left out.

    Args:
        names: of `RIVALS`; all when left out.

    Raises:
        MidblockError: an unknown name.
    """
    return [advice for name in check_rivals(names) if (advice := RIVALS[name](situation)) is not None]
