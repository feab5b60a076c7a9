"""Options about where results go, shared by every verb that writes a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
