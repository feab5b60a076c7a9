"""`midblock report`: draw the page of a run folder again."""

from __future__ import annotations

from pathlib import Path

from midblock.report import write_report


def report(run: Path) -> None:
    """Write `report.html` and the figures of a run folder anew, from its tables.

    Args:
        run: a run folder.
    """
    print(write_report(run))
