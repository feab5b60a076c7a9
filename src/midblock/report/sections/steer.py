"""Steering: what adding the tuned model's direction to the base does, block by block, and the texts side by side."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.facts import number
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.runs.lenient import as_number, entries_of, mapping, read_json

KINDS = {"mean_shift": "the mean difference of the states", "pca": "the leading directions of the states' difference"}
OPEN = 3  # texts shown at once, the rest behind a click
COLUMNS = ("α", "NLL, steered", "change", "change, random", "gap closed")


def steer_sections(run: Joint) -> list[Section]:
    """A section for all steering runs: one figure, then each run's strengths and texts."""
    panels = steer_panels(run)
    body = "".join(_strengths(member) + _texts(member, run) for member in run.runs)
    if not panels and not body:
        return []
    scanned = run.has("steer_nll_change")
    title = "Steering one block at a time" if scanned else "What is added at each block"
    caption = _caption(run) if scanned else "Blocks were not steered alone; this is the direction itself."
    chart = Chart(
        "steering", title, caption, panels=panels, wide=True, thirds=True,
        models=tuple(run.table.models),
    )  # fmt: skip
    return [Section("steer", "Steering", _intro(run), (chart,) if panels else (), body=body)]


def steer_panels(run: Joint) -> tuple[Panel, ...]:
    """The effect, the size of what is added, and how much of the change it stands for."""
    panels = [
        Panel("steer_nll_change", title="Change of NLL", height=190, zero=True),
        Panel("steer_norm_relative", title="Size of the direction", mark="bars", height=90),
        Panel("steer_explained", title="Share of the change it explains", mark="bars", height=90),
    ]
    return tuple(panel for panel in panels if run.has(panel.metric))


def _intro(run: Joint) -> str:
    kinds = {KINDS[kind] for member in run.runs if (kind := str(member.summary.get("kind"))) in KINDS}
    what = kinds.pop() if len(kinds) == 1 else "a direction"
    return (
        f"To the base's residual stream is added {what} between tuned and base. Below zero the base finds the tuned "
        "model's answers likelier: a constant push imitates a part of what tuning did to them."
    )


def _caption(run: Joint) -> str:
    alphas = {as_number(member.summary.get("scan_alpha")) for member in run.runs}
    alpha = alphas.pop() if len(alphas) == 1 else float("nan")
    strength = f"at α = {number(alpha)}" if alpha == alpha else "at one strength"
    caption = f"Each block steered alone, {strength}. Bands are 95 % intervals over prompts."
    if "steer_nll_change.random" in run.present:
        caption += (
            " Dotted: random directions of the same norm, bands from the smallest to the largest draw; what lies "
            "clearly below them is due to the direction."
        )
    return caption


def _strengths(run: Run) -> str:
    rows = []
    for entry in entries_of(run.summary, "alphas"):
        cells = [number(as_number(entry.get("alpha")))]
        cells += [_estimate(mapping(entry, key)) for key in ("steered", "change", "random_change")]
        rows.append([*cells, _closed(entry)])
    if not rows:
        return ""
    chosen = str(run.summary.get("blocks") or "")
    blocks = (
        f"block {chosen}" if chosen.isdecimal() else f"blocks {chosen} together".replace("-", "–").replace("  ", " ")
    )
    ends = [number(as_number(mapping(run.summary, key).get("value"))) for key in ("base", "tuned_nll")]
    note = (
        f"NLL of the tuned model's answers in nats per token; base {ends[0]}, tuned {ends[1]}. Brackets are 95 % "
        "intervals over prompts; those of random directions run from the smallest to the largest draw."
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="tile card"><h3>By strength, {escape(blocks)}</h3><div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div><p>{escape(note)}</p></div>"
    )


def _estimate(found: Mapping[str, Any]) -> str:
    value, low, high = (as_number(found.get(key)) for key in ("value", "low", "high"))
    return number(value) + (f" [{number(low)}, {number(high)}]" if low == low and high == high else "")


def _closed(entry: Mapping[str, Any]) -> str:
    """Share of the gap between base and tuned, in percent, with its interval."""
    closed, ends = as_number(entry.get("gap_closed")), entry.get("gap_closed_interval")
    if closed != closed:
        return "–"
    low, high = map(as_number, ends) if isinstance(ends, list) and len(ends) == 2 else (float("nan"),) * 2
    return f"{_percent(closed)} %" + (f" [{_percent(low)}, {_percent(high)}]" if low == low and high == high else "")


def _percent(share: float) -> str:
    return str(round(100 * share)).replace("-", "−")


def _texts(run: Run, joint: Joint) -> str:
    """Prompt by prompt, what base, tuned and steered models wrote."""
    entries: list[Any] = read_json(run.folder / "texts.json", [])
    tuned = str(run.summary.get("tuned") or "tuned")
    cards = [_text(entry, tuned, joint.hue(tuned)) for entry in entries if isinstance(entry, dict)]
    if not cards:
        return ""
    more = "".join(cards[OPEN:])
    rest = f"<details><summary>{len(cards) - OPEN} more</summary>{more}</details>" if more else ""
    return f'<div class="texts"><h3>What the models write</h3>{"".join(cards[:OPEN])}{rest}</div>'


def _text(entry: Mapping[str, Any], tuned: str, hue: int) -> str:
    steered = mapping(entry, "steered")
    strengths = sorted(steered, key=lambda alpha: _strength(alpha))
    columns = _column("base", "m0", entry.get("base")) + _column(tuned, f"m{(hue - 1) % 6 + 1}", entry.get("tuned"))
    pushed = "".join(_column(f"base steered, α = {alpha}", "push", steered[alpha]) for alpha in strengths)
    columns += f'<div class="pushed">{pushed}</div>' if pushed else ""
    prompt = f'<p class="prompt">{escape(str(entry.get("prompt") or ""))}</p>'
    return f'<article class="text">{prompt}<div class="answers">{columns}</div></article>'


def _strength(alpha: str) -> float:
    try:
        return float(alpha)
    except ValueError:
        return float("inf")


def _column(name: str, look: str, text: Any) -> str:
    title = f'<h4><span class="dot {look}"></span>{escape(name)}</h4>'
    return f'<div>{title}<p tabindex="0">{escape(str(text if text is not None else "–"))}</p></div>'
