"""`midblock merge`: parse, call `midblock.merge`, draw the page, print what was written."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midblock.base import read_record, watched
from midblock.cli.output import read_summary
from midblock.interventions import MergeSettings
from midblock.interventions import merge as run_merge
from midblock.report import write_report

Flat = Parameter(name="*")


def merge(
    base: str,
    tuned: str,
    *,
    alphas: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output_dir: Annotated[Path, Parameter(name=["--output-dir", "--output", "-o"])],
    settings: Annotated[MergeSettings | None, Flat] = None,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Mix a base and a model tuned from it, block by block, into a new checkpoint.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: the model tuned from it: the same, or a PEFT adapter folder.
        alphas: how much of the tuned model: one number, one for each block, or fewer, like `0,0.5,1`, spread over them.
        output_dir: folder to write: the checkpoint and the record of the run.
        resume: leave a finished merge of the same settings as it is.
        overwrite: replace a run that is there.
        json: print the summary as JSON, for programs.
    """
    with watched() as progress:
        folder = run_merge(
            base,
            tuned,
            alphas,
            output_dir=output_dir,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            command=" ".join(["midblock", *sys.argv[1:]]),
            **asdict(settings or MergeSettings()),
        )
    page = write_report(folder)
    summary = read_summary(folder)
    notes = read_record(folder).get("notes", [])
    if json:
        print(json_format.dumps({**summary, "notes": notes, "folder": str(folder), "report": str(page)}, indent=2))
        return
    print(summary["headline"])
    print(f"{summary['tensors']} tensors, {summary['copied']} copied bit for bit, {summary['bytes'] / 1e6:.1f} MB.")
    for note in notes:
        print(f"Note: {note}")
    print(f"Written: {folder}")
    print(f"Report: {page}")
