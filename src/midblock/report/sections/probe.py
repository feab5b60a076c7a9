"""Early exit: how much of the answers each depth knows already, base and tuned models over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from midblock.report.page import parts
from midblock.report.page.chart import Chart, Mark, Panel, Section
from midblock.report.page.facts import Fact, Number, number
from midblock.report.read.joint import Joint, prompts_of
from midblock.runs.lenient import as_number, entries_of, mapping
from midblock.studies.evidence import emergence_of

INTRO = (
    "Each model is cut off after every block and answers through its own final norm and head. Where the curves rise, "
    "the answer becomes readable; where tuned and base part, tuning made a difference."
)


def probe_sections(run: Joint) -> list[Section]:
    """The section of all probes; none where they hold no numbers."""
    panels = probe_panels(run)
    if not panels:
        return []
    caption = "Teacher-forced on the answers' tokens. Bands are 95 % intervals over prompts."
    if any(panel.marks for panel in panels):
        caption += " Triangles mark the first block at which half of a model's own final accuracy is reached."
    chart = Chart(
        "early_exit", "What each depth can already answer", caption, panels=panels, wide=True, thirds=True,
        models=tuple(run.table.models),
    )  # fmt: skip
    found = prompts_of(run, "exit_")
    intro = f"{INTRO} Measured on {found}." if found else INTRO
    return [Section("probe", "Early exit", intro, (chart,), body=parts.tiles(run, probe_facts(run), even=True))]


def probe_panels(run: Joint) -> tuple[Panel, ...]:
    """Accuracy with the emergence depths, NLL (perplexity says the same), exact match where it was asked for."""
    panels = [
        Panel("exit_accuracy", title="Accuracy", height=200, marks=marks_of(run, "accuracy")),
        Panel("exit_nll", title="NLL", height=130, log=True),
        Panel("exit_exact_match", title="Exact match", height=130, marks=marks_of(run, "exact_match")),
    ]
    return tuple(panel for panel in panels if run.has(panel.metric))


def marks_of(run: Joint, measure: str) -> tuple[Mark, ...]:
    """Where each model reaches half of its final accuracy."""
    marks = []
    for entry in models_of(run):
        found = emergence_of(entry, measure)
        if found and type(layer := found.get("layer")) is int:
            ends = [found.get(key) if type(found.get(key)) is int else None for key in ("low", "high")]
            marks.append(Mark(str(entry.get("name")), layer, ends[0], ends[1], "half of the final accuracy"))
    return tuple(marks)


def models_of(run: Joint) -> list[Mapping[str, Any]]:
    """What the probes' summaries say of each model, each model once."""
    entries = [entry for member in run.runs for entry in entries_of(member.summary, "models")]
    return list({str(entry.get("name")): entry for entry in reversed(entries)}.values())[::-1]


def probe_facts(run: Joint) -> list[Fact]:
    """Tiles: where answers emerge, and what the whole models reach."""
    entries = {str(entry.get("name")): entry for entry in models_of(run)}
    emerging = [(name, _block(emergence_of(entry))) for name, entry in entries.items()]
    facts = [Fact("Answers emerge at", "first block with half of the final accuracy, 95 % interval", _known(emerging))]
    for key, label, note in (
        ("accuracy", "Final accuracy", "share of answer tokens, whole model"),
        ("nll", "Final NLL", "nats per answer token, whole model"),
        ("exact_match", "Final exact match", "share of answers, whole model"),
    ):
        values = [(name, _final(mapping(entry, "final").get(key))) for name, entry in entries.items()]
        facts.append(Fact(label, note, _known(values)))
    return [fact for fact in facts if fact.answers]


def _known(answers: list[tuple[str, Number | None]]) -> tuple[tuple[str, Number], ...]:
    return tuple((name, answer) for name, answer in answers if answer is not None)


def _block(found: Mapping[str, Any]) -> Number | None:
    if type(found.get("layer")) is not int:
        return None
    ends = [found.get("low"), found.get("high")]
    place = "embedding" if found["layer"] < 0 else f"block {found['layer']}"
    return Number(place, f"[{ends[0]}, {ends[1]}]" if all(type(end) is int for end in ends) else "")


def _final(found: Any) -> Number | None:
    """An estimate with its interval, or a number alone."""
    estimate = found if isinstance(found, dict) else {"value": found}
    value, low, high = (as_number(estimate.get(key)) for key in ("value", "low", "high"))
    interval = f"[{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return Number(number(value), interval) if math.isfinite(value) else None
