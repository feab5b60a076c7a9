"""`midblock demo`: parse, call `midblock.demo`, draw the page, print what was found."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from midblock.base import user_path, watched
from midblock.cli.life import Filled, tell, whole
from midblock.cli.table import show_profile
from midblock.runs.where import OutputDir
from midblock.studies.demo import ANALYSIS
from midblock.studies.demo import demo as run_demo


def demo(
    *,
    output_dir: Annotated[Path, OutputDir] = Path("runs/demo"),
    overwrite: bool = False,
    num_samples: int = 96,
    json: bool = False,
    device: str = "auto",
) -> None:
    """Tune the embedded model for a few dozen steps, compare it with itself before, and show where it changed.

    Args:
        output_dir: gets the tuned model, the run folder and the report; a second run uses what is there.
        overwrite: make everything anew; other runs in these two folders are replaced.
        num_samples: held-out prompts the two models are compared on.
        json: print the summary as JSON on standard output, for programs.
        device: `cpu`, `cuda`, …; `auto` takes the accelerator if there is one.
    """
    read_back = not overwrite and whole(user_path(output_dir) / ANALYSIS)
    with watched() as progress:
        table, folder = run_demo(
            output_dir,
            overwrite=overwrite,
            num_samples=num_samples,
            progress=progress,
            command=shlex.join(["midblock", *sys.argv[1:]]),
            device=device,
        )
    tell(Filled(folder, read_back), as_json=json, show=partial(show_profile, table))
