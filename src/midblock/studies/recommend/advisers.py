"""All advisers of one base and data: ours and its rivals, from one pilot, ready to be scored against a sweep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from midblock.base import Progress, Silent, divide
from midblock.checkpoints import LoadSettings
from midblock.data import ExampleSet
from midblock.studies.recommend.combine import combine
from midblock.studies.recommend.pilot import Pilot
from midblock.studies.recommend.rivals import Situation, rival_advice
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
        Ours first, with the blocks that it recommends (P1's 20–80 % where the evidence says nothing).

    Raises:
        MidblockError: an unknown rival, or what a pilot refuses.
    """
    loading, settings = divide(options, LoadSettings, RecommendSettings)
    pilot = Pilot.plan(base, data, settings, loading)
    pair, curves = pilot.look(progress or Silent())
    found = combine(curves, pair.blocks, door="pilot", cost={})
    seen = {SEEN[curve.verb]: curve.by_block(pair.blocks) for curve in curves if curve.verb in SEEN}
    ours = Advice(OURS, found.scores, found.plan.blocks)
    return [ours, *rival_advice(Situation(pair.base.model, pilot.batches, seen), rivals)]
