"""A suggestion of blocks to tune in words, and the strip that shows it above what other runs point at."""

from __future__ import annotations

from midblock.report.page import palette
from midblock.report.page.depth_strip import StripRow, depth_strip
from midblock.report.read.joint import Joint
from midblock.report.sections.evidence_rows import span_text
from midblock.report.verbs import PAGES
from midblock.studies.evidence import Finding, Suggestion, width


def suggestion_strip(run: Joint, found: Suggestion) -> str:
    """HTML of the suggested blocks and of each finding about them."""
    said = f"{span_text(found.window)} ({width(found.window)} of {run.blocks}) hold half of the change inside blocks"
    look = palette.look(run.hue(found.model))
    rows = [StripRow("Suggested", (found.window,), said, look, strong=True), *finding_rows(run, found)]
    return depth_strip(run.blocks, rows, found.window)


def finding_rows(run: Joint, found: Suggestion) -> list[StripRow]:
    """A row for each finding, in the words of its verb and with where it lies; coloured as what it is about."""
    rows = []
    for finding in found.findings:
        word = PAGES[finding.verb].evidence
        if word is not None:
            row = word(finding, palette.look(run.hue(finding.about)))
            rows.append(StripRow(row.label, row.spans, row.said + _where(found, finding), row.look))
    return rows


def _where(found: Suggestion, finding: Finding) -> str:
    if not finding.clear:
        return ""
    inside, whole = found.inside(finding), width(finding.span)
    if not inside:
        return "; outside"
    return "; inside" if inside == whole else f"; {inside} of {whole} blocks inside"


def agreeing(found: Suggestion) -> str:
    """How many of the other views point into the suggested blocks, in words; "" where there is none."""
    inside, total = sum(found.counted), len(found.counted)
    if not total:
        return ""
    if total == 1:
        return "The one other view points there too." if inside else "The one other view points elsewhere."
    return f"{inside} of {total} other views point into these blocks."


def disagreeing(found: Suggestion) -> str:
    """That the swap points elsewhere, in words; "" where it does not."""
    if found.rival is None:
        return ""
    return f"Rule and swap disagree: swapped in, {span_text(found.rival)} do most; tune both and compare."
