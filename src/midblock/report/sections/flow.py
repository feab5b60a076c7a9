"""Gradient flow: where in depth the loss pulls over the first steps, how steadily, and what moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from midblock.report.page import parts
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.facts import Fact, Number, number
from midblock.report.page.modules import heat_rows
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.read.training_log import Log
from midblock.report.read.tuning import TuneRun, depth_of
from midblock.report.tune.data import gradient_data
from midblock.runs.lenient import as_number, mapping

if TYPE_CHECKING:
    import pandas as pd

HEAT = ("gradient_norm", "gradient_agreement", "gradient_snr", "delta_rel", "gradient_norm_first")
MOVEMENT = ["delta_rel"]  # 0 there means: not trained
FEWEST = 3  # steps; fewer give no interval
LARGE = 1.2  # times the median: what has no interval stands out from there on, as in the run's headline
INTRO = (
    "A short tuning run, watched: how hard the loss pulls on each block, whether different batches pull the same way, "
    "and how far the weights then move."
)


def flow_sections(run: Joint) -> list[Section]:
    """The section of all flow runs; none where they hold no numbers."""
    charts = []
    panels = flow_panels(run)
    models = tuple(run.tuned)
    if panels:
        caption, band = _whiskers(run)
        charts.append(
            Chart(
                "flow", "Pull and movement by depth", f"Whole blocks. {caption}", panels=panels, wide=True,
                thirds=True, models=models, data={"band": band},
            )
        )  # fmt: skip
    heat = [metric for metric in HEAT if len(set(run.present.get(metric, ())) - {"residual", "block"}) > 1]
    if heat:
        rows = tuple(heat_rows(module for metric in heat for module in run.present[metric]))
        caption = "Choose what is shown; point at a cell for its number. Weights that were not trained are blank."
        title = "Pull and movement, layer by module"
        charts.append(
            Chart("flow_heatmap", title, caption, "heat", metrics=tuple(heat), rows=rows, wide=True, models=models,
                  data={"blank": MOVEMENT})
        )  # fmt: skip
    if logged_run(run) is not None:
        caption = "Gradient norm by block and step; point at a cell for its number."
        charts.append(Chart("gradient_map", "Gradient by block and step", caption, "step_heat", wide=True))
    if not charts:
        return []
    return [Section("flow", "Gradient flow", INTRO, tuple(charts), body=parts.tiles(run, flow_facts(run), even=True))]


def _whiskers(run: Joint) -> tuple[str, str]:
    """What whiskers and bands are: a sentence, and a name for the legend."""
    steps = min((as_number(member.summary.get("steps")) for member in run.runs), default=math.nan)
    if steps < FEWEST:
        said = f"Fewer than {FEWEST} steps give no 95 % interval: whiskers and bands only show how far they lie apart."
        return said, "between steps"
    return "Whiskers and bands are 95 % intervals over steps.", "95 % interval"


def flow_panels(run: Run) -> tuple[Panel, ...]:
    """Pull, agreement and movement of whole blocks."""
    panels = [
        Panel("gradient_norm", "block", "bars", title="Gradient norm", height=120),
        Panel("gradient_agreement", "block", title="Agreement between batches", height=120, zero=True),
        Panel("delta_rel", "block", "bars", title="Weight change", height=100),
    ]
    return tuple(panel for panel in panels if run.has(panel.metric, "block"))


def logged_run(run: Joint) -> TuneRun | None:
    """The one flow run with its log, as the map of gradients wants it; a page has room for one map."""
    if len(run.runs) != 1:
        return None
    member = run.runs[0]
    log = Log.read(member.folder / "log.jsonl")
    if not log.places:
        return None
    return TuneRun(member.table, member.record, member.summary, member.folder, depth_of({}, log), log=log)


def flow_data(run: Joint) -> dict[str, Any]:
    """What the script draws the map of gradients from."""
    logged = logged_run(run)
    return {"gradient": gradient_data(logged)} if logged else {}


def flow_facts(run: Joint) -> list[Fact]:
    """Tiles: the loss, and the blocks where each quantity is largest, where it differs with depth."""
    facts: list[tuple[str, str, list[tuple[str, Number | None]]]] = [
        ("Loss", "first → last, nats per token", []),
        ("Pulled hardest", "largest gradient norm of a block", []),
        ("Pulled most steadily", "batches agree most", []),
        ("Moved furthest", "largest relative weight change", []),
    ]
    for member in run.runs:
        name = next(iter(member.tuned), member.folder.name)
        loss = [as_number(mapping(member.summary, "loss").get(key)) for key in ("first", "last")]
        steps = as_number(member.summary.get("steps"))
        aside = f"in {steps:g} steps" if math.isfinite(steps) else ""
        said = Number(f"{number(loss[0])} → {number(loss[1])}", aside) if all(map(math.isfinite, loss)) else None
        facts[0][2].append((name, said))
        peak = mapping(member.summary, "peak")
        for fact, key in zip(facts[1:], ("gradient_norm", "gradient_agreement", "delta_rel"), strict=True):
            fact[2].append((name, _peak(run, name, key, peak.get(key))))
    found = [Fact(label, note, tuple((n, a) for n, a in answers if a)) for label, note, answers in facts]
    return [fact for fact in found if fact.answers]


def _peak(run: Run, name: str, metric: str, block: Any) -> Number | None:
    if type(block) is not int:
        return None
    curve = run.table.curve(metric, name, "block")
    curve = curve[(curve.value != 0) & (curve.layer >= 0) & (curve.layer < run.blocks)]
    at = curve[curve.layer == block]
    if not len(at) or not _stands_out(curve, at):
        return None
    value, low, high = (float(at[column].iloc[0]) for column in ("value", "low", "high"))
    interval = f" [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return Number(f"block {block}", number(value) + interval)


def _stands_out(curve: pd.DataFrame, at: pd.DataFrame) -> bool:
    """Whether a peak's interval lies above those of half of the blocks; without intervals, well above the median."""
    if len(curve) < 2:
        return False
    if math.isfinite(at.low.iloc[0]):
        return bool(2 * (curve.high < at.low.iloc[0]).sum() >= len(curve))
    return bool(at.value.iloc[0] >= LARGE * curve.value.median())
