"""The page of a tuning run: what was trained, how the loss went, where the gradient was, what moved, what it cost."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from midblock.report.page import parts
from midblock.report.page.amounts import count, duration, size
from midblock.report.page.bars import Bar, bar_list
from midblock.report.page.shell import document
from midblock.report.read.tuning import TuneRun
from midblock.report.tune.charts import plan_chart, speed_chart, step_keys, tune_sections
from midblock.report.tune.data import tune_data
from midblock.report.tune.provenance import tune_provenance
from midblock.report.tune.results import method_of
from midblock.report.tune.tiles import estimated, peak, tune_tiles
from midblock.runs.lenient import as_number, mapping

COST = ("cost", "Cost")


def tune_page(run: TuneRun, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the loss for readers without JavaScript."""
    hero, speed, sections = plan_chart(run), speed_chart(run), tune_sections(run)
    charts = [chart for chart in (hero, *(c for s in sections for c in s.charts), speed) if chart]
    cost = _cost(run) + (f'<div class="grid">{parts.figure(speed)}</div>' if speed else "")
    main = [_lead(run), parts.noscript(still, "Loss by step"), parts.figure(hero) if hero else "", tune_tiles(run)]
    main += [parts.section(section) for section in sections]
    main += [f'<section id="cost"><h2>Cost</h2>{cost}</section>'] if cost else []
    main += [parts.numbers() if len(run.table) else "", parts.made(tune_provenance(run))]
    links = [(section.id, section.title) for section in sections] + ([COST] if cost else [])
    links += [parts.NUMBERS] if len(run.table) else []
    data = tune_data(run, {chart.id: chart.as_spec() for chart in charts}, step_keys(charts))
    return document(f"tuning {run.base}", [*links, parts.MADE], "".join(main), data)


def headline_of(run: TuneRun) -> str:
    """The summary's; before it is written, what the plan says."""
    if run.summary.get("headline"):
        return str(run.summary["headline"])
    method = method_of(run)
    if method and run.plan.get("layers"):
        return f"Blocks {run.plan['layers']} of {run.blocks} by {method}".replace("-", "–")
    return "A tuning run"


def _lead(run: TuneRun) -> str:
    data = mapping(run.record, "data").get("reference")
    words = [f"tuning {run.base}", f"{run.blocks} blocks", *([str(data)] if data else [])]
    eyebrow, headline = escape(" · ".join(words)), escape(parts.unbroken(headline_of(run)))
    inside = f'<p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>{_unfinished(run)}'
    return f'<section id="top" class="lead">{inside}</section>'


def _unfinished(run: TuneRun) -> str:
    """A page of half a run says so."""
    if run.done:
        return ""
    status = escape(str(run.record.get("status") or "unknown"))
    logged = f"its log ends at step {run.log.steps[-1]:,}" if len(run.log) else "nothing is logged yet"
    text = f"This run is not finished (status: {status}); {logged}. What follows is what stands in its folder so far."
    return f'<p class="unfinished" role="note">{text}</p>'


def _cost(run: TuneRun) -> str:
    cards = [_memory(run), _time(run)]
    return f'<div class="grid cards">{"".join(cards)}</div>' if any(cards) else ""


def _memory(run: TuneRun) -> str:
    """What the plan expected, part by part, against the measured peak, on one scale."""
    expected, measured = estimated(run), peak(run)
    if not expected and not math.isfinite(measured):
        return ""
    bars = [Bar(key.replace("_", " "), value, size(value)) for key, value in expected.items() if value]
    if expected:
        total = sum(expected.values())
        bars.append(Bar("estimated in all", total, size(total), strong=True))
    if math.isfinite(measured):
        bars.append(Bar("measured peak", measured, size(measured), strong=True))
    disk = as_number(mapping(run.plan, "memory").get("prefix_cache_disk"))
    note = f"and {size(disk)} on disk for the frozen blocks' outputs" if disk > 0 else ""
    return _card("Memory", bar_list(bars), note)


def _time(run: TuneRun) -> str:
    phases = {name: as_number(phase.get("seconds")) for name, phase in mapping(run.record, "phases").items()
              if isinstance(phase, dict)}  # fmt: skip
    bars = [Bar(name, seconds, duration(seconds)) for name, seconds in phases.items() if math.isfinite(seconds)]
    if not bars:
        return ""
    total = sum(bar.value for bar in bars)
    speed = as_number(run.summary.get("tokens_per_second"))
    note = f"{count(round(speed))} tokens/s while training" if math.isfinite(speed) else ""
    return _card("Time", bar_list([*bars, Bar("in all", total, duration(total), strong=True)]), note)


def _card(title: str, body: str, note: str) -> str:
    return f'<div class="tile"><h3>{escape(title)}</h3>{body}<p>{escape(note)}</p></div>'
