"""What the folder of a tuning run holds: beside the usual files a plan and a log. A killed run may lack any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.base.table_rules import MOST_BLOCKS
from midblock.report.read.reading import Run, beside_the_table, bounded
from midblock.report.read.training_log import Log
from midblock.runs.lenient import read_json

TABLE = "layers.parquet"


@dataclass(frozen=True)
class TuneRun(Run):
    """A tuning run, finished or not.

    Attributes:
        plan: `plan.json`, or {}.
        log: the lines of `log.jsonl`, as far as they are whole.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=lambda: Log(()))


def read_tune(folder: Path | str) -> TuneRun:
    """Read the folder of a tuning run; only the folder itself must be there."""
    folder = Path(folder)
    plan: dict[str, Any] = read_json(folder / "plan.json", {})
    log = Log.read(folder / "log.jsonl")
    depth = depth_of(plan, log) if plan else None
    table, notes = _table(folder, plan, log)
    return TuneRun(table, **beside_the_table(folder, notes), depth=depth, plan=plan, log=log)


def depth_of(plan: Mapping[str, Any], log: Log) -> int:
    """L by the plan; without one, as deep as the log's gradients reach."""
    total = plan.get("total_blocks")
    if type(total) is int and 0 < total <= MOST_BLOCKS:
        return total
    return max([int(place) for place in log.places if place.isdecimal()], default=0) + 1


def layer_of(place: str, blocks: int) -> int | None:
    """The layer a place of the log stands for: −1 the embedding, L the head; None if it is not in the model."""
    layer = {"embedding": -1, "head": blocks}.get(place, int(place) if place.isdecimal() else None)
    return layer if layer is not None and layer <= blocks else None


def _table(folder: Path, plan: Mapping[str, Any], log: Log) -> tuple[LayerTable, list[str]]:
    """The table, and what a reader must know of it; until it is written the log knows the gradients by block."""
    notes = []
    if (folder / TABLE).exists():
        try:
            return bounded(LayerTable.read(folder))
        except MidblockError as error:
            notes = [f"{error.what}. Gradients are the log's, all else that it held is left out."]
    return LayerTable.from_rows(_rows(folder.resolve().name, depth_of(plan, log), log)), notes


def _rows(name: str, blocks: int, log: Log) -> list[LayerRow]:
    rows = []
    for place in log.places:
        layer = layer_of(place, blocks)
        norms = log.gradient(place)
        finite = norms[np.isfinite(norms)]
        for metric, value in (("gradient_norm", finite.mean()), ("gradient_norm_first", finite[0])):
            if layer is not None:
                rows.append(LayerRow(name, layer, blocks, metric, float(value), len(finite), module="block"))
    return rows
