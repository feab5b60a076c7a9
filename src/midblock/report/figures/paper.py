"""Drawing one panel for paper with matplotlib: curves, bars, intervals and references, in the page's colours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from midblock.base import replace_atomically
from midblock.metrics.metric import NULL, PRECISION_FLOOR, SPLIT_FLOOR
from midblock.report.page import palette
from midblock.report.page.chart import Panel
from midblock.report.read.reading import Run, describe
from midblock.runs.finished import BASE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

R = TypeVar("R", bound=Run)
WIDTH = 6.8  # inches: two columns of a paper
STYLE = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.labelsize": 8, "legend.fontsize": 7.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "axes.axisbelow": True, "legend.frameon": False, "pdf.fonttype": 42, "savefig.dpi": 200, "lines.linewidth": 1.4,
}  # fmt: skip
RANDOM, SEEDS = ".random", ".seeds"  # suffixes of steering's control and of the range over samples
REFERENCES = ("± split floor", "precision floor", "null, 95 %", "random directions", "range over")
UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}


@contextmanager
def paper_style() -> Iterator[None]:
    import matplotlib

    # a name in a script that the font lacks is a box in the legend, not a failed report
    style: dict[Any, Any] = STYLE
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_figures(run: R, folder: Path, makers: Mapping[str, Callable[[R], Figure | None]]) -> dict[str, Path]:
    """Write each figure that has data as PNG and PDF.

    Args:
        makers: figure name → a function that draws it, or gives None where the run has no data for it.

    Returns:
        Figure name → path of its PNG.
    """
    written = {}
    with paper_style():
        for name, make in makers.items():
            if (figure := make(run)) is not None:
                written[name] = save(figure, folder / name)
    return written


def save(figure: Figure, stem: Path) -> Path:
    """Write PNG and PDF, the same bytes for the same numbers; returns the PNG's path."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once is enough for both formats
    for kind, metadata in UNDATED.items():
        with replace_atomically(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    return stem.with_suffix(".png")


def empty(rows: int, columns: int, height: float, **keywords: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **keywords).flat)


def plain(text: str) -> str:
    """Text that matplotlib neither reads as mathematics nor leaves out of a legend."""
    text = " ".join(text.replace("\\", "/").replace("$", r"\$").split())
    text = text if len(text) <= 40 else text[:39] + "…"
    return f"\u200b{text}" if text.startswith("_") else text


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, above them, each entry once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        names = sorted(entries, key=lambda name: name.startswith(REFERENCES))  # models first
        figure.legend([entries[name] for name in names], names, loc="outside upper left", ncols=5, handlelength=1.6)


def depth_axis(ax: Axes, run: Run, last: str = "norm") -> None:
    """Ticks at the embedding, some blocks and the end, with the space of the whole depth."""
    wide = ax.get_position().width > 0.6
    every = next(n for n in (1, 2, 5, 10, 20, 50, 1000) if run.blocks / n <= (16 if wide else 5))
    inner = [block for block in range(0, run.blocks, every) if wide or every <= block <= run.blocks - every / 2]
    inner = [block for block in inner if run.blocks / 25 < run.blocks - block < run.blocks or run.blocks < 12]
    ax.set_xticks([-1, *inner, run.blocks], ["emb", *map(str, inner), last])
    ax.set_xlim(-1.7, run.blocks + 0.7)


def draw(ax: Axes, run: Run, panel: Panel, null: bool = False) -> None:
    """One panel: the models' curves or bars with their intervals, and the metric's references."""
    names = [name for name in run.table.models if len(run.table.curve(panel.metric, name, panel.module))]
    if null:
        _null(ax, run, panel)
    for place, name in enumerate(names):
        curve = curve_of(run, panel, panel.metric, name)
        colour = palette.on_paper(run.hue(name))
        if panel.mark == "bars":
            _bars(ax, curve, 0.8 / len(names), place - (len(names) - 1) / 2, colour, plain(name))
        else:
            _line(ax, run, curve, colour, plain(name))
            _seeds(ax, run, panel, name, colour)
        _random(ax, run, panel, name)
        if name == BASE:
            _split(ax, run, panel, curve)
    floor = curve_of(run, panel, panel.metric + PRECISION_FLOOR, BASE)
    ax.plot(
        floor.layer,
        floor.value,
        color="0.45",
        linewidth=0.9,
        linestyle="--",
        label="precision floor" if len(floor) else None,
    )
    if panel.zero:
        ax.axhline(0, color="0.6", linewidth=0.7, zorder=0.5)
    if panel.log and all(np.nanmin(np.asarray(line.get_ydata(), float), initial=1) > 0 for line in ax.lines):
        ax.set_yscale("log")
    _marks(ax, run, panel)
    entry = describe(panel.metric)
    ax.set_title(panel.title or (f"1 − {entry.title}" if panel.distance else entry.title))
    ax.set_ylabel("1 − value" if panel.distance else entry.unit)


