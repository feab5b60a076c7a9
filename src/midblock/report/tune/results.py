"""Tuning runs on a joint page: what was tuned, and what the loss did."""

from __future__ import annotations

import math

import numpy as np

from midblock.report.page import palette
from midblock.report.page.amounts import count, duration
from midblock.report.page.chart import Section
from midblock.report.page.depth_strip import StripRow, depth_strip
from midblock.report.page.facts import number
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.tuning import TuneRun
from midblock.runs.lenient import as_number, mapping
from midblock.tuning.place.methods import METHODS

INTRO = "Each run's tuned blocks, and its loss per target token over the first and the last tenth of its steps."


def tune_sections(run: Joint) -> list[Section]:
    """One card with a row for each tuning run; a single line each, as their own pages tell the rest."""
    labels = dict(zip(map(id, run.runs), labels_of(run.runs), strict=True))
    rows = [row_of(member, labels[id(member)], run) for member in run.runs if isinstance(member, TuneRun)]
    if not rows:
        return []
    card = f'<div class="tile card">{depth_strip(run.blocks, rows)}</div>'
    return [Section("tuned", "Tuning runs", INTRO, (), body=card)]


def row_of(run: TuneRun, label: str, joint: Joint) -> StripRow:
    """The run's blocks and its result in words."""
    blocks = run.plan.get("blocks")
    blocks = sorted(block for block in blocks if type(block) is int) if isinstance(blocks, list) else []
    name = next(iter(run.tuned), "")
    return StripRow(label, spans_of(blocks), said_of(run), palette.look(joint.hue(name)))


def said_of(run: TuneRun) -> str:
    """Method, loss, size and time, as far as the files tell."""
    nll = mapping(run.summary, "nll") or mapping(run.summary, "loss")
    first, last = as_number(nll.get("first")), as_number(nll.get("last"))
    words = [method_of(run)]
    words += [f"NLL {number(first)} → {number(last)}"] if math.isfinite(first) and math.isfinite(last) else []
    if math.isfinite(as_number(run.plan.get("trained_parameters"))):
        words.append(f"{count(run.plan['trained_parameters'])} parameters")
    seconds = [as_number(mapping(mapping(run.record, "phases"), name).get("seconds")) for name in ("train",)]
    words += [duration(np.nansum(seconds))] if np.isfinite(seconds).any() else []
    words += [] if run.done else ["not finished"]
    return " · ".join(word for word in words if word)


def method_of(run: TuneRun) -> str:
    """The method in words; empty where the files do not tell, or tell of one that is not known here."""
    known = METHODS.get(str(run.plan.get("method")))
    return known.title if known else ""


def spans_of(blocks: list[int]) -> tuple[tuple[int, int], ...]:
    """Runs of neighbouring blocks."""
    spans: list[tuple[int, int]] = []
    for block in blocks:
        if spans and spans[-1][1] + 1 == block:
            spans[-1] = (spans[-1][0], block)
        else:
            spans.append((block, block))
    return tuple(spans)
