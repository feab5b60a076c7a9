"""The profile on a terminal: one line a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midblock.analysis.detectable import in_words
from midblock.base import LayerTable
from midblock.base.quoting import printable
from midblock.base.states import AS_NULL, AS_RANDOM, BELOW_FLOOR, NOT_DEFINED, STATES, TOO_FEW
from midblock.cli.fitting import print_whole
from midblock.metrics.headline_curve import headline_curve
from midblock.runs.finished import BASE

SHOWN = (
    ("CKA", "cka_debiased", "residual"),
    ("cosine", "cosine_similarity", "residual"),
    ("change", "change_intensity_relative", "residual"),
    ("own change", "change_own", "residual"),
    ("added here", "change_increment", "residual"),
    ("same token", "logit_agreement", "residual"),
    ("ΔW attn", "delta_rel", "attention"),
    ("ΔW mlp", "delta_rel", "mlp"),
)
MARKS = {BELOW_FLOOR: "↓", AS_RANDOM: "≈", AS_NULL: "∅", TOO_FEW: "?", NOT_DEFINED: "–"}  # of a number that says less
WITH_INTERVAL = {"cka_debiased", "change_own", "logit_agreement"}
WIDTH_WITH_INTERVALS = 124


def show_profile(table: LayerTable, console: Console) -> None:
    """Print the profile of every tuned model."""
    if not console.is_terminal:
        console.width = WIDTH_WITH_INTERVALS
    for model in table.models:
        if model != BASE:
            print_whole(_profile(table, model, intervals=console.width >= WIDTH_WITH_INTERVALS), console)
    legend = (
        "CKA debiased; changes and ΔW relative to the base's norm; own change: by the block's own tuning; "
        "± half of the 95 % interval."
    )
    console.print(legend + _marks_used(table), style="dim")
    console.print()


def detectable_lines(summary: Mapping[str, Any]) -> list[str]:
    """The smallest differences that a run could have detected, a line for each model."""
    models = summary["models"]
    found = [(entry["name"], in_words(entry.get("detectable", {}))) for entry in models]
    return [f"{name}: {words}" if len(models) > 1 else words for name, words in found if words]


def _marks_used(table: LayerTable) -> str:
    """What the marks in the profiles mean, of those that stand there."""
    shown = [headline_curve(table, metric, model, module) for model in table.models for _, metric, module in SHOWN]
    states = {state for curve in shown for state in curve.state}
    return "".join(f" {mark} {STATES[state]}." for state, mark in MARKS.items() if state in states)


def _profile(table: LayerTable, model: str, *, intervals: bool) -> Table:
    out = Table(title=Text(printable(f"{model} against base")), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    out.add_column("layer", justify="right", no_wrap=True, min_width=10)
    columns = []
    for title, metric, module in SHOWN:
        curve = headline_curve(table, metric, model, module)
        if len(curve):
            out.add_column(title, justify="right", no_wrap=True)
            columns.append((curve.set_index("layer"), intervals and metric in WITH_INTERVAL))
    for layer in sorted({int(layer) for curve, _ in columns for layer in curve.index}):
        cells = [_cell(curve.loc[layer], interval) if layer in curve.index else "" for curve, interval in columns]
        out.add_row(_layer_name(layer, table.blocks), *cells)
    return out


def _layer_name(layer: int, blocks: int) -> str:
    return {-1: "embedding", blocks: "final norm"}.get(layer, str(layer))


def _cell(row: Any, interval: bool) -> str:
    text = f"{row.value:.4f}" if abs(row.value) >= 0.001 or row.value == 0 else f"{row.value:.1e}"
    text += MARKS.get(row.state, "")
    half = (row.high - row.low) / 2
    return f"{text} ±{half:.1g}" if interval and not math.isnan(half) else text
