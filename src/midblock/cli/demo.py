"""`midblock demo`: parse, call `midblock.demo`, draw the page, print what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midblock.base import watched
from midblock.cli.table import print_profile
from midblock.report import write_report
from midblock.studies import demo as run_demo
from midblock.tuning import FullTuning


def demo(
    *,
    output_dir: Path = Path("runs/demo"),
    overwrite: bool = False,
    num_samples: int = 96,
    json: bool = False,
    tuning: Annotated[FullTuning | None, Parameter(name="*")] = None,
) -> None:
    """Tune the embedded model for a few dozen steps, compare it with itself before, and show where it changed.

    Args:
        output_dir: gets the tuned model, the run folder and the report; a second run uses what is there.
        overwrite: make everything anew.
        num_samples: held-out prompts the two models are compared on.
        json: print the summary as JSON on standard output, for programs.
    """
    with watched() as progress:
        table, folder = run_demo(
            output_dir,
            overwrite=overwrite,
            num_samples=num_samples,
            progress=progress,
            command=" ".join(["midblock", *sys.argv[1:]]),
            tuning=tuning,
        )
    print_profile(table, folder, write_report(folder), as_json=json)
