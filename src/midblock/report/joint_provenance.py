"""How the runs of a joint page were made: an overview, then each run's own record behind a click."""

from __future__ import annotations

from html import escape

import numpy as np

from midblock.report.page.amounts import duration
from midblock.report.page.provenance import grid
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.reading import Run
from midblock.report.verbs import PAGES
from midblock.runs.lenient import as_number, mapping

HEAD = ("run", "verb", "status", "started", "seed", "time", "peak memory, MB")


def joint_provenance(run: Joint) -> str:
    """HTML of the last section."""
    labels = labels_of(run.runs)
    rows = [_row(member, label) for member, label in zip(run.runs, labels, strict=True)]
    each = "".join(_details(member, label) for member, label in zip(run.runs, labels, strict=True))
    commands = [str(member.record["command"]) for member in run.runs if member.record.get("command")]
    said = f'<h3>Commands</h3><pre tabindex="0">{escape(chr(10).join(commands))}</pre>' if commands else ""
    return f'<h3>Runs</h3><div class="overview">{grid(HEAD, rows)}</div>{said}<h3>Each run</h3>{each}'


def _row(run: Run, label: str) -> list[str]:
    phases = [phase for phase in mapping(run.record, "phases").values() if isinstance(phase, dict)]
    seconds = np.array([as_number(phase.get("seconds")) for phase in phases])
    memory = np.array([as_number(phase.get("peak_memory_mb")) for phase in phases])
    known = [run.record.get(key) for key in ("status", "started", "seed")]
    return [
        label,
        run.verb,
        *("–" if value is None else str(value) for value in known),
        duration(np.nansum(seconds)) if np.isfinite(seconds).any() else "–",
        f"{np.nanmax(memory):.0f}" if np.isfinite(memory).any() else "–",
    ]


def _details(run: Run, label: str) -> str:
    told = PAGES[run.verb].provenance(run)
    title = f"{escape(label)} <small>{escape(run.verb)}</small>"
    return f'<details class="run"><summary>{title}</summary><div>{told}</div></details>'
