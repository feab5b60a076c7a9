"""The profile on a terminal: one line a layer."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midblock.base import LayerTable
from midblock.base.quoting import printable
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
WITH_INTERVAL = {"cka_debiased", "change_own", "logit_agreement"}
WIDTH_WITH_INTERVALS = 104


def show_profile(table: LayerTable, console: Console) -> None:
    """Print the profile of every tuned model."""
    if not console.is_terminal:
        console.width = WIDTH_WITH_INTERVALS
    for model in table.models:
        if model != BASE:
            console.print(_profile(table, model, intervals=console.width >= WIDTH_WITH_INTERVALS))
    legend = (
        "CKA debiased; changes and ΔW relative to the base's norm; own change: by the block's own tuning; "
        "± half of the 95 % interval."
    )
    console.print(legend, style="dim")
    console.print()


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
    half = (row.high - row.low) / 2
    return f"{text} ±{half:.1g}" if interval and not math.isnan(half) else text
