"""Swapped blocks and correlated curves for papers, from the same numbers as on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from midblock.metrics.correlation import Correlations, correlate
from midblock.report.figures.paper import empty, legend, plain
from midblock.report.page import palette
from midblock.report.read.reading import Run
from midblock.report.sections.correlation import most_telling
from midblock.report.sections.swap import HEADS, MEASURES, title_of
from midblock.studies.swapped import Swaps, swaps_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"base_head": palette.on_paper(0), "tuned_head": palette.on_paper(1)}
MOST = 30  # curves that paper has room for, each with its name


def swap(run: Run) -> Figure | None:
    """A row for each host, a column for each of the first two measures."""
    swaps = swaps_of(run)
    if swaps is None:
        return None
    measures = [key for key in ("accuracy", "nll") if key in swaps.measures] or swaps.measures[:1]
    hosts = swaps.hosts
    figure, axes = empty(len(hosts), len(measures), 0.6 + 1.7 * len(hosts), sharex=True, sharey="col")
    for place, ax in enumerate(axes):
        host, measure = hosts[place // len(measures)], measures[place % len(measures)]
        _spans(ax, swaps, host, measure)
        ax.set_title(plain(title_of(swaps, host)))
        ax.set_ylabel("NLL, nats per token" if measure == "nll" else MEASURES[measure][0])
        ax.set_xlim(min(cell.first for cell in swaps.cells) - 0.7, run.blocks - 0.3)
    for ax in axes[-len(measures) :]:
        ax.set_xlabel("block (−1: the embedding)" if any(cell.first < 0 for cell in swaps.cells) else "block")
    legend(figure, axes)
    return figure


def _spans(ax: Axes, swaps: Swaps, host: str, measure: str) -> None:
    for cell in (cell for cell in swaps.cells if cell.host == host and measure in cell.levels):
        level = cell.levels[measure].value
        ends = cell.added[0] - 0.45, cell.added[1] + 0.45
        colour = COLOURS[cell.head]
        ax.fill_between(ends, level.low, level.high, color=colour, alpha=0.16, linewidth=0)
        ax.plot(ends, (level.value, level.value), color=colour, label=HEADS[cell.head], solid_capstyle="butt",
                linewidth=2.4 if cell.head == "base_head" else 1.2)  # fmt: skip
    for head, colour in COLOURS.items():
        for body, look, name in ((host, "-", "host, nothing swapped"), (swaps.donor(host), "--", "donor itself")):
            known = swaps.reference(body, head, measure)
            if np.isfinite(known):
                ax.axhline(known, color=colour, linestyle=look, linewidth=0.7, alpha=0.8, label=name)


def correlations(run: Run, found: Correlations | None = None) -> Figure | None:
    """The matrix of Pearson's r in the page's order; cells whose interval includes 0 are pale.

    Of many curves it shows one of each cluster and those that go with the weight change most.

    Args:
        found: the table's correlations, where they are known already.
    """
    from matplotlib.colors import LinearSegmentedColormap

    found = correlate(run.table) if found is None else found
    if found.frame.empty or not np.isfinite(found.frame.pearson).any():
        return None
    r, clear = _square(found)
    kept = most_telling(found, MOST)
    r, clear = r[np.ix_(kept, kept)], clear[np.ix_(kept, kept)]
    order = [found.order[row] for row in kept]
    figure, (ax,) = empty(1, 1, 6.2)
    colours = LinearSegmentedColormap.from_list("r", [palette.on_paper(2), "white", palette.on_paper(1)])
    ax.pcolormesh(np.where(clear, np.nan, r), cmap=colours, vmin=-1, vmax=1, alpha=0.3)
    image = ax.pcolormesh(np.where(clear, r, np.nan), cmap=colours, vmin=-1, vmax=1)
    names = [plain(found.curves[curve]) for curve in order]
    places = np.arange(len(names)) + 0.5
    ax.set_xticks(places, names, rotation=90, fontsize=6.5)
    ax.set_yticks(places, names, fontsize=6.5)
    ax.tick_params(length=0)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.grid(visible=False)
    _frames(ax, [found.clusters[curve] for curve in order])
    if len(order) < len(found.order):
        ax.set_title(f"{len(order)} of {len(found.order)} curves", fontsize=7)
    figure.colorbar(image, ax=ax, label="Pearson r (pale: 95 % interval includes 0)", shrink=0.6, pad=0.01)
    return figure


def _square(found: Correlations) -> tuple[Float[np.ndarray, "n n"], np.ndarray]:
    """r with NaN on the diagonal, and where its interval excludes 0, both in the order of the page."""
    count = len(found.curves)
    place = {found.curves[curve]: row for row, curve in enumerate(found.order)}
    r, clear = np.full((count, count), np.nan), np.zeros((count, count), dtype=bool)
    for pair in found.frame.to_dict("records"):
        for i, j in ((place[pair["a"]], place[pair["b"]]), (place[pair["b"]], place[pair["a"]])):
            r[i, j] = pair["pearson"]
            clear[i, j] = pair["pearson_low"] > 0 or pair["pearson_high"] < 0
    return r, clear


def _frames(ax: Axes, clusters: list[int]) -> None:
    for cluster in dict.fromkeys(clusters):
        low, size = clusters.index(cluster), clusters.count(cluster)
        if size > 1:
            high = low + size
            ax.plot([low, high, high, low, low], [low, low, high, high, low], color=palette.on_paper(0), linewidth=0.9)
