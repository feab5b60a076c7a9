"""What a reader must know of sink tokens: how many prompts have them, where they stand, and by which rule."""

from __future__ import annotations

from midblock.analysis.measure import Measured
from midblock.analysis.settings import AnalysisSettings
from midblock.metrics.sinks import FIRST


def sink_notes(measured: Measured, settings: AnalysisSettings) -> list[str]:
    """One note where a token that counts is a sink; none where no prompt has one."""
    if measured.sinks is None or not measured.has_sinks:
        return []
    places = measured.sinks.values
    N, having = len(places), int(places.any(1).sum())
    rule = "the first token" if settings.sinks == FIRST else f"norm above {settings.sinks} × the prompt's median"
    first = int(places[:, 0].sum())
    others = int(places[:, 1:].sum())
    where = f"the first token in {first}" if first else ""
    more = f"{others} other token{'s' * (others > 1)}" if others else ""
    said = " and ".join(filter(None, (where, more)))
    return [f"{having} of {N} prompts have sink tokens ({rule}): {said}; rows METRIC.no_sinks leave them out."]
