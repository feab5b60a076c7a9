"""The nouns of a page: sections hold charts, charts hold panels; the scripts draw what these describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Mark:
    """A depth that a panel points out for one model: a triangle on the axis, its interval as a line.

    Attributes:
        layer: the block, `low` and `high` the ends of its 95 % interval (None where not known).
        name: what it is, for the legend and the pointer.
    """

    model: str
    layer: int
    low: int | None
    high: int | None
    name: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a metric by depth.

    Attributes:
        mark: "line" or "bars".
        distance: draw 1 − value (for similarities).
        depth: which of the summary's depth entries annotates it: "own", "weight", "representation" or "".
        zero: the axis includes zero, with a rule there.
        log: a logarithmic axis, where all values are above zero.
        marks: depths to point out.
        beside: another metric, drawn thin beside it.
    """

    metric: str
    module: str = "residual"
    mark: str = "line"
    distance: bool = False
    title: str = ""
    height: int = 170
    depth: str = ""
    zero: bool = False
    log: bool = False
    marks: tuple[Mark, ...] = ()
    beside: str = ""


@dataclass(frozen=True)
class StepLine:
    """One quantity of the training log.

    Attributes:
        key: its name in `log.jsonl`.
        look: class of its colour ("m0" ink, "m1" … the hues).
        mark: "smooth" draws the measured values pale under a smoothed curve, "thin" a plain line, "dots" single values.
    """

    key: str
    name: str
    look: str
    mark: str = "smooth"


@dataclass(frozen=True)
class StepPanel:
    """One pair of axes: quantities of the training log by optimizer step."""

    title: str
    unit: str
    lines: tuple[StepLine, ...]
    height: int = 170


@dataclass(frozen=True)
class Chart:
    """One figure of the page, drawn by the scripts from its panels, steps or metrics.

    Attributes:
        kind: "lines" (panels by depth), "heat" (metrics, layer by module), "steps" (by optimizer step),
            "step_heat" (gradient, block by step), "plan" (which blocks and projections are trained), "spans" (swapped
            blocks), "matrix" (correlations of curves), "forest" (the strongest of them, with intervals),
            "estimates" (numbers with intervals in rows) or "plane" (points with intervals both ways).
        rows: of a heat map, each a label and its modules.
        modes: scales the reader may switch between, the first one shown: "zoom" on the curves, "full" with the null,
            "distance" (1 − value, logarithmic).
        wide: takes the whole row.
        thirds: mark the lower, middle and upper third.
        models: draw these models only; () for every one that has the numbers.
        data: what the figure is drawn from where that is not the table's series.
    """

    id: str
    title: str
    caption: str
    kind: str = "lines"
    panels: tuple[Panel, ...] = ()
    steps: tuple[StepPanel, ...] = ()
    metrics: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    modes: tuple[str, ...] = ()
    wide: bool = False
    thirds: bool = False
    models: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None

    def as_spec(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Section:
    """A heading, what the reader should look for, and its figures (behind a click when `folded`).

    Attributes:
        body: HTML below the figures; whoever makes it has escaped what came from the run.
    """

    id: str
    title: str
    intro: str
    charts: tuple[Chart, ...]
    folded: bool = False
    body: str = ""
