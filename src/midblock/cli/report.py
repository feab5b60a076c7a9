"""`midblock report`: draw the page of a run folder again, or one page of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from midblock.base.quoting import printable
from midblock.report import write_report
from midblock.runs.where import OutputDir


def report(*runs: Path, output_dir: Annotated[Path | None, OutputDir] = None) -> None:
    """Write the page and figures of a run folder anew, or one page of several runs: what changed, where, what to do.

    Args:
        runs: run folders; of several the joint page tells what each adds.
        output_dir: where to write; the run's own folder for one run, `report` beside the first for several.
    """
    print(printable(f"Report: {write_report(*runs, output_dir=output_dir)}"))
