"""Options about where results go, shared by every verb that writes a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from midblock.base import MidblockError, read_record
from midblock.report import write_report


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where to write and what to print."""

    output_dir: Path | None = None
    """Run folder to write; `runs/VERB-NAME` when left out."""

    resume: bool = False
    """Continue a run that was stopped, with the same settings."""

    overwrite: bool = False
    """Replace a run that is there."""

    json: bool = False
    """Print the summary as JSON on standard output, for programs."""

    def folder(self, verb: str, names: Sequence[str]) -> Path:
        """The run folder: as given, else `runs/VERB-NAMES`."""
        named = "-".join("".join(c if c.isalnum() or c in "._-" else "-" for c in name) for name in names)
        return (self.output_dir or Path("runs") / f"{verb}-{named}").expanduser()


def read_summary(folder: Path) -> dict[str, Any]:
    """Read what a finished run says about itself.

    Raises:
        MidblockError: it is missing or broken.
    """
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict) or not isinstance(summary.get("headline"), str):
        raise MidblockError(f"{file} is missing or broken", hint="--overwrite makes the run anew")
    return summary


def print_run(folder: Path, console: Console, *, as_json: bool, tables: Sequence[object] = ()) -> None:
    """Draw the page of a finished run; print its tables, headline, notes and the page's path, or all of it as JSON."""
    summary = read_summary(folder)
    page = write_report(folder)
    notes = read_record(folder).get("notes", [])
    if as_json:
        print(json.dumps({**summary, "notes": notes, "folder": str(folder), "report": str(page)}, indent=2))
        return
    for table in tables:
        console.print(table)
    console.print(summary["headline"], style="bold", markup=False, highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
