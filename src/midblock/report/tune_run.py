"""What the folder of a tuning run holds: beside the usual files a plan and a log. A killed run may lack any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.report.reading import BASE, Run, read_json, read_text
from midblock.report.training_log import Log


@dataclass(frozen=True)
class TuneRun(Run):
    """A tuning run, finished or not.

    Attributes:
        plan: `plan.json`, or {}.
        log: the lines of `log.jsonl`, as far as they are whole.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=lambda: Log(()))

    @classmethod
    def read(cls, folder: Path | str) -> TuneRun:
        """Read a run folder; only the folder itself must be there."""
        folder = Path(folder)
        plan: dict[str, Any] = read_json(folder / "plan.json", {})
        log = Log.parse(read_text(folder / "log.jsonl"))
        return cls(
            table=_table(folder, plan, log),
            record=read_json(folder / "run.json", {}),
            summary=read_json(folder / "summary.json", {}),
            samples=read_json(folder / "samples.json", []),
            config=read_text(folder / "config.yaml"),
            folder=folder,
            plan=plan,
            log=log,
        )

    @cached_property
    def blocks(self) -> int:
        return self.table.blocks if (self.table.frame.layer >= 0).any() else depth_of(self.plan, self.log)


def read_run(folder: Path | str) -> Run:
    """Read a run folder of either kind, a `TuneRun` where `run.json` says so.

    Raises:
        MidblockError: there is no such folder, or it is of an analysis and holds no layer table.
    """
    record: dict[str, Any] = read_json(Path(folder) / "run.json", {})
    return TuneRun.read(folder) if record.get("verb") == "tune" else Run.read(folder)


def depth_of(plan: Mapping[str, Any], log: Log) -> int:
    """L by the plan; without one, as deep as the log's gradients reach."""
    total = plan.get("total_blocks")
    if type(total) is int and total > 0:
        return total
    return max([int(place) for place in log.places if place.isdecimal()], default=0) + 1


def layer_of(place: str, blocks: int) -> int | None:
    """The layer a place of the log stands for: −1 the embedding, L the head; None if it is not in the model."""
    layer = {"embedding": -1, "head": blocks}.get(place, int(place) if place.isdecimal() else None)
    return layer if layer is not None and layer <= blocks else None


def _table(folder: Path, plan: Mapping[str, Any], log: Log) -> LayerTable:
    try:
        return LayerTable.read(folder)
    except MidblockError:  # it is written at the end; until then the log knows the gradients by block
        return LayerTable.from_rows(_rows(folder.resolve().name, depth_of(plan, log), log))


def _rows(name: str, blocks: int, log: Log) -> list[LayerRow]:
    name = f"{name} (tuned)" if name == BASE else name
    rows = []
    for place in log.places:
        layer = layer_of(place, blocks)
        norms = log.gradient(place)
        finite = norms[np.isfinite(norms)]
        for metric, value in (("gradient_norm", finite.mean()), ("gradient_norm_first", finite[0])):
            if layer is not None:
                rows.append(LayerRow(name, layer, blocks, metric, float(value), len(finite), module="block"))
    return rows