def curve_of(run: Run, panel: Panel, metric: str, model: str) -> pd.DataFrame:
    """A curve with a row for every layer it spans, so that unmeasured layers are gaps."""
    curve = run.table.curve(metric, model, panel.module).drop_duplicates("layer").set_index("layer")
    curve = curve[["value", "low", "high"]]
    if len(curve):
        curve = curve.reindex(range(int(curve.index.min()), int(curve.index.max()) + 1))
    if panel.distance:
        curve = curve.assign(value=1 - curve.value, low=1 - curve.high, high=1 - curve.low)
    return curve.reset_index(names="layer")


def _line(ax: Axes, run: Run, curve: pd.DataFrame, colour: str, label: str) -> None:
    inner, end = curve[curve.layer < run.blocks], curve[curve.layer == run.blocks]
    alone = inner.value.notna() & inner.value.shift().isna() & inner.value.shift(-1).isna()
    ax.plot(inner.layer, inner.value, color=colour, label=label)
    ax.plot(inner.layer[alone], inner.value[alone], "o", color=colour, markersize=2.5)
    ax.fill_between(inner.layer, inner.low, inner.high, color=colour, alpha=0.16, linewidth=0)
    ax.vlines(end.layer, end.low, end.high, color=colour, alpha=0.35, linewidth=2)
    ax.plot(end.layer, end.value, "o", color=colour, markerfacecolor="white", markersize=3)


def _bars(ax: Axes, curve: pd.DataFrame, width: float, offset: float, colour: str, label: str) -> None:
    x = curve.layer + offset * width
    ax.bar(x, curve.value, width * 0.9, color=colour, label=label)
    ax.vlines(x, curve.low, curve.high, color="0.15", linewidth=0.6, alpha=0.7)


def _split(ax: Axes, run: Run, panel: Panel, curve: pd.DataFrame) -> None:
    floor = curve_of(run, panel, panel.metric + SPLIT_FLOOR, BASE).set_index("layer").value.reindex(curve.layer)
    for sign in (-1, 1) if floor.notna().any() else ():
        y = curve.value + sign * floor.to_numpy()
        ax.plot(curve.layer, y, color="0.5", linewidth=0.7, linestyle=":", label="± split floor")


def _random(ax: Axes, run: Run, panel: Panel, name: str) -> None:
    """Steering along random directions: what a direction must beat."""
    control = curve_of(run, panel, panel.metric + RANDOM, name)
    if len(control):
        label = "random directions of the same norm"
        ax.plot(control.layer, control.value, color="0.45", linewidth=0.9, linestyle=":", label=label)
        ax.fill_between(control.layer, control.low, control.high, color="0.5", alpha=0.15, linewidth=0)


def _seeds(ax: Axes, run: Run, panel: Panel, name: str, colour: str) -> None:
    """The smallest and the largest value over disjoint samples of prompts."""
    rows = run.table.curve(panel.metric + SEEDS, name, panel.module)
    ends = curve_of(run, panel, panel.metric + SEEDS, name)
    for place, column in enumerate(("low", "high") if len(rows) else ()):
        label = None if place else f"range over {int(rows.n.max())} samples"
        ax.plot(ends.layer, ends[column], color=colour, linewidth=0.6, linestyle=(0, (4, 2)), alpha=0.8, label=label)


def _marks(ax: Axes, run: Run, panel: Panel) -> None:
    """Depths that are pointed out, with their intervals, along the foot of the panel."""
    foot = ax.get_xaxis_transform()
    for place, mark in enumerate(panel.marks):
        colour, height = palette.on_paper(run.hue(mark.model)), 0.06 + 0.06 * place
        ax.plot(
            [mark.layer], [height], "^", color=colour, markersize=4, transform=foot, label=None if place else mark.name
        )
        if mark.low is not None and mark.high is not None:
            ax.plot([mark.low, mark.high], [height, height], color=colour, linewidth=1.6, alpha=0.5, transform=foot)


def _null(ax: Axes, run: Run, panel: Panel) -> None:
    """One envelope around every model's permutations."""
    rows = run.table.select(metric=panel.metric + NULL, module=panel.module).frame
    if rows.empty:
        return
    null = rows.groupby("layer").agg({"value": "mean", "low": "min", "high": "max"}).reset_index()
    if panel.distance:
        null = null.assign(value=1 - null.value, low=1 - null.high, high=1 - null.low)
    ax.plot(null.layer, null.value, color="0.6", linewidth=1)
    ax.fill_between(null.layer, null.low, null.high, color="0.6", alpha=0.35, linewidth=0, label="null, 95 %")
