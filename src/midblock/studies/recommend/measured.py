"""Curves of finished runs: what an analysis, a swap and a flow give each part of the depth.

Prompts are not kept in run folders, so what is resampled of an analysis and a swap are their intervals; of a flow it is
its steps, which its log holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from midblock.analysis.verdict import Verdict
from midblock.base import Estimate, LayerTable
from midblock.metrics.headline_curve import headline_curve
from midblock.runs.finished import BASE, Finished
from midblock.runs.lenient import as_number
from midblock.studies.recommend.curve import Curve, over_intervals, over_units
from midblock.studies.swapped import SEPARATE, Swapped, swaps_of
from midblock.tuning.loop.log_file import LogFile
from midblock.tuning.place.auto import CURVES as OWN

FEWEST = 3  # parts of the depth that can be told apart
TITLES = {"change_own": "Own change", "delta_rel": "Weight change"}


def curves_of(run: Finished, model: str, seed: int = 0) -> list[Curve]:
    """The curves of one run about a tuned model; those of a flow are about its own training, whatever the model."""
    made = CURVES[run.verb](run, model, seed) if run.verb in CURVES else None
    return [made] if made is not None and len(made.values) >= FEWEST else []


def own_curve(run: Finished, model: str, seed: int = 0) -> Curve | None:
    """What each block's own tuning changes; of a run without that, how far its weights moved."""
    return own_curve_of(run.table, model, seed)


def own_curve_of(table: LayerTable, model: str, seed: int = 0) -> Curve | None:
    """As `own_curve`, of a table."""
    for metric, module in OWN:
        curve = headline_curve(table, metric, model, module)
        curve = curve[(curve.layer >= 0) & (curve.layer < table.blocks) & np.isfinite(curve.value)]
        curve = curve[curve.dataset == curve.dataset.iloc[0]] if len(curve) else curve
        if len(curve) and bool((curve.value > 0).any()):
            return _by_layer("analyze", TITLES[metric], model, curve, seed, doubt=Verdict.of(table, model).why_not)
    return None


def swap_curve(run: Finished, model: str, seed: int = 0) -> Curve | None:
    """How far each part of the tuned model, put into the base, lowers its NLL; read by the base's head if measured."""
    swaps = swaps_of(run)
    if swaps is None or run.summary.get("tuned") != model or swaps.mode not in SEPARATE:
        return None
    cells = [cell for cell in swaps.cells if cell.host == BASE and cell.first >= 0 and _known(cell)]
    cells = [cell for cell in cells if cell.head == "base_head"] or cells
    return gain_curve(model, {cell.added: cell.change("nll") for cell in cells}, seed)


def gain_curve(model: str, changes: Mapping[tuple[int, int], Estimate], seed: int = 0) -> Curve | None:
    """A swap's curve from what each part changed of the base's NLL, below 0 where it helps."""
    if not changes:
        return None
    spans = tuple(sorted(changes))
    gains = [Estimate(-changes[s].value, -changes[s].high, -changes[s].low, changes[s].n) for s in spans]
    draws, resampled = over_intervals(gains, seed)
    values = np.array([gain.value for gain in gains])
    return Curve("swap", "Swap gain", model, spans, values, draws, resampled, intervenes=True, gain=True)


def flow_curve(run: Finished, model: str, seed: int = 0) -> Curve | None:
    """How hard the loss pulls on each block over the first steps."""
    about = next(iter(run.tuned), BASE)
    curve = run.table.curve("gradient_norm", about, "block")
    curve = curve[(curve.layer >= 0) & (curve.layer < run.blocks) & np.isfinite(curve.value)]
    if not len(curve) or not bool((curve.value > 0).any()):
        return None
    steps = _steps(run, curve.layer.tolist())
    draws = over_units(steps, np.ones(len(steps)), seed)
    found = _by_layer("flow", "Gradient norm", about, curve, seed)
    if draws is None:
        return found
    return Curve(found.verb, found.title, about, found.spans, found.values, draws, "steps")


def _steps(run: Finished, blocks: Sequence[int]) -> np.ndarray:
    """The gradient norm of each block in each step of the log; no row where the log does not tell."""
    lines = [line.get("gradient_by_block") for line in LogFile(run.folder / "log.jsonl").read()]
    rows = [[as_number(line.get(str(block))) for block in blocks] for line in lines if isinstance(line, Mapping)]
    return np.array([row for row in rows if all(map(math.isfinite, row))], float).reshape(-1, len(blocks))


def _by_layer(verb: str, title: str, about: str, curve: Any, seed: int, doubt: str = "") -> Curve:
    columns = (curve[name].tolist() for name in ("value", "low", "high", "n"))
    estimates = [Estimate(float(v), float(low), float(high), int(n)) for v, low, high, n in zip(*columns, strict=True)]
    draws, resampled = over_intervals(estimates, seed)
    spans = tuple((int(layer), int(layer)) for layer in curve.layer)
    values = curve.value.to_numpy(float)
    return Curve(verb, title, about, spans, values, draws, resampled, doubt=doubt)


def _known(cell: Swapped) -> bool:
    return math.isfinite(cell.change("nll").value)


CURVES: Mapping[str, Callable[[Finished, str, int], Curve | None]] = {
    "analyze": own_curve,
    "swap": swap_curve,
    "flow": flow_curve,
}
