"""Merged checkpoints: how much of the tuned model each block took."""

from __future__ import annotations

from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.modules import heat_rows
from midblock.report.read.joint import Joint

INTRO = "W = (1 − α)·base + α·tuned, block by block: 0 is the base's weight, 1 the tuned model's."


def merge_sections(run: Joint) -> list[Section]:
    """The section of all merges; none where they hold no numbers."""
    charts = []
    models = tuple(run.tuned)
    if run.has("merge_alpha", "block"):
        panel = Panel("merge_alpha", "block", "bars", title="α of each block", height=130, zero=True)
        caption = "The ends are the embedding, and the final norm and head."
        charts.append(
            Chart("merge", "Share of the tuned model", caption, panels=(panel,), wide=True, thirds=True, models=models)
        )
    overridden = [module for module in run.present.get("merge_alpha", ()) if module not in ("block", "residual")]
    if overridden:
        caption = "Modules that have an α of their own; point at a cell for its number."
        rows = tuple(heat_rows(overridden))
        charts.append(
            Chart("merge_modules", "α by module", caption, "heat", metrics=("merge_alpha",), rows=rows, wide=True,
                  models=models)
        )  # fmt: skip
    return [Section("merge", "Merge", INTRO, tuple(charts))] if charts else []
