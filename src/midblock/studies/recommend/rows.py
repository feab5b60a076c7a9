"""A recommendation as rows of a LayerTable, and as the summary of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from midblock.base import LayerRow
from midblock.studies.recommend.catalogue import BY_VERB
from midblock.studies.recommend.recommendation import Recommendation

BASE = "base"


def rows_of(found: Recommendation) -> list[LayerRow]:
    """Every curve that was asked, the plan, its ranks and alphas."""
    total = found.plan.total
    rows: list[LayerRow] = []
    for curve in found.evidence:
        rows += _rows(str(curve["about"]), BY_VERB[curve["verb"]], curve["scores"], total)
    about = str(found.evidence[0]["about"] if found.evidence else found.details.get("about") or BASE)
    chosen = [float(block in found.plan.blocks) for block in range(total)]
    rows += _rows(about, "advice_plan", chosen, total)
    if found.plan.ranks:
        ranks: Mapping[int, int] = dict(zip(found.plan.blocks, found.plan.ranks, strict=True))
        rows += _rows(about, "advice_rank", [float(ranks.get(block, 0)) for block in range(total)], total)
    if found.alphas:
        rows += _rows(about, "advice_alpha", found.alphas, total)
    return rows


def _rows(model: str, metric: str, values: Sequence[float | None], total: int) -> list[LayerRow]:
    return [
        LayerRow(model, block, total, metric, float(value), n=0, module="block")
        for block, value in enumerate(values)
        if value is not None and math.isfinite(value)
    ]


def summary_of(found: Recommendation) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {"headline": found.headline, "models": [], **found.as_record()}
