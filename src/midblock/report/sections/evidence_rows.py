"""Where a run points, in words and as a row of the strip along depth; a function for each kind of run."""

from __future__ import annotations

import math

from midblock.base import Estimate
from midblock.report.page.depth_strip import StripRow
from midblock.report.page.facts import number
from midblock.studies.evidence import Finding, Span


def span_text(span: Span) -> str:
    first, last = span
    if last < 0:
        return "the embedding"
    return f"blocks {first}–{last}" if last > first else f"block {first}"


def swap_row(found: Finding, look: str) -> StripRow:
    said = f"put into the base, {span_text(found.span)} lower its NLL most"
    return StripRow("Swap", (found.span,), f"{said}: {_change(found.amount)}" if found.amount else said, look)


def _change(change: Estimate) -> str:
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return number(change.value)
    doubt = ", not clear of zero, so not counted" if change.high >= 0 else ""
    return f"{number(change.value)} [{number(change.low)}, {number(change.high)}]{doubt}"


def exit_row(found: Finding, look: str) -> StripRow:
    said = f"answers emerge at {span_text(found.span)}"
    said += "" if found.in_base is None else f", in the base at {span_text((found.in_base, found.in_base))}"
    said += "" if found.clear else "; not clearly elsewhere than in the base, so not counted"
    return StripRow("Early exit", (found.span,), said, look)


def steer_row(found: Finding, look: str) -> StripRow:
    said = f"one block's push does most at block {found.span[0]}"
    said += f": {number(found.amount.value)} nats against random" if found.amount else ""
    said += "" if found.clear else ", not clearly more than those, so not counted"
    return StripRow("Steering", (found.span,), said, look)


def flow_row(found: Finding, look: str) -> StripRow:
    return StripRow("Gradient flow", (found.span,), f"the loss pulls hardest on block {found.span[0]}", look)
