"""How the numbers were made: run facts, models, data, versions, timing, caveats and definitions, all of it escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from midblock.report.read.reading import Run, describe
from midblock.runs.lenient import mapping

DATA_FACTS = {
    "reference": "Reference", "split": "Split", "layout": "Layout", "content_hash": "Content hash",
    "num_samples": "Prompts, pooled", "num_token_samples": "Prompts, token level", "max_length": "Longest, tokens",
    "region": "Region", "truncated": "Cut at the longest", "too_short": "Too short, left out",
}  # fmt: skip
RUN_FACTS = {"verb": "Verb", "status": "Status", "started": "Started", "seed": "Seed"}
MODEL_FACTS = ("name", "role", "reference", "parameters", "dtype", "weight_hash")


def provenance_of(run: Run, data_facts: Mapping[str, str] = DATA_FACTS, details: str = "") -> str:
    """HTML of the last section.

    Args:
        data_facts: which entries of the data are told, and what they are called.
        details: HTML of what only this kind of run has to tell.
    """
    return "".join(
        (
            _notes(run.record.get("notes")),
            _pre("Command", run.record.get("command"), opened=True),
            _models(run.record.get("models")),
            facts("Run", _picked(run.record, RUN_FACTS)),
            facts("Data", _picked(mapping(run.record, "data"), data_facts)),
            _pre("Template", mapping(run.record, "data").get("template")),
            _samples(run),
            details,
            _pre("Configuration", run.config),
            facts("Versions", {k: v for k, v in mapping(run.record, "versions").items() if v}),
            facts("Platform", mapping(run.record, "platform")),
            _phases(mapping(run.record, "phases")),
            _definitions(run),
        )
    )


def _picked(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {title: values[key] for key, title in names.items() if values.get(key) is not None}


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    return escape(str(value))


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A heading and what is known under it, name by name; nothing where nothing is known."""
    if not values:
        return ""
    rows = "".join(f"<div><dt>{escape(str(key))}</dt><dd>{_text(value)}</dd></div>" for key, value in values.items())
    return f'<h3>{escape(title)}</h3><dl class="facts">{rows}</dl>'


def _pre(title: str, text: Any, opened: bool = False) -> str:
    if not text:
        return ""
    body = f'<pre tabindex="0">{escape(str(text))}</pre>'
    return f"<h3>{title}</h3>{body}" if opened else f"<details><summary>{title}</summary>{body}</details>"


def _notes(notes: Any) -> str:
    if not isinstance(notes, list) or not notes:
        return ""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f'<h3>Notes and caveats</h3><ul class="notes">{items}</ul>'


def grid(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table that scrolls sideways where it must."""
    titles = "".join(f'<th scope="col">{escape(title.replace("_", " "))}</th>' for title in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _models(models: Any) -> str:
    entries = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    if not entries:
        return ""
    head = [key for key in MODEL_FACTS if any(entry.get(key) is not None for entry in entries)]
    rows = [["–" if entry.get(key) is None else entry[key] for key in head] for entry in entries]
    return "<h3>Models</h3>" + grid(head, rows)


def _phases(phases: Mapping[str, Any]) -> str:
    rows = [
        (name, _fixed(phase.get("seconds"), 1), _fixed(phase.get("peak_memory_mb"), 0))
        for name, phase in phases.items()
        if isinstance(phase, dict)
    ]
    return "<h3>Time and memory</h3>" + grid(("phase", "seconds", "peak memory, MB"), rows) if rows else ""


def _fixed(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _samples(run: Run) -> str:
    prompts = [sample.get("prompt") for sample in run.samples if isinstance(sample, dict)]
    blocks = "".join(f'<pre tabindex="0">{escape(str(prompt))}</pre>' for prompt in prompts if prompt)
    return f"<details><summary>Example prompts</summary>{blocks}</details>" if blocks else ""


def _definitions(run: Run) -> str:
    names = [name for name in run.present if "." not in name]
    rows = "".join(_definition(name) for name in names)
    return f"<details><summary>What each metric means</summary><dl class='meanings'>{rows}</dl></details>"


def _definition(name: str) -> str:
    entry = describe(name)
    interval = {
        "bootstrap": "studentised bootstrap over prompts",
        "share": "Clopper and Pearson's, for as many independent values as the prompts are worth",
        "jackknife": "delete-group jackknife over prompts",
    }
    unit = f" Unit: {entry.unit}." if entry.unit else ""
    how = f" Interval: {interval[entry.interval]}." if entry.interval in interval else ""
    term = f"{escape(entry.title)} <code>{escape(name)}</code>"
    return f"<div><dt>{term}</dt><dd>{escape(entry.caption + unit + how)}</dd></div>"
