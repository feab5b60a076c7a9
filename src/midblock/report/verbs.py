"""What each verb's runs bring to a page: SECTIONS is the one table of it, STEPS the order of the story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from midblock.report.chart import Section
from midblock.report.flow_section import flow_sections
from midblock.report.joint_run import Joint, labels_of
from midblock.report.merge_section import merge_sections
from midblock.report.probe_section import probe_sections
from midblock.report.sections import sections_of
from midblock.report.steer_section import steer_sections
from midblock.report.swap_section import swap_section
from midblock.report.tune_results import tune_sections

SHOWN = ("similarity", "weights")  # of an analysis; the rest waits behind a click on a page that has more to tell


@dataclass(frozen=True)
class Step:
    """One of the three steps from what changed to what to do.

    Attributes:
        verbs: whose runs tell about it.
        missing: what stands there when none of them is among the runs.
    """

    id: str
    title: str
    verbs: tuple[str, ...]
    missing: str


def analysis_sections(run: Joint) -> list[Section]:
    """An analysis's own figures, drawn for its own models; the less telling ones folded into one section."""
    names = tuple(run.table.models)
    found = sections_of(run) if len(run.table) else []
    found = [replace(part, charts=tuple(replace(chart, models=names) for chart in part.charts)) for part in found]
    shown = [part for part in found if part.id in SHOWN]
    charts = tuple(chart for part in found if part.id not in SHOWN for chart in part.charts)
    titles = ", ".join(part.title.lower() for part in found if part.id not in SHOWN)
    rest = Section("more", "More of the analysis", f"Also measured: {titles}.", charts, folded=True)
    return [*shown, rest] if charts else shown


def swap_sections(run: Joint) -> list[Section]:
    """A section for each swap run; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        section = swap_section(member)
        if section is None:
            continue
        if place:
            charts = tuple(replace(chart, id=f"{chart.id}-{place + 1}") for chart in section.charts)
            section = replace(section, id=f"{section.id}-{place + 1}", charts=charts)
        found.append(replace(section, title=f"{section.title} · {label}") if len(run.runs) > 1 else section)
    return found


SECTIONS: Mapping[str, Callable[[Joint], list[Section]]] = {
    "analyze": analysis_sections,
    "flow": flow_sections,
    "probe": probe_sections,
    "swap": swap_sections,
    "steer": steer_sections,
    "tune": tune_sections,
    "merge": merge_sections,
}

STEPS = (
    Step(
        "changed", "What changed", ("analyze", "flow"),
        "No analysis and no gradient flow is among the runs.",
    ),
    Step(
        "matters", "Where it matters", ("probe", "swap", "steer"),
        "No early exit, swap or steering is among the runs: a change that is seen need not be a change that counts.",
    ),
    Step("do", "What to do", ("tune", "merge"), ""),
)  # fmt: skip
