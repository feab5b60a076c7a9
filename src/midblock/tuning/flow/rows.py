"""A flow run's numbers: the table's rows, and what they come to in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from midblock.base import Estimate, LayerRow
from midblock.metrics.uncertainty import bootstrap_means
from midblock.tuning.flow.agreement import agreement, signal_to_noise
from midblock.tuning.flow.sketch import GradientTrace, LayerPart
from midblock.tuning.place.methods import METHODS

NEAR = 0.1  # share of the range of a curve, below its peak, that still counts as the peak
LARGE = 1.2  # times the median
PEAKS = ("gradient_norm", "gradient_agreement", "delta_rel")


def trace_rows(trace: GradientTrace, name: str, blocks: int, seed: int) -> list[LayerRow]:
    """Gradient norm, agreement and signal-to-noise by layer and part.

    Args:
        name: the model's name in the table.
        blocks: L.
        seed: of the bootstrap.
    """
    grams = dict(sorted(trace.grams().items()))
    norms = torch.stack([gram.diagonal().sqrt() for gram in grams.values()], dim=1)
    means = bootstrap_means(norms, seed)
    rows = []
    for (place, gram), first, mean in zip(grams.items(), norms[0].tolist(), means, strict=True):
        found: dict[str, Estimate | None] = {
            "gradient_norm": mean,
            "gradient_norm_first": Estimate(first, float("nan"), float("nan"), 1),
            "gradient_agreement": agreement(gram),
            "gradient_snr": signal_to_noise(gram),
        }
        for metric, estimate in found.items():
            if estimate is not None:
                rows.append(_row(name, place, blocks, metric, estimate))
    return rows


def _row(name: str, place: LayerPart, blocks: int, metric: str, found: Estimate) -> LayerRow:
    layer, part = place
    return LayerRow(name, layer, blocks, metric, found.value, found.n, found.low, found.high, module=part)


def summarize_flow(rows: Sequence[LayerRow], lines: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """What `summary.json` says.

    Args:
        rows: of the table.
        lines: of `log.jsonl`, one a step.
    """
    curves = {metric: _curve(rows, metric) for metric in PEAKS}
    how = f"({len(lines)} step{'s' * (len(lines) > 1)}, {METHODS[method].title})"
    return {
        "headline": f"{_sentence(curves)} {how}.",
        "models": [],
        "method": method,
        "steps": len(lines),
        "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
        "peak": {metric: _peak(curve).layer if curve else None for metric, curve in curves.items()},
    }


def _curve(rows: Sequence[LayerRow], metric: str) -> list[LayerRow]:
    """A metric of the whole blocks, bottom first; of blocks that did not move, nothing."""
    found = [row for row in rows if row.metric == metric and row.module == "block" and 0 <= row.layer < row.blocks]
    return sorted((row for row in found if row.metric != "delta_rel" or row.value > 0), key=lambda row: row.layer)


def _peak(curve: Sequence[LayerRow]) -> LayerRow:
    return max(curve, key=lambda row: row.value)


def _sentence(curves: Mapping[str, list[LayerRow]]) -> str:
    norm, agree, moved = (curves[metric] for metric in PEAKS)
    if not norm:
        return "No block was trained, so gradients have no depth"
    if len(norm) == 1:
        said = f", and those of different steps agree by {agree[0].value:.2f}" if agree else ""
        return f"Block {norm[0].layer} alone was trained: its gradient's norm is {norm[0].value:.3g}{said}"
    said = f"Gradients are largest in {_around(norm)}"
    if agree and _differ(agree):
        said += f" and agree most in {_around(agree)}"
    elif agree:
        said += "; how well they agree does not clearly differ with depth"
    if not moved:
        return said
    return f"{said}; weights moved {f'most in {_around(moved)}' if _stands_out(moved) else 'alike at all depths'}"


def _differ(curve: Sequence[LayerRow]) -> bool:
    """Whether the peak's interval lies above those of at least half of the blocks."""
    peak = _peak(curve)
    return 2 * sum(row.high < peak.low for row in curve) >= len(curve)


def _stands_out(curve: Sequence[LayerRow]) -> bool:
    """Whether the peak is well above the middle of the curve: movement has no interval to judge by."""
    return _peak(curve).value >= LARGE * median(row.value for row in curve)


def _around(curve: Sequence[LayerRow]) -> str:
    """The neighbouring blocks that are as good as the peak."""
    peak = _peak(curve)
    least = peak.value - NEAR * (peak.value - min(row.value for row in curve))
    first = last = curve.index(peak)
    while first > 0 and curve[first - 1].value >= least:
        first -= 1
    while last + 1 < len(curve) and curve[last + 1].value >= least:
        last += 1
    low, high = curve[first].layer, curve[last].layer
    return f"block {low}" if low == high else f"blocks {low}–{high}"
