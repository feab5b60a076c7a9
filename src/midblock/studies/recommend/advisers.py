"""All advisers of one base and data: ours and its rivals, from one pilot, ready to be scored against a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from midblock.base import Progress, Silent, divide
from midblock.checkpoints import LoadSettings
from midblock.data import Batch, ExampleSet
from midblock.studies.recommend.pilot import Pilot
from midblock.studies.recommend.recommendation import Recommendation
from midblock.studies.recommend.rivals import Situation, check_rivals, rival_advice
from midblock.studies.recommend.score import Advice
from midblock.studies.recommend.settings import RecommendSettings

OURS = "recommend"
SEEN = {"analyze": "own_change", "swap": "swap"}  # rivals that read what a pilot showed


def advisers(
    base: str,
    data: str | ExampleSet,
    *,
    rivals: Iterable[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Advice]:
    """Ask ours and the rivals what they advise, before any sweep is looked at.

    Args:
        base: a model reference.
        data: of the task; the pilot tunes on some of it and looks on others.
        rivals: names of `RIVALS`; all when left out.
        **options: fields of `RecommendSettings` and `LoadSettings`.

    Returns:
        As of `advice_from`.

    Raises:
        MidblockError: an unknown rival, or what a pilot refuses.
    """
    loading, settings = divide(options, LoadSettings, RecommendSettings)
    names = check_rivals(rivals)
    pilot = Pilot.plan(base, data, settings, loading)
    pair, curves = pilot.look(progress or Silent())
    return advice_from(pilot.answer(pair.blocks, curves, {}), pair.base.model, pilot.batches, names)


def advice_from(
    found: Recommendation, model: nn.Module, batches: Sequence[Batch], rivals: Iterable[str] | None = None
) -> list[Advice]:
    """What a pilot's recommendation and the rivals advise.

    Args:
        model: the base.
        batches: held-out examples.

    Returns:
        Ours first, with the blocks that it recommends (P1's 20–80 % where the evidence says nothing).
    """
    seen = {SEEN[curve["verb"]]: curve["scores"] for curve in found.evidence if curve["verb"] in SEEN}
    ours = Advice(OURS, found.scores, found.plan.blocks)
    return [ours, *rival_advice(Situation(model, batches, seen), rivals)]
