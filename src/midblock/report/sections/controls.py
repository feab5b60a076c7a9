"""Controls of an analysis: where the real change does something that no other change of its size does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from midblock.analysis.layers_in_words import layers_in_words
from midblock.metrics.metric import EQUAL_STEP
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.parts import unbroken
from midblock.report.read.reading import Run, describe
from midblock.runs.lenient import mapping

INTRO = (
    "A change of the same size is expected to do something too. Random changes have the norm of each tensor's own "
    "(bands in the figures: where another draw would lie); under equal steps every block that moved takes the same "
    "share of its norm."
)
LEANS = {
    "persists": "the lean of own change to one end persists under equal steps",
    "vanishes": "the lean of own change to one end vanishes under equal steps: it was one of step sizes",
    "turns": "own change leans to the other end under equal steps",
    "no lean": "own change leans to neither end",
}
PARTS = (("above", "more"), ("below", "less"), ("not_different", "not different"))


def controls_section(run: Run) -> Section:
    """A table of where tuning differs from random changes, and own change under equal steps; empty without controls."""
    rows = [row for model in run.tuned for row in _rows(run, model)]
    head = "<tr><th>model</th><th>metric</th>" + "".join(f"<th>{word}</th>" for _, word in PARTS) + "</tr>"
    body = f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    said = [f"{model}: {LEANS[lean]}." for model in run.tuned if (lean := _lean(run, model)) in LEANS]
    words = "".join(f"<p>{escape(unbroken(sentence))}</p>" for sentence in said)
    charts = tuple(_equal_step(run))
    return Section("controls", "Controls", INTRO if rows or charts else "", charts, body=(body if rows else "") + words)


def _controls(run: Run, model: str) -> Mapping[str, Any]:
    return mapping(run.summary_of(model), "controls")


def _lean(run: Run, model: str) -> str:
    return str(mapping(_controls(run, model), "equal_step").get("lean"))


def _rows(run: Run, model: str) -> Sequence[str]:
    found = []
    random = mapping(_controls(run, model), "random")
    for metric in random:
        parts = mapping(random, metric)
        cells = "".join(f"<td>{escape(_layers(parts.get(key)))}</td>" for key, _ in PARTS)
        found.append(f"<tr><td>{escape(model)}</td><td>{escape(describe(metric).title)}</td>{cells}</tr>")
    return found


def _layers(value: Any) -> str:
    layers = [layer for layer in value if type(layer) is int] if isinstance(value, list) else []
    return layers_in_words(layers) if layers else "–"


def _equal_step(run: Run) -> Sequence[Chart]:
    metric = run.told("change_own")
    if not run.has(metric + EQUAL_STEP):
        return ()
    panel = Panel(metric + EQUAL_STEP, mark="bars", title="Change by the block's own tuning, equal steps")
    title, caption = (
        "Own change under equal steps",
        "What tuning would do, had every block that moved taken the same step.",
    )
    return (Chart("equal_step", title, caption, panels=(panel,)),)
