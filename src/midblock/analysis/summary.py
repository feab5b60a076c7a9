"""The reading of a LayerTable: where in depth the change sits, in numbers and in one sentence.

A block's own part is told by `change_own`, weights by `delta_rel`, what states carry by `change_increment`; all of
states over the tokens that are no sinks, where there are any. Described in docs/run_folder.md.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from midblock.analysis.control_rows import controls_of
from midblock.analysis.detectable import detectable
from midblock.analysis.differences import Differences
from midblock.analysis.precision import own_share_of_floor, rounding_in_words
from midblock.analysis.sentences import Depths, place, reading
from midblock.analysis.spread import Spread
from midblock.analysis.states import counts
from midblock.analysis.verdict import Verdict
from midblock.base import LayerTable
from midblock.metrics.catalogue import METRICS
from midblock.metrics.headline_curve import headline_curve
from midblock.metrics.metric import EQUAL_STEP, SEED, SEEDS

FEW = "Prompts are too few for intervals."


def summarize(table: LayerTable, *, whole: bool = True, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Read a table: the spread of weight change and of representation change by depth, and the headline.

    Args:
        table: with its states.
        whole: False where parts of the models were not compared, so that no sentence says they are the same.
        dtype: what the states were computed in, whose rounding a change is held against.

    Returns:
        What `summary.json` holds: `headline`, and for each tuned model its `reading`, `own_depth`, `weight_depth`,
        `representation_depth`, `half_depth` (depth at which half of the last block's change is reached), `last_block`
        (similarity there), `evidence` (whether it says where, if not why, and whether one block leads), `states` (by
        metric how many numbers have which) and `detectable` (smallest difference by metric); `controls` where any were
        run. With several samples of prompts also `spread`: for each of them, the first included, `center` of the change
        that blocks make (that is added across them, where their own was not measured), and `half_depth`.
    """
    paired = table.frame[table.frame.metric.isin([name for name, metric in METRICS.items() if metric.paired])]
    found = {str(model): Differences.of(table, str(model)) for model in dict.fromkeys(paired.model)}
    models = [_read_model(table, model, each, whole, dtype) for model, each in found.items()]
    if not models:
        return {"headline": "Nothing was compared.", "models": []}
    depths = [_depths(table, facts) for facts in models]
    places = [place(each, depth) for each, depth in zip(found.values(), depths, strict=True)]
    return {"headline": models[0]["reading"] if len(models) == 1 else _together(models, places), "models": models}


def _read_model(table: LayerTable, model: str, found: Differences, whole: bool, dtype: torch.dtype) -> dict[str, Any]:
    blocks = table.blocks
    weights = table.curve("delta_rel", model, "block")
    weight_depth = Spread.of(weights, weights.value.to_numpy(), blocks)
    own = headline_curve(table, "change_own", model)
    own_depth = Spread.of(own, own.value.to_numpy(), blocks)
    added = headline_curve(table, "change_increment", model)
    representation_depth = Spread.of(added, added.value.to_numpy(), blocks)
    facts: dict[str, Any] = {
        "name": model,
        "own_depth": asdict(own_depth) if own_depth else None,
        "weight_depth": asdict(weight_depth) if weight_depth else None,
        "representation_depth": asdict(representation_depth) if representation_depth else None,
        "half_depth": _half_depth(table, model, blocks),
        "last_block": _last_block(table, model, blocks),
    }
    equal = headline_curve(table, "change_own", model, reference=EQUAL_STEP)
    equal_depth = Spread.of(equal, equal.value.to_numpy(), blocks)
    centers = (own_depth.center if own_depth else None, equal_depth.center if equal_depth else None)
    if controls := controls_of(table, model, centers):
        facts["controls"] = controls
    if samples := _per_sample(table, model, blocks):
        facts["spread"] = samples
    main = own_depth or weight_depth or representation_depth
    facts["peak_block"] = main.peak_block if main else None
    facts["measured"] = len(weights) + len(added) + len(own) > 0
    verdict = Verdict.of(table, model)
    facts["evidence"] = {"says_where": not verdict.why_not, "why_not": verdict.why_not, "one_block_leads": verdict.peak}
    facts["states"] = counts(table, model)
    facts["detectable"] = detectable(table, model, own_share_of_floor(dtype))
    facts["reading"] = _sentence(facts, found, _depths(table, facts), blocks, whole)
    if representation_depth and (said := rounding_in_words(table, model, dtype)):
        facts["reading"] += f" {said}"
    if verdict.bare:
        facts["reading"] += f" {FEW}"
    return facts


def _per_sample(table: LayerTable, model: str, blocks: int) -> list[dict[str, float | None]]:
    """Where the change sits on each sample of prompts; nothing where there is only one."""
    suffixes = {name[name.index(SEED) :] for name in table.metrics if SEED in name} - {SEEDS}
    found: list[dict[str, float | None]] = []
    for suffix in ["", *sorted(suffixes, key=lambda suffix: int(suffix.removeprefix(SEED)))] if suffixes else []:
        added = headline_curve(table, "change_own", model, reference=suffix)
        if added.empty:
            added = headline_curve(table, "change_increment", model, reference=suffix)
        spread = Spread.of(added, added.value.to_numpy(), blocks)
        half = _half_depth(table, model, blocks, suffix)
        found.append({"center": spread.center if spread else None, "half_depth": half})
    return found


def _half_depth(table: LayerTable, model: str, blocks: int, suffix: str = "") -> float | None:
    """Depth of the first block whose relative change reaches half of the last measured block's."""
    curve = headline_curve(table, "change_intensity_relative", model, reference=suffix)
    curve = curve[(curve.layer >= 0) & (curve.layer < blocks)]
    if curve.empty or curve.value.iloc[-1] <= 0:
        return None
    return float(curve.depth[curve.value >= curve.value.iloc[-1] / 2].iloc[0])


def _last_block(table: LayerTable, model: str, blocks: int) -> dict[str, float]:
    found = {}
    for metric in ("cka_debiased", "cosine_similarity", "change_intensity_relative", "logit_agreement"):
        curve = headline_curve(table, metric, model)
        curve = curve[curve.layer < blocks]
        if not curve.empty and np.isfinite(curve.value.iloc[-1]):
            found[metric] = float(curve.value.iloc[-1])
    return found


def _sentence(facts: dict[str, Any], found: Differences, depths: Depths, blocks: int, whole: bool) -> str:
    name = facts["name"]
    if not facts["measured"]:
        return f"{name}: where in depth it changed was not measured (that takes change_own or delta_rel)."
    return reading(name, found, depths, blocks=blocks, whole=whole)


def _depths(table: LayerTable, facts: dict[str, Any]) -> Depths:
    verdicts = (Verdict.of(table, facts["name"], metric) for metric in ("change_own", "change_increment"))
    return Depths(facts["own_depth"], facts["weight_depth"], facts["representation_depth"], *verdicts)


def _together(models: list[dict[str, Any]], places: list[str]) -> str:
    """One sentence about several models."""
    parts = [
        f"{facts['name']} {where if facts['measured'] else 'not measured'}"
        for facts, where in zip(models, places, strict=True)
    ]
    return "Where the change gathers: " + "; ".join(parts) + "."
