"""The plan of a tuning run as a picture: which projections of which blocks are trained, and with what rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from midblock.report.page.amounts import count
from midblock.report.page.facts import number
from midblock.report.page.modules import heat_rows
from midblock.report.read.tuning import TuneRun
from midblock.runs.lenient import as_number


@dataclass(frozen=True)
class Place:
    """Everything trained under one role in one block (a mixture of experts has many tensors there).

    Attributes:
        layer: −1 the embedding, 0…L−1 a block, L behind the last block.
        rank: the largest rank of an adapter there, NaN without adapters.
    """

    layer: int
    role: str
    targets: tuple[Mapping[str, Any], ...]

    @property
    def rank(self) -> float:
        ranks = [as_number(target.get("rank")) for target in self.targets]
        return max((rank for rank in ranks if math.isfinite(rank)), default=math.nan)

    @property
    def parameters(self) -> float:
        return float(np.nansum([as_number(target.get("parameters")) for target in self.targets]))

    @property
    def said(self) -> str:
        """What stands beside the pointer: rank, scale and size."""
        first = self.targets[0]
        alpha, scale = as_number(first.get("alpha")), as_number(first.get("scale"))
        words = [f"{len(self.targets)} tensors"] if len(self.targets) > 1 else []
        words += [f"rank {number(self.rank)}"] if math.isfinite(self.rank) else []
        words += [f"α {number(alpha)}"] if math.isfinite(alpha) else []
        words += [f"scale {number(scale)}"] if math.isfinite(scale) else []
        return " · ".join([*words, f"{count(self.parameters)} parameters"])


def targets_of(run: TuneRun) -> list[Mapping[str, Any]]:
    """The plan's trained tensors."""
    targets = run.plan.get("targets")
    return [target for target in targets if isinstance(target, dict)] if isinstance(targets, list) else []


def places_of(run: TuneRun) -> list[Place]:
    """What is trained, by depth and role."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for target in targets_of(run):
        layer, role = target.get("block"), str(target.get("role") or "other")
        if type(layer) is not int:
            layer = -1 if "embed" in role else run.blocks
        if -1 <= layer <= run.blocks:
            found.setdefault((layer, role), []).append(target)
    return [Place(layer, role, tuple(targets)) for (layer, role), targets in found.items()]


def plan_data(run: TuneRun) -> dict[str, Any] | None:
    """What the scripts draw the plan from; None where nothing is known of it."""
    places = places_of(run)
    if not places:
        return None
    rows = heat_rows(place.role for place in places)
    row_of = {role: row for row, (_, roles) in enumerate(rows) for role in roles}
    adapters = any(math.isfinite(place.rank) for place in places)
    return {
        "rows": [label for label, _ in rows],
        "cells": [{"layer": p.layer, "row": row_of[p.role], "role": p.role, "said": p.said} for p in places],
        "title": "Rank of the adapters" if adapters else "Trained parameters",
        "unit": "largest of each block" if adapters else "of each block",
        "bars": _bars(places, adapters),
    }


def _bars(places: list[Place], adapters: bool) -> list[dict[str, float]]:
    layers = sorted({place.layer for place in places})
    heights = []
    for layer in layers:
        here = [place for place in places if place.layer == layer]
        ranks = [place.rank for place in here if math.isfinite(place.rank)]
        height = max(ranks, default=0.0) if adapters else sum(place.parameters for place in here)
        heights.append({"layer": layer, "value": height})
    return heights
