"""The page's figures for papers: PNG and PDF, from the same numbers. FIGURES is the one table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from midblock.report.figures.paper import depth_axis, draw, empty, legend, plain
from midblock.report.page import palette
from midblock.report.page.chart import Panel
from midblock.report.page.modules import heat_rows
from midblock.report.read.reading import Run, describe
from midblock.report.sections.experts import CURVES
from midblock.report.sections.profile import INFORMATION, hero_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def change_by_depth(run: Run) -> Figure | None:
    hero = hero_of(run)
    if hero is None:
        return None
    figure, axes = empty(len(hero.panels), 1, 0.7 + 1.35 * len(hero.panels), sharex=True)
    for ax, panel in zip(axes, hero.panels, strict=True):
        ax.axvspan(run.blocks / 3 - 0.5, 2 * run.blocks / 3 - 0.5, color="0.5", alpha=0.08, linewidth=0)
        draw(ax, run, panel)
        ax.set_ylim(bottom=0 if panel.mark == "bars" else None)
    depth_axis(axes[-1], run)
    axes[-1].set_xlabel("block, from embedding to output (middle third shaded)")
    legend(figure, axes)
    return figure


def similarity(run: Run) -> Figure | None:
    """Debiased CKA on its own scale, as a distance on the null's scale, and the biased estimate with its null."""
    views = [Panel("cka_debiased"), Panel("cka_debiased", distance=True), Panel("cka")]
    views = [panel for panel in views if run.has(panel.metric)]
    if not views:
        return None
    figure, axes = empty(1, len(views), 2.3)
    for ax, panel in zip(axes, views, strict=True):
        draw(ax, run, panel, null=panel.distance or panel.metric == "cka")
        if panel.distance and any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in ax.lines):
            ax.set_yscale("log", nonpositive="mask")
        depth_axis(ax, run)
        ax.set_xlabel("block")
    legend(figure, axes)
    return figure


def information(run: Run) -> Figure | None:
    return _many(run, INFORMATION, 3)


def predictions(run: Run) -> Figure | None:
    return _many(run, ("logit_agreement", "logit_kl"), 2)


def experts(run: Run) -> Figure | None:
    return _many(run, CURVES, 3)


def _many(run: Run, metrics: tuple[str, ...], columns: int) -> Figure | None:
    found = [metric for metric in metrics if run.has(metric)]
    if not found:
        return None
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    figure, axes = empty(rows, columns, 0.5 + 1.7 * rows)
    for ax, metric in zip(axes, found, strict=False):
        draw(ax, run, Panel(metric))
        depth_axis(ax, run)
        ax.set_xlabel("block")
    for ax in axes[len(found) :]:
        ax.remove()
    legend(figure, axes[: len(found)])
    return figure


def weights_heatmap(run: Run) -> Figure | None:
    """The relative weight change (or the plain one), layer by projection, a map for each tuned model on one scale."""
    from matplotlib.colors import LinearSegmentedColormap

    metric = next((m for m in ("delta_rel", "delta_fro") if set(run.present.get(m, ())) - {"residual"}), None)
    if metric is None:
        return None
    rows = heat_rows(run.present[metric])
    grids = {name: _cells(run, metric, name, rows) for name in run.tuned}
    grids = {name: grid for name, grid in grids.items() if np.isfinite(grid).any()}
    figure, axes = empty(len(grids), 1, 0.5 + len(grids) * (0.4 + 0.15 * len(rows)), sharex=True)
    colours = LinearSegmentedColormap.from_list("heat", [light for light, _ in palette.HEAT])
    top = max(np.nanmax(grid) for grid in grids.values()) or 1.0
    for ax, (name, grid) in zip(axes, grids.items(), strict=True):
        edges = np.arange(-1.5, run.blocks + 1), np.arange(-0.5, len(rows))
        image = ax.pcolormesh(*edges, grid, cmap=colours, vmin=0, vmax=top, edgecolors="white", linewidth=0.4)
        ax.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=6.5)
        ax.invert_yaxis()
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.set_title(f"{describe(metric).title}: {plain(name)}")
    depth_axis(axes[-1], run, "head")
    axes[-1].set_xlabel("block, from embedding to head")
    figure.colorbar(image, ax=axes, label=describe(metric).unit, pad=0.01, aspect=30 if len(grids) > 1 else 15)
    return figure


def _cells(run: Run, metric: str, model: str, rows: list[tuple[str, tuple[str, ...]]]) -> np.ndarray:
    grid = np.full((len(rows), run.blocks + 2), np.nan)
    frame = run.table.select(metric=metric, model=model).frame
    for row, (_, modules) in enumerate(rows):
        for layer, value in frame[frame["module"].isin(modules)][["layer", "value"]].itertuples(index=False):
            grid[row, layer + 1] = value
    return grid


FIGURES: Mapping[str, Callable[[Run], Figure | None]] = {
    "change_by_depth": change_by_depth,
    "similarity": similarity,
    "information": information,
    "experts": experts,
    "weights_heatmap": weights_heatmap,
    "predictions": predictions,
}
