"""The profile on a terminal: one line a layer, the reading above, the report's path below."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from midblock.base import LayerTable
from midblock.metrics import METRICS, summarize

SHOWN = (
    ("cka_debiased", "residual"),
    ("cosine_similarity", "residual"),
    ("change_intensity_relative", "residual"),
    ("change_increment", "residual"),
    ("logit_agreement", "residual"),
    ("delta_rel", "attention"),
    ("delta_rel", "mlp"),
)


def print_profile(table: LayerTable, folder: Path, page: Path, *, as_json: bool) -> None:
    """Print the profile of every tuned model, or the summary as JSON."""
    summary = summarize(table)
    if as_json:
        print(json.dumps({**summary, "folder": str(folder), "report": str(page)}, indent=2))
        return
    console = Console(file=sys.stdout)
    for model in summary["models"]:
        console.print(_profile(table, model["name"]), markup=False)
    console.print(summary["headline"], style="bold", markup=False, highlight=False)
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)


def _profile(table: LayerTable, model: str) -> Table:
    shown = [(metric, module) for metric, module in SHOWN if len(table.curve(metric, model, module))]
    out = Table(title=f"{model} against base", title_justify="left")
    out.add_column("layer", justify="right")
    columns = []
    for metric, module in shown:
        title = METRICS[metric].title + ("" if module == "residual" else f", {module}")
        out.add_column(title, justify="right")
        columns.append(table.curve(metric, model, module).set_index("layer"))
    for layer in sorted({int(layer) for column in columns for layer in column.index}):
        cells = [_cell(column.loc[layer]) if layer in column.index else "" for column in columns]
        out.add_row(_layer_name(layer, table.blocks), *cells)
    return out


def _layer_name(layer: int, blocks: int) -> str:
    return {-1: "embedding", blocks: "final norm"}.get(layer, str(layer))


def _cell(row: object) -> str:
    value, low, high = (float(getattr(row, name)) for name in ("value", "low", "high"))
    text = f"{value:.4g}" if abs(value) < 0.9 else f"{value:.4f}"
    return text if math.isnan(low) else f"{text} ±{(high - low) / 2:.1g}"
