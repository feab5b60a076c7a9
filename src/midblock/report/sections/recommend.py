"""A recommendation: the curves that were asked, with their change points and the plan; of a repair, its front."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from midblock.report.page.chart import Section
from midblock.report.page.depth_strip import StripRow, depth_strip
from midblock.report.page.facts import number
from midblock.report.page.parts import unbroken
from midblock.report.page.still import Dot, level_plot, trade_plot
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.sections.evidence_rows import span_text
from midblock.runs.lenient import as_number, entries_of

LOOKS = {"by depth": "m1", "linear": "m2", "uniform": "m3"}
PLAN = "m1"
AXES = ("gain", "forgotten")
INTROS = {
    "runs": "From runs that were measured before.",
    "pilot": "From a pilot: a few steps of uniform LoRA, looked at on held-out examples.",
    "repair": "From blends of the base and the tuned model, chosen on validation sets and tested on others.",
}
READ = (
    "Lines are levels between change points, dashes where a new one begins; the recommended blocks are shaded. A curve "
    "says where if noise would seldom show as much and resamples place it in much the same blocks."
)
COLUMNS = ("alphas", "gain, nats per token", "forgotten, nats per token", "")


def recommend_sections(run: Joint) -> list[Section]:
    """A section for each recommendation."""
    found = [_section(member, place) for place, member in enumerate(run.runs)]
    return [section for section in found if section is not None]


def blocks_of(run: Run) -> list[int]:
    """The recommended blocks, those that the model has."""
    found = run.summary.get("blocks")
    blocks = found if isinstance(found, list) else []
    return sorted({block for block in blocks if type(block) is int and 0 <= block < run.blocks})


def _section(run: Run, place: int) -> Section | None:
    blocks = blocks_of(run)
    if not blocks:
        return None
    door = str(run.summary.get("door") or "")
    body = _strip(run, blocks) + "".join(_curves(run, blocks)) + _alphas(run, blocks) + _front(run) + _tested(run)
    name = "recommend" if place == 0 else f"recommend-{place + 1}"
    intro = f"{INTROS.get(door, '')} {READ if entries_of(run.summary, 'evidence') else ''}".strip()
    return Section(name, "Recommended blocks", intro, (), body=body)


def _strip(run: Run, blocks: Sequence[int]) -> str:
    spans = tuple(_runs(blocks))
    said = "P1's 20–80 %, as nothing else is said" if run.summary.get("fallback") is True else _sure(run)
    rows = [StripRow("Plan", spans, said, PLAN, strong=True)]
    for entry in entries_of(run.summary, "evidence"):
        window = _window(entry, run.blocks)
        why = str(entry.get("why_not") or "")
        told = f"{span_text(window)} stand out" if window else "nothing stands out"
        rows.append(
            StripRow(
                str(entry.get("title") or ""),
                (window,) if window else (),
                f"{told}; not counted: {why}" if why else told,
            )
        )
    reasons = run.summary.get("reasons")
    lines = "".join(f"<p>{escape(unbroken(str(each)))}</p>" for each in (reasons if isinstance(reasons, list) else []))
    behind = (blocks[0], blocks[-1]) if len(spans) == 1 else None
    strip = depth_strip(run.blocks, rows, behind)
    return f'<div class="tile card"><h3>The plan, and what points at it</h3>{strip}{lines}</div>'


def _sure(run: Run) -> str:
    confidence = as_number(run.summary.get("confidence"))
    return f"confidence {100 * confidence:.0f} %" if math.isfinite(confidence) else ""


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of neighbouring blocks."""
    start = blocks[0]
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if following != block + 1:
            yield start, block
            start = following if following is not None else block


def _window(entry: Mapping[str, Any], total: int) -> tuple[int, int] | None:
    found = entry.get("blocks")
    if not isinstance(found, list) or len(found) != 2 or not all(type(block) is int for block in found):
        return None
    return (found[0], found[1]) if 0 <= found[0] <= found[1] < total else None


def _curves(run: Run, blocks: Sequence[int]) -> Iterator[str]:
    for entry in entries_of(run.summary, "evidence"):
        scores = entry.get("scores")
        if not isinstance(scores, list) or len(scores) != run.blocks:
            continue
        cuts = entry.get("change_points")
        cuts = [cut for cut in cuts if type(cut) is int] if isinstance(cuts, list) else []
        title = f"{entry.get('title') or 'Curve'} by block ({entry.get('about') or ''})"
        plot = level_plot([as_number(score) for score in scores], sorted(cuts), blocks, PLAN, title)
        yield f'<div class="tile card"><h3>{escape(title)}</h3>{plot}</div>'


def _alphas(run: Run, blocks: Sequence[int]) -> str:
    """α of each block; "" where there is none."""
    alphas = run.summary.get("alphas")
    if not isinstance(alphas, list) or len(alphas) != run.blocks:
        return ""
    title = "α of each block: 0 is the base's weight, 1 the tuned model's"
    plot = level_plot([as_number(alpha) for alpha in alphas], (), blocks, PLAN, title, levels=False)
    return f'<div class="tile card"><h3>{title}</h3>{plot}</div>'


def _front(run: Run) -> str:
    """Gain against forgetting of every blend on the validation sets, the chosen ones ringed."""
    points = entries_of(run.summary, "front")
    chosen = [(entry.get("name"), entry.get("alphas")) for entry in entries_of(run.summary, "tested")]
    dots = [_dot(point, chosen) for point in points]
    plot = trade_plot(
        dots, "gain, nats per token", "forgotten, nats per token", "Gain against forgetting, validation sets"
    )
    if not plot:
        return ""
    legend = " ".join(f'<span class="dot {look}"></span>{escape(name)}' for name, look in LOOKS.items())
    title = "Gain against forgetting of blends, on the validation sets"
    note = "Right and below is better. Ringed: what each family of alphas chose."
    return f'<div class="tile card"><h3>{title}</h3>{plot}<p>{legend}. {note}</p></div>'


def _dot(point: Mapping[str, Any], chosen: Sequence[tuple[Any, Any]]) -> Dot:
    family, gain, forgotten = str(point.get("family") or ""), *(as_number(point.get(key)) for key in AXES)
    name = f"{family}: gain {number(gain)}, forgotten {number(forgotten)}"
    return Dot(gain, forgotten, LOOKS.get(family, "m0"), name, (family, point.get("alphas")) in chosen)


def _tested(run: Run) -> str:
    rows = []
    for entry in entries_of(run.summary, "tested"):
        cells = [str(entry.get("name") or ""), *(_estimate(entry, key) for key in AXES)]
        cells.append("recommended" if entry.get("chosen") is True else "")
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS)
    return (
        '<div class="tile card"><h3>On test sets that nothing was chosen on</h3>'
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p>Against the base; brackets are 95 % intervals over examples.</p></div>"
    )


def _estimate(entry: Mapping[str, Any], key: str) -> str:
    value, low, high = (as_number(entry.get(name)) for name in (key, f"{key}_low", f"{key}_high"))
    return number(value) + (f" [{number(low)}, {number(high)}]" if low == low and high == high else "")
